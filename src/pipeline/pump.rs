//! Frames in, one growing batch out: the synchronous half of the stream.
//!
//! No sockets, no clock, no waiting: what needs the catalog or the hub is handed to the caller as a
//! [`Pumped`] and comes back as a call. Always holds: every counted message takes its position
//! before anything is decided about it; what lies at or before the checkpoint is skipped, one by
//! one; `progress` speaks of exactly what was routed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::guard::FirstTransaction;
use super::oversized;
use super::status::SharedStatus;
use crate::change::{Position, Transactions};
use crate::engine::metrics;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::route::batch::{Batch, Counts, Labels, More, Progress};
use crate::route::claim::Claims;
use crate::route::event::{EventWriter, Stamp};
use crate::route::format::EventSettings;
use crate::route::message::{
    CAUGHT_UP_PREFIX, MessagePlace, MessageWriter, OUTBOX_PREFIX, RESYNC_PREFIX, ResyncRequest,
    TRACEPARENT_PREFIX,
};
use crate::route::outbox::OutboxWriter;
use crate::route::plan::TablePlan;
use crate::route::row::{RowChange, RowOp, Targets};
use crate::route::template::{Topic, TopicTemplate};
use crate::route::{Route, Router, RowMessage};
use crate::sink::checkpoint::{Checkpoint, Phase, TableState};
use crate::wal::backlog::Backlog;
use crate::wal::connection::ReplicationStream;
use crate::wal::frame::Frame;
use crate::wal::pgoutput::{Message, Relation, decode};
use crate::wal::timestamp::Timestamp;

/// A batch is full at this size, in bytes of events; one message may take it over.
const BATCH_BYTES_MAX: usize = 512 << 10;
/// A batch is full at this many events: what librdkafka keeps per message counts too.
const BATCH_EVENTS_MAX: usize = 4096;

/// Where dead letters go.
///
/// # Errors
/// Definite: the name is too long.
pub fn dead_letter_topic(source_name: &str, slot: &str) -> Result<String> {
    match Topic::legal(format!("{source_name}.{slot}.dead-letter")) {
        Ok(topic) => Ok(topic.legal),
        Err(error) => Err(Error::definite(error.to_string()).with_hint("shorten source.name")),
    }
}

/// Why pumping stopped.
#[derive(Debug)]
pub enum Pumped {
    /// No whole frame is left.
    Dry,
    /// The batch is full.
    Full,
    /// A relation was described for the first time, or differently: install it.
    Relation(Relation),
    /// The open transaction asks for tables, by OID, to be copied again: store that with what has been received.
    Resync(Vec<u32>),
    /// That transaction has ended.
    ResyncDue,
    /// Tables were truncated: how many partitions do their topics have?
    Truncate(Truncate),
}

/// A TRUNCATE message.
#[derive(Debug)]
pub struct Truncate {
    /// Its tables, in the order of the message.
    pub relations: Vec<u32>,
    restart_identity: bool,
    lsn: Lsn,
}

/// Where frames come from: the walsender's stream, or another source of the same bytes.
pub trait WalSource {
    /// The next whole frame, borrowed where it was received; `None`: none is here.
    ///
    /// # Errors
    /// What ended the source; definite: a malformed frame.
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>>;
}

impl WalSource for ReplicationStream {
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        Ok(ReplicationStream::next_frame(self)?.map(Frame::decode).transpose()?)
    }
}

impl WalSource for Backlog {
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        Backlog::next_frame(self)
    }
}

/// What a pump is told of the configuration.
#[derive(Clone, Debug)]
pub struct PumpSettings {
    /// `source.name`.
    pub source_name: String,
    /// The slot's name, and the pipeline's.
    pub slot: String,
    /// `hub.topic`.
    pub topic: TopicTemplate,
    /// The form of events.
    pub events: EventSettings,
    /// Whether logical messages become events: not on a replica.
    pub takes_messages: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Pump {
    router: Router,
    /// `None`: the destination takes rows only.
    messages: Option<MessageWriter>,
    labels: Arc<Labels>,
    relations: HashMap<u32, Relation>,
    transactions: Transactions,
    /// Skip at or before.
    resume: Position,
    progress: Progress,
    batch: Batch,
    claims: Option<Claims>,
    batch_events_max: usize,
    /// The batches in flight, oldest first.
    delivered: VecDeque<Delivered>,
    first: Option<FirstTransaction>,
    source_name: String,
    pipeline: String,
    /// Commit time of the oldest change in the batch.
    oldest_change: Option<Timestamp>,
    received_lsn: Lsn,
    source_lsn: Lsn,
    reply_requested: bool,
    target: Option<Target>,
    dead_letters: u64,
    /// Those of outbox tables that are counted.
    outbox_dead_letters: u64,
    /// The open transaction asks for copies: the stream ends with it.
    ends_with_transaction: bool,
    /// The last batches handed over that lie inside of one transaction, whose end was not handed over.
    inside: usize,
}

/// A batch in flight.
#[derive(Debug)]
struct Delivered {
    counts: Counts,
    /// Commit time of the oldest change in it.
    oldest_change: Option<Timestamp>,
}

/// What `--until-caught-up` waits for.
#[derive(Debug)]
enum Target {
    Message(String),
    /// The message was seen: its transaction's end decides.
    Seen,
    Confirmed(Lsn),
}

impl Pump {
    /// For a stream that goes on from `started`'s checkpoint.
    ///
    /// # Errors
    /// Definite: the name of the dead letters' topic is too long.
    pub fn new(
        settings: &PumpSettings,
        labels: Arc<Labels>,
        checkpoint: &Checkpoint,
        first: FirstTransaction,
        caught_up: Option<String>,
    ) -> Result<Pump> {
        let dead_letters = dead_letter_topic(&settings.source_name, &settings.slot)?;
        Ok(Pump {
            router: Router::new(
                &settings.source_name,
                EventWriter::new(settings.events.style, settings.events.claims.clone()),
                OutboxWriter::new(labels.clone(), dead_letters.clone(), settings.events.claims.clone()),
            ),
            messages: settings.takes_messages.then(|| {
                MessageWriter::new(
                    &settings.source_name,
                    &settings.events,
                    settings.topic.clone(),
                    dead_letters,
                )
            }),
            labels,
            relations: HashMap::new(),
            transactions: Transactions::default(),
            resume: checkpoint.position(),
            progress: Progress { phase: Phase::Streaming, ..checkpoint.progress() },
            batch: Batch::default(),
            claims: settings.events.claims.clone(),
            batch_events_max: BATCH_EVENTS_MAX,
            delivered: VecDeque::new(),
            first: Some(first),
            source_name: settings.source_name.clone(),
            pipeline: settings.slot.clone(),
            oldest_change: None,
            received_lsn: checkpoint.safe_lsn,
            source_lsn: checkpoint.safe_lsn,
            reply_requested: false,
            target: caught_up.map(Target::Message),
            dead_letters: 0,
            outbox_dead_letters: 0,
            ends_with_transaction: false,
            inside: 0,
        })
    }

    /// Makes batches full early: thousands of events each would leave a simulation few steps.
    #[cfg(test)]
    pub(super) fn limit_events(&mut self, batch_events_max: usize) {
        self.batch_events_max = batch_events_max;
    }

    /// Takes whole frames until there is none, the batch is full, or the caller is needed.
    ///
    /// # Errors
    /// Definite: a malformed frame, a broken order, a value that its type cannot have.
    pub fn pump(&mut self, source: &mut impl WalSource) -> Result<Pumped> {
        loop {
            if self.is_full() {
                return Ok(Pumped::Full);
            }
            let frame = source.next_frame().map_err(|error| {
                let key = |oid| self.router.plan(oid).map(|plan| plan.selection.key.clone());
                oversized::of_change(error, &self.relations, key)
            })?;
            let Some(frame) = frame else { return Ok(Pumped::Dry) };
            match frame {
                Frame::Keepalive { wal_end, reply_requested, .. } => {
                    self.source_lsn = self.source_lsn.max(wal_end);
                    self.reply_requested |= reply_requested;
                    // Everything committed before it has been received, so it is safe once that is.
                    if !self.transactions.is_open() {
                        if let Some(first) = &self.first {
                            first.look_at_end(wal_end)?;
                        }
                        self.progress.safe_lsn = self.progress.safe_lsn.max(wal_end);
                        // What begins behind it may still be open when the batch is cut.
                        self.mark_whole();
                        self.received_lsn = self.received_lsn.max(wal_end);
                    }
                }
                Frame::Data { wal_start, wal_end, sent_at, payload } => {
                    self.source_lsn = self.source_lsn.max(wal_end);
                    self.received_lsn = self.received_lsn.max(wal_start);
                    let message = decode(payload)?;
                    if let Some(pumped) = self.message(wal_start, sent_at, message)? {
                        return Ok(pumped);
                    }
                }
            }
        }
    }

    /// Whether so many large values wait for the claim store that no other may be taken.
    pub fn lacks_room(&self) -> bool {
        self.claims.as_ref().is_some_and(|claims| !claims.has_room())
    }

    /// Waits until some of them are stored.
    pub async fn room(&self) {
        match &self.claims {
            Some(claims) => claims.room().await,
            None => std::future::pending().await,
        }
    }

    fn message(&mut self, lsn: Lsn, sent_at: Timestamp, message: Message<'_>) -> Result<Option<Pumped>> {
        if let Some(first) = &self.first
            && first.look_at(&message)?
        {
            self.first = None;
        }
        match message {
            Message::Insert { relation, new } => self.row(lsn, relation, &RowMessage::Insert(new))?,
            Message::Update { relation, old, new } => {
                self.row(lsn, relation, &RowMessage::Update(old, new))?
            }
            Message::Delete { relation, old } => self.row(lsn, relation, &RowMessage::Delete(old))?,
            Message::Begin { final_lsn, commit_time, xid } => {
                self.transactions.begin(final_lsn, commit_time, xid)?;
                self.router.begin(self.transactions.expect_open("Begin", lsn)?);
            }
            Message::Commit { commit_lsn, end_lsn, .. } => {
                self.commit(commit_lsn, end_lsn)?;
                if std::mem::take(&mut self.ends_with_transaction) {
                    return Ok(Some(Pumped::ResyncDue));
                }
            }
            Message::Origin { name, .. } => {
                let transaction = self.transactions.expect_open("Origin", lsn)?;
                transaction.origin = Some(name.to_owned());
                self.router.annotate(transaction);
            }
            Message::Type { .. } => {}
            Message::Relation(relation) => {
                if self.relations.get(&relation.oid) != Some(&relation) {
                    return Ok(Some(Pumped::Relation(relation)));
                }
            }
            Message::Truncate { relations, restart_identity, .. } => {
                let relations = relations.iter().collect();
                return Ok(Some(Pumped::Truncate(Truncate { relations, restart_identity, lsn })));
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                return self.logical(transactional, lsn, sent_at, prefix, content);
            }
        }
        Ok(None)
    }

    fn row(&mut self, lsn: Lsn, relation: u32, row: &RowMessage<'_>) -> Result<()> {
        let transaction = self.transactions.expect_open("row", lsn)?;
        let position = transaction.next_position();
        if position <= self.resume {
            return Ok(());
        }
        let (commit_time, known) = (transaction.commit_time, self.batch.len());
        self.router.row(&mut self.batch, relation, position, lsn, row)?;
        if self.batch.len() > known {
            self.oldest_change.get_or_insert(commit_time);
        }
        failpoint::hit("stream.in-transaction");
        Ok(())
    }

    /// Routes a TRUNCATE whose tables' topics have `partitions`.
    ///
    /// # Errors
    /// As [`Pump::pump`].
    pub fn truncate(&mut self, truncate: &Truncate, partitions: &[i32]) -> Result<()> {
        let mut targets = Vec::new();
        let mut first = None;
        for (relation, partitions) in truncate.relations.iter().zip(partitions) {
            let transaction = self.transactions.expect_open("Truncate", truncate.lsn)?;
            let position = transaction.next_position();
            if position > self.resume {
                self.oldest_change.get_or_insert(transaction.commit_time);
                let (batch, lsn) = (&mut self.batch, truncate.lsn);
                if let Some(target) = self.router.truncate(batch, *relation, position, lsn, *partitions)? {
                    targets.push(target);
                    first.get_or_insert((target, position));
                }
            }
        }
        if let Some((target, position)) = first {
            // One statement for all, as on the source: they may refer to each other.
            let op = RowOp::Truncate { targets, restart_identity: truncate.restart_identity };
            let change = RowChange { target, op, position, is_certain: true, new: 0..0, old: 0..0 };
            self.batch.rows.changes.push(change);
        }
        Ok(())
    }

    fn logical(
        &mut self,
        transactional: bool,
        lsn: Lsn,
        sent_at: Timestamp,
        prefix: &str,
        content: &[u8],
    ) -> Result<Option<Pumped>> {
        if !transactional {
            let position = Position::outside_transactions(lsn);
            let Some(messages) = &mut self.messages else { return Ok(None) };
            if position <= self.resume || prefix != OUTBOX_PREFIX {
                return Ok(None);
            }
            let stamp = Stamp::of_message(&self.source_name, lsn, sent_at);
            let place = MessagePlace { lsn, number: position.ordinal };
            let is_dead = messages.write(&mut self.batch, &self.labels, &stamp, place, content)?;
            self.dead_letters += u64::from(is_dead);
            self.progress.position = self.progress.position.max(position);
            return Ok(None);
        }
        let transaction = self.transactions.expect_open("Message", lsn)?;
        let position = transaction.next_position();
        match prefix {
            TRACEPARENT_PREFIX => {
                transaction.traceparent = Some(String::from_utf8_lossy(content).into_owned());
                self.router.annotate(transaction);
            }
            CAUGHT_UP_PREFIX => {
                if let Some(Target::Message(nonce)) = &self.target
                    && nonce.as_bytes() == content
                {
                    self.target = Some(Target::Seen);
                }
            }
            RESYNC_PREFIX if position > self.resume => match serde_json::from_slice::<ResyncRequest>(content)
            {
                Ok(request) if request.pipeline == self.pipeline => {
                    self.ends_with_transaction = true;
                    return Ok(Some(Pumped::Resync(request.tables)));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, %lsn, "a message {RESYNC_PREFIX} that cannot be read"),
            },
            OUTBOX_PREFIX if position > self.resume => {
                if let Some(messages) = &mut self.messages {
                    self.oldest_change.get_or_insert(transaction.commit_time);
                    let place = MessagePlace { lsn, number: position.ordinal };
                    let stamp = self.router.stamp();
                    let is_dead = messages.write(&mut self.batch, &self.labels, stamp, place, content)?;
                    self.dead_letters += u64::from(is_dead);
                }
            }
            _ => {}
        }
        Ok(None)
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<()> {
        let transaction = self.transactions.commit(commit_lsn)?;
        if transaction.last_position() > self.progress.position {
            self.progress.position = transaction.last_position();
            self.progress.xid = transaction.xid;
            self.progress.commit_time = transaction.commit_time;
        }
        self.progress.safe_lsn = self.progress.safe_lsn.max(end_lsn);
        self.mark_whole();
        self.received_lsn = self.received_lsn.max(end_lsn);
        if matches!(self.target, Some(Target::Seen)) {
            self.target = Some(Target::Confirmed(end_lsn));
        }
        Ok(())
    }

    /// Every transaction received so far has ended.
    fn mark_whole(&mut self) {
        self.batch.rows.whole = Some((self.batch.rows.changes.len(), self.progress));
    }

    /// From here on another source is read, that may send again what was received. Every transaction has ended.
    pub fn skip_received(&mut self) {
        assert!(!self.transactions.is_open(), "a source is left between two transactions");
        self.resume = self.resume.max(self.progress.position);
    }

    /// Tells it what to do with a relation's changes; `None`: none may come.
    pub fn install(&mut self, relation: Relation, route: Option<Route>) {
        if let Some(route) = route {
            self.router.install(relation.oid, route);
        }
        self.relations.insert(relation.oid, relation);
    }

    /// Whether a table that was copied there has the open transaction's changes in its copy.
    pub fn is_in_copy(&self, copied_at: Lsn) -> bool {
        self.router.is_in_copy(copied_at)
    }

    /// How many rows were inserted into outbox tables.
    pub fn outbox_rows(&self) -> u64 {
        self.router.outbox_seen().rows
    }

    /// The plan of a table whose changes become events.
    pub fn plan(&self, oid: u32) -> Option<&TablePlan> {
        self.router.plan(oid)
    }

    /// The batch, if some of its events need an answer of the source before it is cut.
    pub fn undecided(&self) -> Option<&Batch> {
        (!self.batch.undecided.is_empty()).then_some(&self.batch)
    }

    /// Puts states of tables into the batch, to be stored with what has been received.
    pub fn store(&mut self, tables: impl IntoIterator<Item = TableState>) {
        self.batch.tables.extend(tables);
    }

    /// Takes out of the batch what the answers exclude.
    ///
    /// # Errors
    /// Transient: an answer is missing.
    pub fn decide(&mut self, answers: &[Vec<Option<bool>>]) -> Result<()> {
        self.batch.decide(answers)
    }

    /// Takes the batch out, leaving `empty` in its place.
    pub fn cut(&mut self, empty: Batch, more: More) -> Batch {
        if let Ok(open) = self.transactions.expect_open("cut", self.received_lsn)
            && open.last_position() > self.progress.position
        {
            self.progress.position = open.last_position();
            self.progress.xid = open.xid;
            self.progress.commit_time = open.commit_time;
        }
        if !self.transactions.is_open() {
            self.mark_whole();
        }
        self.inside = if self.transactions.is_open() { self.inside + 1 } else { 0 };
        let mut batch = std::mem::replace(&mut self.batch, empty);
        assert!(batch.undecided.is_empty(), "a batch is decided before it is cut");
        batch.progress = self.progress;
        batch.more = more;
        self.delivered
            .push_back(Delivered { counts: batch.counts(), oldest_change: self.oldest_change.take() });
        let of_outbox = self.router.outbox_seen().dead_letters;
        let dead_letters = std::mem::take(&mut self.dead_letters)
            + (of_outbox - std::mem::replace(&mut self.outbox_dead_letters, of_outbox));
        metrics::dead_letters(&self.pipeline, dead_letters);
        batch
    }

    /// The oldest batch in flight is durable: counts what it held.
    pub fn count_delivered(&mut self, labels: &Labels, targets: &Targets, status: &SharedStatus) {
        let Some(delivered) = self.delivered.pop_front() else { return };
        let delivered = metrics::delivered(&self.pipeline, labels, targets, &delivered.counts);
        status.update(|status| {
            status.events += delivered.events;
            status.rows_applied += delivered.rows;
        });
    }

    /// When the oldest change committed that makes events, was received and is not durable.
    pub fn oldest_change_at(&self) -> Option<SystemTime> {
        let in_flight = self.delivered.iter().find_map(|delivered| delivered.oldest_change);
        let oldest = in_flight.or(self.oldest_change)?;
        let since_1970 = u64::try_from(oldest.unix_micros()).map(Duration::from_micros).unwrap_or_default();
        Some(SystemTime::UNIX_EPOCH + since_1970)
    }

    /// Whether the batch takes nothing more. Rows are best cut where a transaction ends, so a little earlier there.
    fn is_full(&self) -> bool {
        let is_at_end = !self.batch.rows.changes.is_empty() && !self.transactions.is_open();
        let part = |max: usize| if is_at_end { max - max / 8 } else { max };
        self.batch.size_bytes() >= part(BATCH_BYTES_MAX)
            || self.batch.len() >= part(self.batch_events_max)
            || self.lacks_room()
    }

    /// Whether the batch has rows of whole transactions and the beginning of another: cut here, that would be a
    /// transaction of its own on the replica, with a few rows.
    pub fn is_cut_badly(&self) -> bool {
        let whole = self.batch.rows.whole.map_or(0, |(changes, _)| changes);
        whole > 0 && self.transactions.is_open()
    }

    /// Whether the batch has something to deliver.
    pub fn has_events(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Whether a replica has a transaction open whose end was received: it should come at once, as rows are invisible
    /// and locked until it does.
    pub fn owes_end(&self) -> bool {
        self.messages.is_none() && self.inside > 0 && !self.transactions.is_open()
    }

    /// Whether all batches in flight are of a transaction whose end was not received: a replica will never confirm them.
    pub fn waits_in_vain(&self) -> bool {
        self.messages.is_none() && self.transactions.is_open() && self.delivered.len() <= self.inside
    }

    /// Size of the batch.
    pub fn batch_bytes(&self) -> usize {
        self.batch.size_bytes()
    }

    /// What the batch would make safe.
    pub fn safe_lsn(&self) -> Lsn {
        self.progress.safe_lsn
    }

    /// How far the stream was received.
    pub fn received_lsn(&self) -> Lsn {
        self.received_lsn
    }

    /// The end of WAL that the server last spoke of.
    pub fn source_lsn(&self) -> Lsn {
        self.source_lsn
    }

    /// Whether the server asked for a reply since the last call.
    pub fn take_reply_request(&mut self) -> bool {
        std::mem::take(&mut self.reply_requested)
    }

    /// Whether what `--until-caught-up` waits for has been received whole.
    pub fn is_target_reached(&self) -> bool {
        matches!(self.target, Some(Target::Confirmed(_)))
    }

    /// The end of what `--until-caught-up` waits for, once it has been received whole.
    pub fn target_lsn(&self) -> Lsn {
        match self.target {
            Some(Target::Confirmed(target)) => target,
            _ => Lsn::ZERO,
        }
    }

    /// Whether it is durable, too.
    pub fn is_caught_up(&self, confirmed: Lsn) -> bool {
        matches!(self.target, Some(Target::Confirmed(target)) if confirmed >= target)
    }
}
