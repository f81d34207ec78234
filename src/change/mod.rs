//! Messages in, changes with positions out.
//!
//! A [`Position`] is `(commit_lsn, ordinal)`: the total order of changes and the idempotency key of
//! everything downstream. It is identical on every replay because it depends on nothing but the
//! order of the messages of one transaction, which pgoutput reproduces (EXACTLY_ONCE.md,
//! "Positions"). What counts: every row change, every single table of a TRUNCATE and every logical
//! message, whether or not a rule takes it; relation and type messages do not. The n-th has ordinal
//! `2n`, the insert half of a key change `2n + 1`.

mod transaction;

pub use transaction::{OutOfOrder, Transaction, Transactions};

use crate::lsn::Lsn;
use crate::wal::pgoutput::Value;

/// Where a change stands in the total order of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Begin's `final_lsn`: the start of the commit record.
    pub commit_lsn: Lsn,
    /// `2n` for the n-th change of the transaction (n >= 1), `2n + 1` for the insert half of a key
    /// change, 0 for a non-transactional message at its own LSN.
    pub ordinal: u64,
}

impl Position {
    /// The position of the n-th counted message of the transaction that commits at `commit_lsn`.
    pub fn nth(commit_lsn: Lsn, n: u64) -> Self {
        assert!(n >= 1, "ordinals count from one");
        Position { commit_lsn, ordinal: 2 * n }
    }

    /// A non-transactional message at `lsn`.
    pub fn outside_transactions(lsn: Lsn) -> Self {
        Position { commit_lsn: lsn, ordinal: 0 }
    }

    /// The insert half of the key change whose delete half stands here.
    #[must_use]
    pub fn insert_half(self) -> Self {
        assert!(self.ordinal.is_multiple_of(2) && self.ordinal > 0, "only a delete half has an insert half");
        Position { ordinal: self.ordinal + 1, ..self }
    }
}

/// The values of one row in the order of its relation's columns, borrowed from the received bytes.
/// Rows of up to 32 columns live on the stack.
pub type Cells<'a> = smallvec::SmallVec<[Value<'a>; 32]>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_outside_transactions_precedes_the_transaction_at_the_same_lsn() {
        let lsn = Lsn(0x100);
        assert!(Position::outside_transactions(lsn) < Position::nth(lsn, 1));
        assert!(Position::nth(lsn, 1) < Position::nth(lsn, 1).insert_half());
        assert!(Position::nth(lsn, 1).insert_half() < Position::nth(lsn, 2));
        assert!(Position::nth(lsn, u64::MAX / 4) < Position::outside_transactions(Lsn(0x101)));
    }
}
