//! One connection's volatile half: what `stream` holds between a start and a crash.
//!
//! Does what `Stream::follow` does, one branch of its `select!` at a time, with the same pump,
//! ledger and cadence; time is whatever the schedule says.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::SLOT;
use super::dice::Dice;
use super::tables;
use super::wal::Wal;
use super::walsender::Walsender;
use crate::ack::Ledger;
use crate::config::{Destination, TableRule, choose};
use crate::lsn::Lsn;
use crate::pipeline::cadence::{self, Cadence, IDLE_CHECKPOINT_TIME, Moment};
use crate::pipeline::guard::FirstTransaction;
use crate::pipeline::pump::{Pump, PumpSettings, Pumped};
use crate::pipeline::status::SharedStatus;
use crate::route::Route;
use crate::route::batch::{Batch, Labels, More};
use crate::route::filter::{EnumLabels, TableFacts};
use crate::route::format::EventSettings;
use crate::route::plan::{PlanContext, TablePlan};
use crate::route::row::Targets;
use crate::route::template::TopicTemplate;
use crate::route::value::TypeCatalog;
use crate::sink::checkpoint::Checkpoint;
use crate::wal::frame::StandbyStatus;
use crate::wal::pgoutput::Relation;
use crate::wal::timestamp::Timestamp;

/// Made once: thousands of sessions read the same types and rules.
static TYPES: OnceLock<TypeCatalog> = OnceLock::new();
static RULES: OnceLock<Vec<TableRule>> = OnceLock::new();

pub(super) struct Session<'w> {
    wal: &'w Wal,
    pub(super) walsender: Walsender<'w>,
    pub(super) labels: Arc<Labels>,
    pump: Pump,
    ledger: Ledger,
    cadence: Cadence,
    is_full: bool,
    pub(super) has_backlog: bool,
    free: Vec<Batch>,
    /// Receipts that the pipeline has not taken yet.
    receipts: VecDeque<(u64, Lsn)>,
    status_lsn: Lsn,
    /// Statuses sent since they were last looked at.
    pub(super) sent: Vec<Vec<u8>>,
    /// What the source has not received of them.
    pub(super) on_the_way: VecDeque<Lsn>,
}

impl<'w> Session<'w> {
    pub(super) fn open(
        wal: &'w Wal,
        checkpoint: &Checkpoint,
        confirmed: Lsn,
        visible: usize,
        dice: Dice,
    ) -> Self {
        let labels = Arc::new(Labels::default());
        let settings = PumpSettings {
            source_name: "shop".into(),
            slot: SLOT.into(),
            topic: TopicTemplate::default(),
            takes_messages: true,
            events: EventSettings::default(),
        };
        let first = FirstTransaction::expected(checkpoint, confirmed, true);
        Session {
            wal,
            walsender: Walsender::start(wal, confirmed, visible, dice),
            pump: Pump::new(&settings, labels.clone(), checkpoint, first, None).expect("short names"),
            labels,
            ledger: Ledger::new(checkpoint.safe_lsn),
            cadence: Cadence::default(),
            is_full: false,
            has_backlog: false,
            free: Vec::new(),
            receipts: VecDeque::new(),
            status_lsn: Lsn::ZERO,
            sent: Vec::new(),
            on_the_way: VecDeque::new(),
        }
    }

    pub(super) fn with_batches_of(mut self, events_max: usize) -> Self {
        self.pump.limit_events(events_max);
        self
    }

    /// Takes the frames that have arrived, as the head of the loop does.
    pub(super) fn receive(&mut self) {
        self.is_full = loop {
            match self.pump.pump(&mut self.walsender).expect("a well-formed stream") {
                Pumped::Full => break true,
                Pumped::Dry => break false,
                Pumped::Relation(relation) => self.install(relation),
                Pumped::Resync(_) | Pumped::ResyncDue => {}
                Pumped::Truncate(truncate) => {
                    let is_taken = |oid: &u32| self.pump.plan(*oid).is_some();
                    let count = |oid| if is_taken(oid) { tables::partitions(*oid) } else { 0 };
                    let partitions: Vec<i32> = truncate.relations.iter().map(count).collect();
                    self.pump.truncate(&truncate, &partitions).expect("described tables");
                }
            }
        };
        if self.pump.take_reply_request() {
            self.cadence.asked();
            self.send_status();
        }
    }

    fn install(&mut self, relation: Relation) {
        let rules = RULES.get_or_init(tables::rules);
        let rule = choose(rules, Destination::Hub, &relation.namespace, &relation.name);
        let Some(rule) = rule else { return self.pump.install(relation, Some(Route::Off)) };
        let context = PlanContext {
            source_name: "shop",
            types: TYPES.get_or_init(TypeCatalog::builtin),
            labels: &self.labels,
            enums: &EnumLabels::default(),
            topic: &TopicTemplate::default(),
            events: &EventSettings::default(),
        };
        let copied_at = if relation.oid == tables::LINES { self.wal.copied_at } else { Lsn::ZERO };
        let primary_key = tables::primary_key(relation.oid);
        let plan =
            TablePlan::compile(&context, &relation, rule, &primary_key, &TableFacts::default(), copied_at);
        self.pump.install(relation, Some(Route::Events(Box::new(plan.expect("a rule that fits")))));
    }

    pub(super) fn is_cut_due(&self, is_idle_long: bool) -> bool {
        let since_checkpoint = if is_idle_long { IDLE_CHECKPOINT_TIME } else { Duration::ZERO };
        let moment = Moment { is_full: self.is_full, has_backlog: self.has_backlog, since_checkpoint };
        self.cadence.is_cut_due(&self.pump, &self.ledger, moment)
    }

    pub(super) fn is_all_handed(&self) -> bool {
        cadence::is_all_handed(&self.pump, &self.ledger)
    }

    /// Whether every batch has its receipt.
    pub(super) fn is_settled(&self) -> bool {
        self.ledger.is_empty()
    }

    pub(super) fn hand_over(&mut self) -> Batch {
        let empty = self.free.pop().unwrap_or_default();
        let more = if self.is_full || self.has_backlog { More::Likely } else { More::Unknown };
        let batch = cadence::hand_over(&mut self.pump, &mut self.ledger, empty, more, Duration::ZERO);
        self.is_full = false;
        batch
    }

    /// The destination has made them durable; the receipts are on their way, the buffers free.
    pub(super) fn durable(&mut self, batches: Vec<Batch>) {
        for mut batch in batches {
            self.receipts.push_back((batch.sequence, batch.progress.safe_lsn));
            batch.clear(1 << 20);
            self.free.push(batch);
        }
    }

    /// Takes the oldest receipt, if there is one.
    pub(super) fn settle_one(&mut self) {
        let Some((sequence, safe_lsn)) = self.receipts.pop_front() else { return };
        self.ledger.settle(sequence, safe_lsn);
        self.pump.count_delivered(&self.labels, &Targets::default(), &SharedStatus::default());
        if self.cadence.settled(&self.pump, &self.ledger) {
            self.send_status();
        }
    }

    /// As `Stream::tick`: a status if there is more to confirm.
    pub(super) fn tick(&mut self) {
        if self.ledger.confirmed_lsn() > self.status_lsn {
            self.send_status();
        }
    }

    pub(super) fn send_status(&mut self) {
        let confirmed = self.ledger.confirmed_lsn();
        let status = StandbyStatus {
            write: self.pump.received_lsn().max(confirmed),
            flush: confirmed,
            apply: confirmed,
            client_time: Timestamp(0),
            reply_requested: false,
        };
        let mut bytes = Vec::with_capacity(40);
        status.encode(&mut bytes);
        self.sent.push(bytes);
        self.status_lsn = confirmed;
    }
}
