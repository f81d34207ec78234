//! What a Relation message says of a table, and the tables that a Truncate lists.
//!
//! Comes in: nothing, these are plain values. Always holds: a [`Relation`] owns its names, because it outlives
//! the bytes it came in; two are equal exactly when the server described the table in the same words.

use std::fmt;

/// A table's definition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relation {
    /// The table's oid, by which row messages refer to it.
    pub oid: u32,
    /// Its schema.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What of an old row is in the WAL.
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in the order of every tuple.
    pub columns: Vec<RelationColumn>,
}

/// A published column.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelationColumn {
    /// Part of the replica identity. Under `FULL` every column is: it is not the primary key then.
    pub key: bool,
    /// Its name.
    pub name: String,
    /// Its type's oid.
    pub type_oid: u32,
    /// Its type's modifier, -1 for none.
    pub type_modifier: i32,
}

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is one.
    Default,
    /// `n`: nothing.
    Nothing,
    /// `f`: all columns.
    Full,
    /// `i`: a unique index.
    Index,
}

impl ReplicaIdentity {
    /// From PostgreSQL's letter.
    pub fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'd' => Some(Self::Default),
            b'n' => Some(Self::Nothing),
            b'f' => Some(Self::Full),
            b'i' => Some(Self::Index),
            _ => None,
        }
    }

    /// PostgreSQL's letter.
    pub fn letter(self) -> u8 {
        match self {
            Self::Default => b'd',
            Self::Nothing => b'n',
            Self::Full => b'f',
            Self::Index => b'i',
        }
    }
}

/// The oids of the tables that one TRUNCATE emptied. Borrowed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Relations<'a> {
    oids: &'a [[u8; 4]],
}

impl<'a> Relations<'a> {
    /// From big-endian oids one after the other; what is not a whole one is no part of them.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Relations { oids: bytes.as_chunks().0 }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.oids.len()
    }

    /// Whether there are none, which PostgreSQL does not send.
    pub fn is_empty(&self) -> bool {
        self.oids.is_empty()
    }

    /// The oids, in the order sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

impl fmt::Debug for Relations<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
