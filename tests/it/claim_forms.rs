//! Claim checks of Debezium's form and of CloudEvents: references where these have a place for them.
//!
//! In: the same changes, read by two pipelines, one of them with a claim store. Out: events as they are on the hub of the one,
//! references on that of the other; `tail --resolve` makes the second equal to the first, byte for byte. DESIGN section 5,
//! CASES O2, O3.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::claims::{Store, THRESHOLD};
use crate::support::servers::kafka_brokers;
use crate::support::{Event, Hub, Source, Walgate, kafka};

/// Two pipelines of one source into directories of files.
struct Pair {
    inline: (Walgate, Hub),
    claiming: (Walgate, Hub),
}

impl Pair {
    /// With a claim store the second has these sections, too.
    fn new(source: &Source, format: &str, store: &Store, sections: &str) -> Self {
        let side = |suffix: &str, sections: &str| {
            let hub = Hub::file();
            let settings = format!("url = {:?}\nslot = \"{}{suffix}\"\n", source.url(), source.name());
            let walgate = Walgate::with(&settings, &hub.settings());
            (walgate.hub(&format!("format = {format:?}")).section(sections), hub)
        };
        let sections = format!("{}\n{sections}", store.section(THRESHOLD));
        Pair { inline: side("_i", ""), claiming: side("_c", &sections) }
    }

    fn catch_up(&self) {
        for (walgate, _) in [&self.inline, &self.claiming] {
            walgate.run_until_caught_up();
        }
    }

    /// What is on the hub of the claiming one, after it was compared with the other.
    #[track_caller]
    fn events(&self) -> Vec<Event> {
        let lines = |(walgate, hub): &(Walgate, Hub), resolve: &[&str]| {
            let count = hub.events().len().to_string();
            let arguments = [&["tail", "--from-beginning", "--json", "--count", &count], resolve].concat();
            let output = walgate.command(&arguments);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let (expected, found) = (lines(&self.inline, &[]), lines(&self.claiming, &["--resolve"]));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found == expected, "{found:.3000}\n{expected:.3000}");
        }
        self.claiming.1.events()
    }

    fn drop_all(&self) {
        for (walgate, _) in [&self.inline, &self.claiming] {
            assert!(walgate.command(&["drop", "--yes"]).status.success());
        }
    }
}

const TABLE: &str = "DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text, photo bytea, doc jsonb, note text, \
     numbers int[], a text, b text, c text); ALTER TABLE t REPLICA IDENTITY FULL; \
     ALTER TABLE t ALTER photo SET STORAGE EXTERNAL";

/// Large columns of every kind; a change beside them; middling ones that are too large together; a message.
const CHANGES: &[&str] = &[
    "INSERT INTO t VALUES (1, 'small', decode(repeat('00ff', 4000), 'hex'), jsonb_build_object('k', repeat('v', 9000)), \
     repeat('é\"', 5000), array_fill(1234, ARRAY[3000]), NULL, NULL, NULL)",
    "UPDATE t SET name = 'other' WHERE id = 1",
    "INSERT INTO t VALUES (2, 'middling', NULL, NULL, NULL, NULL, repeat('a', 1200), repeat('b', 2200), repeat('c', 1200))",
    "INSERT INTO t VALUES (3, 'inline', '\\x00', '{}', '', '{}', NULL, NULL, NULL)",
    "DELETE FROM t WHERE id = 1",
    "SELECT pg_logical_emit_message(true, 'walgate.outbox', json_build_object('aggregate_type', 'A', \
     'aggregate_id', '1', 'type', 'T', 'payload', json_build_object('long', repeat('m', 9000)))::text)",
];

/// The object behind a reference of Debezium's form, after it was compared with what the reference says.
#[track_caller]
fn behind(store: &Store, reference: &Value) -> (Vec<u8>, String) {
    let text = reference.as_str().unwrap_or_else(|| panic!("no string: {reference}"));
    let (uri, proof) = text.rsplit_once('#').unwrap_or_else(|| panic!("no reference: {text:.200}"));
    let parts: Vec<&str> = proof.split('&').collect();
    let body = std::fs::read(store.path(uri)).unwrap_or_else(|error| panic!("{uri}: {error}"));
    let sha256: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(parts[..2], [format!("bytes={}", body.len()), format!("sha256={sha256}")]);
    (body, parts[2].to_owned())
}

#[test]
fn case_o2_large_columns_of_debeziums_form_become_reference_strings() {
    let source = Source::new("claim_debezium");
    for store in Store::of_each_kind() {
        source.exec(TABLE);
        let pair = Pair::new(&source, "debezium", &store, "");
        pair.catch_up();
        CHANGES.iter().for_each(|change| source.exec(change));
        pair.catch_up();

        let mut events = pair.events();
        events.sort_by_key(|event| event.json["source"]["lsn"].as_u64());
        let [insert, update, middling, inline, delete, message] = events.as_slice() else {
            panic!("{events:#?}")
        };
        let after = &insert.json["after"];
        assert_eq!((&after["id"], &after["name"]), (&json!(1), &json!("small")));
        let octets = "content_type=application%2Foctet-stream";
        let text = "content_type=text%2Fplain%3B%20charset%3Dutf-8";
        assert_eq!(behind(&store, &after["photo"]), ([0x00, 0xff].repeat(4000), octets.to_owned()));
        assert_eq!(behind(&store, &after["note"]), ("é\"".repeat(5000).into_bytes(), text.to_owned()));
        let (doc, kind) = behind(&store, &after["doc"]);
        assert_eq!(serde_json::from_slice::<Value>(&doc).expect("JSON")["k"], "v".repeat(9000));
        assert_eq!(kind, text);
        let (numbers, kind) = behind(&store, &after["numbers"]);
        assert_eq!(serde_json::from_slice::<Value>(&numbers).expect("JSON"), json!(vec![1234; 3000]));
        assert_eq!(kind, "content_type=application%2Fjson");
        // Under FULL both rows have them, and neither takes the other's place.
        let [old, new] = ["before", "after"].map(|row| &update.json[row]["photo"]);
        assert_ne!(old, new);
        assert_eq!(behind(&store, old).0, behind(&store, new).0);
        behind(&store, &delete.json["before"]["photo"]);
        // The largest goes, the rest fits.
        let taken =
            ["a", "b", "c"].map(|column| middling.json["after"][column].as_str().expect("text").len() < 1000);
        assert_eq!(taken, [false, true, false]);
        assert_eq!(behind(&store, &middling.json["after"]["b"]).0, "b".repeat(2200).as_bytes());
        assert_eq!(inline.json["after"]["photo"], "AA==");
        let (content, kind) = behind(&store, &message.json["message"]["content"]);
        assert!(
            content.starts_with(b"{\"aggregate_type\"") && content.len() > 9000,
            "as the application wrote it"
        );
        assert_eq!(kind, octets);
        assert!(events.iter().all(|event| event.raw.len() <= THRESHOLD), "each fits");
        pair.drop_all();
    }
}

#[test]
fn what_of_debeziums_form_has_no_large_column_travels_as_it_is() {
    let source = Source::new("claim_debezium_wide");
    let columns: Vec<String> = (0..20).map(|n| format!("c{n} text")).collect();
    source.exec(&format!("CREATE TABLE t (id int PRIMARY KEY, {})", columns.join(", ")));
    let hub = Hub::kafka(&source);
    let store = Store::directory();
    let walgate = Walgate::new(&source, &hub).hub("format = \"debezium\"").section(&store.section(THRESHOLD));
    let values = vec!["repeat('x', 900)"; 20].join(", ");
    source.exec(&format!(
        "INSERT INTO t VALUES (1, {values}); INSERT INTO t (id, c0) VALUES (2, repeat('y', 9000))"
    ));
    walgate.run_until_caught_up();
    let records = kafka::read_committed(&kafka_brokers(), &hub.topics());
    let of = |key: &str| records.iter().find(|record| record.key.as_deref() == Some(key)).expect("a record");
    let (wide, large) = (of("{\"id\":1}"), of("{\"id\":2}"));
    assert!(wide.value.as_ref().is_some_and(|value| value.len() > 18_000));
    assert_eq!(wide.headers.get("claim-check"), None);
    assert_eq!(large.headers["claim-check"], "columns");
    assert_eq!(store.objects().len(), 1);
}

#[test]
fn large_data_of_a_cloudevent_are_behind_its_dataref() {
    let source = Source::new("claim_cloudevents");
    for store in Store::of_each_kind() {
        source.exec(TABLE);
        let pair = Pair::new(&source, "cloudevents", &store, "");
        pair.catch_up();
        CHANGES.iter().for_each(|change| source.exec(change));
        pair.catch_up();

        let mut events = pair.events();
        events.sort_by(|a, b| a.id().cmp(b.id()));
        let referred: Vec<bool> = events.iter().map(|event| event.json.get("dataref").is_some()).collect();
        assert_eq!(referred, [true, true, true, false, true, true]);
        for event in &events {
            assert_ne!(event.json.get("dataref").is_some(), event.json.get("data").is_some(), "one of them");
            assert!(event.raw.len() <= THRESHOLD);
        }
        let insert = &events[0].json;
        let uri = insert["dataref"].as_str().expect("a URI");
        let data = std::fs::read(store.path(uri)).expect("an object");
        assert_eq!(insert["databytes"], data.len());
        let sha256: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(insert["datasha256"], sha256);
        let data: Value = serde_json::from_slice(&data).expect("the data are JSON, as datacontenttype says");
        assert_eq!(data["row"]["note"], "é\"".repeat(5000));
        pair.drop_all();
    }
}

#[test]
fn large_columns_of_a_cloudevent_are_stored_one_by_one() {
    let source = Source::new("claim_cloud_columns");
    let store = Store::directory();
    source.exec(TABLE);
    let rule = "[[table]]\nname = \"public.t\"\nclaim_check.columns = true\n";
    let pair = Pair::new(&source, "cloudevents", &store, rule);
    pair.catch_up();
    CHANGES.iter().for_each(|change| source.exec(change));
    pair.catch_up();
    let mut events = pair.events();
    events.sort_by(|a, b| a.id().cmp(b.id()));
    let [insert, update, middling, ..] = events.as_slice() else { panic!("{events:#?}") };
    assert_eq!(insert.json["data"]["row"]["photo"]["$claim"]["bytes"], 8000);
    assert_eq!(update.json["data"]["before"]["photo"]["$claim"]["bytes"], 8000);
    assert!(middling.json.get("dataref").is_some(), "none of its columns is large");
}
