//! `walgate claims check`: is everything there that the hub's events claim, and as it was published?
//!
//! Orphans are counted as well: objects at or before the checkpoint to which no event at the hub refers. They are no
//! fault, since every event that a topic's retention removes leaves one; `walgate claims gc` removes them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Sides, events, progress};
use crate::claim::inspect::{Finding, Verdict, inspect};
use crate::claim::place::Place;
use crate::command::Failure;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::pipeline::start::blocking;

/// Events whose objects are fetched at a time: each holds one in memory.
const EVENTS_MAX: usize = 4;
/// Findings shown of each kind, as text.
const SHOWN_MAX: usize = 20;

/// What `walgate claims check` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Look for events in this topic only (repeatable): no other has events of this source
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Nothing is missing or altered.
    good: bool,
    /// Objects that are as they were published.
    objects: u64,
    missing: Vec<Bad>,
    altered: Vec<Bad>,
    /// Objects that events claim from another store than the configured one: they were not looked at.
    elsewhere: u64,
    orphans: Orphans,
    /// An event may be there twice, and claims its objects once.
    #[serde(skip)]
    seen: HashSet<String>,
}

/// An object that is not as it was published.
#[derive(Debug, Serialize)]
struct Bad {
    /// The id of the event that claims it.
    event: String,
    uri: String,
    /// What it is, and what was published.
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
}

/// Objects to which no event refers.
#[derive(Debug, Default, Serialize)]
struct Orphans {
    objects: u64,
    bytes: u64,
}

/// Compares and prints.
///
/// # Errors
/// [`Failure::Found`] when an object is missing or altered; usage: there is no claim store. As the hub and the store.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let progress = progress(arguments.json);
    let sides = Sides::look(config, &progress).await?;
    let mut orphans: HashMap<Place, Orphans> = HashMap::new();
    // Without a checkpoint nobody knows which these are; what events claim can be compared all the same.
    for object in sides.stored.checkpoint.iter().flat_map(|_| &sides.objects) {
        let place = sides.places.of_key(&object.key);
        let settled = |place: &Place| {
            let checkpoint = sides.stored.checkpoint.as_ref().expect("looked at above");
            place.is_settled(checkpoint, &sides.stored.tables)
        };
        if let Some(place) = place.filter(settled) {
            let of_event = orphans.entry(place).or_default();
            of_event.objects += 1;
            of_event.bytes += object.bytes;
        }
    }
    progress.set_message("comparing events with their objects");
    let (events, mut arriving) = mpsc::channel::<Vec<u8>>(EVENTS_MAX);
    let (pipeline, named, places) = (sides.pipeline.clone(), arguments.topics.clone(), sides.places.clone());
    let reading = tokio::spawn(blocking(move || {
        events::read(&pipeline, &named, |value| {
            let mut found = places.of_references(value).peekable();
            if found.peek().is_some() {
                for place in found {
                    orphans.remove(&place);
                }
                let gone = |_| Error::transient("the command is ending");
                events.blocking_send(value.to_vec()).map_err(gone)?;
            }
            Ok(())
        })?;
        Ok(orphans)
    }));
    let mut report = Report::default();
    let mut looking: JoinSet<Result<Vec<Finding>>> = JoinSet::new();
    let address = Arc::new(sides.address.clone());
    while let Some(value) = arriving.recv().await {
        let (store, address) = (sides.store.clone(), address.clone());
        looking.spawn(async move { inspect(&store, &address, &value).await });
        while looking.len() >= EVENTS_MAX {
            report.take(next(&mut looking).await?);
            progress.inc(1);
        }
    }
    while !looking.is_empty() {
        report.take(next(&mut looking).await?);
        progress.inc(1);
    }
    let orphans = reading.await.expect("it does not panic")?;
    progress.finish_and_clear();
    for one in orphans.into_values() {
        report.orphans.objects += one.objects;
        report.orphans.bytes += one.bytes;
    }
    report.good = report.missing.is_empty() && report.altered.is_empty();
    super::super::print(&report, arguments.json, text);
    if report.good { Ok(()) } else { Err(Failure::Found) }
}

async fn next(looking: &mut JoinSet<Result<Vec<Finding>>>) -> Result<Vec<Finding>> {
    looking.join_next().await.expect("there is one").expect("it does not panic")
}

impl Report {
    fn take(&mut self, findings: Vec<Finding>) {
        for Finding { event, uri, verdict } in findings {
            if !self.seen.insert(uri.clone()) {
                continue;
            }
            match verdict {
                Verdict::Good => self.objects += 1,
                Verdict::Missing => self.missing.push(Bad { event, uri, found: None }),
                Verdict::Altered(found) => self.altered.push(Bad { event, uri, found: Some(found) }),
                Verdict::Elsewhere => self.elsewhere += 1,
            }
        }
    }
}

fn text(report: &Report) -> String {
    let Report { objects, missing, altered, elsewhere, orphans, .. } = report;
    let mut out = format!("{objects} objects are as they were published\n");
    for (what, all) in [("missing", missing), ("altered", altered)] {
        if all.is_empty() {
            continue;
        }
        out.push_str(&format!("{} {what}:\n", all.len()));
        for Bad { event, uri, found } in all.iter().take(SHOWN_MAX) {
            let found = found.as_ref().map_or_else(String::new, |found| format!(": {found}"));
            out.push_str(&format!("  event {event}: {uri}{found}\n"));
        }
        if all.len() > SHOWN_MAX {
            out.push_str(&format!("  ... and {} more (--json lists all)\n", all.len() - SHOWN_MAX));
        }
    }
    if !missing.is_empty() || !altered.is_empty() {
        out.push_str("  remedy: restore them, or copy their tables again (`walgate resync --pipeline hub TABLE`); see who else may write or remove there\n");
    }
    if *elsewhere > 0 {
        out.push_str(&format!("{elsewhere} are in another store than claim_check.store: not looked at\n"));
    }
    if orphans.objects > 0 {
        out.push_str(&format!(
            "{} orphans, {} bytes: no event at the hub refers to them; `walgate claims gc` removes them\n",
            orphans.objects, orphans.bytes
        ));
    }
    out
}
