//! `walgate tail`: prints events from the hub. DESIGN section 7, docs/commands.md.
//!
//! Comes in: a hub and perhaps a topic. Goes out: one JSON value a line on stdout, as published; on a
//! terminal a line for people. Only committed events are seen, and reading leaves no trace at the
//! hub. Ends by itself after `--count` events, else by a signal or when nobody reads its output any
//! more: each is exit code 0.

mod file;
mod kafka;
mod printer;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use super::Failure;
use crate::claim::ClaimStore;
use crate::config::{Config, Format, HubKind};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::pipeline::start::blocking;
use crate::pipeline::tables::{self, rule_of};
use crate::route::format::message_topic;
use crate::route::template::{Topic, TopicNames};
use crate::wal::catalog;
use crate::wal::client::connect;
use printer::{Printer, Resolver};

/// After a signal, how long the event that is being printed may take.
const LAST_LINE_TIME: Duration = Duration::from_millis(500);
/// The source is only asked for names; the hub's topics do as well.
const SOURCE_TIME_MAX: Duration = Duration::from_secs(3);

/// What `walgate tail` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this topic; without it, all topics of this configuration's tables
    pub topic: Option<String>,
    /// Begin with the first event, not with the next one
    #[arg(long)]
    pub from_beginning: bool,
    /// End, exit code 0, after N events
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Fetch and verify what travels by claim check
    #[arg(long)]
    pub resolve: bool,
    /// Print JSON on a terminal too
    #[arg(long)]
    pub json: bool,
}

/// Which topics are read.
struct Selection {
    topic: Option<String>,
    from_beginning: bool,
    source_name: String,
    template: crate::route::template::TopicTemplate,
    /// Topics of the source's tables, where the source could be asked.
    of_tables: Option<BTreeSet<String>>,
    /// The topic of logical messages, where the template does not name it.
    of_messages: Option<String>,
}

impl Selection {
    /// Whether a topic of the hub is of this configuration.
    fn is_own(&self, topic: &str) -> bool {
        let is_of_table = self.of_tables.as_ref().is_some_and(|topics| topics.contains(topic));
        if is_of_table || self.of_messages.as_deref() == Some(topic) {
            return true;
        }
        // Names without the source's may be anybody's: then only the catalog knows.
        let can_tell = self.template.names_source() || self.of_tables.is_none();
        let is_internal = topic.ends_with(".checkpoint") || topic.ends_with(".dead-letter");
        can_tell && !is_internal && self.template.can_be(&self.source_name, topic)
    }

    /// The topics to read out of those that the hub has.
    fn choose<'t>(&self, existing: impl Iterator<Item = &'t String>) -> BTreeSet<String> {
        match &self.topic {
            Some(asked) => existing.filter(|topic| *topic == asked).cloned().collect(),
            None => existing.filter(|topic| self.is_own(topic)).cloned().collect(),
        }
    }

    /// Refuses a topic that the hub does not have.
    fn check<'t>(&self, existing: impl Iterator<Item = &'t String> + Clone) -> Result<()> {
        let Some(asked) = &self.topic else { return Ok(()) };
        if existing.clone().any(|topic| topic == asked) {
            return Ok(());
        }
        let known: Vec<&str> = existing.filter(|topic| self.is_own(topic)).map(String::as_str).collect();
        let hint = match known.as_slice() {
            [] => "there is none of this configuration yet: start `walgate run` first".to_owned(),
            known => format!("known are {}", known.join(", ")),
        };
        Err(Error::definite(format!("there is no topic {asked}")).with_hint(hint))
    }
}

/// Prints until the count is reached, or asked to end.
///
/// # Errors
/// No such topic; the hub cannot be read; with `--resolve`, an object that is missing or altered.
pub async fn run(config: Config, arguments: Arguments) -> Result<(), Failure> {
    if arguments.count == Some(0) {
        return Ok(());
    }
    let pipeline = Pipeline::of_hub(Arc::new(config), false)?;
    let selection = Selection {
        of_tables: tokio::time::timeout(SOURCE_TIME_MAX, topics_of_tables(&pipeline))
            .await
            .ok()
            .and_then(Result::ok),
        of_messages: (pipeline.events.format == Format::Debezium)
            .then(|| message_topic(&pipeline.source_name))
            .and_then(|topic| Topic::legal(topic).ok())
            .map(|topic| topic.legal),
        source_name: pipeline.source_name.clone(),
        template: pipeline.config.hub.topic.clone(),
        topic: arguments.topic.clone(),
        from_beginning: arguments.from_beginning,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let resolver = match &pipeline.config.claim_check {
        Some(claim_check) if arguments.resolve => {
            let (store, runtime) = (ClaimStore::open(claim_check).await, tokio::runtime::Handle::current());
            Some(Resolver { store, address: claim_check.store.clone(), runtime })
        }
        _ => None,
    };
    let printer = Printer::new(&arguments, resolver, stop.clone());
    let hub = pipeline.config.hub.clone();
    let follow = blocking(move || match &hub.kind {
        HubKind::Kafka(kafka) => kafka::follow(kafka, &selection, printer),
        HubKind::File(file) => file::follow(&file.path, &selection, printer),
    });
    tokio::pin!(follow);
    tokio::select! {
        done = &mut follow => Ok(done?),
        () = crate::engine::wait_for_signal() => {
            stop.store(true, Ordering::Relaxed);
            // A reader that takes nothing keeps it waiting: then its last line is cut.
            let _ = tokio::time::timeout(LAST_LINE_TIME, follow).await;
            Ok(())
        }
    }
}

async fn topics_of_tables(pipeline: &Pipeline) -> Result<BTreeSet<String>> {
    let client = connect(&pipeline.url, "walgate tail").await?;
    let tables = tables::all(pipeline, &client).await?;
    let topic = |table: &catalog::SourceTable| -> Option<Topic> {
        let rule = rule_of(pipeline, table)?;
        let names = TopicNames {
            source: &pipeline.source_name,
            schema: &table.schema,
            table: &table.name,
            aggregate_type: rule.aggregate_type.as_deref().unwrap_or(&table.name),
        };
        pipeline.config.hub.topic.render(&names).ok()
    };
    Ok(tables.iter().filter_map(|table| topic(table).map(|topic| topic.legal)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::template::TopicTemplate;

    fn selection(template: &str, of_tables: Option<&[&str]>) -> Selection {
        Selection {
            topic: None,
            from_beginning: false,
            source_name: "shop".into(),
            template: TopicTemplate::parse(template).expect(template),
            of_messages: Some("shop.message".into()),
            of_tables: of_tables.map(|topics| topics.iter().map(|topic| (*topic).to_owned()).collect()),
        }
    }

    #[test]
    fn reads_what_is_its_own() {
        let default = selection(TopicTemplate::DEFAULT, Some(&["shop.public.orders"]));
        assert!(default.is_own("shop.public.orders"));
        assert!(default.is_own("shop.public.dropped_since"));
        assert!(default.is_own("shop.message"));
        assert!(!default.is_own("shop.walgate_hub.checkpoint"));
        assert!(!default.is_own("shop.walgate_hub.dead-letter"));
        assert!(!default.is_own("other.public.orders"));
        let bare = selection("{table}", Some(&["orders"]));
        assert!(bare.is_own("orders"));
        assert!(!bare.is_own("somebody-elses"));
        assert!(selection("{table}", None).is_own("perhaps"), "better too much than nothing");
    }

    #[test]
    fn an_unknown_topic_names_the_known_ones() {
        let mut asked = selection(TopicTemplate::DEFAULT, None);
        asked.topic = Some("shop.public.order".into());
        let existing = ["shop.public.orders".to_owned(), "x".to_owned()];
        let error = asked.check(existing.iter()).expect_err("there is none");
        assert_eq!(error.hint(), Some("known are shop.public.orders"));
        asked.topic = Some("x".into());
        asked.check(existing.iter()).expect("any topic of the hub may be asked for");
    }
}
