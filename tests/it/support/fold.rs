//! What a consumer that believes the documentation makes of the events: the source's tables.
//!
//! In: all events of a source. Out: per table its rows by aggregate id. Always, or it panics: the envelope is as
//! DESIGN section 4 says; no id comes twice; within a partition the events of an aggregate are in their ids' order;
//! an aggregate never changes its partition; nothing is inserted that is there, nor changed or deleted that is not.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::Source;
use super::event::{Event, Place};
use super::rows::{Row, Shape};

/// The rows that the events of a source add up to.
#[derive(Debug, Default)]
pub struct Fold {
    tables: BTreeMap<String, Table>,
    accepts_unknown_rows: bool,
}

#[derive(Debug, Default)]
struct Table {
    /// By aggregate id, with the partition that it lives in.
    rows: BTreeMap<String, (i32, Row)>,
    /// Without a key: in no order.
    keyless: Vec<Row>,
    /// What the old half of a key change had, until the new half has come, by (transaction, old id, new id).
    moving: HashMap<(u64, String, String), Row>,
}

impl Fold {
    /// Folds all events.
    #[track_caller]
    pub fn of(events: &[Event]) -> Self {
        Self::default().with(events)
    }

    /// Folds all events of a source whose rows from before the slot were never read (`snapshot = "never"`).
    #[track_caller]
    pub fn without_snapshot(events: &[Event]) -> Self {
        Self { accepts_unknown_rows: true, ..Self::default() }.with(events)
    }

    #[track_caller]
    fn with(mut self, events: &[Event]) -> Self {
        check_order(events);
        let mut by_place: Vec<(Place, &Event)> = events.iter().map(|event| (event.place(), event)).collect();
        by_place.sort_by_key(|(place, _)| *place);
        for (place, event) in by_place {
            check_envelope(event, place);
            self.take(event, place);
        }
        for (name, table) in &self.tables {
            assert!(
                table.moving.is_empty(),
                "{name}: a moved aggregate never arrived: {:?}",
                table.moving.keys()
            );
        }
        self
    }

    /// The rows of a table (`public.orders`) by aggregate id.
    pub fn rows(&self, table: &str) -> BTreeMap<String, Row> {
        let found = self.tables.get(table);
        found
            .into_iter()
            .flat_map(|table| &table.rows)
            .map(|(id, (_, row))| (id.clone(), row.clone()))
            .collect()
    }

    /// Asserts that the events of `table` (`public.orders`) add up to its rows in the source.
    #[track_caller]
    pub fn assert_equals(&self, source: &Source, table: &str) {
        self.assert_equals_shape(source, table, None, None);
    }

    /// Asserts that they add up to these columns of the rows that satisfy a condition.
    #[track_caller]
    pub fn assert_equals_selected(
        &self,
        source: &Source,
        table: &str,
        columns: &[&str],
        condition: Option<&str>,
    ) {
        self.assert_equals_shape(source, table, Some(columns), condition);
    }

    #[track_caller]
    fn assert_equals_shape(
        &self,
        source: &Source,
        table: &str,
        columns: Option<&[&str]>,
        condition: Option<&str>,
    ) {
        let (schema, name) = table.split_once('.').expect("a table is named with its schema");
        let quoted = format!("\"{}\".\"{}\"", schema.replace('"', "\"\""), name.replace('"', "\"\""));
        let mut shape = Shape::of(source, &quoted);
        shape.columns.retain(|column| columns.is_none_or(|columns| columns.contains(&column.name.as_str())));
        let expected = shape.rows(source, &format!("{quoted} WHERE {}", condition.unwrap_or("true")));
        let folded = self.tables.get(table);
        if shape.key.is_empty() {
            let keyless = folded.into_iter().flat_map(|table| &table.keyless);
            let found = keyless.map(|row| (None, shape.canonical_event(row))).collect();
            assert_same_rows(table, expected, found);
        } else {
            let rows = folded.into_iter().flat_map(|table| &table.rows);
            let found = rows.map(|(id, (_, row))| (Some(id.clone()), shape.canonical_event(row))).collect();
            assert_same_rows(table, expected, found);
        }
    }

    #[track_caller]
    fn take(&mut self, event: &Event, place: Place) {
        let accepts_unknown_rows = self.accepts_unknown_rows;
        let table = self.tables.entry(event.table()).or_default();
        match (event.op(), event.aggregate_id()) {
            ("truncate", _) => table.truncate(event),
            ("insert" | "read", None) => table.keyless.push(data(event).clone()),
            ("update", None) => {
                let index = table.keyless_index(event);
                table.keyless[index] = data(event).clone();
            }
            ("delete", None) => {
                let index = table.keyless_index(event);
                table.keyless.swap_remove(index);
            }
            ("insert" | "read", Some(id)) => table.insert(event, place, id),
            ("update", Some(id)) => table.update(event, id, accepts_unknown_rows),
            ("delete", Some(id)) => table.delete(event, place, id, accepts_unknown_rows),
            ("message", _) => {}
            (op, _) => panic!("an op that is not documented: {op}: {}", event.raw),
        }
    }
}

/// Folds all events and asserts that those of `table` add up to its rows in the source.
#[track_caller]
pub fn assert_folded_equals(events: &[Event], source: &Source, table: &str) {
    Fold::of(events).assert_equals(source, table);
}

impl Table {
    #[track_caller]
    fn insert(&mut self, event: &Event, place: Place, id: &str) {
        let mut row = data(event).clone();
        if let Some(from) = event.json["moved_from"].as_str() {
            let old = self.moving.remove(&(place.lsn, from.to_owned(), id.to_owned()));
            let old = old.unwrap_or_else(|| panic!("moved_from without its moved_to: {}", event.raw));
            keep_unchanged(event, &mut row, &old);
        } else {
            assert!(event.unchanged().is_empty(), "an insert that nothing precedes: {}", event.raw);
        }
        let before = self.rows.insert(id.to_owned(), (event.partition, row));
        assert!(before.is_none(), "inserted although it is there: {}", event.raw);
    }

    #[track_caller]
    fn update(&mut self, event: &Event, id: &str, accepts_unknown_rows: bool) {
        let mut row = data(event).clone();
        match self.rows.get(id) {
            Some((partition, old)) => {
                assert_eq!(*partition, event.partition, "an aggregate changed its partition: {}", event.raw);
                keep_unchanged(event, &mut row, old);
            }
            None => assert!(accepts_unknown_rows, "updated although it is not there: {}", event.raw),
        }
        self.rows.insert(id.to_owned(), (event.partition, row));
    }

    #[track_caller]
    fn delete(&mut self, event: &Event, place: Place, id: &str, accepts_unknown_rows: bool) {
        let old = match self.rows.remove(id) {
            Some((partition, row)) => {
                assert_eq!(partition, event.partition, "an aggregate changed its partition: {}", event.raw);
                row
            }
            None => {
                assert!(accepts_unknown_rows, "deleted although it is not there: {}", event.raw);
                Row::new()
            }
        };
        if let Some(to) = event.json["moved_to"].as_str() {
            self.moving.insert((place.lsn, id.to_owned(), to.to_owned()), old);
        }
    }

    /// Ends the aggregates of the event's own partition.
    fn truncate(&mut self, event: &Event) {
        self.rows.retain(|_, (partition, _)| *partition != event.partition);
        self.keyless.clear();
    }

    /// The index of one row that equals the event's `before`.
    #[track_caller]
    fn keyless_index(&self, event: &Event) -> usize {
        let before = event.json["before"].as_object();
        let before = before.unwrap_or_else(|| panic!("a change without key or old row: {}", event.raw));
        let found = self.keyless.iter().position(|row| row == before);
        found.unwrap_or_else(|| panic!("changed although it is not there: {}", event.raw))
    }
}

fn data(event: &Event) -> &Row {
    event.json["data"].as_object().unwrap_or_else(|| panic!("no data: {}", event.raw))
}

#[track_caller]
fn keep_unchanged(event: &Event, row: &mut Row, old: &Row) {
    for column in event.unchanged() {
        assert!(!row.contains_key(column), "unchanged, and yet in data: {column}: {}", event.raw);
        let value =
            old.get(column).unwrap_or_else(|| panic!("unchanged, but never seen: {column}: {}", event.raw));
        row.insert(column.to_owned(), value.clone());
    }
}

/// No id twice, and per partition the events of an aggregate as their ids order them.
#[track_caller]
fn check_order(events: &[Event]) {
    let mut ids = HashSet::new();
    let mut last = HashMap::new();
    let mut in_offset_order: Vec<&Event> = events.iter().collect();
    in_offset_order.sort_by_key(|event| (&event.topic, event.partition, event.offset));
    for event in in_offset_order {
        assert!(ids.insert(event.id()), "an id twice: {}", event.raw);
        // What has no aggregate keeps its order as a table.
        let about = (&event.topic, event.partition, event.table(), event.aggregate_id());
        let place = event.place();
        if let Some(before) = last.insert(about, place) {
            assert!(before < place, "out of order, {before:?} came first: {}", event.raw);
        }
    }
}

/// The envelope's fields that follow from one another.
#[track_caller]
fn check_envelope(event: &Event, place: Place) {
    const FIELDS: [&str; 14] = [
        "v",
        "id",
        "type",
        "aggregate_type",
        "aggregate_id",
        "op",
        "occurred_at",
        "source",
        "data",
        "before",
        "unchanged",
        "moved_from",
        "moved_to",
        "claim",
    ];
    let json = &event.json;
    let raw = &event.raw;
    let fields = json.as_object().unwrap_or_else(|| panic!("not an object: {raw}"));
    for field in FIELDS {
        assert!(fields.contains_key(field), "no {field}: {raw}");
    }
    assert_eq!(json["v"], 1, "{raw}");
    assert_eq!(json["source"]["snapshot"], place.snapshot_of.is_some(), "{raw}");
    assert_eq!(json["data"].is_null(), matches!(event.op(), "delete" | "truncate"), "{raw}");
    assert_eq!(place.partition.is_some(), event.op() == "truncate", "{raw}");
    if let Some(partition) = place.partition {
        assert_eq!(i64::from(partition), i64::from(event.partition), "{raw}");
    }
    if place.snapshot_of.is_none() {
        let lsn = format!("{:X}/{:X}", place.lsn >> 32, place.lsn & 0xFFFF_FFFF);
        assert_eq!(json["source"]["commit_lsn"], Value::from(lsn), "{raw}");
        assert_eq!(json["source"]["seq"], place.number, "{raw}");
    }
    if !event.headers.is_empty() {
        check_kafka(event);
    }
}

/// The record's key and headers repeat the envelope.
#[track_caller]
fn check_kafka(event: &Event) {
    let raw = &event.raw;
    for (header, field) in
        [("id", "id"), ("type", "type"), ("aggregate-type", "aggregate_type"), ("op", "op")]
    {
        assert_eq!(
            event.headers.get(header).map(String::as_str),
            event.json[field].as_str(),
            "header {header}: {raw}"
        );
    }
    assert_eq!(event.headers.get("content-type").map(String::as_str), Some("application/json"), "{raw}");
    for (header, field) in [("moved-from", "moved_from"), ("moved-to", "moved_to")] {
        assert_eq!(
            event.headers.get(header).map(String::as_str),
            event.json[field].as_str(),
            "header {header}: {raw}"
        );
    }
    if event.op() != "truncate" {
        let key = event.aggregate_id().or(event.json["source"]["table"].as_str());
        assert_eq!(event.key.as_deref(), key, "{raw}");
    }
}

/// Compares as sets of rows, and shows the first few that differ.
#[track_caller]
fn assert_same_rows(table: &str, expected: Vec<(Option<String>, Row)>, found: Vec<(Option<String>, Row)>) {
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for (rows, weight) in [(expected, 1), (found, -1)] {
        for (id, row) in rows {
            // Sorted, since the order of the columns says nothing.
            let row: BTreeMap<String, Value> =
                row.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            let text =
                format!("{} {}", id.unwrap_or_default(), serde_json::to_string(&row).expect("a row is JSON"));
            *counts.entry(text).or_default() += weight;
        }
    }
    counts.retain(|_, count| *count != 0);
    let lines = counts.iter().map(|(row, count)| {
        let side = if *count > 0 { "only in the source" } else { "only in the events" };
        format!("  {side} ({}): {}", count.abs(), row.chars().take(600).collect::<String>())
    });
    let lines: Vec<String> = lines.take(30).collect();
    assert!(lines.is_empty(), "{table}: {} rows differ\n{}", counts.len(), lines.join("\n"));
}

/// Objects inside of a value in the order of their keys.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}
