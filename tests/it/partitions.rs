//! `partitions = "leaf"`: each leaf of a partitioned table is a table of its own, as events and as rows.
//!
//! In: a partitioned table whose rule says "leaf", and what becomes of its leaves. Out: events and tables of the leaves.
//! Always: no change comes as the root's, each comes once, and what is at the destination is what each leaf holds.

use std::process::Output;

use crate::check::{Checked, run_fails};
use crate::crash::crashes;
use crate::support::pick::{of_table, on_each_hub, on_file, ops, table_ops};
use crate::support::{Fold, Hub, Source, Walgate, fold, wait_until};

/// Three leaves: of its own layout, of a full identity, and below a partitioned partition.
const TABLES: &str = "CREATE TABLE m (id int, region text, n int, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE m_eu (note text, gone int, n int, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region));
    ALTER TABLE m_eu DROP gone; ALTER TABLE m ATTACH PARTITION m_eu FOR VALUES IN ('EU');
    CREATE TABLE m_us PARTITION OF m FOR VALUES IN ('US'); ALTER TABLE m_us REPLICA IDENTITY FULL;
    CREATE TABLE m_more PARTITION OF m DEFAULT PARTITION BY RANGE (id);
    CREATE TABLE m_low PARTITION OF m_more FOR VALUES FROM (0) TO (100);
    CREATE TABLE t (id int PRIMARY KEY, n int)";
const LEAVES: [&str; 3] = ["m_eu", "m_us", "m_low"];

fn leaf_rule(more: &str) -> String {
    format!("[[table]]\nname = \"public.*\"\npartitions = \"leaf\"\n{more}\n")
}

fn replicating(source: &Source, replica: &Source, hub: &Hub, more: &str) -> Walgate {
    Walgate::new(source, hub)
        .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", replica.url()))
        .section(&leaf_rule(&format!("mode = \"replicate\"\n{more}")))
}

/// Asserts that a leaf holds the same rows on both.
#[track_caller]
fn assert_same(source: &Source, replica: &Source, leaf: &str, condition: &str) {
    let rows = format!("SELECT id, region, n, note FROM ONLY {leaf}");
    let of_source = source.query(&format!("{rows} WHERE {condition} ORDER BY 1, 2"));
    assert_eq!(replica.query(&format!("{rows} ORDER BY 1, 2")), of_source, "{leaf}");
}

#[track_caller]
fn verify(walgate: &Walgate, more: &[&str]) -> (Option<i32>, serde_json::Value) {
    let Output { status, stdout, stderr } = walgate.command(&[&["verify", "--json"], more].concat());
    let report = serde_json::from_slice(&stdout);
    (status.code(), report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&stderr))))
}

fn members(source: &Source, publication: &str) -> String {
    source.value(&format!(
        "SELECT string_agg(r.prrelid::regclass::text, ' ' ORDER BY r.prrelid::regclass::text) FROM pg_publication_rel r \
         JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = '{}_{publication}'",
        source.name()
    ))
}

#[test]
fn case_f5_leaves_are_tables_of_their_own_as_events() {
    for (source, hub) in on_each_hub("leafev") {
        source.exec(TABLES);
        source
            .exec("INSERT INTO m VALUES (1, 'EU', 0), (2, 'US', 0), (3, 'XX', 0); INSERT INTO t VALUES (1)");
        let walgate = Walgate::new(&source, &hub).section(&leaf_rule(""));
        walgate.run_until_caught_up();
        assert_eq!(members(&source, "hub"), "m_eu m_low m_us t", "no root");
        source.exec("UPDATE m SET n = 1; INSERT INTO m VALUES (4, 'US', 0); DELETE FROM m WHERE id = 3");
        // From one leaf to another.
        source.exec("UPDATE m SET region = 'US' WHERE id = 1");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert!(events.iter().all(|event| event.table() != "public.m"));
        let topics: Vec<String> =
            ["m_eu", "m_low", "m_us", "t"].map(|leaf| format!("{}.public.{leaf}", source.name())).into();
        assert_eq!(hub.topics(), topics);
        assert_eq!(table_ops(&events, "public.m_eu"), ["read", "update", "delete"]);
        assert_eq!(
            ops(&of_table(&events, "public.m_us").into_iter().cloned().collect::<Vec<_>>(), r#"["1","US"]"#),
            ["insert"]
        );
        assert_eq!(table_ops(&events, "public.m_low"), ["read", "update", "delete"]);
        let update = events.iter().find(|event| event.op() == "update" && event.table() == "public.m_us");
        assert_eq!(update.expect("one").text("aggregate_type"), "m_us");
        for leaf in LEAVES {
            fold::assert_folded_equals(&events, &source, &format!("public.{leaf}"));
        }
        source.exec("BEGIN; TRUNCATE m; INSERT INTO m VALUES (5, 'EU', 0); COMMIT");
        walgate.run_until_caught_up();
        let events = hub.events();
        for leaf in LEAVES {
            assert!(table_ops(&events, &format!("public.{leaf}")).contains(&"truncate"), "{leaf}");
            fold::assert_folded_equals(&events, &source, &format!("public.{leaf}"));
        }
    }
}

#[test]
fn case_f5_leaves_are_tables_of_their_own_on_a_replica() {
    let (source, replica, hub) = (Source::new("leafrep"), Source::new("leafrep_r"), Hub::file());
    source.exec(TABLES);
    source.exec("INSERT INTO m SELECT i, (ARRAY['EU', 'US', 'XX'])[1 + i % 3], i, 'note ' || i FROM generate_series(0, 99) i");
    // One leaf is there already, as a leaf.
    replica.exec(
        "CREATE TABLE m (id int, region text, n int, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
         CREATE TABLE m_us PARTITION OF m FOR VALUES IN ('US')",
    );
    let walgate = replicating(&source, &replica, &hub, "where = \"n >= 10\"");
    walgate.run_until_caught_up();
    let same = || LEAVES.iter().for_each(|leaf| assert_same(&source, &replica, leaf, "n >= 10"));
    same();
    source.exec("UPDATE m SET n = 200 - n, note = NULL WHERE id % 4 = 0; DELETE FROM m WHERE id % 5 = 0");
    source.exec("UPDATE m SET region = 'US' WHERE id % 7 = 0; UPDATE m SET region = 'YY' WHERE region = 'EU' AND id % 2 = 0");
    source.exec("UPDATE m SET n = 0 WHERE id % 11 = 0; UPDATE m SET n = 50 WHERE id < 5");
    walgate.run_until_caught_up();
    same();
    let (code, report) = verify(&walgate, &[]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["tables"].as_array().map(Vec::len), Some(4), "{report:#}");
    replica.exec("UPDATE m_eu SET n = -1");
    let (code, report) = verify(&walgate, &["public.m"]);
    assert_eq!(
        (code, report["tables"].as_array().map(Vec::len)),
        (Some(1), Some(3)),
        "the root names its leaves: {report:#}"
    );
    assert!(walgate.command(&["resync", "public.m"]).status.success());
    walgate.run_until_caught_up();
    same();
    source.exec("TRUNCATE m; INSERT INTO m VALUES (1, 'EU', 99, 'x')");
    walgate.run_until_caught_up();
    same();
    let output = walgate.command(&["drop", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(source.query("SELECT FROM pg_publication").is_empty());
}

#[test]
fn leaves_come_and_go_while_it_runs() {
    let (source, replica, hub) = (Source::new("leafgo"), Source::new("leafgo_r"), Hub::file());
    source.exec(TABLES);
    source.exec("INSERT INTO m VALUES (1, 'EU', 0), (2, 'US', 0)");
    let walgate = replicating(&source, &replica, &hub, "");
    let running = walgate.run();
    running.wait_for_log("to=Streaming");
    source.exec("CREATE TABLE m_jp (LIKE m INCLUDING ALL); INSERT INTO m_jp VALUES (7, 'JP', 7)");
    source.exec("ALTER TABLE m ATTACH PARTITION m_jp FOR VALUES IN ('JP')");
    source.exec("CREATE TABLE m_high PARTITION OF m_more FOR VALUES FROM (100) TO (200); INSERT INTO m VALUES (150, 'ZZ', 1)");
    let rows = |table: &str| replica.value(&format!("SELECT count(*) FROM {table}"));
    let exists = |table: &str| replica.value(&format!("SELECT to_regclass('{table}') IS NOT NULL")) == "t";
    wait_until("the new leaves", || ["m_jp", "m_high"].iter().all(|leaf| exists(leaf) && rows(leaf) == "1"));
    source.exec("INSERT INTO m VALUES (8, 'JP', 8), (151, 'ZZ', 2); UPDATE m SET region = 'JP' WHERE id = 1");
    wait_until("their changes", || rows("m_jp") == "3" && rows("m_high") == "2" && rows("m_eu") == "0");
    // The rows of a leaf that is detached, and of one that is dropped, stay as they were.
    source.exec("BEGIN; INSERT INTO m VALUES (9, 'JP', 9); ALTER TABLE m DETACH PARTITION m_jp; COMMIT; DROP TABLE m_high");
    source.exec(
        "ALTER TABLE m_jp RENAME TO archived; CREATE SCHEMA other; ALTER TABLE archived SET SCHEMA other",
    );
    wait_until("the detached leaf to leave", || !members(&source, "r_r").contains("archived"));
    source.exec("INSERT INTO other.archived VALUES (10, 'JP', 10); INSERT INTO m VALUES (11, 'US', 11)");
    wait_until("what comes after", || rows("m_us") == "2");
    assert_eq!((rows("m_jp"), rows("m_high")), ("4".into(), "2".into()));
    running.stop();
    let (code, report) = verify(&walgate, &[]);
    assert_eq!(code, Some(0), "{report:#}");
}

#[test]
fn what_a_leaf_got_before_it_was_dropped_or_detached_is_delivered() {
    let (source, hub) = on_file("leafgone");
    source.exec(TABLES);
    let walgate =
        Walgate::new(&source, &hub).section("[[table]]\nname = \"public.m\"\npartitions = \"leaf\"");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO m VALUES (1, 'EU', 0), (2, 'US', 0)");
    source.exec("DROP TABLE m_eu; ALTER TABLE m DETACH PARTITION m_us; INSERT INTO m_us VALUES (3, 'US', 0)");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(table_ops(&events, "public.m_eu"), ["insert"]);
    assert_eq!(table_ops(&events, "public.m_us"), ["insert", "insert"], "until it leaves the publication");
    assert_eq!(members(&source, "hub"), "m_low");
    source.exec("INSERT INTO m_us VALUES (4, 'US', 0); INSERT INTO m VALUES (5, 'XX', 0)");
    walgate.run_until_caught_up();
    assert_eq!(table_ops(&hub.events(), "public.m_us"), ["insert", "insert"]);
    // Attached again it is a new generation: what it got meanwhile is in its copy.
    source
        .exec("ALTER TABLE m ATTACH PARTITION m_us FOR VALUES IN ('US'); INSERT INTO m VALUES (6, 'US', 0)");
    walgate.run_until_caught_up();
    fold::assert_folded_equals(&hub.events(), &source, "public.m_us");
    // With the partitioned partition above it.
    source.exec("INSERT INTO m VALUES (7, 'XX', 0); ALTER TABLE m DETACH PARTITION m_more");
    walgate.run_until_caught_up();
    assert_eq!(table_ops(&hub.events(), "public.m_low"), ["insert", "insert"]);
    assert_eq!(members(&source, "hub"), "m_us");
}

#[test]
fn a_rule_with_the_leafs_name_wins_over_its_roots() {
    let (source, hub) = on_file("leafown");
    source.exec(TABLES);
    // Without an identity its updates would fail on the source.
    source.exec("ALTER TABLE m_us REPLICA IDENTITY NOTHING");
    let walgate = Walgate::new(&source, &hub)
        .section("[[table]]\nname = \"public.m\"\npartitions = \"leaf\"\nexclude = [\"note\"]")
        .section("[[table]]\nname = \"public.m_eu\"\naggregate_type = \"European\"")
        .section("[[table]]\nname = \"public.m_low\"\nmode = \"off\"");
    walgate.run_until_caught_up();
    assert_eq!(
        (members(&source, "hub").as_str(), members(&source, "hub_inserts").as_str()),
        ("m_eu", "m_us")
    );
    source.exec("INSERT INTO m VALUES (1, 'EU', 0, 'x'), (2, 'US', 0, 'x'), (3, 'XX', 0, 'x')");
    source.exec("UPDATE m SET n = 1");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(table_ops(&events, "public.m_eu"), ["insert", "update"]);
    assert_eq!(table_ops(&events, "public.m_us"), ["insert"]);
    assert!(of_table(&events, "public.m_low").is_empty());
    let first = |table: &str| of_table(&events, table)[0].json.clone();
    assert_eq!(
        (&first("public.m_eu")["aggregate_type"], &first("public.m_eu")["data"]["note"]),
        (&"European".into(), &"x".into())
    );
    assert!(first("public.m_us")["data"].get("note").is_none());
}

#[test]
fn a_crash_between_leaves_loses_and_repeats_nothing() {
    let (source, replica, hub) = (Source::new("leafcrash"), Source::new("leafcrash_r"), Hub::file());
    source.exec(TABLES);
    source.exec("INSERT INTO m SELECT i, (ARRAY['EU', 'US', 'XX'])[1 + i % 3], i, 'note' FROM generate_series(0, 99) i");
    let both = || {
        Walgate::new(&source, &hub)
            .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", replica.url()))
            .section(&leaf_rule("mode = \"both\""))
    };
    let mut fired = 0;
    for (round, point) in
        ["snapshot.after-slot", "stream.in-transaction:40", "stream.in-transaction:90"].iter().enumerate()
    {
        fired += u32::from(crashes(&both().failpoint(point)));
        source.exec(&format!(
            "BEGIN; UPDATE m SET region = (ARRAY['EU', 'US', 'XX'])[1 + (id + {round}) % 3], n = n + 1 WHERE id < 100; DELETE FROM m WHERE id % 30 = {round};
             INSERT INTO m SELECT i, 'EU', 0, 'new' FROM generate_series({0}, {0} + 50) i; COMMIT",
            1000 * (round + 1)
        ));
        source.exec(&format!("CREATE TABLE m_new{round} PARTITION OF m FOR VALUES IN ('N{round}'); INSERT INTO m VALUES (500, 'N{round}', 0)"));
    }
    assert!(fired >= 2, "{fired}");
    both().run_until_caught_up();
    let events = hub.events();
    let folded = Fold::of(&events);
    for leaf in LEAVES.into_iter().chain(["m_new0", "m_new1", "m_new2"]) {
        folded.assert_equals(&source, &format!("public.{leaf}"));
        assert_same(&source, &replica, leaf, "true");
    }
}

#[test]
fn a_changed_mind_copies_under_the_other_names() {
    let (source, hub) = on_file("leafmind");
    source.exec(TABLES);
    source.exec("INSERT INTO m VALUES (1, 'EU', 0), (2, 'US', 0)");
    let by = |partitions: &str| {
        Walgate::new(&source, &hub)
            .section(&format!("[[table]]\nname = \"public.m\"\npartitions = {partitions:?}"))
    };
    by("root").run_until_caught_up();
    source.exec("INSERT INTO m VALUES (3, 'EU', 0)");
    by("leaf").run_until_caught_up();
    source.exec("INSERT INTO m VALUES (4, 'EU', 0)");
    by("leaf").run_until_caught_up();
    assert_eq!(table_ops(&hub.events(), "public.m_eu"), ["read", "read", "insert"]);
    source.exec("INSERT INTO m VALUES (5, 'EU', 0)");
    by("root").run_until_caught_up();
    assert_eq!(members(&source, "hub"), "m");
    source.exec("INSERT INTO m VALUES (6, 'EU', 0)");
    by("root").run_until_caught_up();
    fold::assert_folded_equals(&hub.events(), &source, "public.m");
}

#[test]
fn an_existing_publication_must_send_what_the_rule_takes() {
    let (source, hub) = on_file("leafgiven");
    source.exec(TABLES);
    source.exec("CREATE PUBLICATION given FOR TABLE m WITH (publish_via_partition_root = true)");
    source.exec("INSERT INTO m VALUES (1, 'EU', 0)");
    let by = |partitions: &str| {
        let rule = format!("[[table]]\nname = \"public.m\"\npartitions = {partitions:?}");
        Walgate::new(&source, &hub).source("publication = \"given\"").section(&rule)
    };
    Checked::of(&by("root")).is_clean();
    let checked = Checked::of(&by("leaf"));
    checked.fault(
        "source.publication",
        "sends the partitioned table public.m as one table",
        "publish_via_partition_root = false",
    );
    run_fails(&by("leaf"), "as one table");
    source.exec("ALTER PUBLICATION given SET (publish_via_partition_root = false)");
    Checked::of(&by("root")).fault("source.publication", "leaf by leaf", "publish_via_partition_root = true");
    run_fails(&by("root"), "leaf by leaf");
    Checked::of(&by("leaf")).is_clean();
    by("leaf").run_until_caught_up();
    // The publication sends a new leaf from its beginning, before anybody has compared.
    source.exec("CREATE TABLE m_jp (LIKE m INCLUDING ALL); INSERT INTO m_jp VALUES (7, 'JP', 7)");
    source.exec("ALTER TABLE m ATTACH PARTITION m_jp FOR VALUES IN ('JP'); INSERT INTO m VALUES (8, 'JP', 8), (2, 'EU', 0); UPDATE m SET n = 1");
    by("leaf").run_until_caught_up();
    let events = hub.events();
    for leaf in ["m_eu", "m_jp", "m_us"] {
        fold::assert_folded_equals(&events, &source, &format!("public.{leaf}"));
    }
}

#[test]
fn check_speaks_of_leaves() {
    let (source, replica, hub) = (Source::new("leafcheck"), Source::new("leafcheck_r"), Hub::file());
    source.exec(TABLES);
    source.exec("CREATE TABLE empty (id int PRIMARY KEY) PARTITION BY RANGE (id)");
    let walgate = replicating(&source, &replica, &hub, "")
        .section("[[table]]\nname = \"public.empty\"\npartitions = \"leaf\"\nmode = \"replicate\"");
    let checked = Checked::of(&walgate);
    checked.is_clean();
    checked.has("notes", "table[0].partitions", "table public.m is taken leaf by leaf: 3 leaves", "");
    checked.has("notes", "table[1].partitions", "table public.empty is taken leaf by leaf: 0 leaves", "");
    walgate.run_until_caught_up();
    // A leaf whose changes are not in the WAL.
    source.exec("CREATE UNLOGGED TABLE m_jp PARTITION OF m FOR VALUES IN ('JP')");
    Checked::of(&walgate).fault("table[0]", "the partition public.m_jp is unlogged", "leave public.m_jp out");
    run_fails(&walgate, "public.m_jp is unlogged");
    let without = walgate.section("[[table]]\nname = \"public.m_jp\"\nmode = \"off\"");
    Checked::of(&without).is_clean();
    without.run_until_caught_up();

    // Two leaves with one name on the replica.
    let given = replicating(&source, &replica, &hub, "to = \"archive.m\"");
    let checked = Checked::of(&given);
    assert_eq!(checked.code, Some(2));
    checked.has("faults", "table[0].to", "every leaf the same name", "schema.*");
    // A leaf by its name, while its root is one table.
    let by_name = Walgate::new(&source, &hub).section("[[table]]\nname = \"public.m_eu\"");
    Checked::of(&by_name).fault("table[0].name", "a partition of public.m", "partitions = \"leaf\"");
}
