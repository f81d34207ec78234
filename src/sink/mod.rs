//! Destinations: what takes batches and proves that they are durable.
//!
//! Comes in: batches, in the order of publishing. Goes out: [`Durable`] receipts, in the same order,
//! which only this module can make (invariant 1). A [`Sink`] is plain blocking code and lives on a
//! thread of its own; the pipeline hands it batches through a channel that holds one. That single
//! place is both the back-pressure and the batching: while the sink is busy, what arrives gathers in
//! the next batch, and an idle sink gets a batch at once.

pub mod checkpoint;
pub mod destination;
pub mod file;
pub mod hub;
pub mod kafka;
pub mod replica;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::claim::stage::{self, ClaimSettings};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::route::batch::Batch;

/// A buffer that one huge row has grown is given back beyond this, in bytes.
const BATCH_BYTES_KEPT_MAX: usize = 8 << 20;

/// The proof that everything up to and including one batch is durable at the destination, its
/// checkpoint included.
#[derive(Debug, PartialEq, Eq)]
pub struct Durable {
    sequence: u64,
    safe_lsn: Lsn,
}

impl Durable {
    /// Made by a sink only, and only after the destination has said so.
    fn of(sequence: u64, safe_lsn: Lsn) -> Self {
        Durable { sequence, safe_lsn }
    }

    /// The batch's sequence number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What the batch's durability makes safe to confirm.
    pub fn safe_lsn(&self) -> Lsn {
        self.safe_lsn
    }
}

/// A destination of batches.
pub trait Sink: Send + 'static {
    /// Takes a batch, in order; on return its buffer is free again, its events need not be durable. While it waits, it
    /// may look at the one that comes next.
    ///
    /// # Errors
    /// Any error ends the sink; the pipeline starts again from the stored checkpoint.
    fn accept(&mut self, batch: &Batch, inbox: &mut Inbox) -> Result<()>;

    /// Makes what was accepted durable, or comes nearer to it; appends the receipts that this gave.
    /// `idle`: no batch came within [`Sink::patience`].
    ///
    /// # Errors
    /// As [`Sink::accept`].
    fn settle(&mut self, idle: bool, receipts: &mut Vec<Durable>) -> Result<()>;

    /// How long to wait for the next batch before settling again; `None`: there is nothing to settle.
    fn patience(&self) -> Option<Duration>;
}

/// What comes back from the sink's thread.
// A batch is handed over a few hundred times a second, and its size is that of its headers.
#[derive(Debug)]
pub enum Outcome {
    /// A batch is durable.
    Durable(Durable),
    /// A batch's buffer is free for reuse.
    Returned(Batch),
    /// The sink has ended; nothing more comes.
    Failed(Error),
}

/// How much a sink may hold.
#[derive(Clone, Copy, Debug)]
pub struct SinkLimits {
    /// Bytes of events that are on their way and not acknowledged.
    pub in_flight_bytes_max: usize,
}

impl SinkLimits {
    /// The share of `limits.memory_bytes_max` that a sink may take. It is small, since what is on its way is
    /// touched by three threads: it should stay in the processor's cache (docs/decisions/kafka-client.md).
    pub fn of(memory_bytes_max: u64) -> Self {
        let share = usize::try_from(memory_bytes_max / 256).unwrap_or(usize::MAX);
        SinkLimits { in_flight_bytes_max: share.clamp(256 << 10, 64 << 20) }
    }
}

/// Tells a sink that nobody waits for it any more. A sink that goes on publishing after its pipeline
/// has given up would put old events behind those of its successor.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asked where a sink waits.
    ///
    /// # Errors
    /// When nobody waits any more.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::transient("the sink was told to stop")),
            false => Ok(()),
        }
    }
}

/// The pipeline's end of a sink's thread. Dropping it stops the thread, wherever it is.
#[derive(Debug)]
pub struct Worker {
    stop: Stop,
    /// Holds one batch: see the module.
    pub batches: mpsc::Sender<Batch>,
    /// Bounded by the number of batches in existence.
    pub outcomes: mpsc::UnboundedReceiver<Outcome>,
}

impl Worker {
    /// Starts the thread, which holds `gate` as long as it lives; with `claims`, another before it that stores what the
    /// batches claim. It ends when the worker is dropped, or
    /// at the first error; a later batch is then answered by the channel's closing.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        name: &str,
        sink: impl Sink,
        stop: Stop,
        gate: tokio::sync::OwnedMutexGuard<()>,
        claims: Option<ClaimSettings>,
    ) -> Result<Worker> {
        let (mut batches, receiver) = mpsc::channel(1);
        let (sender, outcomes) = mpsc::unbounded_channel();
        if let Some(claims) = claims {
            let (before, stored) = mpsc::channel(1);
            stage::start(claims, stored, std::mem::replace(&mut batches, before), sender.clone())?;
        }
        std::thread::Builder::new()
            .name(format!("sink {name}"))
            .spawn(move || {
                if let Err(error) = serve(sink, receiver, &sender) {
                    // The pipeline may already have gone: then nobody needs to know.
                    let _ = sender.send(Outcome::Failed(error));
                }
                drop(gate);
            })
            .map_err(|error| Error::transient("the sink's thread cannot be started").with_source(error))?;
        Ok(Worker { stop, batches, outcomes })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
    }
}

fn serve(
    mut sink: impl Sink,
    batches: mpsc::Receiver<Batch>,
    outcomes: &mpsc::UnboundedSender<Outcome>,
) -> Result<()> {
    let mut inbox = Inbox::new(batches);
    let mut receipts = Vec::new();
    loop {
        let patience = sink.patience();
        let received = inbox.receive(patience);
        let idle = !matches!(received, Received::Batch(_));
        match received {
            Received::Batch(mut batch) => {
                sink.accept(&batch, &mut inbox)?;
                batch.clear(BATCH_BYTES_KEPT_MAX);
                let _ = outcomes.send(Outcome::Returned(batch));
            }
            Received::Nothing => {}
            // A pipeline that drains keeps its end open until it has every receipt.
            Received::Closed => return Ok(()),
        }
        sink.settle(idle, &mut receipts)?;
        for receipt in receipts.drain(..) {
            // A pipeline that has gone learns of it from the checkpoint.
            let _ = outcomes.send(Outcome::Durable(receipt));
        }
    }
}

/// The batches that come to a sink.
#[derive(Debug)]
pub struct Inbox {
    batches: mpsc::Receiver<Batch>,
    /// One that was looked at.
    next: Option<Batch>,
}

/// What has come to a sink.
#[derive(Debug)]
pub enum Received {
    /// The next batch.
    Batch(Batch),
    /// None came in time.
    Nothing,
    /// None will come any more.
    Closed,
}

impl Inbox {
    /// Of what comes through this channel.
    pub fn new(batches: mpsc::Receiver<Batch>) -> Self {
        Inbox { batches, next: None }
    }

    /// Waits for the next batch and leaves it here; `None`: none comes any more. May be dropped while it waits.
    pub async fn peek(&mut self) -> Option<&Batch> {
        if self.next.is_none() {
            self.next = self.batches.recv().await;
        }
        self.next.as_ref()
    }

    /// Waits for a batch on this thread, without a runtime: its timers would be another thread's.
    pub fn receive(&mut self, patience: Option<Duration>) -> Received {
        if let Some(batch) = self.next.take() {
            return Received::Batch(batch);
        }
        let Some(patience) = patience else {
            return self.batches.blocking_recv().map_or(Received::Closed, Received::Batch);
        };
        let deadline = Instant::now() + patience;
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match self.batches.poll_recv(&mut context) {
                Poll::Ready(Some(batch)) => return Received::Batch(batch),
                Poll::Ready(None) => return Received::Closed,
                Poll::Pending => {}
            }
            match deadline.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => std::thread::park_timeout(left),
                _ => return Received::Nothing,
            }
        }
    }
}

/// Wakes the sink's thread.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Copies `labels` as far as `index` needs it.
fn label<'k>(
    known: &'k mut Vec<Arc<crate::route::batch::Label>>,
    labels: &crate::route::batch::Labels,
    index: usize,
) -> &'k Arc<crate::route::batch::Label> {
    if index >= known.len() {
        labels.refresh(known);
    }
    known.get(index).expect("a label is interned before it is used")
}
