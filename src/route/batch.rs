//! A batch: many events in one buffer, and what becomes safe when they are durable.
//!
//! Events are ranges of one byte buffer, so that a batch costs a handful of allocations however many
//! rows it holds, and is reused after delivery. What is equal for all events of one kind (topic,
//! type, headers) is a [`Label`], interned once and named by number.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::claim::Claim;
use super::row::{Cell, Rows, TargetId};
use super::undecided::Undecided;
use crate::change::Position;
use crate::config::Format;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::sink::checkpoint::{Phase, TableState};
use crate::wal::timestamp::Timestamp;

/// What all events of one table and operation have in common.
#[derive(Debug, PartialEq, Eq)]
pub struct Label {
    /// The hub's topic, in the form that Kafka allows.
    pub topic: String,
    /// `schema.table` for the metrics' label `relation`.
    pub relation: String,
    /// The header `type`.
    pub event_type: String,
    /// The header `aggregate-type`.
    pub aggregate_type: String,
    /// The header `op`.
    pub op: &'static str,
    /// The form of the values, which decides the other headers.
    pub format: Format,
}

/// A label's number: an index into [`Labels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelId(u32);

impl LabelId {
    /// The index into a list of labels in the order of their interning.
    pub fn index(self) -> usize {
        usize::try_from(self.0).expect("an index fits")
    }
}

/// All labels of one pipeline run; shared by those who make events and the sink.
#[derive(Debug, Default)]
pub struct Labels(Mutex<Vec<Arc<Label>>>);

impl Labels {
    /// Enters a label, or finds it. Called per table and operation, not per event.
    pub fn intern(&self, label: Label) -> LabelId {
        let mut labels = self.0.lock().expect("no holder panics");
        let index = labels.iter().position(|known| **known == label).unwrap_or_else(|| {
            labels.push(Arc::new(label));
            labels.len() - 1
        });
        LabelId(u32::try_from(index).expect("fewer than four billion labels"))
    }

    /// Copies to the end of `known` what was interned since it was last called with it.
    pub fn refresh(&self, known: &mut Vec<Arc<Label>>) {
        let labels = self.0.lock().expect("no holder panics");
        known.extend(labels.iter().skip(known.len()).cloned());
    }
}

/// One event: where its parts stand in the batch's buffer.
#[derive(Clone, Debug)]
pub struct Event {
    /// What it has in common with others of its kind.
    pub label: LabelId,
    /// The partition, where it is not the key that chooses it (truncate).
    pub partition: Option<i32>,
    /// The header `id`.
    pub id: Range<usize>,
    /// The Kafka key; none in Debezium's form of a table without a key, and of truncates.
    pub key: Option<Range<usize>>,
    /// The JSON value; none: a tombstone.
    pub value: Option<Range<usize>>,
    /// The other half of a key change, for a header.
    pub moved: Option<Moved>,
    /// The header `traceparent`.
    pub traceparent: Option<Range<usize>>,
    /// Headers of its own, each with [`push_header`]; empty: none.
    pub headers: Range<usize>,
    /// Kafka gets a null in place of the value.
    pub is_tombstone: bool,
    /// What must be stored before it may be published: the columns that travel by claim check, then the whole.
    pub claims: Vec<Claim>,
}

impl Event {
    /// An event without anything but its id.
    pub fn new(label: LabelId, id: Range<usize>) -> Self {
        Event {
            label,
            partition: None,
            id,
            key: None,
            value: None,
            moved: None,
            traceparent: None,
            headers: 0..0,
            is_tombstone: false,
            claims: Vec::new(),
        }
    }

    /// The header `claim-check`: where the whole event is, or that columns are elsewhere.
    pub fn claim_check(&self) -> Option<&str> {
        let claim = self.claims.last()?;
        Some(if claim.key.ends_with(".json") { &claim.uri } else { "columns" })
    }
}

/// Appends one header to a list of them.
pub fn push_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), value] {
        let length = u32::try_from(part.len()).expect("PostgreSQL's values have less than 1 GB");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(part);
    }
}

/// The headers of such a list, by name and value.
pub fn headers_of(mut list: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let mut part = move || {
        let (length, rest) = list.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).expect("a length fits");
        let (part, rest) = rest.split_at_checked(length)?;
        list = rest;
        Some(part)
    };
    std::iter::from_fn(move || Some((std::str::from_utf8(part()?).ok()?, part()?)))
}

/// The other half of a key change.
#[derive(Clone, Debug)]
pub enum Moved {
    /// The key that the row has from now on.
    To(Range<usize>),
    /// The key that the row had.
    From(Range<usize>),
}

/// What the destination knows once the batch is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the initial copy is done.
    pub phase: Phase,
    /// Everything at or before it is in the destination.
    pub position: Position,
    /// How far the source may be told "flushed".
    pub safe_lsn: Lsn,
    /// The transaction id of the transaction at `position`, and its commit time: what makes a
    /// replaced source visible.
    pub xid: u32,
    /// See `xid`.
    pub commit_time: Timestamp,
}

/// How much a batch holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events.
    pub events: Vec<(LabelId, u64)>,
    /// Rows for a replica.
    pub rows: Vec<(TargetId, u64)>,
}

fn add<Id: PartialEq>(counts: &mut Vec<(Id, u64)>, id: Id, more: u64) {
    match counts.iter_mut().rev().find(|(known, _)| *known == id) {
        Some((_, count)) => *count += more,
        None => counts.push((id, more)),
    }
}

/// Events for one delivery, with the progress that they make.
#[derive(Debug, Default)]
pub struct Batch {
    /// Given by the ledger when it is handed to the sink.
    pub sequence: u64,
    /// Keys, values and ids, one after the other.
    pub bytes: Vec<u8>,
    /// In the order in which they are to be published.
    pub events: Vec<Event>,
    /// What a replica gets, in place of events.
    pub rows: Box<Rows>,
    /// Which of the events are still undecided: none when the batch goes to the sink.
    pub undecided: Box<Undecided>,
    /// Stored with the events, in the same transaction.
    pub progress: Progress,
    /// Snapshot states of tables, stored with the events, in the same transaction.
    pub tables: Vec<TableState>,
    /// Bytes of its events' claims, which do not stand in `bytes`.
    pub claim_bytes: usize,
    /// What was known of the next one when this one was cut: a sink may put several into one transaction.
    pub more: More,
}

/// Whether another batch is coming.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum More {
    /// Nothing was waiting.
    #[default]
    Unknown,
    /// More was waiting to be read.
    Likely,
    /// The source has much more WAL than was received.
    Certain,
}

impl More {
    /// Whether a transaction of the destination may stay open for it.
    pub fn is_coming(self) -> bool {
        self != More::Unknown
    }

    /// How long to wait for it before what there is is made durable. Behind a backlog nobody looks at milliseconds, and
    /// large rows come one by one: a transaction for each is most of a broker's work.
    pub fn patience(self) -> Duration {
        match self {
            More::Unknown | More::Likely => Duration::from_millis(2),
            More::Certain => Duration::from_millis(40),
        }
    }
}

impl Batch {
    /// Appends an event.
    pub fn push(&mut self, event: Event) {
        self.claim_bytes += event.claims.iter().map(|claim| claim.bytes).sum::<usize>();
        self.events.push(event);
    }

    /// What it holds, claims included.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len() + self.claim_bytes
    }

    /// Its events, or its row changes.
    pub fn len(&self) -> usize {
        self.events.len() + self.rows.changes.len()
    }

    /// The key of an event, or of a row change, as far as its text says: for errors.
    pub fn key_of(&self, at: usize) -> Option<String> {
        let key = match self.events.get(at) {
            Some(event) => self.part(event.key.as_ref()?),
            None => {
                let change = self.rows.changes.get(at)?;
                let cells = if change.new.is_empty() { change.old.clone() } else { change.new.clone() };
                let text = self.rows.cells.get(cells)?.iter().find_map(|cell| match cell {
                    Cell::Text(range) => Some(range),
                    Cell::Null | Cell::Unchanged => None,
                })?;
                self.part(text)
            }
        };
        Some(String::from_utf8_lossy(key).into_owned())
    }

    /// Takes out what the source's answers exclude.
    ///
    /// # Errors
    /// Transient: an answer is missing.
    pub fn decide(&mut self, answers: &[Vec<Option<bool>>]) -> Result<()> {
        if self.rows.changes.is_empty() {
            return self.undecided.decide(&mut self.events, 0, answers).map(|_| ());
        }
        let marked = self.rows.whole.map_or(0, |(changes, _)| changes);
        let left = self.undecided.decide(&mut self.rows.changes, marked, answers)?;
        if let Some((changes, _)) = &mut self.rows.whole {
            *changes = left;
        }
        Ok(())
    }

    /// The bytes of a part of an event.
    pub fn part(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).expect("an event's ranges lie in its own batch")
    }

    /// Empties it for reuse; a buffer that one huge row has grown is given back.
    pub fn clear(&mut self, keep_bytes_max: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep_bytes_max);
        self.events.clear();
        self.rows.clear();
        self.undecided.clear();
        self.tables.clear();
        self.claim_bytes = 0;
        self.more = More::default();
        self.sequence = 0;
    }

    /// Its events by label, its rows by target.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for event in &self.events {
            add(&mut counts.events, event.label, 1);
        }
        for change in &self.rows.changes {
            add(&mut counts.rows, change.target, change.rows());
        }
        counts
    }

    /// Whether there is nothing in it to publish or to store about tables.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.rows.changes.is_empty() && self.tables.is_empty()
    }
}
