//! A row committed in PostgreSQL is an event on the hub, exactly once: each kind of change, on each kind of hub.
//!
//! In: SQL on a source. Out: the events that a read_committed consumer finds, and what they fold to.
//! DESIGN section 4 is the contract.

use serde_json::json;

use crate::support::fold::assert_folded_equals;
use crate::support::{Event, Fold, Hub, PATIENCE, Source, Walgate};

/// A text that PostgreSQL stores out of line: long, and not to be compressed away.
const TOASTED: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)";

/// The events of one aggregate in their order, as `op`s.
fn ops<'a>(events: &'a [Event], aggregate_id: &str) -> Vec<&'a str> {
    let mut of_it: Vec<&Event> = events.iter().filter(|e| e.aggregate_id() == Some(aggregate_id)).collect();
    of_it.sort_by_key(|event| event.place());
    of_it.into_iter().map(Event::op).collect()
}

fn find<'a>(events: &'a [Event], op: &str) -> &'a Event {
    let mut of_op = events.iter().filter(|event| event.op() == op);
    let found = of_op.next().unwrap_or_else(|| panic!("no {op}: {events:#?}"));
    assert!(of_op.next().is_none(), "more than one {op}: {events:#?}");
    found
}

#[test]
fn insert_update_and_delete_are_events() {
    let source = Source::new("changes");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS orders; CREATE TABLE orders (id int PRIMARY KEY, region text, total numeric)");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();

        source.exec("INSERT INTO orders VALUES (42, 'EU', 19.90), (43, 'US', NULL)");
        source.exec("UPDATE orders SET total = 20.00 WHERE id = 42");
        source.exec("DELETE FROM orders WHERE id = 43");
        walgate.run_until_caught_up();

        let events = hub.events();
        assert_eq!(hub.topics(), [format!("{}.public.orders", source.name())]);
        assert_eq!(ops(&events, "42"), ["insert", "update"]);
        assert_eq!(ops(&events, "43"), ["insert", "delete"]);
        let update = find(&events, "update");
        assert_eq!(update.text("type"), "orders.updated");
        assert_eq!(update.json["data"], json!({"id": 42, "region": "EU", "total": "20.00"}));
        assert_eq!(update.json["before"], json!(null));
        let delete = find(&events, "delete");
        assert_eq!(delete.json["data"], json!(null));
        assert_eq!(delete.json["before"], json!({"id": 43}));
        assert_folded_equals(&events, &source, "public.orders");
        drop_everything(&walgate);
    }
}

#[test]
fn rows_from_before_are_read_and_the_stream_goes_on_from_there() {
    let source = Source::new("snapshot");
    for hub in Hub::of_each_kind(&source) {
        source.exec(
            "DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, n int, note text);
             INSERT INTO t SELECT i, 0, 'row ' || i FROM generate_series(1, 500) i",
        );
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(events.iter().filter(|event| event.op() == "read").count(), 500);
        assert_eq!(events.len(), 500);

        source.exec("UPDATE t SET n = n + 1 WHERE id % 2 = 0; DELETE FROM t WHERE id % 5 = 0");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(events.len(), 500 + 250 + 100);
        assert_folded_equals(&events, &source, "public.t");
        drop_everything(&walgate);
    }
}

#[test]
fn writes_during_the_snapshot_are_neither_lost_nor_doubled() {
    let source = Source::new("handover");
    let hub = Hub::kafka(&source);
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, n int);
         INSERT INTO t SELECT i, 0 FROM generate_series(1, 20000) i",
    );
    let running = Walgate::new(&source, &hub).run();
    for round in 0..200 {
        source.exec(&format!(
            "UPDATE t SET n = n + 1 WHERE id % 100 = {}; INSERT INTO t VALUES ({}, 0)",
            round % 100,
            100_000 + round
        ));
    }
    source.exec("INSERT INTO t VALUES (999999, 0)");
    let events = hub.wait_for_within("the last row", 2 * PATIENCE, |events| {
        events.iter().any(|event| event.aggregate_id() == Some("999999"))
    });
    running.stop();
    assert_folded_equals(&events, &source, "public.t");
}

#[test]
fn a_key_change_is_a_delete_and_an_insert_that_name_each_other() {
    let source = Source::new("keychange");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, note text)");
        source.exec("ALTER TABLE t ALTER note SET STORAGE EXTERNAL");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        source.exec(&format!("INSERT INTO t VALUES (1, {TOASTED})"));
        source.exec("UPDATE t SET id = 2 WHERE id = 1");
        walgate.run_until_caught_up();

        let events = hub.events();
        assert_eq!(ops(&events, "1"), ["insert", "delete"]);
        assert_eq!(ops(&events, "2"), ["insert"]);
        let old_half = find(&events, "delete");
        let new_half = events.iter().find(|event| event.aggregate_id() == Some("2")).expect("the new half");
        assert_eq!(old_half.text("moved_to"), "2");
        assert_eq!(old_half.json["before"], json!({"id": 1}));
        assert_eq!(new_half.text("moved_from"), "1");
        assert_eq!(new_half.place().number, old_half.place().number + 1);
        assert_eq!(new_half.unchanged(), ["note"]);
        assert_folded_equals(&events, &source, "public.t");
        drop_everything(&walgate);
    }
}

#[test]
fn a_toasted_value_that_did_not_change_is_named_and_never_null() {
    let source = Source::new("toast");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, n int, photo text)");
        source.exec("ALTER TABLE t ALTER photo SET STORAGE EXTERNAL");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        source.exec(&format!("INSERT INTO t VALUES (1, 1, {TOASTED})"));
        source.exec("UPDATE t SET n = 2");
        walgate.run_until_caught_up();
        let events = hub.events();
        let update = find(&events, "update");
        assert_eq!(update.unchanged(), ["photo"]);
        assert_eq!(update.json["data"], json!({"id": 1, "n": 2}));
        assert_folded_equals(&events, &source, "public.t");

        // Under FULL the old row has it.
        source.exec("ALTER TABLE t REPLICA IDENTITY FULL");
        source.exec("UPDATE t SET n = 3");
        walgate.run_until_caught_up();
        let events = hub.events();
        let update = events.iter().max_by_key(|event| event.place()).expect("there are events");
        assert!(update.unchanged().is_empty(), "{}", update.raw);
        assert_eq!(update.json["before"]["n"], 2);
        assert_eq!(update.data("photo"), &update.json["before"]["photo"]);
        assert_folded_equals(&events, &source, "public.t");
        drop_everything(&walgate);
    }
}

#[test]
fn a_truncate_ends_the_rows_of_every_partition() {
    let source = Source::new("truncate");
    for (hub, partitions) in Hub::of_each_kind(&source).into_iter().zip([1, 3]) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY)");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        source.exec("INSERT INTO t SELECT generate_series(1, 50)");
        source.exec("BEGIN; INSERT INTO t VALUES (100); TRUNCATE t; INSERT INTO t VALUES (7); COMMIT");
        walgate.run_until_caught_up();
        let events = hub.events();
        let truncates: Vec<&Event> = events.iter().filter(|event| event.op() == "truncate").collect();
        assert_eq!(truncates.len(), partitions);
        assert!(truncates.iter().all(|event| event.aggregate_id().is_none()));
        assert_folded_equals(&events, &source, "public.t");
        drop_everything(&walgate);
    }
}

#[test]
fn a_restart_delivers_nothing_twice() {
    let source = Source::new("restart");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, n int)");
        source.exec("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        source.exec("UPDATE t SET n = 1");
        walgate.run_until_caught_up();
        let ids = |events: &[Event]| events.iter().map(|event| event.id().to_owned()).collect::<Vec<_>>();
        let before = ids(&hub.events());
        assert_eq!(before.len(), 20);
        for _ in 0..3 {
            walgate.run_until_caught_up();
        }
        assert_eq!(ids(&hub.events()), before);
        drop_everything(&walgate);
    }
}

#[test]
fn kill_9_under_load_loses_nothing_and_doubles_nothing() {
    let source = Source::new("kill");
    for hub in Hub::of_each_kind(&source) {
        source.exec("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, n int)");
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        for round in 0..5 {
            let mut running = walgate.run();
            let seen = hub.events().len();
            for batch in 0..20 {
                let first = (round * 20 + batch) * 50;
                source.exec(&format!(
                    "INSERT INTO t SELECT i, 0 FROM generate_series({first}, {first} + 49) i;
                     UPDATE t SET n = n + 1 WHERE id % 50 = {batch}"
                ));
            }
            hub.wait_for("some of this round's events", |events| events.len() > seen);
            running.kill9();
        }
        walgate.run_until_caught_up();
        let events = hub.events();
        let inserts = events.iter().filter(|event| event.op() == "insert").count();
        let updates = events.iter().filter(|event| event.op() == "update").count();
        assert_eq!(inserts, 5000);
        assert_eq!(updates.to_string(), source.value("SELECT sum(n) FROM t"));
        Fold::of(&events).assert_equals(&source, "public.t");
        drop_everything(&walgate);
    }
}

/// A clean leave, so that the next hub starts from nothing.
fn drop_everything(walgate: &Walgate) {
    let output = walgate.command(&["drop", "--yes"]);
    assert!(output.status.success(), "drop: {}", String::from_utf8_lossy(&output.stderr));
}
