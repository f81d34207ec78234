//! What has arrived, looked at when the clock has stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::publications::Publications;
use crate::config::KafkaHub;
use crate::error::{Error, Result};
use crate::sink::file;
use crate::sink::kafka::{Reader, Start};
use crate::wal::client::{Client, classify};

/// How long a topic may be silent before it counts as read to its end.
const SILENCE: Duration = Duration::from_secs(5);
/// The same, once as many events have come as there should be: whether there is one more.
const SILENCE_AT_END: Duration = Duration::from_millis(500);

/// Of a table: its number of rows, and a sum over all that is in them, as far as they pass its filter.
///
/// # Errors
/// As the connection.
pub async fn contents(client: &Client, publications: &Publications) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for table in &publications.tables {
        let statement = format!(
            "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {} t WHERE {}",
            table.quoted(),
            table.filter.unwrap_or("true")
        );
        found.push(client.query_one(&statement, &[]).await.map_err(classify)?.get(0));
    }
    Ok(found)
}

/// Events, and what their values take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// How many.
    pub count: u64,
    /// Their bytes; of a directory, with those of claimed objects.
    pub bytes: u64,
}

/// Of a contender's file hub.
///
/// # Errors
/// When it cannot be read.
pub fn in_files(folder: &Path) -> Result<Events> {
    use std::io::Read;
    let hub = folder.join("hub");
    let mut events = Events { count: 0, bytes: folder_bytes(&folder.join("claims")) };
    let mut buffer = vec![0; 1 << 20];
    for (topic, length) in file::committed_lengths(&hub)? {
        let path = hub.join(format!("{topic}.jsonl"));
        let failed = |error| Error::definite(format!("{} cannot be read", path.display())).with_source(error);
        events.bytes += length;
        if length == 0 {
            continue;
        }
        let mut lines = std::fs::File::open(&path).map_err(failed)?.take(length);
        loop {
            let count = lines.read(&mut buffer).map_err(failed)?;
            let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { break };
            events.count += u64::try_from(memchr::memchr_iter(b'\n', read).count()).unwrap_or_default();
        }
    }
    Ok(events)
}

/// Of all topics with this prefix, the checkpoint's not among them.
///
/// # Errors
/// As the broker.
pub async fn in_kafka(hub: KafkaHub, prefix: String, expected: Option<u64>) -> Result<Events> {
    let count = move || {
        let mut reader = Reader::open(&hub)?;
        let mut topics: BTreeMap<String, i32> = reader.topics()?;
        topics.retain(|name, _| name.starts_with(&prefix) && !name.ends_with(".checkpoint"));
        reader.follow(&topics, Start::Beginning)?;
        let (mut events, mut heard_at) = (Events::default(), Instant::now());
        loop {
            let silence = if expected.is_some_and(|expected| events.count >= expected) {
                SILENCE_AT_END
            } else {
                SILENCE
            };
            match reader.next(Duration::from_millis(100), |value| Ok(value.len()))? {
                Some(bytes) => {
                    events.count += 1;
                    events.bytes += u64::try_from(bytes).unwrap_or_default();
                    heard_at = Instant::now();
                }
                None if heard_at.elapsed() > silence => return Ok(events),
                None => {}
            }
        }
    };
    tokio::task::spawn_blocking(count)
        .await
        .unwrap_or_else(|error| Err(Error::definite("counting events has panicked").with_source(error)))
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { folder_bytes(&entry.path()) } else { metadata.len() })
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lines_and_what_they_take() {
        let folder = tempfile::tempdir().expect("a folder");
        let hub = folder.path().join("hub");
        std::fs::create_dir_all(folder.path().join("claims/a/b")).expect("it can be written");
        std::fs::write(folder.path().join("claims/a/b/c.json"), "12345").expect("it can be written");
        std::fs::create_dir(&hub).expect("it can be written");
        std::fs::write(hub.join("t.jsonl"), "{}\n{}\n{").expect("it can be written");
        assert_eq!(in_files(folder.path()).expect("it can be read"), Events { count: 2, bytes: 11 });
    }
}
