//! Row routing against a consumer: whatever the server may send for a change, who folds the events
//! as DESIGN section 4 says must end with the row that the source has.
//!
//! The server's half is modelled from the manual and FIELD_NOTES 3: what of the old row is sent, and
//! which values of the new one are left out because they are TOASTed and did not change. The
//! consumer's half knows the envelope only: it keeps what is `unchanged`, and of a row that has
//! moved what the old aggregate had.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value as Json};

use super::batch::{Batch, Labels, Moved};
use super::event::EventWriter;
use super::filter::{EnumLabels, TableFacts};
use super::format::EventSettings;
use super::name::TablePattern;
use super::outbox::OutboxWriter;
use super::plan::{PlanContext, TablePlan};
use super::template::TopicTemplate;
use super::value::{Style, TypeCatalog};
use super::{Route, Router, RowMessage};
use crate::change::{Position, Transactions};
use crate::config::{ColumnSet, Format, TableRule};
use crate::lsn::Lsn;
use crate::wal::pgoutput::{Old, Relation, RelationColumn, ReplicaIdentity, Tuple, Value, write_tuple};
use crate::wal::timestamp::Timestamp;

const TEXT: u32 = 25;

/// One column with its values before and after the change.
#[derive(Clone, Debug)]
struct Column {
    is_key: bool,
    is_toasted: bool,
    is_excluded: bool,
    old: Option<String>,
    new: Option<String>,
}

impl Column {
    /// A value outside of the row: sent again only when it has changed.
    fn is_external(&self) -> bool {
        self.is_toasted && self.old.is_some()
    }

    fn is_published(&self) -> bool {
        self.is_key || !self.is_excluded
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Insert,
    Update,
    Delete,
}

fn name(at: usize) -> String {
    format!("c{at}")
}

fn column() -> impl Strategy<Value = Column> {
    let value = || prop::option::weighted(0.8, "[ab\"é]{0,1}");
    (any::<bool>(), any::<bool>(), any::<bool>(), value(), value()).prop_map(
        |(is_key, is_toasted, is_excluded, old, new)| Column {
            // A key holds no NULL.
            old: if is_key { Some(old.unwrap_or_default()) } else { old },
            new: if is_key { Some(new.unwrap_or_default()) } else { new },
            is_key,
            is_toasted,
            is_excluded,
        },
    )
}

fn relation(columns: &[Column], is_full: bool) -> Relation {
    Relation {
        oid: 7,
        namespace: "public".into(),
        name: "t".into(),
        replica_identity: if is_full { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
        columns: columns
            .iter()
            .enumerate()
            .map(|(at, column)| RelationColumn {
                key: is_full || column.is_key,
                name: name(at),
                type_oid: TEXT,
                type_modifier: -1,
            })
            .collect(),
    }
}

fn plan(columns: &[Column], is_full: bool, labels: &Labels, events: &EventSettings) -> TablePlan {
    let excluded = |(at, column): (usize, &Column)| (!column.is_published()).then(|| name(at));
    let rule = TableRule {
        columns: ColumnSet::Except(columns.iter().enumerate().filter_map(excluded).collect()),
        ..TableRule::events_of(TablePattern::all_of("public"), "table[0]")
    };
    let primary_key: Vec<String> = (0..columns.len()).filter(|&at| columns[at].is_key).map(name).collect();
    let context = PlanContext {
        source_name: "shop",
        types: &TypeCatalog::builtin(),
        labels,
        enums: &EnumLabels::default(),
        topic: &TopicTemplate::default(),
        events,
    };
    let relation = relation(columns, is_full);
    TablePlan::compile(&context, &relation, &rule, &primary_key, &TableFacts::default(), Lsn::ZERO)
        .expect("a rule that fits")
}

fn text(value: Option<&String>) -> Value<'_> {
    value.map_or(Value::Null, |text| Value::Text(text.as_bytes()))
}

fn encode(values: &[Value<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_tuple(values, &mut bytes);
    bytes
}

/// The events of the change, as the router writes them.
fn route(columns: &[Column], is_full: bool, change: Change, events: &EventSettings) -> Batch {
    let whole_old: Vec<Value<'_>> = columns.iter().map(|column| text(column.old.as_ref())).collect();
    let key_old: Vec<Value<'_>> = columns
        .iter()
        .map(|column| if column.is_key { text(column.old.as_ref()) } else { Value::Null })
        .collect();
    let old_bytes = encode(if is_full { &whole_old } else { &key_old });
    let old_tuple = Tuple::decode(&old_bytes).expect("encoded here");
    let old = if is_full { Old::Full(old_tuple) } else { Old::Key(old_tuple) };
    let is_sent = is_full
        || columns.iter().any(|column| column.is_key && (column.old != column.new || column.is_external()));
    let new_values: Vec<Value<'_>> = columns
        .iter()
        .map(|column| match change {
            Change::Update if column.is_external() && column.old == column.new => Value::Unchanged,
            _ => text(column.new.as_ref()),
        })
        .collect();
    let new_bytes = encode(&new_values);
    let new = Tuple::decode(&new_bytes).expect("encoded here");
    let row = match change {
        Change::Insert => RowMessage::Insert(new),
        Change::Update => RowMessage::Update(is_sent.then_some(old), new),
        Change::Delete => RowMessage::Delete(old),
    };

    let outbox = OutboxWriter::new(Arc::default(), "shop.walgate_hub.dead-letter".into(), None);
    let mut router = Router::new("shop", EventWriter::new(Style::default(), None), outbox);
    router.install(7, Route::Events(Box::new(plan(columns, is_full, &Labels::default(), events))));
    let mut transactions = Transactions::default();
    transactions.begin(Lsn(100), Timestamp(0), 5).expect("none is open");
    router.begin(transactions.expect_open("test", Lsn(100)).expect("one is open"));
    let mut batch = Batch::default();
    router.row(&mut batch, 7, Position::nth(Lsn(100), 3), Lsn(90), &row).expect("a change that fits");
    batch
}

/// Every table of these properties has one.
fn give_a_key(columns: &mut [Column]) {
    if let (false, Some(first)) = (columns.iter().any(|column| column.is_key), columns.first_mut()) {
        first.is_key = true;
        first.old.get_or_insert_default();
        first.new.get_or_insert_default();
    }
}

/// An event as a consumer gets it.
#[derive(Clone, Debug, PartialEq)]
struct Published {
    id: String,
    key: Option<String>,
    value: Option<String>,
    moved: Option<String>,
}

fn published_events(batch: &Batch) -> Vec<Published> {
    let text = |range: &Range<usize>| String::from_utf8(batch.part(range).to_vec()).expect("UTF-8");
    let published = |event: &super::batch::Event| Published {
        id: text(&event.id),
        key: event.key.as_ref().map(text),
        value: event.value.as_ref().map(text),
        moved: event.moved.as_ref().map(|moved| match moved {
            Moved::To(range) | Moved::From(range) => text(range),
        }),
    };
    batch.events.iter().map(published).collect()
}

/// Folds Debezium's events as one of its consumers does: by key, a placeholder keeps what was there.
fn fold_debezium(consumer: &mut Folded, events: &[Published]) {
    let mut left = None;
    for event in events {
        let key = event.key.clone().expect("the table has a key");
        let Some(value) = &event.value else {
            assert!(!consumer.contains_key(&key), "a tombstone is behind its delete");
            continue;
        };
        let value: Json = serde_json::from_str(value).expect("JSON");
        let had = match &value["after"] {
            Json::Null => {
                left = consumer.remove(&key);
                assert!(left.is_some() && value["op"] == "d", "{value}");
                continue;
            }
            _ => consumer.get(&key).cloned().or(left.take()),
        };
        let mut row = value["after"].as_object().expect("a row").clone();
        for (column, cell) in &mut row {
            if cell == "__debezium_unavailable_value" {
                *cell = had.as_ref().expect("a row that was there")[column].clone();
            }
        }
        consumer.insert(key, row);
    }
}

/// What a consumer has of the table: published rows by aggregate.
type Folded = BTreeMap<String, Map<String, Json>>;

fn published(columns: &[Column], of: impl Fn(&Column) -> &Option<String>) -> Map<String, Json> {
    let cell = |(at, column): (usize, &Column)| {
        column.is_published().then(|| (name(at), of(column).clone().map_or(Json::Null, Json::String)))
    };
    columns.iter().enumerate().filter_map(cell).collect()
}

fn aggregate(columns: &[Column], of: impl Fn(&Column) -> &Option<String>) -> String {
    let key: Vec<&str> =
        columns.iter().filter(|column| column.is_key).filter_map(|column| of(column).as_deref()).collect();
    match key.as_slice() {
        [only] => (*only).to_owned(),
        several => serde_json::to_string(several).expect("texts"),
    }
}

fn fold(consumer: &mut Folded, event: &Json) {
    let id = event["aggregate_id"].as_str().expect("the table has a key").to_owned();
    let known = |consumer: &Folded| match event["moved_from"].as_str() {
        // The old aggregate was deleted one event before: a consumer looks at what it has had.
        Some(from) => consumer.get(&format!("moved {from}")).cloned(),
        None => consumer.get(&id).cloned(),
    };
    match event["op"].as_str().expect("an op") {
        "delete" => {
            let row = consumer.remove(&id).expect("only what is there is deleted");
            if event["moved_to"].is_string() {
                consumer.insert(format!("moved {id}"), row);
            }
        }
        _ => {
            let mut row = event["data"].as_object().expect("a row").clone();
            for column in event["unchanged"].as_array().expect("a list") {
                let column = column.as_str().expect("a name");
                let had = known(consumer).expect("a row that was there")[column].clone();
                assert!(row.insert(column.to_owned(), had).is_none(), "{column} is there and unchanged");
            }
            if let Some(from) = event["moved_from"].as_str() {
                consumer.remove(&format!("moved {from}")).expect("its delete half came before");
            }
            consumer.insert(id, row);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn who_folds_the_events_has_the_row(
        mut columns in prop::collection::vec(column(), 1..5),
        is_full: bool,
        change in prop::sample::select(&[Change::Insert, Change::Update, Change::Update, Change::Delete][..]),
    ) {
        give_a_key(&mut columns);
        let (before, after) = (|column: &Column| column.old.clone(), |column: &Column| column.new.clone());
        let old_row = published(&columns, |column| &column.old);
        let new_row = published(&columns, |column| &column.new);
        let (old_id, new_id) = (aggregate(&columns, |column| &column.old), aggregate(&columns, |column| &column.new));
        let moves = columns.iter().any(|column| column.is_key && before(column) != after(column));

        let batch = route(&columns, is_full, change, &EventSettings::default());
        let events: Vec<Json> = batch
            .events
            .iter()
            .map(|event| serde_json::from_slice(batch.part(event.value.as_ref().expect("a value"))).expect("JSON"))
            .collect();

        let mut consumer = Folded::new();
        if change != Change::Insert {
            consumer.insert(old_id.clone(), old_row.clone());
        }
        events.iter().for_each(|event| fold(&mut consumer, event));
        let expected: Folded = match change {
            Change::Delete => Folded::new(),
            Change::Insert | Change::Update => Folded::from([(new_id.clone(), new_row.clone())]),
        };
        prop_assert_eq!(consumer, expected);

        // Two events for a key change, none for what nobody sees, else one.
        let is_invisible = change == Change::Update && is_full && old_row == new_row
            && columns.iter().any(|column| !column.is_published());
        let count = match change {
            Change::Update if moves => 2,
            Change::Update if is_invisible => 0,
            _ => 1,
        };
        prop_assert_eq!(events.len(), count);
        for (nth, (event, header)) in events.iter().zip(&batch.events).enumerate() {
            let id = format!("shop/0000000000000064/{:08X}", 6 + nth);
            prop_assert_eq!(event["id"].as_str(), Some(id.as_str()));
            prop_assert_eq!(batch.part(header.key.as_ref().expect("a key")), event["aggregate_id"].as_str().unwrap_or_default().as_bytes());
            let moved = match &header.moved {
                Some(Moved::To(range)) => Some(("moved_to", range)),
                Some(Moved::From(range)) => Some(("moved_from", range)),
                None => None,
            };
            prop_assert_eq!(moved.is_some(), moves && change == Change::Update);
            if let Some((field, range)) = moved {
                let other = if nth == 0 { &new_id } else { &old_id };
                prop_assert_eq!(event[field].as_str(), Some(other.as_str()));
                prop_assert_eq!(batch.part(range), other.as_bytes());
            }
            // The whole old row under FULL, the old key of a delete, else nothing.
            let is_delete = event["op"] == "delete";
            let key_only: Map<String, Json> = columns
                .iter()
                .enumerate()
                .filter(|(_, column)| column.is_key)
                .map(|(at, column)| (name(at), before(column).map_or(Json::Null, Json::String)))
                .collect();
            let expected = match (is_full, is_delete, event["op"] == "insert") {
                (_, _, true) => Json::Null,
                (true, _, _) => Json::Object(old_row.clone()),
                (false, true, _) => Json::Object(key_only),
                (false, false, _) => Json::Null,
            };
            prop_assert_eq!(&event["before"], &expected);
        }
    }

    /// In each format: JSON, as many events as in the outbox's and with their ids, a tombstone behind each delete, and a
    /// replay equal byte for byte.
    #[test]
    fn every_format_tells_the_same(
        mut columns in prop::collection::vec(column(), 1..5),
        is_full: bool,
        tombstones: bool,
        change in prop::sample::select(&[Change::Insert, Change::Update, Change::Update, Change::Delete][..]),
    ) {
        give_a_key(&mut columns);
        let outbox = published_events(&route(&columns, is_full, change, &EventSettings::default()));
        for format in [Format::Outbox, Format::Debezium, Format::CloudEvents] {
            let settings = EventSettings { format, tombstones, database: "db".into(), ..EventSettings::default() };
            let events = published_events(&route(&columns, is_full, change, &settings));
            prop_assert_eq!(&events, &published_events(&route(&columns, is_full, change, &settings)));
            let mut ids = Vec::new();
            for event in &outbox {
                let value: Json = serde_json::from_str(event.value.as_ref().expect("a value")).expect("JSON");
                ids.push(event.id.clone());
                if tombstones && value["op"] == "delete" {
                    ids.push(format!("{}/t", event.id));
                }
            }
            prop_assert_eq!(events.iter().map(|event| event.id.clone()).collect::<Vec<_>>(), ids);
            for (at, event) in events.iter().enumerate() {
                prop_assert_eq!(event.value.is_none(), event.id.ends_with("/t"));
                match &event.value {
                    Some(value) => prop_assert!(serde_json::from_str::<Json>(value).is_ok(), "{}", value),
                    None => prop_assert_eq!((&event.key, &event.moved), (&events[at - 1].key, &events[at - 1].moved)),
                }
            }
            if format == Format::Debezium {
                let key = |of: &dyn Fn(&Column) -> &Option<String>| {
                    let key = columns.iter().enumerate().filter(|(_, column)| column.is_key);
                    let key: Vec<String> = key
                        .map(|(at, column)| format!("\"{}\":{}", name(at), serde_json::to_string(of(column)).expect("a text")))
                        .collect();
                    format!("{{{}}}", key.join(","))
                };
                let (old_key, new_key) = (key(&|column| &column.old), key(&|column| &column.new));
                let mut consumer = Folded::new();
                if change != Change::Insert {
                    consumer.insert(old_key, published(&columns, |column| &column.old));
                }
                fold_debezium(&mut consumer, &events);
                let expected = match change {
                    Change::Delete => Folded::new(),
                    _ => Folded::from([(new_key, published(&columns, |column| &column.new))]),
                };
                prop_assert_eq!(consumer, expected);
            }
        }
    }
}
