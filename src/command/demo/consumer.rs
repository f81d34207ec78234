//! A consumer of the hub, as any service would write one: it follows the topics' files and folds the events.
//!
//! In: the directory, read up to the lengths that its checkpoint names as whole. Out: per table the rows that the
//! events add up to, the events counted per operation, and how long each took from its commit to here. Always: it
//! knows nothing of Walgate but DESIGN sections 4 and 5 and the kinds of files; what contradicts them (an id twice, an
//! update of a row that is not there) is kept as a fault. What travels by claim check it fetches and compares.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::sink::file::committed_lengths;

/// Between two looks at the checkpoint: also the grain of the lag.
const LOOK_TIME: Duration = Duration::from_millis(2);
const FAULTS_MAX: usize = 5;

/// A row: its columns' values as JSON texts, digit by digit as they were sent.
pub type Row = BTreeMap<String, Box<str>>;

/// What the events of one table add up to.
#[derive(Debug, Default)]
pub struct Table {
    /// By aggregate id.
    pub rows: HashMap<String, Row>,
    /// Of a table without key: how often there is a row.
    pub keyless: BTreeMap<Row, i64>,
    /// Events by operation.
    pub ops: BTreeMap<String, u64>,
    /// What the old half of a key change had, until the new half comes: by old and new id.
    moving: HashMap<(String, String), Row>,
}

/// Everything read so far, folded.
#[derive(Debug, Default)]
pub struct Fold {
    /// By `schema.table`.
    pub tables: BTreeMap<String, Table>,
    /// What no consumer should ever see; the first few.
    pub faults: Vec<String>,
    ids: HashSet<Box<str>>,
}

/// What the display shows while events come.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Events read.
    pub events: u64,
    /// From commit to reading, of the changes of the stream: when committed, in microseconds since 1970, and how
    /// long it took, in microseconds.
    pub lags: Vec<(u64, u64)>,
    /// Events worth showing, as they were read.
    pub samples: Vec<String>,
}

/// The thread that follows the directory.
#[derive(Debug)]
pub struct Consumer {
    seen: Arc<Mutex<Seen>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Fold>>>,
}

impl Consumer {
    /// Starts to follow a directory.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(path: PathBuf) -> Result<Consumer> {
        let (seen, is_over) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let mut follower = Follower {
            path,
            read: BTreeMap::new(),
            fold: Fold::default(),
            seen: seen.clone(),
            shown: BTreeSet::new(),
        };
        let is_over_there = is_over.clone();
        let thread = std::thread::Builder::new()
            .name("consumer".to_owned())
            .spawn(move || {
                loop {
                    // Asked first, looked after: the last look sees everything.
                    let is_last = is_over_there.load(Ordering::Acquire);
                    follower.look()?;
                    if is_last {
                        return Ok(follower.fold);
                    }
                    std::thread::sleep(LOOK_TIME);
                }
            })
            .map_err(|error| {
                Error::transient("the consumer's thread cannot be started").with_source(error)
            })?;
        Ok(Consumer { seen, is_over, thread: Some(thread) })
    }

    /// What was seen so far.
    pub fn with_seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().expect("no holder panics"))
    }

    /// Reads to the end of what is there now, and gives the fold.
    ///
    /// # Errors
    /// What kept it from reading.
    pub async fn finish(&mut self) -> Result<Fold> {
        self.is_over.store(true, Ordering::Release);
        let thread = self.thread.take().expect("it is finished once");
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .ok()
            .and_then(std::thread::Result::ok)
            .unwrap_or_else(|| Err(Error::definite("the consumer has panicked")))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
    }
}

struct Follower {
    path: PathBuf,
    /// How far each topic was read, in bytes.
    read: BTreeMap<String, u64>,
    fold: Fold,
    seen: Arc<Mutex<Seen>>,
    /// Kinds of events of which one was shown.
    shown: BTreeSet<&'static str>,
}

impl Follower {
    fn look(&mut self) -> Result<()> {
        let lengths = committed_lengths(&self.path)?;
        let now = unix_micros(SystemTime::now());
        for (topic, length) in lengths {
            let from = self.read.get(&topic).copied().unwrap_or(0);
            if length == from {
                continue;
            }
            let lines = self.lines(&topic, from, length).map_err(|error| {
                Error::definite(format!("the topic {topic} cannot be read")).with_source(error)
            })?;
            for line in lines.lines() {
                self.take(line, now)?;
            }
            self.read.insert(topic, length);
        }
        Ok(())
    }

    fn lines(&self, topic: &str, from: u64, to: u64) -> std::io::Result<String> {
        let mut file = File::open(self.path.join(format!("{topic}.jsonl")))?;
        file.seek(SeekFrom::Start(from))?;
        let mut text = String::new();
        file.take(to.saturating_sub(from)).read_to_string(&mut text)?;
        Ok(text)
    }

    fn take(&mut self, line: &str, now: u64) -> Result<()> {
        let event = parse(line)?;
        {
            let mut seen = self.seen.lock().expect("no holder panics");
            seen.events += 1;
            if event.op != "read"
                && let Some(committed) = micros_of(&event.occurred_at)
            {
                seen.lags.push((committed, now.saturating_sub(committed)));
            }
            if let Some(kind) = event.kind_to_show()
                && self.shown.insert(kind)
            {
                seen.samples.push(line.to_owned());
            }
        }
        let Some(claim) = &event.claim else {
            self.fold.take(event);
            return Ok(());
        };
        self.fold.take(parse(&claim.fetch()?)?);
        Ok(())
    }
}

fn parse(text: &str) -> Result<Event<'_>> {
    serde_json::from_str(text)
        .map_err(|error| Error::definite("an event is not as the documentation says").with_source(error))
}

/// The fields of an event that a consumer needs for its rows.
#[derive(Debug, Deserialize)]
struct Event<'e> {
    id: Box<str>,
    op: String,
    aggregate_id: Option<String>,
    occurred_at: String,
    source: Source,
    #[serde(borrow)]
    data: Option<BTreeMap<String, &'e RawValue>>,
    unchanged: Vec<String>,
    moved_from: Option<String>,
    moved_to: Option<String>,
    #[serde(default)]
    claim: Option<Claim>,
}

/// Where the whole event is.
#[derive(Debug, Deserialize)]
struct Claim {
    uri: String,
    bytes: usize,
    sha256: String,
}

impl Claim {
    fn fetch(&self) -> Result<String> {
        let failed = |what: &str| Error::definite(format!("{} {what}", self.uri));
        let path = self.uri.strip_prefix("file://").unwrap_or(&self.uri);
        let path = percent_decode_str(path).decode_utf8_lossy();
        let body = std::fs::read(path.as_ref())
            .map_err(|error| failed("is claimed and cannot be read").with_source(error))?;
        let sha256: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
        if body.len() != self.bytes || sha256 != self.sha256 {
            return Err(failed("is not what was published"));
        }
        String::from_utf8(body).map_err(|error| failed("is no text").with_source(error))
    }
}

#[derive(Debug, Deserialize)]
struct Source {
    schema: String,
    table: String,
}

impl Fold {
    fn take(&mut self, event: Event<'_>) {
        if !self.ids.insert(event.id.clone()) {
            self.fault(format!("the event {} came twice", event.id));
        }
        let name = event.table();
        let table = self.tables.entry(name).or_default();
        *table.ops.entry(event.op.clone()).or_default() += 1;
        if let Err(text) = table.take(event) {
            self.fault(text);
        }
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(text);
        }
    }
}

impl Table {
    /// # Errors
    /// What contradicts the documentation.
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        let mut row: Row = event
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(column, value)| (column, value.get().into()))
            .collect();
        let id = event.id;
        let Some(key) = event.aggregate_id else {
            return match event.op.as_str() {
                "insert" | "read" => {
                    *self.keyless.entry(row).or_default() += 1;
                    Ok(())
                }
                "truncate" => {
                    self.rows.clear();
                    self.keyless.clear();
                    Ok(())
                }
                op => Err(format!("{id}: {op} without an aggregate id")),
            };
        };
        match event.op.as_str() {
            "insert" | "read" => {
                if let Some(from) = event.moved_from {
                    let old = self
                        .moving
                        .remove(&(from, key.clone()))
                        .ok_or_else(|| format!("{id}: the old half of its key change did not come"))?;
                    keep(&mut row, &old, &event.unchanged, &id)?;
                }
                match self.rows.insert(key, row) {
                    None => Ok(()),
                    Some(_) => Err(format!("{id}: inserts a row that is there")),
                }
            }
            "update" => {
                let old =
                    self.rows.get(&key).ok_or_else(|| format!("{id}: updates a row that is not there"))?;
                keep(&mut row, old, &event.unchanged, &id)?;
                self.rows.insert(key, row);
                Ok(())
            }
            "delete" => {
                let old =
                    self.rows.remove(&key).ok_or_else(|| format!("{id}: deletes a row that is not there"))?;
                if let Some(to) = event.moved_to {
                    self.moving.insert((key, to), old);
                }
                Ok(())
            }
            op => Err(format!("{id}: an operation that is not documented: {op}")),
        }
    }
}

/// Columns that were not in the WAL keep the value that the consumer has.
fn keep(row: &mut Row, old: &Row, unchanged: &[String], id: &str) -> Result<(), String> {
    for column in unchanged {
        let value =
            old.get(column).ok_or_else(|| format!("{id}: {column} is unchanged, and was never sent"))?;
        row.insert(column.clone(), value.clone());
    }
    Ok(())
}

impl Event<'_> {
    /// What is worth showing once.
    fn kind_to_show(&self) -> Option<&'static str> {
        let is_of_orders = self.source.table == "orders";
        match self.op.as_str() {
            "insert" if self.claim.is_some() => Some("a claim check"),
            "insert" if self.source.table == "pgbench_history" => Some("a table without key"),
            "update" if is_of_orders && !self.unchanged.is_empty() => Some("a value that was not sent"),
            "delete" if self.moved_to.is_some() => Some("the old half of a key change"),
            "insert" if self.moved_from.is_some() => Some("the new half of a key change"),
            _ => None,
        }
    }

    fn table(&self) -> String {
        format!("{}.{}", self.source.schema, self.source.table)
    }
}

/// Microseconds since 1970.
pub fn unix_micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds since 1970 of `2026-11-21T04:55:30.123456Z`.
fn micros_of(rfc3339: &str) -> Option<u64> {
    let (date, time) = rfc3339.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut seconds = 0;
    for part in time.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    let micros: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    // Years counted from 1 March, so that the leap day is their last; 719 468 days lie before 1970.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day.checked_sub(1)?;
    Some((days.checked_sub(719_468)? * 86_400 + seconds) * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(lines: &[&str]) -> Fold {
        let mut fold = Fold::default();
        for line in lines {
            fold.take(serde_json::from_str(line).expect("an event"));
        }
        fold
    }

    fn event(number: u32, op: &str, key: &str, data: &str, rest: &str) -> String {
        format!(
            r#"{{"id":"s/{number}","op":"{op}","aggregate_id":{key},"occurred_at":"2026-11-21T04:55:30Z","source":{{"schema":"public","table":"t"}},"data":{data},{rest}}}"#
        )
    }

    const PLAIN: &str = r#""unchanged":[],"moved_from":null,"moved_to":null"#;

    #[test]
    fn reads_times() {
        assert_eq!(micros_of("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(micros_of("2000-02-29T23:59:59.5Z"), Some(951_868_799_500_000));
        assert_eq!(micros_of("2026-11-21T04:55:30.123456Z"), Some(1_795_236_930_123_456));
        assert_eq!(micros_of("yesterday"), None);
    }

    #[test]
    fn keeps_what_was_not_sent_through_a_key_change() {
        let kept = r#""unchanged":["b"],"moved_from":null,"moved_to":null"#;
        let lines = [
            event(1, "insert", r#""1""#, r#"{"a":1,"b":"long"}"#, PLAIN),
            event(2, "update", r#""1""#, r#"{"a":2}"#, kept),
            event(3, "delete", r#""1""#, "null", r#""unchanged":[],"moved_from":null,"moved_to":"9""#),
            event(
                4,
                "insert",
                r#""9""#,
                r#"{"a":2}"#,
                r#""unchanged":["b"],"moved_from":"1","moved_to":null"#,
            ),
        ];
        let fold = fold(&lines.each_ref().map(String::as_str));
        assert_eq!(fold.faults, Vec::<String>::new());
        let table = &fold.tables["public.t"];
        assert_eq!(table.rows.len(), 1);
        assert_eq!(&*table.rows["9"]["b"], r#""long""#);
    }

    #[test]
    fn notices_doubles_and_gaps() {
        let insert = event(1, "insert", r#""1""#, r#"{"a":1}"#, PLAIN);
        let twice = fold(&[&insert, &insert]);
        assert_eq!(twice.faults.len(), 2, "an id twice, a row twice: {:?}", twice.faults);
        for op in ["update", "delete"] {
            let unknown = fold(&[&event(1, op, r#""1""#, "null", PLAIN)]);
            assert_eq!(unknown.faults.len(), 1, "{op}");
        }
    }
}
