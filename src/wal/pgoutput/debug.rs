//! What a log or a panic may show of a message: everything but a row's values and a message's content.

use std::fmt;

use super::{Message, Old, Tuple, TupleIter, Value};

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Begin { final_lsn, commit_time, xid } => {
                write!(f, "Begin(final {final_lsn}, {commit_time}, xid {xid})")
            }
            Message::Commit { commit_lsn, end_lsn, commit_time } => {
                write!(f, "Commit({commit_lsn}, end {end_lsn}, {commit_time})")
            }
            Message::Origin { commit_lsn, name } => write!(f, "Origin({name:?}, {commit_lsn})"),
            Message::Relation(relation) => relation.fmt(f),
            Message::Type { oid, namespace, name } => write!(f, "Type({oid}, {namespace:?}.{name:?})"),
            Message::Insert { relation, new } => write!(f, "Insert({relation}, new: {new:?})"),
            Message::Update { relation, old, new } => {
                write!(f, "Update({relation}, old: {old:?}, new: {new:?})")
            }
            Message::Delete { relation, old } => write!(f, "Delete({relation}, old: {old:?})"),
            Message::Truncate { cascade, restart_identity, relations } => {
                write!(f, "Truncate({relations:?}, cascade: {cascade}, restart_identity: {restart_identity})")
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                let bytes = content.len();
                write!(f, "Logical({prefix:?} at {lsn}, transactional: {transactional}, {bytes} bytes)")
            }
        }
    }
}

impl fmt::Debug for Old<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Old::Key(tuple) => write!(f, "Key({tuple:?})"),
            Old::Full(tuple) => write!(f, "Full({tuple:?})"),
        }
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for TupleIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("Null"),
            Value::Unchanged => f.write_str("Unchanged"),
            Value::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Value::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}
