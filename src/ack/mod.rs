//! What is in flight, and hence how far the slot may be confirmed.
//!
//! Comes in: batches as they are handed to the sink, receipts as the sink gives them. Goes out: the
//! LSN that may be reported as flushed. Always holds (EXACTLY_ONCE.md, "The checkpoint"):
//!
//! 1. the confirmed LSN never passes the `safe_lsn` of a batch without a receipt;
//! 2. it never goes back;
//! 3. receipts come in the order of delivery; one out of order is a bug of the sink, and asserted.
//!
//! Knows only LSNs and bytes: no rows, no sockets, no clock (the caller says what time it is).

use std::collections::VecDeque;
use std::time::Duration;

use crate::lsn::Lsn;

/// One batch on its way: handed to the sink, not yet durable.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    sequence: u64,
    safe_lsn: Lsn,
    bytes: u64,
    delivered_at: Duration,
}

/// The deliveries in flight, oldest first.
#[derive(Debug)]
pub struct Ledger {
    in_flight: VecDeque<Delivery>,
    in_flight_bytes: u64,
    next_sequence: u64,
    handed_lsn: Lsn,
    confirmed_lsn: Lsn,
}

impl Ledger {
    /// A ledger for a destination whose durable checkpoint holds `safe_lsn`.
    pub fn new(safe_lsn: Lsn) -> Self {
        Ledger {
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            next_sequence: 1,
            handed_lsn: safe_lsn,
            confirmed_lsn: safe_lsn,
        }
    }

    /// Enters a batch of `bytes` whose durability makes `safe_lsn` safe; returns its sequence number.
    pub fn deliver(&mut self, safe_lsn: Lsn, bytes: u64, now: Duration) -> u64 {
        assert!(safe_lsn >= self.handed_lsn, "safe_lsn went back from {} to {safe_lsn}", self.handed_lsn);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.handed_lsn = safe_lsn;
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(Delivery { sequence, safe_lsn, bytes, delivered_at: now });
        sequence
    }

    /// Takes the receipt for the oldest delivery in flight; returns the LSN that may be confirmed now.
    pub fn settle(&mut self, sequence: u64, durable_lsn: Lsn) -> Lsn {
        let oldest = self.in_flight.pop_front().expect("a receipt is for a delivery in flight");
        assert_eq!(oldest.sequence, sequence, "receipts come in the order of delivery");
        assert_eq!(oldest.safe_lsn, durable_lsn, "a receipt proves what was delivered, nothing else");
        self.in_flight_bytes -= oldest.bytes;
        assert!(oldest.safe_lsn >= self.confirmed_lsn, "the confirmed LSN never goes back");
        self.confirmed_lsn = oldest.safe_lsn;
        self.confirmed_lsn
    }

    /// How far the slot may be confirmed: everything before it is durable at the destination.
    pub fn confirmed_lsn(&self) -> Lsn {
        self.confirmed_lsn
    }

    /// What was handed to the sink up to here is safe once it is all durable.
    pub fn handed_lsn(&self) -> Lsn {
        self.handed_lsn
    }

    /// Whether every delivery has its receipt.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Bytes of the deliveries in flight.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// How long the oldest delivery has been waiting for its receipt.
    pub fn oldest_unconfirmed(&self, now: Duration) -> Duration {
        self.in_flight.front().map_or(Duration::ZERO, |oldest| now.saturating_sub(oldest.delivered_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    #[should_panic(expected = "receipts come in the order of delivery")]
    fn a_receipt_out_of_order_is_a_bug() {
        let mut ledger = Ledger::new(Lsn(1));
        ledger.deliver(Lsn(2), 1, NOW);
        let second = ledger.deliver(Lsn(3), 1, NOW);
        ledger.settle(second, Lsn(3));
    }

    #[test]
    #[should_panic(expected = "safe_lsn went back")]
    fn a_delivery_never_goes_back() {
        let mut ledger = Ledger::new(Lsn(5));
        ledger.deliver(Lsn(4), 1, NOW);
    }

    proptest! {
        /// Against an obvious model: a list of (safe_lsn, is it durable).
        #[test]
        fn never_confirms_past_what_is_in_flight(steps in prop::collection::vec((0u64..3, 0u64..50, any::<bool>()), 1..200)) {
            let mut ledger = Ledger::new(Lsn(100));
            let mut model: Vec<(u64, Lsn, u64, bool)> = vec![];
            let mut last = 100;
            for (grow, bytes, settle) in steps {
                if settle {
                    if let Some(entry) = model.iter_mut().find(|entry| !entry.3) {
                        entry.3 = true;
                        ledger.settle(entry.0, entry.1);
                    }
                } else {
                    last += grow;
                    model.push((ledger.deliver(Lsn(last), bytes, NOW), Lsn(last), bytes, false));
                }
                let expected = model.iter().take_while(|entry| entry.3).last().map_or(Lsn(100), |entry| entry.1);
                prop_assert_eq!(ledger.confirmed_lsn(), expected);
                let bytes: u64 = model.iter().filter(|entry| !entry.3).map(|entry| entry.2).sum();
                prop_assert_eq!(ledger.in_flight_bytes(), bytes);
                prop_assert_eq!(ledger.is_empty(), model.iter().all(|entry| entry.3));
            }
        }
    }
}
