//! Encoding: [`Message`] to bytes, as the server's output plugin does it.
//!
//! Comes in: a message. Goes out: its bytes, which [`decode`](super::decode()) turns into an equal message.
//! For property tests, fuzzing and scripted servers; nothing in a running pipeline encodes a message.

use super::{Message, Old, Relation, Tuple, Value};

impl Message<'_> {
    /// Appends the message's bytes.
    ///
    /// # Panics
    /// On what no server can say: a name with a NUL, more columns or bytes than the protocol can count.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Message::Begin { final_lsn, commit_time, xid } => {
                out.push(b'B');
                out.extend_from_slice(&final_lsn.0.to_be_bytes());
                out.extend_from_slice(&commit_time.0.to_be_bytes());
                out.extend_from_slice(&xid.to_be_bytes());
            }
            Message::Commit { commit_lsn, end_lsn, commit_time } => {
                out.extend_from_slice(b"C\0");
                out.extend_from_slice(&commit_lsn.0.to_be_bytes());
                out.extend_from_slice(&end_lsn.0.to_be_bytes());
                out.extend_from_slice(&commit_time.0.to_be_bytes());
            }
            Message::Origin { commit_lsn, name } => {
                out.push(b'O');
                out.extend_from_slice(&commit_lsn.0.to_be_bytes());
                write_cstr(name, out);
            }
            Message::Relation(relation) => write_relation(relation, out),
            Message::Type { oid, namespace, name } => {
                out.push(b'Y');
                out.extend_from_slice(&oid.to_be_bytes());
                write_namespace(namespace, out);
                write_cstr(name, out);
            }
            Message::Insert { relation, new } => {
                out.push(b'I');
                out.extend_from_slice(&relation.to_be_bytes());
                write_marked(b'N', *new, out);
            }
            Message::Update { relation, old, new } => {
                out.push(b'U');
                out.extend_from_slice(&relation.to_be_bytes());
                if let Some(old) = old {
                    write_old(old, out);
                }
                write_marked(b'N', *new, out);
            }
            Message::Delete { relation, old } => {
                out.push(b'D');
                out.extend_from_slice(&relation.to_be_bytes());
                write_old(old, out);
            }
            Message::Truncate { cascade, restart_identity, relations } => {
                out.push(b'T');
                write_length(relations.len(), out);
                out.push(u8::from(*cascade) | u8::from(*restart_identity) << 1);
                relations.iter().for_each(|oid| out.extend_from_slice(&oid.to_be_bytes()));
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                out.extend_from_slice(&[b'M', u8::from(*transactional)]);
                out.extend_from_slice(&lsn.0.to_be_bytes());
                write_cstr(prefix, out);
                write_length(content.len(), out);
                out.extend_from_slice(content);
            }
        }
    }
}

/// Appends the TupleData of `values`; [`Tuple::decode`] reads it back.
///
/// # Panics
/// With more values or bytes than the protocol can count.
pub fn write_tuple(values: &[Value<'_>], out: &mut Vec<u8>) {
    write_count(values.len(), out);
    for value in values {
        let (kind, bytes) = match *value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(bytes) => (b't', Some(bytes)),
            Value::Binary(bytes) => (b'b', Some(bytes)),
        };
        out.push(kind);
        if let Some(bytes) = bytes {
            write_length(bytes.len(), out);
            out.extend_from_slice(bytes);
        }
    }
}

fn write_old(old: &Old<'_>, out: &mut Vec<u8>) {
    match *old {
        Old::Key(tuple) => write_marked(b'K', tuple, out),
        Old::Full(tuple) => write_marked(b'O', tuple, out),
    }
}

fn write_marked(mark: u8, tuple: Tuple<'_>, out: &mut Vec<u8>) {
    out.push(mark);
    write_count(tuple.len(), out);
    out.extend_from_slice(tuple.column_bytes());
}

fn write_relation(relation: &Relation, out: &mut Vec<u8>) {
    out.push(b'R');
    out.extend_from_slice(&relation.oid.to_be_bytes());
    write_namespace(&relation.namespace, out);
    write_cstr(&relation.name, out);
    out.push(relation.replica_identity.letter());
    write_count(relation.columns.len(), out);
    for column in &relation.columns {
        out.push(column.key.into());
        write_cstr(&column.name, out);
        out.extend_from_slice(&column.type_oid.to_be_bytes());
        out.extend_from_slice(&column.type_modifier.to_be_bytes());
    }
}

fn write_namespace(name: &str, out: &mut Vec<u8>) {
    write_cstr(if name == "pg_catalog" { "" } else { name }, out);
}

fn write_cstr(text: &str, out: &mut Vec<u8>) {
    assert!(!text.contains('\0'), "a name holds no NUL");
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn write_count(count: usize, out: &mut Vec<u8>) {
    let count = i16::try_from(count).expect("a table has at most 1600 columns");
    out.extend_from_slice(&count.to_be_bytes());
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    let length = i32::try_from(length).expect("a value is at most 1 GB");
    out.extend_from_slice(&length.to_be_bytes());
}
