//! What decoder and encoder promise, for any message and for any bytes.

use proptest::prelude::*;

use super::*;
use crate::wal::cursor::{DecodeError, Reason};

/// A message that owns its parts, so that proptest can make and shrink it.
#[derive(Clone, Debug)]
enum Model {
    Begin(u64, i64, u32),
    Commit(u64, u64, i64),
    Origin(u64, String),
    Relation(Relation),
    Type(u32, String, String),
    Insert(u32, Row),
    Update(u32, Option<(bool, Row)>, Row),
    Delete(u32, bool, Row),
    Truncate(bool, bool, Vec<u32>),
    Logical(bool, u64, String, Vec<u8>),
}

type Row = Vec<Cell>;

#[derive(Clone, Debug)]
enum Cell {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Cell {
    fn value(&self) -> Value<'_> {
        match self {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Text(bytes) => Value::Text(bytes),
            Cell::Binary(bytes) => Value::Binary(bytes),
        }
    }
}

fn tuple_bytes(row: &Row) -> Vec<u8> {
    let values: Vec<_> = row.iter().map(Cell::value).collect();
    let mut bytes = Vec::new();
    write_tuple(&values, &mut bytes);
    bytes
}

impl Model {
    /// Gives the message to `check`; the tuples borrow what is encoded here.
    fn with_message<T>(&self, check: impl FnOnce(Message<'_>) -> T) -> T {
        let empty = Row::new();
        let (old_row, new_row) = match self {
            Model::Insert(_, new) | Model::Update(_, None, new) => (&empty, new),
            Model::Update(_, Some((_, old)), new) => (old, new),
            Model::Delete(_, _, old) => (old, &empty),
            _ => (&empty, &empty),
        };
        let (old_bytes, new_bytes) = (tuple_bytes(old_row), tuple_bytes(new_row));
        let old_tuple = Tuple::decode(&old_bytes).expect("just encoded");
        let new = Tuple::decode(&new_bytes).expect("just encoded");
        let old = |full: bool| if full { Old::Full(old_tuple) } else { Old::Key(old_tuple) };
        let oids: Vec<u8> = match self {
            Model::Truncate(_, _, oids) => oids.iter().flat_map(|oid| oid.to_be_bytes()).collect(),
            _ => Vec::new(),
        };
        check(match self {
            &Model::Begin(lsn, time, xid) => {
                Message::Begin { final_lsn: Lsn(lsn), commit_time: Timestamp(time), xid }
            }
            &Model::Commit(lsn, end, time) => {
                Message::Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_time: Timestamp(time) }
            }
            Model::Origin(lsn, name) => Message::Origin { commit_lsn: Lsn(*lsn), name },
            Model::Relation(relation) => Message::Relation(relation.clone()),
            Model::Type(oid, namespace, name) => Message::Type { oid: *oid, namespace, name },
            &Model::Insert(relation, _) => Message::Insert { relation, new },
            &Model::Update(relation, ref before, _) => {
                Message::Update { relation, old: before.as_ref().map(|(full, _)| old(*full)), new }
            }
            &Model::Delete(relation, full, _) => Message::Delete { relation, old: old(full) },
            &Model::Truncate(cascade, restart_identity, _) => {
                Message::Truncate { cascade, restart_identity, relations: Relations::new(&oids) }
            }
            Model::Logical(transactional, lsn, prefix, content) => {
                Message::Logical { transactional: *transactional, lsn: Lsn(*lsn), prefix, content }
            }
        })
    }
}

fn row() -> impl Strategy<Value = Row> {
    let cell = prop_oneof![
        Just(Cell::Null),
        Just(Cell::Unchanged),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Cell::Text),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Cell::Binary),
    ];
    prop::collection::vec(cell, 0..12)
}

fn name() -> impl Strategy<Value = String> {
    "[^\0]{1,20}"
}

fn relation() -> impl Strategy<Value = Relation> {
    let identity = prop::sample::select(vec![
        ReplicaIdentity::Default,
        ReplicaIdentity::Nothing,
        ReplicaIdentity::Full,
        ReplicaIdentity::Index,
    ]);
    let column = (any::<bool>(), name(), any::<u32>(), any::<i32>()).prop_map(
        |(key, name, type_oid, type_modifier)| RelationColumn { key, name, type_oid, type_modifier },
    );
    (any::<u32>(), name(), name(), identity, prop::collection::vec(column, 0..8)).prop_map(
        |(oid, namespace, name, replica_identity, columns)| Relation {
            oid,
            namespace,
            name,
            replica_identity,
            columns,
        },
    )
}

fn model() -> impl Strategy<Value = Model> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        any::<(u64, i64, u32)>().prop_map(|(a, b, c)| Model::Begin(a, b, c)),
        any::<(u64, u64, i64)>().prop_map(|(a, b, c)| Model::Commit(a, b, c)),
        (any::<u64>(), name()).prop_map(|(a, b)| Model::Origin(a, b)),
        relation().prop_map(Model::Relation),
        (any::<u32>(), name(), name()).prop_map(|(a, b, c)| Model::Type(a, b, c)),
        (any::<u32>(), row()).prop_map(|(a, b)| Model::Insert(a, b)),
        (any::<u32>(), prop::option::of((any::<bool>(), row())), row())
            .prop_map(|(a, b, c)| Model::Update(a, b, c)),
        (any::<u32>(), any::<bool>(), row()).prop_map(|(a, b, c)| Model::Delete(a, b, c)),
        (any::<bool>(), any::<bool>(), prop::collection::vec(any::<u32>(), 0..6))
            .prop_map(|(a, b, c)| Model::Truncate(a, b, c)),
        (any::<bool>(), any::<u64>(), name(), bytes()).prop_map(|(a, b, c, d)| Model::Logical(a, b, c, d)),
    ]
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn refusal(payload: &[u8]) -> DecodeError {
    decode(payload).expect_err("must be refused")
}

proptest! {
    #[test]
    fn every_message_round_trips(model in model()) {
        model.with_message(|message| {
            let bytes = encoded(&message);
            prop_assert_eq!(decode(&bytes), Ok(message));
            Ok(())
        })?;
    }

    #[test]
    fn every_cut_is_an_error(model in model()) {
        let bytes = model.with_message(|message| encoded(&message));
        for cut in 0..bytes.len() {
            let error = refusal(&bytes[..cut]);
            prop_assert!(error.offset <= cut, "{}", error);
        }
    }

    #[test]
    fn every_leftover_is_an_error(model in model(), tail in prop::collection::vec(any::<u8>(), 1..5)) {
        let mut bytes = model.with_message(|message| encoded(&message));
        let end = bytes.len();
        bytes.extend(&tail);
        let error = refusal(&bytes);
        prop_assert_eq!((error.offset, error.reason), (end, Reason::Leftover(tail.len())));
    }

    #[test]
    fn tuples_give_back_their_values(row in row()) {
        let bytes = tuple_bytes(&row);
        let tuple = Tuple::decode(&bytes).expect("just encoded");
        let expected: Vec<_> = row.iter().map(Cell::value).collect();
        prop_assert_eq!(tuple.iter().collect::<Vec<_>>(), expected);
        prop_assert_eq!(tuple.len(), row.len());
        prop_assert_eq!(tuple.len_bytes(), bytes.len() - 2);
        let mut iter = tuple.iter();
        for left in (0..row.len()).rev() {
            iter.next();
            prop_assert_eq!(iter.len(), left);
        }
        prop_assert!(iter.next().is_none() && iter.next().is_none());
    }

    #[test]
    fn any_bytes_give_an_answer(kind in prop::sample::select(b"BCORYIUDTMSEcAbPKrp\0\xFF".as_slice()), mut bytes: Vec<u8>) {
        bytes.insert(0, kind);
        if let Ok(message) = decode(&bytes) {
            let again = encoded(&message);
            prop_assert_eq!(decode(&again), Ok(message));
        }
    }

    /// Nearly right is nearer to the edges than random: one byte of a good message is changed.
    #[test]
    fn any_flipped_byte_gives_an_answer(model in model(), at: prop::sample::Index, byte: u8) {
        let mut bytes = model.with_message(|message| encoded(&message));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = decode(&bytes) {
            let again = encoded(&message);
            prop_assert_eq!(decode(&again), Ok(message));
        }
    }
}

#[test]
fn layout_is_that_of_the_manual() {
    let commit = b"C\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03";
    assert_eq!(
        decode(commit),
        Ok(Message::Commit { commit_lsn: Lsn(1), end_lsn: Lsn(2), commit_time: Timestamp(3) })
    );
    let update = b"U\0\0\x40\0K\0\x02t\0\0\0\x017nN\0\x03t\0\0\0\x018ut\0\0\0\0";
    let Ok(Message::Update { relation: 16384, old: Some(Old::Key(key)), new }) = decode(update) else {
        panic!("{:?}", decode(update));
    };
    assert!(key.iter().eq([Value::Text(b"7"), Value::Null]));
    assert!(new.iter().eq([Value::Text(b"8"), Value::Unchanged, Value::Text(b"")]));

    let relation = b"R\0\0\x40\0\0t\0d\0\x01\x01id\0\0\0\0\x17\xFF\xFF\xFF\xFF";
    let columns = vec![RelationColumn { key: true, name: "id".into(), type_oid: 23, type_modifier: -1 }];
    assert_eq!(
        decode(relation),
        Ok(Message::Relation(Relation {
            oid: 16384,
            namespace: "pg_catalog".into(),
            name: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns,
        }))
    );
}

#[test]
fn later_protocols_are_refused_by_name() {
    for kind in *b"SEcAbPKrp" {
        assert_eq!(refusal(&[kind, 0, 0]).reason, Reason::NotNegotiated(kind));
    }
    let error = crate::error::Error::from(refusal(b"S"));
    assert!(error.is_definite() && error.hint().is_some_and(|hint| hint.contains("proto_version '1'")));
    assert_eq!(refusal(b"x").reason, Reason::UnexpectedType(b'x'));
    assert_eq!(refusal(b"").field, "type");
}

#[test]
fn refusals_name_the_field() {
    let cases: [(&[u8], &str, usize, Reason); 10] = [
        (b"I\0\0\0\x01N\xFF\xFF", "column count", 6, Reason::Negative(-1)),
        (b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFF", "column length", 9, Reason::Negative(-1)),
        (
            b"I\0\0\0\x01N\0\x01t\x7F\xFF\xFF\xFFx",
            "column value",
            13,
            Reason::Truncated { needed: 0x7FFF_FFFF, left: 1 },
        ),
        (b"I\0\0\0\x01N\0\x01x", "column kind", 8, Reason::UnexpectedType(b'x')),
        (b"I\0\0\0\x01K\0\0", "new tuple", 5, Reason::UnexpectedType(b'K')),
        (b"D\0\0\0\x01N\0\0", "old tuple", 5, Reason::UnexpectedType(b'N')),
        (b"C\x01", "flags", 1, Reason::UnknownFlags(1)),
        (b"R\0\0\0\x01a\0b\0x", "replica identity", 9, Reason::UnexpectedType(b'x')),
        (b"T\xFF\xFF\xFF\xFE\0", "relation count", 1, Reason::Negative(-2)),
        (b"M\0\0\0\0\0\0\0\0\x01p\0\x80\0\0\0", "content length", 12, Reason::Negative(i32::MIN)),
    ];
    for (payload, field, offset, reason) in cases {
        let error = refusal(payload);
        assert_eq!((error.field, error.offset, error.reason), (field, offset, reason), "{error}");
    }
}

#[test]
fn debug_shows_no_values() {
    let mut bytes = b"I\0\0\0\x01N".to_vec();
    write_tuple(&[Value::Text(b"secret"), Value::Null], &mut bytes);
    let shown = format!("{:?}", decode(&bytes).expect("just encoded"));
    assert_eq!(shown, "Insert(1, new: [Text(6 bytes), Null])");
}
