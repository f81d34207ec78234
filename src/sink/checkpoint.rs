//! The checkpoint: what a destination stores in the same transaction as the data.
//!
//! Two kinds of record, so that a commit writes a few hundred bytes however many tables there are:
//! one [`Checkpoint`] for the pipeline, and a [`TableState`] for every table whose copy has begun.
//! Names of fields are stored; change them only with a new `v` (docs/decisions/exactly-once.md).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::change::Position;
use crate::lsn::Lsn;
use crate::route::batch::Progress;
use crate::route::ranges::Ranges;
use crate::wal::timestamp::Timestamp;

/// The version of the stored form.
pub const VERSION: u32 = 1;

/// Which source and which slot a checkpoint speaks of: compared on every start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `system_identifier` of the source's cluster.
    pub system_identifier: String,
    /// The timeline that the positions are on.
    pub timeline: u32,
    /// OID of the source's database.
    pub database_oid: u32,
    /// The slot's name.
    pub slot: String,
    /// Fingerprint of the options that decide about messages and so about ordinals.
    pub options: String,
}

/// How far the pipeline has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// "Snapshot pending": the slot may or may not exist; nothing has been copied.
    #[default]
    Pending,
    /// The slot exists; tables are being copied.
    Snapshot,
    /// The initial copy is done.
    Streaming,
}

/// The pipeline's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// [`VERSION`].
    pub v: u32,
    /// See [`Identity`].
    #[serde(flatten)]
    pub identity: Identity,
    /// See [`Phase`].
    pub phase: Phase,
    /// Everything at or before `(commit_lsn, ordinal)` is in the destination.
    pub commit_lsn: Lsn,
    /// See `commit_lsn`.
    pub ordinal: u64,
    /// How far the source may have been told "flushed".
    pub safe_lsn: Lsn,
    /// Transaction id of the last transaction.
    pub xid: u32,
    /// Commit time of the last transaction, microseconds since 2000-01-01 UTC.
    pub commit_time: i64,
}

impl Checkpoint {
    /// The first record of a pipeline, written before its slot is made.
    pub fn pending(identity: Identity) -> Self {
        Checkpoint {
            v: VERSION,
            identity,
            phase: Phase::Pending,
            commit_lsn: Lsn::ZERO,
            ordinal: 0,
            safe_lsn: Lsn::ZERO,
            xid: 0,
            commit_time: 0,
        }
    }

    /// The position up to which everything is in the destination.
    pub fn position(&self) -> Position {
        Position { commit_lsn: self.commit_lsn, ordinal: self.ordinal }
    }

    /// The part of it that batches move.
    pub fn progress(&self) -> Progress {
        Progress {
            phase: self.phase,
            position: self.position(),
            safe_lsn: self.safe_lsn,
            xid: self.xid,
            commit_time: Timestamp(self.commit_time),
        }
    }

    /// Whether it stands inside a source transaction of which only a part is in the destination.
    pub fn is_inside_transaction(&self) -> bool {
        self.ordinal > 0 && self.safe_lsn <= self.commit_lsn
    }

    /// Moves it forward.
    pub fn advance(&mut self, progress: &Progress) {
        assert!(progress.position >= self.position(), "a checkpoint never goes back");
        assert!(progress.safe_lsn >= self.safe_lsn, "safe_lsn never goes back");
        self.phase = progress.phase;
        self.commit_lsn = progress.position.commit_lsn;
        self.ordinal = progress.position.ordinal;
        self.safe_lsn = progress.safe_lsn;
        self.xid = progress.xid;
        self.commit_time = progress.commit_time.0;
    }
}

/// The copy of one table: begun, or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// OID of the table (of a partitioned table that is taken as one: of its root).
    pub oid: u32,
    /// Its schema, when this was written.
    pub schema: String,
    /// Its name, when this was written.
    pub table: String,
    /// Columns of its primary key, when this was written: under REPLICA IDENTITY FULL the stream does
    /// not tell, and a table that was dropped since is in no catalog.
    #[serde(default)]
    pub key: Vec<String>,
    /// What the rule selected when this was written: with another selection it is copied again. On the hub the filter;
    /// on a replica also the table's name there, its columns and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<String>,
    /// Of a leaf that was taken as a table of its own, schema and name of its root, when this was written: whose rule takes
    /// it no catalog tells any more once it is detached or dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<(String, String)>,
    /// The consistent point of the snapshot that it was copied from: changes of transactions with a
    /// commit LSN below it are in the copy.
    pub copied_at: Lsn,
    /// Whether the copy is complete; a copy that is not is made again as a whole.
    pub done: bool,
    /// Rows copied.
    pub rows: u64,
    /// It is copied in ranges of its key, in place of `copied_at`: only on a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Ranges>,
    /// Why the stream leaves it out, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Parked>,
    /// What the source's catalog said of it when it was copied, or last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
}

impl TableState {
    /// Nothing of it is copied, whatever was before.
    pub fn undone(&self) -> TableState {
        TableState { done: false, ranges: None, ..self.clone() }
    }

    /// Whether the stream's changes of it are applied, at least of some ranges.
    pub fn is_followed(&self) -> bool {
        self.done || self.ranges.as_ref().is_some_and(|ranges| !ranges.finished.is_empty())
    }

    /// Why the stream leaves it out; `None`: it does not, or a copy tries to bring it back.
    pub fn parked(&self) -> Option<&Parked> {
        self.parked.as_ref().filter(|parked| !parked.is_tried)
    }
}

/// What the source's catalog says of a table, as far as it tells of changes that are not in the WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The number of its file, by its own OID; of a partitioned table, those of its leaves.
    pub files: BTreeMap<u32, u32>,
    /// Its columns, by number.
    pub columns: BTreeMap<i16, ShapeColumn>,
}

/// A column of a [`Shape`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeColumn {
    /// Its name.
    pub name: String,
    /// OID of its type.
    #[serde(rename = "type")]
    pub type_oid: u32,
    /// The transaction that defined it last.
    pub defined_by: i64,
    /// Rows of before it have a value in it that no row holds.
    #[serde(rename = "missing", default, skip_serializing_if = "std::ops::Not::not")]
    pub has_missing: bool,
}

/// A table that its replica could not follow, and that only a copy brings back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// What was wrong.
    pub reason: String,
    /// What mends it, where that is known.
    pub remedy: Option<String>,
    /// When it was parked, seconds since 1970.
    pub since: u64,
    /// A fingerprint of the table's definitions then: with another one it is tried again. Empty: the source or the rules
    /// do not have the table any more, and only what is left of it in the stream is left out.
    pub definition: String,
    /// How often it was tried with this definition.
    pub tries: u32,
    /// When it is tried again whatever its definition, seconds since 1970.
    pub retry_at: u64,
    /// A copy tries to bring it back.
    pub is_tried: bool,
}

/// All that a destination has stored about a pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// `None`: the destination has never heard of the pipeline.
    pub checkpoint: Option<Checkpoint>,
    /// By OID.
    pub tables: BTreeMap<u32, TableState>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            system_identifier: "7301234567890123456".into(),
            timeline: 1,
            database_oid: 16384,
            slot: "walgate_hub".into(),
            options: "00000000".into(),
        }
    }

    #[test]
    fn stored_form_round_trips() {
        let mut checkpoint = Checkpoint::pending(identity());
        let position = Position { commit_lsn: Lsn(0x193_B748), ordinal: 6 };
        checkpoint.advance(&Progress {
            phase: Phase::Streaming,
            position,
            safe_lsn: Lsn(0x193_B700),
            xid: 757,
            commit_time: Timestamp(5),
        });
        let text = serde_json::to_string(&checkpoint).expect("plain data");
        assert!(text.contains("\"commit_lsn\":\"0/193B748\""), "{text}");
        assert_eq!(serde_json::from_str::<Checkpoint>(&text).expect("its own form"), checkpoint);
        assert!(checkpoint.is_inside_transaction());
    }
}
