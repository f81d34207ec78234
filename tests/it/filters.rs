//! Row filters of events: which rows are published, what crossing a filter is, and what cannot be decided (CASES F).
//!
//! In: rules with `where`, and DML that crosses them. Out: which events come. Always: what folds by key is what
//! `SELECT ... WHERE` gives on the source.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fold::Fold;
use crate::support::pick::{TOASTED, of_aggregate, of_table, on_each_hub, on_file, only, ops, table_ops};
use crate::support::{Event, Hub, Source, Walgate};

/// How long a refused start may take.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);

fn filtered(source: &Source, hub: &Hub, table: &str, filter: &str, more: &str) -> Walgate {
    Walgate::new(source, hub).section(&format!("[[table]]\nname = \"{table}\"\nwhere = {filter:?}\n{more}"))
}

/// Asserts that the events of a table `t (id ...)` fold to the ids that the source selects.
#[track_caller]
fn assert_folds_to_selected(events: &[Event], source: &Source, filter: &str) {
    let selected: Vec<String> = source
        .query(&format!("SELECT id::text FROM t WHERE {filter}"))
        .into_iter()
        .map(|row| row[0].clone().expect("a key"))
        .collect();
    let mut selected: Vec<&str> = selected.iter().map(String::as_str).collect();
    selected.sort_unstable();
    let rows = Fold::of(events).rows("public.t");
    let folded: Vec<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(folded, selected, "WHERE {filter}");
}

#[test]
fn case_f1_only_rows_that_pass_are_read_and_streamed() {
    for (source, hub) in on_each_hub("f1") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY, x int); INSERT INTO t SELECT x, x FROM unnest('{0,5,10,15,20}'::int[]) x; INSERT INTO t VALUES (30, NULL)");
        let walgate = filtered(&source, &hub, "public.t", "x > 10", "");
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t VALUES (-99, -99), (99, 99), (98, NULL)");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(table_ops(&events, "public.t"), ["read", "read", "insert"]);
        assert_folds_to_selected(&events, &source, "x > 10");
    }
}

#[test]
fn updates_that_cross_the_filter_are_deletes_and_inserts_under_full() {
    let filters = [
        // The first is evaluated by Walgate, the second by PostgreSQL.
        "region = 'EU' AND total >= 10",
        "region ~ '^E[U]$' AND total >= 10",
    ];
    for filter in filters {
        let (source, hub) = on_file("crossing");
        source.exec("CREATE TABLE t (id int PRIMARY KEY, region text, total numeric); ALTER TABLE t REPLICA IDENTITY FULL");
        let walgate = filtered(&source, &hub, "public.t", filter, "");
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t VALUES (1, 'EU', 5), (2, 'EU', 10), (3, 'US', 50), (4, NULL, 50)");
        source.exec("UPDATE t SET total = 20 WHERE id = 1"); // enters
        source.exec("UPDATE t SET total = 11 WHERE id = 2"); // stays inside
        source.exec("UPDATE t SET total = 51 WHERE id IN (3, 4)"); // stays outside
        source.exec("UPDATE t SET region = 'US' WHERE id = 2"); // leaves
        source.exec("UPDATE t SET id = 10 WHERE id = 1"); // another key, inside
        source.exec("UPDATE t SET id = 11, region = 'US' WHERE id = 10"); // another key, and leaves
        source.exec("UPDATE t SET id = 12, region = 'EU' WHERE id = 3"); // another key, and enters
        source.exec("DELETE FROM t WHERE id IN (4, 11, 12)");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(ops(&events, "1"), ["insert", "delete"], "{filter}");
        assert_eq!(ops(&events, "2"), ["insert", "update", "delete"], "{filter}");
        assert_eq!(ops(&events, "10"), ["insert", "delete"], "{filter}");
        assert_eq!(ops(&events, "12"), ["insert", "delete"], "{filter}");
        for outside in ["3", "4", "11"] {
            assert!(of_aggregate(&events, outside).is_empty(), "{filter}: {outside}");
        }
        assert_eq!(of_aggregate(&events, "1")[1].text("moved_to"), "10");
        assert_eq!(of_aggregate(&events, "10")[1].json["moved_to"], Value::Null, "it did not move, it left");
        assert_eq!(
            of_aggregate(&events, "2")[2].json["before"],
            json!({"id": 2, "region": "EU", "total": "11"})
        );
        assert_folds_to_selected(&events, &source, filter);
    }
}

#[test]
fn where_the_old_row_is_unknown_what_converges_is_published() {
    for (policy, leaving) in [("", "delete"), ("on_unknown_old = \"drop\"", "")] {
        let (source, hub) = on_file("unknownold");
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int)");
        let walgate = filtered(&source, &hub, "public.t", "n > 0", policy);
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t VALUES (1, 1), (2, -1)");
        source.exec("UPDATE t SET n = -1 WHERE id = 1; UPDATE t SET n = -2 WHERE id = 2");
        source.exec("UPDATE t SET n = 7 WHERE id = 2; DELETE FROM t WHERE id = 2");
        walgate.run_until_caught_up();
        let events = hub.events();
        let expected = |some: &[&'static str]| -> Vec<&str> {
            some.iter().copied().filter(|op| !op.is_empty()).collect()
        };
        assert_eq!(ops(&events, "1"), expected(&["insert", leaving]), "{policy}");
        assert_eq!(ops(&events, "2"), expected(&[leaving, "update", "delete"]), "{policy}");
        if leaving == "delete" {
            assert_eq!(of_aggregate(&events, "1")[1].json["before"], json!({"id": 1}));
        }
    }
}

#[test]
fn a_filter_on_the_key_is_always_known() {
    let (source, hub) = on_file("keyfilter");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int)");
    let walgate = filtered(&source, &hub, "public.t", "id < 100", "");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (1, 1), (200, 1); UPDATE t SET n = 2; UPDATE t SET id = id + 100");
    source.exec("UPDATE t SET id = 50 WHERE id = 300; DELETE FROM t");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(ops(&events, "1"), ["insert", "update", "delete"]);
    assert_eq!(ops(&events, "50"), ["insert", "delete"]);
    assert_eq!(events.len(), 5, "{events:#?}");
}

#[test]
fn case_f2_a_large_text_in_the_identity_and_in_the_filter() {
    let (source, hub) = on_file("f2");
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text COLLATE \"C\");
         ALTER TABLE t ALTER a SET STORAGE EXTERNAL; ALTER TABLE t REPLICA IDENTITY FULL",
    );
    let walgate = filtered(&source, &hub, "public.t", "a LIKE 'c4ca%' AND b < '10'", "");
    walgate.run_until_caught_up();
    source.exec(&format!("INSERT INTO t VALUES (1, {TOASTED}, '20')"));
    source.exec("UPDATE t SET b = '0'");
    walgate.run_until_caught_up();
    let events = hub.events();
    let entered = only(&events, "public.t", |_| true);
    assert_eq!(entered.op(), "insert");
    assert_eq!(entered.data("a").as_str().map(str::len), Some(12_800));
}

#[test]
fn case_f3_fields_of_json_and_columns_that_are_not_published() {
    let (source, hub) = on_file("f3");
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, j jsonb, secret int); ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t VALUES (1, '{\"field2\": \"val2\"}', 1), (2, '{\"field2\": \"val\"}', 1), (3, '{}', 1)",
    );
    let filter = "(j->>'field2') IS DISTINCT FROM 'val2' AND secret = 1";
    let walgate = filtered(&source, &hub, "public.t", filter, "columns = [\"id\", \"j\"]");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (4, '{\"field2\": \"val2\"}', 1), (5, NULL, 1), (6, '{}', 2)");
    source.exec("UPDATE t SET secret = 2 WHERE id = 2; UPDATE t SET secret = 1 WHERE id = 6");
    // CASES F7: nothing that is published changes, and the row stays inside.
    source.exec("UPDATE t SET secret = 1 WHERE id = 3");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_folds_to_selected(&events, &source, filter);
    assert_eq!(ops(&events, "3"), ["read"]);
    for event in of_table(&events, "public.t").iter().filter(|event| event.op() != "delete") {
        let columns: Vec<&String> = event.json["data"].as_object().expect("a row").keys().collect();
        assert_eq!(columns, ["id", "j"]);
    }
}

#[test]
fn case_f4_a_filter_that_fails_for_a_row_stops_the_pipeline() {
    for filter in ["1 / x > 0", "1 / x > 0 AND note ~ '.'"] {
        let (source, hub) = on_file("f4");
        source.exec("CREATE TABLE t (id int PRIMARY KEY, x int, note text)");
        let walgate = filtered(&source, &hub, "public.t", filter, "");
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t VALUES (1, 1, 'a')");
        source.exec("INSERT INTO t VALUES (7, 0, 'b')");
        source.exec("INSERT INTO t VALUES (3, 1, 'c')");
        let mut running = walgate.run();
        let status = running.wait(REFUSAL_LIMIT);
        let log = running.stderr();
        assert_eq!(status.code(), Some(1), "{filter}: {log}");
        for word in ["public.t", "division by zero", "remedy"] {
            assert!(log.contains(word), "{filter}: no {word:?} in {log}");
        }
        assert!(ops(&hub.events(), "3").is_empty(), "{filter}: published past the failure");
        source.exec("UPDATE t SET x = 1 WHERE id = 7");
        // The row's first version still is in the WAL: only another filter helps.
        let mended = filtered(&source, &hub, "public.t", "CASE WHEN x <> 0 THEN 1 / x > 0 END", "");
        mended.run_until_caught_up();
        assert_folds_to_selected(&hub.events(), &source, "x <> 0");
    }
}

#[test]
fn an_unknown_value_of_the_new_row_stops_the_pipeline_and_check_finds_it_before() {
    let (source, hub) = on_file("unknownnew");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text, n int); ALTER TABLE t ALTER note SET STORAGE EXTERNAL");
    let walgate = filtered(&source, &hub, "public.t", "note LIKE 'c4ca%'", "");
    let checked = walgate.command(&["check"]);
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert!(text.contains("REPLICA IDENTITY FULL") && text.contains("note"), "{text}");

    walgate.run_until_caught_up();
    source.exec(&format!("INSERT INTO t VALUES (5, {TOASTED}, 0)"));
    source.exec("UPDATE t SET n = 1");
    let mut running = walgate.run();
    assert_eq!(running.wait(REFUSAL_LIMIT).code(), Some(1));
    let log = running.stderr();
    for word in ["public.t", "\"note\"", "REPLICA IDENTITY FULL", "remedy"] {
        assert!(log.contains(word), "no {word:?} in {log}");
    }
    assert!(!table_ops(&hub.events(), "public.t").contains(&"update"), "published past what was refused");
}

#[test]
fn case_f5_a_partitioned_table_is_filtered_as_one() {
    let (source, hub) = on_file("f5");
    source.exec(
        "CREATE TABLE t (id int, x int, note text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100);
         CREATE TABLE t_2 (note text, x int, dropped int, id int NOT NULL);
         ALTER TABLE t_2 DROP COLUMN dropped; ALTER TABLE t_1 REPLICA IDENTITY FULL;
         ALTER TABLE t_2 REPLICA IDENTITY FULL; ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM (100) TO (200);
         INSERT INTO t VALUES (1, 1, 'a'), (2, 20, 'b'), (101, 1, 'c'), (102, 20, 'd')",
    );
    let walgate = filtered(&source, &hub, "public.t", "x > 10", "");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (3, 30, 'e'), (103, 30, 'f'), (104, 3, 'g')");
    source.exec("UPDATE t SET id = 150 WHERE id = 2; UPDATE t SET x = 30 WHERE id = 101");
    walgate.run_until_caught_up();
    assert_folds_to_selected(&hub.events(), &source, "x > 10");
}

#[test]
fn case_f8_a_filter_that_cannot_be_is_refused_by_check_and_at_start() {
    let (source, hub) = on_file("f8where");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, x int, twice int GENERATED ALWAYS AS (x * 2) STORED)");
    for (filter, words) in [
        ("y > 1", vec!["\\\"y\\\" does not exist", "table[0].where"]),
        ("x >", vec!["table[0].where"]),
        ("x > 1; DROP TABLE t", vec!["table[0].where"]),
        ("x + 1", vec!["boolean", "table[0].where"]),
        ("x > (SELECT 1)", vec!["sub-quer", "table[0].where"]),
        ("x > random()", vec!["random", "table[0].where"]),
        ("now() > '2020-01-01'", vec!["table[0].where"]),
        ("x = 'abc'", vec!["table[0].where"]),
        ("no_such_function(x)", vec!["no_such_function", "table[0].where"]),
        ("twice > 1", vec!["generated", "table[0].where"]),
    ] {
        let walgate = filtered(&source, &hub, "public.t", filter, "");
        let checked = walgate.command(&["check", "--json"]);
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert_eq!(checked.status.code(), Some(1), "{filter}: {text}");
        for word in words {
            assert!(text.contains(word), "{filter}: no {word:?} in {text}");
        }
        let mut running = walgate.run();
        assert_eq!(running.wait(REFUSAL_LIMIT).code(), Some(1), "{filter}: {}", running.stderr());
    }
    let slots = source.query("SELECT 1 FROM pg_replication_slots WHERE database = current_database()");
    assert!(slots.is_empty(), "a refused filter leaves no slot behind");
}

#[test]
fn check_names_who_evaluates_a_filter() {
    let (source, hub) = on_file("whoevaluates");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, region text); ALTER TABLE t REPLICA IDENTITY FULL");
    for (filter, word) in [("id > 10", "Walgate"), ("region ~ '^E'", "PostgreSQL")] {
        let walgate = filtered(&source, &hub, "public.t", filter, "");
        let checked = walgate.command(&["check"]);
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert_eq!(checked.status.code(), Some(0), "{text}");
        assert!(text.contains(&format!("evaluated by {word}")), "{filter}: {text}");
    }
}

#[test]
fn another_filter_copies_the_table_again() {
    let (source, hub) = on_file("otherfilter");
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, x int); INSERT INTO t SELECT i, i FROM generate_series(1, 20) i",
    );
    filtered(&source, &hub, "public.t", "x > 10", "").run_until_caught_up();
    assert_folds_to_selected(&hub.events(), &source, "x > 10");
    filtered(&source, &hub, "public.t", "x < 5", "").run_until_caught_up();
    source.exec("INSERT INTO t VALUES (30, 1), (31, 30)");
    filtered(&source, &hub, "public.t", "x < 5", "").run_until_caught_up();
    assert_folds_to_selected(&hub.events(), &source, "x < 5");
}

#[test]
fn a_truncate_takes_no_heed_of_the_filter() {
    let (source, hub) = on_file("truncatefilter");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, x int)");
    let walgate = filtered(&source, &hub, "public.t", "x > 10", "");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (1, 11), (2, 1)");
    source.exec("TRUNCATE t; INSERT INTO t VALUES (3, 12)");
    walgate.run_until_caught_up();
    assert_folds_to_selected(&hub.events(), &source, "x > 10");
}

#[test]
fn a_filter_that_postgresql_evaluates_survives_many_rows_and_a_kill() {
    for (source, hub) in on_each_hub("serverfilter") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY, word text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 3000) i");
        let filter = "word ~ '^[0-7]' AND length(word) > 3";
        let walgate = filtered(&source, &hub, "public.t", filter, "");
        let mut running = walgate.run();
        running.wait_for_log("to=Streaming");
        source.exec("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(3001, 9000) i");
        running.kill9();
        source.exec("UPDATE t SET word = md5(word) WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0");
        walgate.run_until_caught_up();
        let mut events = hub.events();
        events.retain(|event| event.op() != "message");
        assert_folds_to_selected(&events, &source, filter);
    }
}
