//! A huge table is copied in ranges of its key, and the stream goes on between two of them (EXACTLY_ONCE.md, "Copying a
//! table", point 5).
//!
//! In: tables with small ranges, writers of every kind, deaths. Out: the replica's tables. Always: they are what a SELECT
//! on the source gives; rows of finished ranges are never copied again; others do not wait for the whole.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::crash::{crashes, in_parallel};
use crate::replicate::{assert_same, replicating, rule};
use crate::support::pick::TOASTED;
use crate::support::walgate::Running;
use crate::support::{Hub, Session, Source, Walgate, http, wait_for, wait_until};

/// Of which the copy of a test's table takes many.
const RANGE_ROWS: &str = "snapshot_range_rows = 1000";

fn in_ranges(source: &Source, replica: &Source, hub: &Hub, rules: &str) -> Walgate {
    replicating(source, replica, hub, rules).source(RANGE_ROWS)
}

fn ranges_of(replica: &Source) -> i64 {
    let count = "SELECT COALESCE(max((ranges::json ->> 'count')::int), 0) FROM walgate.copied_table";
    let is_there = !replica.query("SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('walgate.copied_table') AND attname = 'ranges'").is_empty();
    if is_there { replica.value(count).parse().expect("a number") } else { 0 }
}

#[track_caller]
fn assert_equal(source: &Source, replica: &Source, table: &str, filter: &str) {
    let all = format!("SELECT x::text FROM {table} x");
    assert_same(source, &format!("{all} WHERE {filter}"), replica, &all);
    assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0", "conflicts");
}

/// Everything that can happen to rows, also over the ends of ranges; `step` counts.
fn churn(session: &Session, step: usize) {
    let low = (step * 977) % 9000;
    session.exec(&format!(
        "UPDATE t SET n = n + 1 WHERE id BETWEEN {low} AND {low} + 30;
         DELETE FROM t WHERE id BETWEEN {low} + 40 AND {low} + 45;
         INSERT INTO t (id, n, note) SELECT i, {step}, 'new' FROM generate_series({low} + 42, {low} + 44) i ON CONFLICT (id) DO NOTHING"
    ));
    // From here to far behind and back, values that are not in the WAL with them.
    session.exec(&format!(
        "UPDATE t SET id = 20000 + {step} WHERE id = (SELECT min(id) FROM t WHERE id > {low});
         UPDATE t SET id = -{step} - 1 WHERE id = (SELECT max(id) FROM t WHERE id < 9000);
         BEGIN; UPDATE t SET id = 40000 WHERE id = 20000 + {step}; UPDATE t SET n = 7 WHERE id = 40000; UPDATE t SET id = 20000 + {step} WHERE id = 40000; COMMIT"
    ));
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, note text, doc text);
     ALTER TABLE t ALTER doc SET STORAGE EXTERNAL";

fn fill(source: &Source) {
    source.exec(&format!(
        "INSERT INTO t SELECT i, i % 10, repeat('x', 100), CASE WHEN i % 20 = 0 THEN {TOASTED} END FROM generate_series(1, 9000) i; ANALYZE t"
    ));
}

#[test]
fn writes_all_through_a_copy_in_ranges() {
    // The last one is evaluated by PostgreSQL.
    let cases =
        [("DEFAULT", None), ("FULL", Some("n % 7 <> 3")), ("DEFAULT", Some("n % 7 <> 3 AND note ~ '^.'"))];
    for (identity, filter) in cases {
        let (source, replica, hub) = (Source::new("rng"), Source::new("rng_r"), Hub::file());
        source.exec(&format!("{TABLE}; ALTER TABLE t REPLICA IDENTITY {identity}"));
        fill(&source);
        let filtered = filter.map_or(String::new(), |filter| format!("where = {filter:?}"));
        let walgate = in_ranges(&source, &replica, &hub, &rule("public.t", &filtered));
        let is_done = AtomicBool::new(false);
        let running = walgate.run();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (session, mut step) = (source.session(), 0);
                while !is_done.load(Ordering::Relaxed) {
                    churn(&session, step);
                    step += 1;
                }
            });
            wait_for_done(&running, &is_done);
        });
        running.stop();
        walgate.run_until_caught_up();
        assert!(ranges_of(&replica) == 0 || ranges_of(&replica) >= 5, "{} ranges", ranges_of(&replica));
        assert_equal(&source, &replica, "t", filter.unwrap_or("true"));
    }
}

/// Waits until the last range is copied, and tells the writer.
#[track_caller]
fn wait_for_done(running: &Running, is_done: &AtomicBool) {
    struct Tells<'b>(&'b AtomicBool);
    impl Drop for Tells<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let _tells = Tells(is_done);
    let is_over = || running.stderr().contains("all ranges are copied");
    wait_for("the last range", 3 * crate::support::PATIENCE, || is_over().then_some(()));
}

#[test]
fn until_caught_up_means_all_ranges() {
    let (source, replica, hub) = (Source::new("rngall"), Source::new("rngall_r"), Hub::file());
    source.exec(&format!("{TABLE}; ALTER TABLE t ADD code int UNIQUE"));
    fill(&source);
    // The index is made behind the last range: before, a value that moved may be there twice.
    source.exec("UPDATE t SET code = id");
    let walgate = in_ranges(&source, &replica, &hub, &rule("public.t", ""));
    let log = walgate.run_until_caught_up();
    assert_eq!(replica.value("SELECT count(*) FROM pg_index WHERE indrelid = 't'::regclass"), "2");
    assert!(log.contains("all ranges are copied"), "{log}");
    assert!(log.matches("snapshot taken").count() >= 9, "{log}");
    assert_equal(&source, &replica, "t", "true");
    // Behind it, it is a table like any other.
    source.exec("UPDATE t SET n = 99 WHERE id < 100; TRUNCATE t; INSERT INTO t (id) VALUES (5)");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t (id) VALUES (6)");
    walgate.run_until_caught_up();
    assert_equal(&source, &replica, "t", "true");
    assert_eq!(replica.value("SELECT count(ranges) FROM walgate.copied_table"), "0");
}

#[test]
fn a_crash_costs_one_range() {
    let (source, replica, hub) = (Source::new("rngkeep"), Source::new("rngkeep_r"), Hub::file());
    source.exec(TABLE);
    fill(&source);
    let walgate = || in_ranges(&source, &replica, &hub, &rule("public.t", ""));
    // In the middle of the fourth range.
    assert!(crashes(&walgate().failpoint("snapshot.in-table:3500")));
    assert_eq!(ranges_of(&replica), 3);
    let before = replica.query("SELECT id, xmin FROM t WHERE id <= 3000 ORDER BY id");
    assert_eq!(before.len(), 3000);
    // Where nothing was copied, and where something was, also by somebody who was not let finish it.
    source.exec("UPDATE t SET id = id + 30000 WHERE id BETWEEN 3500 AND 3510; DELETE FROM t WHERE id BETWEEN 3100 AND 3200");
    replica.exec(
        "INSERT INTO t (id, note) VALUES (3150, 'of an attempt that died');
         UPDATE walgate.copied_table SET ranges = jsonb_set(ranges::jsonb, '{has_begun}', 'true')",
    );
    let log = walgate().run_until_caught_up();
    assert!(log.contains("all ranges are copied"), "{log}");
    assert_eq!(replica.query("SELECT id, xmin FROM t WHERE id <= 3000 ORDER BY id"), before);
    assert_equal(&source, &replica, "t", "true");
}

#[test]
fn deaths_at_every_place_of_a_copy_in_ranges() {
    let names = [
        "snapshot.after-slot",
        "snapshot.after-begun",
        "snapshot.in-table",
        "snapshot.after-table",
        "stream.after-start",
        "stream.in-transaction",
        "stream.after-status",
        "replica.before-commit",
        "replica.after-commit",
        "replica.after-confirm",
    ];
    in_parallel(&names, |name| {
        let (source, replica) = (Source::new(&format!("z_{name}")), Source::new(&format!("zr_{name}")));
        let hub = Hub::file();
        source.exec(TABLE);
        fill(&source);
        let walgate = || in_ranges(&source, &replica, &hub, &rule("public.t", "where = \"n % 7 <> 3\""));
        let session = source.session();
        let mut fired = 0;
        for (step, pass) in [2, 1, 3, 1500].into_iter().enumerate() {
            fired += u32::from(crashes(&walgate().failpoint(&format!("{name}:{pass}"))));
            for more in 0..5 {
                churn(&session, step * 5 + more);
            }
        }
        assert!(fired > 0, "{name} is on nobody's way");
        walgate().run_until_caught_up();
        assert_equal(&source, &replica, "t", "n % 7 <> 3");
    });
}

#[test]
fn kill_9_at_random_while_ranges_are_copied_and_rows_written() {
    let (source, replica, hub) = (Source::new("rngkill"), Source::new("rngkill_r"), Hub::file());
    source.exec(TABLE);
    fill(&source);
    let walgate = in_ranges(&source, &replica, &hub, &rule("public.t", "")).source("snapshot_workers = 3");
    let session = source.session();
    for round in 0..8 {
        let mut running = walgate.run();
        let ranges = ranges_of(&replica);
        for step in 0..6 {
            churn(&session, round * 6 + step);
        }
        if round % 2 == 0 {
            wait_until("another range, or the end", || {
                ranges_of(&replica) != ranges || running.stderr().contains("to=Streaming")
            });
        }
        running.kill9();
    }
    walgate.run_until_caught_up();
    assert_equal(&source, &replica, "t", "true");
}

#[test]
fn a_truncate_takes_the_ranges_that_are_copied_and_leaves_the_others() {
    let (source, replica, hub) = (Source::new("rngtrunc"), Source::new("rngtrunc_r"), Hub::file());
    source.exec(&format!("{TABLE}; CREATE TABLE u (id int PRIMARY KEY)"));
    fill(&source);
    let walgate = || in_ranges(&source, &replica, &hub, &rule("public.*", ""));
    assert!(crashes(&walgate().failpoint("snapshot.in-table:3500")));
    // The next range is copied after it, and the stream comes to it then: of three ranges it takes the rows, of the
    // fourth it must not.
    source.exec("INSERT INTO u VALUES (1); TRUNCATE t, u; INSERT INTO u VALUES (2)");
    source.exec("INSERT INTO t (id, n) SELECT i, 1 FROM generate_series(1, 9000, 3) i");
    walgate().run_until_caught_up();
    assert_equal(&source, &replica, "t", "true");
    assert_equal(&source, &replica, "u", "true");
}

#[test]
fn others_do_not_wait_for_the_copy_of_a_huge_table() {
    let (source, replica, hub) = (Source::new("rngsync"), Source::new("rngsync_r"), Hub::file());
    source.exec(&format!("{TABLE}; CREATE TABLE u (id int PRIMARY KEY)"));
    fill(&source);
    let mut walgate =
        in_ranges(&source, &replica, &hub, &rule("public.*", "")).source("snapshot_workers = 1");
    let port = walgate.admin_port();
    walgate.run_until_caught_up();
    replica.exec("UPDATE t SET note = 'not of the source' WHERE id % 100 = 0");
    let running = walgate.run();
    running.wait_for_log("to=Streaming");
    let resync = walgate.command(&["resync", "public.t"]);
    assert!(resync.status.success(), "{}", String::from_utf8_lossy(&resync.stderr));
    let mut seen = 0;
    running.wait_for_log("snapshot taken");
    for id in 1.. {
        source.exec(&format!("INSERT INTO u VALUES ({id}); UPDATE t SET n = n + 1 WHERE id = {id}"));
        wait_until("the row of the other table", || {
            !replica.query(&format!("SELECT 1 FROM u WHERE id = {id}")).is_empty()
        });
        let (_, status) = http::request(port, "/status").expect("it listens");
        seen += usize::from(status.contains("\"ranges\":") && !status.contains("\"ranges\":0"));
        if running.stderr().contains("all ranges are copied") {
            break;
        }
    }
    assert!(seen > 0, "status says nothing of the ranges");
    running.stop();
    walgate.run_until_caught_up();
    assert_equal(&source, &replica, "t", "true");
    let rows: i64 = source.value("SELECT count(*) FROM u").parse().expect("a number");
    assert!(rows >= 3, "only {rows} rows came while the table was copied");
}

#[test]
fn keys_of_every_certain_type_and_partitions() {
    let (source, replica, hub) = (Source::new("rngkeys"), Source::new("rngkeys_r"), Hub::file());
    let tables = [
        ("k_uuid", "uuid", "md5(i::text)::uuid"),
        ("k_text", "text COLLATE \"C\"", "CASE WHEN i % 3 = 0 THEN 'Ä''\\ ' ELSE 'z' END || md5(i::text)"),
        (
            "k_date",
            "date",
            "CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE date '0001-01-01' + i - 2000 END",
        ),
        (
            "k_ts",
            "timestamp",
            "CASE i WHEN 1 THEN 'infinity' ELSE timestamp '0001-01-01' + (i - 2000) * interval '1.5 s' END",
        ),
        ("k_tstz", "timestamptz", "timestamptz '2026-01-01' + i * interval '0.000007 s'"),
        ("k_big", "bigint", "i::bigint * 4000000000 - 9000000000000"),
    ];
    for (name, key, value) in tables {
        source.exec(&format!(
            "CREATE TABLE {name} (pad text DEFAULT repeat('x', 60), k {key}, n int, PRIMARY KEY (k, n));
             INSERT INTO {name} (k, n) SELECT {value}, i % 5 FROM generate_series(1, 5000) i; ANALYZE {name}"
        ));
    }
    source.exec(
        "CREATE TABLE parted (id int, n int, PRIMARY KEY (id, n)) PARTITION BY HASH (n);
         CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         INSERT INTO parted SELECT i, i FROM generate_series(1, 5000) i; ANALYZE parted",
    );
    let names: Vec<&str> = tables.iter().map(|(name, ..)| *name).chain(["parted"]).collect();
    let walgate = in_ranges(&source, &replica, &hub, &rule("public.*", ""));
    let churn = |round: usize| {
        for name in &names {
            let key = if *name == "parted" { "id" } else { "k" };
            source.exec(&format!(
                "UPDATE {name} SET n = n + 10000 WHERE n % 7 = {round} AND n < 5000;
                 DELETE FROM {name} WHERE n % 11 = {round} AND {key} > (SELECT {key} FROM {name} ORDER BY 1 OFFSET 2500 LIMIT 1);
                 UPDATE {name} SET {key} = (SELECT {key} FROM {name} ORDER BY 1 DESC LIMIT 1), n = n + 20000 + {round} * 100
                 WHERE {key} IN (SELECT {key} FROM {name} ORDER BY 1 OFFSET {round} * 10 LIMIT 1)"
            ));
        }
    };
    for round in 0..3 {
        let mut running = walgate.run();
        running.wait_for_log("to=Streaming");
        churn(round);
        running.kill9();
    }
    let log = walgate.run_until_caught_up();
    assert!(!log.contains("copied as a whole"), "{log}");
    for name in &names {
        assert_equal(&source, &replica, name, "true");
    }
}

#[test]
fn what_cannot_be_cut_is_copied_as_a_whole() {
    let (source, replica, hub) = (Source::new("rngnot"), Source::new("rngnot_r"), Hub::file());
    source.exec(
        "CREATE TABLE a (id numeric PRIMARY KEY, pad text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 5000) i;
         CREATE TABLE b (id text COLLATE \"en-x-icu\" PRIMARY KEY, pad text); INSERT INTO b SELECT i, 'x' FROM generate_series(1, 5000) i;
         CREATE TABLE c (id int PRIMARY KEY, code int); INSERT INTO c SELECT i, i FROM generate_series(1, 5000) i; ANALYZE",
    );
    replica.exec("CREATE TABLE c (id int PRIMARY KEY, code int UNIQUE)");
    let walgate = in_ranges(&source, &replica, &hub, &rule("public.*", ""));
    let log = walgate.run_until_caught_up();
    assert_eq!(log.matches("copied as a whole").count(), 3, "{log}");
    assert!(log.contains("c_code_key"), "{log}");
    for table in ["a", "b", "c"] {
        assert_equal(&source, &replica, table, "true");
    }
}

#[test]
fn a_row_that_came_over_the_frontier_and_is_gone_is_no_conflict() {
    let (source, replica, hub) = (Source::new("rnggone"), Source::new("rnggone_r"), Hub::file());
    source.exec(TABLE);
    fill(&source);
    let walgate = || in_ranges(&source, &replica, &hub, &rule("public.t", ""));
    assert!(crashes(&walgate().failpoint("snapshot.in-table:8500")));
    assert_eq!(ranges_of(&replica), 8);
    // Their large values are not in the WAL, and when the stream comes to them, they are not on the source.
    source.exec("UPDATE t SET id = -1 WHERE id = 8600; DELETE FROM t WHERE id = -1");
    source.exec("UPDATE t SET id = -2 WHERE id = 8620; UPDATE t SET id = -3 WHERE id = 8640");
    assert!(crashes(&walgate().failpoint("snapshot.after-all")));
    assert_eq!(replica.value("SELECT done FROM walgate.copied_table"), "t");
    source.exec(
        "DELETE FROM t WHERE id = -2; UPDATE t SET n = 5 WHERE id = -3; UPDATE t SET id = -4 WHERE id = -3",
    );
    walgate().run_until_caught_up();
    assert_equal(&source, &replica, "t", "true");
}
