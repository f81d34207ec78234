//! Exactly once: events and checkpoint in one Kafka transaction.
//!
//! Several batches share a transaction while more are coming, since one commit costs a few
//! milliseconds however much it commits; when nothing waits, it is committed at once.

use std::time::{Duration, Instant};

use super::producing::{Counting, Producing};
use super::session::Session;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::route::batch::{Batch, More};
use crate::sink::checkpoint::{Checkpoint, TableState};
use crate::sink::{Durable, Inbox, Sink};

/// A transaction is committed when it holds this much, in bytes: keeps memory and the consumers'
/// delay bounded.
const TRANSACTION_BYTES_MAX: usize = 32 << 20;
/// A transaction is committed after this long, even if more is coming.
const TRANSACTION_TIME_MAX: Duration = Duration::from_millis(200);
/// The next transaction begins at least this long after a commit. While the broker still writes the markers of
/// the last one it refuses the next, and librdkafka asks again after 20 ms.
const REST: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub struct ExactlyOnce {
    session: Session,
    producing: Producing,
    open: Option<Open>,
    committed_at: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    bytes: usize,
    tables: Vec<TableState>,
    batches: Vec<(u64, Lsn)>,
    more: More,
}

impl ExactlyOnce {
    /// A sink that goes on from `checkpoint`.
    pub fn new(mut session: Session, checkpoint: Checkpoint, producing: Producing) -> Self {
        session.checkpoint = Some(checkpoint);
        ExactlyOnce { session, producing, open: None, committed_at: None }
    }
}

impl Sink for ExactlyOnce {
    fn accept(&mut self, batch: &Batch, _: &mut Inbox) -> Result<()> {
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let rested = self.committed_at.map_or(REST, |at| at.elapsed());
                std::thread::sleep(REST.saturating_sub(rested));
                self.session.begin()?;
                none.insert(Open {
                    since: Instant::now(),
                    bytes: 0,
                    tables: Vec::new(),
                    batches: Vec::new(),
                    more: More::default(),
                })
            }
        };
        let producing = &mut self.producing;
        producing
            .produce(&self.session.producer, batch, Counting::ByTransaction)
            .map_err(|error| producing.judge(error))?;
        crate::failpoint::hit("kafka.after-produce");
        open.bytes += batch.bytes.len();
        open.tables.extend_from_slice(&batch.tables);
        open.batches.push((batch.sequence, batch.progress.safe_lsn));
        open.more = batch.more;
        let checkpoint = self.session.checkpoint.as_mut().expect("set when the sink was made");
        checkpoint.advance(&batch.progress);
        Ok(())
    }

    fn settle(&mut self, idle: bool, receipts: &mut Vec<Durable>) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let may_wait = open.more.is_coming() && !idle;
        if may_wait && open.bytes < TRANSACTION_BYTES_MAX && open.since.elapsed() < TRANSACTION_TIME_MAX {
            return Ok(());
        }
        let (session, producing) = (&self.session, &self.producing);
        session
            .add_checkpoint(&open.tables)
            .and_then(|()| session.commit(&producing.stop))
            .map_err(|error| producing.judge(error))?;
        let open = self.open.take().expect("looked at above");
        self.committed_at = Some(Instant::now());
        receipts.extend(open.batches.into_iter().map(|(sequence, safe_lsn)| Durable::of(sequence, safe_lsn)));
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        self.open.as_ref().map(|open| open.more.patience())
    }
}
