//! Filters on a replica that depend on values which are not in the WAL: large ones that an UPDATE did not touch.
//!
//! In: rules on large columns without REPLICA IDENTITY FULL, and changes of other columns. Out: the replica's rows.
//! Always: they are what `SELECT columns FROM table WHERE filter` gives on the source (CASES F2, R3).

use std::time::Duration;

use crate::replicate::{assert_same, replicating, rule};
use crate::support::{Hub, Source};

/// How long a pipeline may take to stop.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);
/// Stored out of line, inside and outside of the filters below.
const INSIDE: &str = "'in' || repeat('x', 10000)";
const OUTSIDE: &str = "'out' || repeat('x', 10000)";

/// One with its large column out of line and uncompressed.
fn table(name: &str) -> String {
    format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, n int NOT NULL, big text, photo bytea);
         ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL, ALTER photo SET STORAGE EXTERNAL;
         INSERT INTO {name} SELECT i, 0, CASE i % 2 WHEN 1 THEN {INSIDE} ELSE {OUTSIDE} END, convert_to({INSIDE}, 'UTF8')
             FROM generate_series(1, 12) i;"
    )
}

/// Changes of which most say nothing about `big`.
fn churn(name: &str) -> String {
    format!(
        "UPDATE {name} SET n = n + 1;
         UPDATE {name} SET id = id + 100 WHERE id IN (2, 3);
         UPDATE {name} SET big = {OUTSIDE} WHERE id = 1;
         UPDATE {name} SET n = 7 WHERE id = 1;
         UPDATE {name} SET big = {INSIDE} WHERE id = 4;
         UPDATE {name} SET n = 7 WHERE id = 4;
         BEGIN; UPDATE {name} SET big = {OUTSIDE} WHERE id = 5; UPDATE {name} SET n = 8 WHERE id = 5;
             UPDATE {name} SET id = 50, n = 9 WHERE id = 5; UPDATE {name} SET n = 10 WHERE id = 50;
             UPDATE {name} SET big = {INSIDE} WHERE id = 50; UPDATE {name} SET n = 11 WHERE id = 50; COMMIT;
         BEGIN; UPDATE {name} SET n = 12 WHERE id IN (6, 9); DELETE FROM {name} WHERE id IN (6, 9);
             INSERT INTO {name} VALUES (6, 0, {INSIDE}, 'p'), (9, 0, {OUTSIDE}, 'p');
             UPDATE {name} SET n = 13 WHERE id IN (6, 9); COMMIT;
         BEGIN; UPDATE {name} SET id = -7 WHERE id = 7; UPDATE {name} SET id = 7 WHERE id = 8;
             UPDATE {name} SET id = 8 WHERE id = -7; UPDATE {name} SET n = 14 WHERE id IN (7, 8); COMMIT;
         UPDATE {name} SET n = 15 WHERE id = 10; UPDATE {name} SET id = 1000 WHERE id = 10;
         UPDATE {name} SET n = 16 WHERE id IN (11, 12); DELETE FROM {name} WHERE id = 11"
    )
}

#[test]
fn case_f2_r3_a_filter_on_a_large_value_that_did_not_change() {
    let (source, replica, hub) = (Source::new("lookup"), Source::new("lookup_r"), Hub::file());
    let filters = [
        "n > 0",
        "big LIKE 'in%'",
        "length(big) = 10002",
        "n > 0 AND big LIKE 'in%'",
        "n % 2 = 0 OR big LIKE 'in%'",
        "big ~ '^in'",
        "n <> 7 AND upper(big) LIKE 'IN%'",
    ];
    let mut tables = Vec::new();
    let mut rules = String::new();
    for (number, filter) in filters.iter().enumerate() {
        for (kind, more) in [("all", ""), ("some", "exclude = [\"big\"]"), ("other", "")] {
            let name = format!("{kind}_{number}");
            source.exec(&table(&name));
            if kind == "other" {
                replica.exec(&format!(
                    "CREATE TABLE {name} (photo bytea, big varchar, n bigint, id int PRIMARY KEY)"
                ));
            }
            rules += &rule(&format!("public.{name}"), &format!("where = {filter:?}\n{more}"));
            let columns = if kind == "some" { "id, n, photo" } else { "id, n, big, photo" };
            tables.push((name, columns, filter));
        }
    }
    let walgate = replicating(&source, &replica, &hub, &rules);
    walgate.run_until_caught_up();
    let is_equal = || {
        for (name, columns, filter) in &tables {
            let found = format!("SELECT {columns} FROM {name}");
            assert_same(&source, &format!("{found} WHERE {filter}"), &replica, &found);
        }
    };
    is_equal();
    // One by one, and with the source far ahead of the first of them.
    for (name, ..) in &tables {
        source.exec(&format!("UPDATE {name} SET n = n + 1 WHERE id <= 6"));
    }
    walgate.run_until_caught_up();
    is_equal();
    for (name, ..) in &tables {
        source.exec(&churn(name));
    }
    walgate.run_until_caught_up();
    is_equal();
    assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0");
}

#[test]
fn a_row_with_values_of_different_times_does_not_stop_the_pipeline() {
    let (source, replica, hub) = (Source::new("mixed"), Source::new("mixed_r"), Hub::file());
    source.exec(&table("t"));
    let filter = "100000 / (length(big) - n) < 10";
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", &format!("where = {filter:?}\n")));
    walgate.run_until_caught_up();
    // What the first one finds on the source is 5 characters long: never at a time was it so while n was 5.
    source.exec(
        "UPDATE t SET n = 9900 WHERE id = 1; UPDATE t SET n = 5 WHERE id = 1;
         UPDATE t SET n = 10, big = '12345' WHERE id = 1",
    );
    walgate.run_until_caught_up();
    let found = "SELECT id, n, big, photo FROM t";
    assert_same(&source, &format!("{found} WHERE {filter}"), &replica, found);
    // A row for which it does fail stops it, with its name.
    source.exec("INSERT INTO t VALUES (70, 0, repeat('x', 10000), ''); UPDATE t SET n = 9999 WHERE id = 70");
    walgate.run_until_caught_up();
    source.exec("UPDATE t SET n = 10000 WHERE id = 70");
    let mut running = walgate.run();
    assert_eq!(running.wait(REFUSAL_LIMIT).code(), Some(1));
    let log = running.stderr();
    for word in ["public.t", "(70)", "division by zero", "remedy"] {
        assert!(log.contains(word), "no {word:?} in {log}");
    }
}

#[test]
fn check_refuses_it_for_the_hub_only() {
    let (source, replica, hub) = (Source::new("lookcheck"), Source::new("lookcheck_r"), Hub::file());
    source.exec(&table("t"));
    let more = "where = \"big LIKE 'in%'\"";
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", more));
    let checked = walgate.command(&["check"]);
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(0), "{text}");
    assert!(text.contains("looked up") && text.contains("\"big\""), "{text}");

    let both = format!("[[table]]\nname = \"public.t\"\nmode = \"both\"\n{more}\n");
    let checked = replicating(&source, &replica, &hub, &both).command(&["check"]);
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert!(text.contains("would stop the pipeline"), "{text}");
}

#[test]
fn a_value_of_a_column_that_is_gone_on_the_source() {
    let (source, replica, hub) = (Source::new("gonecol"), Source::new("gonecol_r"), Hub::file());
    source.exec(&table("t"));
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", "where = \"n > 0\""));
    walgate.run_until_caught_up();
    // The rows enter without their values, which are nowhere any more when they are looked for.
    source.exec("UPDATE t SET n = 1 WHERE id < 5; ALTER TABLE t DROP photo; UPDATE t SET n = 2 WHERE id = 2");
    walgate.run_until_caught_up();
    assert_same(&source, "SELECT id, n, big FROM t WHERE n > 0", &replica, "SELECT id, n, big FROM t");
}
