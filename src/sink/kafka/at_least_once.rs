//! At least once: an idempotent producer for the events, and checkpoints after their acknowledgements.
//!
//! Always holds: a checkpoint speaks only of acknowledged batches, and is written through the
//! transactional producer, so that a fenced process cannot overwrite a newer one and a later change
//! to exactly-once finds a true one. It is written by a thread of its own, a few times a second:
//! its commit takes milliseconds for which no event should wait.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer};

use super::deliveries::Deliveries;
use super::producer_config;
use super::producing::{Counting, Producing, take_failure};
use super::session::{Session, connect};
use crate::config::KafkaHub;
use crate::error::{Error, Result};
use crate::route::batch::{Batch, Progress};
use crate::sink::checkpoint::{Checkpoint, TableState};
use crate::sink::{Durable, Inbox, Sink};

/// Between two checkpoints under load.
const CHECKPOINT_TIME: Duration = Duration::from_millis(250);
/// Between two checkpoints when everything that was delivered is acknowledged: whoever waits for the
/// end of something waits for this one.
const LAST_CHECKPOINT_TIME: Duration = Duration::from_millis(20);
/// Between two looks while acknowledgements are missing.
const PATIENCE: Duration = Duration::from_millis(2);

/// See the module.
pub struct AtLeastOnce {
    producer: BaseProducer<Deliveries>,
    producing: Producing,
    checkpointer: Checkpointer,
    /// Delivered, not yet in a checkpoint that was asked for; oldest first.
    waiting: VecDeque<Waiting>,
    /// How many at the front of `waiting` are acknowledged.
    acknowledged: usize,
    /// The batches of the checkpoint that is being written.
    being_stored: Option<Vec<Durable>>,
    last_asked_at: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    sequence: u64,
    progress: Progress,
    tables: Vec<TableState>,
}

impl AtLeastOnce {
    /// A sink that goes on from `checkpoint`.
    ///
    /// # Errors
    /// Definite when the properties are wrong.
    pub fn new(
        hub: &KafkaHub,
        session: Session,
        checkpoint: Checkpoint,
        producing: Producing,
    ) -> Result<Self> {
        Ok(AtLeastOnce {
            // A message that fails fails all behind it: else later events of its aggregate would overtake it.
            producer: connect(producer_config(hub).set("enable.gapless.guarantee", "true"))?,
            producing,
            checkpointer: Checkpointer::start(session, checkpoint)?,
            waiting: VecDeque::new(),
            acknowledged: 0,
            being_stored: None,
            last_asked_at: None,
        })
    }

    fn count_acknowledged(&mut self) -> Result<()> {
        take_failure(&self.producer)?;
        while let Some(sequence) = self.producer.context().take_acknowledged() {
            let batch = self.waiting.get(self.acknowledged).expect("a delivered batch waits");
            assert_eq!(
                u64::try_from(sequence).ok(),
                Some(batch.sequence),
                "batches are acknowledged in order"
            );
            self.acknowledged += 1;
        }
        Ok(())
    }

    fn ask_for_checkpoint(&mut self) {
        let mut batches: Vec<Waiting> = self.waiting.drain(..self.acknowledged).collect();
        self.acknowledged = 0;
        let last = batches.last().expect("only asked when some are acknowledged").progress;
        let tables = batches.iter_mut().flat_map(|batch| std::mem::take(&mut batch.tables)).collect();
        let receipts =
            batches.iter().map(|batch| Durable::of(batch.sequence, batch.progress.safe_lsn)).collect();
        self.checkpointer.ask(last, tables);
        self.being_stored = Some(receipts);
        self.last_asked_at = Some(Instant::now());
    }
}

impl Sink for AtLeastOnce {
    fn accept(&mut self, batch: &Batch, _: &mut Inbox) -> Result<()> {
        self.waiting.push_back(Waiting {
            sequence: batch.sequence,
            progress: batch.progress,
            tables: batch.tables.clone(),
        });
        self.producing
            .produce(&self.producer, batch, Counting::ByBatch)
            .map_err(|error| self.producing.judge(error))
    }

    fn settle(&mut self, idle: bool, receipts: &mut Vec<Durable>) -> Result<()> {
        self.count_acknowledged().map_err(|error| self.producing.judge(error))?;
        if self.being_stored.is_some() && self.checkpointer.is_done()? {
            receipts.extend(self.being_stored.take().into_iter().flatten());
        }
        let is_last = idle && self.acknowledged == self.waiting.len();
        let pause = if is_last { LAST_CHECKPOINT_TIME } else { CHECKPOINT_TIME };
        let is_time = self.last_asked_at.is_none_or(|at| at.elapsed() >= pause);
        if self.being_stored.is_none() && self.acknowledged > 0 && is_time {
            crate::failpoint::hit("kafka.before-checkpoint");
            self.ask_for_checkpoint();
        }
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        (!self.waiting.is_empty() || self.being_stored.is_some()).then_some(PATIENCE)
    }
}

/// Stores checkpoints on a thread of its own, one at a time.
#[derive(Debug)]
struct Checkpointer {
    requests: mpsc::Sender<(Progress, Vec<TableState>)>,
    answers: mpsc::Receiver<Result<()>>,
}

impl Checkpointer {
    fn start(mut session: Session, mut checkpoint: Checkpoint) -> Result<Self> {
        let (requests, receiver) = mpsc::channel::<(Progress, Vec<TableState>)>();
        let (sender, answers) = mpsc::channel();
        std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || {
                for (progress, tables) in receiver {
                    checkpoint.advance(&progress);
                    if sender.send(session.store(&checkpoint, &tables)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| {
                Error::transient("the checkpoint's thread cannot be started").with_source(error)
            })?;
        Ok(Checkpointer { requests, answers })
    }

    fn ask(&self, progress: Progress, tables: Vec<TableState>) {
        // A thread that has gone is noticed by `is_done`.
        let _ = self.requests.send((progress, tables));
    }

    fn is_done(&self) -> Result<bool> {
        match self.answers.try_recv() {
            Ok(answer) => answer.map(|()| true),
            Err(mpsc::TryRecvError::Empty) => Ok(false),
            Err(mpsc::TryRecvError::Disconnected) => {
                Err(Error::transient("the checkpoint's thread has ended"))
            }
        }
    }
}
