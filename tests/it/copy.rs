//! The copy and its hand-over: what was there before, what changes meanwhile, tables that come later (CASES S, D8).
//!
//! In: tables of every kind, with writers beside the copy. Out: each row once as `read`, each later change once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fold::assert_folded_equals;
use crate::support::pick::{of_table, on_each_hub, on_file, only, ops, started, table_ops};
use crate::support::{Cluster, Event, Fold, Hub, Source, Walgate, wait_for, wait_until};

#[test]
fn case_s1_a_transaction_that_wrote_before_the_snapshot_and_commits_after_is_seen_once() {
    // A cluster of its own: the making of everybody's slots waits for a transaction that has written.
    let cluster = Cluster::start(&[]);
    let source = Source::on(&cluster, "open");
    let hub = Hub::file();
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0), (2, 0)");
    let [writer, aborter, reader] = [source.session(), source.session(), source.session()];
    writer.exec("BEGIN; INSERT INTO t VALUES (10, 0); UPDATE t SET n = 1 WHERE id = 1");
    aborter.exec("BEGIN; INSERT INTO t VALUES (20, 0)");
    // This one has written nothing yet, so that nobody waits for it.
    reader.exec("BEGIN; SELECT count(*) FROM t");
    let running = Walgate::new(&source, &hub).run();
    // The operator is told for whom the start waits.
    running.wait_for_log("waits for running transactions");
    source.exec("INSERT INTO t VALUES (3, 0)");
    writer.exec("INSERT INTO t VALUES (11, 0); COMMIT");
    aborter.exec("ROLLBACK");
    hub.wait_for("the copy", |events| events.len() == 5);
    reader.exec("INSERT INTO t VALUES (30, 0); COMMIT");
    let events = hub.wait_for("the last transaction", |events| events.len() >= 6);
    running.stop();
    for id in ["1", "2", "3", "10", "11", "30"] {
        assert_eq!(ops(&events, id).len(), 1, "{id}");
    }
    assert_eq!(ops(&events, "30"), ["insert"]);
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_s1_a_copy_after_rolled_back_transactions() {
    // The snapshot's xmin lies past its xmax then, which only a cluster without other writers shows for sure.
    let cluster = Cluster::start(&[("autovacuum", "off")]);
    let source = Source::on(&cluster, "rolledback");
    let hub = Hub::file();
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let walgate = started(&source, &hub);
    source.exec("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)");
    // Each is open when its predecessor ends, so that the server never sees a moment without any.
    let writers = [source.session(), source.session(), source.session()];
    let begin = |which: usize| -> String {
        writers[which].exec(&format!("BEGIN; INSERT INTO t VALUES ({which})"));
        writers[which].value("SELECT pg_current_xact_id()::xid")
    };
    let wait_for_slot_behind = |xid: &str| {
        wait_until("the copy's slot to wait", || {
            let waiting = format!(
                "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted AND transactionid = '{xid}'"
            );
            !source.query(&waiting).is_empty()
        });
    };
    let first = begin(0);
    let mut running = walgate.start(&["run", "--until-caught-up"]);
    wait_for_slot_behind(&first);
    let second = begin(1);
    writers[0].exec("ROLLBACK");
    wait_for_slot_behind(&second);
    begin(2);
    writers[1].exec("ROLLBACK");
    let status = running.wait(Duration::from_secs(30));
    assert!(status.success(), "{status}: {}", running.stderr());
    writers[2].exec("ROLLBACK");
    assert_eq!(table_ops(&hub.events(), "public.late"), ["read"]);
}

#[test]
fn case_s2_writes_all_through_the_copy_of_a_table_in_ranges() {
    let (source, hub) = on_file("ranges");
    // Few rows on many pages: two ranges and more, of 64 MiB each.
    source.exec(
        "CREATE TABLE big (id int PRIMARY KEY, n int NOT NULL, pad text) WITH (fillfactor = 10, autovacuum_enabled = false);
         ALTER TABLE big ALTER pad SET STORAGE PLAIN;
         CREATE TABLE small (id int PRIMARY KEY, n int NOT NULL)",
    );
    source.exec("INSERT INTO big SELECT i, 0, repeat('x', 800) FROM generate_series(1, 26000) i");
    source.exec("INSERT INTO small SELECT i, 0 FROM generate_series(1, 5000) i");
    let pages: i64 = source.value("SELECT pg_relation_size('big') / 8192").parse().expect("a number");
    assert!(pages > 3 * 8192, "{pages} pages: too few for several ranges");

    let running = Walgate::new(&source, &hub).source("snapshot_workers = 4").run();
    let is_done = AtomicBool::new(false);
    let writers = [source.session(), source.session()];
    std::thread::scope(|scope| {
        for (which, writer) in writers.iter().enumerate() {
            let is_done = &is_done;
            scope.spawn(move || {
                let mut round = which;
                while !is_done.load(Ordering::Relaxed) {
                    // To the end of the file and back to where there is room: between pages, and between ranges.
                    let id = (round * 911) % 26000 + 1;
                    writer.exec(&format!(
                        "UPDATE big SET n = n + 1, pad = repeat('y', 7000) WHERE id = {id};
                         UPDATE big SET n = n + 1, pad = 'z' WHERE id = {};
                         UPDATE small SET n = n + 1 WHERE id = {}",
                        26001 - id,
                        round % 5000 + 1
                    ));
                    if round % 10 == 0 {
                        writer.exec(&format!(
                            "DELETE FROM big WHERE id = {}; INSERT INTO big VALUES ({}, 0, 'new')",
                            (round * 31) % 26000 + 1,
                            100_000 + round
                        ));
                    }
                    round += 2;
                }
            });
        }
        let streams = || running.stderr().contains("to=Streaming");
        wait_for("the copy", 3 * crate::support::PATIENCE, || streams().then_some(()));
        is_done.store(true, Ordering::Relaxed);
    });
    source.exec("INSERT INTO big VALUES (999999, 0, 'last')");
    wait_until("the last row", || {
        let topic = hub.path().join(format!("{}.public.big.jsonl", source.name()));
        let text = std::fs::read_to_string(topic).unwrap_or_default();
        text.lines().last().is_some_and(|line| line.contains("\"aggregate_id\":\"999999\""))
    });
    running.stop();
    let events = hub.events();
    let changes = events.iter().filter(|event| event.op() == "update").count();
    assert!(changes > 20, "{changes} updates came while it copied");
    let fold = Fold::of(&events);
    fold.assert_equals(&source, "public.big");
    fold.assert_equals(&source, "public.small");
}

#[test]
fn case_s4_tables_of_every_kind() {
    for (source, hub) in on_each_hub("tablekinds") {
        source.exec(
            "CREATE TABLE empty (id int PRIMARY KEY);
             CREATE TABLE columnless (); INSERT INTO columnless DEFAULT VALUES; INSERT INTO columnless DEFAULT VALUES;
             CREATE TABLE emptied (a int, b int); ALTER TABLE emptied DROP a, DROP b; INSERT INTO emptied DEFAULT VALUES;
             CREATE TABLE generated (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, z text);
             INSERT INTO generated VALUES (1, 5, DEFAULT, 'z');
             CREATE TABLE identity (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int); INSERT INTO identity (n) VALUES (7);
             CREATE TABLE parent (id int PRIMARY KEY, n int); INSERT INTO parent VALUES (1, 0);
             CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (parent); INSERT INTO child VALUES (2, 0, 'x');
             CREATE VIEW a_view AS SELECT * FROM generated; CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM generated;
             CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); INSERT INTO unlogged VALUES (1);
             CREATE TEMPORARY TABLE temporary (id int PRIMARY KEY); INSERT INTO temporary VALUES (1);
             CREATE SEQUENCE a_sequence; CREATE TYPE a_composite AS (x int);
             CREATE EXTENSION postgres_fdw; CREATE SERVER nowhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (port '1');
             CREATE FOREIGN TABLE a_foreign (id int) SERVER nowhere",
        );
        let walgate = started(&source, &hub);
        source.exec(
            "INSERT INTO empty VALUES (1); INSERT INTO columnless DEFAULT VALUES; UPDATE generated SET a = 6",
        );
        source.exec("UPDATE parent SET n = n + 1; DELETE FROM ONLY parent; INSERT INTO unlogged VALUES (2)");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(table_ops(&events, "public.empty"), ["insert"]);
        assert_eq!(table_ops(&events, "public.columnless"), ["read", "read", "insert"]);
        assert!(of_table(&events, "public.columnless").iter().all(|event| event.json["data"] == json!({})));
        assert_eq!(table_ops(&events, "public.emptied"), ["read"]);
        // Before PostgreSQL 18 generated columns are not sent; copy and stream agree.
        let [read, update] = of_table(&events, "public.generated")[..] else { panic!("{events:#?}") };
        assert_eq!(read.json["data"], json!({"id": 1, "a": 5, "z": "z"}));
        assert_eq!(update.json["data"], json!({"id": 1, "a": 6, "z": "z"}));
        assert_eq!(read.json["source"]["schema_id"], update.json["source"]["schema_id"]);
        assert_eq!(table_ops(&events, "public.parent"), ["read", "update", "delete"]);
        assert_eq!(table_ops(&events, "public.child"), ["read", "update"]);
        assert_eq!(only(&events, "public.identity", |_| true).json["data"], json!({"id": 1, "n": 7}));
        let tables: std::collections::BTreeSet<String> = events.iter().map(Event::table).collect();
        let expected = ["child", "columnless", "emptied", "empty", "generated", "identity", "parent"]
            .map(|table| format!("public.{table}"));
        assert_eq!(tables, expected.into());
    }
}

#[test]
fn case_s4_an_exact_rule_for_what_has_no_changes_is_refused() {
    let (source, hub) = on_file("notables");
    source.exec("CREATE TABLE t (id int PRIMARY KEY); CREATE VIEW v AS SELECT * FROM t; CREATE UNLOGGED TABLE u (id int PRIMARY KEY)");
    for name in ["v", "u"] {
        let walgate = Walgate::new(&source, &hub).section(&format!("[[table]]\nname = \"public.{name}\""));
        let output = walgate.command(&["run", "--until-caught-up"]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(&format!("public.{name}")), "{log}");
    }
}

#[test]
fn case_s4_partitioned_tables_are_one_table_of_their_root() {
    for (source, hub) in on_each_hub("partitioned") {
        source.exec(
            "CREATE TABLE p (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
             CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('EU');
             CREATE TABLE p_us (n int, gone int, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region));
             ALTER TABLE p_us DROP gone; ALTER TABLE p ATTACH PARTITION p_us FOR VALUES IN ('US');
             CREATE TABLE p_more PARTITION OF p DEFAULT PARTITION BY RANGE (id);
             CREATE TABLE p_more_low PARTITION OF p_more FOR VALUES FROM (0) TO (100);
             CREATE TABLE nothing_in_it (id int PRIMARY KEY) PARTITION BY RANGE (id);
             INSERT INTO p VALUES (1, 'EU', 0), (2, 'US', 0), (3, 'XX', 0)",
        );
        let walgate = started(&source, &hub);
        source.exec("UPDATE p SET n = 1; INSERT INTO p VALUES (4, 'US', 0)");
        // From one leaf to another.
        source.exec("UPDATE p SET region = 'US' WHERE id = 1");
        // A leaf that comes later, and its rows.
        source.exec("CREATE TABLE p_more_high PARTITION OF p_more FOR VALUES FROM (100) TO (200); INSERT INTO p VALUES (150, 'YY', 0)");
        source.exec("UPDATE p_more_high SET n = 5");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert!(events.iter().all(|event| event.table() == "public.p"));
        assert_eq!(ops(&events, r#"["1","EU"]"#), ["read", "update", "delete"]);
        assert_eq!(ops(&events, r#"["1","US"]"#), ["insert"]);
        assert_eq!(ops(&events, r#"["2","US"]"#), ["read", "update"]);
        assert_eq!(ops(&events, r#"["150","YY"]"#), ["insert", "update"]);
        let schemas: std::collections::BTreeSet<String> =
            events.iter().map(|event| event.json["source"]["schema_id"].to_string()).collect();
        assert_eq!(schemas.len(), 1, "a leaf of another layout comes as its root");
        assert_folded_equals(&events, &source, "public.p");
        source.exec("TRUNCATE p; INSERT INTO p VALUES (5, 'EU', 0)");
        walgate.run_until_caught_up();
        assert_folded_equals(&hub.events(), &source, "public.p");
    }
}

#[test]
fn a_new_table_is_picked_up_with_its_earlier_rows_while_it_runs() {
    let (source, hub) = on_file("newtable");
    source.exec("CREATE TABLE old (id int PRIMARY KEY); INSERT INTO old VALUES (1)");
    let running = Walgate::new(&source, &hub).run();
    hub.wait_for("the copy", |events| events.len() == 1);
    source.exec("CREATE TABLE new (id int PRIMARY KEY, n int); INSERT INTO new SELECT i, 0 FROM generate_series(1, 100) i");
    source.exec("CREATE TABLE new_and_empty (id int PRIMARY KEY); CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)");
    for round in 0..20 {
        source.exec(&format!(
            "UPDATE new SET n = n + 1 WHERE id % 20 = {round}; INSERT INTO old VALUES (100 + {round})"
        ));
    }
    hub.wait_for("the rows from before", |events| table_ops(events, "public.new").len() >= 100);
    source.exec("INSERT INTO new VALUES (1000, 0); INSERT INTO new_and_empty VALUES (1); INSERT INTO other.t VALUES (1)");
    let events = hub.wait_for("the rows from after", |events| {
        !ops(events, "1000").is_empty() && !table_ops(events, "public.new_and_empty").is_empty()
    });
    running.stop();
    assert_eq!(ops(&events, "1000"), ["insert"]);
    assert!(of_table(&events, "other.t").is_empty());
    for table in ["public.new", "public.new_and_empty", "public.old"] {
        assert_folded_equals(&events, &source, table);
    }
}

#[test]
fn snapshot_never_streams_only_what_follows() {
    let (source, hub) = on_file("never");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)");
    let walgate = Walgate::new(&source, &hub).source("snapshot = \"never\"");
    walgate.run_until_caught_up();
    source.exec("UPDATE t SET n = 1; INSERT INTO t VALUES (2, 0)");
    walgate.run_until_caught_up();
    assert_eq!(table_ops(&hub.events(), "public.t"), ["update", "insert"]);
}

#[test]
fn reads_tell_the_time_of_the_snapshot_and_number_their_rows() {
    let (source, hub) = on_file("reads");
    source.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 300)");
    started(&source, &hub);
    let events = hub.events();
    let oid: u32 = source.value("SELECT 't'::regclass::oid").parse().expect("an oid");
    let mut numbers: Vec<u64> = Vec::new();
    for event in &events {
        let place = event.place();
        assert_eq!(place.snapshot_of, Some(oid), "{}", event.raw);
        assert_eq!(event.json["source"]["snapshot"], true);
        assert_eq!(event.json["source"]["xid"], Value::Null);
        assert_eq!(place.lsn, events[0].place().lsn, "one snapshot");
        assert_eq!(event.text("occurred_at"), events[0].text("occurred_at"));
        numbers.push(place.number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=300).collect::<Vec<u64>>());
}

#[test]
fn case_d8_an_idle_published_table_does_not_retain_the_wal_of_others() {
    let (source, hub) = on_file("idle");
    source.exec("CREATE TABLE idle (id int PRIMARY KEY); CREATE TABLE busy (id int, pad text)");
    let walgate = Walgate::new(&source, &hub).section("[[table]]\nname = \"public.idle\"");
    let running = walgate.run();
    running.wait_for_log("to=Streaming");
    source.exec("INSERT INTO idle VALUES (1)");
    hub.wait_for("the first row", |events| events.len() == 1);
    source.exec("INSERT INTO busy SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i");
    let written = source.value("SELECT pg_current_wal_lsn()");
    let slot = format!("FROM pg_replication_slots WHERE slot_name = '{}_hub'", source.name());
    // Every 10 s, and a little more.
    wait_for("the slot to follow", Duration::from_secs(16), || {
        let follows = format!("SELECT confirmed_flush_lsn >= '{written}'::pg_lsn {slot}");
        (source.value(&follows) == "t").then_some(())
    });
    // The server frees WAL where it notes what runs, which a checkpoint makes it do; the slot follows that note
    // with the next confirmation.
    source.exec("CHECKPOINT");
    wait_for("WAL to be freed", Duration::from_secs(26), || {
        let is_free = format!("SELECT restart_lsn >= '{written}'::pg_lsn {slot}");
        (source.value(&is_free) == "t").then_some(())
    });
    running.stop();
    assert_eq!(hub.events().len(), 1);
}
