//! What an operator sees and does: `status`, `tail`, `drop`, and the admin port.
//!
//! In: pipelines that run, stand by, are stopped or dropped. Out: what the commands print and how they exit.
//! DESIGN section 7 and docs/commands.md are the contract.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::{Hub, Source, Walgate};

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
