//! Crashes: killed at every failpoint, at random, and asked to end under load, and each change still has its event
//! exactly once; under at-least-once some come again, with equal ids.
//!
//! EXACTLY_ONCE.md, "Crash points", is the contract, CASES D1, D2, D11, S3 the cases. A name that is added to
//! `walgate::failpoint::NAMES` is covered by itself.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Event, Hub, Source, Walgate, Workload, kafka, wait_until, without_repetitions};

const SIGABRT: i32 = 6;
/// What the largest step of these tests needs, several times.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// Where to, and with which promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    File,
    ExactlyOnce,
    AtLeastOnce,
}

impl Mode {
    fn hub(self, source: &Source) -> Hub {
        if self == Mode::File { Hub::file() } else { Hub::kafka(source) }
    }

    fn walgate(self, source: &Source, hub: &Hub) -> Walgate {
        let walgate = Walgate::new(source, hub);
        if self == Mode::AtLeastOnce { walgate.hub("delivery = \"at-least-once\"") } else { walgate }
    }

    /// What a consumer has that keeps this promise's rule: under at-least-once it drops what it knows.
    fn events(self, hub: &Hub) -> Vec<Event> {
        let events = hub.events();
        if self == Mode::AtLeastOnce { without_repetitions(events) } else { events }
    }

    /// Whether a failpoint is on this mode's way. What is not known here is expected everywhere.
    fn passes(self, failpoint: &str) -> bool {
        match failpoint {
            "kafka.after-produce" => self == Mode::ExactlyOnce,
            "kafka.before-checkpoint" => self == Mode::AtLeastOnce,
            _ if failpoint.starts_with("kafka.") => self != Mode::File,
            _ if failpoint.starts_with("file.") => self == Mode::File,
            // Not a hub's: tests/replica_live.rs dies there.
            _ if failpoint.starts_with("replica.") => false,
            // Of large events: claims.rs dies there.
            _ if failpoint.starts_with("claim.") => false,
            // Of a slot that is far behind: backlog.rs dies there.
            _ if failpoint.starts_with("backlog.") => false,
            // Of outbox tables whose rows are removed: outbox.rs dies there.
            _ if failpoint.starts_with("cleanup.") => false,
            _ => true,
        }
    }
}

/// Runs until caught up or killed by its failpoint; whether it was.
#[track_caller]
pub fn crashes(walgate: &Walgate) -> bool {
    let mut running = walgate.start(&["run", "--until-caught-up"]);
    let status = running.wait(STEP_LIMIT);
    let is_abort = status.signal() == Some(SIGABRT);
    assert!(is_abort || status.success(), "neither caught up nor crashed: {status}\n{}", running.stderr());
    is_abort
}

/// Does `work` with each of `items`, some at a time.
pub fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::SeqCst)) {
                        work(item);
                    }
                })
            })
            .collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// One failpoint: in the first start, with its copy, and then in the stream, at several of its passes.
fn crash_at(name: &str, mode: Mode) {
    eprintln!("{mode:?}, {name}");
    let source = Source::new(&format!("c_{name}"));
    let hub = mode.hub(&source);
    let mut workload = Workload::new(&source);
    // In a copy's own crashes, more than one of its batches (4096).
    workload.insert(if name.starts_with("snapshot.") { 4200 } else { 300 });
    workload.begin().insert_u(40).commit();
    let walgate = mode.walgate(&source, &hub);
    let of_start = name.starts_with("start.") || name.starts_with("snapshot.");

    // The first start. The second pass of it is killed as well, in the restart, after the rows have changed.
    let has_fired = crashes(&mode.walgate(&source, &hub).failpoint(name));
    workload.churn();
    let fires_again = crashes(&mode.walgate(&source, &hub).failpoint(&format!("{name}:2")));
    workload.churn();
    source.exec("VACUUM t");
    assert!(has_fired || !of_start, "{name} was not passed by a first start");
    walgate.run_until_caught_up();
    workload.assert_exact(&mode.events(&hub), &source, workload.count());

    // The stream: everything from here on must come as changes.
    let from = workload.count();
    let passes: &[u32] = match name {
        "stream.in-transaction" => &[1, 60, 8300, 17_000],
        _ if of_start => &[],
        // Once a start.
        _ if name.starts_with("stream.") => &[1],
        _ => &[1, 2, 4],
    };
    let mut fired = 0;
    for (round, pass) in passes.iter().enumerate() {
        workload.mix();
        let is_once_a_start = name.starts_with("stream.") && passes.len() == 1;
        if name == "stream.in-transaction" || (round == 0 && !is_once_a_start) {
            workload.big();
            workload.mix();
        }
        let has_fired = crashes(&mode.walgate(&source, &hub).failpoint(&format!("{name}:{pass}")));
        assert!(has_fired || round > 0, "{name} was not passed by the stream");
        fired += u32::from(has_fired);
    }
    workload.mix();
    walgate.run_until_caught_up();
    let events = mode.events(&hub);
    workload.assert_exact(&events, &source, from);

    // And a start that has nothing to do delivers nothing.
    let count = hub.events().len();
    walgate.run_until_caught_up();
    assert_eq!(hub.events().len(), count, "{name}: a start with nothing to do delivered something");
    eprintln!(
        "{mode:?}, {name}: crashed in the start, again {fires_again}, {fired} of {} in the stream",
        passes.len()
    );
}

fn crash_at_every_failpoint(mode: Mode) {
    let names: Vec<&str> =
        walgate::failpoint::NAMES.iter().copied().filter(|name| mode.passes(name)).collect();
    in_parallel(&names, |name| crash_at(name, mode));
}

#[test]
fn case_s3_crash_at_every_failpoint_file() {
    crash_at_every_failpoint(Mode::File);
}

#[test]
fn case_s3_crash_at_every_failpoint_kafka_exactly_once() {
    crash_at_every_failpoint(Mode::ExactlyOnce);
}

#[test]
fn case_s3_crash_at_every_failpoint_kafka_at_least_once() {
    crash_at_every_failpoint(Mode::AtLeastOnce);
}

#[test]
fn every_failpoint_is_on_somebodys_way() {
    let is_elsewhere = |name: &str| {
        ["replica.", "backlog.", "claim.", "cleanup."].iter().any(|prefix| name.starts_with(prefix))
    };
    for name in walgate::failpoint::NAMES.iter().filter(|name| !is_elsewhere(name)) {
        assert!(
            [Mode::File, Mode::ExactlyOnce, Mode::AtLeastOnce].iter().any(|mode| mode.passes(name)),
            "{name}"
        );
    }
}

/// Runs `disturb` while one thread writes all the time; returns what was written.
pub fn under_load(workload: Workload, disturb: impl FnOnce()) -> Workload {
    let is_over = AtomicBool::new(false);
    /// Also when `disturb` panics, or the writer would never end.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut workload = workload;
            while !is_over.load(Ordering::SeqCst) {
                workload.insert(40);
                workload.mix();
                // Leaves the cores to who is tested.
                std::thread::sleep(Duration::from_millis(15));
            }
            workload.big();
            workload
        });
        let over = Over(&is_over);
        disturb();
        drop(over);
        writer.join().expect("the writer does not fail")
    })
}

/// N times: start, wait a random time, kill -9, while a writer goes on.
fn kill_9_at_random(mode: Mode) {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let source = Source::new("kill9");
    let hub = mode.hub(&source);
    let workload = Workload::new(&source);
    let walgate = mode.walgate(&source, &hub);
    walgate.run_until_caught_up();
    let workload = under_load(workload, || {
        for _ in 0..15 {
            let mut running = walgate.run();
            std::thread::sleep(Duration::from_millis(random.random_range(50..1200)));
            running.kill9();
        }
    });
    walgate.run_until_caught_up();
    workload.assert_exact(&mode.events(&hub), &source, 0);
}

#[test]
fn case_d1_kill_9_at_random_under_load_file() {
    kill_9_at_random(Mode::File);
}

#[test]
fn case_d1_kill_9_at_random_under_load_kafka_exactly_once() {
    kill_9_at_random(Mode::ExactlyOnce);
}

#[test]
fn case_d1_kill_9_at_random_under_load_kafka_at_least_once() {
    kill_9_at_random(Mode::AtLeastOnce);
}

/// SIGTERM in the middle: exit 0 within `drain_timeout`, and nothing comes twice, at-least-once too: what was drained
/// is in the checkpoint.
fn sigterm_under_load(mode: Mode) {
    let source = Source::new("sigterm");
    let hub = mode.hub(&source);
    let workload = Workload::new(&source);
    let walgate = mode.walgate(&source, &hub).section("[limits]\ndrain_timeout = \"5s\"");
    walgate.run_until_caught_up();
    let workload = under_load(workload, || {
        for round in 0..4 {
            let seen = hub.events().len();
            let running = walgate.run();
            hub.wait_for("events of this round", |events| events.len() > seen + 50 * round);
            let asked_at = std::time::Instant::now();
            running.stop();
            let took = asked_at.elapsed();
            assert!(took < Duration::from_secs(6), "the drain took {took:?}");
        }
    });
    walgate.run_until_caught_up();
    // Whatever the mode promises after a crash: this was none.
    workload.assert_exact(&hub.events(), &source, 0);
}

#[test]
fn case_d11_sigterm_under_load_file() {
    sigterm_under_load(Mode::File);
}

#[test]
fn case_d11_sigterm_under_load_kafka_exactly_once() {
    sigterm_under_load(Mode::ExactlyOnce);
}

#[test]
fn case_d11_sigterm_under_load_kafka_at_least_once() {
    sigterm_under_load(Mode::AtLeastOnce);
}

/// SIGTERM during the first copy: exit 0, and the next start makes it whole.
#[test]
fn case_d11_sigterm_during_the_copy() {
    let source = Source::new("sigtermcopy");
    for mode in [Mode::File, Mode::ExactlyOnce] {
        source.exec("DROP TABLE IF EXISTS t, u");
        source.drop_slots();
        let hub = mode.hub(&source);
        let mut workload = Workload::new(&source);
        workload.insert(60_000);
        let walgate = mode.walgate(&source, &hub);
        let running = walgate.run();
        running.wait_for_log("snapshot taken");
        running.stop();
        workload.churn();
        walgate.run_until_caught_up();
        workload.assert_exact(&mode.events(&hub), &source, workload.count());
    }
}

/// A crash before anything is stored of a copy, in topics that hold the rows of an earlier pipeline: the new copy
/// ends those, though the first attempt at it was the one that found them.
#[test]
fn case_s3_a_crash_before_the_copy_does_not_forget_what_the_topics_held() {
    let failpoints =
        ["start.after-pending", "start.after-slot", "snapshot.after-slot", "snapshot.after-begun"];
    let cases: Vec<(Mode, &str)> = [Mode::File, Mode::ExactlyOnce]
        .iter()
        .flat_map(|mode| failpoints.map(|name| (*mode, name)))
        .collect();
    in_parallel(&cases, |&(mode, failpoint)| {
        let source = Source::new("adopted");
        let hub = mode.hub(&source);
        let mut workload = Workload::new(&source);
        workload.insert(30);
        let walgate = mode.walgate(&source, &hub);
        walgate.run_until_caught_up();
        // A clean leave by hand: slot, publication, checkpoint. The events stay.
        source.drop_slots();
        source.exec(&format!("DROP PUBLICATION {}_hub", source.name()));
        forget_checkpoint(&source, &hub);
        workload.begin().delete(5).rekey(2).truncate_u().commit();

        assert!(crashes(&mode.walgate(&source, &hub).failpoint(failpoint)), "{failpoint}");
        walgate.run_until_caught_up();
        workload.assert_exact(&mode.events(&hub), &source, workload.count());
    });
}

/// Removes what the hub stores about the source's pipeline, as an administrator might.
pub fn forget_checkpoint(source: &Source, hub: &Hub) {
    match hub {
        Hub::File { .. } => {
            std::fs::remove_file(hub.path().join("checkpoint.json")).expect("there is a checkpoint");
        }
        Hub::Kafka { brokers, .. } => {
            let topic = format!("{0}.{0}_hub.checkpoint", source.name());
            kafka::delete_topics(brokers, &[&topic]);
            wait_until("the checkpoint topic to be gone", || kafka::topics(brokers, &topic).is_empty());
        }
    }
}

/// D2: the sink's answer comes late: nothing is confirmed before it, and nothing is doubled by the wait.
#[test]
fn case_d2_a_crash_with_everything_in_flight_confirms_nothing() {
    let source = Source::new("inflight");
    let hub = Hub::kafka(&source);
    let mut workload = Workload::new(&source);
    let walgate = Mode::ExactlyOnce.walgate(&source, &hub);
    walgate.run_until_caught_up();
    let slot = format!("{}_hub", source.name());
    let confirmed = || {
        source.value(&format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
        ))
    };
    let before = confirmed();
    workload.mix();
    // The first commit is the start's own: what TRUNCATE did to the catalog, which is stored before anything streams.
    assert!(crashes(&Mode::ExactlyOnce.walgate(&source, &hub).failpoint("kafka.before-commit:2")));
    assert_eq!(confirmed(), before, "confirmed although nothing was committed");
    assert!(hub.events().is_empty(), "visible although nothing was committed");
    assert!(crashes(&Mode::ExactlyOnce.walgate(&source, &hub).failpoint("kafka.after-commit")));
    let first = hub.events();
    assert!(!first.is_empty());
    walgate.run_until_caught_up();
    workload.assert_exact(&hub.events(), &source, 0);
}
