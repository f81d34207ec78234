//! `walgate claims gc` and `walgate claims check`: what the hub needs stays, what it does not need goes, what is not as
//! it was published is named.
//!
//! In: a hub and a claim store, on a directory and on a real S3 server, with objects that nobody needs, that are not
//! ours, that are to come. Out: what is left of them. DESIGN section 5, docs/decisions/claims-gc.md.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::claims::{Store, THRESHOLD, is_claimed, is_object, resolved};
use crate::crash::crashes;
use crate::support::{Event, Hub, Source, Walgate, kafka, servers};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What `walgate claims` prints with `--json`, and its exit code.
#[track_caller]
fn claims(walgate: &Walgate, arguments: &[&str]) -> (i32, Value) {
    let output = walgate.command(&[&["claims"], arguments, &["--json"]].concat());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {log}"));
    (output.status.code().expect("it has ended by itself"), report)
}

/// How many objects of each kind a run of `gc` has seen.
#[track_caller]
fn gc(walgate: &Walgate, arguments: &[&str]) -> [i64; 5] {
    let (code, report) = claims(walgate, &[&["gc"], arguments].concat());
    assert_eq!(code, 0, "{report}");
    ["removed", "referenced", "young", "after_checkpoint", "foreign"]
        .map(|kind| report[kind]["objects"].as_i64().unwrap_or_else(|| panic!("{kind}: {report}")))
}

fn objects(store: &Store) -> Vec<PathBuf> {
    store.objects().into_iter().filter(|path| is_object(path)).collect()
}

/// The file of an event's whole object.
fn object_of(store: &Store, event: &Event) -> PathBuf {
    store.path(event.json["claim"]["uri"].as_str().expect("a claim"))
}

fn make_older(path: &Path, by: Duration) {
    let file = File::options().write(true).open(path).expect("the store's folder");
    file.set_modified(SystemTime::now() - by).expect("a file's time can be set");
}

#[test]
fn only_what_no_event_needs_is_removed() {
    let source = Source::new("gc_kinds");
    for store in Store::of_each_kind() {
        let hub = Hub::file();
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, v text)");
        source.exec("INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(1, 3) i");
        let rule = "[[table]]\nname = \"public.t\"\nclaim_check.columns = true\n";
        let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD)).section(rule);
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(4, 5) i");
        walgate.run_until_caught_up();
        let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD));
        source.exec("INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(6, 7) i");
        walgate.run_until_caught_up();

        // Five columns and two events. Beside them, what a crash, an operator and the future may leave there.
        let (name, all) = (source.name(), store.objects());
        let model = objects(&store).remove(0);
        let folder = model.parent().expect("a folder");
        let add = |file: &str| {
            let path = folder.join(file);
            fs::copy(&model, &path).expect("the store's folder");
            path
        };
        let orphan = add(&format!("{name}%2F0000000000000010%2F00000002.json"));
        let orphan_of_column = add(&format!("{name}%2F0000000000000010%2F00000002.before.v"));
        let young = add(&format!("{name}%2F0000000000000010%2F00000004.json"));
        let to_come = add(&format!("{name}%2FFFFFFFFF00000010%2F00000002.json"));
        let copied = add(&format!("{name}%2FFFFFFFFF00000010%2Fr{}-00000001.json", 16_385));
        let foreign = add("notes.json");
        let count = all.len();
        for path in store.objects().iter().filter(|path| **path != young) {
            make_older(path, 10 * DAY);
        }
        let kinds = [2, 7, 1, 2, 1];
        let dry = gc(&walgate, &["--older-than", "7d", "--dry-run"]);
        assert_eq!(dry[..4], kinds[..4]);
        assert!(dry[4] >= 1, "the server's own notes may be listed, too");
        assert!(orphan.exists() && store.objects().len() >= count + 6, "nothing was to be removed");
        let (code, report) = claims(&walgate, &["check"]);
        assert_eq!(
            (code, &report["objects"], &report["orphans"]["objects"]),
            (0, &json!(7), &json!(3)),
            "{report}"
        );

        assert_eq!(gc(&walgate, &["--older-than", "7d"])[..4], kinds[..4]);
        assert!(!orphan.exists() && !orphan_of_column.exists());
        for kept in all.iter().chain([&young, &to_come, &copied, &foreign]) {
            assert!(kept.exists(), "{} is gone", kept.display());
        }
        assert_eq!(gc(&walgate, &["--older-than", "0s"])[..4], [1, 7, 0, 2]);
        assert!(!young.exists());
        assert_eq!(resolved(&walgate, 7).len(), 7, "everything can still be resolved");
        assert!(walgate.command(&["drop", "--yes"]).status.success());

        // Now nobody knows what is published.
        let output = walgate.command(&["claims", "gc", "--older-than", "0s"]);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("no checkpoint") && log.contains("remedy"), "{log}");
        assert!(to_come.exists());
    }
}

#[test]
fn an_object_before_its_event_is_never_removed() {
    let source = Source::new("gc_crash");
    let store = Store::directory();
    let hub = Hub::file();
    let walgate = || Walgate::new(&source, &hub).section(&store.section(THRESHOLD));
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
    source.exec("INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(1, 20) i");

    // In the copy. The next start copies anew, and what this one has stored is nobody's.
    assert!(crashes(&walgate().failpoint("claim.after-put:7")));
    let of_first_copy = objects(&store);
    assert!(!of_first_copy.is_empty() && hub.events().is_empty());
    let kinds = gc(&walgate(), &["--older-than", "1h"]);
    assert_eq!((kinds[0], kinds[1], kinds[4]), (0, 0, 0), "{kinds:?}");
    let kinds = gc(&walgate(), &["--older-than", "0s"]);
    assert_eq!(kinds[1..], [0, 0, i64::try_from(of_first_copy.len()).expect("a few"), 0]);
    assert_eq!(objects(&store), of_first_copy);
    walgate().run_until_caught_up();
    assert_eq!(hub.events().len(), 20);
    let all = i64::try_from(store.objects().len()).expect("a few");
    // What it had not written to its end is among them.
    assert!(all >= 20 + i64::try_from(of_first_copy.len()).expect("a few"));
    assert_eq!(gc(&walgate(), &["--older-than", "0s"]), [all - 20, 20, 0, 0, 0]);
    assert_eq!(store.objects().len(), 20);
    assert_eq!(resolved(&walgate(), 20).len(), 20);

    // In the stream: the same events come again.
    source.exec("INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(21, 40) i");
    assert!(crashes(&walgate().failpoint("claim.after-put:7")));
    let before = objects(&store);
    assert!(before.len() > 20 && hub.events().len() == 20, "{}", before.len());
    let kinds = gc(&walgate(), &["--older-than", "0s"]);
    assert_eq!(kinds[1..3], [20, 0]);
    assert_eq!(kinds[3], i64::try_from(before.len()).expect("a few") - 20);
    walgate().run_until_caught_up();
    assert_eq!(gc(&walgate(), &["--older-than", "0s"])[1..], [40, 0, 0, 0]);
    let (code, report) = claims(&walgate(), &["check"]);
    assert_eq!((code, &report["objects"]), (0, &json!(40)), "{report}");
}

#[test]
fn what_a_topics_retention_took_is_removed_and_what_is_left_stays() {
    let source = Source::new("gc_kafka");
    let hub = Hub::kafka(&source);
    let store = Store::of_each_kind().into_iter().next_back().expect("two kinds");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)");
    source.exec("INSERT INTO t SELECT i, repeat('x', 9000 * (i % 2)) FROM generate_series(1, 30) i");
    source.exec("INSERT INTO u SELECT i, repeat('x', 9000) FROM generate_series(1, 5) i");
    let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD));
    walgate.run_until_caught_up();
    assert_eq!(gc(&walgate, &["--older-than", "0s"])[..4], [0, 20, 0, 0], "all topics are read");
    let topic = |table: &str| format!("{}.public.{table}", source.name());
    kafka::empty_topic(&servers::kafka_brokers(), &topic("t"));
    source.exec("INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(31, 33) i");
    walgate.run_until_caught_up();
    let named = ["--topic", &topic("t"), "--topic", &topic("u")];
    let (code, report) = claims(&walgate, &[&["check"], &named[..]].concat());
    assert_eq!(
        (code, &report["objects"], &report["orphans"]["objects"]),
        (0, &json!(8), &json!(15)),
        "{report}"
    );
    assert_eq!(gc(&walgate, &[&["--older-than", "1h"], &named[..]].concat())[..4], [0, 0, 23, 0]);
    assert_eq!(gc(&walgate, &[&["--older-than", "0s"], &named[..]].concat())[..4], [15, 8, 0, 0]);
    assert_eq!(objects(&store).len(), 8);
    let events = hub.events();
    assert_eq!(events.iter().filter(|event| is_claimed(event)).count(), 8);
    for event in events.iter().filter(|event| is_claimed(event)) {
        assert!(object_of(&store, event).exists(), "{}", event.raw);
    }
    let output = walgate.command(&["claims", "gc", "--older-than", "0s", "--topic", "elsewhere"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(objects(&store).len(), 8);
}

#[test]
fn check_names_what_is_missing_or_altered() {
    let source = Source::new("claims_check");
    for store in Store::of_each_kind() {
        let hub = Hub::file();
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text)");
        let rule = "[[table]]\nname = \"public.t\"\nclaim_check.columns = true\n";
        let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD)).section(rule);
        // A column by itself; and one inside of an event that is large without it.
        source.exec("INSERT INTO t VALUES (1, repeat('a', 9000), 'b', 'c')");
        source.exec("INSERT INTO t VALUES (2, repeat('a', 9000), repeat('b', 4000), repeat('c', 4000))");
        walgate.run_until_caught_up();
        let (code, report) = claims(&walgate, &["check"]);
        assert_eq!((code, &report["good"], &report["objects"]), (0, &json!(true), &json!(3)), "{report}");
        assert_eq!(report["missing"], json!([]));

        let events = hub.events();
        let [alone, whole] = events.as_slice() else { panic!("{events:#?}") };
        let uri = alone.json["data"]["a"]["$claim"]["uri"].as_str().expect("a claim");
        let mut bytes = fs::read(store.path(uri)).expect("an object");
        bytes[17] = b'z';
        fs::write(store.path(uri), &bytes).expect("the store's folder");
        let event: Value =
            serde_json::from_slice(&fs::read(object_of(&store, whole)).expect("an object")).expect("JSON");
        let inner = event["data"]["a"]["$claim"]["uri"].as_str().expect("a claim");
        fs::remove_file(store.path(inner)).expect("the store's folder");
        let (code, report) = claims(&walgate, &["check"]);
        assert_eq!((code, &report["good"], &report["objects"]), (1, &json!(false), &json!(1)), "{report}");
        assert_eq!(report["missing"], json!([{"event": whole.id(), "uri": inner}]));
        assert_eq!(report["altered"][0]["uri"], uri);
        assert_eq!(report["altered"][0]["event"], alone.id());
        assert!(report["altered"][0]["found"].as_str().is_some_and(|found| found.contains("9000 bytes")));
        // What an event needs is no gc's, in whatever state.
        assert_eq!(gc(&walgate, &["--older-than", "0s"])[..4], [0, 2, 0, 0]);

        let output = walgate.command(&["claims", "check"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("1 missing") && text.contains("1 altered") && text.contains("remedy"),
            "{text}"
        );
        assert!(walgate.command(&["drop", "--yes"]).status.success());
    }
}

#[test]
fn events_of_other_forms_need_their_objects_too() {
    let source = Source::new("claims_forms");
    for (format, referred) in [("cloudevents", 4), ("debezium", 3)] {
        let (hub, store) = (Hub::file(), Store::directory());
        source.exec("DROP TABLE IF EXISTS t, u; CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text); CREATE TABLE u (id int PRIMARY KEY, v text)");
        let rule =
            "[[table]]\nname = \"public.*\"\n[[table]]\nname = \"public.t\"\nclaim_check.columns = true\n";
        let walgate = Walgate::new(&source, &hub)
            .hub(&format!("format = {format:?}"))
            .section(&store.section(THRESHOLD))
            .section(rule);
        source.exec("INSERT INTO u VALUES (1, repeat('v', 9000)); INSERT INTO t VALUES (1, repeat('a', 9000), 'b', 'c')");
        // As a whole, with a column in it; in Debezium's form a column only.
        source.exec("INSERT INTO t VALUES (2, repeat('a', 9000), repeat('b', 2100), repeat('c', 2100))");
        walgate.run_until_caught_up();
        let (code, report) = claims(&walgate, &["check"]);
        let count = report["objects"].as_i64().expect("a count");
        assert_eq!(
            (code, &report["missing"], &report["orphans"]["objects"]),
            (0, &json!([]), &json!(0)),
            "{report}"
        );
        assert_eq!(usize::try_from(count).ok(), Some(store.objects().len()), "{format}");
        assert!(count >= referred, "{format}: {report}");
        assert_eq!(gc(&walgate, &["--older-than", "0s"]), [0, count, 0, 0, 0], "{format}");

        let altered = store.objects().remove(0);
        fs::write(&altered, "nothing").expect("the store's folder");
        let (code, report) = claims(&walgate, &["check"]);
        assert_eq!((code, report["altered"].as_array().map(Vec::len)), (1, Some(1)), "{format}: {report}");
        fs::remove_file(&altered).expect("the store's folder");
        let (code, report) = claims(&walgate, &["check"]);
        assert_eq!((code, report["missing"].as_array().map(Vec::len)), (1, Some(1)), "{format}: {report}");
        assert!(walgate.command(&["drop", "--yes"]).status.success());
    }
}

#[test]
fn without_a_claim_store_the_usage_is_wrong() {
    let source = Source::new("claims_none");
    let walgate = Walgate::new(&source, &Hub::file());
    for arguments in [&["claims", "check"][..], &["claims", "gc", "--older-than", "7d"], &["claims", "gc"]] {
        let output = walgate.command(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
