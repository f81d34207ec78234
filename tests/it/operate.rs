//! What an operator sees and does: `status`, `tail`, `drop`, and the admin port.
//!
//! In: pipelines that run, stand by, are stopped or dropped. Out: what the commands print and how they exit.
//! DESIGN section 7 and docs/commands.md are the contract.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::{Hub, PATIENCE, Source, Walgate, http, wait_for, wait_until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The JSON that a command printed; it must have succeeded.
#[track_caller]
fn printed(output: &Output) -> Value {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

#[test]
fn drop_removes_what_is_there_and_goes_on_over_what_is_not() {
    let source = Source::new("drop");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        let slot = format!("{}_hub", source.name());
        let events = hub.events().len();

        let first = printed(&walgate.command(&["drop", "--yes", "--json", "--pipeline", "hub"]));
        assert_eq!(first["slot"], json!(slot));
        assert_eq!(first["checkpoint"], json!(format!("{}.{slot}", source.name())));
        assert_eq!(first["publications"], json!([slot, format!("{slot}_inserts")]));
        assert!(source.query("SELECT 1 FROM pg_publication").is_empty());
        let slots = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}'");
        assert!(source.query(&slots).is_empty());
        assert_eq!(hub.events().len(), events, "events stay");

        let second = printed(&walgate.command(&["drop", "--yes", "--json", "--pipeline", &slot]));
        assert_eq!((&second["slot"], &second["publications"]), (&json!(null), &json!([])));
        assert!(text(&walgate.command(&["drop", "--yes"]).stdout).contains("nothing"));

        // Anew: the rows are read again, after a truncate that ends what was there.
        source.exec("INSERT INTO t VALUES (2)");
        walgate.run_until_caught_up();
        crate::support::fold::assert_folded_equals(&hub.events(), &source, "public.t");
        assert_eq!(hub.events().iter().filter(|event| event.op() == "read").count(), 3);
        printed(&walgate.command(&["drop", "--yes", "--json"]));
    }
}

#[test]
fn drop_asks_first_and_knows_its_pipelines() {
    let source = Source::new("dropasks");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    let unasked = walgate.command(&["drop"]);
    assert_eq!(unasked.status.code(), Some(2));
    assert!(text(&unasked.stderr).contains("drop --yes"), "{}", text(&unasked.stderr));
    let unknown = walgate.command(&["drop", "--yes", "--pipeline", "reporting"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains(&format!("{}_hub", source.name())));
}

#[test]
fn drop_is_refused_while_a_process_runs() {
    let source = Source::new("droprunning");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY)");
        let walgate = Walgate::new(&source, &hub);
        let running = walgate.run();
        running.wait_for_log("to=Streaming");
        let refused = walgate.command(&["drop", "--yes"]);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(said.contains("another process runs") && said.contains("remedy"), "{said}");
        // It goes on as if nothing had happened.
        source.exec("INSERT INTO t VALUES (1)");
        hub.wait_for("the row", |events| events.len() == 1);
        running.stop();
        printed(&walgate.command(&["drop", "--yes", "--json"]));
    }
}

#[test]
fn a_half_done_drop_is_mended_by_another() {
    let source = Source::new("drophalf");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        // An administrator dropped the slot: the checkpoint alone refuses a start.
        source.drop_slots();
        let refused = walgate.command(&["run", "--until-caught-up"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains("walgate drop"), "{}", text(&refused.stderr));
        printed(&walgate.command(&["drop", "--yes", "--json"]));
        walgate.run_until_caught_up();
        printed(&walgate.command(&["drop", "--yes", "--json"]));
    }
}

#[test]
fn drop_leaves_the_source_alone_when_the_hub_cannot_be_reached() {
    let source = Source::new("dropnohub");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    let nobody = crate::support::servers::free_port();
    let unreachable = Hub::kafka_at(&format!("127.0.0.1:{nobody}"), &source);
    let failed = Walgate::new(&source, &unreachable).command(&["drop", "--yes"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = text(&failed.stderr);
    assert!(said.contains("pg_drop_replication_slot"), "{said}");
    assert_eq!(source.query("SELECT 1 FROM pg_publication").len(), 2);
    std::mem::forget(unreachable);
    walgate.run_until_caught_up();
}

#[test]
fn drop_is_the_remedy_for_a_checkpoint_that_cannot_be_read() {
    let source = Source::new("dropbroken");
    source.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    std::fs::write(hub.path().join("checkpoint.json"), "{").expect("the hub's folder can be written");
    let refused = walgate.command(&["run", "--until-caught-up"]);
    assert_eq!(refused.status.code(), Some(1));
    printed(&walgate.command(&["drop", "--yes", "--json"]));
    walgate.run_until_caught_up();
}

/// The one pipeline of `status --json`.
#[track_caller]
fn status(walgate: &Walgate) -> Value {
    let report = printed(&walgate.command(&["status", "--json"]));
    assert_eq!(report["orphaned_slots"], json!([]), "{report}");
    let pipelines = report["pipelines"].as_array().expect("a list");
    assert_eq!(pipelines.len(), 1, "{report}");
    pipelines[0].clone()
}

#[test]
fn status_before_during_and_after() {
    let source = Source::new("status");
    for hub in Hub::of_each_kind(&source) {
        source.exec(
            "DROP TABLE IF EXISTS t, loose; CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE loose (n int)",
        );
        source.exec("INSERT INTO t SELECT generate_series(1, 20)");
        let mut walgate = Walgate::new(&source, &hub);
        walgate.admin_port();

        let before = status(&walgate);
        assert_eq!(before["state"], "stopped");
        assert_eq!(
            (&before["slot"], &before["checkpoint"], &before["process"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
        assert_eq!(before["last_error"], Value::Null, "a first start is no fault");
        assert_eq!((&before["tables"], &before["tables_copied"]), (&json!(2), &json!(0)));
        assert_eq!(before["tables_without_identity"], json!(["public.loose"]));

        let running = walgate.run();
        running.wait_for_log("to=Streaming");
        let during = status(&walgate);
        assert_eq!((&during["state"], &during["process"]), (&json!("streaming"), &json!("here")));
        assert_eq!(during["slot"]["is_active"], true);
        assert_eq!(during["slot"]["wal_status"], "reserved");
        assert_eq!((&during["tables_copied"], &during["rows_copied"]), (&json!(2), &json!(20)));
        assert!(during["lag_seconds"].is_number() && during["lag_bytes"].is_u64(), "{during}");
        assert!(during["retained_wal_bytes"].is_u64(), "{during}");
        assert_eq!(during["events"], 20);
        assert_eq!(during["parked_tables"], json!([]));

        // Asked with another admin port: it runs, but not where it can be asked.
        let stranger = Walgate::new(&source, &hub);
        let elsewhere = status(&stranger);
        assert_eq!((&elsewhere["state"], &elsewhere["process"]), (&json!("streaming"), &json!("elsewhere")));
        assert!(elsewhere["holder"]["pid"].is_i64(), "{elsewhere}");
        assert_eq!(elsewhere["lag_seconds"], Value::Null);
        let said = text(&stranger.command(&["status"]).stdout);
        assert!(said.contains("running elsewhere") && said.contains("public.loose"), "{said}");

        running.stop();
        let after = status(&walgate);
        assert_eq!((&after["state"], &after["process"]), (&json!("stopped"), &Value::Null));
        assert_eq!(after["slot"]["is_active"], false);
        assert_eq!(after["checkpoint"]["phase"], "streaming");
        assert_eq!(after["last_error"], Value::Null);

        source.drop_slots();
        let broken = status(&walgate);
        let said = broken["last_error"].as_str().expect("a start would be refused");
        assert!(said.contains("does not exist any more") && said.contains("walgate drop"), "{said}");
        printed(&walgate.command(&["drop", "--yes", "--json"]));
    }
}

#[test]
fn status_of_a_standby() {
    let source = Source::new("standby");
    let hub = Hub::kafka(&source);
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let first = Walgate::new(&source, &hub).run();
    first.wait_for_log("to=Streaming");
    let mut walgate = Walgate::new(&source, &hub);
    let port = walgate.admin_port();
    let standby = walgate.run();
    standby.wait_for_log("to=Standby");
    let waiting = status(&walgate);
    assert_eq!((&waiting["state"], &waiting["process"]), (&json!("standby"), &json!("here")));
    assert!(waiting["holder"]["pid"].is_i64(), "{waiting}");
    assert_eq!(http::request(port, "/healthz").expect("it listens").0, 200);
    assert_eq!(http::request(port, "/readyz").expect("it listens").0, 503);
    first.stop();
    wait_until("the standby to take over", || status(&walgate)["state"] == "streaming");
    assert_eq!(http::request(port, "/readyz").expect("it listens").0, 200);
    standby.stop();
}

#[test]
fn status_names_slots_that_nobody_owns_and_fails_without_a_source() {
    let source = Source::new("orphan");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    let orphan = format!("{}_r_old", source.name());
    source.query(&format!("SELECT pg_create_logical_replication_slot('{orphan}', 'pgoutput')"));
    let report = printed(&walgate.command(&["status", "--json"]));
    assert_eq!(report["orphaned_slots"][0]["name"], json!(orphan));
    assert!(text(&walgate.command(&["status"]).stdout).contains(&orphan));

    let nobody = crate::support::servers::free_port();
    let lines = format!("url = \"postgres://postgres@127.0.0.1:{nobody}/x\"\n");
    let away = Walgate::with(&lines, &hub.settings()).command(&["status", "--json"]);
    assert_eq!(away.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&away.stdout).expect("what is known is printed all the same");
    assert_eq!(report["pipelines"][0]["slot"], Value::Null);
    assert!(text(&away.stderr).contains("the source cannot be asked"));
}

#[test]
fn tail_prints_what_was_published() {
    let source = Source::new("tail");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t, u; CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
        source.exec("INSERT INTO t SELECT generate_series(1, 30); INSERT INTO u VALUES (1)");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        let topic = format!("{}.public.t", source.name());

        let all = walgate.command(&["tail", "--from-beginning", "--count", "31", "--resolve"]);
        assert!(all.status.success(), "{}", text(&all.stderr));
        let mut lines: Vec<String> = text(&all.stdout).lines().map(str::to_owned).collect();
        let mut events: Vec<String> = hub.events().into_iter().map(|event| event.raw).collect();
        lines.sort();
        events.sort();
        assert_eq!(lines, events);

        let some = walgate.command(&["tail", &topic, "--from-beginning", "--count", "7", "--json"]);
        assert!(some.status.success(), "{}", text(&some.stderr));
        let tables: Vec<Value> = text(&some.stdout)
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["source"]["table"].clone())
            .collect();
        assert_eq!(tables, vec![json!("t"); 7]);

        let unknown = walgate.command(&["tail", "nothing.like.this", "--count", "1"]);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(text(&unknown.stderr).contains(&topic), "{}", text(&unknown.stderr));
        printed(&walgate.command(&["drop", "--yes", "--json"]));
    }
}

#[test]
fn tail_follows_also_new_topics_until_a_signal() {
    let source = Source::new("tailing");
    for hub in Hub::of_each_kind(&source) {
        source
            .exec("DROP TABLE IF EXISTS t, u; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let walgate = Walgate::new(&source, &hub).env("WALGATE_LOG", "debug");
        walgate.run_until_caught_up();
        let running = walgate.run();
        let mut tail = walgate.start(&["tail"]);
        tail.wait_for_log("tailing");
        source.exec("INSERT INTO t VALUES (2)");
        wait_until("the new row", || tail.stdout().lines().count() == 1);
        source.exec("CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (3)");
        wait_for("the new table's row", 2 * PATIENCE, || (tail.stdout().lines().count() == 2).then_some(()));
        let ids: Vec<Value> = tail
            .stdout()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["data"]["id"].clone())
            .collect();
        assert_eq!(ids, [json!(2), json!(3)], "row 1 was there before");
        tail.sigterm();
        assert!(tail.wait(PATIENCE).success());
        running.stop();
        printed(&walgate.command(&["drop", "--yes", "--json"]));
    }
}

#[test]
fn tail_ends_quietly_when_nobody_reads_on() {
    let source = Source::new("tailhead");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    source.exec("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 2000) i");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    walgate.run_until_caught_up();
    let config = tempfile::NamedTempFile::new().expect("a file can be made");
    std::fs::write(config.path(), walgate.toml()).expect("a file can be written");
    let script = format!(
        "set -o pipefail; {} --config {} tail --from-beginning | head -n 3",
        env!("CARGO_BIN_EXE_walgate"),
        config.path().display()
    );
    let output = std::process::Command::new("bash").args(["-c", &script]).output().expect("bash can be run");
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 3);
    assert!(!text(&output.stderr).contains("panic"), "{}", text(&output.stderr));
}

/// A metric's value; panics when it is not there.
#[track_caller]
fn metric(port: u16, name: &str) -> f64 {
    http::metric(port, name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_admin_port_says_how_it_is() {
    let source = Source::new("admin");
    let hub = Hub::kafka(&source);
    source.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10)");
    let mut walgate = Walgate::new(&source, &hub);
    let port = walgate.admin_port();
    let running = walgate.run();
    wait_until("readiness", || http::request(port, "/readyz").is_some_and(|(code, _)| code == 200));
    running.wait_for_log("to=Streaming");
    assert_eq!(http::request(port, "/healthz").expect("it listens").0, 200);
    wait_until("retained WAL", || metric(port, "walgate_retained_wal_bytes") > 0.0);
    source.exec("INSERT INTO t VALUES (11), (12)");
    wait_until("all events", || metric(port, "walgate_events_total") == 12.0);
    assert_eq!(metric(port, "walgate_snapshot_rows_total"), 10.0);
    assert_eq!(metric(port, "walgate_up"), 1.0);
    assert!(metric(port, "walgate_bytes_read_total") > 0.0);
    assert!(metric(port, "walgate_confirmed_lsn") > 0.0);
    wait_until("no lag", || metric(port, "walgate_lag_seconds") == 0.0);
    for name in [
        "walgate_lag_bytes",
        "walgate_in_flight_bytes",
        "walgate_oldest_unconfirmed_seconds",
        "walgate_dead_letters_total",
        "walgate_restarts_total",
    ] {
        metric(port, name);
    }
    let (_, body) = http::request(port, "/metrics").expect("it listens");
    for line in body.lines().filter(|line| line.starts_with("walgate_")) {
        let name = line.split(['{', ' ']).next().expect("a line has a name");
        assert!(body.contains(&format!("# HELP {name} ")), "{name} is not described");
        let labels =
            line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
        for label in labels.split("\",").filter(|label| !label.is_empty()) {
            let key = label.split('=').next().expect("a label has a key");
            assert!(["pipeline", "sink", "relation"].contains(&key), "{line}");
        }
    }
    assert!(body.contains("relation=\"public.t\""), "{body}");
    running.stop();
}

#[test]
fn lag_grows_while_the_source_is_away() {
    let cluster = crate::support::Cluster::start(&[]);
    let source = Source::on(&cluster, "lag");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let hub = Hub::file();
    let mut walgate = Walgate::new(&source, &hub);
    let port = walgate.admin_port();
    let running = walgate.run();
    running.wait_for_log("to=Streaming");
    cluster.stop(crate::support::Shutdown::Fast);
    wait_until("back-off", || metric(port, "walgate_lag_seconds") > 1.0);
    assert_eq!(metric(port, "walgate_up"), 0.0);
    assert_eq!(http::request(port, "/healthz").expect("it listens").0, 200, "it tries again by itself");
    assert_eq!(http::request(port, "/readyz").expect("it listens").0, 503);
    assert!(metric(port, "walgate_restarts_total") >= 1.0);
    cluster.resume();
    wait_until("streaming again", || metric(port, "walgate_up") == 1.0);
    wait_until("no lag", || metric(port, "walgate_lag_seconds") == 0.0);
    running.stop();
}
