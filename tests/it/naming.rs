//! Names: of topics, aggregate types, event types and columns, and which rule takes a table (CASES R8, F6 to F8).
//!
//! In: rules, and tables with every kind of name. Out: where events go and what they carry; or a refusal that
//! names each fault.

use serde_json::{Value, json};

use crate::support::fold::assert_folded_equals;
use crate::support::pick::{of_table, on_each_hub, on_file, only, started, table_ops};
use crate::support::{Event, Hub, Source, Walgate, kafka, servers};

/// What `run` says when it refuses to start, after checking the exit code.
#[track_caller]
fn refusal(walgate: &Walgate, code: i32) -> String {
    let output = walgate.command(&["run", "--until-caught-up"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{log}\n{}", walgate.toml());
    log
}

#[track_caller]
fn assert_names_each(log: &str, words: &[&str]) {
    for word in words {
        assert!(log.contains(word), "no {word:?} in: {log}");
    }
}

#[test]
fn case_r8_names_of_every_kind_have_legal_topics() {
    for (source, hub) in on_each_hub("oddnames") {
        source.exec(
            r#"CREATE SCHEMA "My Schema"; CREATE SCHEMA "sch.ema";
               CREATE TABLE "My Schema"."Orders" ("Id" int PRIMARY KEY, "Total Sum" int, "q""uoted" text, "dot.ted" text, "Ünï" text, "select" int);
               CREATE TABLE "sch.ema"."tab.le" (id int PRIMARY KEY);
               CREATE TABLE "Größe 漢字" (id int PRIMARY KEY);
               CREATE TABLE "a'b""c" (id int PRIMARY KEY);
               CREATE TABLE "back\slash" (id int PRIMARY KEY);
               INSERT INTO "My Schema"."Orders" VALUES (1, 2, 'q', 'd', 'ü', 3);
               INSERT INTO "sch.ema"."tab.le" VALUES (1)"#,
        );
        let walgate = Walgate::new(&source, &hub).section("[[table]]\nname = \"*.*\"");
        walgate.run_until_caught_up();
        source.exec(
            r#"UPDATE "My Schema"."Orders" SET "Total Sum" = 4; UPDATE "sch.ema"."tab.le" SET id = 2;
               INSERT INTO "Größe 漢字" VALUES (1); INSERT INTO "a'b""c" VALUES (1); INSERT INTO "back\slash" VALUES (1)"#,
        );
        source.exec(r#"TRUNCATE "Größe 漢字""#);
        walgate.run_until_caught_up();
        let events = hub.events();
        let name = source.name();
        let mut expected = [
            format!("{name}.My_Schema.Orders"),
            format!("{name}.sch.ema.tab.le"),
            format!("{name}.public.Gr__e___"),
            format!("{name}.public.a_b_c"),
            format!("{name}.public.back_slash"),
        ];
        expected.sort();
        assert_eq!(hub.topics(), expected, "each character that Kafka forbids is one _");
        let row = json!({"Id": 1, "Total Sum": 4, "q\"uoted": "q", "dot.ted": "d", "Ünï": "ü", "select": 3});
        let update = only(&events, "My Schema.Orders", |event| event.op() == "update");
        assert_eq!(update.json["data"], row);
        assert_eq!(update.text("type"), "Orders.updated");
        assert_eq!(update.text("aggregate_type"), "Orders");
        let odd = only(&events, "public.a'b\"c", |_| true);
        assert_eq!(odd.text("type"), "a'b\"c.inserted");
        let moved = of_table(&events, "sch.ema.tab.le");
        assert_eq!(moved.iter().map(|event| event.op()).collect::<Vec<_>>(), ["read", "delete", "insert"]);
        for table in ["public.Größe 漢字", "public.a'b\"c", "public.back\\slash", "My Schema.Orders"] {
            assert_folded_equals(&events, &source, table);
        }
    }
}

#[test]
fn case_r8_rules_take_tables_of_every_name_literally() {
    let (source, hub) = on_file("oddrules");
    source.exec(
        r#"CREATE SCHEMA "a.b"; CREATE TABLE "a.b".t (id int PRIMARY KEY);
           CREATE TABLE "Orders" (id int PRIMARY KEY); CREATE TABLE orders (id int PRIMARY KEY);
           CREATE TABLE "c.d" (id int PRIMARY KEY); CREATE TABLE "it's" (id int PRIMARY KEY); CREATE TABLE "q""q" (id int PRIMARY KEY);
           CREATE TABLE "100%" (id int PRIMARY KEY); CREATE TABLE a_b (id int PRIMARY KEY); CREATE TABLE "aXb" (id int PRIMARY KEY);
           INSERT INTO "a.b".t VALUES (1); INSERT INTO "Orders" VALUES (1); INSERT INTO orders VALUES (1); INSERT INTO "c.d" VALUES (1);
           INSERT INTO "it's" VALUES (1); INSERT INTO "q""q" VALUES (1); INSERT INTO "100%" VALUES (1); INSERT INTO a_b VALUES (1);
           INSERT INTO "aXb" VALUES (1)"#,
    );
    let rule = |name: &str| format!("[[table]]\nname = '''{name}'''\n");
    let rules = [
        r#""a.b".t"#,
        "public.Orders",
        r#"public."c.d""#,
        "public.it's",
        "public.q\"q",
        "public.100%",
        "public.a_b",
    ];
    let walgate = Walgate::new(&source, &hub).section(&rules.map(rule).concat());
    walgate.run_until_caught_up();
    let events = hub.events();
    let mut tables: Vec<String> = events.iter().map(Event::table).collect();
    tables.sort();
    let mut expected =
        ["a.b.t", "public.Orders", "public.c.d", "public.it's", "public.q\"q", "public.100%", "public.a_b"];
    expected.sort_unstable();
    assert_eq!(tables, expected, "names are literal and case-sensitive");
}

#[test]
fn the_exact_rule_wins_and_a_later_pattern_over_an_earlier_one() {
    let (source, hub) = on_file("rules");
    source.exec("CREATE SCHEMA s");
    for table in ["public.a1", "public.a2", "public.b", "s.a1", "public.log_x"] {
        source.exec(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"));
    }
    let rules = r#"
        [[table]]
        name = "public.a2"
        aggregate_type = "exact"
        [[table]]
        name = "*.*"
        aggregate_type = "any"
        [[table]]
        name = "*.a*"
        aggregate_type = "a"
        [[table]]
        name = "public.log_*"
        mode = "off"
        "#;
    let walgate = Walgate::new(&source, &hub).section(rules);
    walgate.run_until_caught_up();
    source.exec("INSERT INTO public.log_x VALUES (2)");
    walgate.run_until_caught_up();
    let events = hub.events();
    let type_of = |table| only(&events, table, |_| true).text("aggregate_type");
    assert_eq!(type_of("public.a2"), "exact");
    assert_eq!(type_of("public.a1"), "a");
    assert_eq!(type_of("s.a1"), "a");
    assert_eq!(type_of("public.b"), "any");
    assert!(of_table(&events, "public.log_x").is_empty());
}

#[test]
fn without_any_rule_everything_in_public_is_events() {
    let (source, hub) = on_file("norules");
    source
        .exec("CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY)");
    source.exec("INSERT INTO s.t VALUES (1); INSERT INTO t VALUES (1)");
    let walgate = started(&source, &hub);
    source.exec("INSERT INTO s.t VALUES (2); INSERT INTO t VALUES (2)");
    walgate.run_until_caught_up();
    assert_eq!(hub.topics(), [format!("{}.public.t", source.name())]);
    assert_eq!(table_ops(&hub.events(), "public.t"), ["read", "insert"]);
}

#[test]
fn event_types_and_aggregate_types_follow_the_rule() {
    for (source, hub) in on_each_hub("eventtypes") {
        source.exec(
            "CREATE TABLE orders (id int PRIMARY KEY, n int); CREATE TABLE plain (id int PRIMARY KEY, n int);
             INSERT INTO orders VALUES (1, 0); INSERT INTO plain VALUES (1, 0)",
        );
        let walgate = Walgate::new(&source, &hub)
            .hub("topic = \"{source}.{aggregate_type}\"")
            .section("[[table]]\nname = \"public.*\"\n[[table]]\nname = \"public.orders\"\naggregate_type = \"Order\"\nevent_type = \"Order{Op}\"");
        walgate.run_until_caught_up();
        for table in ["orders", "plain"] {
            source.exec(&format!("INSERT INTO {table} VALUES (2, 0); UPDATE {table} SET n = 1 WHERE id = 2"));
            source.exec(&format!("DELETE FROM {table} WHERE id = 2; TRUNCATE {table}"));
        }
        walgate.run_until_caught_up();
        let events = hub.events();
        let types = |table| -> Vec<String> {
            let mut types: Vec<String> =
                of_table(&events, table).into_iter().map(|event| event.text("type").to_owned()).collect();
            types.dedup();
            types
        };
        assert_eq!(
            types("public.orders"),
            ["OrderRead", "OrderInserted", "OrderUpdated", "OrderDeleted", "OrderTruncated"]
        );
        assert_eq!(
            types("public.plain"),
            ["plain.read", "plain.inserted", "plain.updated", "plain.deleted", "plain.truncated"]
        );
        let name = source.name();
        assert_eq!(hub.topics(), [format!("{name}.Order"), format!("{name}.plain")]);
        for (table, aggregate_type) in [("public.orders", "Order"), ("public.plain", "plain")] {
            for event in of_table(&events, table) {
                assert_eq!(event.text("aggregate_type"), aggregate_type);
                assert_eq!(event.topic, format!("{name}.{aggregate_type}"));
            }
        }
        assert_folded_equals(&events, &source, "public.orders");
    }
}

#[test]
fn tables_may_share_a_topic_that_was_written_so() {
    let (source, hub) = on_file("onetopic");
    source.exec("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)");
    let walgate = Walgate::new(&source, &hub).hub("topic = \"{source}.all\"");
    walgate.run_until_caught_up();
    source.exec("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)");
    walgate.run_until_caught_up();
    assert_eq!(hub.topics(), [format!("{}.all", source.name())]);
    assert_eq!(hub.events().len(), 2);
}

#[test]
fn case_r8_topics_that_collide_are_refused() {
    // Each pair would have the same topic, or two that Kafka cannot tell apart.
    let pairs = [
        (r#"public."a b""#, "public.a_b"),
        (r#"public."x'y""#, r#"public."x""y""#),
        (r#"public."é""#, r#"public."è""#),
        (r#""p.q".r"#, r#"p."q.r""#),
    ];
    for (one, other) in pairs {
        let (source, hub) = on_file("collisions");
        source.exec(r#"CREATE SCHEMA p; CREATE SCHEMA "p.q""#);
        source.exec(&format!(
            "CREATE TABLE {one} (id int PRIMARY KEY); CREATE TABLE {other} (id int PRIMARY KEY)"
        ));
        source.exec(&format!("INSERT INTO {one} VALUES (1); INSERT INTO {other} VALUES (1)"));
        let walgate = Walgate::new(&source, &hub).section("[[table]]\nname = \"*.*\"");
        let log = refusal(&walgate, 1);
        let plain = |name: &str| name.replace("\"\"", "\u{0}").replace('"', "").replace('\u{0}', "\"");
        assert_names_each(&log, &[&plain(one), &plain(other), "topic"]);
        assert!(hub.events().is_empty(), "{one} and {other}");
    }
}

#[test]
fn case_f6_only_listed_columns_with_every_quoting() {
    let (source, hub) = on_file("listed");
    for (table, first) in [(r#""a'""#, "a"), (r#""B""#, "a"), (r#""c""d""#, "a")] {
        source.exec(&format!(
            r#"CREATE TABLE {table} ({first} int PRIMARY KEY, "B" text, "c'd" text, hidden text, "Hidden ""2" text);
               INSERT INTO {table} VALUES (1, 'b', 'c', 'SECRET', 'SECRET')"#
        ));
    }
    let rules = r#"
        [[table]]
        name = "public.a'"
        columns = ["a", "B"]
        [[table]]
        name = "public.B"
        columns = ["c'd", "a"]
        [[table]]
        name = 'public.c"d'
        exclude = ["hidden", 'Hidden "2']
        "#;
    let walgate = Walgate::new(&source, &hub).section(rules);
    walgate.run_until_caught_up();
    for table in [r#""a'""#, r#""B""#, r#""c""d""#] {
        source.exec(&format!(r#"INSERT INTO {table} VALUES (2, 'b', 'c', 'SECRET', 'SECRET')"#));
        source
            .exec(&format!(r#"UPDATE {table} SET "B" = 'b2', "c'd" = 'c2', hidden = 'SECRET2' WHERE a = 2"#));
        source.exec(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL; DELETE FROM {table} WHERE a = 2"));
    }
    walgate.run_until_caught_up();
    let events = hub.events();
    assert!(
        events
            .iter()
            .all(|event| !event.raw.contains("SECRET") && !event.raw.to_lowercase().contains("hidden"))
    );
    let images = |table, field| -> Vec<Value> {
        of_table(&events, table).into_iter().map(|event| event.json[field].clone()).collect()
    };
    assert_eq!(
        images("public.a'", "data"),
        [json!({"a": 1, "B": "b"}), json!({"a": 2, "B": "b"}), json!({"a": 2, "B": "b2"}), json!(null)]
    );
    assert_eq!(images("public.a'", "before")[3], json!({"a": 2, "B": "b2"}));
    assert_eq!(
        images("public.B", "data"),
        [json!({"a": 1, "c'd": "c"}), json!({"a": 2, "c'd": "c"}), json!({"a": 2, "c'd": "c2"}), json!(null)]
    );
    assert_eq!(images("public.c\"d", "data")[2], json!({"a": 2, "B": "b2", "c'd": "c2"}));
}

#[test]
fn an_excluded_toasted_column_is_not_named_as_unchanged() {
    let (source, hub) = on_file("excludedtoast");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int, hidden text, seen text)");
    source.exec("ALTER TABLE t ALTER hidden SET STORAGE EXTERNAL, ALTER seen SET STORAGE EXTERNAL");
    let walgate =
        Walgate::new(&source, &hub).section("[[table]]\nname = \"public.t\"\nexclude = [\"hidden\"]");
    walgate.run_until_caught_up();
    let long = crate::support::pick::TOASTED;
    source.exec(&format!("INSERT INTO t VALUES (1, 1, {long}, {long})"));
    source.exec("UPDATE t SET n = 2");
    walgate.run_until_caught_up();
    let events = hub.events();
    assert_eq!(only(&events, "public.t", |event| event.op() == "update").unchanged(), ["seen"]);
    assert!(events.iter().all(|event| !event.raw.contains("hidden")));
}

#[test]
fn an_excluded_key_is_included_all_the_same() {
    let (source, hub) = on_file("excludedkey");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int, m int); INSERT INTO t VALUES (1, 1, 1)");
    let walgate =
        Walgate::new(&source, &hub).section("[[table]]\nname = \"public.t\"\nexclude = [\"id\", \"m\"]");
    walgate.run_until_caught_up();
    assert_eq!(hub.events()[0].json["data"], json!({"id": 1, "n": 1}));
}

#[test]
fn case_f7_an_update_of_an_unlisted_column_alone() {
    let (source, hub) = on_file("unlisted");
    source.exec(
        "CREATE TABLE full_listed (id int PRIMARY KEY, a int, b int, c text);
         ALTER TABLE full_listed REPLICA IDENTITY FULL; ALTER TABLE full_listed ALTER c SET STORAGE EXTERNAL;
         CREATE TABLE full_except (LIKE full_listed INCLUDING ALL); ALTER TABLE full_except REPLICA IDENTITY FULL;
         CREATE TABLE full_all (LIKE full_listed INCLUDING ALL); ALTER TABLE full_all REPLICA IDENTITY FULL",
    );
    let walgate = Walgate::new(&source, &hub).section(
        "[[table]]\nname = \"public.full_listed\"\ncolumns = [\"id\", \"a\", \"c\"]\n
         [[table]]\nname = \"public.full_except\"\nexclude = [\"b\"]\n[[table]]\nname = \"public.full_all\"\n",
    );
    walgate.run_until_caught_up();
    let tables = ["full_listed", "full_except", "full_all"];
    for table in tables {
        source.exec(&format!("INSERT INTO {table} VALUES (1, 1, 1, {})", crate::support::pick::TOASTED));
        source.exec(&format!(
            "UPDATE {table} SET b = 2; UPDATE {table} SET a = a; UPDATE {table} SET a = NULL, b = 3"
        ));
        source.exec(&format!("UPDATE {table} SET b = 4; UPDATE {table} SET c = 'short', b = NULL"));
    }
    walgate.run_until_caught_up();
    let events = hub.events();
    for table in &tables[..2] {
        let name = format!("public.{table}");
        assert_eq!(table_ops(&events, &name), ["insert", "update", "update"], "{table}");
        let [_, first, second] = of_table(&events, &name)[..] else { unreachable!("counted above") };
        assert_eq!((first.data("a"), second.data("c")), (&Value::Null, &json!("short")));
    }
    assert_eq!(
        table_ops(&events, "public.full_all"),
        ["insert", "update", "update", "update", "update", "update"]
    );
}

#[test]
fn case_f8_every_fault_of_the_columns_is_named_at_the_start() {
    let (source, hub) = on_file("faults");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, a int); CREATE TABLE u (id int PRIMARY KEY, a int)");
    let with = |rules: &str| Walgate::new(&source, &hub).section(rules);
    let rule = |lines: &str| format!("[[table]]\nname = \"public.t\"\n{lines}\n");

    let log = refusal(&with(&rule("columns = [\"a\"]")), 1);
    assert_names_each(&log, &["public.t", "id", "columns"]);
    for lines in [
        "columns = [\"id\", \"nosuch\"]",
        "exclude = [\"nosuch\"]",
        "key = [\"nosuch\"]",
        "aggregate_id = [\"nosuch\"]",
    ] {
        let log = refusal(&with(&rule(lines)), 1);
        assert_names_each(&log, &["public.t", "nosuch"]);
    }
    let log = refusal(&with("[[table]]\nname = \"public.nosuch\""), 1);
    assert_names_each(&log, &["public.nosuch"]);
    // Two exact rules for one destination, an unknown key, a contradiction: a wrong file, each fault named.
    let log = refusal(
        &with(&format!("{}{}", rule("aggregat_type = \"x\""), rule("columns = [\"id\"]\nexclude = [\"a\"]"))),
        2,
    );
    assert_names_each(&log, &["table[0]", "table[1]", "aggregat_type", "exclude"]);
    assert!(log.contains("rule already") || log.contains("two"), "{log}");
    assert!(hub.events().is_empty());
}

#[test]
fn case_f8_two_faulty_tables_are_both_named() {
    let (source, hub) = on_file("twofaults");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, a int); CREATE TABLE u (id int PRIMARY KEY, a int)");
    let walgate = Walgate::new(&source, &hub).section(
        "[[table]]\nname = \"public.t\"\ncolumns = [\"a\"]\n[[table]]\nname = \"public.u\"\nexclude = [\"nosuch\"]",
    );
    assert_names_each(&refusal(&walgate, 1), &["public.t", "public.u", "nosuch"]);
    let slots = source.query("SELECT 1 FROM pg_replication_slots WHERE database = current_database()");
    assert!(slots.is_empty(), "a slot that nobody reads retains WAL");
    let walgate = Walgate::new(&source, &hub)
        .section("[[table]]\nname = \"public.nosuch1\"\n[[table]]\nname = \"public.nosuch2\"");
    assert_names_each(&refusal(&walgate, 1), &["public.nosuch1", "public.nosuch2"]);
}

#[test]
fn a_source_name_of_odd_characters_names_everything() {
    let source = Source::new("oddsource");
    let name = format!("Shöp & \"Co\"/1 % {}", source.name());
    let is_legal = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    let legal: String = name.chars().map(|c| if is_legal(c) { c } else { '_' }).collect();
    source.exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)");
    let kafka_hub = Hub::Kafka { brokers: servers::kafka_brokers(), source: legal.clone() };
    for hub in [Hub::file(), kafka_hub] {
        let slot = format!("{}_{}", source.name(), if matches!(hub, Hub::File { .. }) { "f" } else { "k" });
        let section = format!("name = {name:?}\nurl = {:?}\nslot = {slot:?}\n", source.url());
        let walgate = Walgate::with(&section, &hub.settings());
        walgate.run_until_caught_up();
        source.exec("UPDATE t SET n = n + 1; UPDATE t SET id = id + 1");
        walgate.run_until_caught_up();
        let events = hub.events();
        assert_eq!(hub.topics(), [format!("{legal}.public.t")]);
        assert_eq!(table_ops(&events, "public.t"), ["read", "update", "delete", "insert"]);
        for event in &events {
            assert_eq!(event.json["source"]["name"], name);
            assert!(event.id().starts_with(&format!("{name}/")), "{}", event.id());
        }
        assert_folded_equals(&events, &source, "public.t");
    }
    let checkpoint = format!("{legal}.{}_k_hub.checkpoint", source.name());
    assert_eq!(
        kafka::topics(&servers::kafka_brokers(), &checkpoint),
        Vec::<String>::new(),
        "the hub is cleaned up"
    );
}

#[test]
fn the_default_source_name_is_the_databases() {
    let (source, hub) = on_file("defaultname");
    source.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    started(&source, &hub);
    assert_eq!(hub.events()[0].json["source"]["name"], source.name());
}
