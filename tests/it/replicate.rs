//! Rows on a replica: copied, followed, filtered, projected, renamed; always whole source transactions.
//!
//! In: a source and a replica with rules. Out: the replica's tables. Always: they are what a SELECT on the source gives.

use std::time::Duration;

use crate::crash::{crashes, in_parallel};
use crate::support::pick::TOASTED;
use crate::support::source::TextRow;
use crate::support::{Hub, Source, Walgate, wait_until};

/// How long a refused start may take.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);

/// A replica named `r` and rules for it.
pub fn replicating(source: &Source, replica: &Source, hub: &Hub, rules: &str) -> Walgate {
    Walgate::new(source, hub)
        .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", replica.url()))
        .section(rules)
}

pub fn rule(table: &str, more: &str) -> String {
    format!("[[table]]\nname = \"{table}\"\nmode = \"replicate\"\n{more}\n")
}

/// Asserts that a query gives the same rows on both.
#[track_caller]
pub fn assert_same(source: &Source, on_source: &str, replica: &Source, on_replica: &str) {
    let sorted = |database: &Source, query: &str| {
        let mut rows = database.query(query);
        rows.sort();
        rows
    };
    let (found, expected) = (sorted(replica, on_replica), sorted(source, on_source));
    if found != expected {
        let short = |row: &TextRow| format!("{row:.120?}").chars().take(160).collect::<String>();
        let only = |of: &[TextRow], others: &[TextRow]| {
            of.iter().filter(|row| !others.contains(row)).map(short).collect::<Vec<_>>()
        };
        let (extra, missing) = (only(&found, &expected), only(&expected, &found));
        panic!("{on_replica}: on the replica only: {extra:#?}; on the source only: {missing:#?}");
    }
}

#[test]
fn rows_from_before_are_copied_and_the_stream_goes_on_from_there() {
    let (source, replica, hub) = (Source::new("rep"), Source::new("rep_r"), Hub::file());
    source.exec(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE t (id int PRIMARY KEY, n numeric(10, 2), note text, tags text[], doc jsonb, mood mood);
         INSERT INTO t SELECT i, i / 3.0, 'note ' || i, ARRAY['a', NULL], '{\"k\": 1}', 'ok' FROM generate_series(1, 5000) i",
    );
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", ""));
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT t::text FROM t", &replica, "SELECT t::text FROM t");
    source.exec("INSERT INTO t VALUES (6000, NULL, E'tab\\there \\\\ \"x\"', '{}', NULL, 'sad')");
    source.exec("UPDATE t SET note = note || '!' WHERE id % 10 = 0; DELETE FROM t WHERE id % 7 = 0");
    source.exec("UPDATE t SET id = id + 10000 WHERE id % 11 = 0");
    source.exec("BEGIN; INSERT INTO t (id) VALUES (-1); UPDATE t SET n = 1 WHERE id = -1; DELETE FROM t WHERE id = -1; INSERT INTO t (id, note) VALUES (-1, 'again'); COMMIT");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT t::text FROM t", &replica, "SELECT t::text FROM t");
    source.exec("TRUNCATE t; INSERT INTO t (id) VALUES (1)");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT t::text FROM t", &replica, "SELECT t::text FROM t");
    assert!(hub.topics().is_empty(), "no rule speaks of the hub");
    let slots =
        source.query("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()");
    assert_eq!(slots.len(), 1, "a destination without rules makes no slot: {slots:?}");
}

#[test]
fn one_table_may_be_events_and_rows_at_once() {
    for hub_of in [Hub::kafka as fn(&Source) -> Hub, |_| Hub::file()] {
        let (source, replica) = (Source::new("both"), Source::new("both_r"));
        let hub = hub_of(&source);
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1), (2, 2)");
        let walgate = replicating(
            &source,
            &replica,
            &hub,
            "[[table]]\nname = \"public.t\"\nmode = \"both\"\nwhere = \"n > 1\"",
        );
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t VALUES (3, 3), (4, 0); UPDATE t SET n = 5 WHERE id = 1; UPDATE t SET n = 0 WHERE id = 2");
        walgate.run_until_caught_up();
        assert_same(&source, "SELECT * FROM t WHERE n > 1", &replica, "SELECT * FROM t");
        let events = hub.events();
        let rows = crate::support::fold::Fold::without_snapshot(&events).rows("public.t");
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["1", "3"]);
    }
}

#[test]
fn events_of_a_replica_tell_the_origin_of_its_rows() {
    let (source, replica) = (Source::new("loop"), Source::new("loop_r"));
    let (nowhere, hub) = (Hub::file(), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let first = replicating(&source, &replica, &nowhere, &rule("public.t", ""));
    first.run_until_caught_up();
    let second = Walgate::new(&replica, &hub);
    second.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (1)");
    replica.exec("INSERT INTO t VALUES (2)");
    first.run_until_caught_up();
    second.run_until_caught_up();
    let mut origins: Vec<(String, serde_json::Value)> = Vec::new();
    for event in hub.events() {
        origins.push((event.json["aggregate_id"].to_string(), event.json["source"]["origin"].clone()));
    }
    origins.sort_by(|one, other| one.0.cmp(&other.0));
    let oid = replica.value("SELECT oid FROM pg_database WHERE datname = current_database()");
    let origin = format!("walgate_{}.{}_r_r_{oid}", source.name(), source.name());
    assert_eq!(origins, [("\"1\"".to_owned(), origin.into()), ("\"2\"".to_owned(), serde_json::Value::Null)]);
}

#[test]
fn case_f9_renamed_projected_and_reordered() {
    let (source, replica, hub) = (Source::new("f9"), Source::new("f9_r"), Hub::file());
    source.exec(
        "CREATE TABLE orders (id int PRIMARY KEY, region text, total numeric, internal_note text);
         INSERT INTO orders VALUES (1, 'EU', 10, 'secret'), (2, 'US', 20, 'secret')",
    );
    replica.exec(
        "CREATE SCHEMA sales;
         CREATE TABLE sales.orders (total numeric, extra text NOT NULL DEFAULT 'kept', id bigint PRIMARY KEY, region varchar(10))",
    );
    let walgate = replicating(
        &source,
        &replica,
        &hub,
        &rule(
            "public.orders",
            "to = \"sales.orders\"\nexclude = [\"internal_note\"]\nwhere = \"region = 'EU'\"",
        ),
    );
    walgate.run_until_caught_up();
    source.exec("INSERT INTO orders VALUES (3, 'EU', 30, 'x'); UPDATE orders SET region = 'EU' WHERE id = 2; UPDATE orders SET region = 'US' WHERE id = 1; UPDATE orders SET internal_note = 'y'");
    walgate.run_until_caught_up();
    assert_same(
        &source,
        "SELECT id, region, total, 'kept' FROM orders WHERE region = 'EU'",
        &replica,
        "SELECT id, region, total, extra FROM sales.orders",
    );
}

#[test]
fn case_r2_r3_large_values_are_never_lost() {
    for identity in ["DEFAULT", "FULL"] {
        let (source, replica, hub) = (Source::new("toastrep"), Source::new("toastrep_r"), Hub::file());
        source.exec(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, n int, note text, data bytea);
             ALTER TABLE t ALTER note SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL, REPLICA IDENTITY {identity};
             INSERT INTO t SELECT i, 0, {TOASTED}, convert_to({TOASTED}, 'UTF8') FROM generate_series(1, 6) i"
        ));
        let walgate = replicating(&source, &replica, &hub, &rule("public.t", "where = \"n >= 0\""));
        walgate.run_until_caught_up();
        source.exec("UPDATE t SET n = 1 WHERE id = 1"); // keeps its values
        source.exec("UPDATE t SET id = 20 WHERE id = 2"); // under another key
        source.exec("UPDATE t SET n = -1 WHERE id = 3"); // leaves
        walgate.run_until_caught_up();
        assert_same(&source, "SELECT t::text FROM t WHERE n >= 0", &replica, "SELECT t::text FROM t");
        source.exec("UPDATE t SET n = 3 WHERE id = 3"); // enters, its large values unchanged
        source.exec("UPDATE t SET n = -1 WHERE id = 4; UPDATE t SET n = 7, id = 40 WHERE id = 4");
        walgate.run_until_caught_up();
        assert_same(&source, "SELECT t::text FROM t WHERE n >= 0", &replica, "SELECT t::text FROM t");
    }
}

#[test]
fn case_r3_a_value_that_was_fetched_when_another_row_had_the_key() {
    let (source, replica, hub) = (Source::new("swapped"), Source::new("swapped_r"), Hub::file());
    source.exec(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, n int, note text); ALTER TABLE t ALTER note SET STORAGE EXTERNAL;
         INSERT INTO t SELECT i, 0, i || {TOASTED} FROM generate_series(1, 6) i"
    ));
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", "where = \"n > 0\""));
    walgate.run_until_caught_up();
    // All of them enter, and when their values are looked for, each key has another row.
    source.exec("UPDATE t SET n = 1; UPDATE t SET id = id + 100; UPDATE t SET id = 107 - id; DELETE FROM t WHERE id = 6; UPDATE t SET id = -1 WHERE id = 5");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT t::text FROM t WHERE n > 0", &replica, "SELECT t::text FROM t");
}

#[test]
fn case_r6_parents_and_children_and_truncate_of_both() {
    let (source, replica, hub) = (Source::new("r6rep"), Source::new("r6rep_r"), Hub::file());
    let tables = "CREATE TABLE parent (id int PRIMARY KEY, code text UNIQUE);
         CREATE TABLE child (id int PRIMARY KEY, parent_id int NOT NULL REFERENCES parent)";
    source.exec(tables);
    replica.exec(tables);
    let walgate = replicating(&source, &replica, &hub, &rule("public.*", ""));
    walgate.run_until_caught_up();
    source.exec("INSERT INTO parent VALUES (1, 'a'), (2, 'b'); INSERT INTO child VALUES (1, 1), (2, 2)");
    source.exec("BEGIN; INSERT INTO parent VALUES (3, 'c'); UPDATE child SET parent_id = 3; DELETE FROM parent WHERE id IN (1, 2); COMMIT");
    // Unique values that move between rows.
    source.exec("INSERT INTO parent VALUES (4, 'd'); BEGIN; UPDATE parent SET code = 'x' WHERE id = 3; UPDATE parent SET code = 'c' WHERE id = 4; UPDATE parent SET code = 'd' WHERE id = 3; COMMIT");
    walgate.run_until_caught_up();
    for table in ["parent", "child"] {
        let all = format!("SELECT t::text FROM {table} t");
        assert_same(&source, &all, &replica, &all);
    }
    source.exec("TRUNCATE parent, child; INSERT INTO parent VALUES (9, 'z')");
    walgate.run_until_caught_up();
    for table in ["parent", "child"] {
        let all = format!("SELECT t::text FROM {table} t");
        assert_same(&source, &all, &replica, &all);
    }
}

#[test]
fn only_whole_source_transactions_are_seen() {
    let (source, replica, hub) = (Source::new("whole"), Source::new("whole_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", ""));
    let running = walgate.run();
    running.wait_for_log("to=Streaming");
    for round in 0..10 {
        source.exec(&format!("INSERT INTO t SELECT i, {round} FROM generate_series({round} * 20000 + 1, ({round} + 1) * 20000) i"));
    }
    wait_until("all rows", || {
        let count: i64 = replica.value("SELECT count(*) FROM t").parse().expect("a number");
        assert_eq!(count % 20_000, 0, "a part of a transaction is visible");
        count == 200_000
    });
    running.stop();
}

#[test]
fn case_d1_kill_9_at_random_under_load_leaves_the_replica_equal() {
    let (source, replica, hub) = (Source::new("killrep"), Source::new("killrep_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int, note text); INSERT INTO t SELECT i, 0, 'x' FROM generate_series(1, 1000) i");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", "where = \"n % 5 <> 4\""));
    for round in 0..6 {
        let mut running = walgate.run();
        if round > 0 {
            running.wait_for_log("to=Streaming");
        }
        for step in 0..20 {
            source.exec(&format!(
                "INSERT INTO t SELECT i, i, 'new' FROM generate_series({0}, {0} + 50) i ON CONFLICT (id) DO UPDATE SET n = t.n + 1;
                 UPDATE t SET n = n + 1 WHERE id % 13 = {step} % 13; DELETE FROM t WHERE id % 97 = {step}",
                2000 + round * 1000 + step * 40
            ));
        }
        running.kill9();
    }
    walgate.run_until_caught_up();
    let query = "SELECT t::text FROM t";
    assert_same(&source, &format!("{query} WHERE n % 5 <> 4"), &replica, query);
    assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0");
}

#[test]
fn what_is_not_known_of_an_old_row_may_be_null() {
    for filter in ["n IS NULL", "n IS NOT NULL"] {
        let (source, replica, hub) = (Source::new("oldnull"), Source::new("oldnull_r"), Hub::file());
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, NULL), (2, NULL), (3, 3), (4, 4)");
        let walgate =
            replicating(&source, &replica, &hub, &rule("public.t", &format!("where = \"{filter}\"")));
        walgate.run_until_caught_up();
        source.exec("DELETE FROM t WHERE id IN (1, 3); UPDATE t SET n = 2 WHERE id = 2; UPDATE t SET n = NULL WHERE id = 4");
        walgate.run_until_caught_up();
        assert_same(&source, &format!("SELECT * FROM t WHERE {filter}"), &replica, "SELECT * FROM t");
        assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0", "{filter}");
    }
}

#[test]
fn a_drain_does_not_wait_for_the_end_of_an_open_transaction() {
    let (source, replica, hub) = (Source::new("draininside"), Source::new("draininside_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", ""));
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 200000) i");
    let running = walgate.run();
    wait_until("rows in the replica's open transaction", || {
        replica.value("SELECT pg_relation_size('t')") != "0"
    });
    let asked_at = std::time::Instant::now();
    running.stop();
    let took = asked_at.elapsed();
    assert_eq!(
        replica.value("SELECT count(*) FROM t"),
        "0",
        "the transaction was over too soon for this test"
    );
    assert!(took < Duration::from_secs(8), "the drain took {took:?}");
    walgate.run_until_caught_up();
    let all = "SELECT t::text FROM t";
    assert_same(&source, all, &replica, all);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let (source, replica, hub) = (Source::new("refrep"), Source::new("refrep_r"), Hub::file());
    source.exec(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a VALUES (1)",
    );
    replica.exec("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (77)");
    for (rules, words) in [
        (rule("public.*", "to = \"public.c\""), vec!["public.a", "public.b", "both be"]),
        (rule("public.a", "where = \"nope > 1\""), vec!["nope", "table[0].where"]),
        (rule("public.a", ""), vec!["not empty", "TRUNCATE"]),
    ] {
        let walgate = replicating(&source, &replica, &hub, &rules);
        let mut running = walgate.run();
        assert_eq!(running.wait(REFUSAL_LIMIT).code(), Some(1), "{}", running.stderr());
        for word in words {
            assert!(running.stderr().contains(word), "no {word:?} in {}", running.stderr());
        }
        walgate.command(&["drop", "--yes"]);
    }
    // The source itself.
    let walgate = Walgate::new(&source, &hub)
        .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", source.url()))
        .section(&rule("public.a", ""));
    let mut running = walgate.run();
    assert_eq!(running.wait(REFUSAL_LIMIT).code(), Some(1), "{}", running.stderr());
    assert!(running.stderr().contains("source itself"), "{}", running.stderr());
    assert_eq!(replica.value("SELECT count(*) FROM a"), "1", "a replica's rows are never removed");
}

/// CASES S3, D1: wherever it dies, in the copy or in the stream, the next start makes the replica whole.
#[test]
fn case_s3_crash_at_every_failpoint_of_a_replica() {
    let names: Vec<&str> = walgate::failpoint::NAMES
        .iter()
        .copied()
        // Those of a hub: crash.rs, outbox.rs and claims.rs die there.
        .filter(|name| !["kafka.", "file.", "cleanup.", "claim."].iter().any(|hub| name.starts_with(hub)))
        .collect();
    in_parallel(&names, |name| crash_at(name));
}

fn crash_at(name: &str) {
    let (source, replica, hub) =
        (Source::new(&format!("x_{name}")), Source::new(&format!("y_{name}")), Hub::file());
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, n int, note text);
         INSERT INTO t SELECT i, 0, 'before' FROM generate_series(1, 9000) i; CREATE TABLE u (a int, b text, PRIMARY KEY (a, b))",
    );
    let walgate = || {
        let walgate = replicating(&source, &replica, &hub, &rule("public.*", ""));
        // Any backlog is one for those that are on the way of its reader.
        if name.starts_with("backlog.") { walgate.env("WALGATE_BACKLOG", "1:100") } else { walgate }
    };
    let churn = |round: i32| {
        source.exec(&format!(
            "UPDATE t SET n = n + 1, note = 'changed ' || {round} WHERE id % 7 = {round}; DELETE FROM t WHERE id % 50 = {round};
             UPDATE t SET id = id + 100000 WHERE id % 31 = {round};
             INSERT INTO u SELECT i, 'x' || {round} FROM generate_series(1, 40) i"
        ));
        source.exec(&format!(
            "BEGIN; INSERT INTO t SELECT i, {round}, 'large' FROM generate_series({0}, {0} + 9000) i; UPDATE t SET n = -1 WHERE id = {0}; COMMIT",
            200_000 + round * 10_000
        ));
    };
    let mut fired = 0;
    for (round, pass) in [1, 2, 1, 3].into_iter().enumerate() {
        fired += u32::from(crashes(&walgate().failpoint(&format!("{name}:{pass}"))));
        churn(i32::try_from(round).expect("a few"));
    }
    assert!(fired > 0, "{name} is on nobody's way");
    walgate().run_until_caught_up();
    for table in ["t", "u"] {
        let all = format!("SELECT x::text FROM {table} x");
        assert_same(&source, &all, &replica, &all);
    }
    assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0", "{name}");
    eprintln!("{name}: {fired} of 4");
}

/// A large update of one transaction goes as DELETE and COPY, unless something on the replica could tell it from an update.
#[test]
fn a_large_update_goes_by_the_way_that_nobody_can_tell_from_another() {
    const ROWS: u32 = 5000;
    let (source, replica, hub) = (Source::new("large"), Source::new("large_r"), Hub::file());
    let tables = ["plain", "referenced", "roomy", "indexed", "wider"];
    for table in tables {
        let create = format!("CREATE TABLE {table} (id bigint PRIMARY KEY, n int, note text)");
        source.exec(&format!(
            "{create}; INSERT INTO {table} SELECT i, i, 'x' FROM generate_series(1, {ROWS}) i"
        ));
        replica.exec(&create);
    }
    replica.exec(
        "CREATE TABLE local (id bigint REFERENCES referenced); ALTER TABLE roomy SET (fillfactor = 50);
         CREATE INDEX ON indexed (note); ALTER TABLE wider ADD COLUMN local text",
    );
    let walgate = replicating(&source, &replica, &hub, &rule("public.*", ""));
    walgate.run_until_caught_up();
    replica.exec("UPDATE wider SET local = 'kept'; INSERT INTO local SELECT 1");
    let sets: Vec<String> =
        tables.map(|table| format!("UPDATE {table} SET n = n + 1, note = 'y' || id")).into();
    source.exec(&format!("BEGIN; {}; COMMIT", sets.join("; ")));
    walgate.run_until_caught_up();
    for table in tables {
        let all = format!("SELECT row(id, n, note)::text FROM {table}");
        assert_same(&source, &all, &replica, &all);
    }
    assert_eq!(replica.value("SELECT count(*) FROM wider WHERE local = 'kept'"), ROWS.to_string());
    let deleted = |table: &str| {
        let sql = format!("SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = '{table}'");
        replica.value(&sql).parse::<u32>().expect("a number")
    };
    // The server's statistics come a moment after the commit.
    wait_until("the rows of the plain table were replaced", || deleted("plain") > ROWS / 2);
    for table in tables.iter().filter(|table| **table != "plain") {
        assert_eq!(deleted(table), 0, "{table}");
    }
}

#[test]
fn verify_names_the_keys_that_differ_and_resync_mends_them() {
    let (source, replica, hub) = (Source::new("verify"), Source::new("verify_r"), Hub::file());
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, n int, note text); INSERT INTO t SELECT i, i, 'x' FROM generate_series(1, 1000) i;
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    let rules = rule("public.t", "to = \"public.copy\"\nexclude = [\"note\"]\nwhere = \"n > 10\"")
        + &rule("public.other", "");
    let walgate = replicating(&source, &replica, &hub, &rules);
    walgate.run_until_caught_up();
    let verify = |more: &[&str]| {
        let output = walgate.command(&[&["verify", "--json"], more].concat());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), report)
    };
    let (code, report) = verify(&[]);
    assert_eq!((code, &report["equal"]), (Some(0), &serde_json::json!(true)), "{report}");
    let of_t = |report: &serde_json::Value| {
        let tables = report["tables"].as_array().expect("a list").clone();
        tables.into_iter().find(|table| table["table"] == "public.t").expect("the table")
    };
    assert_eq!(of_t(&report)["rows_replica"], 990);

    replica.exec("UPDATE copy SET n = 0 WHERE id = 500; DELETE FROM copy WHERE id = 600; INSERT INTO copy VALUES (-1, 11)");
    let (code, report) = verify(&["public.t"]);
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(
        of_t(&report)["differing"],
        serde_json::json!([
            {"key": ["-1"], "what": "extra"},
            {"key": ["500"], "what": "different"},
            {"key": ["600"], "what": "missing"},
        ])
    );
    assert_eq!(walgate.command(&["verify", "public.nothing"]).status.code(), Some(2));

    assert_eq!(walgate.command(&["resync", "public.nothing"]).status.code(), Some(2));
    assert_eq!(walgate.command(&["resync", "public.t"]).status.code(), Some(0));
    source.exec("UPDATE t SET n = n + 1; DELETE FROM t WHERE id = 700; INSERT INTO other VALUES (2)");
    walgate.run_until_caught_up();
    assert_eq!(verify(&[]).0, Some(0));

    // While it runs, and writes go on.
    let running = walgate.run();
    running.wait_for_log("to=Streaming");
    replica.exec("DELETE FROM copy WHERE id % 2 = 0");
    assert_eq!(walgate.command(&["resync", "--all"]).status.code(), Some(0));
    running.wait_for_log("are copied again, as asked");
    for i in 0..50 {
        source.exec(&format!(
            "INSERT INTO t VALUES ({}, 100, 'y'); UPDATE t SET n = n + 1 WHERE id % 10 = {i} % 10",
            5000 + i
        ));
    }
    wait_until("the copies to be equal again", || {
        let (code, report) = verify(&["--wait"]);
        eprintln!("{report:.300}");
        code == Some(0)
    });
    running.stop();
}

#[test]
fn status_and_drop_know_every_pipeline() {
    let (source, replica, hub) = (Source::new("repops"), Source::new("repops_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let walgate = replicating(&source, &replica, &hub, "[[table]]\nname = \"public.t\"\nmode = \"both\"");
    let checked = walgate.command(&["check"]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    walgate.run_until_caught_up();
    let output = walgate.command(&["status", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let names: Vec<&str> = report["pipelines"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| one["pipeline"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, [format!("{}_hub", source.name()), format!("{}_r_r", source.name())]);
    assert_eq!(report["orphaned_slots"], serde_json::json!([]));
    assert_eq!(report["pipelines"][1]["rows_copied"], 1);

    assert_eq!(walgate.command(&["drop", "--yes", "--pipeline", "nobody"]).status.code(), Some(2));
    // A replica that was taken out of the file.
    let without = Walgate::new(&source, &hub).section("[[table]]\nname = \"public.t\"");
    let output = without.command(&["drop", "--yes", "--pipeline", &format!("{}_r_r", source.name())]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("stays at its destination"), "{text}");
    let of_replica = format!(
        "SELECT slot_name FROM pg_replication_slots WHERE slot_name = '{0}_r_r' UNION ALL SELECT pubname FROM pg_publication WHERE pubname LIKE '{0}\\_r\\_r%'",
        source.name()
    );
    assert!(source.query(&of_replica).is_empty());
    assert_eq!(without.command(&["drop", "--yes", "--pipeline", "r"]).status.code(), Some(2));
    assert_eq!(replica.value("SELECT count(*) FROM walgate.checkpoint"), "1", "nobody said where it is");
    assert_eq!(walgate.command(&["drop", "--yes", "--pipeline", "r"]).status.code(), Some(0));
    let slots = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(source.value(slots), format!("{}_hub", source.name()));
    assert_eq!(replica.value("SELECT count(*) FROM t"), "1", "a replica's rows stay");
    assert_eq!(walgate.command(&["drop", "--yes"]).status.code(), Some(0));
    assert!(source.query(slots).is_empty());
    assert!(replica.query("SELECT 1 FROM pg_namespace WHERE nspname = 'walgate'").is_empty());
}

#[test]
fn a_replica_that_refuses_rows_does_not_hold_up_the_hub() {
    let (source, replica, hub) = (Source::new("refuses"), Source::new("refuses_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, name text)");
    replica.exec("CREATE TABLE t (id int PRIMARY KEY, name varchar(5) CHECK (name <> 'bad'))");
    let walgate = replicating(&source, &replica, &hub, "[[table]]\nname = \"public.t\"\nmode = \"both\"");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (1, 'good')");
    source.exec("INSERT INTO t VALUES (2, 'too long for it')");
    source.exec("INSERT INTO t VALUES (3, 'good')");
    let mut running = walgate.start(&["run", "--until-caught-up"]);
    assert_eq!(running.wait(REFUSAL_LIMIT).code(), Some(1));
    let log = running.stderr();
    for word in ["public.t", "too long", "remedy"] {
        assert!(log.contains(word), "no {word:?} in {log}");
    }
    assert_eq!(hub.events().len(), 3, "the hub has everything");
    replica.exec("ALTER TABLE t ALTER name TYPE text");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM t");
}

#[test]
fn another_name_other_columns_or_another_key_copy_the_table_again() {
    let (source, replica, hub) = (Source::new("again"), Source::new("again_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t SELECT i, i, i FROM generate_series(1, 50) i");
    replicating(&source, &replica, &hub, &rule("public.t", "columns = [\"id\", \"a\"]"))
        .run_until_caught_up();
    assert_same(&source, "SELECT id, a FROM t", &replica, "SELECT * FROM t");
    replica.exec("ALTER TABLE t ADD COLUMN b int");
    replicating(&source, &replica, &hub, &rule("public.t", "")).run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM t");
    let renamed = replicating(&source, &replica, &hub, &rule("public.t", "to = \"public.other\""));
    // What was copied into the one says nothing of the other.
    replica
        .exec("CREATE TABLE other (id int PRIMARY KEY, a int, b int); INSERT INTO other VALUES (-1, 1, 1)");
    let checked = renamed.command(&["check"]);
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.code() == Some(1) && text.contains("is not empty"), "{text}");
    replica.exec("TRUNCATE other");
    renamed.run_until_caught_up();
    source.exec("UPDATE t SET a = 0 WHERE id < 10");
    renamed.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM other");
}

#[test]
fn what_is_left_of_a_dropped_table_is_not_applied_to_its_successor() {
    let (source, replica, hub) = (Source::new("successor"), Source::new("successor_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", ""));
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (2, 2); UPDATE t SET n = 3 WHERE id = 1");
    source.exec("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 100)");
    replica.exec("TRUNCATE t");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM t");
}

#[test]
fn a_row_whose_old_side_is_unknown_leaves_the_replica_whatever_on_unknown_old_says() {
    let (source, replica, hub) = (Source::new("unknownrep"), Source::new("unknownrep_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1), (2, 2), (3, -1)");
    let walgate = replicating(
        &source,
        &replica,
        &hub,
        &rule("public.t", "where = \"n > 0\"\non_unknown_old = \"drop\""),
    );
    walgate.run_until_caught_up();
    source.exec(
        "UPDATE t SET n = -1 WHERE id = 1; UPDATE t SET n = -2 WHERE id = 3; DELETE FROM t WHERE id = 3",
    );
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t WHERE n > 0", &replica, "SELECT * FROM t");
    assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0");
}

#[test]
fn a_key_outside_of_the_replica_identity_is_refused() {
    let (source, replica, hub) = (Source::new("keyident"), Source::new("keyident_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, email text NOT NULL UNIQUE)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", "key = [\"email\"]"));
    let mut running = walgate.run();
    assert_eq!(running.wait(REFUSAL_LIMIT).code(), Some(1));
    for word in ["email", "replica identity", "REPLICA IDENTITY FULL"] {
        assert!(running.stderr().contains(word), "no {word:?} in {}", running.stderr());
    }
    source.exec("ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'a')");
    walgate.run_until_caught_up();
    source.exec("UPDATE t SET email = 'b'");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM t");
}

/// A transaction's end that comes behind its last batch is applied at once, not with the next change or after 10 s.
#[test]
fn the_end_of_a_transaction_does_not_wait() {
    let (source, replica, hub) = (Source::new("ends"), Source::new("ends_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", "where = \"n = 0\""));
    let running = walgate.run();
    running.wait_for_log("to=Streaming");
    for round in 1..=10 {
        // What passes the filter comes first, and fills batches; what does not, last.
        source.exec(&format!(
            "INSERT INTO t SELECT {round} * 20000 + i, CASE WHEN i < 9000 THEN 0 ELSE 1 END FROM generate_series(0, 12000) i"
        ));
        let since = std::time::Instant::now();
        wait_until("the rows", || replica.value("SELECT count(*) FROM t") == (round * 9000).to_string());
        assert!(since.elapsed() < Duration::from_secs(8), "round {round} took {:?}", since.elapsed());
    }
    running.stop();
}

#[test]
fn a_drain_inside_of_a_large_transaction_ends_at_once() {
    let (source, replica, hub) = (Source::new("drainrep"), Source::new("drainrep_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", ""))
        .section("[limits]\ndrain_timeout = \"10m\"");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 400000) i");
    let mut running = walgate.run();
    running.wait_for_log("to=Streaming");
    wait_until("the transaction to be under way", || {
        replica.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'walgate/%' AND xact_start IS NOT NULL") != "0"
    });
    running.sigterm();
    assert!(running.wait(REFUSAL_LIMIT).success(), "{}", running.stderr());
    walgate.run_until_caught_up();
    assert_eq!(replica.value("SELECT count(*) FROM t"), "400000");
}

#[test]
fn resync_copies_also_where_nothing_is_copied_at_first() {
    let (source, replica, hub) = (Source::new("neverrep"), Source::new("neverrep_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)");
    replica.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", "")).source("snapshot = \"never\"");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (2, 2)");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM t");
    replica.exec("DELETE FROM t WHERE id = 1");
    assert_eq!(walgate.command(&["resync", "--all"]).status.code(), Some(0));
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM t");
}

#[test]
fn a_filter_without_columns_is_a_filter_too() {
    let (source, replica, hub) = (Source::new("nocolumns"), Source::new("nocolumns_r"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", "where = \"upper('a') = 'A'\""));
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (2)");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT * FROM t", &replica, "SELECT * FROM t");
}
