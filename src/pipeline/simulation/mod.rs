//! The seeded simulation: pump, router, ledger, cadence and guard, as they run, between a model of
//! the source and a model of the destination, under schedules drawn from a seed.
//!
//! Comes in: a seed. Goes out: nothing, or the first broken invariant with the seed that breaks it:
//! `WALGATE_SIM_SEED=<seed> cargo test --lib pipeline::simulation` replays it and prints each step,
//! `WALGATE_SIM_RUNS=<n>` soaks. What is checked, at every step (DESIGN section 2, EXACTLY_ONCE.md):
//!
//! 1. the confirmed LSN never passes the stored `safe_lsn` nor a change that has not arrived, and
//!    never goes back;
//! 2. every event arrives exactly once, in commit order, equal in all its parts to that of a
//!    straight run, and ids, keys, topics and linked halves equal to what the model says;
//! 3. all events of one counted message are in one batch;
//! 4. the checkpoint never goes back, and speaks of exactly what has arrived;
//! 5. when all is quiet, the slot is confirmed up to the end of the WAL, whoever wrote it.

mod destination;
mod dice;
mod session;
mod tables;
mod wal;
mod walsender;

use destination::{Destination, Published};
use dice::Dice;
use session::Session;
use wal::Wal;

use super::guard::{self, Start};
use crate::lsn::Lsn;
use crate::sink::checkpoint::{Checkpoint, Identity, Phase};
use crate::wal::frame::StandbyStatus;
use crate::wal::slot::SlotState;

const SLOT: &str = "walgate_hub";
const STEPS: usize = 200;
/// About 4 ms of one core each, without optimisation.
const RUNS: u64 = 2000;
/// After the schedule, so many fair rounds must be enough to deliver and confirm everything.
const ROUNDS_MAX: usize = 300;

struct Simulation<'w> {
    wal: &'w Wal,
    dice: Dice,
    is_traced: bool,
    destination: Destination<'w>,
    session: Option<Session<'w>>,
    /// Records that are committed on the source.
    visible: usize,
    confirmed: Lsn,
    /// What the source still knows of it after a crash of its own.
    confirmed_on_disk: Lsn,
    /// The most that was ever reported as flushed.
    told: Lsn,
    batches_in_sink_max: usize,
    batch_events_max: usize,
}

impl<'w> Simulation<'w> {
    fn new(wal: &'w Wal, reference: Option<&'w [Published]>, mut dice: Dice, is_traced: bool) -> Self {
        let made =
            Checkpoint { phase: Phase::Streaming, safe_lsn: wal.start, ..Checkpoint::pending(identity()) };
        Simulation {
            wal,
            is_traced,
            destination: Destination::new(wal, reference, &made),
            session: None,
            visible: 0,
            confirmed: wal.start,
            confirmed_on_disk: wal.start,
            told: wal.start,
            batches_in_sink_max: 1 + dice.index(4),
            batch_events_max: 1 + dice.index(40),
            dice,
        }
    }

    fn note(&self, step: impl FnOnce() -> String) {
        if self.is_traced {
            eprintln!("{}", step());
        }
    }

    /// As `start::start` and `Stream::open`: from what is stored, through the guard.
    fn connect(&mut self) {
        let slot = SlotState {
            name: SLOT.into(),
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            is_active: false,
            active_pid: None,
            restart_lsn: Some(self.wal.start),
            confirmed_flush_lsn: Some(self.confirmed),
            wal_status: Some("reserved".into()),
            invalidation_reason: None,
            retained_wal_bytes: Some(0),
        };
        let stored = self.destination.checkpoint();
        let wal_end = self.wal.end(self.visible);
        let decision = guard::decide(Some(stored), Some(&slot), &identity(), wal_end);
        let Start::Resume(checkpoint) = decision.expect("nobody else touches the slot") else {
            panic!("a stored checkpoint is gone on from");
        };
        self.note(|| {
            let position = checkpoint.position();
            format!("connect: {position:?}, safe {}, confirmed {}", checkpoint.safe_lsn, self.confirmed)
        });
        guard::not_moved_by_others(SLOT, self.confirmed, checkpoint.safe_lsn).expect("nobody else");
        let dice = self.dice.split();
        let session = Session::open(self.wal, &checkpoint, self.confirmed, self.visible, dice);
        self.session = Some(session.with_batches_of(self.batch_events_max));
    }

    fn step(&mut self) {
        let Some(session) = &mut self.session else { return self.connect() };
        match self.dice.below(100) {
            0..=11 => {
                let more = 1 + self.dice.index(5);
                self.visible = (self.visible + more).min(self.wal.records.len());
                session.walsender.visible = self.visible;
            }
            12..=34 => {
                session.walsender.arrived = 1 + self.dice.index(40);
                session.has_backlog = self.dice.percent(30);
                session.receive();
            }
            35..=54 => {
                let is_idle_long = self.dice.percent(30);
                if self.destination.accepted() < self.batches_in_sink_max && session.is_cut_due(is_idle_long)
                {
                    let batch = session.hand_over();
                    self.note(|| format!("cut {}: {:?}", batch.sequence, batch.progress));
                    self.destination.accept(batch);
                }
            }
            55..=70 => {
                let count = 1 + self.dice.index(3);
                self.commit(count);
            }
            71..=80 => session.settle_one(),
            81..=86 => session.tick(),
            87..=91 => self.take_status(),
            92 => self.confirmed_on_disk = self.confirmed,
            93..=94 => {
                let asks = self.dice.percent(50);
                session.walsender.keepalive(asks);
            }
            95..=96 => self.crash(),
            97 => {
                self.crash();
                self.note(|| "the source crashes, too".to_owned());
                self.confirmed = self.confirmed_on_disk;
            }
            _ => self.drain(),
        }
        self.check_told();
    }

    fn commit(&mut self, count: usize) {
        let Some(session) = &mut self.session else { return };
        let batches = self.destination.commit(count, &session.labels);
        let is_any = !batches.is_empty();
        session.durable(batches);
        if is_any {
            self.note(|| format!("stored: {:?}", self.destination.checkpoint().progress()));
        }
    }

    /// Invariant 1, of every status that was sent.
    fn check_told(&mut self) {
        let Some(session) = self.session.as_mut().filter(|session| !session.sent.is_empty()) else { return };
        let stored = self.destination.checkpoint();
        for bytes in session.sent.drain(..) {
            let status = StandbyStatus::decode(&bytes).expect("encoded by the session");
            let flush = status.flush;
            assert!(flush <= stored.safe_lsn, "{flush} was confirmed before a checkpoint holds it");
            assert!(flush >= self.told, "the confirmed LSN went back from {} to {flush}", self.told);
            assert!(status.write >= flush, "flushed more than was written");
            if let Some(missing) = self.destination.missing() {
                assert!(flush <= missing.record_start, "{flush} was confirmed, {} is missing", missing.id);
            }
            self.told = flush;
            session.on_the_way.push_back(flush);
        }
    }

    /// The source learns of the oldest status that is on its way.
    fn take_status(&mut self) {
        let Some(session) = &mut self.session else { return };
        if let Some(flush) = session.on_the_way.pop_front() {
            self.confirmed = self.confirmed.max(flush);
            self.note(|| format!("the slot is confirmed at {flush}"));
        }
    }

    /// Everything volatile is gone; what was sent before may still arrive, or not.
    fn crash(&mut self) {
        self.note(|| "crash".to_owned());
        self.check_told();
        // After a drain this takes the last one too, or the connection breaks before.
        for _ in 0..self.dice.below(8) {
            self.take_status();
        }
        self.destination.crash();
        self.session = None;
    }

    /// As `Stream::drain`, in time.
    fn drain(&mut self) {
        self.note(|| "drain".to_owned());
        let mut is_cut = false;
        loop {
            let Some(session) = &mut self.session else { return };
            is_cut |= session.is_all_handed();
            if is_cut && session.is_settled() {
                break;
            }
            if !is_cut && self.dice.percent(50) {
                let batch = session.hand_over();
                self.destination.accept(batch);
                is_cut = true;
                continue;
            }
            session.settle_one();
            self.commit(1);
        }
        if let Some(session) = &mut self.session {
            session.send_status();
            assert!(session.is_all_handed(), "a drained pipeline keeps nothing back");
            let whole_lsn = session.walsender.whole_lsn;
            self.check_told();
            assert!(
                self.told >= whole_lsn,
                "drained, and the transaction up to {whole_lsn} is not confirmed"
            );
        }
        self.crash();
    }

    /// No more accidents: everything must arrive, and the slot must be confirmed to the end.
    fn finish(&mut self) {
        self.visible = self.wal.records.len();
        // Either time passes, or it stands still and the source asks once, as one that shuts down.
        let time_passes = self.dice.percent(50);
        let mut has_asked = false;
        for _ in 0..ROUNDS_MAX {
            if self.session.is_none() {
                self.connect();
            }
            let session = self.session.as_mut().expect("connected");
            session.walsender.visible = self.visible;
            if session.walsender.is_dry() && !has_asked {
                session.walsender.keepalive(!time_passes);
                has_asked = true;
            }
            session.walsender.arrived = 1000;
            session.has_backlog = false;
            session.receive();
            if session.is_cut_due(time_passes) {
                let batch = session.hand_over();
                self.destination.accept(batch);
            }
            self.commit(1);
            let session = self.session.as_mut().expect("connected");
            session.settle_one();
            if time_passes {
                session.tick();
            }
            self.check_told();
            self.take_status();
            if has_asked && self.confirmed == self.wal.end(self.visible) {
                break;
            }
        }
        if let Some(missing) = self.destination.missing() {
            panic!("{} has not arrived", missing.id);
        }
        assert_eq!(
            self.confirmed,
            self.wal.end(self.visible),
            "the slot retains WAL (asked: {})",
            !time_passes
        );
    }
}

fn identity() -> Identity {
    Identity {
        system_identifier: "7301234567890123456".into(),
        timeline: 1,
        database_oid: 5,
        slot: SLOT.into(),
        options: "0011".into(),
    }
}

/// One schedule; panics at the first broken invariant.
fn run(seed: u64, is_traced: bool) {
    let mut dice = Dice::new(seed);
    let wal = Wal::generate(&mut dice);
    let mut straight = Simulation::new(&wal, None, dice.split(), false);
    straight.finish();
    let reference = straight.destination.published;
    assert_eq!(reference.len(), wal.expected.len());
    let mut simulation = Simulation::new(&wal, Some(&reference), dice, is_traced);
    for _ in 0..STEPS {
        simulation.step();
    }
    simulation.finish();
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn every_schedule_delivers_everything_exactly_once() {
    if let Some(seed) = number_from_env("WALGATE_SIM_SEED") {
        return run(seed, true);
    }
    let runs = number_from_env("WALGATE_SIM_RUNS").unwrap_or(RUNS);
    let workers = 2;
    std::thread::scope(|scope| {
        for worker in 0..workers {
            scope.spawn(move || {
                for seed in (worker..runs).step_by(workers.try_into().expect("a few")) {
                    if let Err(cause) = std::panic::catch_unwind(|| run(seed, false)) {
                        eprintln!("seed {seed} fails: WALGATE_SIM_SEED={seed} replays it");
                        std::panic::resume_unwind(cause);
                    }
                }
            });
        }
    });
}
