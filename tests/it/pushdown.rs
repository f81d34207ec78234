//! `pushdown = "auto"`: filters that go into the managed publication, and those that do not.
//!
//! In: rules with `where` and `pushdown`. Out: the publication's definition, check's words, events and rows. Always: what
//! comes out is what comes out without it, and none of the application's statements fails.

use crate::check::Checked;
use crate::support::pick::{TOASTED, on_file, table_ops};
use crate::support::{Event, Fold, Hub, Source, Walgate, wait_until};

fn rule(table: &str, filter: &str, more: &str) -> String {
    format!("[[table]]\nname = \"public.{table}\"\nwhere = {filter:?}\n{more}\n")
}

/// The tables of the hub's publication with their filters.
fn filters(source: &Source, publication: &str) -> Vec<(String, Option<String>)> {
    let rows = source.query(&format!(
        "SELECT r.prrelid::regclass::text, pg_get_expr(r.prqual, r.prrelid) FROM pg_publication_rel r \
         JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = '{}_{publication}' ORDER BY 1",
        source.name()
    ));
    rows.into_iter().map(|row| (row[0].clone().expect("a table"), row[1].clone())).collect()
}

fn filter_of(source: &Source, table: &str) -> Option<String> {
    filters(source, "hub").into_iter().find(|(name, _)| name == table).and_then(|(_, filter)| filter)
}

#[test]
fn only_what_cannot_fail_goes_into_the_publication() {
    let (source, hub) = on_file("push");
    source.exec(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE keyed (id int, region text, n int, PRIMARY KEY (id, region));
         CREATE TABLE whole (id int PRIMARY KEY, n int, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE outside (id int PRIMARY KEY, n int);
         CREATE TABLE failing (id int PRIMARY KEY, n int); ALTER TABLE failing REPLICA IDENTITY FULL;
         CREATE TABLE moody (id int PRIMARY KEY, mood mood); ALTER TABLE moody REPLICA IDENTITY FULL;
         CREATE TABLE bare (id int, n int);
         CREATE TABLE parts (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts DEFAULT;
         CREATE TABLE off (id int PRIMARY KEY, n int)",
    );
    let auto = "pushdown = \"auto\"";
    let rules = [
        rule("keyed", "region = 'EU' OR id IN (1, 2, 3)", auto),
        rule("whole", "n > 10 AND note IS NOT NULL -- a comment", &format!("{auto}\ncolumns = [\"id\"]")),
        rule("outside", "n > 10", auto),
        rule("failing", "10 / n > 1", auto),
        rule("moody", "mood = 'ok'", auto),
        rule("bare", "n > 10", auto),
        rule("parts", "id > 10", auto),
        rule("off", "id > 10", ""),
    ];
    let walgate = rules.iter().fold(Walgate::new(&source, &hub), |walgate, rule| walgate.section(rule));
    let words = [
        (0, "the filter of public.keyed is pushed down into the publication", "DROP COLUMN"),
        (1, "the filter of public.whole is pushed down", "DROP COLUMN"),
        (1, "the list of columns of public.whole is not pushed down", ""),
        (2, "the filter of public.outside is not pushed down: \"n\" is not in the replica identity", ""),
        (3, "the filter of public.failing is not pushed down: more than comparisons", ""),
        (4, "the filter of public.moody is not pushed down: the type or collation of \"mood\"", ""),
        (5, "the filter of public.bare is not pushed down: the table has no usable replica identity", ""),
        (6, "the filter of public.parts is not pushed down: each leaf", ""),
    ];
    let checked = Checked::of(&walgate);
    checked.is_clean();
    for (table, message, remedy) in words {
        checked.has("notes", &format!("table[{table}].pushdown"), message, remedy);
    }
    walgate.run_until_caught_up();
    let pushed: Vec<(String, Option<String>)> =
        filters(&source, "hub").into_iter().filter(|(_, filter)| filter.is_some()).collect();
    let as_text = |(table, filter): &(String, Option<String>)| {
        format!("{table}: {}", filter.clone().unwrap_or_default())
    };
    assert_eq!(
        pushed.iter().map(as_text).collect::<Vec<_>>(),
        [
            "keyed: ((region = 'EU'::text) OR (id = ANY (ARRAY[1, 2, 3])))",
            "whole: ((n > 10) AND (note IS NOT NULL))"
        ]
    );
    // Nothing that the application does fails.
    source.exec("INSERT INTO failing VALUES (1, 5); INSERT INTO outside VALUES (1, 5), (2, 50)");
    source.exec(
        "UPDATE outside SET n = 20; UPDATE outside SET n = 1 WHERE id = 2; DELETE FROM outside WHERE id = 1",
    );
    source.exec("INSERT INTO keyed VALUES (9, 'US', 1); UPDATE keyed SET n = 2; UPDATE keyed SET region = 'EU'; UPDATE keyed SET n = 3; DELETE FROM keyed");
    source.exec("INSERT INTO bare VALUES (1, 20); UPDATE bare SET n = 21; DELETE FROM bare; INSERT INTO parts VALUES (11, 1); UPDATE parts SET n = 2");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(table_ops(&events, "public.keyed"), ["insert", "update", "delete"]);
    assert_eq!(table_ops(&events, "public.bare"), ["insert"]);
    // A start finds it as it is, and changes nothing.
    assert!(!walgate.run_until_caught_up().contains("ALTER PUBLICATION"));
    let existing = Walgate::new(&source, &hub).source("publication = \"given\"").section(&rules[0]);
    source.exec("CREATE PUBLICATION given FOR TABLE keyed");
    Checked::of(&existing).has(
        "notes",
        "table[0].pushdown",
        "not pushed down: the publication is not managed",
        "",
    );
}

#[test]
fn crossing_a_pushed_filter_is_right_on_a_replica_and_on_the_hub() {
    for (identity, filter) in
        [("DEFAULT", "region = 'EU'"), ("FULL", "region = 'EU' AND n >= 10 AND data IS NOT NULL")]
    {
        let (source, replica, hub) = (Source::new("pushrep"), Source::new("pushrep_r"), Hub::file());
        source.exec(&format!(
            "CREATE TABLE t (id int, region text, n int, note text, data text, PRIMARY KEY (id, region));
             ALTER TABLE t ALTER note SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL, REPLICA IDENTITY {identity};
             INSERT INTO t SELECT i, (ARRAY['EU', 'US'])[1 + i % 2], i, {TOASTED}, {TOASTED} FROM generate_series(1, 40) i"
        ));
        let walgate = Walgate::new(&source, &hub)
            .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", replica.url()))
            .section(&rule("t", filter, "mode = \"both\"\npushdown = \"auto\""));
        walgate.run_until_caught_up();
        assert!(filter_of(&source, "t").is_some());
        assert!(filters(&source, "r_r")[0].1.is_some());
        let same = || {
            let selected = source.query(&format!("SELECT t::text FROM t WHERE {filter} ORDER BY id"));
            assert_eq!(replica.query("SELECT t::text FROM t ORDER BY id"), selected, "{identity}");
        };
        same();
        // They enter, leave, and change, their large values untouched; under DEFAULT only the key tells a side.
        source.exec("UPDATE t SET region = 'EU' WHERE id IN (11, 13, 15)");
        source.exec("UPDATE t SET region = 'US' WHERE id IN (12, 14, 16)");
        source.exec("UPDATE t SET n = n + 5, id = id + 100 WHERE id % 5 = 0; UPDATE t SET n = 3 WHERE id % 7 = 0; UPDATE t SET n = n + 20 WHERE id < 9");
        source.exec("UPDATE t SET data = NULL WHERE id = 18; DELETE FROM t WHERE id % 11 = 0; INSERT INTO t VALUES (500, 'EU', 50, 'x', 'y'), (501, 'US', 1, 'x', 'y')");
        source.exec("BEGIN; UPDATE t SET region = 'EU' WHERE id = 21; UPDATE t SET region = 'US' WHERE id = 21; UPDATE t SET region = 'EU', id = 621 WHERE id = 21; COMMIT");
        walgate.run_until_caught_up();
        same();
        assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0");
        // Another filter: into the publication, and copied.
        let other = Walgate::new(&source, &hub)
            .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", replica.url()))
            .section(&rule("t", "region = 'US'", "mode = \"both\"\npushdown = \"auto\""));
        other.run_until_caught_up();
        source.exec("UPDATE t SET region = 'US' WHERE id = 500; UPDATE t SET region = 'EU' WHERE id = 501");
        other.run_until_caught_up();
        let selected = source.query("SELECT t::text FROM t WHERE region = 'US' ORDER BY id");
        assert_eq!(replica.query("SELECT t::text FROM t ORDER BY id"), selected);
        assert_eq!(filter_of(&source, "t").as_deref(), Some("(region = 'US'::text)"));
    }
}

#[test]
fn events_are_those_without_it() {
    for identity in ["DEFAULT", "FULL"] {
        let of = |pushdown: &str| {
            let (source, hub) = on_file("pushsame");
            source.exec(&format!(
                "CREATE TABLE t (id int, region text, n int, note text, PRIMARY KEY (id, region));
                 ALTER TABLE t ALTER note SET STORAGE EXTERNAL, REPLICA IDENTITY {identity};
                 INSERT INTO t SELECT i, (ARRAY['EU', 'US', 'XX'])[1 + i % 3], i, {TOASTED} FROM generate_series(1, 30) i"
            ));
            let walgate = Walgate::new(&source, &hub).section(&rule(
                "t",
                "region IN ('EU', 'XX')",
                &format!("pushdown = {pushdown:?}"),
            ));
            walgate.run_until_caught_up();
            assert_eq!(filter_of(&source, "t").is_some(), pushdown == "auto");
            source.exec("UPDATE t SET region = 'US' WHERE id % 4 = 0; UPDATE t SET region = 'EU' WHERE id % 5 = 0; UPDATE t SET n = -n");
            source.exec("UPDATE t SET id = id + 100, region = 'XX' WHERE id % 7 = 0; DELETE FROM t WHERE id % 2 = 0; TRUNCATE t; INSERT INTO t VALUES (1, 'EU', 1, NULL)");
            walgate.run_until_caught_up();
            let told = |event: &Event| {
                let fields =
                    ["op", "type", "aggregate_id", "data", "before", "unchanged", "moved_from", "moved_to"];
                fields.map(|field| format!("{:.120}", event.json[field].to_string())).join(" ")
            };
            let events = hub.events();
            let (copied, streamed): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.op() == "read");
            let mut copied: Vec<String> = copied.into_iter().map(told).collect();
            copied.sort_unstable();
            (copied, streamed.into_iter().map(told).collect::<Vec<_>>())
        };
        let (with, without) = (of("auto"), of("off"));
        assert!(with.1.iter().any(|told| told.starts_with("\"insert\"")), "some enter");
        assert_eq!(with, without, "{identity}");
    }
}

#[test]
fn a_filter_leaves_the_publication_with_what_allowed_it() {
    let (source, hub) = on_file("pushgone");
    source.exec("CREATE TABLE t (id int, region text NOT NULL, n int, PRIMARY KEY (id, region)); CREATE UNIQUE INDEX only_id ON t (id)");
    source.exec("INSERT INTO t VALUES (1, 'EU', 0), (2, 'US', 0)");
    let by = |pushdown: &str| {
        Walgate::new(&source, &hub).section(&rule(
            "t",
            "region = 'EU'",
            &format!("pushdown = {pushdown:?}\nkey = [\"id\"]"),
        ))
    };
    let running = by("auto").run();
    running.wait_for_log("to=Streaming");
    assert!(filter_of(&source, "t").is_some());
    // What the filter is about leaves the identity: from here on UPDATE fails on the source, until it is noticed.
    source.exec("ALTER TABLE t REPLICA IDENTITY USING INDEX only_id");
    wait_until("the filter to leave", || filter_of(&source, "t").is_none());
    source.exec("UPDATE t SET n = 1 WHERE id = 1");
    hub.wait_for("the update", |events| table_ops(events, "public.t").contains(&"update"));
    // Somebody's own filter does not stay either.
    source.exec("ALTER TABLE t REPLICA IDENTITY DEFAULT");
    source.exec(&format!("ALTER PUBLICATION {}_hub SET TABLE t WHERE (region = 'XX')", source.name()));
    wait_until("the rule's filter", || filter_of(&source, "t").as_deref() == Some("(region = 'EU'::text)"));
    running.stop();
    by("off").run_until_caught_up();
    assert_eq!(filter_of(&source, "t"), None);
    source.exec("ALTER TABLE t ALTER region TYPE varchar; INSERT INTO t VALUES (3, 'EU', 0)");
    by("auto").run_until_caught_up();
    assert_eq!(filter_of(&source, "t").as_deref(), Some("((region)::text = 'EU'::text)"));
    let rows = Fold::of(&hub.events()).rows("public.t");
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1", "3"]);
}
