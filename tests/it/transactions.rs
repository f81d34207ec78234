//! Transactions and order: what was committed, in the order of the commits, and nothing else (CASES T).
//!
//! In: overlapping, aborted, prepared and very large transactions, DDL between DML. Out: the events' order, their
//! ids, and what they fold to.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fold::assert_folded_equals;
use crate::support::pick::{of_table, on_each_hub, on_file, only, ops, started, table_ops};
use crate::support::{Cluster, Event, Hub, Shutdown, Source, Walgate, kafka, wait_until};

#[test]
fn case_t1_interleaved_transactions_come_in_the_order_of_their_commits() {
    let (source, hub) = on_file("interleaved");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, who text)");
    let walgate = started(&source, &hub);
    let [long, aborted] = [source.session(), source.session()];
    long.exec("BEGIN; INSERT INTO t VALUES (1, 'long')");
    aborted.exec("BEGIN; INSERT INTO t VALUES (1000, 'aborted')");
    for id in 10..20 {
        source.exec(&format!("INSERT INTO t VALUES ({id}, 'short')"));
        long.exec(&format!("INSERT INTO t VALUES ({id} + 100, 'long')"));
        aborted.exec(&format!("INSERT INTO t VALUES ({id} + 200, 'aborted')"));
    }
    aborted.exec("ROLLBACK");
    long.exec("COMMIT");
    source.exec("INSERT INTO t VALUES (2, 'last')");
    walgate.run_until_caught_up();
    let events = hub.events();
    let ids: Vec<i64> = events.iter().map(|event| event.data("id").as_i64().expect("an id")).collect();
    let expected: Vec<i64> = (10..20).chain([1]).chain(110..120).chain([2]).collect();
    assert_eq!(ids, expected, "the file is in the order of the commits");
    let places: Vec<_> = events.iter().map(Event::place).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_t1_order_per_aggregate_holds_on_kafka() {
    let source = Source::new("aggregateorder");
    let hub = Hub::kafka(&source);
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i",
    );
    let running = Walgate::new(&source, &hub).run();
    let writers: Vec<_> = (0..3).map(|_| source.session()).collect();
    std::thread::scope(|scope| {
        for (which, writer) in writers.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..60 {
                    let id = (round * 7 + which) % 20 + 1;
                    writer.exec(&format!("UPDATE t SET n = n + 1 WHERE id = {id}"));
                }
            });
        }
    });
    source.exec("INSERT INTO t VALUES (1000, 0)");
    let events =
        hub.wait_for("the last row", |events| events.iter().any(|e| e.aggregate_id() == Some("1000")));
    running.stop();
    // The values themselves tell the order, without a look at the ids.
    let mut last = std::collections::HashMap::new();
    for event in &events {
        let n = event.data("n").as_i64().expect("a number");
        let before = last.insert(event.aggregate_id(), (event.partition, n));
        match before {
            Some((partition, before)) => {
                assert_eq!((partition, before + 1), (event.partition, n), "{}", event.raw)
            }
            None => assert!(matches!(event.op(), "read" | "insert"), "{}", event.raw),
        }
    }
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_t2_only_what_survives_its_savepoints() {
    let (source, hub) = on_file("savepoints");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int)");
    let walgate = started(&source, &hub);
    source.exec(
        "BEGIN;
         INSERT INTO t SELECT i, 0 FROM generate_series(1, 5000) i;
         SAVEPOINT a; UPDATE t SET n = 1 WHERE id <= 100; ROLLBACK TO a;
         SAVEPOINT b; UPDATE t SET n = 2 WHERE id <= 50; RELEASE b;
         SAVEPOINT c; DELETE FROM t WHERE id > 4000;
         SAVEPOINT d; INSERT INTO t VALUES (9000, 0); ROLLBACK TO c;
         INSERT INTO t VALUES (9001, 0);
         DO $$ BEGIN
           FOR i IN 1..50 LOOP
             BEGIN INSERT INTO t VALUES (10000 + i, i); INSERT INTO t VALUES (CASE WHEN i % 2 = 0 THEN 1 ELSE 20000 + i END, i);
             EXCEPTION WHEN unique_violation THEN NULL; END;
           END LOOP;
         END $$;
         COMMIT",
    );
    source.exec("BEGIN; INSERT INTO t VALUES (9999, 0); SAVEPOINT a; INSERT INTO t VALUES (9998, 0); RELEASE a; ROLLBACK");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(events.len(), 5000 + 50 + 1 + 50);
    let numbers: Vec<u64> = events.iter().map(|event| event.place().number).collect();
    assert_eq!(
        numbers,
        (1..=5101).map(|n| 2 * n).collect::<Vec<u64>>(),
        "what was rolled back has no ordinal"
    );
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_t3_each_change_is_decoded_with_the_columns_it_had() {
    let (source, hub) = on_file("ddl");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, a int)");
    let walgate = started(&source, &hub);
    source.exec(
        "BEGIN; INSERT INTO t VALUES (1, 1); ALTER TABLE t ADD b text DEFAULT 'd'; INSERT INTO t VALUES (2, 2, 'two');
         UPDATE t SET a = 10 WHERE id = 1; ALTER TABLE t RENAME a TO c; INSERT INTO t VALUES (3, 3, 'three'); COMMIT",
    );
    source.exec("ALTER TABLE t DROP b; INSERT INTO t VALUES (4, 4)");
    walgate.run_until_caught_up();
    source.exec("ALTER TABLE t ALTER c TYPE text USING 'n' || c; INSERT INTO t VALUES (5, 'five')");
    source.exec("CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE t ADD m mood[]; INSERT INTO t VALUES (6, 'six', '{ok,sad}')");
    source.exec("ALTER TABLE t DROP m; DROP TYPE mood; INSERT INTO t VALUES (7, 'seven')");
    walgate.run_until_caught_up();
    let events = hub.events();
    let rows: Vec<&Value> =
        of_table(&events, "public.t").into_iter().map(|event| &event.json["data"]).collect();
    let expected = [
        json!({"id": 1, "a": 1}),
        json!({"id": 2, "a": 2, "b": "two"}),
        json!({"id": 1, "a": 10, "b": "d"}),
        json!({"id": 3, "c": 3, "b": "three"}),
        json!({"id": 4, "c": 4}),
        json!({"id": 5, "c": "five"}),
    ];
    assert_eq!(rows[..6], expected.iter().collect::<Vec<_>>()[..]);
    assert_eq!(*rows[7], json!({"id": 7, "c": "seven"}));
    assert_eq!(rows[6]["id"], 6);
    let schemas: Vec<&str> = events.iter().map(schema_id).collect();
    let [one, two, three, four, five, six, seven, eight] = schemas[..] else { panic!("{schemas:?}") };
    assert_eq!(two, three);
    let all = [one, two, four, five, six, seven];
    let distinct: std::collections::BTreeSet<&str> = all.into_iter().collect();
    assert_eq!(distinct.len(), all.len(), "{schemas:?}");
    assert_eq!(eight, six, "the same columns and types again");
}

#[test]
fn case_t3_columns_change_while_it_runs() {
    let (source, hub) = on_file("ddlrunning");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 1)");
    let running = Walgate::new(&source, &hub).run();
    hub.wait_for("the copy", |events| events.len() == 1);
    source.exec("INSERT INTO t VALUES (2, 2)");
    hub.wait_for("the stream", |events| events.len() == 2);
    // A type that did not exist when the process started.
    source.exec("CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE t ADD m mood[]; INSERT INTO t VALUES (3, 3, '{ok,NULL}')");
    source.exec("ALTER TABLE t DROP a; UPDATE t SET m = '{}' WHERE id = 1");
    let events = hub.wait_for("all of them", |events| events.len() == 4);
    running.stop();
    assert_eq!(events[2].json["data"], json!({"id": 3, "a": 3, "m": ["ok", null]}));
    assert_eq!(events[3].json["data"], json!({"id": 1, "m": []}));
    assert_ne!(schema_id(&events[1]), schema_id(&events[2]));
}

#[test]
fn case_t3_a_table_dropped_or_renamed_before_it_is_read_loses_nothing() {
    let (source, hub) = on_file("dropped");
    source.exec("CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE old (id int PRIMARY KEY)");
    let walgate = started(&source, &hub);
    source.exec("INSERT INTO gone VALUES (1), (2); DELETE FROM gone WHERE id = 1; DROP TABLE gone");
    source.exec("INSERT INTO old VALUES (1); ALTER TABLE old RENAME TO new; INSERT INTO new VALUES (2)");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO new VALUES (3)");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(table_ops(&events, "public.gone"), ["insert", "insert", "delete"]);
    assert_eq!(table_ops(&events, "public.old"), ["insert"]);
    assert_eq!(table_ops(&events, "public.new"), ["insert", "insert"]);
}

#[test]
fn schema_id_is_equal_in_copy_and_stream() {
    let (source, hub) = on_file("schemaid");
    let columns = "id int PRIMARY KEY, a varchar(10), b numeric(10,2), c timestamptz[], d text";
    source.exec(&format!("CREATE TABLE t ({columns}); INSERT INTO t VALUES (1)"));
    source.exec("ALTER TABLE t ADD gone int; ALTER TABLE t DROP gone");
    let walgate = started(&source, &hub);
    source.exec("INSERT INTO t VALUES (2)");
    walgate.run_until_caught_up();
    source.exec("ANALYZE t; CREATE INDEX ON t (a); INSERT INTO t VALUES (3)");
    source.exec("ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (4); ALTER TABLE t REPLICA IDENTITY DEFAULT");
    source.exec("INSERT INTO t VALUES (5); DELETE FROM t WHERE id = 5");
    source.exec("ALTER TABLE t ADD e int; INSERT INTO t VALUES (6)");
    walgate.run_until_caught_up();
    let events = hub.events();
    let schemas: Vec<&str> = events.iter().map(schema_id).collect();
    assert_eq!(schemas.len(), 7);
    assert_eq!(schemas[..6], [schemas[0]; 6]);
    assert_ne!(schemas[6], schemas[0]);
    for schema in schemas {
        assert!(schema.len() == 8 && schema.bytes().all(|b| b.is_ascii_hexdigit()), "{schema}");
    }
    // Another database with the same table, whose OIDs differ.
    let (other, other_hub) = on_file("schemaid2");
    other.exec(&format!("CREATE TABLE x (); CREATE TABLE t ({columns}); INSERT INTO t VALUES (1)"));
    started(&other, &other_hub);
    assert_eq!(schema_id(&other_hub.events()[0]), schema_id(&events[0]));
}

fn schema_id(event: &Event) -> &str {
    event.json["source"]["schema_id"].as_str().expect("a schema_id")
}

#[test]
fn case_t4_a_large_transaction_needs_little_memory() {
    let (source, hub) = on_file("large");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, pad text); CREATE TABLE u (id int PRIMARY KEY)");
    let walgate = started(&source, &hub);
    source.exec("INSERT INTO t SELECT i, repeat('x', 150) FROM generate_series(1, 200000) i");
    // 100k rows of which 90k are rolled back to a savepoint.
    source.exec(
        "BEGIN; INSERT INTO u SELECT generate_series(1, 10000); SAVEPOINT a;
         INSERT INTO u SELECT generate_series(10001, 100000); ROLLBACK TO a; COMMIT",
    );
    let mut running = walgate.start(&["run", "--until-caught-up"]);
    let mut peak_kib = 0;
    wait_until("the end", || {
        peak_kib = peak_kib.max(peak_memory_kib(running.id()).unwrap_or(0));
        !running.is_running()
    });
    assert!(running.wait(Duration::from_secs(1)).success());
    assert!(peak_kib > 1024, "nothing was measured");
    assert!(peak_kib < 200 << 10, "{peak_kib} KiB");

    let path = hub.path().join(format!("{}.public.t.jsonl", source.name()));
    let mut last = String::new();
    let mut count = 0;
    for line in BufReader::new(std::fs::File::open(path).expect("the topic's file")).lines() {
        let line = line.expect("a line");
        // {"v":1,"id":"<source>/<lsn>/<ordinal>", ...: compares as the changes happened.
        let id = line[..60 + source.name().len()].to_owned();
        assert!(last < id, "{id} after {last}");
        last = id;
        count += 1;
    }
    assert_eq!(count, 200_000);
    let path = hub.path().join(format!("{}.public.u.jsonl", source.name()));
    assert_eq!(BufReader::new(std::fs::File::open(path).expect("the topic's file")).lines().count(), 10_000);
}

/// The most memory that a process has had so far; `None` once it is gone.
pub fn peak_memory_kib(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn case_t4_one_transaction_over_many_tables() {
    let (source, hub) = on_file("manytables");
    source.exec(
        "DO $$ BEGIN FOR i IN 1..150 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', i); END LOOP; END $$",
    );
    let walgate = started(&source, &hub);
    source.exec(
        "DO $$ BEGIN FOR r IN 1..3 LOOP FOR i IN 1..150 LOOP EXECUTE format('INSERT INTO t%s VALUES (%s)', i, r);
         END LOOP; END LOOP; END $$",
    );
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(events.len(), 450);
    assert_eq!(hub.topics().len(), 150);
    for number in [1, 75, 150] {
        assert_folded_equals(&events, &source, &format!("public.t{number}"));
    }
}

#[test]
fn case_t5_a_prepared_transaction_comes_with_its_commit_and_once() {
    // A cluster of its own: a prepared transaction stops everybody else's slots from being made.
    let cluster = Cluster::start(&[]);
    let mut source = Source::on(&cluster, "prepared");
    let hub = Hub::file();
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let walgate = started(&source, &hub);
    let mut running = walgate.run();
    source.exec("BEGIN; INSERT INTO t VALUES (1), (2); PREPARE TRANSACTION 'kept'");
    source.exec("BEGIN; INSERT INTO t VALUES (3); PREPARE TRANSACTION 'lost'");
    source.exec("INSERT INTO t VALUES (10)");
    let events = hub.wait_for("what is committed", |events| !events.is_empty());
    assert_eq!(events.len(), 1, "{events:#?}");
    running.kill9();
    cluster.restart(Shutdown::Immediate);
    source.reconnect();
    source.exec("INSERT INTO t VALUES (11)");
    source.exec("COMMIT PREPARED 'kept'");
    source.exec("ROLLBACK PREPARED 'lost'");
    source.exec("INSERT INTO t VALUES (12)");
    walgate.run_until_caught_up();
    walgate.run_until_caught_up();
    let ids: Vec<i64> = hub.events().iter().map(|event| event.data("id").as_i64().expect("an id")).collect();
    assert_eq!(ids, [10, 11, 1, 2, 12]);

    // Who makes a slot meanwhile waits, and is told for whom.
    source.exec("BEGIN; INSERT INTO t VALUES (13); PREPARE TRANSACTION 'awaited one'");
    let other_hub = Hub::file();
    let other =
        Walgate::with(&format!("url = {:?}\nslot = \"other\"\n", source.url()), &other_hub.settings());
    let waiting = other.run();
    waiting.wait_for_log("awaited one");
    source.exec("COMMIT PREPARED 'awaited one'");
    other_hub.wait_for("the copy", |events| events.len() == 6);
    waiting.stop();
}

#[test]
fn case_t7_a_truncate_of_several_tables_is_an_event_for_each_partition() {
    for (source, hub) in on_each_hub("truncates") {
        source.exec(
            "CREATE TABLE a (id serial PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
             CREATE TABLE c (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO other VALUES (1)",
        );
        let walgate = started(&source, &hub);
        source.exec("INSERT INTO a SELECT FROM generate_series(1, 30); INSERT INTO b SELECT i, i FROM generate_series(1, 30) i");
        source.exec("INSERT INTO c SELECT generate_series(1, 30)");
        source.exec("TRUNCATE a, c RESTART IDENTITY CASCADE");
        source.exec("INSERT INTO a DEFAULT VALUES");
        walgate.run_until_caught_up();
        let events = hub.events();
        let partitions = match &hub {
            Hub::File { .. } => 1,
            Hub::Kafka { brokers, .. } => kafka::partitions(brokers, &format!("{}.public.a", source.name())),
        };
        assert!(partitions == 1 || partitions == 3);
        for table in ["a", "b", "c"] {
            let name = format!("public.{table}");
            let truncates: Vec<&Event> =
                of_table(&events, &name).into_iter().filter(|event| event.op() == "truncate").collect();
            let of_partitions: Vec<i32> = truncates.iter().map(|event| event.partition).collect();
            assert_eq!(of_partitions, (0..partitions).collect::<Vec<_>>());
            let first = truncates[0];
            for event in &truncates {
                assert_eq!(event.text("type"), format!("{table}.truncated"));
                assert_eq!(event.json["aggregate_id"], Value::Null);
                assert_eq!(event.json["before"], Value::Null);
                assert_eq!(
                    event.id(),
                    format!("{}/p{}", first.id().strip_suffix("/p0").expect("p0"), event.partition)
                );
            }
            assert_folded_equals(&events, &source, &name);
        }
        // Every single table of a TRUNCATE counts: three different ordinals of one transaction.
        let places: std::collections::BTreeSet<_> = events
            .iter()
            .filter(|event| event.op() == "truncate" && event.partition == 0)
            .map(|event| (event.place().lsn, event.place().number))
            .collect();
        assert_eq!(places.len(), 3);
        assert_eq!(places.iter().map(|(lsn, _)| lsn).collect::<std::collections::BTreeSet<_>>().len(), 1);
        assert_eq!(places.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [2, 4, 6]);
        assert_eq!(
            ops(&events, "1").iter().filter(|op| **op == "insert").count(),
            4,
            "a twice, b and c once"
        );
        only(&events, "public.other", |event| event.op() == "read");
    }
}

#[test]
fn case_t7_ordinals_count_what_the_rules_leave_out() {
    let (source, hub) = on_file("ordinals");
    source.exec("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE off (id int PRIMARY KEY)");
    let rules = "[[table]]\nname = \"public.*\"\n[[table]]\nname = \"public.off\"\nmode = \"off\"";
    let with_both = Walgate::new(&source, &hub);
    with_both.run_until_caught_up();
    let story = |first: i32| {
        format!(
            "BEGIN; INSERT INTO t VALUES ({first}); INSERT INTO off VALUES ({first});
             SELECT pg_logical_emit_message(true, 'of somebody else', 'x'); INSERT INTO t VALUES ({first} + 1); COMMIT"
        )
    };
    source.exec(&story(10));
    with_both.run_until_caught_up();
    let numbers = |hub: &Hub| -> Vec<u64> {
        of_table(&hub.events(), "public.t").into_iter().map(|event| event.place().number).collect()
    };
    assert_eq!(numbers(&hub), [2, 8]);

    // A second pipeline with the table left out; its publication decides what is sent.
    let narrow_hub = Hub::file();
    let narrow = Walgate::with(
        &format!("url = {:?}\nslot = \"{}_n\"\n", source.url(), source.name()),
        &narrow_hub.settings(),
    )
    .section(rules);
    narrow.run_until_caught_up();
    source.exec(&story(20));
    narrow.run_until_caught_up();
    let events = narrow_hub.events();
    assert_eq!(table_ops(&events, "public.t"), ["read", "read", "insert", "insert"]);
    assert!(of_table(&events, "public.off").is_empty());
}

#[test]
fn case_t8_thousands_of_single_row_transactions() {
    for (source, hub) in on_each_hub("small") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int)");
        let walgate = started(&source, &hub);
        // What is durable at once does not matter here, and saves thousands of flushes.
        source.exec("SET synchronous_commit = off");
        source
            .exec("DO $$ BEGIN FOR i IN 1..4000 LOOP INSERT INTO t VALUES (i, 0); COMMIT; END LOOP; END $$");
        source.exec("SET synchronous_commit = on");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(events.len(), 4000);
        let commits: std::collections::HashSet<u64> = events.iter().map(|event| event.place().lsn).collect();
        assert_eq!(commits.len(), 4000);
        assert!(events.iter().all(|event| event.place().number == 2));
        assert_folded_equals(&events, &source, "public.t");
    }
}

#[test]
fn what_an_event_says_of_its_transaction_is_the_sources() {
    let (source, hub) = on_file("envelope");
    source.exec("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1)");
    let before = source.value("SELECT now()");
    let walgate = started(&source, &hub);
    let xid: u64 = source
        .value("BEGIN; INSERT INTO orders VALUES (2); SELECT pg_current_xact_id()::text; COMMIT")
        .parse()
        .expect("an xid");
    let after = source.value("SELECT clock_timestamp()");
    walgate.run_until_caught_up();
    let events = hub.events();
    let read = only(&events, "public.orders", |event| event.op() == "read");
    let insert = only(&events, "public.orders", |event| event.op() == "insert");
    assert_eq!(insert.json["source"]["xid"], xid);
    assert_eq!(read.json["source"]["xid"], Value::Null);
    for event in [read, insert] {
        let at = event.text("occurred_at");
        assert!(at.ends_with('Z') && at.as_bytes()[10] == b'T', "{at}");
        let is_between =
            source.value(&format!("SELECT '{at}'::timestamptz BETWEEN '{before}' AND '{after}'"));
        assert_eq!(is_between, "t", "{before} {at} {after}");
        let named = &event.json["source"];
        assert_eq!(named["name"], source.name());
        assert_eq!(
            (&named["schema"], &named["table"], &named["origin"]),
            (&json!("public"), &json!("orders"), &Value::Null)
        );
        let lsns = format!(
            "SELECT '{}'::pg_lsn <= '{}'::pg_lsn",
            named["lsn"].as_str().expect("an lsn"),
            named["commit_lsn"].as_str().expect("a commit_lsn")
        );
        assert!(event.op() == "read" || source.value(&lsns) == "t", "{}", event.raw);
    }
    assert_eq!(read.text("type"), "orders.read");
    assert_eq!(insert.text("type"), "orders.inserted");
}
