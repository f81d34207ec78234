//! `init`, `check`, `migrate`: everything that is wrong is found at once, each with its remedy; and at run time
//! it is a definite error, never a loop.
//!
//! In: servers, roles and rules that do not do. Out: exit codes, findings. DESIGN section 7; cases R1, D5, D7,
//! D12, F8.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Cluster, Hub, PATIENCE, Source, Walgate, kafka, servers};

/// What `check --json` printed.
pub struct Checked {
    pub code: Option<i32>,
    json: Value,
}

impl Checked {
    #[track_caller]
    pub fn of(walgate: &Walgate) -> Self {
        let output = walgate.command(&["check", "--json"]);
        let json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", out(&output), err(&output)));
        Checked { code: output.status.code(), json }
    }

    /// Asserts a finding of that kind with these words in its message and its remedy.
    #[track_caller]
    pub fn has(&self, kind: &str, key: &str, message: &str, remedy: &str) -> &Self {
        let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        let found = self.json[kind].as_array().expect("a list").iter().any(|finding| {
            text(finding, "key") == key
                && text(finding, "message").contains(message)
                && text(finding, "remedy").contains(remedy)
        });
        assert!(found, "no {kind} of {key}: {message} / {remedy}\n{:#}", self.json);
        self
    }

    #[track_caller]
    pub fn fault(&self, key: &str, message: &str, remedy: &str) -> &Self {
        assert_eq!(self.code, Some(1), "{:#}", self.json);
        self.has("faults", key, message, remedy)
    }

    #[track_caller]
    pub fn only_faults(&self, count: usize) {
        assert_eq!(self.json["faults"].as_array().map(Vec::len), Some(count), "{:#}", self.json);
    }

    #[track_caller]
    pub fn is_clean(&self) {
        self.only_faults(0);
        assert_eq!(self.code, Some(0));
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `walgate run` ends by itself, exit code 1, with this in its log.
#[track_caller]
pub fn run_fails(walgate: &Walgate, message: &str) {
    let mut running = walgate.run();
    let status = running.wait(PATIENCE);
    let log = running.stderr();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(message), "no {message:?} in\n{log}");
    assert!(log.contains("remedy: "), "{log}");
}

/// A role of the source's own on its server, with a password, without rights; dropped with what it owns.
struct Role<'s> {
    source: &'s Source,
    name: String,
}

impl<'s> Role<'s> {
    fn new(source: &'s Source, attributes: &str) -> Self {
        let name = format!("{}_role", source.name());
        source.exec(&format!("CREATE ROLE {name} LOGIN PASSWORD 'right' {attributes}"));
        Role { source, name }
    }

    /// Walgate as this role, over TCP.
    fn walgate(&self, hub: &Hub) -> Walgate {
        let url = url_as(&self.source.url(), &self.name, "right");
        Walgate::with(&format!("url = {url:?}\nslot = {:?}\n", self.source.name()), &hub.settings())
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.source.drop_slots();
            self.source.exec(&format!("DROP OWNED BY {0} CASCADE; DROP ROLE {0}", self.name));
        }
    }
}

fn url_as(url: &str, user: &str, password: &str) -> String {
    let (_, rest) = url.split_once("://").expect("a URL");
    let (_, address) = rest.split_once('@').expect("the tests' URLs name a role");
    format!("postgres://{user}:{password}@{address}")
}

#[test]
fn a_good_configuration_has_no_faults_and_changes_nothing() {
    let source = Source::new("check_good");
    source.exec("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    for hub in Hub::of_each_kind(&source) {
        let walgate = Walgate::new(&source, &hub);
        Checked::of(&walgate).is_clean();
        Checked::of(&walgate).has("notes", "table", "TOASTed", "REPLICA IDENTITY FULL");
        assert!(hub.topics().is_empty());
        let made = "SELECT 1 FROM pg_publication UNION ALL SELECT 1 FROM pg_replication_slots WHERE database = current_database()";
        assert!(source.query(made).is_empty());
        if let Hub::File { .. } = hub {
            assert!(!hub.path().exists(), "check makes no directory");
        }
        let text = out(&walgate.command(&["check"]));
        assert!(text.trim_end().lines().last().is_some_and(|line| line.starts_with("0 faults, ")), "{text}");
        walgate.run_until_caught_up();
        Checked::of(&walgate).is_clean();
        let running = walgate.run();
        running.wait_for_log("to=Streaming");
        Checked::of(&walgate).is_clean();
        running.stop();
        // Another hub starts from nothing.
        source.drop_slots();
        source.exec(&format!("DROP PUBLICATION {0}_hub, {0}_hub_inserts", source.name()));
    }
}

#[test]
fn case_d12_wrong_password_and_no_replication_right() {
    let cluster = Cluster::start(&[("max_replication_slots", "4")]);
    cluster.add_hba("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256");
    let source = Source::on(&cluster, "check_role");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let hub = Hub::file();
    let role = Role::new(&source, "");

    let url = url_as(&source.url(), &role.name, "wrong");
    let wrong = Walgate::with(&format!("url = {url:?}\nslot = {:?}\n", source.name()), &hub.settings());
    let checked = Checked::of(&wrong);
    checked.fault("source.url", "password authentication failed", "PGPASSWORD");
    assert!(!checked.json.to_string().contains("wrong"), "{:#}", checked.json);
    run_fails(&wrong, "password authentication failed");

    // All faults of the role at once.
    let walgate = role.walgate(&hub);
    let checked = Checked::of(&walgate);
    checked.fault("source.url", "no REPLICATION", &format!("ALTER ROLE \"{}\" REPLICATION;", role.name));
    checked.fault("source.publication", "may not create publications", "CREATE PUBLICATION");
    checked.fault("source.publication", "public.t", "GRANT CREATE ON DATABASE");
    checked.fault("source.snapshot", "public.t", "GRANT SELECT ON \"public\".\"t\"");
    checked.only_faults(3);
    run_fails(&walgate, "SQLSTATE 42501");

    // Mended as the remedies say: a given publication, SELECT, REPLICATION.
    source.exec(&format!(
        "ALTER ROLE {0} REPLICATION; GRANT SELECT ON t TO {0};
         CREATE PUBLICATION given FOR TABLE t WITH (publish_via_partition_root = true)",
        role.name
    ));
    run_fails(&walgate, "SQLSTATE 42501");
    let walgate = role.walgate(&hub).source("publication = \"given\"");
    Checked::of(&walgate).is_clean();
    walgate.run_until_caught_up();

    // Row level security hides rows from the copy.
    source.exec("ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    Checked::of(&walgate).fault("source.snapshot", "row level security", "BYPASSRLS");
}

#[test]
fn case_d12_wal_level_tls_and_no_free_slot() {
    let cluster = Cluster::start(&[("wal_level", "replica"), ("max_replication_slots", "1")]);
    let source = Source::on(&cluster, "check_server");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    let checked = Checked::of(&walgate);
    checked.fault("source.url", "wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'");
    checked.fault(
        "source.slot",
        "1 replication slots of 1 are free, 2 are needed",
        "max_replication_slots = 2",
    );
    run_fails(&walgate, "wal_level");

    let url = format!("{}?sslmode=require", source.url());
    let secure = Walgate::with(&format!("url = {url:?}\nslot = {:?}\n", source.name()), &hub.settings());
    Checked::of(&secure).fault("source.url", "TLS", "");
    run_fails(&secure, "TLS");
    drop(source);

    cluster.set(&[("wal_level", "logical")]);
    cluster.restart(crate::support::Shutdown::Fast);
    let source = Source::on(&cluster, "check_slots");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    source.exec("SELECT pg_create_logical_replication_slot('somebodys', 'pgoutput')");
    let walgate = Walgate::new(&source, &Hub::file());
    Checked::of(&walgate).fault("source.slot", "0 replication slots of 1 are free", "drop a slot");
    run_fails(&walgate, "all replication slots are in use");
}

#[test]
fn a_server_or_broker_that_is_not_there_is_named() {
    let source = Source::new("check_nowhere");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let port = servers::free_port();
    let hub = format!("kind = \"kafka\"\nbrokers = \"127.0.0.1:{port}\"\n");
    let begun = std::time::Instant::now();
    let url = format!("postgres://postgres@127.0.0.1:{port}/shop");
    let checked = Checked::of(&Walgate::with(&format!("url = {url:?}\n"), &hub));
    checked.fault("source.url", "refused", "is the server running");
    checked.fault("hub.brokers", &format!("127.0.0.1:{port}"), "brokers");
    assert!(begun.elapsed() < Duration::from_secs(30));

    let checked = Checked::of(&Walgate::with(&format!("url = {:?}\n", source.url()), &hub));
    checked.fault("hub.brokers", "refused", "brokers");
    checked.only_faults(1);
}

#[test]
fn case_f8_rules_that_do_not_fit_are_all_named_and_refused_at_start() {
    let source = Source::new("check_rules");
    source.exec(
        "CREATE TABLE orders (id int PRIMARY KEY, region text, total numeric, twice numeric GENERATED ALWAYS AS (total * 2) STORED);
         CREATE VIEW v AS SELECT 1;
         CREATE UNLOGGED TABLE u (id int PRIMARY KEY);
         CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE TABLE items (id int PRIMARY KEY, order_id int)",
    );
    let rules = [
        ("name = \"public.missing\"", "table[0].name", "public.missing does not exist", "correct the name"),
        ("name = \"public.v\"", "table[1].name", "a view", "off"),
        ("name = \"public.u\"", "table[2].name", "unlogged", "SET LOGGED"),
        ("name = \"public.parts_1\"", "table[3].name", "a partition of public.parts", "public.parts"),
        (
            "name = \"public.orders\"\ncolumns = [\"regoin\", \"twice\"]",
            "table[4].columns",
            "\"regoin\" does not exist",
            "\"region\"",
        ),
        (
            "name = \"public.Items\"",
            "table[5].name",
            "public.Items does not exist",
            "did you mean public.items",
        ),
        (
            "name = \"public.items\"\naggregate_id = [\"order_id\"]",
            "table[6].aggregate_id",
            "not in the replica identity",
            "ALTER TABLE \"public\".\"items\" REPLICA IDENTITY FULL;",
        ),
        ("name = \"public.parts\"\ncolumns = []\n", "", "", ""),
    ];
    let (rules, _) = rules.split_at(7);
    let hub = Hub::file();
    let all = rules.iter().fold(Walgate::new(&source, &hub), |walgate, (rule, ..)| {
        walgate.section(&format!("[[table]]\n{rule}"))
    });
    let checked = Checked::of(&all);
    for (_, key, message, remedy) in rules {
        checked.fault(key, message, remedy);
    }
    checked.fault("table[4].columns", "\"twice\" is generated", "remove");
    checked.only_faults(8);
    for (rule, ..) in rules {
        let walgate = Walgate::new(&source, &hub).section(&format!("[[table]]\n{rule}"));
        run_fails(&walgate, "table[0]");
    }
    let slots = source.query("SELECT 1 FROM pg_replication_slots WHERE database = current_database()");
    assert!(slots.is_empty(), "a refused rule leaves no slot behind");

    // A list without the key.
    let walgate =
        Walgate::new(&source, &hub).section("[[table]]\nname = \"public.orders\"\ncolumns = [\"region\"]");
    Checked::of(&walgate).fault("table[0].columns", "the key's column \"id\"", "add \"id\"");
    run_fails(&walgate, "\"id\" is not among the listed columns");

    // Two exact rules are a fault of the file.
    let walgate = Walgate::new(&source, &hub)
        .section("[[table]]\nname = \"public.orders\"\n[[table]]\nname = \"public.orders\"\nwhere = \"\"");
    let checked = Checked::of(&walgate);
    assert_eq!(checked.code, Some(2));
    checked.has("faults", "table[1].name", "has a rule already", "").has(
        "faults",
        "table[1].where",
        "is empty",
        "",
    );
    assert_eq!(walgate.command(&["run"]).status.code(), Some(2));
}

#[test]
fn topics_that_collide_are_named() {
    let source = Source::new("check_topics");
    source.exec("CREATE TABLE \"a b\" (id int PRIMARY KEY); CREATE TABLE \"a:b\" (id int PRIMARY KEY)");
    let walgate = Walgate::new(&source, &Hub::file());
    Checked::of(&walgate).fault("hub.topic", "would share the topic", "hub.topic");
    run_fails(&walgate, "would share the topic");
}

#[test]
fn a_foreign_partition_is_named() {
    let source = Source::new("check_foreign");
    source.exec(
        "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
         CREATE TABLE p (id int) PARTITION BY RANGE (id);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE FOREIGN TABLE p_2 PARTITION OF p FOR VALUES FROM (10) TO (20) SERVER nowhere;
         CREATE UNLOGGED TABLE p_3 PARTITION OF p FOR VALUES FROM (20) TO (30)",
    );
    let walgate = Walgate::new(&source, &Hub::file());
    Checked::of(&walgate).fault("table", "the partition public.p_2 is a foreign table", "mode = \"off\"");
    Checked::of(&walgate).fault("table", "the partition public.p_3 is unlogged", "SET LOGGED");
    run_fails(&walgate, "p_2 is a foreign table");
}

#[test]
fn a_port_that_is_taken_is_a_warning() {
    let source = Source::new("check_port");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let mut walgate = Walgate::new(&source, &Hub::file());
    let port = walgate.admin_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let checked = Checked::of(&walgate);
    checked.has("warnings", "admin.listen", "cannot be listened on", "\"off\"");
    checked.is_clean();
}

#[test]
fn case_r1_tables_without_a_usable_identity_are_named() {
    let source = Source::new("check_identity");
    source.exec(
        "CREATE TABLE keyed (id int PRIMARY KEY);
         CREATE TABLE bare (id int);
         CREATE TABLE full_row (id int); ALTER TABLE full_row REPLICA IDENTITY FULL;
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE indexed (id int NOT NULL UNIQUE); ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_id_key;
         CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, n int)",
    );
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    let checked = Checked::of(&walgate);
    checked.is_clean();
    checked.has(
        "warnings",
        "table",
        "only inserts and truncates: public.bare, public.deferred, public.nothing",
        "ALTER TABLE \"public\".\"bare\" REPLICA IDENTITY FULL;",
    );
    walgate.run_until_caught_up();
    // The application's own statements go on working, whatever is published.
    for table in ["keyed", "bare", "full_row", "nothing", "indexed", "deferred"] {
        source
            .exec(&format!("INSERT INTO {table} VALUES (1); UPDATE {table} SET id = 2; DELETE FROM {table}"));
    }
    walgate.run_until_caught_up();
    let events = hub.events();
    let deletes = |table: &str| {
        events.iter().filter(|event| event.topic.ends_with(table) && event.op() == "delete").count()
    };
    // A key change is a delete and an insert; without a key it is an update.
    assert_eq!(["keyed", "full_row", "indexed"].map(deletes), [2, 1, 2]);
    assert_eq!(["bare", "nothing", "deferred"].map(deletes), [0, 0, 0]);
}

#[test]
fn an_existing_publication_is_compared_with_the_rules() {
    let source = Source::new("check_given");
    source.exec(
        "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE PUBLICATION given FOR TABLE a, p WITH (publish = 'insert, update')",
    );
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub)
        .source("publication = \"given\"")
        .section("[[table]]\nname = \"public.*\"\n[[table]]\nname = \"public.b\"");
    let checked = Checked::of(&walgate);
    checked.fault("table[1].name", "public.b is not in the publication given", "ADD TABLE \"public\".\"b\"");
    checked.fault("source.publication", "leaf by leaf", "publish_via_partition_root = true");
    checked.has("warnings", "source.publication", "does not publish delete, truncate", "SET (publish =");
    run_fails(&walgate, "public.b is not in the publication");
    source.exec("ALTER PUBLICATION given ADD TABLE b");
    run_fails(&walgate, "leaf by leaf");

    let walgate = Walgate::new(&source, &hub).source("publication = \"other\"");
    Checked::of(&walgate).fault("source.publication", "\"other\" does not exist", "CREATE PUBLICATION");
    run_fails(&walgate, "\"other\" does not exist");
}

#[test]
fn case_d7_a_slot_that_is_gone_or_moved_is_found() {
    let source = Source::new("check_slot");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    for hub in Hub::of_each_kind(&source) {
        let walgate = Walgate::new(&source, &hub);
        walgate.run_until_caught_up();
        source.drop_slots();
        Checked::of(&walgate).fault("source.slot", "does not exist any more", "walgate drop");
        run_fails(&walgate, "does not exist any more");
        let slot = format!("{}_hub", source.name());
        source.exec("INSERT INTO t SELECT COALESCE(max(id), 0) + 1 FROM t");
        source.exec(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        Checked::of(&walgate).fault("source.slot", "somebody moved or re-created it", "walgate drop");
        run_fails(&walgate, "somebody moved or re-created it");
        source.drop_slots();
    }
}

#[test]
fn case_d5_topics_that_cannot_be_are_found() {
    let source = Source::new("check_kafka");
    source.exec("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let hub = Hub::kafka(&source);
    let walgate = Walgate::new(&source, &hub).hub("create_topics = false");
    let topic = format!("{}.public.t", source.name());
    Checked::of(&walgate).fault("hub.create_topics", &topic, "create_topics = true");
    run_fails(&walgate, &format!("topic {topic} does not exist"));

    let walgate = Walgate::new(&source, &hub).hub("topic_config = { \"retention.sm\" = 1 }");
    Checked::of(&walgate).fault("hub.create_topics", &topic, "topic_config");
    let walgate = Walgate::new(&source, &hub).hub("properties = { \"sasl.pasword\" = \"s3cret\" }");
    let checked = Checked::of(&walgate);
    checked.fault("hub.brokers", "no property sasl.pasword", "[hub.properties]");
    assert!(!checked.json.to_string().contains("s3cret"), "{:#}", checked.json);
    run_fails(&walgate, "no property sasl.pasword");
    let walgate = Walgate::new(&source, &hub).hub("replication_factor = 7");
    Checked::of(&walgate).fault("hub.create_topics", &topic, "hub.replication_factor");
    run_fails(&walgate, "Invalid replication factor");
    let walgate = Walgate::new(&source, &hub).hub("properties = { \"security.protocol\" = \"ssl\" }");
    // librdkafka says either "SSL handshake failed" or "SSL connection closed by peer", whichever it sees first.
    Checked::of(&walgate).fault("hub.brokers", "SSL ", "security.protocol");

    // Made by an administrator: compacted, and for small messages only.
    kafka::create_topic(
        &servers::kafka_brokers(),
        &topic,
        1,
        &[("cleanup.policy", "compact"), ("max.message.bytes", "2000")],
    );
    let walgate = Walgate::new(&source, &hub);
    let checked = Checked::of(&walgate);
    checked.has("warnings", "hub.topic", "compacted", "REPLICA IDENTITY FULL");
    checked.has("warnings", "hub.topic", "at most 2000 bytes", "max.message.bytes");
    checked.is_clean();
}

#[test]
fn a_file_hub_that_cannot_be_written_is_found() {
    let source = Source::new("check_path");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let folder = servers::folder("check");
    let file = folder.path().join("a file");
    std::fs::write(&file, "not a directory").expect("the folder can be written");
    let hub = format!("path = {:?}\n", file.join("hub"));
    let walgate = Walgate::with(&format!("url = {:?}\nslot = {:?}\n", source.url(), source.name()), &hub);
    Checked::of(&walgate).fault("hub.path", "is no directory", "hub.path");
    run_fails(&walgate, "a file");
}

#[test]
fn a_file_that_cannot_be_used_is_exit_code_2() {
    let walgate = Walgate::with("url = \"mysql://db\"\nslto = \"x\"\n", "kind = \"kafak\"\n");
    let checked = Checked::of(&walgate);
    assert_eq!(checked.code, Some(2));
    checked.has("faults", "source.slto", "unknown key", "slot");
    checked.has("faults", "source.url", "postgres://", "write url");
    checked.has("faults", "hub.kind", "is no kind", "");
    let output = walgate.command(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("source.slto") && err(&output).contains("hub.kind"), "{}", err(&output));

    let walgate = Walgate::with("url = \"postgres://u:s3cret@db:notaport/x\"\n", "kind = \"file\"\n");
    for command in ["check", "run", "migrate"] {
        let output = walgate.command(&[command]);
        assert_eq!(output.status.code(), Some(2), "{command}: {}", err(&output));
        assert!(err(&output).contains("source.url") && !err(&output).contains("s3cret"), "{}", err(&output));
    }
}

#[test]
fn init_writes_a_file_that_runs() {
    let source = Source::new("init");
    source.exec(
        "CREATE TABLE orders (id int PRIMARY KEY); CREATE SCHEMA \"Sales\"; CREATE TABLE \"Sales\".\"a.b\" (id int)",
    );
    let folder = servers::folder("init");
    let path = folder.path().join("made.toml");
    let walgate = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_walgate"));
        command.current_dir(folder.path()).arg("--config").arg(&path).args(arguments);
        command.env("PGPASSWORD", "p@ss").output().expect("the binary can be run")
    };
    let url = url_as(&source.url(), "postgres", "p%40ss");
    let gone = format!("postgres://postgres:p@127.0.0.1:{}/x", servers::free_port());
    let output = walgate(&["init", "--source", &gone]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("remedy: ") && !path.exists(), "{}", err(&output));

    let output = walgate(&["init", "--source", &url]);
    assert!(output.status.success(), "{}", err(&output));
    let text = std::fs::read_to_string(&path).expect("init has written the file");
    assert!(text.contains("${PGPASSWORD}") && !text.contains("p%40ss"), "{text}");
    assert!(
        err(&output).contains("PGPASSWORD") && err(&output).contains("Sales.\"a.b\""),
        "{}",
        err(&output)
    );
    assert_eq!(walgate(&["init", "--source", &url]).status.code(), Some(1));
    assert!(walgate(&["init", "--source", &url, "--force"]).status.success());
    let output = walgate(&["check"]);
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
    assert_eq!(walgate(&["init"]).status.code(), Some(2));
}

#[test]
fn migrate_makes_walgates_own_objects_once() {
    let source = Source::new("migrate");
    source.exec("CREATE TABLE t (id int PRIMARY KEY)");
    let hub = Hub::file();
    let walgate = Walgate::new(&source, &hub);
    let printed = walgate.command(&["migrate", "--print"]);
    assert!(
        printed.status.success()
            && source.query("SELECT 1 FROM pg_namespace WHERE nspname = 'walgate'").is_empty()
    );
    let json = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).expect("it is JSON");
    let first = walgate.command(&["migrate", "--json"]);
    assert_eq!(json(&first)["applied"], serde_json::json!(["V1__emit", "V2__emit_path"]), "{}", err(&first));
    assert_eq!(json(&walgate.command(&["migrate", "--json"]))["applied"], serde_json::json!([]));
    // What is printed may be run over it, and instead of it.
    source.exec(&out(&printed));
    source.exec("DROP SCHEMA walgate CASCADE");
    source.exec(&out(&printed));
    assert_eq!(json(&walgate.command(&["migrate", "--json"]))["applied"], serde_json::json!([]));

    walgate.run_until_caught_up();
    source.exec("SELECT walgate.emit('Order', '42', 'OrderPaid', '{\"total\": 19.90}')");
    walgate.run_until_caught_up();
    let events = hub.events();
    let message = events.iter().find(|event| event.op() == "message").expect("a message");
    assert_eq!(message.aggregate_id(), Some("42"));
    assert!(message.raw.contains("19.90"), "{}", message.raw);
    assert!(source.session().try_exec("SELECT walgate.emit(NULL, '1', 'x', '{}')").is_err());
}
