//! Between the batches and the sink: what they claim is stored, then they go on.
//!
//! Comes in: batches, in the order of publishing. Goes out: the same batches in the same order, each only after all of
//! its objects are stored (invariant 3); so a Kafka transaction begins only then. Always holds: the objects of several
//! batches are on their way at once, bounded by their number and by bytes; a store that fails is tried again with
//! back-off for as long as it takes, while the pipeline goes on telling the source where it stands; what only a person
//! can mend ends the sink. It is a thread with a runtime of its own, so that neither the reader nor the sink waits for
//! the network.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ClaimStore;
use crate::config::ClaimCheck;
use crate::engine::backoff::Backoff;
use crate::engine::metrics;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::pipeline::status::SharedStatus;
use crate::route::batch::Batch;
use crate::route::claim::Claim;
use crate::sink::Outcome;

/// Objects on their way at a time: what hides a store's latency.
const PUTS_MAX: usize = 16;
/// A store that stays away is told of in the log this often.
const LOG_TIME: Duration = Duration::from_secs(10);

/// What the stage is told of the pipeline.
#[derive(Clone, Debug)]
pub struct ClaimSettings {
    /// Where objects go.
    pub claim_check: ClaimCheck,
    /// Bytes of batches and objects that are here, before no more is taken; one batch may take it over.
    pub bytes_max: usize,
    /// The pipeline's name.
    pub pipeline: String,
    /// Where failures are told.
    pub status: SharedStatus,
}

impl ClaimSettings {
    /// The share of `limits.memory_bytes_max` that waits for the store.
    pub fn bytes_max_of(memory_bytes_max: u64) -> usize {
        usize::try_from(memory_bytes_max / 4).unwrap_or(usize::MAX)
    }
}

/// Starts the thread: takes batches from `batches`, hands them to `sink`, and tells `outcomes` what ended it. It ends
/// when either end has gone.
///
/// # Errors
/// When no thread can be started.
pub fn start(
    settings: ClaimSettings,
    batches: mpsc::Receiver<Batch>,
    sink: mpsc::Sender<Batch>,
    outcomes: mpsc::UnboundedSender<Outcome>,
) -> Result<()> {
    let failed = |error| Error::transient("the thread of the claims cannot be started").with_source(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    std::thread::Builder::new()
        .name(format!("claims {}", settings.pipeline))
        .spawn(move || {
            let ended = runtime.block_on(Stage::new(settings).serve(batches, sink, &outcomes));
            if let Err(error) = ended {
                // The pipeline may already have gone: then nobody needs to know.
                let _ = outcomes.send(Outcome::Failed(error));
            }
            runtime.shutdown_background();
        })
        .map_err(failed)?;
    Ok(())
}

/// What the puts share.
struct Putting {
    store: ClaimStore,
    settings: ClaimSettings,
    turns: Semaphore,
    told_at: Mutex<Option<Instant>>,
}

/// A batch, and how many of its objects are not stored.
struct Waiting {
    batch: Batch,
    objects_left: usize,
}

struct Stage {
    settings: ClaimSettings,
    /// In the order of publishing.
    waiting: VecDeque<Waiting>,
    /// The number of the first of them: how many went on.
    gone: usize,
    bytes: usize,
}

/// An object of the batch with this number is stored.
struct Stored {
    batch: usize,
    bytes: usize,
}

impl Stage {
    fn new(settings: ClaimSettings) -> Self {
        Stage { settings, waiting: VecDeque::new(), gone: 0, bytes: 0 }
    }

    async fn serve(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        sink: mpsc::Sender<Batch>,
        outcomes: &mpsc::UnboundedSender<Outcome>,
    ) -> Result<()> {
        let putting = Arc::new(Putting {
            store: ClaimStore::open(&self.settings.claim_check).await,
            settings: self.settings.clone(),
            turns: Semaphore::new(PUTS_MAX),
            told_at: Mutex::default(),
        });
        let mut puts: JoinSet<Result<Stored>> = JoinSet::new();
        loop {
            let is_ready = self.waiting.front().is_some_and(|first| first.objects_left == 0);
            // While only the sink is waited for, what arrives gathers in the next batch, as without claims.
            let has_use = self.waiting.is_empty() || !puts.is_empty();
            let takes = has_use && self.bytes < self.settings.bytes_max;
            tokio::select! {
                biased;
                () = outcomes.closed() => return Ok(()),
                Some(put) = puts.join_next() => {
                    self.stored(put.map_err(|error| Error::transient("a claim's task did not end well").with_source(error))??);
                }
                permit = sink.reserve(), if is_ready => {
                    // A sink that has ended has said why.
                    let Ok(permit) = permit else { return Ok(()) };
                    let Waiting { batch, .. } = self.waiting.pop_front().expect("it is ready");
                    self.gone += 1;
                    self.bytes -= batch.bytes.len();
                    permit.send(batch);
                }
                batch = batches.recv(), if takes => {
                    // A pipeline that drains keeps its end open until it has every receipt.
                    let Some(batch) = batch else { return Ok(()) };
                    self.take(batch, &putting, &mut puts);
                }
            }
        }
    }

    fn take(&mut self, mut batch: Batch, putting: &Arc<Putting>, puts: &mut JoinSet<Result<Stored>>) {
        let number = self.gone + self.waiting.len();
        let mut objects_left = 0;
        self.bytes += batch.bytes.len();
        for claim in batch.events.iter_mut().flat_map(|event| &mut event.claims) {
            objects_left += 1;
            self.bytes += claim.bytes;
            // The body goes when it is stored, the rest stays for the event's header.
            let (body, held) = (std::mem::take(&mut claim.body), claim.held.take());
            let (claim, putting) = (Claim { body, held, ..claim.clone() }, putting.clone());
            puts.spawn(async move {
                putting.put(&claim).await?;
                Ok(Stored { batch: number, bytes: claim.bytes })
            });
        }
        self.waiting.push_back(Waiting { batch, objects_left });
    }

    fn stored(&mut self, stored: Stored) {
        let place = stored.batch.checked_sub(self.gone).expect("a batch waits for its objects");
        let waiting = self.waiting.get_mut(place).expect("a batch waits for its objects");
        waiting.objects_left -= 1;
        self.bytes -= stored.bytes;
    }
}

impl Putting {
    /// Stores one object, however long it takes.
    async fn put(&self, claim: &Claim) -> Result<()> {
        let _turn = self.turns.acquire().await.expect("it is never closed");
        let mut backoff = Backoff::default();
        loop {
            match self.store.put(claim).await {
                Ok(()) => {
                    failpoint::hit("claim.after-put");
                    metrics::claim_stored(&self.settings.pipeline, &claim.relation);
                    return Ok(());
                }
                Err(error) if error.is_definite() => return Err(error),
                Err(error) => {
                    self.tell(&error);
                    tokio::time::sleep(backoff.next_pause()).await;
                }
            }
        }
    }

    fn tell(&self, error: &Error) {
        metrics::claim_failed(&self.settings.pipeline);
        let remedy = error.hint().map_or_else(String::new, |hint| format!(" (remedy: {hint})"));
        let text = format!("the claim store fails, the pipeline waits for it: {}{remedy}", error.chain());
        let mut told_at = self.told_at.lock().expect("no holder panics");
        if told_at.is_none_or(|at| at.elapsed() >= LOG_TIME) {
            tracing::warn!(pipeline = self.settings.pipeline, "{text}");
            *told_at = Some(Instant::now());
        }
        self.settings.status.note_error(text);
    }
}
