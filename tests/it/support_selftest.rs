//! Whether the harness itself can be believed: servers, sources, a read_committed reader, and a fold that objects.

use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::support::{Cluster, Event, Fold, Session, Shutdown, Source, kafka, servers, unique_name};

const TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn a_source_is_a_database_of_its_own_and_goes_with_its_slots() {
    let source = Source::new("selftest");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, at timestamptz); INSERT INTO t VALUES (1, '2026-11-21 05:00+01')");
    let rows = source.query("SELECT id, at, NULL FROM t");
    assert_eq!(rows, [[Some("1".to_owned()), Some("2026-11-21 04:00:00+00".to_owned()), None]]);
    let slot = format!("{}_hub", source.name());
    source.query(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));

    let name = source.name().to_owned();
    drop(source);

    let server = Session::connect(&servers::postgres_url());
    assert_eq!(server.value(&format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'")), "0");
    assert_eq!(
        server.value(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'")),
        "0"
    );
}

#[test]
fn a_cluster_of_its_own_survives_a_restart_and_a_kill() {
    let cluster = Cluster::start(&[("max_replication_slots", "2")]);
    let mut source = Source::on(&cluster, "restarted");
    assert_eq!(source.value("SHOW max_replication_slots"), "2");
    source.exec("CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    cluster.restart(Shutdown::Fast);
    source.reconnect();
    source.exec("INSERT INTO t VALUES (2)");
    cluster.kill();
    cluster.resume();
    source.reconnect();
    assert_eq!(source.value("SELECT sum(id) FROM t"), "3");
}

#[test]
fn only_committed_records_are_read() {
    let brokers = servers::kafka_brokers();
    let topic = unique_name("selftest");
    kafka::create_topic(&brokers, &topic, 2, &[]);
    assert_eq!(kafka::partitions(&brokers, &topic), 2);
    assert_eq!(kafka::topics(&brokers, &topic), std::slice::from_ref(&topic));

    let mut config = kafka::client(&brokers);
    config.set("transactional.id", &topic).set("partitioner", "murmur2_random");
    let producer: BaseProducer = config.create().expect("a producer can be made");
    producer.init_transactions(TIMEOUT).expect("the transactions' coordinator answers");
    let send = |text: &str, key: &str| {
        producer.begin_transaction().expect("no transaction is open");
        for part in ["first", "second"] {
            let value = format!("{text} {part}");
            producer.send(BaseRecord::to(&topic).key(key).payload(&value)).expect("the queue has room");
        }
    };
    send("committed", "a");
    producer.commit_transaction(TIMEOUT).expect("a transaction commits");
    send("aborted", "b");
    producer.flush(TIMEOUT).expect("records are sent");
    producer.abort_transaction(TIMEOUT).expect("a transaction aborts");
    send("open", "c");
    producer.flush(TIMEOUT).expect("records are sent");

    let records = kafka::read_committed(&brokers, std::slice::from_ref(&topic));
    let values: Vec<&str> = records.iter().filter_map(|record| record.value.as_deref()).collect();
    assert_eq!(values, ["committed first", "committed second"]);
    assert!(records.iter().all(|record| record.key.as_deref() == Some("a")));

    producer.commit_transaction(TIMEOUT).expect("a transaction commits");
    assert_eq!(kafka::read_committed(&brokers, std::slice::from_ref(&topic)).len(), 4);
    kafka::delete_topics(&brokers, &[&topic]);
}

#[test]
fn a_fold_gives_the_rows_that_the_source_has() {
    let source = Source::new("fold");
    source.exec(
        "CREATE TABLE t (id int8 PRIMARY KEY, total numeric, at timestamptz, doc jsonb, tags text[], days date[],
                         ratio float8, raw bytea, ok bool, note text);
         INSERT INTO t VALUES (1, 19.90, '2026-11-21 04:55:30.12+00', '{\"k\": [1, null]}', '{a,NULL}',
                               '{2026-01-02}', 'NaN', '\\x00ff', true, NULL)",
    );
    let row = json!({
        "id": 1, "total": "19.90", "at": "2026-11-21T04:55:30.120000Z", "doc": {"k": [1, null]},
        "tags": ["a", null], "days": ["2026-01-02"], "ratio": "NaN", "raw": "AP8=", "ok": true, "note": null
    });
    Fold::of(&[event(2, 0, "insert", "1", &row)]).assert_equals(&source, "public.t");

    // Any one wrong value is seen.
    for (column, wrong) in [
        ("total", json!(19.9)),
        ("total", json!("19.9")),
        ("at", json!("2026-11-21 04:55:30.12+00")),
        ("doc", json!("{\"k\": [1, null]}")),
        ("tags", json!(["a", "NULL"])),
        ("ratio", Value::Null),
        ("raw", json!("\\x00ff")),
        ("ok", json!("t")),
        ("note", json!("")),
    ] {
        let mut row = row.clone();
        row[column] = wrong;
        let fold = Fold::of(&[event(2, 0, "insert", "1", &row)]);
        assert_objects(column, || fold.assert_equals(&source, "public.t"));
    }
}

#[test]
fn a_fold_keeps_what_is_unchanged_also_over_a_key_change() {
    let source = Source::new("moved");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int, note text); INSERT INTO t VALUES (2, 6, 'long')");
    let mut update = event(4, 1, "update", "1", &json!({"id": 1, "n": 6}));
    update.json["unchanged"] = json!(["note"]);
    let mut old_half = event(6, 2, "delete", "1", &Value::Null);
    old_half.json["moved_to"] = json!("2");
    let mut new_half = event(7, 3, "insert", "2", &json!({"id": 2, "n": 6}));
    new_half.json["moved_from"] = json!("1");
    new_half.json["unchanged"] = json!(["note"]);
    let events =
        [event(2, 0, "insert", "1", &json!({"id": 1, "n": 5, "note": "long"})), update, old_half, new_half];
    Fold::of(&events).assert_equals(&source, "public.t");
    assert_objects("a lost new half", || drop(Fold::of(&events[..3])));
}

#[test]
fn a_fold_objects_to_doubles_gaps_and_disorder() {
    let insert = event(2, 0, "insert", "1", &json!({"id": 1}));
    let update = |ordinal, offset| event(ordinal, offset, "update", "1", &json!({"id": 1}));
    Fold::of(&[insert.clone(), update(4, 1)]);
    assert_objects("an id twice", || drop(Fold::of(&[insert.clone(), update(4, 1), update(4, 2)])));
    assert_objects("a row twice", || {
        drop(Fold::of(&[insert.clone(), event(4, 1, "insert", "1", &json!({"id": 1}))]))
    });
    assert_objects("disorder", || drop(Fold::of(&[insert.clone(), update(6, 1), update(4, 2)])));
    assert_objects("a gap", || drop(Fold::of(&[update(4, 1)])));
    Fold::without_snapshot(&[update(4, 1)]);
}

/// An event of `public.t` in the transaction at 0/10, as the file hub would give it.
fn event(ordinal: u64, offset: i64, op: &str, aggregate_id: &str, data: &Value) -> Event {
    let json = json!({
        "v": 1, "id": format!("s/0000000000000010/{ordinal:08X}"), "type": format!("t.{op}"), "aggregate_type": "t",
        "aggregate_id": aggregate_id, "op": op, "occurred_at": "2026-11-21T04:55:30.123456Z",
        "source": {"name": "s", "schema": "public", "table": "t", "lsn": "0/8", "commit_lsn": "0/10", "xid": 7,
                   "seq": ordinal, "origin": null, "snapshot": false, "schema_id": "0"},
        "data": data, "before": null, "unchanged": [], "moved_from": null, "moved_to": null, "claim": null
    });
    let raw = json.to_string();
    Event {
        topic: "s.public.t".into(),
        partition: 0,
        offset,
        key: None,
        headers: Default::default(),
        json,
        raw,
    }
}

fn assert_objects(what: &str, check: impl FnOnce()) {
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err(), "not seen: {what}");
}
