//! Tables that a replica cannot follow: parked with their reason while the others go on, and back by a copy.
//!
//! In: a source and a replica that refuses rows of one table. Out: that table's state, and the other tables' rows. Always:
//! nothing is left different unnoticed: what is not parked is equal, what is parked is said to be.

use serde_json::{Value, json};

use crate::replicate::{assert_same, rule};
use crate::support::http::metric;
use crate::support::{Hub, Source, Walgate, wait_until};

/// A source, its replica named `r` with these lines, rules for both tables.
struct Park {
    source: Source,
    replica: Source,
    walgate: Walgate,
}

impl Park {
    fn new(test: &str, lines: &str, rules: &str) -> Park {
        let (source, replica) = (Source::new(test), Source::new(&format!("{test}_r")));
        let walgate = Walgate::new(&source, &Hub::file())
            .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n{lines}\n", replica.url()))
            .section(rules);
        Park { source, replica, walgate }
    }

    /// Tables `a` and `b`; the replica's `a` takes no negative `n`.
    fn with_a_check(test: &str) -> Park {
        let park = Park::new(test, "on_table_error = \"park\"", &rule("public.*", ""));
        let tables = "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int)";
        park.source.exec(tables);
        park.replica.exec(tables);
        park.replica.exec("ALTER TABLE a ADD CONSTRAINT positive CHECK (n >= 0)");
        park.source.exec("INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)");
        park
    }

    #[track_caller]
    fn same(&self, table: &str) {
        let all = format!("SELECT x::text FROM {table} x");
        assert_same(&self.source, &all, &self.replica, &all);
    }

    /// Waits until a table is what it is on the source.
    #[track_caller]
    fn wait_same(&self, table: &str) {
        let all = format!("SELECT x::text FROM {table} x ORDER BY 1");
        wait_until(&format!("{table} to be the same"), || {
            self.source.query(&all) == self.replica.query(&all)
        });
    }

    /// What `status --json` says is parked.
    #[track_caller]
    fn parked(&self) -> Vec<Value> {
        let output = self.walgate.command(&["status", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["pipelines"][0]["parked_tables"].as_array().expect("a list").clone()
    }

    #[track_caller]
    fn verify(&self, more: &[&str]) -> (Option<i32>, Value) {
        let output = self.walgate.command(&[&["verify", "--json"], more].concat());
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), report)
    }
}

/// CASES S5, in the stream: one table is refused a row; the others get every transaction whole, everybody says so, a
/// crash changes nothing, and once the constraint is gone the table comes back by itself.
#[test]
fn case_s5_a_refused_row_parks_its_table_alone_until_it_is_mended() {
    let mut park = Park::with_a_check("parkrow");
    let port = park.walgate.admin_port();
    let mut running = park.walgate.run();
    running.wait_for_log("to=Streaming");
    park.source.exec("BEGIN; INSERT INTO b VALUES (2, 2); INSERT INTO a VALUES (2, -2); UPDATE b SET n = 3 WHERE id = 1; COMMIT");
    running.wait_for_log("parked: it gets no changes");
    park.source.exec("INSERT INTO a VALUES (3, 3); DELETE FROM b WHERE id = 2; INSERT INTO b VALUES (4, 4)");
    park.wait_same("b");
    assert_eq!(park.replica.value("SELECT count(*) FROM a"), "1", "a parked table gets nothing");
    assert_eq!(metric(port, "walgate_tables_parked"), Some(1.0));
    let log = running.stderr();
    for word in ["public.a", "key (id) = (2)", "positive", "drop the check"] {
        assert!(log.contains(word), "no {word:?} in {log}");
    }

    running.kill9();
    let running = park.walgate.run();
    running.wait_for_log("to=Streaming");
    park.source.exec("UPDATE b SET n = 5; INSERT INTO a VALUES (5, 5)");
    park.wait_same("b");
    let parked = park.parked();
    assert_eq!((parked.len(), &parked[0]["table"]), (1, &json!("public.a")), "{parked:?}");
    assert!(parked[0]["reason"].as_str().expect("text").contains("positive"), "{parked:?}");
    let check = park.walgate.command(&["check"]);
    let report = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(1), "{report}");
    assert!(report.contains("public.a is parked"), "{report}");
    let (code, report) = park.verify(&["--wait"]);
    assert_eq!((code, &report["equal"]), (Some(1), &json!(false)), "{report}");

    park.replica.exec("ALTER TABLE a DROP CONSTRAINT positive");
    park.wait_same("a");
    park.source.exec("INSERT INTO a VALUES (6, -6); INSERT INTO b VALUES (6, 6)");
    park.wait_same("a");
    assert_eq!(park.verify(&["--wait"]).0, Some(0));
    assert_eq!(metric(port, "walgate_tables_parked"), Some(0.0));
    assert_eq!(park.parked(), Vec::<Value>::new());
    running.stop();
}

/// CASES S5, in the copy; and what is not mended is not tried again.
#[test]
fn case_s5_a_refused_copy_parks_its_table_alone() {
    let park = Park::with_a_check("parkcopy");
    park.source
        .exec("INSERT INTO a VALUES (2, -2); INSERT INTO b SELECT i, i FROM generate_series(2, 3000) i");
    let mut running = park.walgate.start(&["run", "--until-caught-up"]);
    assert_eq!(running.wait(crate::support::PATIENCE).code(), Some(1), "not everything was delivered");
    assert!(running.stderr().contains("caught up, but without"), "{}", running.stderr());
    park.same("b");
    assert_eq!(park.replica.value("SELECT count(*) FROM a"), "0");

    let mut running = park.walgate.start(&["run", "--until-caught-up"]);
    running.wait(crate::support::PATIENCE);
    assert!(!running.stderr().contains("a copy tries"), "{}", running.stderr());

    // A change that does not mend it: tried once, parked again, with the reason of now.
    park.replica
        .exec("ALTER TABLE a ADD CONSTRAINT few CHECK (n <> 1); ALTER TABLE a DROP CONSTRAINT positive");
    let mut running = park.walgate.start(&["run", "--until-caught-up"]);
    assert_eq!(running.wait(crate::support::PATIENCE).code(), Some(1));
    let parked = park.parked();
    assert!(parked[0]["reason"].as_str().expect("text").contains("few"), "{parked:?}");

    park.replica.exec("ALTER TABLE a DROP CONSTRAINT few");
    park.walgate.run_until_caught_up();
    park.same("a");
    assert_eq!(park.verify(&[]).0, Some(0));
}

#[test]
fn resync_brings_a_parked_table_back() {
    let park = Park::with_a_check("parkresync");
    let running = park.walgate.run();
    running.wait_for_log("to=Streaming");
    park.source.exec("INSERT INTO a VALUES (2, -2)");
    running.wait_for_log("parked: it gets no changes");
    // The reason lies in the rows: no definition changes.
    park.source.exec("UPDATE a SET n = 2 WHERE id = 2");
    assert_eq!(park.walgate.command(&["resync", "public.a"]).status.code(), Some(0));
    park.wait_same("a");
    wait_until("nothing to be parked", || park.parked().is_empty());
    running.stop();
}

#[test]
fn rows_that_are_not_ours_stay_though_their_table_is_parked_and_tried() {
    let park = Park::with_a_check("parkfull");
    park.replica.exec("INSERT INTO a VALUES (77, 77)");
    for _ in 0..2 {
        let mut running = park.walgate.start(&["run", "--until-caught-up"]);
        assert_eq!(running.wait(crate::support::PATIENCE).code(), Some(1), "{}", running.stderr());
        park.same("b");
        assert_eq!(park.replica.value("SELECT id FROM a"), "77");
        assert!(
            park.parked()[0]["reason"].as_str().expect("text").contains("not empty"),
            "{:?}",
            park.parked()
        );
        // It is tried, and refused again.
        park.replica.exec("ALTER TABLE a ALTER n SET NOT NULL");
    }
    park.replica.exec("TRUNCATE a");
    park.walgate.run_until_caught_up();
    park.same("a");
}

/// Whatever is wrong with them, and wherever it is found: the rule, the preparation, the copy, a commit.
#[test]
fn several_tables_are_parked_at_once() {
    let rules = rule("public.*", "") + &rule("public.ruled", "where = \"nope > 1\"");
    let park = Park::new("parkmany", "on_table_error = \"park\"", &rules);
    let tables = "CREATE TABLE b (id int PRIMARY KEY, n int); CREATE TABLE copied (id int PRIMARY KEY);
         CREATE TABLE full1 (id int PRIMARY KEY); CREATE TABLE full2 (id int PRIMARY KEY);
         CREATE TABLE ruled (id int PRIMARY KEY); CREATE TABLE deferred (id int PRIMARY KEY, n int)";
    park.source.exec(tables);
    park.replica.exec(tables);
    park.source.exec(
        "INSERT INTO b VALUES (1, 1); INSERT INTO copied VALUES (1); INSERT INTO deferred VALUES (1, 1)",
    );
    park.replica.exec(
        "INSERT INTO full1 VALUES (1); INSERT INTO full2 VALUES (2); ALTER TABLE copied ADD CHECK (id > 1);
         ALTER TABLE deferred ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED",
    );
    // Under session_replication_role = replica a deferred constraint is not looked at, unless it is told to be.
    let trigger = park.replica.value("SELECT tgname FROM pg_trigger WHERE tgrelid = 'deferred'::regclass");
    park.replica.exec(&format!("ALTER TABLE deferred ENABLE ALWAYS TRIGGER \"{trigger}\""));
    let running = park.walgate.run();
    running.wait_for_log("to=Streaming");
    park.source.exec("BEGIN; INSERT INTO deferred VALUES (2, 1); INSERT INTO b VALUES (2, 2); COMMIT");
    park.wait_same("b");
    let mut names: Vec<String> =
        park.parked().iter().map(|one| one["table"].as_str().expect("text").to_owned()).collect();
    names.sort();
    assert_eq!(names, ["public.copied", "public.deferred", "public.full1", "public.full2", "public.ruled"]);
    running.stop();
}

#[test]
fn what_is_left_of_a_dropped_table_is_left_out_where_it_is_refused() {
    let park = Park::with_a_check("parkgone");
    park.walgate.run_until_caught_up();
    park.source.exec("INSERT INTO a VALUES (2, -2)");
    park.source.exec("DROP TABLE a; INSERT INTO b VALUES (2, 2)");
    let log = park.walgate.run_until_caught_up();
    assert_eq!(log.matches("is left out").count(), 1, "{log}");
    park.same("b");
    assert_eq!(park.replica.value("SELECT count(*) FROM a"), "1");
    // One that was parked before it was dropped holds up nothing either.
    park.source.exec("CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (0)");
    park.replica.exec("CREATE TABLE c (id int PRIMARY KEY CHECK (id > 0))");
    let mut running = park.walgate.start(&["run", "--until-caught-up"]);
    assert_eq!(running.wait(crate::support::PATIENCE).code(), Some(1));
    park.source.exec("INSERT INTO c VALUES (3); DROP TABLE c");
    park.walgate.run_until_caught_up();
    assert_eq!(park.parked(), Vec::<Value>::new());
}

/// A replica's table that somebody drops is made again, and not left empty.
#[test]
fn a_table_that_is_dropped_on_the_replica_is_copied_again() {
    let park = Park::new("parkdropped", "on_schema_change = \"follow\"", &rule("public.*", ""));
    park.source.exec(TABLES);
    park.walgate.run_until_caught_up();
    park.replica.exec("DROP TABLE a");
    park.walgate.run_until_caught_up();
    park.same("a");
    let running = park.walgate.run();
    running.wait_for_log("to=Streaming");
    park.replica.exec("DROP TABLE a");
    park.source.exec("INSERT INTO a VALUES (99, 99)");
    wait_until("the table to be there", || park.replica.value("SELECT to_regclass('a') IS NOT NULL") == "t");
    park.wait_same("a");
    running.stop();
}

/// CASES F4: a filter that fails for a row parks its table, and nothing is skipped.
#[test]
fn case_f4_a_filter_that_fails_for_a_row_parks_its_table() {
    for filter in ["10 / n > 0", "10 / n > 0 AND upper('x' || n) LIKE 'X%'"] {
        let rules = rule("public.a", &format!("where = \"{filter}\"")) + &rule("public.b", "");
        let park = Park::new("parkfilter", "on_table_error = \"park\"", &rules);
        park.source.exec("CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY)");
        park.walgate.run_until_caught_up();
        park.source.exec("BEGIN; INSERT INTO a VALUES (1, 1), (2, 0); INSERT INTO b VALUES (1); COMMIT");
        let mut running = park.walgate.start(&["run", "--until-caught-up"]);
        assert_eq!(running.wait(crate::support::PATIENCE).code(), Some(1));
        park.same("b");
        assert_eq!(park.parked()[0]["table"], json!("public.a"), "{filter}");
        assert_eq!(park.replica.value("SELECT count(*) FROM a"), "0");
        park.source.exec("DELETE FROM a WHERE n = 0");
        assert_eq!(park.walgate.command(&["resync", "public.a"]).status.code(), Some(0));
        park.walgate.run_until_caught_up();
        park.same("a");
    }
}

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int);
     INSERT INTO a SELECT i, i FROM generate_series(1, 20) i; INSERT INTO b VALUES (1, 1)";

/// Without a word in the file: a definition that the replica does not have parks its table.
#[test]
fn a_column_that_the_replica_lacks_parks_its_table() {
    let park = Park::new("parkcolumn", "", &rule("public.*", ""));
    park.source.exec(TABLES);
    let running = park.walgate.run();
    running.wait_for_log("to=Streaming");
    park.source.exec("ALTER TABLE a ADD COLUMN x int DEFAULT 7");
    park.source.exec("BEGIN; INSERT INTO b VALUES (2, 2); INSERT INTO a VALUES (30, 30, 30); COMMIT");
    running.wait_for_log("parked: it gets no changes");
    assert!(running.stderr().contains("ADD COLUMN \\\"x\\\""), "the remedy: {}", running.stderr());
    park.source.exec("INSERT INTO b VALUES (3, 3)");
    park.wait_same("b");
    assert_eq!(park.parked()[0]["table"], json!("public.a"));
    park.replica.exec("ALTER TABLE a ADD COLUMN x int");
    park.wait_same("a");
    park.source.exec("UPDATE a SET x = 8 WHERE id < 5");
    park.wait_same("a");
    running.stop();
}

/// CASES T3 on a replica that follows: each change with the columns that it had, the rows of before with their default.
#[test]
fn case_t3_columns_that_come_are_followed() {
    let lines = "on_schema_change = \"follow\"";
    let park =
        Park::new("follow", lines, &(rule("public.a", "exclude = [\"secret\"]") + &rule("public.b", "")));
    park.source.exec(TABLES);
    park.source.exec("ALTER TABLE a ADD COLUMN secret text");
    park.walgate.run_until_caught_up();
    park.source.exec("CREATE TYPE mood AS ENUM ('sad', 'ok')");
    park.source.exec(
        "BEGIN; INSERT INTO a (id) VALUES (40); ALTER TABLE a ADD COLUMN note text; INSERT INTO a VALUES (41, 1, 's', 'note');
         ALTER TABLE a ADD COLUMN mood mood NOT NULL DEFAULT 'ok', ADD COLUMN more varchar(5) COLLATE \"C\"; UPDATE a SET mood = 'sad' WHERE id = 3; COMMIT",
    );
    park.source.exec("INSERT INTO b VALUES (2, 2)");
    let log = park.walgate.run_until_caught_up();
    assert!(!log.contains("parked"), "{log}");
    let without = "SELECT id, n, note, mood, more FROM a";
    assert_same(&park.source, without, &park.replica, without);
    assert_eq!(park.replica.value("SELECT count(*) FROM a WHERE mood = 'ok'"), "21");
    park.same("b");

    // One that comes without a default needs no copy; one under another name does.
    park.source.exec("ALTER TABLE b ADD COLUMN plain int; INSERT INTO b VALUES (3, 3, 3)");
    let log = park.walgate.run_until_caught_up();
    assert!(log.contains("follows the source") && !log.contains("copied"), "{log}");
    park.same("b");
    park.source.exec("ALTER TABLE b RENAME COLUMN n TO m; INSERT INTO b VALUES (4, 4, 4)");
    park.walgate.run_until_caught_up();
    assert_same(&park.source, "SELECT id, m, plain FROM b", &park.replica, "SELECT id, m, plain FROM b");
    // Not to be followed: what the replica has instead is no table.
    park.source.exec("INSERT INTO a VALUES (50, 5, 's', 'x', 'ok', 'y')");
    park.replica.exec("ALTER TABLE a RENAME TO a_before; CREATE VIEW a AS SELECT * FROM a_before");
    let mut running = park.walgate.start(&["run", "--until-caught-up"]);
    assert_eq!(running.wait(crate::support::PATIENCE).code(), Some(1));
    assert!(
        park.parked()[0]["reason"].as_str().expect("text").contains("not a table"),
        "{:?}",
        park.parked()
    );
}

/// Changes that never reach the WAL: the table is copied again; and what is in the WAL costs no copy.
#[test]
fn what_is_not_in_the_wal_is_copied_again() {
    let park = Park::new("parkwal", "", "[[table]]\nname = \"public.*\"\nmode = \"both\"");
    park.source.exec(
        "CREATE TABLE typed (id int PRIMARY KEY, n int); INSERT INTO typed VALUES (1, 1), (2, 2);
         CREATE TABLE filled (id int PRIMARY KEY); INSERT INTO filled VALUES (1), (2);
         CREATE TABLE random (id int PRIMARY KEY); INSERT INTO random VALUES (1), (2);
         CREATE TABLE plain (id int PRIMARY KEY, n int); INSERT INTO plain VALUES (1, 1);
         CREATE TABLE root (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
         CREATE TABLE leaf1 PARTITION OF root FOR VALUES FROM (0) TO (10);
         CREATE TABLE leaf2 PARTITION OF root FOR VALUES FROM (10) TO (20);
         INSERT INTO root SELECT i, i FROM generate_series(1, 19) i",
    );
    let running = park.walgate.run();
    wait_until("both to stream", || running.stderr().matches("to=Streaming").count() == 2);
    park.replica.exec("ALTER TABLE filled ADD COLUMN x int; ALTER TABLE random ADD COLUMN x float8");
    // In the WAL, or without rows of before.
    for change in [
        "TRUNCATE plain",
        "INSERT INTO plain VALUES (2)",
        "CREATE TABLE leaf3 PARTITION OF root FOR VALUES FROM (20) TO (30)",
        "INSERT INTO root VALUES (25, 25)",
    ] {
        park.source.exec(change);
    }
    // Not in the WAL.
    park.source.exec("ALTER TABLE typed ALTER n TYPE int USING n * 100");
    park.source.exec("ALTER TABLE filled ADD COLUMN x int DEFAULT 7; ALTER TABLE random ADD COLUMN x float8 DEFAULT random()");
    for table in ["typed", "filled", "random", "plain", "root"] {
        park.wait_same(table);
    }
    let log = running.stderr();
    let again = |log: &str, table: &str| {
        let of_table =
            |line: &&str| line.contains("copied again") && line.contains(&format!("public.{table}\""));
        log.lines().filter(of_table).count()
    };
    let counts = ["typed", "filled", "random", "plain", "root"].map(|table| again(&log, table));
    assert_eq!(counts, [1, 1, 1, 0, 0], "{log}");
    assert_eq!(log.matches("consumers have not heard of it").count(), 3, "{log}");

    for (n, change) in [
        "TRUNCATE leaf1",
        "ALTER TABLE root DETACH PARTITION leaf2",
        "ALTER TABLE root ATTACH PARTITION leaf2 FOR VALUES FROM (10) TO (20)",
        "DROP TABLE leaf3",
    ]
    .into_iter()
    .enumerate()
    {
        park.source.exec(change);
        park.wait_same("root");
        assert_eq!(again(&running.stderr(), "root"), n + 1, "{change}");
    }
    running.stop();
}

/// TRUNCATE of a table without partitions, and a column without a default, cost no copy.
#[test]
fn what_is_in_the_wal_is_not_copied_again() {
    let park = Park::new("parknot", "on_schema_change = \"follow\"", &rule("public.*", ""));
    park.source.exec(TABLES);
    park.walgate.run_until_caught_up();
    for change in [
        "TRUNCATE a; INSERT INTO a VALUES (1, 1)",
        "ALTER TABLE a ADD COLUMN x int; UPDATE a SET x = 1",
        "TRUNCATE a; INSERT INTO a VALUES (2, 2, 2)",
        "ALTER TABLE a ALTER x SET NOT NULL, ALTER x SET DEFAULT 9; INSERT INTO a VALUES (3, 3)",
        "ALTER TABLE a DROP COLUMN n; INSERT INTO a VALUES (4, 4)",
    ] {
        park.source.exec(change);
        let log = park.walgate.run_until_caught_up();
        assert!(!log.contains("copied"), "{change}: {log}");
    }
    park.source.exec("VACUUM FULL a");
    let log = park.walgate.run_until_caught_up();
    assert!(!log.contains("copied"), "{log}");
    assert_same(&park.source, "SELECT id, x FROM a", &park.replica, "SELECT id, x FROM a");
}
