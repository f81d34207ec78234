//! The model's tables: each a kind of replica identity, and what a naive reader expects of a change.
//!
//! Comes in: chance. Goes out: a [`Draft`], one message of the output plugin as bytes, with the
//! events that must come of it, found by construction (the generator knows whether it has changed a
//! key) and not by the router's rules.

use super::dice::Dice;
use crate::config::{ColumnSet, Mode, TableRule};
use crate::route::name::TablePattern;
use crate::wal::pgoutput::{
    Message, Old, Relation, RelationColumn, ReplicaIdentity, Tuple, Value, decode, write_tuple,
};

/// A key of one column, taken from the beginning.
pub(super) const ORDERS: u32 = 10;
/// A key of two columns, one of them TOASTable; copied in the middle of the WAL.
pub(super) const LINES: u32 = 11;
/// REPLICA IDENTITY FULL with a primary key; the rule leaves out the column `big`.
pub(super) const WHOLE: u32 = 12;
/// No key: inserts and truncates only.
pub(super) const LOG: u32 = 13;
/// REPLICA IDENTITY FULL without a key.
pub(super) const LOOSE: u32 = 14;
/// `mode = "off"`.
pub(super) const SECRET: u32 = 15;
pub(super) const ALL: [u32; 6] = [ORDERS, LINES, WHOLE, LOG, LOOSE, SECRET];

const INT4: u32 = 23;
const TEXT: u32 = 25;

/// One counted message's event, as far as the model knows it.
#[derive(Clone, Debug)]
pub(super) struct Half {
    /// The insert half of a key change.
    pub(super) is_second: bool,
    /// Of a truncate event: `/p0`.
    pub(super) suffix: String,
    pub(super) key: String,
    pub(super) topic: String,
    pub(super) op: &'static str,
    /// The other half's key.
    pub(super) moved: Option<String>,
}

/// A message with what must come of it.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) payload: Vec<u8>,
    /// The tables that it speaks of, and the version of each.
    pub(super) relations: Vec<(u32, usize)>,
    /// For each counted message in it: the table (0: none) and its events.
    pub(super) counted: Vec<(u32, Vec<Half>)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Unchanged,
    Text(String),
}

pub(super) fn name(oid: u32) -> &'static str {
    match oid {
        ORDERS => "orders",
        LINES => "lines",
        WHOLE => "whole",
        LOG => "log",
        LOOSE => "loose",
        _ => "secret",
    }
}

fn columns(oid: u32) -> &'static [(&'static str, u32)] {
    match oid {
        LINES => &[("a", INT4), ("b", TEXT), ("note", TEXT)],
        LOG | LOOSE => &[("note", TEXT), ("n", INT4)],
        _ => &[("id", INT4), ("note", TEXT), ("big", TEXT)],
    }
}

/// How many of the first columns are the primary key.
fn key_width(oid: u32) -> usize {
    match oid {
        LINES => 2,
        LOG | LOOSE => 0,
        _ => 1,
    }
}

pub(super) fn primary_key(oid: u32) -> Vec<String> {
    columns(oid).iter().take(key_width(oid)).map(|(name, _)| (*name).to_owned()).collect()
}

fn is_full(oid: u32) -> bool {
    matches!(oid, WHOLE | LOOSE)
}

/// From version 1 on a table has one more column.
pub(super) fn relation(oid: u32, version: usize) -> Relation {
    let extra: &[(&str, u32)] = if version == 0 { &[] } else { &[("extra", TEXT)] };
    let column = |(at, (name, type_oid)): (usize, &(&str, u32))| RelationColumn {
        key: is_full(oid) || at < key_width(oid),
        name: (*name).to_owned(),
        type_oid: *type_oid,
        type_modifier: -1,
    };
    Relation {
        oid,
        namespace: "public".into(),
        name: name(oid).into(),
        replica_identity: if is_full(oid) { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
        columns: columns(oid).iter().chain(extra).enumerate().map(column).collect(),
    }
}

pub(super) fn rules() -> Vec<TableRule> {
    let exact = |oid| TableRule::events_of(TablePattern::exact("public", name(oid)), "table[1]");
    vec![
        TableRule::events_of(TablePattern::all_of("public"), "table[0]"),
        TableRule { mode: Mode::Off, ..exact(SECRET) },
        TableRule { columns: ColumnSet::Except(vec!["big".into()]), ..exact(WHOLE) },
    ]
}

/// Partitions of a table's topic.
pub(super) fn partitions(oid: u32) -> i32 {
    if oid.is_multiple_of(2) { 1 } else { 3 }
}

/// A row change of the table, or a truncation of several.
pub(super) fn change(dice: &mut Dice, versions: &[usize; 6]) -> Draft {
    if dice.percent(6) {
        return truncate(dice, versions);
    }
    let oid = ALL[dice.index(ALL.len())];
    let version = versions[at(oid)];
    let number = dice.below(12);
    match dice.below(3) {
        _ if oid == LOG => insert(dice, oid, version, number),
        0 => insert(dice, oid, version, number),
        1 => update(dice, oid, version, number),
        _ => {
            let row = row(dice, oid, version, number);
            let bytes = tuple(&if is_full(oid) { row } else { key_only(oid, row) });
            let old = old(oid, &bytes);
            let payload = encode(&Message::Delete { relation: oid, old });
            draft(payload, oid, version, vec![half("delete", oid, number)])
        }
    }
}

fn at(oid: u32) -> usize {
    ALL.iter().position(|known| *known == oid).expect("one of the model's tables")
}

fn insert(dice: &mut Dice, oid: u32, version: usize, number: u64) -> Draft {
    let bytes = tuple(&row(dice, oid, version, number));
    let new = Tuple::decode(&bytes).expect("encoded here");
    draft(encode(&Message::Insert { relation: oid, new }), oid, version, vec![half("insert", oid, number)])
}

fn update(dice: &mut Dice, oid: u32, version: usize, number: u64) -> Draft {
    let has_old = is_full(oid) || dice.percent(60);
    let moves = has_old && key_width(oid) > 0 && dice.percent(50);
    let target = if moves { (number + 1 + dice.below(11)) % 12 } else { number };
    let before = row(dice, oid, version, number);
    let mut after = row(dice, oid, version, target);
    let mut halves = vec![half("update", oid, target)];
    if moves {
        let (from, to) = (key(oid, number), key(oid, target));
        let delete = Half { moved: Some(to), ..half("delete", oid, number) };
        halves = vec![delete, Half { is_second: true, moved: Some(from), ..half("insert", oid, target) }];
    } else if oid == WHOLE && dice.percent(40) {
        // Nothing but a column that the rule leaves out has changed: counted, and no event.
        after = before.clone();
        after[2] = Cell::Text(format!("other {}", dice.below(1000)));
        halves = vec![];
    } else if oid == WHOLE {
        after[1] = Cell::Text(format!("changed {}", number));
    }
    // TOASTed values that did not change: in the WAL with the old row or key, or nowhere.
    for (at, (cell, old)) in after.iter_mut().zip(&before).enumerate() {
        let is_known = is_full(oid) || (has_old && at < key_width(oid));
        let may_hide =
            if at < key_width(oid) { is_known && cell == old } else { !is_full(oid) || cell == old };
        if may_hide && matches!(cell, Cell::Text(_)) && dice.percent(30) {
            *cell = Cell::Unchanged;
        }
    }
    let old_bytes = tuple(&if is_full(oid) { before } else { key_only(oid, before) });
    let new_bytes = tuple(&after);
    let old = has_old.then(|| old(oid, &old_bytes));
    let new = Tuple::decode(&new_bytes).expect("encoded here");
    draft(encode(&Message::Update { relation: oid, old, new }), oid, version, halves)
}

fn truncate(dice: &mut Dice, versions: &[usize; 6]) -> Draft {
    let chosen: Vec<u32> = ALL.into_iter().filter(|_| dice.percent(40)).collect();
    let oids = if chosen.is_empty() { vec![ORDERS] } else { chosen };
    let mut payload = vec![b'T'];
    payload.extend(i32::try_from(oids.len()).expect("a few").to_be_bytes());
    payload.push(0);
    payload.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
    let events = |oid: u32| {
        let one = |partition| Half {
            suffix: format!("/p{partition}"),
            key: name(oid).to_owned(),
            ..half("truncate", oid, 0)
        };
        (0..partitions(oid)).map(one).collect()
    };
    Draft {
        relations: oids.iter().map(|oid| (*oid, versions[at(*oid)])).collect(),
        counted: oids.iter().map(|oid| (*oid, if *oid == SECRET { vec![] } else { events(*oid) })).collect(),
        payload,
    }
}

fn draft(payload: Vec<u8>, oid: u32, version: usize, halves: Vec<Half>) -> Draft {
    assert!(decode(&payload).is_ok(), "the model says what a server can say");
    let halves = if oid == SECRET { vec![] } else { halves };
    Draft { payload, relations: vec![(oid, version)], counted: vec![(oid, halves)] }
}

fn half(op: &'static str, oid: u32, number: u64) -> Half {
    let topic = format!("shop.public.{}", name(oid));
    Half { is_second: false, suffix: String::new(), key: key(oid, number), topic, op, moved: None }
}

fn key(oid: u32, number: u64) -> String {
    match oid {
        LINES => format!("[\"{}\",\"k{}\"]", number / 4, number % 4),
        LOG | LOOSE => name(oid).to_owned(),
        _ => number.to_string(),
    }
}

fn row(dice: &mut Dice, oid: u32, version: usize, number: u64) -> Vec<Cell> {
    const TEXTS: &[&str] =
        &["", "plain", "ü \"quoted\"\n", "back\\slash", "a longer text, TOASTed elsewhere"];
    let mut cells: Vec<Cell> = columns(oid)
        .iter()
        .map(|(name, _)| match *name {
            "id" => Cell::Text(number.to_string()),
            "a" => Cell::Text((number / 4).to_string()),
            "b" => Cell::Text(format!("k{}", number % 4)),
            "n" => Cell::Text(dice.below(1000).to_string()),
            _ if dice.percent(10) => Cell::Null,
            _ => Cell::Text(dice.pick(TEXTS).to_owned()),
        })
        .collect();
    if version > 0 {
        cells.push(Cell::Text(format!("extra {}", dice.below(100))));
    }
    cells
}

fn key_only(oid: u32, mut row: Vec<Cell>) -> Vec<Cell> {
    row.iter_mut().skip(key_width(oid)).for_each(|cell| *cell = Cell::Null);
    row
}

fn old(oid: u32, bytes: &[u8]) -> Old<'_> {
    let tuple = Tuple::decode(bytes).expect("encoded here");
    if is_full(oid) { Old::Full(tuple) } else { Old::Key(tuple) }
}

fn tuple(cells: &[Cell]) -> Vec<u8> {
    let values: Vec<Value<'_>> = cells
        .iter()
        .map(|cell| match cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Text(text) => Value::Text(text.as_bytes()),
        })
        .collect();
    let mut bytes = Vec::new();
    write_tuple(&values, &mut bytes);
    bytes
}

pub(super) fn encode(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}
