//! Decoding: bytes to [`Message`].
//!
//! Comes in: one message's bytes, complete. Goes out: the message, or the error that names its field. Always
//! holds: all bytes are used; nothing is allocated for a row; what protocol version 1 does not have is an
//! error, never skipped. Manual: "Logical Replication Message Formats".

use super::{Message, Old, Relation, RelationColumn, Relations, ReplicaIdentity, Tuple};
use crate::wal::cursor::{Cursor, DecodeError, Reason};

/// A Relation's column: flags, an empty name's NUL, type and modifier.
const COLUMN_BYTES_MIN: usize = 1 + 1 + 4 + 4;

/// Reads one message.
#[inline]
pub fn decode(payload: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut cursor = Cursor::new("pgoutput", payload);
    match cursor.u8("type")? {
        b'I' => insert(cursor.named("Insert")),
        b'U' => update(cursor.named("Update")),
        b'D' => delete(cursor.named("Delete")),
        b'B' => begin(cursor.named("Begin")),
        b'C' => commit(cursor.named("Commit")),
        b'O' => origin(cursor.named("Origin")),
        b'R' => relation(cursor.named("Relation")),
        b'Y' => type_name(cursor.named("Type")),
        b'T' => truncate(cursor.named("Truncate")),
        b'M' => logical(cursor.named("Message")),
        later @ (b'S' | b'E' | b'c' | b'A' | b'b' | b'P' | b'K' | b'r' | b'p') => {
            Err(cursor.error("type", 0, Reason::NotNegotiated(later)))
        }
        other => Err(cursor.error("type", 0, Reason::UnexpectedType(other))),
    }
}

fn insert(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let relation = cursor.u32("relation")?;
    let new = new_tuple(&mut cursor)?;
    cursor.finish()?;
    Ok(Message::Insert { relation, new })
}

fn update(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let relation = cursor.u32("relation")?;
    let old = match cursor.remaining().first() {
        Some(b'N') | None => None,
        Some(_) => Some(old_tuple(&mut cursor)?),
    };
    let new = new_tuple(&mut cursor)?;
    cursor.finish()?;
    Ok(Message::Update { relation, old, new })
}

fn delete(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let relation = cursor.u32("relation")?;
    let old = old_tuple(&mut cursor)?;
    cursor.finish()?;
    Ok(Message::Delete { relation, old })
}

#[inline]
fn new_tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
    let at = cursor.offset();
    match cursor.u8("new tuple")? {
        b'N' => Tuple::read(cursor),
        other => Err(cursor.error("new tuple", at, Reason::UnexpectedType(other))),
    }
}

#[inline]
fn old_tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Old<'a>, DecodeError> {
    let at = cursor.offset();
    match cursor.u8("old tuple")? {
        b'K' => Tuple::read(cursor).map(Old::Key),
        b'O' => Tuple::read(cursor).map(Old::Full),
        other => Err(cursor.error("old tuple", at, Reason::UnexpectedType(other))),
    }
}

fn begin(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let message = Message::Begin {
        final_lsn: cursor.lsn("final lsn")?,
        commit_time: cursor.timestamp("commit time")?,
        xid: cursor.u32("xid")?,
    };
    cursor.finish()?;
    Ok(message)
}

fn commit(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    cursor.flags("flags", 0)?;
    let message = Message::Commit {
        commit_lsn: cursor.lsn("commit lsn")?,
        end_lsn: cursor.lsn("end lsn")?,
        commit_time: cursor.timestamp("commit time")?,
    };
    cursor.finish()?;
    Ok(message)
}

fn origin(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let message = Message::Origin { commit_lsn: cursor.lsn("commit lsn")?, name: cursor.cstr("name")? };
    cursor.finish()?;
    Ok(message)
}

fn relation(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let oid = cursor.u32("oid")?;
    let namespace = namespace(&mut cursor)?.to_owned();
    let name = cursor.cstr("name")?.to_owned();
    let at = cursor.offset();
    let letter = cursor.u8("replica identity")?;
    let replica_identity = ReplicaIdentity::from_letter(letter)
        .ok_or_else(|| cursor.error("replica identity", at, Reason::UnexpectedType(letter)))?;
    let count = cursor.count("column count")?;
    // The count is the sender's word: no more is reserved than the bytes that came can hold.
    let mut columns = Vec::with_capacity(count.min(cursor.remaining().len() / COLUMN_BYTES_MIN));
    for _ in 0..count {
        columns.push(RelationColumn {
            key: cursor.flag("column flags")?,
            name: cursor.cstr("column name")?.to_owned(),
            type_oid: cursor.u32("column type")?,
            type_modifier: cursor.i32("column type modifier")?,
        });
    }
    cursor.finish()?;
    Ok(Message::Relation(Relation { oid, namespace, name, replica_identity, columns }))
}

fn type_name(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let message = Message::Type {
        oid: cursor.u32("oid")?,
        namespace: namespace(&mut cursor)?,
        name: cursor.cstr("name")?,
    };
    cursor.finish()?;
    Ok(message)
}

/// A schema's name. `pg_catalog` is sent as an empty one.
fn namespace<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, DecodeError> {
    match cursor.cstr("namespace")? {
        "" => Ok("pg_catalog"),
        name => Ok(name),
    }
}

fn truncate(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let at = cursor.offset();
    let count = cursor.length("relation count")?;
    let options = cursor.flags("options", 0b11)?;
    let oids_bytes = count.checked_mul(4).ok_or_else(|| {
        cursor.error(
            "relation count",
            at,
            Reason::Truncated { needed: usize::MAX, left: cursor.remaining().len() },
        )
    })?;
    let relations = Relations::new(cursor.bytes("relations", oids_bytes)?);
    cursor.finish()?;
    Ok(Message::Truncate { cascade: options & 1 != 0, restart_identity: options & 2 != 0, relations })
}

fn logical(mut cursor: Cursor<'_>) -> Result<Message<'_>, DecodeError> {
    let transactional = cursor.flag("flags")?;
    let lsn = cursor.lsn("lsn")?;
    let prefix = cursor.cstr("prefix")?;
    let length = cursor.length("content length")?;
    let content = cursor.bytes("content", length)?;
    cursor.finish()?;
    Ok(Message::Logical { transactional, lsn, prefix, content })
}
