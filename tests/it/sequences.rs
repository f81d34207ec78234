//! Sequences of replicas: brought past the source's after the copy, and by `walgate sync-sequences`.
//!
//! In: a source whose columns draw from sequences, and a replica. Out: what the replica's `nextval` gives. Always: it is
//! past everything that the source has given out, and never went back.

use serde_json::Value;

use crate::support::{Hub, Source, Walgate};

fn replicating(source: &Source, replica: &Source, hub: &Hub, rules: &str) -> Walgate {
    let url = replica.url();
    at(source, &url, hub, rules)
}

fn at(source: &Source, replica_url: &str, hub: &Hub, rules: &str) -> Walgate {
    Walgate::new(source, hub)
        .section(&format!("[[replica]]\nname = \"r\"\nurl = {replica_url:?}\n"))
        .section(rules)
}

fn rule(table: &str, more: &str) -> String {
    format!("[[table]]\nname = \"{table}\"\nmode = \"replicate\"\n{more}\n")
}

/// Runs the command; its exit code and its report, by the source's sequence.
fn sync(walgate: &Walgate, more: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = walgate.command(&[&["sync-sequences", "--json"], more].concat());
    let stdout = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{error}: {stdout}{}", String::from_utf8_lossy(&output.stderr)));
    let sequences = report["sequences"].as_array().expect("a list").clone();
    assert_eq!(report["done"], output.status.success());
    (output.status.code(), sequences)
}

fn of<'a>(sequences: &'a [Value], source: &str) -> &'a Value {
    let found = sequences.iter().find(|one| one["source"] == source);
    found.unwrap_or_else(|| panic!("no {source} in {sequences:#?}"))
}

#[test]
fn a_table_that_walgate_makes_goes_on_counting_where_the_source_was() {
    let (source, replica, hub) = (Source::new("seqmade"), Source::new("seqmade_r"), Hub::file());
    source.exec(
        "CREATE TABLE a (id bigserial PRIMARY KEY, n smallint GENERATED ALWAYS AS IDENTITY (START 7 INCREMENT 3 MAXVALUE 100), x text);
         CREATE TABLE b (id int PRIMARY KEY, other serial);
         ALTER TABLE b ALTER other DROP NOT NULL;
         INSERT INTO a (x) SELECT 'x' FROM generate_series(1, 20);
         INSERT INTO b (id) VALUES (1); INSERT INTO b VALUES (2, NULL)",
    );
    let rules = rule("public.a", "to = \"public.copied\"") + &rule("public.b", "");
    let walgate = replicating(&source, &replica, &hub, &rules);
    let log = walgate.run_until_caught_up();
    assert!(log.contains("sequences brought forward"), "{log}");
    // A margin past the source's; the small one has come to its end, and says so.
    assert_eq!(replica.value("SELECT nextval('copied_id_seq')"), "1021");
    assert_eq!(replica.value("SELECT last_value FROM copied_n_seq"), "100");
    assert!(log.contains("sequence at its end"), "{log}");
    // A column that may be NULL is no identity: its rows come as they are.
    assert_eq!(replica.query("SELECT other FROM b ORDER BY id").len(), 2);
    source.exec("INSERT INTO a (x, n) OVERRIDING SYSTEM VALUE VALUES ('y', 8); UPDATE a SET id = id + 100 WHERE id = 1");
    walgate.run_until_caught_up();
    assert_eq!(
        replica.query("SELECT id, n, x FROM copied ORDER BY id"),
        source.query("SELECT id, n, x FROM a ORDER BY id")
    );
    let (code, sequences) = sync(&walgate, &[]);
    assert_eq!(code, Some(0));
    assert_eq!(of(&sequences, "public.b_other_seq")["state"], "absent");
}

#[test]
fn a_replicas_own_sequences_move_in_their_direction_and_never_back() {
    let (source, replica, hub) = (Source::new("seqown"), Source::new("seqown_r"), Hub::file());
    source.exec(
        "CREATE SEQUENCE shared; CREATE SEQUENCE down INCREMENT -2; CREATE SEQUENCE fresh;
         CREATE TABLE t (id serial PRIMARY KEY, a bigint DEFAULT nextval('shared'), b int DEFAULT nextval('down'), c bigint DEFAULT nextval('fresh'), note serial);
         ALTER SEQUENCE fresh RESTART WITH 500",
    );
    replica.exec(
        "CREATE SCHEMA sales; CREATE SEQUENCE own_name; CREATE SEQUENCE shared; CREATE SEQUENCE fresh;
         CREATE TABLE sales.t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a bigint, b int DEFAULT nextval('own_name'), c bigint, note serial)",
    );
    source.exec("INSERT INTO t (c) SELECT 1 FROM generate_series(1, 10)");
    let walgate =
        replicating(&source, &replica, &hub, &rule("public.t", "to = \"sales.t\"\nexclude = [\"note\"]"));
    walgate.run_until_caught_up();
    assert_eq!(replica.value("SELECT nextval('sales.t_id_seq')"), "1011");
    assert_eq!(replica.value("SELECT nextval('shared')"), "1011", "stand-alone, by its name");
    assert_eq!(replica.value("SELECT nextval('fresh')"), "1500", "set, and not called");
    assert_eq!(
        replica.value("SELECT nextval('sales.t_note_seq')"),
        "11",
        "what is not replicated counts its own rows"
    );

    // On demand, with a margin of one's own; what is ahead already stays.
    source.exec("INSERT INTO t (c) SELECT 1 FROM generate_series(1, 5); SELECT nextval('shared')");
    let (code, sequences) = sync(&walgate, &["--replica", "r", "--margin", "2000"]);
    assert_eq!(of(&sequences, "public.t_id_seq")["value"], 2015);
    assert_eq!(of(&sequences, "public.t_id_seq")["sequence"], "sales.t_id_seq");
    assert_eq!(of(&sequences, "public.shared")["value"], 2016);
    let opposite = of(&sequences, "public.down");
    assert_eq!((&opposite["state"], code), (&"refused".into(), Some(1)), "{opposite}");
    replica.exec("ALTER SEQUENCE own_name INCREMENT -1 MINVALUE -1000000 MAXVALUE 10 RESTART WITH 5");
    let (code, sequences) = sync(&walgate, &["--margin", "0"]);
    assert_eq!(code, Some(0), "{sequences:#?}");
    assert_eq!(of(&sequences, "public.down")["value"], -29);
    assert_eq!(of(&sequences, "public.t_id_seq")["state"], "ahead");
    assert_eq!(replica.value("SELECT nextval('sales.t_id_seq')"), "2016");
    let output = walgate.command(&["sync-sequences"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("r: sales.t_id_seq (here public.t_id_seq): is past the source's"), "{text}");
}

#[test]
fn a_role_without_rights_is_told_the_grant_and_the_pipeline_goes_on() {
    let (source, replica, hub) = (Source::new("seqgrant"), Source::new("seqgrant_r"), Hub::file());
    let role = format!("{}_role", replica.name());
    source.exec("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t SELECT FROM generate_series(1, 3)");
    replica.exec(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role};
         CREATE TABLE t (id serial PRIMARY KEY); GRANT ALL ON t TO {role}",
        replica.name()
    ));
    let url = replica.url().replacen("://postgres", &format!("://{role}"), 1);
    assert!(url.contains(&role), "{url}");
    let walgate = at(&source, &url, &hub, &rule("public.t", ""));
    let log = walgate.run_until_caught_up();
    let grant = format!("GRANT SELECT, UPDATE ON SEQUENCE \\\"public\\\".\\\"t_id_seq\\\" TO \\\"{role}\\\"");
    assert!(log.replace("\\\"", "\"").contains(&grant.replace("\\\"", "\"")), "{log}");
    assert_eq!(replica.value("SELECT count(*) FROM t"), "3");
    let (code, sequences) = sync(&walgate, &[]);
    assert_eq!(code, Some(1));
    assert_eq!(of(&sequences, "public.t_id_seq")["state"], "refused");
    let check = walgate.command(&["check"]);
    let found = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(found.contains("GRANT SELECT, UPDATE ON SEQUENCE"), "{found}");
    replica.exec(&format!("GRANT SELECT, UPDATE ON SEQUENCE t_id_seq TO {role}"));
    let (code, sequences) = sync(&walgate, &[]);
    assert_eq!((code, &of(&sequences, "public.t_id_seq")["value"]), (Some(0), &1003.into()));
    replica.exec(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}
