//! The output plugin's messages, protocol version 1: what PostgreSQL says about its transactions.
//!
//! Comes in: the payload of a data frame, or of a row of `pg_logical_slot_get_binary_changes`. Goes out: a
//! [`Message`] that borrows it. Always holds: row messages are decoded without allocation and their tuples
//! are checked once, so that reading a [`Tuple`] cannot fail; `Unchanged` is a value of its own, never a
//! null; no `Debug` shows a row's values. Manual: "Logical Replication Message Formats"; FIELD_NOTES 1, 3.

mod relation;
mod tuple;
mod decode;
mod encode;
mod debug;
#[cfg(test)]
mod tests;

pub use decode::decode;
pub use encode::write_tuple;
pub use relation::{Relation, RelationColumn, Relations, ReplicaIdentity};
pub use tuple::{Tuple, TupleIter, Value};

use crate::lsn::Lsn;
use crate::wal::timestamp::Timestamp;

/// One message of the stream.
#[derive(Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A committed transaction follows.
    Begin {
        /// Where its commit record starts: the `commit_lsn` of every position in it.
        final_lsn: Lsn,
        /// When it was committed.
        commit_time: Timestamp,
        /// Its id, without epoch.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// The same as Begin's `final_lsn`.
        commit_lsn: Lsn,
        /// Where its commit record ends: what the slot may be confirmed at.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: Timestamp,
    },
    /// The transaction was replicated from elsewhere.
    Origin {
        /// The commit's position over there.
        commit_lsn: Lsn,
        /// The origin's name here.
        name: &'a str,
    },
    /// A table's definition as of the changes that follow; sent again at many occasions (FIELD_NOTES 3.1).
    Relation(Relation),
    /// The name of a type that is not built in, before the relation that uses it.
    Type {
        /// The type's oid.
        oid: u32,
        /// Its schema.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The table's oid.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// The table's oid.
        relation: u32,
        /// The old row or key, where one was sent. A key here does not say that it changed (FIELD_NOTES 3.3).
        old: Option<Old<'a>>,
        /// The row as it is now; TOASTed values that did not change are [`Value::Unchanged`].
        new: Tuple<'a>,
    },
    /// A row that is gone.
    Delete {
        /// The table's oid.
        relation: u32,
        /// What is known of it.
        old: Old<'a>,
    },
    /// Emptied tables.
    Truncate {
        /// `CASCADE` was given.
        cascade: bool,
        /// `RESTART IDENTITY` was given.
        restart_identity: bool,
        /// The tables' oids, the published ones only.
        relations: Relations<'a>,
    },
    /// What `pg_logical_emit_message` was given.
    Logical {
        /// Whether it belongs to the transaction; if not, it comes outside Begin and Commit (FIELD_NOTES 3.8).
        transactional: bool,
        /// Its own position.
        lsn: Lsn,
        /// Who it is for.
        prefix: &'a str,
        /// Any bytes.
        content: &'a [u8],
    },
}

/// What is known of a row before its change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Old<'a> {
    /// `K`: the replica identity's columns; the others are null, which means "not sent".
    Key(Tuple<'a>),
    /// `O`: the whole row, under REPLICA IDENTITY FULL.
    Full(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// The tuple of either kind.
    pub fn tuple(&self) -> Tuple<'a> {
        match *self {
            Old::Key(tuple) | Old::Full(tuple) => tuple,
        }
    }
}
