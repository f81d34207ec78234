//! Memory is bounded whatever comes: `limits.memory_bytes_max` is the ceiling of the process.
//!
//! In: rows of megabytes, copied, streamed and read by SQL. Out: the peak that the kernel has seen of the real binary, or a
//! refusal that names table, key and size. Invariant 6; issue 5.

use crate::claims::Store;
use crate::support::{Hub, PATIENCE, S3, Source, Walgate, wait_for};
use crate::transactions::peak_memory_kib;

/// The default of `limits.memory_bytes_max`.
const CEILING_KIB: u64 = 256 << 10;
/// Keeps a pipeline from reading by SQL, and makes it.
const BY_STREAM: (&str, &str) = ("the stream", "1000000000000");
const BY_SQL: (&str, &str) = ("SQL", "0");

/// Runs until caught up; the most memory that it had.
#[track_caller]
fn peak_of(walgate: &Walgate, what: &str) -> u64 {
    let mut running = walgate.start(&["run", "--until-caught-up"]);
    let mut peak_kib = 0;
    wait_for(what, 6 * PATIENCE, || {
        peak_kib = peak_kib.max(peak_memory_kib(running.id()).unwrap_or(0));
        (!running.is_running()).then_some(())
    });
    assert!(running.wait(PATIENCE).success(), "{}", running.stderr());
    assert!(peak_kib > 1024, "nothing was measured");
    eprintln!("{what}: {} MiB", peak_kib >> 10);
    peak_kib
}

/// A table for rows that nothing compresses.
fn source_of_media(name: &str) -> Source {
    let source = Source::new(name);
    source.exec("CREATE TABLE media (id int PRIMARY KEY, photo bytea, note text)");
    source.exec("ALTER TABLE media ALTER photo SET STORAGE EXTERNAL, ALTER note SET STORAGE EXTERNAL");
    source
}

#[test]
fn twenty_rows_of_30_mb_stay_below_the_ceiling() {
    let source = source_of_media("memory_rows");
    let hub = Hub::file();
    let s3 = S3::start();
    let insert = |from: u32| {
        source.exec(&format!(
            "INSERT INTO media SELECT i, decode(repeat(md5(i::text), 1966080), 'hex') FROM generate_series({from}, {from} + 19) i"
        ));
    };
    insert(1);
    let walgate = || Walgate::new(&source, &hub).section(&s3.section(262_144));
    let mut peaks = vec![peak_of(&walgate(), "20 rows of 30 MB by the copy")];
    for (nth, (reader, behind)) in [(1, BY_STREAM), (2, BY_SQL)] {
        insert(100 * nth);
        let walgate = walgate().env("WALGATE_BACKLOG", behind);
        peaks.push(peak_of(&walgate, &format!("20 rows of 30 MB by {reader}")));
    }
    assert_eq!(hub.events().len(), 60);
    assert!(peaks.iter().all(|peak| *peak < CEILING_KIB), "{peaks:?} KiB");
}

#[test]
fn a_row_of_90_mb_stays_below_the_ceiling() {
    let source = source_of_media("memory_row");
    let hub = Hub::file();
    let s3 = S3::start();
    let insert =
        |id: u32| source.exec(&format!("INSERT INTO media SELECT {id}, NULL, repeat(md5('{id}'), 2949120)"));
    insert(1);
    let walgate = || Walgate::new(&source, &hub).section(&s3.section(262_144));
    let mut peaks = vec![peak_of(&walgate(), "a row of 90 MB by the copy")];
    for (id, (reader, behind)) in [(2, BY_STREAM), (3, BY_SQL)] {
        insert(id);
        let walgate = walgate().env("WALGATE_BACKLOG", behind);
        peaks.push(peak_of(&walgate, &format!("a row of 90 MB by {reader}")));
    }
    let events = hub.events();
    assert!(events.iter().all(|event| event.json["claim"]["bytes"].as_u64() > Some(90 << 20)));
    assert_eq!(events.len(), 3);
    assert!(peaks.iter().all(|peak| *peak < CEILING_KIB), "{peaks:?} KiB");
}

#[test]
fn a_row_above_the_ceiling_is_refused_by_table_key_and_size() {
    let source = source_of_media("memory_refused");
    let hub = Hub::file();
    let s3 = S3::start();
    let walgate = || Walgate::new(&source, &hub).section(&s3.section(262_144));
    // 96 MiB leave room for a row of 16.
    let small = || walgate().section("[limits]\nmemory_bytes_max = 100663296\n");
    let refused = |walgate: &Walgate, id: u32| {
        let mut running = walgate.run();
        let mut peak_kib = 0;
        wait_for("the refusal", 2 * PATIENCE, || {
            peak_kib = peak_kib.max(peak_memory_kib(running.id()).unwrap_or(0));
            (!running.is_running()).then_some(())
        });
        let (status, log) = (running.wait(PATIENCE), running.stderr());
        assert_eq!(status.code(), Some(1), "{log}");
        let named = format!("table public.media, id = {id}: a row of 4194");
        assert!(
            log.contains(&named) && log.contains("set limits.memory_bytes_max to 1509"),
            "{named}: {log}"
        );
        assert!(!log.contains(&"x".repeat(100)), "a row's value is in the log");
        assert!(peak_kib < 96 << 10, "{peak_kib} KiB: it was not held");
    };
    let insert =
        |id: u32| source.exec(&format!("INSERT INTO media VALUES ({id}, NULL, repeat('x', 41943040))"));
    insert(1);
    refused(&small(), 1);
    assert!(hub.events().is_empty());
    walgate().run_until_caught_up();
    insert(2);
    source.exec("INSERT INTO media VALUES (3, NULL, 'small')");
    refused(&small().env("WALGATE_BACKLOG", BY_STREAM.1), 2);
    refused(&small().env("WALGATE_BACKLOG", BY_SQL.1), 2);
    assert_eq!(hub.events().len(), 1, "nothing is skipped");
    walgate().run_until_caught_up();
    let ids: Vec<_> = hub.events().iter().map(|event| event.aggregate_id().map(str::to_owned)).collect();
    assert_eq!(ids, ["1", "2", "3"].map(|id| Some(id.to_owned())));
}

#[test]
fn a_transaction_of_many_small_rows_takes_little() {
    let source = Source::new("memory_small");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let hub = Hub::file();
    let store = Store::directory();
    let walgate = || Walgate::new(&source, &hub).section(&store.section(262_144));
    walgate().run_until_caught_up();
    let mut peaks = Vec::new();
    for (from, (reader, behind)) in [(1, BY_STREAM), (1_000_000, BY_SQL)] {
        source.exec(&format!(
            "INSERT INTO t SELECT i, 'note ' || i FROM generate_series({from}, {from} + 499999) i"
        ));
        let walgate = walgate().env("WALGATE_BACKLOG", behind);
        peaks.push(peak_of(&walgate, &format!("500 000 rows by {reader}")));
    }
    assert!(peaks.iter().all(|peak| *peak < 128 << 10), "{peaks:?} KiB");
}
