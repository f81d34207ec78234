//! Rows that cannot be held in `limits.memory_bytes_max`: refused, before they are received, with whose they are.
//!
//! Comes in: the error of a connection that was told a limit, with the row's beginning. Goes out: a definite error that
//! names table, key and size. Always holds: of the row only its key is told. A row is held twice, as it was received and as
//! the event that it becomes: that is where the limit comes from.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::wal::catalog::SourceTable;
use crate::wal::connection::Oversized;
use crate::wal::cursor::{Cursor, DecodeError};
use crate::wal::pgoutput::{Relation, ReplicaIdentity};
use crate::wal::sqlstate::source_of;

/// What the process takes without any row: up to 62 MiB were seen beside a row of 100 MiB.
const REST_BYTES: u64 = 64 << 20;
/// A row of this size may always be held.
const ROW_BYTES_MIN: u64 = 4 << 20;
/// Before the change in the payload of a stream's CopyData: a letter and three numbers.
const DATA_HEADER_BYTES: usize = 25;
/// Of a key's value, so much is told.
const VALUE_BYTES_MAX: usize = 64;

/// The largest row that fits, as PostgreSQL sends it.
pub fn row_bytes_max(memory_bytes_max: u64) -> usize {
    let bytes = (memory_bytes_max.saturating_sub(REST_BYTES) / 2).max(ROW_BYTES_MIN);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Names the change of the stream that is too large; `key_of`: the key's columns, by the table's OID. Other errors pass.
pub fn of_change(
    error: Error,
    relations: &HashMap<u32, Relation>,
    key_of: impl Fn(u32) -> Option<Vec<usize>>,
) -> Error {
    let Some(oversized) = source_of::<Oversized>(&error) else { return error };
    let change = oversized.head.get(DATA_HEADER_BYTES..).unwrap_or_default();
    let mut cursor = Cursor::new("beginning of a change", change);
    let relation = cursor.u8("type").and_then(|_| cursor.u32("relation")).ok();
    let relation = relation.and_then(|oid| relations.get(&oid));
    let Some(relation) = relation else { return refused("a message of the source", oversized) };
    let is_full = relation.replica_identity == ReplicaIdentity::Full;
    let flagged = || relation.columns.iter().enumerate().filter(|(_, column)| column.key && !is_full);
    let key = key_of(relation.oid).unwrap_or_else(|| flagged().map(|(at, _)| at).collect());
    let values = first_values(&mut cursor);
    let known = key
        .iter()
        .filter_map(|&at| Some((relation.columns.get(at)?.name.as_str(), values.get(at)?.clone()?)));
    let table = format!("{}.{}", relation.namespace, relation.name);
    refused(&named(&table, key.len(), known), oversized)
}

/// Names the row of a copy that is too large; `key`: its key's columns. Other errors pass.
pub fn of_copied_row(error: Error, table: &SourceTable, key: &[usize]) -> Error {
    let Some(oversized) = source_of::<Oversized>(&error) else { return error };
    let values: Vec<&[u8]> = oversized.head.split(|&byte| byte == b'\t').collect();
    // The last of them may be cut off.
    let whole = values.len() - 1;
    let value = |at: usize| values.get(at).filter(|_| at < whole).map(|value| shown(value));
    let known = key.iter().filter_map(|&at| Some((table.columns.get(at)?.name.as_str(), value(at)?)));
    refused(&named(&table.display_name(), key.len(), known), oversized)
}

fn refused(whose: &str, oversized: &Oversized) -> Error {
    let Oversized { bytes, bytes_max, .. } = oversized;
    let needed = u64::try_from(*bytes).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(REST_BYTES);
    Error::definite(format!(
        "{whose}: a row of {bytes} bytes, as PostgreSQL sends it, and limits.memory_bytes_max leaves room for {bytes_max}"
    ))
    .with_hint(format!("set limits.memory_bytes_max to {needed} or more; bytea is sent in twice its size"))
}

fn named<'k>(table: &str, columns: usize, known: impl Iterator<Item = (&'k str, String)>) -> String {
    let known: Vec<String> = known.map(|(column, value)| format!("{column} = {value}")).collect();
    match (columns, known.as_slice()) {
        (0, _) => format!("table {table}, which has no key"),
        (_, []) => format!("table {table}, whose key comes behind the large value"),
        (_, known) => format!("table {table}, {}", known.join(", ")),
    }
}

/// The values of the new row, or of the old one that comes before it, as far as they were received.
fn first_values(cursor: &mut Cursor<'_>) -> Vec<Option<String>> {
    let mut values = Vec::new();
    let mut read = || -> Result<(), DecodeError> {
        cursor.u8("which row")?;
        for _ in 0..cursor.count("columns")? {
            let value = match cursor.u8("kind of value")? {
                b't' => {
                    let length = cursor.length("length of a value")?;
                    Some(shown(cursor.bytes("value", length)?))
                }
                _ => None,
            };
            values.push(value);
        }
        Ok(())
    };
    // It ends where the beginning ends.
    let _ = read();
    values
}

fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value.get(..VALUE_BYTES_MAX).unwrap_or(value));
    if value.len() > VALUE_BYTES_MAX { format!("{text}...") } else { text.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::pgoutput::RelationColumn;

    fn relation(columns: &[(&str, bool)], replica_identity: ReplicaIdentity) -> Relation {
        let column = |&(name, key): &(&str, bool)| RelationColumn {
            name: name.into(),
            key,
            type_oid: 25,
            type_modifier: -1,
        };
        let columns = columns.iter().map(column).collect();
        Relation { oid: 7, namespace: "public".into(), name: "media".into(), replica_identity, columns }
    }

    fn oversized(change: &[u8]) -> Error {
        let head = [&[0; DATA_HEADER_BYTES][..], change].concat();
        Error::definite("a row").with_source(Oversized { bytes: 300_000_000, bytes_max: 1000, head })
    }

    #[test]
    fn a_change_is_named_by_what_was_received_of_it() {
        let insert = |values: &[&[u8]]| [&b"I\0\0\0\x07N\0\x03"[..], &values.concat()].concat();
        let (id, photo) = (&b"t\0\0\0\x0242"[..], &b"t\x10\0\0\0\\x0000"[..]);
        for (identity, columns, change, key, expected) in [
            (
                ReplicaIdentity::Default,
                [("id", true), ("photo", false), ("n", false)],
                insert(&[id, photo]),
                None,
                "table public.media, id = 42: a row of 300000000 bytes",
            ),
            (
                ReplicaIdentity::Full,
                [("id", true), ("photo", true), ("n", true)],
                insert(&[id, photo]),
                Some(vec![0]),
                "public.media, id = 42:",
            ),
            (
                ReplicaIdentity::Full,
                [("id", true), ("photo", true), ("n", true)],
                insert(&[id, photo]),
                None,
                "public.media, which has no key:",
            ),
            (
                ReplicaIdentity::Default,
                [("photo", false), ("id", true), ("n", false)],
                insert(&[photo]),
                None,
                "public.media, whose key comes behind the large value:",
            ),
        ] {
            let relations = HashMap::from([(7, relation(&columns, identity))]);
            let error = of_change(oversized(&change), &relations, |_| key.clone());
            assert!(error.is_definite() && error.to_string().contains(expected), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("667108864")), "{:?}", error.hint());
        }
        let unknown = of_change(oversized(b""), &HashMap::new(), |_| None);
        assert!(unknown.to_string().contains("300000000"), "{unknown}");
        let other = of_change(Error::transient("the network"), &HashMap::new(), |_| None);
        assert_eq!(other.to_string(), "the network");
    }

    #[test]
    fn a_row_is_held_twice() {
        assert_eq!(row_bytes_max(256 << 20), 96 << 20);
        assert_eq!(row_bytes_max(65_536), 4 << 20);
    }
}
