//! The hub as a directory: `<path>/<topic>.jsonl`, one event a line, and `checkpoint.json`.
//!
//! Comes in: batches. Goes out: appended lines. Always holds: `checkpoint.json` names the length up
//! to which every topic file is whole; it is replaced by rename only after those bytes are flushed,
//! so a crash leaves either the old lengths or the new ones, and what lies beyond is cut off at the
//! next start (a file that it does not list has length 0). Nothing is ever edited in place.
//!
//! `flock` on the directory keeps a second process out. See `open(2)`, `fsync(2)`, `rename(2)`.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, Stored, TableState};
use super::{Durable, Inbox, Sink, label};
use crate::error::{Error, Result};
use crate::route::batch::{Batch, Label, Labels, More};

/// Lines wait in memory for at most this much while more batches are coming, in bytes.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Lines wait for at most this long while more batches are coming.
const GROUP_TIME_MAX: Duration = Duration::from_millis(100);
/// Topic files kept open between two groups.
const OPEN_FILES_MAX: usize = 256;

const CHECKPOINT: &str = "checkpoint.json";

/// The contents of `checkpoint.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Contents {
    /// `<source.name>.<slot name>`: two pipelines never share a directory.
    #[serde(default)]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pipeline: Option<Checkpoint>,
    #[serde(default)]
    tables: BTreeMap<u32, TableState>,
    /// The length of every topic file, in bytes.
    #[serde(default)]
    lengths: BTreeMap<String, u64>,
}

/// The directory, locked by this process.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
    contents: Contents,
}

impl Directory {
    /// Makes the directory if there is none, locks it, reads its checkpoint and cuts off what a
    /// crash left behind it.
    ///
    /// # Errors
    /// Transient while another process holds the lock; definite when the directory cannot be
    /// written or its checkpoint cannot be read.
    pub fn open(path: &Path, name: &str) -> Result<Directory> {
        std::fs::create_dir_all(path).map_err(|error| io_error(path, "cannot be created", error))?;
        let handle = lock(path)?;
        let contents = read_contents(path)?;
        let mut directory =
            Directory { path: path.to_owned(), handle, contents: contents.clone().unwrap_or_default() };
        match contents {
            Some(contents) if contents.name != name && !contents.name.is_empty() => {
                return Err(Error::definite(format!(
                    "the hub directory {} belongs to the pipeline {}, this one is {name}",
                    path.display(),
                    contents.name
                ))
                .with_hint("give each source and slot a hub.path of its own; or, if source.name was changed, set it back"));
            }
            Some(_) => directory.cut_off()?,
            None => directory.adopt()?,
        }
        directory.contents.name = name.to_owned();
        // What was read decides what the source is told: make sure that it is on the disk.
        directory.write_contents()?;
        Ok(directory)
    }

    /// What is stored about the pipeline.
    pub fn stored(&self) -> Stored {
        Stored { checkpoint: self.contents.pipeline.clone(), tables: self.contents.tables.clone() }
    }

    /// Takes over states of tables, to be stored with the next checkpoint.
    pub fn enter(&mut self, tables: &[TableState]) {
        for table in tables {
            self.contents.tables.insert(table.oid, table.clone());
        }
    }

    /// Replaces the pipeline's checkpoint.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn store(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.contents.pipeline = Some(checkpoint.clone());
        self.write_contents()
    }

    /// The whole events of a topic so far, in bytes.
    pub fn topic_bytes(&self, topic: &str) -> u64 {
        self.contents.lengths.get(topic).copied().unwrap_or(0)
    }

    /// Cuts every topic file to its length in the checkpoint.
    fn cut_off(&mut self) -> Result<()> {
        let missing = self
            .contents
            .lengths
            .iter()
            .find(|(topic, whole)| **whole > 0 && !self.topic_path(topic).exists());
        if let Some((topic, whole)) = missing {
            return Err(Error::definite(format!(
                "{} is gone, its checkpoint says {whole} bytes: events were removed",
                self.topic_path(topic).display()
            ))
            .with_hint("restore the file, or begin anew: `walgate drop`, and an empty directory"));
        }
        for topic in topics(&self.path)? {
            let path = self.topic_path(&topic);
            let whole = self.topic_bytes(&topic);
            let file = OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(|error| io_error(&path, "cannot be opened", error))?;
            let length = file.metadata().map_err(|error| io_error(&path, "cannot be read", error))?.len();
            if length < whole {
                return Err(Error::definite(format!(
                    "{} has {length} bytes, its checkpoint says {whole}: events were removed",
                    path.display()
                ))
                .with_hint("restore the file, or begin anew: `walgate drop`, and an empty directory"));
            }
            if length > whole {
                file.set_len(whole).map_err(|error| io_error(&path, "cannot be cut to its length", error))?;
                file.sync_all().map_err(|error| io_error(&path, "cannot be flushed", error))?;
            }
        }
        Ok(())
    }

    /// Takes over the files of an earlier pipeline that was dropped: they stay, new events follow.
    fn adopt(&mut self) -> Result<()> {
        for topic in topics(&self.path)? {
            let path = self.topic_path(&topic);
            let length =
                whole_lines_bytes(&path).map_err(|error| io_error(&path, "cannot be read", error))?;
            self.contents.lengths.insert(topic, length);
        }
        self.cut_off()
    }

    fn topic_path(&self, topic: &str) -> PathBuf {
        self.path.join(format!("{topic}.jsonl"))
    }

    fn write_contents(&mut self) -> Result<()> {
        let path = self.path.join(CHECKPOINT);
        let temporary = self.path.join(".checkpoint.json.new");
        let text = serde_json::to_vec(&self.contents).expect("plain data");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            self.handle.sync_all()
        };
        write().map_err(|error| io_error(&path, "cannot be replaced", error))
    }
}

/// Length of each topic file as far as its events are committed: what a reader may read. Without a
/// checkpoint, which a drop has removed, whole lines are.
///
/// # Errors
/// When the checkpoint cannot be read.
pub fn committed_lengths(path: &Path) -> Result<BTreeMap<String, u64>> {
    if let Some(contents) = read_contents(path)? {
        return Ok(contents.lengths);
    }
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let length = |topic: String| {
        let file = path.join(format!("{topic}.jsonl"));
        match whole_lines_bytes(&file) {
            Ok(length) => Ok((topic, length)),
            Err(error) => Err(io_error(&file, "cannot be read", error)),
        }
    };
    topics(path)?.into_iter().map(length).collect()
}

/// What a directory stores, read without its lock: for `status`.
///
/// # Errors
/// When the checkpoint cannot be read.
pub fn peek(path: &Path) -> Result<Stored> {
    let contents = read_contents(path)?.unwrap_or_default();
    Ok(Stored { checkpoint: contents.pipeline, tables: contents.tables })
}

/// Removes the checkpoint; the topic files stay, without what a crash left behind it. False: there
/// was none. A checkpoint that cannot be read, or does not fit its files, is removed as well: this is
/// the remedy that both name.
///
/// # Errors
/// When another process holds the directory, or it cannot be written.
pub fn forget(path: &Path) -> Result<bool> {
    let checkpoint = path.join(CHECKPOINT);
    if !checkpoint.exists() {
        return Ok(false);
    }
    let mut directory =
        Directory { path: path.to_owned(), handle: lock(path)?, contents: Contents::default() };
    if let Ok(Some(contents)) = read_contents(path) {
        directory.contents = contents;
        if let Err(error) = directory.cut_off() {
            tracing::warn!(path = %path.display(), "{}", error.chain());
        }
    }
    std::fs::remove_file(&checkpoint).map_err(|error| io_error(&checkpoint, "cannot be removed", error))?;
    directory.handle.sync_all().map_err(|error| io_error(path, "cannot be flushed", error))?;
    Ok(true)
}

/// The directory, locked until the handle is dropped.
fn lock(path: &Path) -> Result<File> {
    let handle = File::open(path).map_err(|error| io_error(path, "cannot be opened", error))?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::fenced(format!("the hub directory {} is locked by another process", path.display()))
                .with_hint("the other process is running, or frozen; this one waits as its standby"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(io_error(path, "cannot be locked", error)),
    }
}

fn read_contents(path: &Path) -> Result<Option<Contents>> {
    let path = path.join(CHECKPOINT);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path, "cannot be read", error)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::definite(format!("{} is not a checkpoint", path.display()))
            .with_source(error)
            .with_hint("restore it from a backup, or begin anew: `walgate drop`, and an empty directory")
    })
}

fn topics(path: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(path).map_err(|error| io_error(path, "cannot be listed", error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_suffix(".jsonl").map(str::to_owned)).collect())
}

/// The length up to and including the last line break.
fn whole_lines_bytes(path: &Path) -> std::io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut file = File::open(path)?;
    let mut end = file.metadata()?.len();
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        (&mut file).take(end - start).read_to_end(&mut block)?;
        if let Some(at) = memchr::memrchr(b'\n', &block) {
            return Ok(start + u64::try_from(at).expect("an offset in a block") + 1);
        }
        end = start;
    }
    Ok(0)
}

fn io_error(path: &Path, what: &str, error: std::io::Error) -> Error {
    let hint = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "free some space and start again: nothing was confirmed that is not on the disk"
        }
        std::io::ErrorKind::PermissionDenied => "give the user that runs walgate the right to write there",
        _ => {
            "see to the disk and its file system, then start again: nothing was confirmed that is not on the disk"
        }
    };
    Error::definite(format!("{} {what}", path.display())).with_source(error).with_hint(hint)
}

/// One topic's file and the lines that wait for it.
#[derive(Debug, Default)]
struct Topic {
    file: Option<File>,
    waiting: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct FileSink {
    directory: Directory,
    checkpoint: Checkpoint,
    labels: Arc<Labels>,
    known: Vec<Arc<Label>>,
    topics: HashMap<String, Topic>,
    /// Sequence and safe LSN of the batches that wait.
    waiting: Vec<(u64, crate::lsn::Lsn)>,
    waiting_bytes: usize,
    waiting_since: Option<Instant>,
    more: More,
}

impl FileSink {
    /// A sink that goes on from `checkpoint`.
    pub fn new(directory: Directory, checkpoint: Checkpoint, labels: Arc<Labels>) -> Self {
        FileSink {
            directory,
            checkpoint,
            labels,
            known: Vec::new(),
            topics: HashMap::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            waiting_since: None,
            more: More::default(),
        }
    }

    fn commit(&mut self) -> Result<()> {
        let mut is_new_file = false;
        let mut open = 0;
        for (name, topic) in &mut self.topics {
            if !topic.waiting.is_empty() {
                let path = self.directory.topic_path(name);
                let length = self.directory.contents.lengths.entry(name.clone()).or_insert(0);
                is_new_file |= *length == 0;
                topic.append(&path).map_err(|error| io_error(&path, "cannot be written", error))?;
                *length += u64::try_from(topic.waiting.len()).expect("a length fits");
                topic.waiting.clear();
                topic.waiting.shrink_to(GROUP_BYTES_MAX);
            }
            open += usize::from(topic.file.is_some());
        }
        if open > OPEN_FILES_MAX {
            self.topics.clear();
        }
        if is_new_file {
            let path = &self.directory.path;
            self.directory.handle.sync_all().map_err(|error| io_error(path, "cannot be flushed", error))?;
        }
        crate::failpoint::hit("file.after-append");
        self.directory.store(&self.checkpoint)?;
        crate::failpoint::hit("file.after-checkpoint");
        Ok(())
    }
}

impl Topic {
    fn append(&mut self, path: &Path) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).append(true).open(path)?),
        };
        file.write_all(&self.waiting)?;
        file.sync_data()
    }
}

impl Sink for FileSink {
    fn accept(&mut self, batch: &Batch, _: &mut Inbox) -> Result<()> {
        for event in &batch.events {
            let label = label(&mut self.known, &self.labels, event.label.index());
            if !self.topics.contains_key(&label.topic) {
                self.topics.insert(label.topic.clone(), Topic::default());
            }
            let topic = self.topics.get_mut(&label.topic).expect("entered above");
            // A line is an event's value, and a tombstone has none; its key is that of the line before.
            topic.waiting.extend_from_slice(event.value.as_ref().map_or(b"null", |value| batch.part(value)));
            topic.waiting.push(b'\n');
        }
        self.checkpoint.advance(&batch.progress);
        self.directory.enter(&batch.tables);
        self.waiting.push((batch.sequence, batch.progress.safe_lsn));
        self.waiting_bytes += batch.bytes.len();
        self.waiting_since.get_or_insert_with(Instant::now);
        self.more = batch.more;
        Ok(())
    }

    fn settle(&mut self, idle: bool, receipts: &mut Vec<Durable>) -> Result<()> {
        let Some(since) = self.waiting_since else { return Ok(()) };
        let may_wait = self.more.is_coming() && !idle;
        if may_wait && self.waiting_bytes < GROUP_BYTES_MAX && since.elapsed() < GROUP_TIME_MAX {
            return Ok(());
        }
        self.commit()?;
        receipts.extend(self.waiting.drain(..).map(|(sequence, safe_lsn)| Durable::of(sequence, safe_lsn)));
        self.waiting_bytes = 0;
        self.waiting_since = None;
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        self.waiting_since.map(|_| self.more.patience())
    }
}
