//! Row images, keys and TOAST: what an event tells of a row, as the table's replica identity allows (CASES R).
//!
//! In: tables of every identity, and DML. Out: which events come, what they are about, their images.

use serde_json::{Value, json};

use crate::support::fold::assert_folded_equals;
use crate::support::pick::{
    TOASTED, of_aggregate, of_table, on_each_hub, on_file, only, ops, started, table_ops,
};
use crate::support::{Event, Walgate};

#[test]
fn case_r1_events_come_as_the_replica_identity_allows() {
    for (source, hub) in on_each_hub("identities") {
        source.exec(
            "CREATE TABLE by_default (id int PRIMARY KEY, n int);
             CREATE TABLE keyless (id int, n int);
             CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, n int);
             CREATE UNIQUE INDEX by_index_code ON by_index (code);
             ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
             CREATE TABLE full_with_key (id int PRIMARY KEY, n int);
             ALTER TABLE full_with_key REPLICA IDENTITY FULL;
             CREATE TABLE full_keyless (id int, n int);
             ALTER TABLE full_keyless REPLICA IDENTITY FULL;
             CREATE TABLE by_nothing (id int PRIMARY KEY, n int);
             ALTER TABLE by_nothing REPLICA IDENTITY NOTHING",
        );
        let walgate = started(&source, &hub);
        for table in ["by_default", "keyless", "full_with_key", "full_keyless", "by_nothing"] {
            // Publishing updates of a table without an identity would make the application's own UPDATE fail.
            source.exec(&format!(
                "INSERT INTO {table} VALUES (1, 10); UPDATE {table} SET n = 11 WHERE id = 1; DELETE FROM {table}"
            ));
        }
        source.exec("INSERT INTO by_index VALUES (1, 'one', 10)");
        source.exec("UPDATE by_index SET n = 11; DELETE FROM by_index");
        walgate.run_until_caught_up();
        let events = hub.events();

        let whole = ["insert", "update", "delete"];
        assert_eq!(table_ops(&events, "public.by_default"), whole);
        assert_eq!(table_ops(&events, "public.by_index"), whole);
        assert_eq!(table_ops(&events, "public.full_with_key"), whole);
        assert_eq!(table_ops(&events, "public.full_keyless"), whole);
        assert_eq!(table_ops(&events, "public.keyless"), ["insert"]);
        assert_eq!(table_ops(&events, "public.by_nothing"), ["insert"]);

        let befores = |table| -> Vec<Value> {
            of_table(&events, table).into_iter().map(|event| event.json["before"].clone()).collect()
        };
        assert_eq!(befores("public.by_default"), [json!(null), json!(null), json!({"id": 1})]);
        assert_eq!(befores("public.by_index"), [json!(null), json!(null), json!({"code": "one"})]);
        let full = [json!(null), json!({"id": 1, "n": 10}), json!({"id": 1, "n": 11})];
        assert_eq!(befores("public.full_with_key"), full);
        assert_eq!(befores("public.full_keyless"), full);

        let about = |table| -> Vec<Option<&str>> {
            of_table(&events, table).into_iter().map(Event::aggregate_id).collect()
        };
        assert_eq!(about("public.by_default"), [Some("1"); 3]);
        assert_eq!(
            about("public.by_index"),
            [Some("one"); 3],
            "the identity index comes before the primary key"
        );
        assert_eq!(about("public.full_with_key"), [Some("1"); 3], "FULL has the primary key as its key");
        assert_eq!(about("public.full_keyless"), [None; 3]);
        assert_eq!(about("public.keyless"), [None]);
        assert_eq!(about("public.by_nothing"), [Some("1")]);
        for table in ["by_default", "by_index", "full_with_key", "full_keyless"] {
            assert_folded_equals(&events, &source, &format!("public.{table}"));
        }
    }
}

#[test]
fn case_r1_a_truncate_of_a_table_without_identity_is_an_event() {
    let (source, hub) = on_file("keylesstruncate");
    source.exec("CREATE TABLE keyless (id int, n int)");
    let walgate = started(&source, &hub);
    source.exec(
        "INSERT INTO keyless VALUES (1, 1), (1, 1); TRUNCATE keyless; INSERT INTO keyless VALUES (2, 2)",
    );
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(table_ops(&events, "public.keyless"), ["insert", "insert", "truncate", "insert"]);
    assert_folded_equals(&events, &source, "public.keyless");
}

#[test]
fn case_r2_key_change_with_toast_names_the_value_as_unchanged() {
    for (source, hub) in on_each_hub("keytoast") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY, note text, n int); ALTER TABLE t ALTER note SET STORAGE EXTERNAL");
        let walgate = started(&source, &hub);
        source.exec(&format!("INSERT INTO t VALUES (1, {TOASTED}, 0)"));
        source.exec("UPDATE t SET id = 2, n = 5");
        walgate.run_until_caught_up();
        let events = hub.events();

        let [old, new] = [of_aggregate(&events, "1")[1], of_aggregate(&events, "2")[0]];
        assert_eq!((old.op(), new.op()), ("delete", "insert"));
        assert_eq!((old.text("moved_to"), new.text("moved_from")), ("2", "1"));
        assert_eq!((&old.json["moved_from"], &new.json["moved_to"]), (&Value::Null, &Value::Null));
        assert_eq!(old.json["before"], json!({"id": 1}));
        assert_eq!(old.json["data"], Value::Null);
        assert_eq!(new.json["data"], json!({"id": 2, "n": 5}), "what is unchanged is absent, never null");
        assert_eq!(new.unchanged(), ["note"]);
        assert!(old.unchanged().is_empty());
        assert_eq!((old.place().lsn, old.place().number + 1), (new.place().lsn, new.place().number));
        assert_eq!(old.place().number % 2, 0, "the n-th message has the ordinal 2n");
        assert_folded_equals(&events, &source, "public.t");
    }
}

#[test]
fn case_r2_key_change_with_toast_under_full_has_the_value() {
    let (source, hub) = on_file("keyfull");
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, note text, n int); ALTER TABLE t ALTER note SET STORAGE EXTERNAL;
         ALTER TABLE t REPLICA IDENTITY FULL",
    );
    let walgate = started(&source, &hub);
    source.exec(&format!("INSERT INTO t VALUES (1, {TOASTED}, NULL)"));
    source.exec("UPDATE t SET id = 2");
    walgate.run_until_caught_up();
    let events = hub.events();
    let note = source.value("SELECT note FROM t");
    let [old, new] = [of_aggregate(&events, "1")[1], of_aggregate(&events, "2")[0]];
    assert_eq!((old.text("moved_to"), new.text("moved_from")), ("2", "1"));
    assert_eq!(old.json["before"], json!({"id": 1, "note": note, "n": null}));
    assert_eq!(new.json["data"], json!({"id": 2, "note": note, "n": null}));
    assert!(new.unchanged().is_empty());
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_r2_key_changes_of_every_kind() {
    for (source, hub) in on_each_hub("keychanges") {
        source.exec(
            "CREATE TABLE pair (a int, b text, n int, PRIMARY KEY (a, b));
             CREATE TABLE coded (id int PRIMARY KEY, code text NOT NULL);
             CREATE UNIQUE INDEX coded_code ON coded (code);
             ALTER TABLE coded REPLICA IDENTITY USING INDEX coded_code;
             CREATE TABLE priced (k numeric PRIMARY KEY, n int)",
        );
        let walgate = started(&source, &hub);
        // One part of a composite key.
        source.exec("INSERT INTO pair VALUES (1, 'x', 0); UPDATE pair SET b = 'y'; UPDATE pair SET n = 1");
        // The identity index's column is the key, the primary key is not.
        source
            .exec("INSERT INTO coded VALUES (1, 'p'); UPDATE coded SET id = 7; UPDATE coded SET code = 'q'");
        // Equal for SQL, another text: another aggregate.
        source.exec("INSERT INTO priced VALUES (1.0, 0); UPDATE priced SET k = 1.00; UPDATE priced SET k = 1.00, n = 2");
        // There and back, and onto a key that has just become free, in one transaction.
        source.exec(
            "INSERT INTO pair VALUES (2, 'to', 0), (3, 'from', 0);
             BEGIN; UPDATE pair SET a = 4 WHERE a = 2; UPDATE pair SET a = 2, b = 'to' WHERE a = 3;
             UPDATE pair SET a = 3, b = 'from' WHERE a = 4; COMMIT",
        );
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(ops(&events, r#"["1","x"]"#), ["insert", "delete"]);
        assert_eq!(ops(&events, r#"["1","y"]"#), ["insert", "update"]);
        assert_eq!(of_aggregate(&events, r#"["1","x"]"#)[1].text("moved_to"), r#"["1","y"]"#);
        assert_eq!(of_aggregate(&events, r#"["1","x"]"#)[1].json["before"], json!({"a": 1, "b": "x"}));
        assert_eq!(ops(&events, "p"), ["insert", "update", "delete"]);
        assert_eq!(ops(&events, "q"), ["insert"]);
        assert_eq!(ops(&events, "1.0"), ["insert", "delete"]);
        assert_eq!(ops(&events, "1.00"), ["insert", "update"]);
        assert_eq!(of_aggregate(&events, "1.00")[0].text("moved_from"), "1.0");
        assert_eq!(ops(&events, r#"["2","to"]"#), ["insert", "delete", "insert"]);
        for table in ["public.pair", "public.coded", "public.priced"] {
            assert_folded_equals(&events, &source, table);
        }
    }
}

#[test]
fn case_r2_a_toasted_key_that_was_sent_but_did_not_change_is_no_key_change() {
    let (source, hub) = on_file("toastedkey");
    source.exec(
        "CREATE TABLE t (k text PRIMARY KEY, n int); ALTER TABLE t ALTER k SET STORAGE EXTERNAL;
         CREATE TABLE pair (a int, k text, n int, PRIMARY KEY (a, k)); ALTER TABLE pair ALTER k SET STORAGE EXTERNAL",
    );
    let walgate = started(&source, &hub);
    // Long enough to be stored out of line, short enough for an index.
    let long = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 80) i)";
    source.exec(&format!("INSERT INTO t VALUES ({long}, 1); INSERT INTO pair VALUES (1, {long}, 1)"));
    source.exec("UPDATE t SET n = 2; UPDATE pair SET n = 2");
    source.exec("UPDATE pair SET a = 2");
    walgate.run_until_caught_up();
    let events = hub.events();
    let key = source.value("SELECT k FROM t");
    assert_eq!(key.len(), 2560);
    assert_eq!(ops(&events, &key), ["insert", "update"]);
    let update = of_aggregate(&events, &key)[1];
    assert_eq!(update.json["before"], Value::Null);
    assert_eq!(update.json["data"], json!({"k": key, "n": 2}), "a key's value is always there");
    assert!(update.unchanged().is_empty());
    // The same column, when another part of the key does change.
    assert_eq!(ops(&events, &format!(r#"["1","{key}"]"#)), ["insert", "update", "delete"]);
    let moved = of_aggregate(&events, &format!(r#"["2","{key}"]"#))[0];
    assert_eq!(moved.json["data"], json!({"a": 2, "k": key, "n": 2}));
    assert_folded_equals(&events, &source, "public.t");
    assert_folded_equals(&events, &source, "public.pair");
}

#[test]
fn case_r3_unchanged_toast_of_every_kind_of_column() {
    let (source, hub) = on_file("toastkinds");
    source.exec(
        "CREATE EXTENSION hstore;
         CREATE TABLE t (id int PRIMARY KEY, n int, none text, a text, b text[], c jsonb, d bytea, e hstore, f json, g xml);
         ALTER TABLE t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER c SET STORAGE EXTERNAL,
           ALTER d SET STORAGE EXTERNAL, ALTER e SET STORAGE EXTERNAL, ALTER f SET STORAGE EXTERNAL,
           ALTER g SET STORAGE EXTERNAL",
    );
    let walgate = started(&source, &hub);
    source.exec(&format!(
        "INSERT INTO t SELECT 1, 1, NULL, x, ARRAY[x, NULL], jsonb_build_object('k', x), x::bytea, hstore('k', x),
           json_build_object('k', x), xmlelement(name x, x) FROM (SELECT {TOASTED} AS x) long"
    ));
    source.exec("UPDATE t SET n = 2");
    source.exec(&format!("UPDATE t SET a = 'new' || {TOASTED}, b = NULL"));
    source.exec("ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET n = 3");
    walgate.run_until_caught_up();
    let events = hub.events();
    let [insert, first, second, full] = of_table(&events, "public.t")[..] else { panic!("{events:#?}") };
    assert!(insert.unchanged().is_empty());
    assert_eq!(first.unchanged(), ["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(first.json["data"], json!({"id": 1, "n": 2, "none": null}));
    assert_eq!(second.unchanged(), ["c", "d", "e", "f", "g"]);
    assert_eq!(second.json["data"]["b"], Value::Null);
    assert!(
        second.json["data"].as_object().expect("a row").contains_key("b"),
        "what is NULL now is not unchanged"
    );
    assert_eq!(second.data("a").as_str().map(str::len), Some(12_803));
    assert!(full.unchanged().is_empty());
    for column in ["a", "c", "d", "e", "f", "g"] {
        assert_eq!(full.data(column), &full.json["before"][column]);
        assert!(!full.data(column).is_null(), "{column}");
    }
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_r4_one_of_two_equal_rows() {
    let (source, hub) = on_file("equalrows");
    source.exec("CREATE TABLE t (a int, b text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'x'), (1, 'x')");
    let walgate = started(&source, &hub);
    source.exec("UPDATE t SET b = 'y' WHERE ctid = (SELECT min(ctid) FROM t)");
    source.exec("INSERT INTO t VALUES (1, 'x'); DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t)");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(table_ops(&events, "public.t"), ["read", "read", "update", "insert", "delete"]);
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_r5_one_key_many_times_in_a_transaction_and_in_a_batch() {
    for (source, hub) in on_each_hub("samekey") {
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int)");
        let walgate = started(&source, &hub);
        let story =
            "INSERT INTO t VALUES (1, 1); UPDATE t SET n = 2; DELETE FROM t; INSERT INTO t VALUES (1, 3)";
        source.exec(&format!("BEGIN; {story}; COMMIT"));
        source.exec("DELETE FROM t");
        for statement in story.split("; ") {
            source.exec(statement);
        }
        source.exec("INSERT INTO t VALUES (1, 4) ON CONFLICT (id) DO UPDATE SET n = EXCLUDED.n");
        walgate.run_until_caught_up();
        let events = hub.events();
        let once = ["insert", "update", "delete", "insert"];
        assert_eq!(ops(&events, "1"), [&once[..], &["delete"], &once, &["update"]].concat());
        let in_one: Vec<u64> =
            of_aggregate(&events, "1")[..4].iter().map(|event| event.place().number).collect();
        assert_eq!(in_one, [2, 4, 6, 8], "the n-th message of a transaction has the ordinal 2n");
        assert_folded_equals(&events, &source, "public.t");
    }
}

#[test]
fn case_r6_parents_and_children_keep_the_order_of_the_commit() {
    let (source, hub) = on_file("families");
    source.exec(
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
    );
    let walgate = started(&source, &hub);
    source.exec("BEGIN; INSERT INTO child VALUES (1, 1), (2, 1); INSERT INTO parent VALUES (1); COMMIT");
    source.exec("TRUNCATE parent CASCADE");
    source.exec("INSERT INTO parent VALUES (5); INSERT INTO child VALUES (5, 5)");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(table_ops(&events, "public.parent"), ["insert", "truncate", "insert"]);
    assert_eq!(table_ops(&events, "public.child"), ["insert", "insert", "truncate", "insert"]);
    let first = |table| of_table(&events, table)[0].place();
    assert!(first("public.child") < first("public.parent"));
    assert_folded_equals(&events, &source, "public.parent");
    assert_folded_equals(&events, &source, "public.child");
}

#[test]
fn case_r7_keys_of_every_kind_are_their_text() {
    for (source, hub) in on_each_hub("keykinds") {
        source.exec(
            "CREATE TYPE mood AS ENUM ('sad', 'so \"so\"');
             CREATE TABLE by_uuid (k uuid PRIMARY KEY, n int);
             CREATE TABLE by_mood (k mood PRIMARY KEY, n int);
             CREATE TABLE by_number (k numeric PRIMARY KEY, n int);
             CREATE TABLE by_big (k bigint PRIMARY KEY, n int);
             CREATE TABLE by_flag (k boolean PRIMARY KEY, n int);
             CREATE TABLE by_time (k timestamptz PRIMARY KEY, n int);
             CREATE TABLE by_bytes (k bytea PRIMARY KEY, n int);
             CREATE TABLE by_text (k text PRIMARY KEY, n int);
             CREATE TABLE by_three (a text, b int, c uuid, n int, PRIMARY KEY (a, b, c));
             INSERT INTO by_uuid VALUES ('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 0);
             INSERT INTO by_mood VALUES ('so \"so\"', 0);
             INSERT INTO by_number VALUES (12345678901234567890.50, 0);
             INSERT INTO by_big VALUES (9223372036854775807, 0), (-1, 0);
             INSERT INTO by_flag VALUES (true, 0);
             INSERT INTO by_time VALUES ('2026-11-21 04:55:30.5+02', 0);
             INSERT INTO by_bytes VALUES ('\\x00ff', 0)",
        );
        let walgate = started(&source, &hub);
        for table in ["uuid", "mood", "number", "big", "flag", "time", "bytes"] {
            source.exec(&format!("UPDATE by_{table} SET n = 1"));
        }
        let keys = [
            "",
            " ",
            "it's",
            "\"quoted\"",
            "back\\slash",
            "\u{1}",
            "\t\n\r",
            "ünïcödé 😀",
            "null",
            "[\"a\",\"b\"]",
            "a,b",
            "%2F",
            "a/b",
            "\u{2028}",
            "\u{7f}",
            "'",
            "--",
        ];
        for key in keys {
            let literal = format!("'{}'", key.replace('\'', "''"));
            source.exec(&format!("INSERT INTO by_text VALUES ({literal}, 0)"));
            source.exec(&format!("INSERT INTO by_three VALUES ({literal}, -1, '{}', 0)", uuid(1)));
        }
        source.exec("INSERT INTO by_three VALUES ('a\",\"1', 1, '00000000-0000-0000-0000-000000000001', 0)");
        source.exec("UPDATE by_text SET n = 1; UPDATE by_three SET n = 1");
        source.exec("DELETE FROM by_text WHERE k = 'it''s'");
        walgate.run_until_caught_up();
        let events = hub.events();

        let about =
            |table| of_table(&events, table).last().expect("events").aggregate_id().map(str::to_owned);
        assert_eq!(about("public.by_uuid").as_deref(), Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"));
        assert_eq!(about("public.by_mood").as_deref(), Some("so \"so\""));
        assert_eq!(about("public.by_number").as_deref(), Some("12345678901234567890.50"));
        assert_eq!(about("public.by_flag").as_deref(), Some("t"), "the key's text is PostgreSQL's");
        assert_eq!(about("public.by_time").as_deref(), Some("2026-11-21 02:55:30.5+00"));
        assert_eq!(about("public.by_bytes").as_deref(), Some("\\x00ff"));
        assert_eq!(ops(&events, "9223372036854775807"), ["read", "update"]);
        for key in keys {
            let expected: &[&str] =
                if key == "it's" { &["insert", "update", "delete"] } else { &["insert", "update"] };
            assert_eq!(ops(&events, key), expected, "{key:?}");
            let three = serde_json::to_string(&[key, "-1", &uuid(1)]).expect("texts are JSON");
            assert_eq!(ops(&events, &three), ["insert", "update"], "{three}");
        }
        for table in ["uuid", "mood", "number", "big", "flag", "time", "bytes", "text", "three"] {
            assert_folded_equals(&events, &source, &format!("public.by_{table}"));
        }
    }
}

fn uuid(number: u32) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

#[test]
fn case_r7_a_composite_key_is_the_same_in_copy_and_stream() {
    let (source, hub) = on_file("keyorder");
    source
        .exec("CREATE TABLE t (a int, b text, n int, PRIMARY KEY (b, a)); INSERT INTO t VALUES (1, 'x', 0)");
    let walgate = started(&source, &hub);
    source.exec("UPDATE t SET n = 1");
    source.exec("ALTER TABLE t REPLICA IDENTITY FULL");
    source.exec("UPDATE t SET n = 2; DELETE FROM t");
    walgate.run_until_caught_up();
    let events = hub.events();
    let about: Vec<_> = of_table(&events, "public.t").into_iter().map(Event::aggregate_id).collect();
    assert_eq!(about, [about[0]; 4], "one row is one aggregate, whatever the identity");
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn case_r7_a_rule_gives_a_key_to_a_table_without_one() {
    let (source, hub) = on_file("rulekey");
    source.exec(
        "CREATE TABLE t (id int, n int); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 0)",
    );
    let walgate = Walgate::new(&source, &hub).section("[[table]]\nname = \"public.t\"\nkey = [\"id\"]");
    walgate.run_until_caught_up();
    source.exec("UPDATE t SET n = 1; UPDATE t SET id = 2; DELETE FROM t");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(ops(&events, "1"), ["read", "update", "delete"]);
    assert_eq!(ops(&events, "2"), ["insert", "delete"]);
    assert_eq!(of_aggregate(&events, "2")[0].text("moved_from"), "1");
}

#[test]
fn case_r7_an_aggregate_of_other_columns_needs_full_and_moves_with_them() {
    let (source, hub) = on_file("aggregateid");
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, customer text, n int); INSERT INTO t VALUES (1, 'ann', 0)",
    );
    let walgate = Walgate::new(&source, &hub).section(
        "[[table]]\nname = \"public.t\"\naggregate_id = [\"customer\"]\naggregate_type = \"Customer\"",
    );
    // A delete would not tell its customer.
    let refused = walgate.command(&["run", "--until-caught-up"]);
    let log = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{log}");
    assert!(log.contains("customer") && log.contains("REPLICA IDENTITY FULL"), "{log}");

    source.exec("ALTER TABLE t REPLICA IDENTITY FULL");
    walgate.run_until_caught_up();
    source.exec("UPDATE t SET n = 1; UPDATE t SET customer = 'bob'; DELETE FROM t");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(ops(&events, "ann"), ["read", "update", "delete"]);
    assert_eq!(ops(&events, "bob"), ["insert", "delete"]);
    assert!(events.iter().all(|event| event.text("aggregate_type") == "Customer"));
    let moved = only(&events, "public.t", |event| event.json["moved_to"].is_string());
    assert_eq!(moved.text("moved_to"), "bob");
    assert_eq!(moved.json["before"], json!({"id": 1, "customer": "ann", "n": 1}));
}
