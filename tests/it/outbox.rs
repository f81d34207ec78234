//! Outbox tables (CASES O1): what a service inserted is the event, once, whatever else it does to the row.
//!
//! In: tables as services write them, in our names, in Debezium's, in their own. Out: events, headers, tombstones, dead
//! letters; and a source whose rows are gone once the hub has them. The source's own rows are the oracle.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::pick::{on_each_hub, on_file};
use crate::support::{Event, Hub, Source, Walgate, http, kafka, wait_until};

const TABLE: &str = "CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text, \
    aggregate_id text, type text, payload jsonb, headers jsonb, topic text, timestamp timestamptz)";
const RULE: &str = "[[table]]\nname = \"public.outbox\"\nmode = \"outbox\"";

/// Walgate with this rule alone, its slot made.
#[track_caller]
fn outbox(source: &Source, hub: &Hub, keys: &str) -> Walgate {
    let walgate = Walgate::new(source, hub).section(&format!("{RULE}\n{keys}"));
    walgate.run_until_caught_up();
    walgate
}

/// Events of outbox rows in their order, and dead letters.
fn events_of(hub: &Hub) -> (Vec<Event>, Vec<Event>) {
    let (dead, mut events): (Vec<Event>, Vec<Event>) =
        hub.events().into_iter().partition(|event| event.topic.ends_with(".dead-letter"));
    events.sort_by_key(|event| event.place());
    (events, dead)
}

/// The records of a Kafka hub that have no value, by key.
fn tombstones(hub: &Hub) -> Vec<kafka::Record> {
    let Hub::Kafka { brokers, .. } = hub else { return Vec::new() };
    let records = kafka::read_committed(brokers, &hub.topics());
    records.into_iter().filter(|record| record.value.is_none()).collect()
}

fn insert(columns: &str, values: &str) -> String {
    format!("INSERT INTO outbox (aggregate_type, aggregate_id, type, {columns}) VALUES {values}")
}

#[test]
fn case_o1_an_inserted_row_is_the_event() {
    for (source, hub) in on_each_hub("outbox") {
        source.exec(TABLE);
        let walgate = outbox(&source, &hub, "");
        let payload =
            r#"{"b": 1, "a": [1.10, null], "n": 1234567890123456789012345678901234567890, "s": "it''s é\n"}"#;
        source.exec(&insert("payload", &format!("('Order', '42', 'OrderPlaced', '{payload}')")));
        source.exec(&insert("payload", "('Order', '42', 'OrderPacked', '[]'), ('Order', '43', 'X', 'null')"));
        source.exec("DELETE FROM outbox WHERE type = 'OrderPlaced'");
        walgate.run_until_caught_up();
        // Nothing comes again after a restart.
        walgate.run_until_caught_up();
        let (events, dead) = events_of(&hub);
        assert!(dead.is_empty(), "{dead:#?}");
        let [placed, packed, of_null] = &events[..] else { panic!("{events:#?}") };
        assert_eq!(placed.text("type"), "OrderPlaced");
        assert_eq!(placed.text("aggregate_type"), "Order");
        assert_eq!(placed.text("aggregate_id"), "42");
        assert_eq!(placed.op(), "message");
        assert_eq!(placed.table(), "public.outbox");
        assert_eq!(placed.json["v"], 1);
        assert_eq!(placed.json["claim"], Value::Null);
        assert_eq!(placed.json["source"]["snapshot"], false);
        assert_eq!(placed.json["outbox"], json!({"id": "1", "headers": {}}));
        assert!(
            placed.raw.contains("1.10") && placed.raw.contains("1234567890123456789012345678901234567890"),
            "digits are kept: {}",
            placed.raw
        );
        assert_eq!(packed.json["data"], json!([]), "an empty array is a payload");
        assert!(of_null.raw.contains(r#""data":null,"#), "so is a JSON null: {}", of_null.raw);
        assert!(tombstones(&hub).is_empty());
        if matches!(hub, Hub::Kafka { .. }) {
            assert_eq!(placed.key.as_deref(), Some("42"));
            let expected = ["aggregate-type", "content-type", "id", "op", "outbox-id", "type"];
            assert_eq!(placed.headers.keys().map(String::as_str).collect::<Vec<_>>(), expected);
            assert_eq!(placed.headers["outbox-id"], "1");
            assert_eq!(placed.headers["type"], "OrderPlaced");
            assert_eq!(placed.partition, packed.partition, "one aggregate, one partition");
        }
    }
}

#[test]
fn case_o1_a_null_payload_is_a_tombstone() {
    for (source, hub) in on_each_hub("tombstone") {
        source.exec(TABLE);
        let walgate = outbox(&source, &hub, "");
        source.exec(&insert("payload", "('Order', '42', 'OrderForgotten', NULL)"));
        walgate.run_until_caught_up();
        match hub {
            // A file is not compacted: the envelope says it.
            Hub::File { .. } => {
                let (events, dead) = events_of(&hub);
                let [event] = &events[..] else { panic!("{events:#?} {dead:#?}") };
                assert!(event.raw.contains(r#""data":null,"#), "{}", event.raw);
                assert_eq!(event.text("type"), "OrderForgotten");
            }
            Hub::Kafka { .. } => {
                let found = tombstones(&hub);
                let [record] = &found[..] else { panic!("{found:#?}") };
                assert_eq!(record.key.as_deref(), Some("42"));
                assert_eq!(record.headers["type"], "OrderForgotten");
                assert_eq!(record.headers["op"], "message");
            }
        }
    }
}

#[test]
fn case_o1_headers_topics_and_times_are_the_rows_own() {
    for (source, hub) in on_each_hub("headers") {
        let name = source.name().to_owned();
        source.exec(TABLE);
        source.exec("ALTER TABLE outbox ADD tenant text, ADD shard int");
        let walgate = outbox(&source, &hub, "outbox.header_columns = [\"tenant\", \"shard\"]");
        let headers = r#"{"trace": "é\"", "attempt": 2, "none": null, "type": "mine"}"#;
        source.exec(&insert(
            "payload, headers, topic, timestamp, tenant, shard",
            &format!(
                "('Order', '1', 'T', '1', '{headers}', '{name}.own topic', '2026-01-02 03:04:05.5+02', 'acme', NULL), \
                 ('Order', '2', 'T', '2', NULL, '', NULL, NULL, 7)"
            ),
        ));
        walgate.run_until_caught_up();
        let (events, dead) = events_of(&hub);
        let [one, two] = &events[..] else { panic!("{events:#?} {dead:#?}") };
        assert_eq!(one.topic, format!("{name}.own_topic"));
        assert_eq!(two.topic, format!("{name}.public.outbox"), "an empty topic is none");
        assert_eq!(one.text("occurred_at"), "2026-01-02T01:04:05.5Z");
        assert!(two.text("occurred_at") > "2026-06", "without a time of its own, the commit's");
        let of_one = json!({"tenant": "acme", "trace": "é\"", "attempt": "2", "header-type": "mine"});
        assert_eq!(one.json["outbox"]["headers"], of_one);
        assert_eq!(two.json["outbox"]["headers"], json!({"shard": "7"}));
        if matches!(hub, Hub::Kafka { .. }) {
            assert_eq!(one.headers["type"], "T", "ours is not replaced");
            let expected = [("tenant", "acme"), ("trace", "é\""), ("attempt", "2"), ("header-type", "mine")];
            for (header, value) in expected {
                assert_eq!(one.headers.get(header).map(String::as_str), Some(value), "{header}");
            }
            assert!(!one.headers.contains_key("none") && !one.headers.contains_key("shard"));
        }
    }
}

#[test]
fn a_rows_trace_context_is_the_events() {
    let source = Source::new("trace");
    let hub = Hub::kafka(&source);
    source.exec(TABLE);
    let walgate = outbox(&source, &hub, "");
    let traced = insert("payload, headers", "('A', '1', 'T', '1', '{\"traceparent\": \"00-own\"}')");
    let plain = insert("payload", "('A', '2', 'T', '1')");
    source.exec(&format!(
        "BEGIN; SELECT pg_logical_emit_message(true, 'walgate.traceparent', '00-shared'); {traced}; {plain}; COMMIT"
    ));
    walgate.run_until_caught_up();
    let (events, _) = events_of(&hub);
    let traces: Vec<&str> = events.iter().map(|event| event.headers["traceparent"].as_str()).collect();
    assert_eq!(traces, ["00-own", "00-shared"]);
}

#[test]
fn debeziums_columns_are_taken_as_they_are() {
    for (source, hub) in on_each_hub("debezium") {
        source.exec(
            "CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, \
             aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)",
        );
        let name = source.name().to_owned();
        let route = format!("outbox.topic_template = \"{name}.outbox.event.{{aggregate_type}}\"");
        let walgate = outbox(&source, &hub, &route);
        source.exec(
            "INSERT INTO outbox VALUES ('406c07f3-26f0-4eea-a50c-109940064b8f', 'Order', '1', 'OrderCreated', '{\"id\": 1}')",
        );
        walgate.run_until_caught_up();
        let (events, dead) = events_of(&hub);
        let [event] = &events[..] else { panic!("{events:#?} {dead:#?}") };
        assert_eq!(event.topic, format!("{name}.outbox.event.Order"));
        assert_eq!((event.text("aggregate_type"), event.text("aggregate_id")), ("Order", "1"));
        assert_eq!(event.json["data"], json!({"id": 1}));
        assert_eq!(event.json["outbox"]["id"], "406c07f3-26f0-4eea-a50c-109940064b8f");
    }
}

#[test]
fn columns_have_other_names_and_payloads_other_types() {
    for (source, hub) in on_each_hub("renamed") {
        source.exec(
            "CREATE TYPE kind AS ENUM ('Made', 'Gone');
             CREATE TABLE public.texts (event_id uuid DEFAULT gen_random_uuid() PRIMARY KEY, about text, about_id int, kind kind, body text, at timestamp);
             CREATE TABLE public.bytes (LIKE public.texts INCLUDING ALL); ALTER TABLE public.bytes ALTER body TYPE bytea USING NULL;
             CREATE TABLE public.json_texts (LIKE public.texts INCLUDING ALL);
             CREATE TABLE public.json_bytes (LIKE public.bytes INCLUDING ALL)",
        );
        let columns = "outbox.id = \"event_id\"\noutbox.aggregate_type = \"about\"\noutbox.aggregate_id = \"about_id\"\n\
            outbox.type = \"kind\"\noutbox.payload = \"body\"\noutbox.timestamp = \"at\"\nmode = \"outbox\"";
        let as_json = format!("{columns}\noutbox.payload_format = \"json\"");
        let walgate = Walgate::new(&source, &hub)
            .section(&format!("[[table]]\nname = \"public.texts\"\n{columns}"))
            .section(&format!("[[table]]\nname = \"public.bytes\"\n{columns}"))
            .section(&format!("[[table]]\nname = \"public.json_*\"\n{as_json}"));
        walgate.run_until_caught_up();
        for (table, body) in [
            ("texts", "{\"a\":\n1}"),
            ("bytes", "\\x00ff"),
            ("json_texts", " {\"a\":\n1.0}"),
            ("json_bytes", "{\"a\":[2]}"),
        ] {
            source.exec(&format!(
                "INSERT INTO {table} (about, about_id, kind, body, at) VALUES ('A', 7, 'Made', '{body}', '2026-01-02 03:04:05')"
            ));
        }
        walgate.run_until_caught_up();
        let (events, dead) = events_of(&hub);
        assert!(dead.is_empty(), "{dead:#?}");
        let data: BTreeMap<String, &Value> =
            events.iter().map(|event| (event.table(), &event.json["data"])).collect();
        assert_eq!(data["public.texts"], &json!("{\"a\":\n1}"));
        assert_eq!(data["public.bytes"], &json!("AP8="));
        assert_eq!(data["public.json_texts"], &json!({"a": 1.0}));
        assert_eq!(data["public.json_bytes"], &json!({"a": [2]}));
        for event in &events {
            assert_eq!(event.text("occurred_at"), "2026-01-02T03:04:05Z");
            assert_eq!((event.text("type"), event.aggregate_id()), ("Made", Some("7")));
        }
    }
}

#[test]
fn case_o1_what_cannot_be_an_event_is_a_dead_letter_and_the_pipeline_goes_on() {
    for (source, hub) in on_each_hub("deadrows") {
        source.exec(&TABLE.replace("payload jsonb", "payload text"));
        let mut walgate =
            Walgate::new(&source, &hub).section(&format!("{RULE}\noutbox.payload_format = \"json\""));
        let port = walgate.admin_port();
        walgate.run_until_caught_up();
        source.exec(&insert("payload", "('A', '1', 'T', '{not json')"));
        source.exec("INSERT INTO outbox (aggregate_id, type, payload) VALUES ('2', 'T', '1')");
        source.exec("INSERT INTO outbox (aggregate_type, aggregate_id, payload) VALUES ('A', '3', '1')");
        source.exec(&insert("payload, headers", "('A', '4', 'T', '1', '{\"a\": {}}')"));
        source.exec(&insert(
            "payload, topic",
            &format!("('A', '5', 'T', '1', '{}.x.checkpoint')", source.name()),
        ));
        source.exec(&insert("payload, timestamp", "('A', '6', 'T', '1', 'infinity')"));
        source.exec(&insert("payload", "('A', 'fine', 'T', '{\"a\": 1}')"));
        source.exec("UPDATE outbox SET type = 'changed' WHERE aggregate_id = 'fine'");
        let mut running = walgate.run();
        let last = |hub: &Hub| events_of(hub).1.iter().any(|letter| letter.raw.contains("was updated"));
        wait_until("the last dead letter", || last(&hub));
        let (events, dead) = events_of(&hub);
        let name = source.name();
        let reasons = [
            "\"payload\" is not JSON",
            "\"aggregate_type\" is NULL",
            "\"type\" is NULL",
            "\"headers\" is no object of strings",
            "is a pipeline's own",
            "is no time that an event can have",
            "the row was updated",
        ];
        for (letter, reason) in in_order(&dead).into_iter().zip(reasons) {
            assert_eq!(letter.topic, format!("{name}.{name}_hub.dead-letter"));
            assert!(letter.text("reason").contains(reason), "{reason}: {}", letter.raw);
            assert_eq!(letter.text("table"), "public.outbox");
            assert!(letter.id().starts_with(&format!("{name}/")) && !letter.text("lsn").is_empty());
        }
        assert_eq!(dead.len(), reasons.len(), "{dead:#?}");
        assert!(dead.iter().any(|letter| letter.json["content"]["payload"] == "{not json"));
        let about: Vec<&str> = events.iter().filter_map(Event::aggregate_id).collect();
        assert_eq!(about, ["fine"], "it was published as it was inserted");
        assert_eq!(events[0].text("type"), "T");
        wait_until("the count", || http::metric(port, "walgate_dead_letters_total") == Some(7.0));
        assert!(running.is_running());
    }
}

fn in_order(events: &[Event]) -> Vec<&Event> {
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by_key(|event| event.id().to_owned());
    sorted
}

#[test]
fn rows_of_before_the_start_are_published_once_in_their_order() {
    for (source, hub) in on_each_hub("copied") {
        source.exec(TABLE);
        source.exec(
            "INSERT INTO outbox (aggregate_type, aggregate_id, type, payload) \
             SELECT 'A', i % 7, 'T', to_jsonb(i) FROM generate_series(1, 6000) i",
        );
        source.exec("DELETE FROM outbox WHERE id % 3 = 0");
        source.exec("VACUUM outbox");
        // These fill the gaps, so that they lie before older ones.
        source.exec(
            "INSERT INTO outbox (aggregate_type, aggregate_id, type, payload) \
             SELECT 'A', i % 7, 'T', to_jsonb(i) FROM generate_series(6001, 6500) i",
        );
        // A crash in the middle of the copy: none of it was published.
        let dying = Walgate::new(&source, &hub).section(RULE).failpoint("snapshot.in-table:4000");
        assert!(crate::crash::crashes(&dying));
        let walgate = outbox(&source, &hub, "");
        source.exec(&insert("payload", "('A', '0', 'T', '6501')"));
        walgate.run_until_caught_up();
        let (events, dead) = events_of(&hub);
        assert!(dead.is_empty());
        let expected: Vec<i64> = (1..=6000).filter(|i| i % 3 != 0).chain(6001..=6501).collect();
        let found: Vec<i64> =
            events.iter().map(|event| event.json["data"].as_i64().expect("a number")).collect();
        assert_eq!(found, expected);
        assert!(events.iter().all(|event| event.op() == "message"), "no truncate, no read");
        let copied = events.iter().filter(|event| event.json["source"]["snapshot"] == true).count();
        assert_eq!(copied, 4500);
    }
}

#[test]
fn truncate_is_clean_up() {
    let (source, hub) = on_file("truncated");
    source.exec(TABLE);
    let walgate = outbox(&source, &hub, "");
    source.exec(&insert("payload", "('A', '1', 'T', '1')"));
    source.exec("TRUNCATE outbox");
    source.exec(&insert("payload", "('A', '1', 'T', '2')"));
    let log = walgate.run_until_caught_up();
    assert!(log.contains("an outbox table was truncated"), "{log}");
    let (events, dead) = events_of(&hub);
    assert_eq!((events.len(), dead.len()), (2, 0), "{events:#?}");
}

#[test]
fn cleanup_removes_rows_once_the_hub_has_them() {
    for (source, hub) in on_each_hub("cleanup") {
        source.exec(TABLE);
        source.exec(&insert("payload", "('A', 'before', 'T', '0')"));
        let walgate = outbox(&source, &hub, "cleanup = \"delete\"");
        // What was copied goes as well.
        until_clean(&source, &walgate);
        // A row that somebody holds is left alone, and delivered nevertheless.
        source.exec(&insert("payload", "('A', 'held', 'T', '1'), ('A', 'free', 'T', '2')"));
        let holder = source.session();
        holder.exec("BEGIN; SELECT FROM outbox WHERE aggregate_id = 'held' FOR UPDATE");
        wait_until("the other row to be removed", || {
            walgate.run_until_caught_up();
            source.value("SELECT string_agg(aggregate_id, ',') FROM outbox") == "held"
        });
        holder.exec("COMMIT");
        let running = walgate.run();
        wait_until("the row that was held to be removed", || {
            source.value("SELECT count(*) FROM outbox") == "0"
        });
        source.exec(&insert("payload", "('A', 'streamed', 'T', '3')"));
        wait_until("a row that came by the stream to be removed", || {
            source.value("SELECT count(*) FROM outbox") == "0"
        });
        running.stop();
        walgate.run_until_caught_up();
        let (events, dead) = events_of(&hub);
        let about: Vec<&str> = events.iter().filter_map(Event::aggregate_id).collect();
        assert_eq!(about, ["before", "held", "free", "streamed"], "deletes are no events");
        assert!(dead.is_empty());
    }
}

#[test]
fn cleanup_never_removes_what_the_hub_does_not_have() {
    let source = Source::new("undelivered");
    let hub = Hub::file();
    source.exec(TABLE);
    source.exec("CREATE TABLE busy (n int)");
    let walgate = outbox(&source, &hub, "cleanup = \"delete\"");
    // An open transaction, and in it a row in a sub-transaction: younger than others that commit before it.
    let open = source.session();
    open.exec(&format!("BEGIN; SAVEPOINT s; {}; RELEASE s", insert("payload", "('A', 'late', 'T', '1')")));
    source.exec(&insert("payload", "('A', 'early', 'T', '2')"));
    // Dies when all was delivered, and nothing removed.
    let dying = Walgate::new(&source, &hub)
        .section(&format!("{RULE}\ncleanup = \"delete\""))
        .failpoint("cleanup.before-delete");
    assert!(crate::crash::crashes(&dying));
    assert_eq!(source.value("SELECT count(*) FROM outbox"), "1");
    open.exec("COMMIT");
    until_clean(&source, &walgate);
    let (events, _) = events_of(&hub);
    let mut about: Vec<&str> = events.iter().filter_map(Event::aggregate_id).collect();
    about.sort_unstable();
    assert_eq!(about, ["early", "late"]);
}

/// Runs until no row is left. Transactions of other tests on the same server may hold that up.
#[track_caller]
fn until_clean(source: &Source, walgate: &Walgate) {
    wait_until("the table to be empty", || {
        walgate.run_until_caught_up();
        source.value("SELECT count(*) FROM outbox") == "0"
    });
}

/// Killed again and again while rows come: each is published once, and at the end none is left.
#[test]
fn cleanup_under_kill_9_loses_and_doubles_nothing() {
    for (source, hub) in on_each_hub("killed") {
        source.exec(TABLE);
        source.exec("CREATE TABLE oracle (n int PRIMARY KEY)");
        let walgate = Walgate::new(&source, &hub).section(&format!("{RULE}\ncleanup = \"delete\""));
        let mut n = 0;
        let mut write = || {
            let rows: Vec<String> = (n..n + 5).map(|i| format!("('A', '{}', 'T', '{i}')", i % 3)).collect();
            source.exec(&format!(
                "BEGIN; INSERT INTO oracle SELECT generate_series({n}, {}); {}; COMMIT",
                n + 4,
                insert("payload", &rows.join(", "))
            ));
            n += 5;
            n
        };
        for failpoint in ["cleanup.before-delete:2", "cleanup.after-delete:2", "stream.in-transaction:30"] {
            let dying = Walgate::new(&source, &hub).section(&format!("{RULE}\ncleanup = \"delete\""));
            let mut running = dying.failpoint(failpoint).run();
            wait_until("its death", || {
                write();
                !running.is_running()
            });
        }
        for _ in 0..3 {
            let mut running = walgate.run();
            let seen = (0..10).map(|_| write()).max().expect("ten of them") - 25;
            wait_until("some of them on the hub", || {
                write();
                events_of(&hub).0.iter().any(|event| event.json["data"] == json!(seen))
            });
            running.kill9();
        }
        until_clean(&source, &walgate);
        let (events, dead) = events_of(&hub);
        let found: Vec<i64> =
            events.iter().map(|event| event.json["data"].as_i64().expect("a number")).collect();
        let expected: Vec<i64> = source
            .query("SELECT n FROM oracle ORDER BY n")
            .iter()
            .map(|row| row[0].as_ref().expect("a number").parse().expect("a number"))
            .collect();
        assert_eq!(found, expected);
        assert!(dead.is_empty());
    }
}

#[test]
fn the_migration_offers_a_table_and_a_function() {
    let (source, hub) = on_file("migrated");
    source.exec("CREATE SCHEMA shop");
    let walgate = Walgate::new(&source, &hub).section("[[table]]\nname = \"shop.events\"\nmode = \"outbox\"");
    let printed = walgate.command(&["migrate", "--print", "--outbox", "shop.events"]);
    let script = String::from_utf8(printed.stdout).expect("UTF-8");
    assert!(script.contains("CREATE TABLE IF NOT EXISTS \"shop\".\"events\""), "{script}");
    for _ in 0..2 {
        let done = walgate.command(&["migrate", "--outbox", "shop.events"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    assert_eq!(
        source.value(
            "SELECT prosecdef::text || array_to_string(proconfig, ';') FROM pg_proc WHERE proname = 'emit'"
        ),
        "falsesearch_path=pg_catalog, pg_temp"
    );
    let wrong = walgate.command(&["migrate", "--outbox", "events"]);
    assert_eq!(wrong.status.code(), Some(2));
    walgate.run_until_caught_up();
    source.exec("BEGIN; SELECT walgate.emit('Order', '1', 'Undone', '{}'); ROLLBACK");
    source.exec("BEGIN; SELECT walgate.emit('Order', '1', 'Emitted', '{\"a\": 1}'); \
        INSERT INTO shop.events (aggregate_type, aggregate_id, type, payload) VALUES ('Order', '1', 'Inserted', '{\"a\": 2}'); COMMIT");
    walgate.run_until_caught_up();
    let (events, dead) = events_of(&hub);
    let kinds: Vec<&str> = events.iter().map(|event| event.text("type")).collect();
    assert_eq!((kinds, dead.len()), (vec!["Emitted", "Inserted"], 0));
}

#[test]
fn check_names_what_an_outbox_table_lacks() {
    let (source, hub) = on_file("checked");
    source.exec(
        "CREATE TABLE outbox (id bigint PRIMARY KEY, aggregatetype text, payload int, body jsonb);
         CREATE TABLE good (id bigint PRIMARY KEY, aggregate_type text, aggregate_id text, type text, payload jsonb);
         CREATE PUBLICATION theirs FOR TABLE outbox, good WITH (publish = 'update, delete')",
    );
    let walgate = Walgate::new(&source, &hub)
        .source("publication = \"theirs\"")
        .section(RULE)
        .section("[[table]]\nname = \"public.good\"\nmode = \"outbox\"\ncleanup = \"delete\"");
    let output = walgate.command(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = report.to_string();
    for expected in [
        "table[0].outbox.aggregate_id",
        "table[0].outbox.type",
        "table[0].outbox.payload",
        "which cannot be its payload",
        "does not publish insert, which is all that an outbox table is",
    ] {
        assert!(text.contains(expected), "{expected}: {report:#}");
    }
    assert!(!text.contains("table[0].outbox.aggregate_type"), "{report:#}");
}
