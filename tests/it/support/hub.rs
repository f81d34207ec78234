//! A hub of a test's own: a folder, or the topics of one source on the shared broker.
//!
//! In: a source. Out: its `[hub]` section, and the events that a read_committed consumer sees. Always: only
//! whole lines of a file are events; the checkpoint's topic is not one of the source's topics.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Event, PATIENCE, Source, kafka, servers, wait_for};

/// Where a source's events are.
pub enum Hub {
    /// A folder with a file per topic.
    File { folder: tempfile::TempDir },
    /// The topics `<source>.*` of a broker.
    Kafka { brokers: String, source: String },
}

impl Hub {
    /// A file hub.
    pub fn file() -> Self {
        Hub::File { folder: servers::folder("hub") }
    }

    /// The topics of a source on the shared broker.
    pub fn kafka(source: &Source) -> Self {
        Self::kafka_at(&servers::kafka_brokers(), source)
    }

    /// The topics of a source on another broker.
    pub fn kafka_at(brokers: &str, source: &Source) -> Self {
        Hub::Kafka { brokers: brokers.to_owned(), source: source.name().to_owned() }
    }

    /// Both kinds, for a test that must hold for each.
    pub fn of_each_kind(source: &Source) -> [Self; 2] {
        [Self::file(), Self::kafka(source)]
    }

    /// The lines of the `[hub]` section, without its heading.
    pub fn settings(&self) -> String {
        match self {
            Hub::File { .. } => format!("kind = \"file\"\npath = {:?}\n", self.path()),
            Hub::Kafka { brokers, .. } => {
                format!("kind = \"kafka\"\nbrokers = {brokers:?}\npartitions = 3\n")
            }
        }
    }

    /// The folder of a file hub. Walgate may have to make it.
    #[track_caller]
    pub fn path(&self) -> PathBuf {
        match self {
            Hub::File { folder } => folder.path().join("events"),
            Hub::Kafka { .. } => panic!("a Kafka hub has no folder"),
        }
    }

    /// The topics with the source's events, sorted.
    pub fn topics(&self) -> Vec<String> {
        match self {
            Hub::File { .. } => files(&self.path()).into_iter().map(|(topic, _)| topic).collect(),
            Hub::Kafka { brokers, source } => {
                let mut names = kafka::topics(brokers, &format!("{source}."));
                names.retain(|name| !name.ends_with(".checkpoint"));
                names
            }
        }
    }

    /// Every event there is now, by topic, partition and offset.
    #[track_caller]
    pub fn events(&self) -> Vec<Event> {
        match self {
            Hub::File { .. } => {
                files(&self.path()).iter().flat_map(|(topic, path)| read_file(topic, path)).collect()
            }
            Hub::Kafka { brokers, .. } => {
                let records = kafka::read_committed(brokers, &self.topics());
                records.into_iter().filter_map(event).collect()
            }
        }
    }

    /// Reads until the events are as wanted, and panics with `what` after [`PATIENCE`].
    #[track_caller]
    pub fn wait_for(&self, what: &str, is_wanted: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
        self.wait_for_within(what, PATIENCE, is_wanted)
    }

    /// Reads until the events are as wanted, and panics with `what` after `limit`.
    #[track_caller]
    pub fn wait_for_within(
        &self,
        what: &str,
        limit: Duration,
        mut is_wanted: impl FnMut(&[Event]) -> bool,
    ) -> Vec<Event> {
        wait_for(what, limit, || Some(self.events()).filter(|events| is_wanted(events)))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // The broker has few topics' worth of memory; after a failure they stay, to be looked at.
        if let Hub::Kafka { brokers, source } = self
            && !std::thread::panicking()
        {
            let names = kafka::topics(brokers, &format!("{source}."));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            if !names.is_empty() {
                kafka::delete_topics(brokers, &names);
            }
        }
    }
}

/// The topics' files in a folder, by name.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.expect("a folder's entry can be read").path();
            let topic = path.file_name()?.to_str()?.strip_suffix(".jsonl")?.to_owned();
            Some((topic, path))
        })
        .collect();
    files.sort();
    files
}

/// The whole lines of a file: while Walgate runs, the last one may still be on its way.
#[track_caller]
fn read_file(topic: &str, path: &Path) -> Vec<Event> {
    let bytes = std::fs::read(path).expect("a topic's file can be read");
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let text = std::str::from_utf8(&bytes[..whole]).expect("a topic's file is UTF-8");
    let line_event = |(number, line): (usize, &str)| Event {
        topic: topic.to_owned(),
        partition: 0,
        offset: i64::try_from(number).expect("a file has few lines"),
        key: None,
        headers: std::collections::BTreeMap::new(),
        json: parse(line),
        raw: line.to_owned(),
    };
    text.lines().enumerate().map(line_event).collect()
}

/// A record's event; none for a tombstone.
fn event(record: kafka::Record) -> Option<Event> {
    let raw = record.value?;
    let kafka::Record { topic, partition, offset, key, headers, .. } = record;
    Some(Event { topic, partition, offset, key, headers, json: parse(&raw), raw })
}

#[track_caller]
fn parse(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("an event is not JSON: {error}: {text}"))
}
