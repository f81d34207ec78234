//! When a probe is visible where its change was to go: as a consumer of the hub, or a client of the replica, sees it.
//!
//! In: a destination. Out: for each probe the moment at which it was first seen. Always: only what is committed counts:
//! a file hub is read as far as its checkpoint says, Kafka with `read_committed`, a replica by an ordinary query. Asking
//! takes the destination's time too; how often is said by [`Pace`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::task::JoinHandle;

use super::address::Address;
use super::child::Child;
use super::probe;
use crate::config::KafkaHub;
use crate::error::{Error, Result};
use crate::sink::file;
use crate::sink::kafka::{Reader, Start};
use crate::wal::client::{classify, connect};

/// New probes after the last of those before which none is missing.
const NEW_PROBES: &str = "SELECT id FROM public.walgate_bench_probe WHERE id > $1 ORDER BY id";
const CHECK_TIME: Duration = Duration::from_millis(5);

/// How often a destination is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Every 10 ms, while a backlog is drained.
    Slow,
    /// Every millisecond, while latency is measured.
    Fast,
}

impl Pace {
    fn pause(self) -> Duration {
        match self {
            Pace::Slow => Duration::from_millis(10),
            Pace::Fast => Duration::from_millis(1),
        }
    }
}

/// What has been seen so far.
#[derive(Debug, Default)]
struct Seen {
    at: Mutex<HashMap<i64, Instant>>,
    failure: Mutex<Option<Error>>,
    is_over: AtomicBool,
}

impl Seen {
    fn note(&self, ids: impl IntoIterator<Item = i64>) {
        let now = Instant::now();
        let mut at = self.at.lock().expect("no holder panics");
        for id in ids {
            at.entry(id).or_insert(now);
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn end(&self, ended: Result<()>) {
        if let Err(error) = ended {
            *self.failure.lock().expect("no holder panics") = Some(error);
        }
    }
}

/// One observer for each destination: a probe is visible when all of them have seen it. They end with their handle.
#[derive(Debug, Default)]
pub struct Observers {
    seen: Vec<Arc<Seen>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Observers {
    /// Of a file hub's topic.
    pub fn file(&mut self, hub: PathBuf, topic: String, pace: Pace) {
        let seen = self.add();
        std::thread::spawn(move || seen.end(watch_file(&hub, &topic, pace, &seen)));
    }

    /// Of a topic.
    pub fn kafka(&mut self, mut hub: KafkaHub, topic: String) {
        // The broker answers at once when there is something; this is for when there is nothing.
        hub.properties.insert("fetch.wait.max.ms".to_owned(), "5".to_owned());
        let seen = self.add();
        std::thread::spawn(move || seen.end(watch_kafka(&hub, &topic, &seen)));
    }

    /// Of a replica.
    pub fn replica(&mut self, address: Address, pace: Pace) {
        let seen = self.add();
        self.tasks.push(tokio::spawn(async move {
            let ended = watch_replica(&address, pace, &seen).await;
            seen.end(ended);
        }));
    }

    /// Of what `pg_recvlogical` prints.
    pub fn pipe(&mut self, stdout: tokio::process::ChildStdout) {
        let seen = self.add();
        self.tasks.push(tokio::spawn(async move {
            let ended = watch_pipe(stdout, &seen).await;
            seen.end(ended);
        }));
    }

    fn add(&mut self) -> Arc<Seen> {
        let seen = Arc::<Seen>::default();
        self.seen.push(seen.clone());
        seen
    }

    /// Since when a probe is visible at every destination.
    ///
    /// # Errors
    /// What ended an observer.
    pub fn visible_at(&self, id: i64) -> Result<Option<Instant>> {
        let mut latest = None;
        for seen in &self.seen {
            if let Some(error) = seen.failure.lock().expect("no holder panics").take() {
                return Err(error);
            }
            match seen.at.lock().expect("no holder panics").get(&id) {
                None => return Ok(None),
                Some(at) => latest = latest.max(Some(*at)),
            }
        }
        Ok(latest)
    }

    /// Waits for a probe, as long as the reader lives.
    ///
    /// # Errors
    /// It does not come in time, or the reader has ended.
    pub async fn wait_for(&self, id: i64, limit: Duration, reader: Option<&mut Child>) -> Result<Instant> {
        let began = Instant::now();
        let mut reader = reader;
        loop {
            if let Some(at) = self.visible_at(id)? {
                return Ok(at);
            }
            if let Some(child) = reader.as_deref_mut() {
                child.expect_alive()?;
            }
            if began.elapsed() > limit {
                return Err(Error::definite(format!(
                    "what was committed was not visible at the destination after {} s",
                    limit.as_secs()
                )));
            }
            tokio::time::sleep(CHECK_TIME).await;
        }
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        self.seen.iter().for_each(|seen| seen.is_over.store(true, Ordering::Relaxed));
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// An event of the probe's table, as far as it matters.
#[derive(Deserialize)]
struct Event {
    data: Option<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: i64,
}

fn id_of(event: &[u8]) -> Result<Option<i64>> {
    let event: Event = serde_json::from_slice(event).map_err(|error| {
        Error::definite("an event of the probe's table cannot be read").with_source(error)
    })?;
    Ok(event.data.map(|row| row.id))
}

fn watch_file(hub: &std::path::Path, topic: &str, pace: Pace, seen: &Seen) -> Result<()> {
    let path = hub.join(format!("{topic}.jsonl"));
    let (mut file, mut at) = (None, 0);
    while !seen.is_over() {
        let lengths = file::committed_lengths(hub).unwrap_or_else(|_| BTreeMap::new());
        let length = lengths.get(topic).copied().unwrap_or(0);
        if length > at {
            let failed =
                |error| Error::definite(format!("{} cannot be read", path.display())).with_source(error);
            let mut open = match file.take() {
                Some(open) => open,
                None => File::open(&path).map_err(failed)?,
            };
            let mut lines = vec![0; usize::try_from(length - at).unwrap_or_default()];
            open.seek(SeekFrom::Start(at)).map_err(failed)?;
            open.read_exact(&mut lines).map_err(failed)?;
            let ids: Result<Vec<Option<i64>>> =
                lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(id_of).collect();
            seen.note(ids?.into_iter().flatten());
            (file, at) = (Some(open), length);
        }
        std::thread::sleep(pace.pause());
    }
    Ok(())
}

fn watch_kafka(hub: &KafkaHub, topic: &str, seen: &Seen) -> Result<()> {
    let mut reader = Reader::open(hub)?;
    let mut topics = reader.topics()?;
    topics.retain(|name, _| name == topic);
    if topics.is_empty() {
        return Err(Error::definite(format!("topic {topic} is not there")));
    }
    reader.follow(&topics, Start::Beginning)?;
    while !seen.is_over() {
        if let Some(id) = reader.next(Duration::from_millis(50), id_of)?.flatten() {
            seen.note([id]);
        }
    }
    Ok(())
}

async fn watch_replica(address: &Address, pace: Pace, seen: &Seen) -> Result<()> {
    let client = connect(&address.0, "walgate bench").await?;
    let statement = client.prepare(NEW_PROBES).await.map_err(classify)?;
    // All up to `low` have been seen; of those after it, these: commits do not come in the order of their ids.
    let (mut low, mut after) = (-1_i64, BTreeSet::new());
    loop {
        let rows = client.query(&statement, &[&low]).await.map_err(classify)?;
        seen.note(rows.iter().map(|row| row.get(0)).filter(|id| after.insert(*id)));
        while after.remove(&(low + 1)) {
            low += 1;
        }
        tokio::time::sleep(pace.pause()).await;
    }
}

async fn watch_pipe(mut stdout: tokio::process::ChildStdout, seen: &Seen) -> Result<()> {
    use tokio::io::AsyncReadExt;
    let mut buffer = Vec::with_capacity(1 << 20);
    loop {
        if let Ok(0) | Err(_) = stdout.read_buf(&mut buffer).await {
            return Ok(());
        }
        let (ids, whole) = probe::marks_in(&buffer);
        seen.note(ids);
        buffer.drain(..whole);
    }
}
