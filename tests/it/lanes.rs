//! The copy to a replica by several connections (`sink/replica/lane.rs`): deaths and successors in the middle of it.
//!
//! In: a table of several parts, of which one cannot end because the test holds a lock on the replica. Out: what is visible
//! there, what is said of it. Always: nothing that a lane wrote outlives its attempt unless the copy was done.

use serde_json::Value;

use crate::replicate::{assert_same, replicating, rule};
use crate::support::{Hub, Session, Source, Walgate, http, wait_until};

/// A table of four parts, and its replica.
struct Copy {
    source: Source,
    replica: Source,
    walgate: Walgate,
    port: u16,
}

const ROWS: i64 = 300_000;

impl Copy {
    fn new(test: &str) -> Copy {
        let (source, replica) = (Source::new(test), Source::new(&format!("{test}_r")));
        let table = "CREATE TABLE t (id int PRIMARY KEY, n int, note text)";
        source.exec(table);
        source.exec(&format!(
            "INSERT INTO t SELECT i, i % 10, repeat('x', 150) FROM generate_series(1, {ROWS}) i; ANALYZE t"
        ));
        assert_eq!(source.value("SELECT pg_relation_size('t') / 8192 / 2048"), "3", "parts that are full");
        replica.exec(table);
        let mut walgate = replicating(&source, &replica, &Hub::file(), &rule("public.t", ""))
            .source("snapshot_workers = 3\nsnapshot_range_rows = 0");
        let port = walgate.admin_port();
        Copy { source, replica, walgate, port }
    }

    /// Lanes that wait for a lock.
    fn waiting(&self) -> usize {
        let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%' AND wait_event_type = 'Lock'";
        self.replica.query(waiting).len()
    }

    fn copied(&self) -> i64 {
        self.replica.value("SELECT count(*) FROM t").parse().expect("a number")
    }

    /// The rows of which `/status` says that they are copied.
    fn told(&self) -> Option<i64> {
        let (_, body) = http::request(self.port, "/status")?;
        let status: Value = serde_json::from_str(&body).expect("JSON");
        status[0]["snapshot"]["rows"].as_i64()
    }

    /// Lets all parts but the last be copied: its last row waits for the session that is given back. That has no open
    /// transaction: the source, on the same server, would wait for it.
    fn hold_the_last_part(&self) -> Session {
        self.replica.exec(&format!(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$;
             CREATE TRIGGER waits BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.id = {ROWS}) EXECUTE FUNCTION wait();
             ALTER TABLE t ENABLE ALWAYS TRIGGER waits"
        ));
        let session = self.replica.session();
        session.query("SELECT pg_advisory_lock(7)");
        session
    }

    #[track_caller]
    fn assert_equal(&self) {
        let all = "SELECT x::text FROM t x";
        assert_same(&self.source, all, &self.replica, all);
        assert_eq!(self.replica.value("SELECT count(*) FROM walgate.conflict"), "0");
    }
}

#[test]
fn kill_9_in_the_middle_of_a_parallel_copy() {
    let copy = Copy::new("lanekill");
    let held = copy.hold_the_last_part();
    let mut running = copy.walgate.run();
    // The parts that are committed are visible, and counted, and nothing else is.
    wait_until("all parts but one", || copy.waiting() == 1 && copy.copied() > ROWS / 2);
    wait_until("status to tell it", || copy.told() == Some(copy.copied()));
    assert!(copy.copied() < ROWS, "{} rows", copy.copied());
    assert_eq!(copy.replica.value("SELECT done FROM walgate.copied_table"), "f");
    running.kill9();
    held.query("SELECT pg_advisory_unlock(7)");
    copy.source.exec("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET id = -id WHERE id % 5 = 0");
    copy.walgate.run_until_caught_up();
    copy.assert_equal();
}

/// Another process takes the epoch while the lanes are on their way: what they wrote never becomes visible, although nobody
/// ends their sessions, and the process says what has happened.
#[test]
fn lanes_whose_epoch_was_taken_commit_nothing() {
    let copy = Copy::new("lanefence");
    // Whoever commits rows leaves the epoch that he found.
    copy.replica.exec(
        "CREATE TABLE found (epoch bigint);
         CREATE FUNCTION found() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.found SELECT epoch FROM walgate.checkpoint; RETURN NULL; END $$;
         CREATE TRIGGER found AFTER INSERT ON t EXECUTE FUNCTION found(); ALTER TABLE t ENABLE ALWAYS TRIGGER found",
    );
    let holder = copy.replica.session();
    holder.exec("BEGIN; LOCK TABLE t IN SHARE MODE");
    let running = copy.walgate.run();
    wait_until("the lanes to wait", || copy.waiting() == 3);
    let formats = "SELECT DISTINCT query ~ 'binary' FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%'";
    assert_eq!(copy.replica.value(formats), "t", "int and text are the same everywhere");
    copy.replica.exec("UPDATE walgate.checkpoint SET epoch = epoch + 1");
    let taken = copy.replica.value("SELECT epoch FROM walgate.checkpoint");
    holder.exec("COMMIT");
    running.wait_for_log("another process has taken over the pipeline");
    // It takes over in its turn, and copies the table anew.
    running.wait_for_log("to=Streaming");
    running.stop();
    assert_ne!(copy.replica.value("SELECT count(*) FROM found"), "0");
    assert_eq!(copy.replica.value(&format!("SELECT count(*) FROM found WHERE epoch = {taken}")), "0");
    copy.assert_equal();
}

/// The rows of a copy carry an origin, too, where the role may set one: one for each lane.
#[test]
fn copied_rows_carry_the_origin_of_their_lane() {
    let copy = Copy::new("laneorigin");
    copy.replica.exec(&format!(
        "SELECT pg_create_logical_replication_slot('{}', 'test_decoding')",
        copy.replica.name()
    ));
    copy.walgate.run_until_caught_up();
    let rows = |only_local: bool| {
        copy.replica.value(&format!(
            "SELECT count(*) FROM pg_logical_slot_peek_changes('{}', NULL, NULL, 'only-local', '{only_local}') WHERE data LIKE 'table public.t: INSERT%'",
            copy.replica.name()
        ))
    };
    assert_eq!((rows(false), rows(true)), (ROWS.to_string(), "0".to_owned()));
    let oid = copy.replica.value("SELECT oid FROM pg_database WHERE datname = current_database()");
    let origins =
        format!("SELECT count(*) FROM pg_replication_origin WHERE roname ~ '_{oid}(/copy[0-9]+)?$'");
    assert_eq!(copy.replica.value(&origins), "4");
    copy.replica.exec(&format!("SELECT pg_drop_replication_slot('{}')", copy.replica.name()));
    let dropped = copy.walgate.command(&["drop", "--yes"]);
    assert!(dropped.status.success(), "{}", String::from_utf8_lossy(&dropped.stderr));
    assert_eq!(copy.replica.value(&origins), "0", "they go with the pipeline");
}

/// Rows go in COPY's binary format where every type is the same on both sides, else as text: the same rows in both.
#[test]
fn every_type_arrives_as_it_is_in_either_format() {
    let (source, replica) = (Source::new("lanetypes"), Source::new("lanetypes_r"));
    let columns = "id int PRIMARY KEY, bo bool, by bytea, i2 int2, i8 int8, f4 float4, f8 float8, nu numeric, nd numeric(9,2), \
         te text, vc varchar(5), bp char(5), da date, ti time(2), ts timestamp(3), tz timestamptz, uu uuid, js json, jb jsonb";
    let rows = [
        "1, true, '\\x000a5c09ff', -32768, 9223372036854775807, '-0', '-0', 'NaN', 'NaN', E'a\\tb\\\\c\\n\\\\N\\r', 'äöüßé', 'a', \
         'infinity', '24:00', '-infinity', 'infinity', md5('a')::uuid, ' {\"b\": 1, \"a\" :1, \"a\":2}', '{\"b\": 1e400, \"a\": \"ä\"}'",
        "2, false, '', 32767, -9223372036854775808, 'NaN', '-Infinity', 'Infinity', -9999999.99, '', '', '', \
         '4713-01-01 BC', '00:00:00.019', '294276-12-31 23:59:59.9994', '4713-01-01 BC', md5('b')::uuid, '[]', 'null'",
        "3",
        "4, NULL, repeat('x', 300000)::bytea, 0, 0, 1e-45, 5e-324, 1e-300, 0.005, repeat('ä', 100000), E'\\x01\\x7f'",
    ];
    for table in ["same", "wider"] {
        source.exec(&format!("CREATE TABLE {table} ({columns})"));
        rows.iter().for_each(|row| source.exec(&format!("INSERT INTO {table} VALUES ({row})")));
    }
    replica.exec(&format!(
        "CREATE TABLE same ({columns}); CREATE TABLE wider ({})",
        columns.replace("i2 int2", "i2 int4")
    ));
    let walgate = replicating(&source, &replica, &Hub::file(), &rule("public.*", ""));
    walgate.run_until_caught_up();
    for table in ["same", "wider"] {
        let all = format!("SELECT x::text FROM {table} x");
        assert_eq!(source.value(&format!("SELECT count(*) FROM {table}")), "4");
        assert_same(&source, &all, &replica, &all);
    }
    // What is cut would be another value.
    replica.exec("CREATE TABLE shorter (id int PRIMARY KEY, v varchar(3))");
    source.exec(
        "CREATE TABLE shorter (id int PRIMARY KEY, v varchar(5)); INSERT INTO shorter VALUES (1, 'abcd')",
    );
    let mut running = walgate.start(&["run", "--until-caught-up"]);
    assert_eq!(running.wait(crate::support::PATIENCE).code(), Some(1));
    for word in ["public.shorter", "a row is refused", "value too long"] {
        assert!(running.stderr().contains(word), "no {word:?} in {}", running.stderr());
    }
}
