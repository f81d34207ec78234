//! Other formats of an event: Debezium's as Debezium itself wrote it, CloudEvents, and tombstones (CASES O2).
//!
//! In: `debezium/before.sql`, copied, and `debezium/after.sql`, streamed; what Debezium wrote for the same statements is in
//! `debezium/recorded.jsonl` (`debezium/record` made it). Out: the same records, but for the differences that `docs/debezium.md`
//! names, each listed here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::crash::crashes;
use crate::support::kafka::{self, Record};
use crate::support::servers::kafka_brokers;
use crate::support::{Hub, Source, Walgate};

const BEFORE: &str = include_str!("debezium/before.sql");
const AFTER: &str = include_str!("debezium/after.sql");
const RECORDED: &str = include_str!("debezium/recorded.jsonl");

/// A text that PostgreSQL stores out of line.
const TOASTED: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)";

/// The fields of `source` that say where and when, and so differ from run to run.
const PLACES: &[&str] = &["lsn", "txId", "sequence", "ts_ms", "ts_us", "ts_ns", "db", "name", "snapshot"];
const TIMES: &[&str] = &["ts_ms", "ts_us", "ts_ns"];

/// Where what Walgate writes is not what Debezium wrote: table, operation and column, their value and ours.
const DIFFERENCES: &[&str] = &[
    r#"kinds c aa: [null,null] / [[1,2],[3,4]]"#,
    r#"kinds c bx: absent / "(1,2),(0,0)""#,
    r#"kinds c bx: absent / null"#,
    r#"kinds c ts: "+294247-01-10T04:00:25.2Z" / "infinity""#,
    r#"kinds c bx: absent / null"#,
    r#"kinds c bx: absent / null"#,
    r#"kinds u aa: [null,null] / [[1,2],[3,4]]"#,
    r#"kinds u bx: absent / "(1,2),(0,0)""#,
    r#"kinds d bx: absent / null"#,
    r#"large u b: null / "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==""#,
    r#"large u ba: null / ["X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="]"#,
    r#"large u na: null / ["__debezium_unavailable_value"]"#,
    r#"large c b: null / "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==""#,
    r#"large c ba: null / ["X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="]"#,
    r#"large c na: null / ["__debezium_unavailable_value"]"#,
];

/// Statement by statement, as `psql` runs a file.
fn exec_each(source: &Source, sql: &str) {
    for statement in sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        source.exec(statement);
    }
}

/// Records of the source's topics in the order of the changes, one truncate for all partitions.
fn records(source: &Source, hub: &Hub) -> Vec<Record> {
    let mut records = kafka::read_committed(&kafka_brokers(), &hub.topics());
    records.retain(|record| match record.headers["id"].rsplit_once("/p") {
        Some((_, partition)) => partition == "0",
        None => true,
    });
    records.sort_by(|a, b| a.headers["id"].cmp(&b.headers["id"]));
    for record in &mut records {
        let topic = record.topic.strip_prefix(&format!("{}.", source.name())).expect("a topic of the source");
        record.topic = topic.to_owned();
    }
    records
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Whether two values are the same to who parses them.
fn same(theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((k, a), (l, b))| k == l && same(a, b))
        }
        // An object in a string: the order of its keys is nobody's.
        (Value::String(a), Value::String(b)) if a.starts_with('{') && a != b => {
            matches!((serde_json::from_str::<Value>(a), serde_json::from_str::<Value>(b)), (Ok(a), Ok(b)) if a == b)
        }
        _ => theirs == ours,
    }
}

/// The names that Walgate's text has, in the order in which a text has them first.
fn order<'n>(text: &str, names: &[&'n String]) -> Vec<&'n String> {
    let mut order = names.to_vec();
    order.sort_by_key(|name| text.find(&format!("\"{name}\":")));
    order
}

fn names(value: &Value) -> Vec<&String> {
    value.as_object().map_or_else(Vec::new, |fields| fields.keys().collect())
}

#[test]
fn debezium_events_are_those_that_debezium_wrote() {
    let source = Source::new("debezium");
    let hub = Hub::kafka(&source);
    let walgate = Walgate::new(&source, &hub).hub("format = \"debezium\"\ntombstones = true");
    exec_each(&source, BEFORE);
    walgate.run_until_caught_up();
    exec_each(&source, AFTER);
    walgate.run_until_caught_up();

    let mut theirs: BTreeMap<String, Vec<(&str, Value)>> = BTreeMap::new();
    for line in RECORDED.lines() {
        let record = parsed(line);
        let topic = record["topic"].as_str().expect("a topic").strip_prefix("shop.").expect("the prefix");
        theirs.entry(topic.to_owned()).or_default().push((line, record));
    }
    let mut ours: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records(&source, &hub) {
        ours.entry(record.topic.clone()).or_default().push(record);
    }
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());

    let mut differences = Vec::new();
    for (topic, theirs) in &theirs {
        let ours = &ours[topic];
        assert_eq!(ours.len(), theirs.len(), "{topic}: {ours:#?}");
        for (theirs, ours) in theirs.iter().zip(ours) {
            compare(topic, theirs, ours, &source, &mut differences);
        }
    }
    assert_eq!(differences, DIFFERENCES, "{differences:#?}");
}

fn compare(
    topic: &str,
    (line, theirs): &(&str, Value),
    ours: &Record,
    source: &Source,
    differences: &mut Vec<String>,
) {
    let key = ours.key.as_deref().map_or(Value::Null, parsed);
    assert_eq!(key, theirs["key"], "{topic}");
    let key_text = format!(r#""key":{},"#, ours.key.as_deref().unwrap_or("null"));
    assert!(line.contains(&key_text), "{topic}: the key's bytes decide its partition: {key_text}");
    for name in ["__debezium.newkey", "__debezium.oldkey"] {
        let header = ours.headers.get(name).map_or(Value::Null, |text| parsed(text));
        assert_eq!(header, theirs["headers"][name], "{topic}, header {name} of {ours:?}");
    }
    let value = ours.value.as_deref().map_or(Value::Null, parsed);
    let their_value = &theirs["value"];
    assert_eq!(names(&value), names(their_value), "{topic}: {ours:?}");
    if value.is_null() {
        assert!(ours.headers["id"].ends_with("/t"), "{ours:?}");
        return;
    }
    assert_eq!(names(&value["source"]), names(&their_value["source"]), "{topic}");
    let (text, their_text) =
        (ours.value.as_deref().expect("a value"), line.split_once(r#""value":"#).expect("a value").1);
    for part in [&value, &value["source"]] {
        assert_eq!(
            order(text, &names(part)),
            order(their_text, &names(part)),
            "{topic}: the order of fields"
        );
    }
    assert_eq!(value["source"]["name"], source.name());
    assert_eq!(value["source"]["db"], source.name());
    let is_copy = value["op"] == "r";
    assert_eq!(value["source"]["snapshot"], if is_copy { "true" } else { "false" });
    let sequence = parsed(value["source"]["sequence"].as_str().expect("a text"));
    assert_eq!(sequence[1], value["source"]["lsn"].to_string(), "{topic}");
    for name in TIMES.iter().filter(|name| value.get(**name).is_some()) {
        assert!(their_value[*name].is_u64(), "{name}");
        assert_eq!(value[*name], value["source"][*name], "the time is the commit's");
    }
    for (name, field) in value["source"].as_object().expect("a source") {
        if PLACES.contains(&name.as_str()) {
            let is_same_type =
                std::mem::discriminant(field) == std::mem::discriminant(&their_value["source"][name]);
            assert!(is_same_type || (is_copy && name == "txId"), "{topic}, source.{name}: {field}");
        } else {
            assert_eq!(field, &their_value["source"][name], "{topic}, source.{name}");
        }
    }
    for (name, field) in value.as_object().expect("an envelope") {
        match name.as_str() {
            "before" | "after" if field.is_object() && their_value[name].is_object() => {
                let columns: BTreeSet<&String> =
                    names(field).into_iter().chain(names(&their_value[name])).collect();
                for column in columns {
                    let (theirs, ours) = (their_value[name].get(column), field.get(column));
                    let is_same = matches!((theirs, ours), (Some(theirs), Some(ours)) if same(theirs, ours));
                    if !is_same {
                        let shown = |value: Option<&Value>| {
                            value.map_or("absent".to_owned(), |value| {
                                value.to_string().chars().take(70).collect()
                            })
                        };
                        let op = value["op"].as_str().expect("an op");
                        let table = topic.trim_start_matches("public.");
                        differences.push(format!(
                            "{table} {op} {column}: {} / {}",
                            shown(theirs),
                            shown(ours)
                        ));
                    }
                }
            }
            "source" | "ts_ms" | "ts_us" | "ts_ns" => {}
            _ => assert_eq!(field, &their_value[name], "{topic}, {name}"),
        }
    }
}

#[test]
fn a_file_hub_has_debeziums_values() {
    let source = Source::new("debezium_file");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub).hub("format = \"debezium\"\ntombstones = true");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (1, 'a')");
    source.exec("DELETE FROM t");
    walgate.run_until_caught_up();
    let events = hub.events();
    let ops: Vec<&Value> = events.iter().map(|event| &event.json["op"]).collect();
    assert_eq!(ops, [&json!("c"), &json!("d"), &json!(null)]);
    assert_eq!(events[0].json["after"], json!({"id": 1, "note": "a"}));
    assert_eq!(events[1].json["before"], json!({"id": 1, "note": null}));
    assert_eq!(events[2].raw, "null", "a tombstone's line is its value");

    let output = walgate.command(&["tail", "--from-beginning", "--count", "3"]);
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(lines.lines().collect::<Vec<_>>(), events.iter().map(|event| &event.raw).collect::<Vec<_>>());
}

#[test]
fn cloudevents_have_the_attributes_of_the_specification() {
    let source = Source::new("cloudevents");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS orders, \"k l\"");
        source.exec("CREATE TABLE orders (id int PRIMARY KEY, n int, note text); ALTER TABLE orders ALTER note SET STORAGE EXTERNAL");
        source.exec("CREATE TABLE \"k l\" (n int)");
        source.exec("INSERT INTO orders VALUES (1, 0, 'read')");
        let walgate = Walgate::new(&source, &hub).hub("format = \"cloudevents\"");
        walgate.run_until_caught_up();
        source.exec(&format!("INSERT INTO orders VALUES (42, 0, {TOASTED})"));
        source.exec("UPDATE orders SET n = 1 WHERE id = 42");
        source.exec("UPDATE orders SET id = 43 WHERE id = 42");
        source.exec("DELETE FROM orders WHERE id = 1");
        source.exec("INSERT INTO \"k l\" VALUES (1)");
        source.exec("TRUNCATE orders");
        source.exec("SELECT pg_logical_emit_message(true, 'walgate.outbox', '{\"aggregate_type\":\"Order\",\"aggregate_id\":7,\"type\":\"OrderPlaced\",\"payload\":{\"a\": 1.50}}')");
        walgate.run_until_caught_up();

        let mut events = hub.events();
        events.retain(|event| !event.id().contains("/p") || event.id().ends_with("/p0"));
        events.sort_by(|a, b| a.id().cmp(b.id()));
        let ops: Vec<&str> = events.iter().map(|event| event.text("walgateop")).collect();
        assert_eq!(
            ops,
            ["read", "insert", "update", "delete", "insert", "delete", "insert", "truncate", "message"]
        );
        for event in &events {
            check_attributes(event);
        }
        let [read, insert, update, old_half, new_half, delete, keyless, truncate, message] = &events[..]
        else {
            unreachable!("counted above");
        };
        assert_eq!(
            read.json["data"],
            json!({"row": {"id": 1, "n": 0, "note": "read"}, "before": null, "unchanged": []})
        );
        assert_eq!((&read.json["snapshot"], read.json.get("xid")), (&json!(true), None));
        assert_eq!(insert.text("type"), "orders.inserted");
        assert_eq!(insert.text("source"), format!("/walgate/{}/public/orders", source.name()));
        assert_eq!((insert.text("subject"), insert.text("partitionkey")), ("42", "42"));
        assert_eq!(
            update.json["data"],
            json!({"row": {"id": 42, "n": 1}, "before": null, "unchanged": ["note"]})
        );
        assert_eq!((old_half.text("movedto"), new_half.text("movedfrom")), ("43", "42"));
        assert_eq!(old_half.json["data"], json!({"row": null, "before": {"id": 42}, "unchanged": []}));
        assert_eq!(delete.json["data"]["before"], json!({"id": 1}));
        assert_eq!(keyless.text("source"), format!("/walgate/{}/public/k%20l", source.name()));
        assert_eq!((keyless.json.get("subject"), keyless.text("partitionkey")), (None, "k l"));
        assert_eq!((truncate.json.get("subject"), &truncate.json["data"]["row"]), (None, &json!(null)));
        assert_eq!((message.text("subject"), message.text("type")), ("7", "OrderPlaced"));
        assert_eq!(message.text("source"), format!("/walgate/{}", source.name()));
        assert!(message.raw.ends_with(r#","data":{"a": 1.50}}"#), "{}", message.raw);
        if let Hub::Kafka { .. } = hub {
            let type_of = |event: &crate::support::Event| event.headers["content-type"].clone();
            assert!(
                events.iter().all(|event| type_of(event) == "application/cloudevents+json; charset=UTF-8")
            );
            assert_eq!(insert.key.as_deref(), Some("42"));
            assert_eq!(old_half.headers["moved-to"], "43");
        }
        let dropped = walgate.command(&["drop", "--yes"]);
        assert!(dropped.status.success(), "{dropped:?}");
    }
}

/// CloudEvents 1.0.2, sections 3.1 to 3.3: names, required attributes, types.
#[track_caller]
fn check_attributes(event: &crate::support::Event) {
    let attributes = event.json.as_object().expect("an object");
    for required in ["specversion", "id", "source", "type"] {
        assert!(!event.text(required).is_empty(), "{}", event.raw);
    }
    assert_eq!(event.text("specversion"), "1.0");
    assert_eq!(event.text("datacontenttype"), "application/json");
    assert!(event.text("time").ends_with('Z'), "{}", event.raw);
    for (name, value) in attributes.iter().filter(|(name, _)| *name != "data") {
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        assert!(is_name && name.len() <= 20, "{name}");
        let is_value = value.is_boolean() || value.as_str().is_some_and(|text| !text.is_empty());
        assert!(is_value, "{name}: {value}");
    }
}

#[test]
fn a_tombstone_follows_each_delete_in_every_format() {
    for format in ["outbox", "debezium", "cloudevents"] {
        let source = Source::new(&format!("tombstones_{format}"));
        let hub = Hub::kafka(&source);
        let walgate = Walgate::new(&source, &hub).hub(&format!("format = \"{format}\"\ntombstones = true"));
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE keyless (n int); ALTER TABLE keyless REPLICA IDENTITY FULL");
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t VALUES (1, 0), (2, 0); INSERT INTO keyless VALUES (1)");
        source.exec("UPDATE t SET id = 3 WHERE id = 1; DELETE FROM t WHERE id = 2; DELETE FROM keyless");
        // The transaction of the hub that holds them may have been committed, or not, when the process dies.
        let walgate = walgate.failpoint("kafka.after-commit");
        assert!(crashes(&walgate), "it dies");
        let walgate = walgate.without_failpoint();
        walgate.run_until_caught_up();

        let records = records(&source, &hub);
        let ids: BTreeSet<&String> = records.iter().map(|record| &record.headers["id"]).collect();
        assert_eq!(ids.len(), records.len(), "each id once");
        let tombstones: Vec<usize> = (0..records.len()).filter(|&at| records[at].value.is_none()).collect();
        assert_eq!(tombstones.len(), 2, "one for the key change, one for the delete: {records:#?}");
        for at in tombstones {
            let (delete, tombstone) = (&records[at - 1], &records[at]);
            assert_eq!(delete.headers["op"], "delete");
            assert_eq!(tombstone.key, delete.key);
            assert_eq!(tombstone.headers["id"], format!("{}/t", delete.headers["id"]));
            assert_eq!((tombstone.partition, tombstone.offset), (delete.partition, delete.offset + 1));
            assert_eq!(tombstone.headers.get("content-type"), None);
        }
        let output = walgate.command(&["tail", "--from-beginning", "--count", &records.len().to_string()]);
        let lines = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(lines.lines().filter(|line| *line == "null").count(), 2, "{lines}");
    }
}

#[test]
fn check_says_what_compaction_does_to_large_values() {
    let source = Source::new("tombstones_check");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let hub = Hub::kafka(&source);
    let check = |lines: &str| {
        let output = Walgate::new(&source, &hub).hub(lines).command(&["check"]);
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = check("tombstones = true\ntopic_config = { \"cleanup.policy\" = \"compact\" }");
    assert!(text.contains("is compacted") && text.contains("REPLICA IDENTITY FULL"), "{text}");
    let text = check("tombstones = true");
    assert!(text.contains("hub.tombstones") && text.contains("not compacted"), "{text}");
    let text = check("");
    assert!(!text.contains("tombstones"), "{text}");
}
