//! `BEGIN .. COMMIT` assembly: which transaction is open, and the position of its next change.
//!
//! Comes in: Begin, Commit, Origin and the counted messages, in the order of the stream. Goes out:
//! positions. Always holds: commit LSNs never go back; a counted message outside a transaction is
//! an error, except the non-transactional logical message, which comes at once and outside.

use super::Position;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::wal::timestamp::Timestamp;

/// The source transaction that is being received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Begin's `final_lsn`, the start of the commit record.
    pub commit_lsn: Lsn,
    /// When it committed on the source.
    pub commit_time: Timestamp,
    /// Its transaction id on the source.
    pub xid: u32,
    /// The replication origin that it was applied from, if any.
    pub origin: Option<String>,
    /// W3C trace context that the application set by a logical message `walgate.traceparent`.
    pub traceparent: Option<String>,
    counted: u64,
}

impl Transaction {
    /// Counts one message and says where it stands.
    pub fn next_position(&mut self) -> Position {
        self.counted += 1;
        Position::nth(self.commit_lsn, self.counted)
    }

    /// The position of the last counted message; of an empty transaction, just before its first.
    pub fn last_position(&self) -> Position {
        Position { commit_lsn: self.commit_lsn, ordinal: 2 * self.counted + 1 }
    }
}

/// The stream broke its own order: a bug of the server or of this reader, never data to guess about.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OutOfOrder {
    /// A Begin while a transaction was open.
    #[error("a transaction began at {second} while the one at {first} was open")]
    BeginInside {
        /// The open transaction's commit LSN.
        first: Lsn,
        /// The new Begin's commit LSN.
        second: Lsn,
    },
    /// A message that belongs into a transaction came outside of one.
    #[error("a {message} message came outside of a transaction, at {at}")]
    Outside {
        /// The message's name.
        message: &'static str,
        /// Where in the WAL.
        at: Lsn,
    },
    /// Begin and Commit do not speak of the same transaction.
    #[error("the commit of {committed} ended the transaction that began as {begun}")]
    OtherCommit {
        /// Begin's commit LSN.
        begun: Lsn,
        /// Commit's commit LSN.
        committed: Lsn,
    },
    /// A commit LSN before one that was already received on this connection.
    #[error("a transaction committed at {second} came after the one at {first}")]
    Backwards {
        /// The earlier received.
        first: Lsn,
        /// The one received now.
        second: Lsn,
    },
}

impl From<OutOfOrder> for Error {
    fn from(cause: OutOfOrder) -> Self {
        Error::definite("the stream is out of order").with_source(cause).with_hint(
            "report this with the server's version; nothing was confirmed past the last whole transaction",
        )
    }
}

/// The stream's transactions, one after the other.
#[derive(Debug, Default)]
pub struct Transactions {
    open: Option<Transaction>,
    last_commit_lsn: Lsn,
}

impl Transactions {
    /// A Begin message.
    ///
    /// # Errors
    /// When a transaction is open, or the commit LSN goes back.
    pub fn begin(&mut self, commit_lsn: Lsn, commit_time: Timestamp, xid: u32) -> Result<(), OutOfOrder> {
        if let Some(open) = &self.open {
            return Err(OutOfOrder::BeginInside { first: open.commit_lsn, second: commit_lsn });
        }
        if commit_lsn < self.last_commit_lsn {
            return Err(OutOfOrder::Backwards { first: self.last_commit_lsn, second: commit_lsn });
        }
        self.last_commit_lsn = commit_lsn;
        self.open =
            Some(Transaction { commit_lsn, commit_time, xid, origin: None, traceparent: None, counted: 0 });
        Ok(())
    }

    /// The open transaction, which a message of the kind `message` needs.
    ///
    /// # Errors
    /// When none is open.
    pub fn expect_open(&mut self, message: &'static str, at: Lsn) -> Result<&mut Transaction, OutOfOrder> {
        self.open.as_mut().ok_or(OutOfOrder::Outside { message, at })
    }

    /// Whether a transaction is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A Commit message: ends the open transaction and returns it.
    ///
    /// # Errors
    /// When none is open, or another one.
    pub fn commit(&mut self, commit_lsn: Lsn) -> Result<Transaction, OutOfOrder> {
        let open = self.open.take().ok_or(OutOfOrder::Outside { message: "Commit", at: commit_lsn })?;
        if open.commit_lsn != commit_lsn {
            return Err(OutOfOrder::OtherCommit { begun: open.commit_lsn, committed: commit_lsn });
        }
        Ok(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_within_a_transaction_and_starts_again_in_the_next() {
        let mut transactions = Transactions::default();
        transactions.begin(Lsn(10), Timestamp(0), 7).expect("none is open");
        let open = transactions.expect_open("Insert", Lsn(9)).expect("one is open");
        assert_eq!(open.next_position(), Position { commit_lsn: Lsn(10), ordinal: 2 });
        assert_eq!(open.next_position(), Position { commit_lsn: Lsn(10), ordinal: 4 });
        assert!(open.last_position() >= Position { commit_lsn: Lsn(10), ordinal: 4 }.insert_half());
        transactions.commit(Lsn(10)).expect("the same transaction");
        transactions.begin(Lsn(20), Timestamp(0), 8).expect("none is open");
        let position = transactions.expect_open("Insert", Lsn(19)).expect("one is open").next_position();
        assert_eq!(position, Position { commit_lsn: Lsn(20), ordinal: 2 });
    }

    #[test]
    fn refuses_a_broken_order() {
        let mut transactions = Transactions::default();
        assert!(matches!(transactions.expect_open("Insert", Lsn(1)), Err(OutOfOrder::Outside { .. })));
        assert!(matches!(transactions.commit(Lsn(1)), Err(OutOfOrder::Outside { .. })));
        transactions.begin(Lsn(10), Timestamp(0), 7).expect("none is open");
        assert!(matches!(transactions.begin(Lsn(20), Timestamp(0), 8), Err(OutOfOrder::BeginInside { .. })));
        assert!(matches!(transactions.commit(Lsn(11)), Err(OutOfOrder::OtherCommit { .. })));
        assert!(matches!(transactions.begin(Lsn(9), Timestamp(0), 8), Err(OutOfOrder::Backwards { .. })));
    }
}
