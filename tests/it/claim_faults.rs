//! Claim stores that refuse, and claim stores that fail while a pipeline runs (CASES D6; issue 5).
//!
//! In: a real S3 server of the test's own, told what to answer. Out: what `check` says, how the pipeline waits or stops, what is
//! on the hub and in the store afterwards. `claims.rs` has the line that is cut, the slow one, and the server that is away.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;

use s3s::S3ErrorCode;

use crate::claims::{Store, THRESHOLD, is_claimed, is_object};
use crate::support::servers::free_port;
use crate::support::{Hub, PATIENCE, S3, Source, Walgate, http, wait_until};

const MEDIA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn large_rows(source: &Source, from: u32, to: u32) {
    source.exec(&format!("INSERT INTO t SELECT i, repeat('x', 9000) FROM generate_series({from}, {to}) i"));
}

#[test]
fn check_names_what_the_store_refuses() {
    let source = Source::new("claim_check_refused");
    source.exec(MEDIA);
    let hub = Hub::file();
    let s3 = S3::start();
    let check = |section: &str, words: &[&str]| {
        let output = Walgate::new(&source, &hub).section(section).command(&["check"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    };
    let section = s3.section(THRESHOLD);
    // The server would make the bucket's folder; it answers as others do.
    s3.refuse("PutObject", 0, S3ErrorCode::NoSuchBucket);
    check(
        &section.replace("s3://claims/", "s3://other/"),
        &["claim_check.store", "bucket other", "NoSuchBucket", "make the bucket"],
    );
    s3.allow();
    for operation in ["PutObject", "GetObject", "DeleteObject"] {
        s3.refuse(operation, 0, S3ErrorCode::AccessDenied);
        check(&section, &["claim_check.store", "AccessDenied", &format!("s3:{operation}")]);
        s3.allow();
    }
    let left: Vec<_> = s3.objects();
    let left = left.iter().filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("walgate-check"))
    });
    assert_eq!(left.count(), 1, "what may not be removed stays, and nothing else");
    s3.refuse("PutObject", 0, S3ErrorCode::SlowDown);
    check(&section, &["SlowDown", "claim_check.endpoint"]);

    // Something that is no S3 server.
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket
                .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\nhere");
        }
    });
    check(&S3::section_at(port, THRESHOLD), &["claim_check.endpoint", "404"]);
    check(&S3::section_at(free_port(), THRESHOLD), &["claim_check.endpoint"]);
}

#[test]
fn case_d6_a_store_that_begins_to_fail_is_waited_for_and_nothing_is_lost() {
    let source = Source::new("claim_fails");
    source.exec(MEDIA);
    let hub = Hub::kafka(&source);
    let s3 = S3::start();
    let mut walgate = Walgate::new(&source, &hub).section(&s3.section(THRESHOLD));
    let admin = walgate.admin_port();
    let running = walgate.run();
    large_rows(&source, 1, 20);
    hub.wait_for("the first", |events| events.len() == 20);
    s3.refuse("PutObject", 5, S3ErrorCode::SlowDown);
    large_rows(&source, 21, 60);
    source.exec("INSERT INTO t VALUES (61, 'small')");
    wait_until("the failure in the metrics", || {
        http::metric(admin, "walgate_claim_failures_total").is_some_and(|count| count >= 20.0)
    });
    let status = walgate.command(&["status", "--json"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("the claim store fails") && status.contains("SlowDown"), "{status}");
    // Five objects passed, those of any rows: an event is there only if those of all rows before it are.
    let mut published: Vec<u32> =
        hub.events().iter().filter_map(|event| event.aggregate_id()?.parse().ok()).collect();
    published.sort_unstable();
    let expected: Vec<u32> = (1..).take(published.len()).collect();
    assert!(published == expected && (20..=25).contains(&published.len()), "{published:?} passed what waits");
    // A drain does not wait for the store for ever, and forgets nothing.
    running.stop();
    let mut running = walgate.run();
    wait_until("the next failure", || {
        http::metric(admin, "walgate_claim_failures_total").is_some_and(|count| count >= 1.0)
    });
    s3.allow();
    let events = hub.wait_for("all", |events| events.len() == 61);
    assert!(running.is_running());
    assert_eq!(events.iter().map(|event| event.id().to_owned()).collect::<BTreeSet<_>>().len(), 61);
    let store = Store::S3(s3);
    for event in &events {
        assert_eq!(is_claimed(event), event.aggregate_id() != Some("61"));
        assert_eq!(store.whole(event)["id"], event.json["id"]);
    }
}

#[test]
fn case_d6_an_upload_that_is_refused_in_the_middle_leaves_no_parts() {
    let source = Source::new("claim_parts");
    source.exec(MEDIA);
    source.exec("INSERT INTO t SELECT 1, repeat(md5('1'), 786432)");
    let hub = Hub::file();
    let s3 = S3::start();
    let mut walgate = Walgate::new(&source, &hub).section(&s3.section(262_144));
    let admin = walgate.admin_port();
    // By what only a person can mend.
    s3.refuse("UploadPart", 1, S3ErrorCode::AccessDenied);
    let mut running = walgate.run();
    // A server that is slow to read closes before it answers, and is asked again until its answer comes through.
    assert_eq!(running.wait(4 * PATIENCE).code(), Some(1));
    let log = running.stderr();
    for words in ["table public.t", "AccessDenied", "s3:AbortMultipartUpload"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert_eq!((s3.parts(), hub.events().len()), (0, 0));
    // By what passes: parts, then the end of the upload.
    for operation in ["UploadPart", "CompleteMultipartUpload"] {
        s3.allow();
        s3.refuse(operation, 0, S3ErrorCode::InternalError);
        let mut running = walgate.run();
        wait_until("failures", || {
            http::metric(admin, "walgate_claim_failures_total").is_some_and(|count| count >= 2.0)
        });
        wait_until("no parts between two attempts", || s3.parts() == 0);
        assert!(hub.events().is_empty());
        running.kill9();
    }
    s3.allow();
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(events.len(), 1);
    assert_eq!(Store::S3(s3).whole(&events[0])["data"]["v"].as_str().map(str::len), Some(24 << 20));
}

#[test]
fn case_d6_killed_between_put_and_publish_the_same_object_is_published_once() {
    let source = Source::new("claim_kill");
    source.exec(MEDIA);
    let hub = Hub::kafka(&source);
    let s3 = S3::start();
    let walgate = Walgate::new(&source, &hub).section(&s3.section(THRESHOLD));
    walgate.run_until_caught_up();
    // Of a transaction the first object is stored, and the others are not.
    s3.refuse("PutObject", 1, S3ErrorCode::SlowDown);
    large_rows(&source, 1, 3);
    let mut running = walgate.run();
    let objects = |s3: &S3| s3.objects().into_iter().filter(|path| is_object(path)).collect::<Vec<_>>();
    wait_until("an object", || objects(&s3).len() == 1);
    running.kill9();
    assert!(hub.events().is_empty(), "nothing without all of its objects");
    let stored = objects(&s3);
    s3.allow();
    walgate.run_until_caught_up();
    assert_eq!(objects(&s3).len(), 3);
    assert!(objects(&s3).contains(&stored[0]), "under the same key");
    let events = hub.events();
    let store = Store::S3(s3);
    let uris: Vec<&str> =
        events.iter().map(|event| event.json["claim"]["uri"].as_str().expect("a claim")).collect();
    assert_eq!(uris.len(), 3);
    assert_eq!(uris.iter().filter(|uri| store.path(uri) == stored[0]).count(), 1, "published once");
    events.iter().for_each(|event| drop(store.whole(event)));
}
