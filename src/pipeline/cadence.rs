//! When a batch is cut and when the source is told at once: the decisions of the stream's loop,
//! without its sockets and its clock, so that the simulation takes the same ones.
//!
//! Comes in: the pump, the ledger, and how things stand at this moment. Goes out: yes or no. Always
//! holds: nothing is cut for a mere keepalive while it is neither asked for nor due by time; what
//! was asked for is answered by a checkpoint as soon as nothing is in flight (EXACTLY_ONCE.md, "The
//! checkpoint").

use std::time::Duration;

use super::pump::Pump;
use crate::ack::Ledger;
use crate::route::batch::{Batch, More};

/// An idle slot is moved at most this often, unless the server asks.
pub const IDLE_CHECKPOINT_TIME: Duration = Duration::from_secs(10);
/// While more is waiting a batch is cut from this size on, in bytes.
const BACKLOG_BATCH_BYTES: usize = 256 << 10;
/// ... or after this long: what comes fast need not be much.
const BACKLOG_BATCH_TIME: Duration = Duration::from_millis(5);

/// How things stand when the loop asks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The batch takes nothing more.
    pub is_full: bool,
    /// More is waiting to be read.
    pub has_backlog: bool,
    /// Since the last batch was cut.
    pub since_checkpoint: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cadence {
    /// The server waits for what is in flight: confirm without delay.
    is_server_waiting: bool,
}

impl Cadence {
    /// The server asked for a reply.
    pub fn asked(&mut self) {
        self.is_server_waiting = true;
    }

    /// Whether the batch should go to the sink as soon as it can take it.
    pub fn is_cut_due(&self, pump: &Pump, ledger: &Ledger, moment: Moment) -> bool {
        if pump.has_events() {
            let is_enough =
                pump.batch_bytes() >= BACKLOG_BATCH_BYTES || moment.since_checkpoint >= BACKLOG_BATCH_TIME;
            return moment.is_full || !moment.has_backlog || (is_enough && !pump.is_cut_badly());
        }
        if pump.owes_end() {
            return true;
        }
        let is_asked = self.is_server_waiting && ledger.is_empty();
        !is_all_handed(pump, ledger)
            && (is_asked || pump.is_target_reached() || moment.since_checkpoint >= IDLE_CHECKPOINT_TIME)
    }

    /// A receipt was settled; true: the server waits for it, send a status at once.
    pub fn settled(&mut self, pump: &Pump, ledger: &Ledger) -> bool {
        let is_due = self.is_server_waiting && ledger.is_empty();
        if is_due {
            self.is_server_waiting = pump.safe_lsn() > ledger.confirmed_lsn();
        }
        is_due
    }
}

/// Whether there is nothing left to cut: no events, and no more to confirm.
pub fn is_all_handed(pump: &Pump, ledger: &Ledger) -> bool {
    !pump.has_events() && pump.safe_lsn() <= ledger.handed_lsn()
}

/// Cuts the batch and enters it into the ledger; `now` counts from the stream's beginning.
pub fn hand_over(pump: &mut Pump, ledger: &mut Ledger, empty: Batch, more: More, now: Duration) -> Batch {
    let mut batch = pump.cut(empty, more);
    let bytes = u64::try_from(batch.size_bytes()).expect("a length fits");
    batch.sequence = ledger.deliver(batch.progress.safe_lsn, bytes, now);
    batch
}
