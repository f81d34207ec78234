//! Faults: of the slot, the source, the broker, the disk, and of a second process. What passes by itself loses nothing
//! and doubles nothing; what does not ends with exit code 1, the reason and the remedy.
//!
//! CASES D2, D3, D5, D7, D9, D10, T5; EXACTLY_ONCE.md, "The checkpoint" and "Who runs".

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use walgate::wal::lock::Lock;
use walgate::wal::url::ConnectUrl;

use crate::crash::{forget_checkpoint, in_parallel, under_load};
use crate::support::walgate::Running;
use crate::support::{
    Broker, Cluster, Event, Hub, PATIENCE, Session, Shutdown, Source, Walgate, Workload, kafka, servers,
    unique_name, wait_until, without_repetitions,
};

/// An error that no retry can mend ends the process at once; this is what a start takes on busy cores, and more.
const REFUSAL_LIMIT: Duration = Duration::from_secs(20);
/// How long the source's fast shutdown may take with Walgate connected.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

fn slot_name(source: &Source) -> String {
    format!("{}_hub", source.name())
}

/// `[source]` for a database under the name of another: what a changed DNS entry does.
fn moved(source: &Source, url: &str) -> String {
    format!("url = {url:?}\nslot = {0:?}\nname = {0:?}\n", source.name())
}

/// Runs it and asserts that it stops at once with exit code 1, says `words` and a remedy, and publishes nothing.
#[track_caller]
fn assert_refused(what: &str, walgate: &Walgate, hub: &Hub, words: &[&str]) {
    let before = ids(&hub.events());
    let mut running = walgate.run();
    let status = running.wait(REFUSAL_LIMIT);
    let log = running.stderr();
    assert_eq!(status.code(), Some(1), "{what}: {log}");
    for word in words.iter().chain(&["remedy"]) {
        assert!(log.contains(word), "{what}: no {word:?} in\n{log}");
    }
    assert_eq!(ids(&hub.events()), before, "{what}: something was published");
}

fn ids(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.id().to_owned()).collect()
}

/// A running process whose copy is behind it: everything from here on is a change.
#[track_caller]
fn caught_up_and_running(walgate: &Walgate) -> Running {
    walgate.run_until_caught_up();
    walgate.run()
}

/// Waits until a running process has delivered all of the workload.
#[track_caller]
fn wait_for_last(hub: &Hub, workload: &mut Workload) {
    let last = workload.mark();
    hub.wait_for_within("the last change", 2 * PATIENCE, |events| {
        events.iter().any(|event| event.aggregate_id() == Some(&last))
    });
}

// ---- D7: what does not belong together ------------------------------------------------------------------

/// Something done to a pipeline at rest, and what the refusal must say.
type Fault = (&'static str, fn(&Source, &Hub), &'static [&'static str]);

const SLOT_FAULTS: &[Fault] = &[
    ("the slot was dropped", |source, _| source.drop_slots(), &["_hub does not exist", "walgate drop"]),
    (
        "the slot was made anew",
        |source, _| {
            source.drop_slots();
            source.query(&format!(
                "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                slot_name(source)
            ));
        },
        &["_hub is confirmed at", "ahead of the destination's checkpoint", "walgate drop"],
    ),
    (
        "the slot was moved",
        |source, _| {
            source.query(&format!(
                "SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())",
                slot_name(source)
            ));
        },
        &["_hub is confirmed at", "ahead of the destination's checkpoint", "walgate drop"],
    ),
    (
        "the slot belongs to another program now",
        |source, _| {
            source.drop_slots();
            source.query(&format!(
                "SELECT pg_create_logical_replication_slot('{}', 'test_decoding')",
                slot_name(source)
            ));
        },
        &["test_decoding", "pgoutput"],
    ),
    (
        "the checkpoint was deleted",
        |source, hub| forget_checkpoint(source, hub),
        &["_hub exists", "no checkpoint", "walgate drop"],
    ),
    (
        "the publication was dropped",
        |source, _| source.exec(&format!("DROP PUBLICATION {}", slot_name(source))),
        &["publication", "does not exist", "walgate drop"],
    ),
];

#[test]
fn case_d7_a_slot_that_somebody_touched_is_refused() {
    in_parallel(SLOT_FAULTS, |(what, fault, words)| {
        let source = Source::new("slotfault");
        for hub in Hub::of_each_kind(&source) {
            source.exec("DROP TABLE IF EXISTS t, u");
            source.drop_slots();
            source.exec(&format!("DROP PUBLICATION IF EXISTS {}", slot_name(&source)));
            let mut workload = Workload::new(&source);
            let walgate = Walgate::new(&source, &hub);
            walgate.run_until_caught_up();
            workload.mix();
            walgate.run_until_caught_up();
            workload.mix();
            fault(&source, &hub);
            workload.mix();
            assert_refused(what, &walgate, &hub, words);
            // It is no accident of the first attempt.
            assert_refused(what, &walgate, &hub, words);
        }
    });
}

#[test]
fn case_d7_a_slot_that_goes_while_it_is_read_is_refused() {
    let source = Source::new("slotgoes");
    let hub = Hub::kafka(&source);
    let mut workload = Workload::new(&source);
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    let mut running = walgate.run();
    wait_for_last(&hub, &mut workload);
    source.drop_slots();
    workload.mix();
    let status = running.wait(REFUSAL_LIMIT);
    assert_eq!(status.code(), Some(1), "{}", running.stderr());
    assert!(running.stderr().contains("does not exist"), "{}", running.stderr());
    assert_refused("the slot went", &walgate, &hub, &["does not exist", "walgate drop"]);
}

#[test]
fn case_d7_an_invalidated_slot_is_refused() {
    let cluster = Cluster::start(&[
        ("max_slot_wal_keep_size", "1MB"),
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
    ]);
    let source = Source::on(&cluster, "lost");
    let hub = Hub::file();
    let mut workload = Workload::new(&source);
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    workload.mix();
    walgate.run_until_caught_up();
    source.exec("CREATE TABLE filler (x text)");
    wait_until("the slot to be lost", || {
        source.exec("INSERT INTO filler SELECT repeat('x', 500) FROM generate_series(1, 2000)");
        source.exec("SELECT pg_switch_wal()");
        source.exec("CHECKPOINT");
        source.value("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    assert_refused("the slot is lost", &walgate, &hub, &["_hub is lost", "walgate drop"]);
}

#[test]
fn case_d7_another_server_or_database_behind_the_same_address_is_refused() {
    let clusters = [Cluster::start(&[]), Cluster::start(&[])];
    let source = Source::on(&clusters[0], "swapped");
    for hub in [Hub::file(), Hub::kafka(&source)] {
        source.exec("DROP TABLE IF EXISTS t, u");
        source.drop_slots();
        let mut workload = Workload::new(&source);
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        workload.mix();
        walgate.run_until_caught_up();

        // Another cluster that has a database of that name, and even a slot.
        let other = Session::connect(&clusters[1].url("postgres"));
        other.exec(&format!("DROP DATABASE IF EXISTS {}", source.name()));
        other.exec(&format!("CREATE DATABASE {} TEMPLATE template0", source.name()));
        let url = clusters[1].url(source.name());
        Session::connect(&url).exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let swapped = Walgate::with(&moved(&source, &url), &hub.settings());
        assert_refused(
            "another cluster",
            &swapped,
            &hub,
            &["another source", "system identifier", "source.url"],
        );
        assert_eq!(other.value("SELECT count(*) FROM pg_replication_slots"), "0", "a slot was made there");

        // Another database of the same cluster.
        let name = unique_name("otherdb");
        source.exec(&format!("CREATE DATABASE {name} TEMPLATE template0"));
        let swapped = Walgate::with(&moved(&source, &clusters[0].url(&name)), &hub.settings());
        assert_refused("another database", &swapped, &hub, &["another source", "database", "source.url"]);

        // The right one still goes on where it was.
        workload.mix();
        walgate.run_until_caught_up();
        workload.assert_exact(&hub.events(), &source, 0);
        source.exec(&format!("DROP DATABASE {name}"));
        source.exec(&format!("DROP PUBLICATION {}", slot_name(&source)));
    }
}

#[test]
fn case_d7_a_source_that_was_restored_from_a_backup_is_refused() {
    let cluster = Cluster::start(&[]);
    let mut source = Source::on(&cluster, "restored");
    let hub = Hub::file();
    let mut workload = Workload::new(&source);
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    workload.mix();
    walgate.run_until_caught_up();

    cluster.stop(Shutdown::Fast);
    let (data, backup) = (cluster.data(), cluster.data().with_extension("backup"));
    servers::run(Command::new("cp").arg("-a").arg(&data).arg(&backup));
    cluster.resume();
    source.reconnect();
    workload.reconnect(&source);
    workload.mix();
    workload.big();
    walgate.run_until_caught_up();
    cluster.stop(Shutdown::Immediate);
    servers::run(Command::new("rm").arg("-r").arg(&data));
    servers::run(Command::new("mv").arg(&backup).arg(&data));
    cluster.resume();
    source.reconnect();
    assert_refused("restored", &walgate, &hub, &["went back in time", "backup", "walgate drop"]);

    // Its WAL has grown past the checkpoint by now, without anything for us in it, and then with other transactions
    // in the same places.
    let reached = hub.events().iter().map(|event| event.place().lsn).max().expect("there are events");
    source.exec("CREATE SCHEMA other; CREATE TABLE other.t (x text)");
    wait_until("the WAL to have grown", || {
        source.exec("INSERT INTO other.t SELECT repeat('y', 500) FROM generate_series(1, 3000)");
        source.value(&format!("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn > {reached} + 1000000"))
            == "t"
    });
    assert_refused("restored, and gone on", &walgate, &hub, &["another history", "walgate drop"]);
    source.exec("UPDATE t SET n = -1");
    assert_refused("restored, and gone on", &walgate, &hub, &["another history", "walgate drop"]);
}

// ---- D3: the source and the broker come and go ----------------------------------------------------------

#[test]
fn case_d3_the_source_restarts_under_load() {
    let cluster = Cluster::start(&[]);
    let mut sources = [Source::on(&cluster, "restarts"), Source::on(&cluster, "restarts")];
    let hubs = [Hub::file(), Hub::kafka(&sources[1])];
    let mut workloads: Vec<Workload> = sources.iter().map(Workload::new).collect();
    let walgates: Vec<Walgate> =
        sources.iter().zip(&hubs).map(|(source, hub)| Walgate::new(source, hub)).collect();
    let running: Vec<Running> = walgates.iter().map(caught_up_and_running).collect();
    for (hub, workload) in hubs.iter().zip(&mut workloads) {
        wait_for_last(hub, workload);
    }
    for how in [Shutdown::Fast, Shutdown::Immediate, Shutdown::Fast] {
        for workload in &mut workloads {
            workload.mix();
            workload.big();
            workload.big();
        }
        // Busy with it, and in the middle.
        let asked_at = Instant::now();
        cluster.stop(how);
        let took = asked_at.elapsed();
        assert!(took < SHUTDOWN_LIMIT, "the busy source's {how:?} shutdown took {took:?}");
        cluster.resume();
        for (source, workload) in sources.iter_mut().zip(&mut workloads) {
            source.reconnect();
            workload.reconnect(source);
            workload.mix();
        }
    }
    for (hub, workload) in hubs.iter().zip(&mut workloads) {
        wait_for_last(hub, workload);
    }
    for running in running {
        running.stop();
    }
    for ((hub, workload), source) in hubs.iter().zip(&workloads).zip(&sources) {
        workload.assert_exact(&hub.events(), source, 0);
    }
}

#[test]
fn case_d3_an_idle_pipeline_does_not_hold_up_the_sources_shutdown() {
    let cluster = Cluster::start(&[]);
    let mut source = Source::on(&cluster, "idle");
    let hub = Hub::kafka(&source);
    let mut workload = Workload::new(&source);
    let running = caught_up_and_running(&Walgate::new(&source, &hub));
    for _ in 0..3 {
        wait_for_last(&hub, &mut workload);
        // What no rule asks for moves the WAL as well.
        source.exec("CREATE TEMP TABLE x AS SELECT generate_series(1, 1000); DROP TABLE x");
        let asked_at = Instant::now();
        cluster.stop(Shutdown::Fast);
        let took = asked_at.elapsed();
        assert!(took < SHUTDOWN_LIMIT, "the idle source's shutdown took {took:?}");
        cluster.resume();
        source.reconnect();
        workload.reconnect(&source);
    }
    wait_for_last(&hub, &mut workload);
    running.stop();
    workload.assert_exact(&hub.events(), &source, 0);
}

#[test]
fn case_d3_all_backends_are_terminated_under_load() {
    let source = Source::new("terminated");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t, u");
        source.drop_slots();
        let workload = Workload::new(&source);
        let running = caught_up_and_running(&Walgate::new(&source, &hub));
        let pipeline = format!("walgate/{}.{}%", source.name(), slot_name(&source));
        let terminate = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '{pipeline}'"
        );
        let slot_is_active =
            format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", slot_name(&source));
        let mut workload = under_load(workload, || {
            for _ in 0..4 {
                wait_until("the stream", || source.query(&slot_is_active) == [[Some("t".to_owned())]]);
                source.query(&terminate);
            }
        });
        wait_for_last(&hub, &mut workload);
        running.stop();
        workload.assert_exact(&hub.events(), &source, 0);
        source.exec(&format!("DROP PUBLICATION {}", slot_name(&source)));
    }
}

#[test]
fn case_d3_the_broker_restarts_under_load() {
    let mut broker = Broker::start();
    let sources = [Source::new("broker"), Source::new("broker")];
    let hubs = [Hub::kafka_at(&broker.address(), &sources[0]), Hub::kafka_at(&broker.address(), &sources[1])];
    let [first, second] = [Workload::new(&sources[0]), Workload::new(&sources[1])];
    let walgates = [
        Walgate::new(&sources[0], &hubs[0]),
        Walgate::new(&sources[1], &hubs[1]).hub("delivery = \"at-least-once\""),
    ];
    let running: Vec<Running> = walgates.iter().map(caught_up_and_running).collect();
    let mut second = Some(second);
    let first = under_load(first, || {
        second = second.take().map(|workload| {
            under_load(workload, || {
                for hub in &hubs {
                    hub.wait_for("events", |events| events.len() > 100);
                }
                broker.kill();
                broker.resume();
                for hub in &hubs {
                    let seen = hub.events().len();
                    hub.wait_for_within("events after the kill", 2 * PATIENCE, |events| {
                        events.len() > seen + 100
                    });
                }
                broker.stop();
                broker.resume();
            })
        });
    });
    let mut workloads = [first, second.expect("it was written to")];
    for (hub, workload) in hubs.iter().zip(&mut workloads) {
        wait_for_last(hub, workload);
    }
    for running in running {
        running.stop();
    }
    workloads[0].assert_exact(&hubs[0].events(), &sources[0], 0);
    workloads[1].assert_exact(&without_repetitions(hubs[1].events()), &sources[1], 0);
}

/// FIELD_NOTES 2: a status goes out also while the sink is blocked, before the source's own time-out.
#[test]
fn a_blocked_sink_does_not_cost_the_connection_nor_hold_up_the_source() {
    let cluster = Cluster::start(&[("wal_sender_timeout", "6s")]);
    let mut broker = Broker::start();
    let mut source = Source::on(&cluster, "blocked");
    let hub = Hub::kafka_at(&broker.address(), &source);
    let mut workload = Workload::new(&source);
    let running = caught_up_and_running(&Walgate::new(&source, &hub));
    wait_for_last(&hub, &mut workload);
    let walsender = source.value("SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical'");

    broker.freeze();
    // More than all buffers hold, so that the reader stops as well.
    for _ in 0..5 {
        workload.big();
    }
    // It is the time that is tested: more than twice wal_sender_timeout.
    std::thread::sleep(Duration::from_secs(15));
    let now = source.value("SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical'");
    assert_eq!(walsender, now, "the connection was lost: {}", cluster.log());
    broker.thaw();
    wait_for_last(&hub, &mut workload);

    broker.freeze();
    workload.big();
    let asked_at = Instant::now();
    cluster.stop(Shutdown::Fast);
    let took = asked_at.elapsed();
    assert!(took < SHUTDOWN_LIMIT, "with a blocked sink, the source's shutdown took {took:?}");
    broker.thaw();
    cluster.resume();
    source.reconnect();
    workload.reconnect(&source);
    wait_for_last(&hub, &mut workload);
    running.stop();
    workload.assert_exact(&hub.events(), &source, 0);
    broker.kill();
    std::mem::forget(hub);
}

// ---- D5: the broker refuses -----------------------------------------------------------------------------

#[test]
fn case_d5_a_message_that_is_too_large_stops_the_pipeline() {
    // Behind a backlog the transaction stays open for a while, and it is its end that meets the refusal.
    for (delivery, backlog) in [("exactly-once", false), ("at-least-once", false), ("exactly-once", true)] {
        let source = Source::new("toolarge");
        let hub = Hub::kafka(&source);
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int, photo text)");
        let topic = format!("{}.public.t", source.name());
        kafka::create_topic(&servers::kafka_brokers(), &topic, 3, &[("max.message.bytes", "4000")]);
        let walgate = Walgate::new(&source, &hub).hub(&format!("delivery = {delivery:?}"));
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t SELECT i, 0, 'small' FROM generate_series(1, 20) i");
        walgate.run_until_caught_up();
        // Each alone is small enough, though not all of them together.
        assert_eq!(without_repetitions(hub.events()).len(), 20);

        let large = "(SELECT string_agg(md5(i::text || random()), '') FROM generate_series(1, 500) i)";
        source.exec("UPDATE t SET n = 1 WHERE id <= 10");
        // Its commit lies behind this position, and nearly nothing else between the two: other tests write here as well.
        let refused_after = source.value(&format!(
            "WITH refused AS (UPDATE t SET n = 2, photo = {large} WHERE id = 1 RETURNING id)
             SELECT pg_current_wal_insert_lsn() FROM refused"
        ));
        for n in 3..10 {
            source.exec(&format!("UPDATE t SET n = {n}, photo = 'small again'"));
        }
        if backlog {
            source.exec("CREATE SCHEMA other");
            source.exec(
                "CREATE TABLE other.t AS SELECT repeat(md5(i::text), 60) FROM generate_series(1, 60000) i",
            );
        }
        for attempt in 0..2 {
            let mut running = walgate.run();
            let status = running.wait(2 * REFUSAL_LIMIT);
            let log = running.stderr();
            assert_eq!(status.code(), Some(1), "{delivery}, attempt {attempt}: {log}");
            let topic = topic.as_str();
            for word in [topic, "bytes", "max.message.bytes", "remedy"] {
                assert!(log.contains(word), "{delivery}, attempt {attempt}: no {word:?} in {log}");
            }
            let size = log.rsplit("a message of ").next().and_then(|rest| rest.split(' ').next());
            let size: usize = size.and_then(|size| size.parse().ok()).expect("the error names the size");
            assert!((16_000..20_000).contains(&size), "{delivery}: a message of {size} bytes");
            let events = hub.events();
            let of_it: Vec<i64> = events
                .iter()
                .filter(|event| event.aggregate_id() == Some("1"))
                .map(|event| event.data("n").as_i64().expect("n is a number"))
                .collect();
            assert!(
                of_it.iter().all(|n| *n < 2),
                "{delivery}, attempt {attempt}: published past what was refused: {of_it:?}"
            );
            // The server notices a moment after the process has ended.
            wait_until("the slot to be free", || {
                let slot = slot_name(&source);
                source
                    .value(&format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{slot}'"))
                    == "t"
            });
            let confirmed_before = source.value(&format!(
                "SELECT confirmed_flush_lsn <= '{refused_after}' FROM pg_replication_slots
                 WHERE slot_name = '{}'",
                slot_name(&source)
            ));
            assert_eq!(confirmed_before, "t", "{delivery}: the slot was confirmed");
        }

        kafka::set_topic_config(&servers::kafka_brokers(), &topic, "max.message.bytes", "1000000");
        walgate.run_until_caught_up();
        let mut events = hub.events();
        if delivery == "at-least-once" {
            events = without_repetitions(events);
        }
        for id in 1..=20 {
            let id = id.to_string();
            let of_it = events.iter().filter(|event| event.aggregate_id() == Some(&id));
            let found: Vec<i64> =
                of_it.map(|event| event.data("n").as_i64().expect("n is a number")).collect();
            let expected: Vec<i64> = match id.as_str() {
                "1" => (0..10).collect(),
                _ if found.len() == 9 => [0, 1].into_iter().chain(3..10).collect(),
                _ => [0].into_iter().chain(3..10).collect(),
            };
            assert_eq!(found, expected, "{delivery}: events of {id}");
        }
        assert_eq!(events.len(), 20 + 10 + 1 + 7 * 20, "{delivery}");
    }
}

#[test]
fn case_d5_a_missing_topic_that_may_not_be_made_stops_the_pipeline() {
    for delivery in ["exactly-once", "at-least-once"] {
        let source = Source::new("notopic");
        let hub = Hub::kafka(&source);
        source.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let walgate =
            Walgate::new(&source, &hub).hub(&format!("delivery = {delivery:?}\ncreate_topics = false"));
        let topic = format!("{}.public.t", source.name());
        assert_refused("no topic", &walgate, &hub, &[&topic, "does not exist", "create_topics"]);
        assert_eq!(hub.topics(), Vec::<String>::new(), "a topic was made");

        kafka::create_topic(&servers::kafka_brokers(), &topic, 2, &[]);
        walgate.run_until_caught_up();
        assert_eq!(hub.events().len(), 1, "{delivery}");
        assert_eq!(hub.events()[0].json["data"], json!({"id": 1}));

        // A table that comes later, while it runs.
        source.exec("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)");
        assert_refused("no topic", &walgate, &hub, &[".public.later", "does not exist", "create_topics"]);
    }
}

// ---- D9: two processes ----------------------------------------------------------------------------------

#[test]
fn case_d9_a_second_process_waits_and_takes_over() {
    let source = Source::new("standby");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t, u");
        source.drop_slots();
        let workload = Workload::new(&source);
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        let mut first = walgate.run();
        hub_follows(&source, &hub, 900_001);
        let mut second = walgate.run();
        let workload = under_load(workload, || {
            // It must still wait when it has tried for the lock a few times.
            std::thread::sleep(Duration::from_secs(4));
            assert!(second.is_running(), "the standby ended: {}", second.stderr());
            assert!(first.is_running(), "the first ended: {}", first.stderr());
            first.kill9();
            hub_follows_within(&source, &hub, 900_002, Duration::from_secs(10));
            // And the other way round, by a start of its own.
            first = walgate.run();
            std::thread::sleep(Duration::from_secs(2));
            second.kill9();
            hub_follows_within(&source, &hub, 900_003, Duration::from_secs(10));
        });
        first.stop();
        walgate.run_until_caught_up();
        workload.assert_exact(&without_probes(hub.events()), &source, 0);
        source.exec(&format!("DROP PUBLICATION {}", slot_name(&source)));
    }
}

#[test]
fn case_d9_a_frozen_process_loses_its_place_and_wakes_up_as_a_standby() {
    let source = Source::new("frozen");
    let hub = Hub::kafka(&source);
    let workload = Workload::new(&source);
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    let mut first = walgate.run();
    hub_follows(&source, &hub, 900_001);
    let mut second = walgate.run();
    let mut workload = under_load(workload, || {
        std::thread::sleep(Duration::from_secs(1));
        first.freeze();
        hub_follows_within(&source, &hub, 900_002, Duration::from_secs(30));
        first.thaw();
        first.wait_for_log("lock");
        // What the first still had in its hands must not come now.
        std::thread::sleep(Duration::from_secs(3));
        assert!(first.is_running(), "the thawed process ended: {}", first.stderr());
        assert!(second.is_running(), "the one that took over ended: {}", second.stderr());
        second.kill9();
        hub_follows_within(&source, &hub, 900_003, Duration::from_secs(15));
    });
    wait_for_last(&hub, &mut workload);
    first.stop();
    workload.assert_exact(&without_probes(hub.events()), &source, 0);
}

#[test]
fn case_d9_a_frozen_process_keeps_the_directory_and_nothing_is_torn() {
    let source = Source::new("frozenfile");
    let hub = Hub::file();
    let workload = Workload::new(&source);
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    let first = walgate.run();
    hub_follows(&source, &hub, 900_001);
    let second = walgate.run();
    let mut workload = under_load(workload, || {
        first.freeze();
        second.wait_for_log("locked by another process");
        first.thaw();
        hub_follows_within(&source, &hub, 900_002, Duration::from_secs(30));
    });
    wait_for_last(&hub, &mut workload);
    first.stop();
    second.stop();
    workload.assert_exact(&without_probes(hub.events()), &source, 0);
}

/// Writes an event outside of the workload's tables and waits until the hub has it.
#[track_caller]
fn hub_follows(source: &Source, hub: &Hub, number: u32) {
    hub_follows_within(source, hub, number, PATIENCE);
}

#[track_caller]
fn hub_follows_within(source: &Source, hub: &Hub, number: u32, limit: Duration) {
    source.exec(&format!(
        "SELECT pg_logical_emit_message(true, 'walgate.outbox',
           '{{\"aggregate_type\":\"probe\",\"aggregate_id\":\"{number}\",\"type\":\"probe\",\"payload\":null}}')"
    ));
    let id = number.to_string();
    hub.wait_for_within("a probe", limit, |events| {
        events.iter().any(|event| event.aggregate_id() == Some(&id))
    });
}

/// Without the probes, each of which must be there once.
#[track_caller]
fn without_probes(mut events: Vec<Event>) -> Vec<Event> {
    let mut probes: Vec<String> = events
        .iter()
        .filter(|event| event.op() == "message")
        .map(|event| event.text("aggregate_id").to_owned())
        .collect();
    let count = probes.len();
    probes.sort();
    probes.dedup();
    assert_eq!(probes.len(), count, "a probe twice: {probes:?}");
    events.retain(|event| event.op() != "message");
    events
}

// ---- D10: the disk is full ------------------------------------------------------------------------------

/// A write fails in the middle of a line; afterwards there is room again.
fn disk_full(hub: &Hub, full: impl Fn(Walgate) -> Walgate, make_room: impl Fn()) {
    let source = Source::new("diskfull");
    let mut workload = Workload::new(&source);
    let walgate = || full(Walgate::new(&source, hub));
    walgate().run_until_caught_up();
    workload.mix();
    walgate().run_until_caught_up();
    let whole = hub.events().len();
    for _ in 0..4 {
        workload.big();
    }
    for _ in 0..2 {
        let mut running = walgate().start(&["run", "--until-caught-up"]);
        let status = running.wait(2 * PATIENCE);
        let log = running.stderr();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("events") && log.contains("remedy"), "{log}");
    }
    assert!(hub.events().len() >= whole, "what was whole is gone");
    make_room();
    Walgate::new(&source, hub).run_until_caught_up();
    workload.assert_exact(&hub.events(), &source, 0);
    for entry in std::fs::read_dir(hub.path()).expect("the hub's folder can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            let bytes = std::fs::read(&path).expect("a topic can be read");
            assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "{} ends in a torn line", path.display());
        }
    }
}

#[test]
fn case_d10_a_file_that_may_not_grow_stops_the_pipeline_cleanly() {
    let hub = Hub::file();
    // A limit of 1 MB a file, in blocks of 512 bytes; the signal that comes with it is what a shell would ignore.
    let limited =
        |walgate: Walgate| walgate.through(&["sh", "-c", "ulimit -f 2048; trap '' XFSZ; exec \"$@\"", "sh"]);
    disk_full(&hub, limited, || {});
}

/// A folder with a small file system of its own, if this user may mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).expect("a test's folder can be written");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }

    fn grow(&self) {
        servers::run(Command::new("mount").args(["-o", "remount,size=100m"]).arg(&self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn case_d10_a_full_disk_stops_the_pipeline_cleanly() {
    let hub = Hub::file();
    let Some(disk) = SmallDisk::mount(&hub.path()) else {
        // Who may not mount has the limit of a file's size above: the same paths with another errno.
        return;
    };
    disk_full(&hub, |walgate| walgate, || disk.grow());
}

// ---- T5: prepared transactions --------------------------------------------------------------------------

#[test]
fn case_t5_a_prepared_transaction_comes_after_its_commit_and_once() {
    let cluster = Cluster::start(&[]);
    let mut source = Source::on(&cluster, "prepared");
    let hub = Hub::kafka(&source);
    let mut workload = Workload::new(&source);
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    workload.mix();
    let mut running = walgate.run();
    wait_for_last(&hub, &mut workload);

    let prepared = workload.begin().insert_u(50).prepare("walgate_t5");
    source.exec("BEGIN; INSERT INTO t VALUES (-100, 0, 'never'); PREPARE TRANSACTION 'walgate_never'");
    let seen = hub.events().len();
    workload.insert(3);
    hub.wait_for("what was not prepared", |events| events.len() == seen + 3);

    // The crash of everything.
    running.kill9();
    cluster.kill();
    cluster.resume();
    source.reconnect();
    workload.reconnect(&source);
    let running = walgate.run();
    wait_for_last(&hub, &mut workload);
    let is_seen = |events: &[Event]| events.iter().any(|event| event.aggregate_id() == Some("-100"));
    assert_eq!(hub.events().len(), seen + 4, "a prepared transaction is visible");
    prepared.commit(&mut workload);
    source.exec("ROLLBACK PREPARED 'walgate_never'");
    wait_for_last(&hub, &mut workload);
    running.stop();
    let events = hub.events();
    assert!(!is_seen(&events), "what was rolled back is visible");
    workload.assert_exact(&events, &source, 0);
}

/// A pipeline has one thread, which writes a row of hundreds of megabytes without a pause.
#[test]
fn who_is_busy_keeps_the_lock() {
    let source = Source::new("lock_busy");
    let url = ConnectUrl::parse(&source.url(), |_| None).expect("a URL");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let take = || Lock::try_take(&url, "test", source.name());
        let lock = take().await.expect("the source answers").expect("nobody holds it");
        // Longer than an answer may take; what is waited for is that nothing happens.
        std::thread::sleep(Duration::from_secs(6));
        assert!(lock.is_held());
        let lost = tokio::time::timeout(Duration::from_millis(200), lock.lost()).await;
        assert!(lost.is_err(), "{lost:?}");
        assert!(take().await.expect("the source answers").is_none(), "it is held");
        drop(lock);
        while take().await.expect("the source answers").is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
