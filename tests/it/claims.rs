//! Events that are too large for the hub: stored before they are published, whole, once, and found again.
//!
//! In: large rows on a source. Out: envelopes on the hub and objects in the store, on a directory and on a real S3
//! server that the test starts, with faults. DESIGN section 5 is the contract, CASES O3 to O5 and D6 the cases.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::crash::crashes;
use crate::support::servers::{folder, free_port, kafka_brokers};
use crate::support::{Event, Hub, PATIENCE, S3, Source, Walgate, http, kafka, s3, wait_until};

/// Small enough for quick tests.
pub const THRESHOLD: usize = 4096;

/// A claim store of a test's own.
pub enum Store {
    Directory(tempfile::TempDir),
    S3(S3),
}

impl Store {
    pub fn directory() -> Self {
        Store::Directory(folder("claims"))
    }

    pub fn of_each_kind() -> [Self; 2] {
        [Self::directory(), Store::S3(S3::start())]
    }

    pub fn section(&self, threshold_bytes: usize) -> String {
        match self {
            Store::Directory(folder) => format!(
                "[claim_check]\nstore = \"file://{}\"\nthreshold_bytes = {threshold_bytes}\n",
                folder.path().display()
            ),
            Store::S3(s3) => s3.section(threshold_bytes),
        }
    }

    pub fn path(&self, uri: &str) -> PathBuf {
        match self {
            Store::Directory(_) => {
                let path = uri.strip_prefix("file://").unwrap_or_else(|| panic!("no file: {uri}"));
                percent_encoding::percent_decode_str(path).decode_utf8().expect("UTF-8").into_owned().into()
            }
            Store::S3(s3) => s3.path(uri),
        }
    }

    pub fn objects(&self) -> Vec<PathBuf> {
        match self {
            Store::Directory(folder) => s3::files(folder.path()),
            Store::S3(s3) => s3.objects(),
        }
    }

    /// What a reference names, after its size and its hash were compared.
    #[track_caller]
    fn fetch(&self, reference: &Value) -> Vec<u8> {
        let text = |field| reference[field].as_str().unwrap_or_else(|| panic!("no {field}: {reference}"));
        let path = self.path(text("uri"));
        let body = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let sha256: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((json!(body.len()), sha256.as_str()), (reference["bytes"].clone(), text("sha256")));
        body
    }

    /// The event behind a published one.
    #[track_caller]
    pub fn whole(&self, event: &Event) -> Value {
        match &event.json["claim"] {
            Value::Null => event.json.clone(),
            claim => {
                assert_eq!(claim["content_type"], "application/json");
                assert_eq!((&event.json["data"], &event.json["before"]), (&json!(null), &json!(null)));
                serde_json::from_slice(&self.fetch(claim)).expect("an event")
            }
        }
    }
}

pub fn is_claimed(event: &Event) -> bool {
    !event.json["claim"].is_null()
}

/// What `tail --resolve` prints, event by event.
#[track_caller]
pub fn resolved(walgate: &Walgate, count: usize) -> Vec<Value> {
    let output =
        walgate.command(&["tail", "--from-beginning", "--resolve", "--json", "--count", &count.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn case_o3_what_is_over_the_threshold_is_stored_whole_before_it_is_published() {
    let source = Source::new("claim_threshold");
    for store in Store::of_each_kind() {
        let hub = Hub::file();
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, v text)");
        let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD));
        walgate.run_until_caught_up();
        // What an event has besides its value.
        source.exec("INSERT INTO t VALUES (1, '')");
        walgate.run_until_caught_up();
        let frame = hub.events()[0].raw.len();
        for (id, length) in [(2, THRESHOLD - frame - 1), (3, THRESHOLD - frame), (4, THRESHOLD - frame + 1)] {
            source.exec(&format!("INSERT INTO t VALUES ({id}, repeat('x', {length}))"));
        }
        source.exec("INSERT INTO t VALUES (5, repeat('ä\"', 50000))");
        walgate.run_until_caught_up();

        let mut events = hub.events();
        events.sort_by_key(Event::place);
        let sizes: Vec<usize> = events.iter().map(|event| event.raw.len()).collect();
        assert_eq!(sizes[1..3], [THRESHOLD - 1, THRESHOLD], "the test's own sums");
        assert_eq!(events.iter().map(is_claimed).collect::<Vec<_>>(), [false, false, false, true, true]);
        for event in &events {
            let whole = store.whole(event);
            assert_eq!(whole["id"], event.json["id"]);
            assert_eq!(whole["aggregate_id"], event.json["aggregate_id"]);
            assert_eq!(whole["claim"], json!(null));
            let value = source.value(&format!("SELECT v FROM t WHERE id = {}", whole["data"]["id"]));
            assert_eq!(whole["data"]["v"], value);
        }
        assert_eq!(store.objects().iter().filter(|path| is_object(path)).count(), 2);
        let resolved = resolved(&walgate, events.len());
        assert_eq!(resolved, events.iter().map(|event| store.whole(event)).collect::<Vec<_>>());
        let output = walgate.command(&["drop", "--yes"]);
        assert!(output.status.success());
    }
}

/// Of the server's own notes there are files as well.
pub fn is_object(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
        && !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

#[test]
fn a_40_mb_row_is_claimed_by_the_copy_and_by_the_stream() {
    let source = Source::new("claim_40mb");
    for store in Store::of_each_kind() {
        let hub = Hub::file();
        source.exec("DROP TABLE IF EXISTS media; CREATE TABLE media (id int PRIMARY KEY, photo bytea)");
        source.exec("ALTER TABLE media ALTER photo SET STORAGE EXTERNAL");
        // Every byte once in a while, and no way to compress it.
        source.exec(
            "CREATE OR REPLACE FUNCTION photo(n int) RETURNS bytea LANGUAGE sql AS \
             $$ SELECT decode(string_agg(md5(i::text), ''), 'hex') FROM generate_series(1, n) i $$",
        );
        source.exec("INSERT INTO media SELECT 1, photo(65536)");
        source.exec(
            "UPDATE media SET photo = (SELECT string_agg(photo, '') FROM media, generate_series(1, 40))",
        );
        let walgate = Walgate::new(&source, &hub).section(&store.section(262_144));
        walgate.run_until_caught_up();
        source.exec("INSERT INTO media SELECT 2, photo FROM media");
        walgate.run_until_caught_up();

        let events = hub.events();
        assert_eq!(events.iter().map(Event::op).collect::<Vec<_>>(), ["read", "insert"]);
        for event in &events {
            assert!(event.raw.len() < 2000, "the envelope is small: {}", event.raw.len());
            let base64 = store.whole(event)["data"]["photo"].as_str().expect("base64").to_owned();
            let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64);
            let bytes = bytes.expect("base64");
            assert_eq!(bytes.len(), 40 << 20);
            let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(sha256, source.value("SELECT encode(sha256(photo), 'hex') FROM media WHERE id = 1"));
        }
        assert_eq!(resolved(&walgate, 2).len(), 2);
        assert!(walgate.command(&["drop", "--yes"]).status.success());
    }
}

#[test]
fn case_o4_every_event_has_its_own_object_and_a_replay_stores_the_same() {
    let source = Source::new("claim_keys");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t REPLICA IDENTITY FULL");
    source.exec("INSERT INTO t SELECT i, repeat(i::text, 9000) FROM generate_series(1, 20) i");
    let store = Store::directory();
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD));
    walgate.run_until_caught_up();
    // One statement with many large rows, a key change, and a message.
    source.exec("INSERT INTO t SELECT i, repeat(i::text, 9000) FROM generate_series(21, 60) i");
    source.exec("UPDATE t SET id = -id WHERE id <= 10");
    source.exec("DELETE FROM t WHERE id > 50");
    source.exec(
        "SELECT pg_logical_emit_message(true, 'walgate.outbox', json_build_object('aggregate_type', 'A', \
         'aggregate_id', '1', 'type', 'T', 'payload', json_build_object('long', repeat('m', 9000)))::text)",
    );
    // Dies between the objects and the events, again and again; the objects that are there are not touched by others.
    let mut before = Vec::new();
    for pass in ["claim.after-put", "claim.after-put:7", "file.after-append"] {
        assert!(
            crashes(&Walgate::new(&source, &hub).section(&store.section(THRESHOLD)).failpoint(pass)),
            "{pass}"
        );
        for path in before {
            assert!(store.objects().contains(&path), "{} is gone", path.display());
        }
        before = store.objects();
        before.retain(|path| is_object(path));
        let references = hub.events().into_iter().filter(is_claimed);
        references.for_each(|event| drop(store.whole(&event)));
    }
    walgate.run_until_caught_up();

    let events = hub.events();
    let count = |op: &str| events.iter().filter(|event| event.op() == op).count();
    assert_eq!([count("read"), count("insert"), count("delete"), count("message")], [20, 50, 20, 1]);
    assert!(events.iter().all(is_claimed));
    let uris: BTreeSet<&str> =
        events.iter().map(|event| event.json["claim"]["uri"].as_str().unwrap()).collect();
    assert_eq!(uris.len(), events.len(), "no object is of two events");
    let objects: Vec<PathBuf> = store.objects().into_iter().filter(|path| is_object(path)).collect();
    assert_eq!(objects.len(), events.len(), "a replay stores under the same keys");
    for event in &events {
        let whole = store.whole(event);
        for field in ["id", "aggregate_id", "op", "unchanged", "moved_from", "moved_to", "source"] {
            assert_eq!(whole[field], event.json[field], "{field} of {}", event.raw);
        }
    }
}

#[test]
fn case_d6_a_crash_between_put_and_publish_doubles_nothing_on_kafka() {
    let source = Source::new("claim_crash");
    let hub = Hub::kafka(&source);
    let s3 = S3::start();
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let walgate = || Walgate::new(&source, &hub).section(&s3.section(THRESHOLD));
    walgate().run_until_caught_up();
    source.exec("INSERT INTO t SELECT i, repeat('x', 5000 * (i % 3)) FROM generate_series(1, 300) i");
    for pass in ["claim.after-put", "claim.after-put:50", "kafka.before-commit"] {
        assert!(crashes(&walgate().failpoint(pass)), "{pass}");
    }
    walgate().run_until_caught_up();
    let events = hub.events();
    assert_eq!(events.len(), 300);
    assert_eq!(events.iter().map(|event| event.id().to_owned()).collect::<BTreeSet<_>>().len(), 300);
    assert_eq!(events.iter().filter(|event| is_claimed(event)).count(), 200);
    let store = Store::S3(s3);
    for event in &events {
        let value = store.whole(event)["data"]["v"].as_str().map(str::len);
        let id: usize = event.aggregate_id().expect("a key").parse().expect("a number");
        assert_eq!(value, Some(5000 * (id % 3)));
    }
}

#[test]
fn case_d6_a_store_that_is_away_is_waited_for_and_told_of() {
    let source = Source::new("claim_down");
    let hub = Hub::kafka(&source);
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let port = free_port();
    let mut walgate = Walgate::new(&source, &hub).section(&S3::section_at(port, THRESHOLD));
    let admin = walgate.admin_port();
    walgate.run_until_caught_up();
    let mut running = walgate.run();
    source.exec("INSERT INTO t VALUES (1, 'small'); INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series(2, 40) i");
    wait_until("the failure in the metrics", || {
        http::metric(admin, "walgate_claim_failures_total").is_some_and(|count| count >= 3.0)
    });
    let status = walgate.command(&["status", "--json"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("the claim store fails") && status.contains("claim_check.endpoint"), "{status}");
    assert!(hub.events().iter().all(|event| event.aggregate_id() == Some("1")), "nothing without its object");
    assert!(running.is_running());
    let s3 = S3::start_at(port);
    let events = hub.wait_for("all events", |events| events.len() == 40);
    assert!(!running.stderr().contains("Backoff"), "the attempt goes on: {}", running.stderr());
    running.stop();
    let store = Store::S3(s3);
    assert_eq!(events.iter().filter(|event| store.whole(event)["data"]["v"] != "small").count(), 39);
}

#[test]
fn case_d6_an_upload_that_is_cut_is_begun_anew_and_its_parts_are_removed() {
    let source = Source::new("claim_cut");
    let hub = Hub::file();
    let s3 = S3::start();
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let walgate = Walgate::new(&source, &hub).section(&s3.section(262_144));
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t SELECT i, repeat(md5(i::text), 786432) FROM generate_series(1, 2) i");
    // In the second or third part of one of them.
    s3.cut_after(12 << 20);
    walgate.run_until_caught_up();
    assert_eq!(s3.cuts(), 1);
    assert_eq!(s3.parts(), 0, "parts were left behind");
    let events = hub.events();
    let store = Store::S3(s3);
    for event in &events {
        assert_eq!(store.whole(event)["data"]["v"].as_str().map(str::len), Some(24 << 20));
    }
    assert_eq!(events.len(), 2);
}

#[test]
fn case_d6_a_slow_store_holds_up_but_loses_nothing() {
    let source = Source::new("claim_slow");
    let hub = Hub::file();
    let s3 = S3::start();
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let walgate = Walgate::new(&source, &hub).section(&s3.section(THRESHOLD));
    walgate.run_until_caught_up();
    s3.delay(Duration::from_millis(50));
    source.exec("INSERT INTO t SELECT i, CASE WHEN i % 10 = 0 THEN repeat('x', 9000) ELSE 's' END FROM generate_series(1, 500) i");
    walgate.run_until_caught_up();
    let events = hub.events();
    let ids: Vec<usize> = events.iter().map(|event| event.aggregate_id().unwrap().parse().unwrap()).collect();
    assert_eq!(ids, (1..=500).collect::<Vec<_>>(), "in the order of the source");
    let store = Store::S3(s3);
    assert!(
        events.iter().filter(|event| is_claimed(event)).all(|event| store.whole(event)["claim"].is_null())
    );
}

#[test]
fn case_o5_an_object_that_is_missing_or_altered_is_named() {
    let source = Source::new("claim_altered");
    for store in Store::of_each_kind() {
        let hub = Hub::file();
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, v text)");
        source.exec("INSERT INTO t VALUES (1, repeat('x', 9000))");
        let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD));
        walgate.run_until_caught_up();
        let event = hub.events().remove(0);
        let uri = event.json["claim"]["uri"].as_str().expect("a claim").to_owned();
        let path = store.path(&uri);
        let whole = std::fs::read(&path).expect("an object");
        let tail = || walgate.command(&["tail", "--from-beginning", "--resolve", "--count", "1"]);
        assert!(tail().status.success());

        let mut altered = whole.clone();
        let place = altered.iter().position(|&byte| byte == b'x').expect("the value");
        altered[place] = b'y';
        std::fs::write(&path, &altered).expect("the store's folder");
        let output = tail();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(&uri) && log.contains("was altered") && log.contains(event.id()), "{log}");

        std::fs::remove_file(&path).expect("the store's folder");
        let output = tail();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(&uri) && log.contains("is missing"), "{log}");
        assert!(walgate.command(&["drop", "--yes"]).status.success());
    }
}

#[test]
fn large_columns_are_stored_one_by_one_in_their_own_form() {
    let source = Source::new("claim_columns");
    for store in Store::of_each_kind() {
        let hub = Hub::file();
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text, photo bytea, doc jsonb, note text, json text, tags text[])");
        source.exec("ALTER TABLE t REPLICA IDENTITY FULL");
        let rule = "[[table]]\nname = \"public.t\"\nclaim_check.columns = true\n";
        let walgate = Walgate::new(&source, &hub).section(&store.section(THRESHOLD)).section(rule);
        walgate.run_until_caught_up();
        source.exec(
            "INSERT INTO t VALUES (1, 'small', decode(repeat('00ff', 4000), 'hex'), \
             jsonb_build_object('k', repeat('v', 9000)), repeat('\u{e9}\"', 5000), NULL, array_fill('tag'::text, ARRAY[3000]))",
        );
        source.exec("UPDATE t SET name = 'other' WHERE id = 1");
        // Many columns that are not large by themselves.
        source.exec("INSERT INTO t VALUES (2, repeat('a', 4000), decode(repeat('00', 4000), 'hex'), NULL, repeat('n', 4000), repeat('j', 9000), '{}')");
        walgate.run_until_caught_up();

        let mut events = hub.events();
        events.sort_by_key(Event::place);
        let [insert, update, rest] = events.as_slice() else { panic!("{events:#?}") };
        assert!(!is_claimed(insert));
        assert_eq!(insert.json["data"]["name"], "small");
        let claim = |event: &Event, row: &str, column: &str| event.json[row][column]["$claim"].clone();
        let photo = claim(insert, "data", "photo");
        assert_eq!(photo["content_type"], "application/octet-stream");
        assert_eq!(store.fetch(&photo), [0x00, 0xff].repeat(4000));
        let note = claim(insert, "data", "note");
        assert_eq!(note["content_type"], "text/plain; charset=utf-8");
        assert_eq!(store.fetch(&note), "é\"".repeat(5000).as_bytes());
        let doc = claim(insert, "data", "doc");
        assert_eq!(doc["content_type"], "application/json");
        assert_eq!(serde_json::from_slice::<Value>(&store.fetch(&doc)).expect("JSON")["k"], "v".repeat(9000));
        assert_eq!(claim(insert, "data", "tags")["content_type"], "application/json");
        // Under FULL both rows have them, and neither takes the other's place.
        assert_ne!(claim(update, "data", "photo")["uri"], claim(update, "before", "photo")["uri"]);
        assert_eq!(store.fetch(&claim(update, "before", "photo")), [0x00, 0xff].repeat(4000));
        // What is left is too large: it travels as a whole, with its own large column beside it.
        assert!(is_claimed(rest));
        let whole = store.whole(rest);
        assert_eq!(store.fetch(&whole["data"]["json"]["$claim"]), "j".repeat(9000).as_bytes());

        let resolved = resolved(&walgate, 3);
        let base64 =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [0x00, 0xff].repeat(4000));
        for event in &resolved {
            assert_eq!(event["claim"], json!(null));
        }
        assert_eq!(resolved[0]["data"]["photo"], base64);
        assert_eq!(resolved[0]["data"]["note"], "é\"".repeat(5000));
        assert_eq!(resolved[0]["data"]["tags"], json!(vec!["tag"; 3000]));
        assert_eq!(resolved[1]["before"]["photo"], base64);
        assert_eq!(resolved[2]["data"]["json"], "j".repeat(9000));
        assert!(walgate.command(&["drop", "--yes"]).status.success());
    }
}

#[test]
fn kafka_tells_of_a_claim_in_a_header_whatever_the_promise() {
    for delivery in ["exactly-once", "at-least-once"] {
        let source = Source::new("claim_header");
        let hub = Hub::kafka(&source);
        let store = Store::directory();
        source.exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
        source.exec("INSERT INTO t VALUES (1, 'small'), (2, repeat('x', 9000))");
        let walgate = Walgate::new(&source, &hub)
            .hub(&format!("delivery = {delivery:?}"))
            .section(&store.section(THRESHOLD));
        walgate.run_until_caught_up();
        let events = hub.wait_for("both events", |events| events.len() == 2);
        for event in &events {
            let header = event.headers.get("claim-check").map(String::as_str);
            assert_eq!(header, event.json["claim"]["uri"].as_str(), "{delivery}: {}", event.raw);
            assert_eq!(store.whole(event)["data"]["id"].to_string(), event.aggregate_id().expect("a key"));
        }
        assert_eq!(events.iter().filter(|event| is_claimed(event)).count(), 1);
    }
}

#[test]
fn a_tombstone_has_no_claim_of_its_own() {
    let source = Source::new("claim_tombstone");
    let hub = Hub::kafka(&source);
    let store = Store::directory();
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t REPLICA IDENTITY FULL");
    let walgate = Walgate::new(&source, &hub).hub("tombstones = true").section(&store.section(THRESHOLD));
    walgate.run_until_caught_up();
    source.exec("INSERT INTO t VALUES (1, repeat('x', 9000))");
    source.exec("DELETE FROM t");
    walgate.run_until_caught_up();
    let records = kafka::read_committed(&kafka_brokers(), &hub.topics());
    let claims: Vec<bool> = records.iter().map(|one| one.headers.contains_key("claim-check")).collect();
    assert_eq!(claims, [true, true, false], "{records:#?}");
    assert_eq!(records[2].value, None);
    assert_eq!(store.objects().len(), 2);
}

#[test]
fn check_stores_reads_and_removes_a_probe() {
    let source = Source::new("claim_check");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let hub = Hub::file();
    let check = |section: &str| {
        let output = Walgate::new(&source, &hub).section(section).command(&["check"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for store in Store::of_each_kind() {
        let (code, text) = check(&store.section(THRESHOLD));
        assert_eq!(code, Some(0), "{text}");
        assert!(store.objects().iter().all(|path| !path.to_string_lossy().contains("walgate-check")));
    }
    let s3 = S3::start();
    let (code, text) = check(&s3.section(THRESHOLD).replace("s3cr3t", "guessed"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("claim_check.store") && text.contains("correct access_key_id"), "{text}");
    let (code, text) = check(&S3::section_at(free_port(), THRESHOLD));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("claim_check.endpoint"), "{text}");
    let (code, text) = check("[claim_check]\nstore = \"file:///proc/claims\"");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("/proc/claims"), "{text}");
}

#[test]
fn check_refuses_a_threshold_above_what_the_topic_takes() {
    let source = Source::new("claim_limit");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let hub = Hub::kafka(&source);
    let store = Store::directory();
    let check = |threshold: usize| {
        let walgate = Walgate::new(&source, &hub)
            .hub("topic_config = { \"max.message.bytes\" = 100000 }")
            .section(&store.section(threshold));
        let output = walgate.command(&["check"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = check(100_000);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("claim_check.threshold_bytes") && text.contains("100000"), "{text}");
    assert_eq!(check(90_000).0, Some(0));
}

#[test]
fn case_d6_a_store_that_refuses_stops_the_pipeline_with_the_remedy() {
    let source = Source::new("claim_refused");
    let hub = Hub::file();
    let s3 = S3::start();
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, repeat('x', 9000))");
    let section = s3.section(THRESHOLD).replace("s3cr3t", "guessed");
    let mut running = Walgate::new(&source, &hub).section(&section).run();
    let status = running.wait(PATIENCE);
    let log = running.stderr();
    assert_eq!(status.code(), Some(1), "{log}");
    for words in ["public.t", "bucket claims", "%2F", "SignatureDoesNotMatch", "correct access_key_id"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(hub.events().is_empty());
    Walgate::new(&source, &hub).section(&s3.section(THRESHOLD)).run_until_caught_up();
    assert_eq!(hub.events().len(), 1);
}

#[test]
fn a_large_outbox_row_travels_as_a_whole_and_keeps_its_headers() {
    let source = Source::new("claim_outbox");
    let hub = Hub::file();
    let store = Store::directory();
    source.exec("CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text, aggregate_id text, type text, payload jsonb, headers jsonb)");
    let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, type, payload, headers)";
    let values = |id: u32, length: usize| {
        format!(
            "{insert} VALUES ('Order', '{id}', 'Placed', jsonb_build_object('long', repeat('x', {length})), '{{\"tenant\": \"t\"}}')"
        )
    };
    source.exec(&values(1, 9000));
    let walgate = Walgate::new(&source, &hub)
        .section(&store.section(THRESHOLD))
        .section("[[table]]\nname = \"public.outbox\"\nmode = \"outbox\"\n");
    walgate.run_until_caught_up();
    source.exec(&values(2, 9000));
    source.exec(&values(3, 10));
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(events.iter().map(is_claimed).collect::<Vec<_>>(), [true, true, false]);
    for event in &events {
        let whole = store.whole(event);
        let length = if event.aggregate_id() == Some("3") { 10 } else { 9000 };
        assert_eq!(whole["data"], json!({"long": "x".repeat(length)}));
        assert_eq!((&whole["outbox"], &whole["id"]), (&event.json["outbox"], &event.json["id"]));
        assert_eq!(event.json["outbox"]["headers"]["tenant"], "t");
    }
    assert_eq!(resolved(&walgate, 3), events.iter().map(|event| store.whole(event)).collect::<Vec<_>>());
}
