//! `walgate claims gc`: removes what no event needs.
//!
//! An object is removed if all of this holds: its key is one that Walgate gives to an event of this source; that event
//! lies at or before the hub's checkpoint, so it is published, or never will be; no event that the hub still has refers to
//! it; and it was stored longer ago than asked. Of the rest each is counted by the first of them that does not hold.
//! Nothing is removed before all events are read. A file that a crash left unfinished goes when it is old enough; one that
//! is being written now is written again, if it does.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use clap::Args;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{REQUESTS_MAX, Sides, events, progress};
use crate::claim::Object;
use crate::claim::place::Place;
use crate::command::Failure;
use crate::config::Config;
use crate::config::parse_duration;
use crate::error::Result;
use crate::pipeline::start::blocking;

/// What `walgate claims gc` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only objects that were stored longer ago: 7d, 12h. At least what a consumer may take from reading an event to
    /// fetching its object
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub older_than: Duration,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Look for events in this topic only (repeatable): no other has events of this source
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn age(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a whole number and its unit: 7d, 12h, 30m, 0s".to_owned())
}

/// Objects, counted.
#[derive(Debug, Default, Serialize)]
struct Count {
    objects: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, object: &Object) {
        self.objects += 1;
        self.bytes += object.bytes;
    }
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Report {
    dry_run: bool,
    /// Or would be.
    removed: Count,
    /// An event at the hub needs them.
    referenced: Count,
    /// Stored less long ago than asked.
    young: Count,
    /// Their events may still be published.
    after_checkpoint: Count,
    /// Walgate did not store them.
    foreign: Count,
}

/// Removes and prints.
///
/// # Errors
/// Usage: there is no claim store. As the hub and the store.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let progress = progress(arguments.json);
    let done = collect(config, arguments, &progress).await;
    progress.finish_and_clear();
    super::super::print(&done?, arguments.json, text);
    Ok(())
}

async fn collect(config: Config, arguments: &Arguments, progress: &ProgressBar) -> Result<Report, Failure> {
    let mut sides = Sides::look(config, progress).await?;
    let mut report = Report { dry_run: arguments.dry_run, ..Report::default() };
    let mut candidates: HashMap<Place, Vec<Object>> = HashMap::new();
    let stored_before = SystemTime::now().checked_sub(arguments.older_than);
    let (checkpoint, objects) = (sides.checkpoint()?.clone(), std::mem::take(&mut sides.objects));
    let is_young = |object: &Object| stored_before.is_none_or(|before| object.stored_at > before);
    let mut unneeded = Vec::new();
    for object in objects {
        match sides.places.of_key(&object.key) {
            _ if object.is_unfinished && is_young(&object) => report.young.add(&object),
            _ if object.is_unfinished => unneeded.push(object),
            None => report.foreign.add(&object),
            Some(place) if !place.is_settled(&checkpoint, &sides.stored.tables) => {
                report.after_checkpoint.add(&object);
            }
            Some(_) if is_young(&object) => report.young.add(&object),
            Some(place) => candidates.entry(place).or_default().push(object),
        }
    }
    unneeded.extend(without_event(&sides, arguments, candidates, &mut report, progress).await?);
    unneeded.iter().for_each(|object| report.removed.add(object));
    if !arguments.dry_run {
        progress.set_message("removing");
        progress.set_position(0);
        let (store, shown) = (&sides.store, &progress);
        stream::iter(&unneeded)
            .map(|object| async move {
                store.delete(&object.key).await?;
                shown.inc(1);
                Ok::<_, crate::error::Error>(())
            })
            .buffer_unordered(REQUESTS_MAX)
            .try_collect::<()>()
            .await?;
    }
    Ok(report)
}

/// Those of the candidates to whose event nothing at the hub refers.
async fn without_event(
    sides: &Sides,
    arguments: &Arguments,
    mut candidates: HashMap<Place, Vec<Object>>,
    report: &mut Report,
    progress: &ProgressBar,
) -> Result<Vec<Object>> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    progress.set_message("reading the hub's events");
    let (pipeline, named) = (sides.pipeline.clone(), arguments.topics.clone());
    let (places, shown) = (sides.places.clone(), progress.clone());
    let (candidates, referenced) = blocking(move || {
        let mut referenced = Count::default();
        events::read(&pipeline, &named, |value| {
            shown.inc(1);
            for place in places.of_references(value) {
                candidates.remove(&place).iter().flatten().for_each(|object| referenced.add(object));
            }
            Ok(())
        })?;
        Ok((candidates, referenced))
    })
    .await?;
    report.referenced = referenced;
    Ok(candidates.into_values().flatten().collect())
}

fn text(report: &Report) -> String {
    let Report { dry_run, removed, referenced, young, after_checkpoint, foreign } = report;
    let line = |what: &str, count: &Count| match count.objects {
        0 => String::new(),
        objects => format!("{objects} objects, {} bytes: {what}\n", count.bytes),
    };
    let verdict = if *dry_run { "would be removed" } else { "removed" };
    [
        format!("{} objects, {} bytes: {verdict}\n", removed.objects, removed.bytes),
        line("kept, an event at the hub refers to them", referenced),
        line("kept, not old enough", young),
        line("kept, after the checkpoint: their events may still come", after_checkpoint),
        line("kept, not stored by walgate for this source", foreign),
    ]
    .concat()
}
