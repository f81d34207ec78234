//! A backlog is read by SQL, in chunks, and the stream goes on where it ended (docs/decisions/backlog-reader.md).
//!
//! In: slots that are behind, with a limit of a byte and small chunks; deaths, writers, what stands in the way. Out: events
//! and rows as by the stream alone: to the byte where both read the same, once and in order where they take turns.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::crash::{crashes, in_parallel, under_load};
use crate::replicate::{assert_same, replicating, rule};
use crate::support::pick::TOASTED;
use crate::support::{Cluster, Hub, Source, Walgate, Workload, http, wait_for, wait_until};

const BY_SQL: &str = "reading by SQL";
const BY_STREAM: &str = "reading by the stream from there on";

const SIGABRT: i32 = 6;
/// What the largest step of these tests needs, several times.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// Any backlog is one, and is read in chunks of at least so many messages.
fn by_sql(walgate: Walgate, changes: u32) -> Walgate {
    walgate.env("WALGATE_BACKLOG", &format!("1:{changes}"))
}

/// The topics' files, to the byte.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).expect("a hub's folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let topics = paths.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().expect("a file's name").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).expect("a topic's file"))
    };
    topics.map(read).collect()
}

#[test]
fn both_readers_give_the_same_events_to_the_byte() {
    let source = Source::new("bl_same");
    let (streamed, by_chunks, at_once) = (Hub::file(), Hub::file(), Hub::file());
    let walgate = |hub: &Hub, name: &str| {
        let slot = format!("{}_{name}", source.name());
        Walgate::with(&format!("url = {:?}\nslot = {slot:?}\n", source.url()), &hub.settings())
    };
    let stream = walgate(&streamed, "a").source("backlog_reader = \"off\"");
    let chunks = by_sql(walgate(&by_chunks, "b"), 40);
    let chunk = by_sql(walgate(&at_once, "c"), 1_000_000);
    let mut workload = Workload::new(&source);
    source.exec("CREATE TABLE v (id int PRIMARY KEY, doc text, n numeric); ALTER TABLE v ALTER doc SET STORAGE EXTERNAL");
    for walgate in [&stream, &chunks, &chunk] {
        walgate.run_until_caught_up();
    }

    workload.insert(300);
    workload.mix();
    source.exec(&format!("INSERT INTO v SELECT i, {TOASTED}, i / 3.0 FROM generate_series(1, 20) i; UPDATE v SET n = n + 1 WHERE id % 3 = 0"));
    source.exec("ALTER TABLE v ADD extra text DEFAULT 'x'; UPDATE v SET extra = 'y' WHERE id < 10; ALTER TABLE v REPLICA IDENTITY FULL; DELETE FROM v WHERE id > 15");
    source.exec(
        "BEGIN; INSERT INTO v VALUES (100); ALTER TABLE v DROP extra; INSERT INTO v VALUES (101); COMMIT",
    );
    source.exec("SELECT pg_logical_emit_message(true, 'walgate.outbox', '{\"aggregate_type\": \"A\", \"aggregate_id\": \"1\", \"type\": \"t\", \"payload\": {}}')");
    workload.big();
    let prepared = workload.begin().insert(10).bump(3).prepare(&format!("{}_p", source.name()));
    workload.begin().insert(5).commit();
    prepared.commit(&mut workload);
    source.exec("TRUNCATE t, u, v; INSERT INTO u VALUES (1)");

    for (walgate, is_sql) in [(&stream, false), (&chunks, true), (&chunk, true)] {
        let log = walgate.run_until_caught_up();
        assert_eq!(log.contains(BY_SQL), is_sql, "{log}");
    }
    let expected = files(&streamed.path());
    assert!(expected.values().map(|text| text.lines().count()).sum::<usize>() > 9000, "a workload");
    assert!(expected == files(&by_chunks.path()), "in many chunks");
    assert!(expected == files(&at_once.path()), "in one chunk");
}

#[test]
fn a_death_while_a_backlog_is_read_loses_and_repeats_nothing() {
    let cases: Vec<(&str, bool)> = [
        "backlog.in-chunk",
        "backlog.in-chunk:2",
        "backlog.after-chunk",
        "backlog.after-chunk:2",
        "backlog.before-stream",
    ]
    .into_iter()
    .flat_map(|failpoint| [(failpoint, false), (failpoint, true)])
    .collect();
    in_parallel(&cases, |(failpoint, is_replica)| {
        let (source, replica, hub) = (Source::new("bl_die"), Source::new("bl_die_r"), Hub::file());
        let mut workload = Workload::new(&source);
        let rules = rule("public.*", "");
        let walgate = || match is_replica {
            true => by_sql(replicating(&source, &replica, &hub, &rules), 30),
            false => by_sql(Walgate::new(&source, &hub), 30),
        };
        workload.insert(20);
        walgate().run_until_caught_up();
        let from = workload.count();
        for _ in 0..2 {
            workload.insert(50);
            workload.mix();
            workload.big();
            workload.mix();
            let mut running = walgate().failpoint(failpoint).run();
            let status = running.wait(STEP_LIMIT);
            assert_eq!(status.signal(), Some(SIGABRT), "{failpoint} was not passed");
        }
        workload.mix();
        let log = walgate().run_until_caught_up();
        assert!(log.contains(BY_SQL), "{log}");
        match is_replica {
            true => assert_tables(&source, &replica),
            false => workload.assert_exact(&hub.events(), &source, from),
        }
    });
}

#[track_caller]
fn assert_tables(source: &Source, replica: &Source) {
    for table in ["t", "u"] {
        let all = format!("SELECT x::text FROM {table} x");
        assert_same(source, &all, replica, &all);
    }
    assert_eq!(replica.value("SELECT count(*) FROM walgate.conflict"), "0", "conflicts");
}

#[test]
fn kill_9_at_random_while_backlogs_are_read_under_load() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (source, replica, hub) = (Source::new("bl_kill"), Source::new("bl_kill_r"), Hub::file());
    let workload = Workload::new(&source);
    let rules = rule("public.*", "").replace("replicate", "both");
    let walgate = by_sql(replicating(&source, &replica, &hub, &rules), 200);
    walgate.run_until_caught_up();
    let mut by_sql = 0;
    let workload = under_load(workload, || {
        for _ in 0..10 {
            let mut running = walgate.run();
            std::thread::sleep(Duration::from_millis(random.random_range(100..1200)));
            running.kill9();
            by_sql += usize::from(running.stderr().contains(BY_SQL));
        }
    });
    assert!(by_sql > 0, "no run came so far");
    walgate.run_until_caught_up();
    workload.assert_exact(&hub.events(), &source, 0);
    assert_tables(&source, &replica);
}

/// A chunk that breaks off is no end: the next attempt goes by the stream, and gets on.
#[test]
fn a_reader_whose_session_is_ended_loses_and_repeats_nothing() {
    let (source, hub) = (Source::new("bl_end"), Hub::file());
    let mut workload = Workload::new(&source);
    source.exec("CREATE TABLE f (id int PRIMARY KEY, doc text)");
    // A queue of 16 KiB: the server is in the middle of sending for as long as the hub writes.
    let mut walgate =
        by_sql(Walgate::new(&source, &hub), 100_000).section("[limits]\nmemory_bytes_max = 65536");
    let port = walgate.admin_port();
    walgate.run_until_caught_up();
    workload.big();
    source.exec("INSERT INTO f SELECT i, repeat('x', 2000) FROM generate_series(1, 20000) i");
    workload.big();
    let mut running = walgate.start(&["run", "--until-caught-up"]);
    let is_said = |reader: &str| {
        let said = http::request(port, "/status").map(|(_, body)| body).unwrap_or_default();
        said.contains(&format!("\"reader\":\"{reader}\""))
    };
    wait_until("the status of a backlog", || is_said("sql"));
    let ended = wait_for("a chunk to be ended", STEP_LIMIT, || {
        let ended = source.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY (SELECT lsn, data%' AND wait_event = 'ClientWrite'");
        (!ended.is_empty() || !running.is_running()).then_some(ended.len())
    });
    assert_eq!(ended, 1, "a chunk is larger than the queue");
    wait_until("the status of a stream", || is_said("stream") || !running.is_running());
    assert!(running.wait(STEP_LIMIT).success(), "{}", running.stderr());
    workload.assert_exact(&hub.events(), &source, 0);
    let log = running.stderr();
    assert!(log.contains("reading a backlog by SQL") && log.matches(BY_SQL).count() == 1, "{log}");
}

/// The destination is far ahead of the slot, and the stream takes over before what it has: its last transaction is still to
/// be seen again, so the slot may not have passed it.
#[test]
fn the_stream_takes_over_before_the_checkpoint() {
    let (source, hub) = (Source::new("bl_again"), Hub::file());
    let mut workload = Workload::new(&source);
    Walgate::new(&source, &hub).run_until_caught_up();
    for _ in 0..20 {
        workload.mix();
    }
    // Delivered, and the source was never told.
    assert!(crashes(&Walgate::new(&source, &hub).failpoint("stream.before-status")));
    let delivered = hub.events().len();
    assert!(delivered > 500, "{delivered} events before the crash");
    let walgate = by_sql(Walgate::new(&source, &hub), 10);
    let running = walgate.run();
    running.wait_for_log(BY_STREAM);
    workload.mix();
    let last = workload.mark();
    hub.wait_for("the last change", |events| events.iter().any(|event| event.aggregate_id() == Some(&last)));
    running.stop();
    workload.assert_exact(&hub.events(), &source, 0);
}

#[test]
fn a_transaction_that_is_open_all_through_the_backlog() {
    let (source, hub) = (Source::new("bl_open"), Hub::file());
    let mut workload = Workload::new(&source);
    let walgate = by_sql(Walgate::new(&source, &hub), 100);
    walgate.run_until_caught_up();
    let open = source.session();
    open.exec("CREATE TABLE o (id int PRIMARY KEY)");
    walgate.run_until_caught_up();
    open.exec("BEGIN; INSERT INTO o SELECT generate_series(1, 500)");
    for _ in 0..5 {
        workload.insert(200);
        workload.mix();
    }
    let log = walgate.run_until_caught_up();
    assert!(log.contains(BY_SQL), "{log}");
    workload.mix();
    open.exec("COMMIT");
    walgate.run_until_caught_up();
    let events = hub.events();
    workload.assert_exact(&events, &source, 0);
    assert_eq!(events.iter().filter(|event| event.json["source"]["table"] == "o").count(), 500);
}

#[test]
fn a_transaction_that_takes_too_much_of_the_sources_disk_is_read_by_the_stream() {
    let (source, hub) = (Source::new("bl_huge"), Hub::file());
    let mut workload = Workload::new(&source);
    let walgate = by_sql(Walgate::new(&source, &hub), 100).source("backlog_temp_bytes_max = 1024");
    walgate.run_until_caught_up();
    workload.mix();
    // What does not fit into work_mem, which is 4 MB.
    workload.begin().insert(30_000).commit();
    workload.mix();
    let log = walgate.run_until_caught_up();
    assert!(log.contains(BY_SQL) && log.contains("above source.backlog_temp_bytes_max"), "{log}");
    workload.assert_exact(&hub.events(), &source, 0);
}

/// A role that may set no limit for temporary files, as most: what is spilled and what comes is counted.
#[test]
fn a_role_that_is_no_superuser_reads_by_sql_and_knows_the_limit_too() {
    let (source, hub) = (Source::new("bl_role"), Hub::file());
    let mut workload = Workload::new(&source);
    let role = format!("{}_role", source.name());
    source.exec(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION; ALTER ROLE {role} SET logical_decoding_work_mem = '64kB';
         CREATE PUBLICATION bl_role FOR TABLE t, u"
    ));
    let url = source.url().replace("//postgres@", &format!("//{role}@"));
    let settings = format!(
        "url = {url:?}\nslot = {:?}\npublication = \"bl_role\"\nsnapshot = \"never\"\n",
        source.name()
    );
    let walgate = by_sql(Walgate::with(&settings, &hub.settings()), 100);
    walgate.run_until_caught_up();
    workload.mix();
    let log = walgate.run_until_caught_up();
    assert!(log.contains(BY_SQL), "{log}");
    workload.begin().insert(50_000).commit();
    workload.begin().insert(20_000).commit();
    let log = walgate.source("backlog_temp_bytes_max = 1024").run_until_caught_up();
    let is_said = ["above source.backlog_temp_bytes_max", "too large to be decoded at once"];
    assert!(log.contains(BY_SQL) && is_said.iter().any(|said| log.contains(said)), "{log}");
    workload.assert_exact(&hub.events(), &source, 0);
    source.drop_slots();
    source.exec(&format!("DROP ROLE {role}"));
}

#[test]
fn without_a_free_slot_the_stream_reads_and_check_says_so() {
    let cluster = Cluster::start(&[("max_replication_slots", "1")]);
    let (source, hub) = (Source::on(&cluster, "bl_slot"), Hub::file());
    let mut workload = Workload::new(&source);
    let walgate = by_sql(Walgate::new(&source, &hub).source("snapshot = \"never\""), 100);
    walgate.run_until_caught_up();
    workload.mix();
    let log = walgate.run_until_caught_up();
    assert!(log.contains("cannot be read by SQL") && log.contains("replication slots"), "{log}");
    workload.assert_exact(&hub.events(), &source, 0);
    let check = walgate.command(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && said.contains("source.backlog_reader"), "{said}");
}

#[test]
fn the_stream_takes_over_while_writes_go_on() {
    let (source, replica, hub) = (Source::new("bl_over"), Source::new("bl_over_r"), Hub::file());
    let workload = Workload::new(&source);
    let rules = rule("public.*", "").replace("replicate", "both");
    let walgate = by_sql(replicating(&source, &replica, &hub, &rules), 500);
    walgate.run_until_caught_up();
    let workload = under_load(workload, || {
        for round in 0..2 {
            let running = walgate.run();
            running.wait_for_log(BY_STREAM);
            let name = format!("new_{round}");
            source.exec(&format!("CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} VALUES (1)"));
            hub.wait_for("the new table", |events| {
                events.iter().any(|event| event.json["source"]["table"] == name.as_str())
            });
            running.stop();
        }
    });
    walgate.run_until_caught_up();
    let events: Vec<_> = hub.events();
    workload.assert_exact(&events, &source, 0);
    assert_tables(&source, &replica);
}

#[test]
fn a_long_decode_does_not_hold_up_the_drain() {
    let (source, hub) = (Source::new("bl_drain"), Hub::file());
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let walgate = by_sql(Walgate::new(&source, &hub), 100_000_000);
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 400000) i");
    let running = walgate.run();
    running.wait_for_log(BY_SQL);
    let asked_at = Instant::now();
    running.stop();
    assert!(asked_at.elapsed() < Duration::from_secs(5), "the drain took {:?}", asked_at.elapsed());
    let left = source
        .value("SELECT count(*) FROM pg_replication_slots WHERE temporary AND database = current_database()");
    assert_eq!(left, "0", "the temporary slot goes with its reader");
    walgate.run_until_caught_up();
    assert_eq!(hub.events().len(), 400_000);
}
