//! Logical messages as events, trace contexts, and what a Kafka record carries besides its value (CASES T6).
//!
//! In: `pg_logical_emit_message` in every kind of transaction. Out: events, dead letters, headers, partitions.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::pick::{of_table, on_each_hub, on_file, ops, started, table_ops};
use crate::support::{Event, Hub, Source};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The SQL that emits an outbox message.
fn outbox(is_transactional: bool, aggregate_id: &str, payload: &str) -> String {
    let content = format!(
        r#"{{"aggregate_type":"Order","aggregate_id":"{aggregate_id}","type":"OrderPlaced","payload":{payload}}}"#
    );
    let content = content.replace('\'', "''");
    format!("SELECT pg_logical_emit_message({is_transactional}, 'walgate.outbox', '{content}')")
}

fn messages(events: &[Event]) -> Vec<&Event> {
    let mut found: Vec<&Event> = events.iter().filter(|event| event.json["op"] == "message").collect();
    found.sort_by_key(|event| event.place());
    found
}

#[test]
fn an_outbox_message_is_an_event_of_its_own_fields() {
    for (source, hub) in on_each_hub("outbox") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY)");
        let walgate = started(&source, &hub);
        let payload =
            r#"{"b": 1, "a": [1.10, null], "n": 1234567890123456789012345678901234567890, "s": "it's é\n"}"#;
        source.exec(&format!(
            "BEGIN; INSERT INTO t VALUES (1); {}; INSERT INTO t VALUES (2); COMMIT",
            outbox(true, "42", payload)
        ));
        walgate.run_until_caught_up();
        let events = hub.events();
        let [message] = messages(&events)[..] else { panic!("{events:#?}") };
        assert_eq!(message.text("type"), "OrderPlaced");
        assert_eq!(message.text("aggregate_type"), "Order");
        assert_eq!(message.text("aggregate_id"), "42");
        assert_eq!(message.json["source"]["name"], source.name());
        assert_eq!(message.json["before"], Value::Null);
        assert_eq!(message.json["v"], 1);
        assert_eq!(message.data("b"), 1);
        assert!(
            message.raw.contains("1.10") && message.raw.contains("1234567890123456789012345678901234567890"),
            "digits are kept: {}",
            message.raw
        );
        let of_rows: Vec<_> = of_table(&events, "public.t").into_iter().map(|event| event.place()).collect();
        let place = message.place();
        assert_eq!(
            (place.lsn, [of_rows[0].number, place.number, of_rows[1].number]),
            (of_rows[0].lsn, [2, 4, 6])
        );
        if matches!(hub, Hub::Kafka { .. }) {
            assert_eq!(message.key.as_deref(), Some("42"));
            let names: Vec<&str> = message.headers.keys().map(String::as_str).collect();
            assert_eq!(names, ["aggregate-type", "content-type", "id", "op", "type"]);
            assert_eq!(message.headers["op"], "message");
            assert_eq!(message.headers["aggregate-type"], "Order");
        }
    }
}

#[test]
fn payloads_of_every_kind_are_embedded_as_they_stand() {
    let (source, hub) = on_file("payloads");
    let walgate = started(&source, &hub);
    let payloads = ["null", "[]", "{}", "\"text\"", "12.50", "true", "[1, {\"a\":[]}]", "{\"a\":1,\"a\":2}"];
    for (number, payload) in payloads.iter().enumerate() {
        source.exec(&outbox(true, &number.to_string(), payload));
    }
    walgate.run_until_caught_up();
    let events = hub.events();
    let found = messages(&events);
    assert_eq!(found.len(), payloads.len());
    for (event, payload) in found.iter().zip(payloads) {
        assert!(event.raw.contains(&format!(r#""data":{payload},"#)), "{payload}: {}", event.raw);
    }
}

#[test]
fn case_t6_transactional_messages_only_on_commit_others_always() {
    for (source, hub) in on_each_hub("messages") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY)");
        let walgate = started(&source, &hub);
        source.exec(&format!(
            "BEGIN; {}; {}; INSERT INTO t VALUES (1); ROLLBACK",
            outbox(true, "aborted", "1"),
            outbox(false, "aborted but always", "2")
        ));
        source.exec(&format!(
            "BEGIN; {}; {}; INSERT INTO t VALUES (2); COMMIT",
            outbox(true, "committed", "3"),
            outbox(false, "committed and always", "4")
        ));
        source.exec(&format!(
            "BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; INSERT INTO t VALUES (3); COMMIT",
            outbox(true, "rolled back", "5")
        ));
        source.exec(&outbox(false, "alone", "6"));
        source.exec("SELECT pg_logical_emit_message(true, 'walgate.outboxes', '{}'), pg_logical_emit_message(false, 'other', 'x')");
        walgate.run_until_caught_up();
        // Nothing comes again after a restart.
        walgate.run_until_caught_up();
        let events = hub.events();
        let about: BTreeSet<&str> =
            messages(&events).iter().map(|event| event.text("aggregate_id")).collect();
        assert_eq!(
            about,
            BTreeSet::from(["aborted but always", "alone", "committed", "committed and always"])
        );
        assert_eq!(messages(&events).len(), 4);
        for event in messages(&events) {
            let is_alone = event.text("aggregate_id") != "committed";
            assert_eq!(
                event.place().number == 0,
                is_alone,
                "a non-transactional message is (its LSN, 0): {}",
                event.raw
            );
        }
        assert_eq!(
            table_ops(
                &events.iter().filter(|e| e.op() != "message").cloned().collect::<Vec<_>>(),
                "public.t"
            ),
            ["insert", "insert"]
        );
        let ids: BTreeSet<&str> = events.iter().map(Event::id).collect();
        assert_eq!(ids.len(), events.len());
    }
}

#[test]
fn a_malformed_message_is_a_dead_letter_and_the_pipeline_goes_on() {
    for (source, hub) in on_each_hub("deadletters") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY)");
        let walgate = started(&source, &hub);
        let malformed = [
            "not json",
            "",
            "[1]",
            "{\"aggregate_type\":\"A\"}",
            "{\"aggregate_type\":1,\"aggregate_id\":\"1\",\"type\":\"T\",\"payload\":1}",
        ];
        for content in malformed {
            source.exec(&format!("SELECT pg_logical_emit_message(true, 'walgate.outbox', '{content}')"));
        }
        source.exec("SELECT pg_logical_emit_message(true, 'walgate.outbox', '\\xff00fe'::bytea)");
        source.exec(&format!("BEGIN; INSERT INTO t VALUES (1); {}; COMMIT", outbox(true, "fine", "1")));
        walgate.run_until_caught_up();
        let (dead, events): (Vec<Event>, Vec<Event>) =
            hub.events().into_iter().partition(|event| event.topic.ends_with(".dead-letter"));
        let name = source.name();
        assert_eq!(dead.len(), malformed.len() + 1);
        for letter in &dead {
            assert_eq!(letter.topic, format!("{name}.{name}_hub.dead-letter"));
            assert!(letter.id().starts_with(&format!("{name}/")), "{}", letter.raw);
        }
        assert!(
            dead.iter().any(|letter| letter.raw.contains("not json")),
            "what was sent is there to be looked at"
        );
        assert_eq!(ops(&events, "fine"), ["message"]);
        assert_eq!(ops(&events, "1"), ["insert"]);
    }
}

#[test]
fn headers_are_these_and_no_others() {
    let source = Source::new("headers");
    let hub = Hub::kafka(&source);
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)");
    let walgate = started(&source, &hub);
    let trace = format!("SELECT pg_logical_emit_message(true, 'walgate.traceparent', '{TRACE}')");
    source.exec("UPDATE t SET n = 1; UPDATE t SET id = 2");
    source.exec(&format!(
        "BEGIN; {trace}; INSERT INTO t VALUES (3, 0); UPDATE t SET id = 4 WHERE id = 3; {}; COMMIT",
        outbox(true, "o", "1")
    ));
    source.exec("DELETE FROM t WHERE id = 2; TRUNCATE t");
    walgate.run_until_caught_up();
    let events = hub.events();
    for event in &events {
        let mut expected = BTreeSet::from(["id", "type", "aggregate-type", "op", "content-type"]);
        for (header, field) in [("moved-from", "moved_from"), ("moved-to", "moved_to")] {
            if let Some(other) = event.json[field].as_str() {
                expected.insert(header);
                assert_eq!(event.headers[header], other);
            }
        }
        if event.aggregate_id().is_some_and(|id| ["3", "4", "o"].contains(&id)) {
            expected.insert("traceparent");
            assert_eq!(event.headers.get("traceparent").map(String::as_str), Some(TRACE), "{}", event.raw);
        }
        let found: BTreeSet<&str> = event.headers.keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{}", event.raw);
        for (header, field) in
            [("id", "id"), ("type", "type"), ("aggregate-type", "aggregate_type"), ("op", "op")]
        {
            assert_eq!(event.headers[header], event.text(field));
        }
        assert_eq!(event.headers["content-type"], "application/json");
    }
    let of_op = |op| events.iter().filter(|event| event.op() == op).count();
    let counts = ["read", "update", "insert", "delete", "truncate", "message"].map(of_op);
    assert_eq!(counts, [1, 1, 3, 3, 3, 1]);
}

#[test]
fn a_keys_partition_is_the_one_that_java_computes() {
    // The vectors of Kafka's own UtilsTest.
    for (key, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
    }
    let source = Source::new("murmur");
    let hub = Hub::kafka(&source);
    source.exec(
        "CREATE TABLE t (k text PRIMARY KEY); CREATE TABLE pair (a int, b text, PRIMARY KEY (a, b)); CREATE TABLE keyless (n int);
         INSERT INTO t SELECT 'read ' || i FROM generate_series(1, 50) i; INSERT INTO keyless VALUES (1)",
    );
    let walgate = started(&source, &hub);
    source.exec("INSERT INTO t SELECT repeat('é', i) || i FROM generate_series(0, 50) i; INSERT INTO t VALUES (''), ('😀')");
    source.exec(
        "INSERT INTO pair SELECT i, 'x\"' || i FROM generate_series(1, 30) i; INSERT INTO keyless VALUES (2)",
    );
    source.exec("DELETE FROM t WHERE k LIKE 'read%'");
    source.exec(&outbox(true, "an order", "1"));
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(events.len(), 50 + 1 + 53 + 30 + 1 + 50 + 1);
    for event in &events {
        let key = event.aggregate_id().unwrap_or("keyless");
        assert_eq!(event.key.as_deref(), Some(key), "{}", event.raw);
        let partition = (murmur2(key.as_bytes()) & 0x7fff_ffff) % 3;
        assert_eq!(event.partition, partition, "{key:?}");
    }
    let used: BTreeSet<i32> = events.iter().map(|event| event.partition).collect();
    assert_eq!(used.len(), 3);
}

/// `org.apache.kafka.common.utils.Utils.murmur2`, from its description: MurmurHash2 of 32 bits with Kafka's seed.
fn murmur2(bytes: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(bytes.len()).expect("a short key");
    let mut hash = 0x9747_b28c ^ length;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes(word.try_into().expect("four bytes")).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    for (place, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    (hash ^ (hash >> 15)).cast_signed()
}

#[test]
fn a_traceparent_holds_for_its_own_transaction_only() {
    let source = Source::new("traces");
    let hub = Hub::kafka(&source);
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let walgate = started(&source, &hub);
    let trace = |is_transactional: bool| {
        format!("SELECT pg_logical_emit_message({is_transactional}, 'walgate.traceparent', '{TRACE}')")
    };
    source.exec(&format!("BEGIN; {}; INSERT INTO t VALUES (1); COMMIT", trace(true)));
    source.exec("INSERT INTO t VALUES (2)");
    source.exec(&format!("BEGIN; {}; INSERT INTO t VALUES (3); ROLLBACK", trace(true)));
    source.exec("INSERT INTO t VALUES (4)");
    walgate.run_until_caught_up();
    let events = hub.events();
    let traced: Vec<Option<&str>> =
        events.iter().filter(|e| e.headers.contains_key("traceparent")).map(Event::aggregate_id).collect();
    assert_eq!(traced, [Some("1")]);
    assert_eq!(events.len(), 3);
    assert!(
        events.iter().all(|event| event.json["data"] == json!({"id": event.data("id")})),
        "messages are not events"
    );
}
