//! The example consumers of docs/consuming.md: they resolve, verify, and take each event once.
//!
//! In: a topic with small events, whole events and columns that travel by claim check, on Kafka and a real S3 server. Out:
//! what each consumer has stored, which is what `walgate tail --resolve` prints; what it does on a second reading, and on
//! an object that was altered.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::claims::{THRESHOLD, resolved};
use crate::support::{Hub, S3, Source, Walgate, servers};

/// A consumer's language, and what its database is.
#[derive(Clone, Copy)]
enum Example {
    /// In SQLite.
    Python,
    /// In SQLite.
    Java,
    /// In PostgreSQL.
    Rust,
}

/// The consumer, with a database of its own.
struct Consumer {
    example: Example,
    topic: String,
    environment: Vec<(&'static str, String)>,
    sqlite: PathBuf,
    postgres: Source,
}

impl Consumer {
    /// Reads the topic from its beginning to its end, as another group than before.
    fn run(&self, group: &str) -> Output {
        let Self { example, topic, sqlite, .. } = self;
        let (brokers, folder) = (servers::kafka_brokers(), Path::new("examples/consumers"));
        let mut command = match example {
            Example::Python => {
                let mut command = Command::new(servers::python_program());
                command.arg(folder.join("python/consumer.py"));
                command.args(["--brokers", &brokers, "--topic", topic, "--group", group]);
                command.arg("--database").arg(sqlite);
                command
            }
            Example::Java => {
                let mut command = Command::new("mvn");
                command
                    .args(["-B", "-q", "-f"])
                    .arg(folder.join("java/pom.xml"))
                    .args(["compile", "exec:java"]);
                command
                    .arg(format!("-Dexec.args={brokers} {topic} {group} {} --until-end", sqlite.display()));
                command
            }
            Example::Rust => {
                let built = Path::new(env!("CARGO_BIN_EXE_walgate")).with_file_name("examples/consumer");
                assert!(
                    built.exists(),
                    "build it first, as scripts/test does: cargo build --example consumer"
                );
                let mut command = Command::new(built);
                command.args([&brokers, topic, group, &self.postgres.url()]);
                command
            }
        };
        if !matches!(example, Example::Java) {
            command.arg("--until-end");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.output().expect("the consumer can be run")
    }

    /// What it has stored, in its order.
    fn received(&self) -> Vec<Value> {
        let text = match self.example {
            Example::Rust => {
                let sql = "SELECT coalesce(string_agg(event, E'\\n' ORDER BY position), '') FROM received";
                self.postgres.value(sql)
            }
            _ => {
                let script = "import sqlite3, sys\n\
                     for row in sqlite3.connect(sys.argv[1]).execute('SELECT event FROM received ORDER BY position'): print(row[0])";
                servers::run(Command::new(servers::python_program()).args(["-c", script]).arg(&self.sqlite))
            }
        };
        text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
    }
}

/// By id: partitions are read in any order.
fn sorted(mut events: Vec<Value>) -> Vec<Value> {
    events.sort_by_key(|event| event["id"].to_string());
    events
}

#[track_caller]
fn assert_says(output: &Output, text: &str) {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    // Maven colours whatever it is told.
    let said = String::from_utf8_lossy(&output.stdout).replace("\u{1b}[0m", "");
    assert_eq!(said.trim(), text, "{log}");
}

fn resolves_verifies_and_takes_once(example: Example, test: &str) {
    let source = Source::new(test);
    let hub = Hub::kafka(&source);
    let s3 = S3::start();
    source.exec(
        "CREATE TABLE media (id int PRIMARY KEY, name text, photo bytea, doc jsonb, json text, \"a.b/c\" text, total numeric); \
         ALTER TABLE media REPLICA IDENTITY FULL",
    );
    // By the copy: whole events.
    source.exec("INSERT INTO media SELECT i, 'whole', decode(repeat(md5(i::text), 600 * (i % 2)), 'hex') FROM generate_series(1, 12) i");
    Walgate::new(&source, &hub).section(&s3.section(THRESHOLD)).run_until_caught_up();
    // By the stream: large columns of every form, the rest inline or as a whole; and JSON that only looks like a reference.
    let rule = "[[table]]\nname = \"public.media\"\nclaim_check.columns = true\n";
    let walgate = Walgate::new(&source, &hub).section(&s3.section(THRESHOLD)).section(rule);
    source.exec(
        "INSERT INTO media VALUES (21, 'columns', decode(repeat('00ff', 4000), 'hex'), jsonb_build_object('k', repeat('v', 9000)), \
           repeat('\u{e9}\"', 5000), repeat('c', 9000), 19.90), \
         (22, repeat('rest', 1200), decode(repeat('00ff', 4000), 'hex'), NULL, NULL, NULL, 0.1), \
         (23, 'small', '\\x00', '{\"$claim\":{\"uri\":\"s3://claims/elsewhere\",\"bytes\":1,\"sha256\":\"\",\"content_type\":\"\"}}', NULL, NULL, NULL)",
    );
    source.exec("UPDATE media SET name = 'other' WHERE id = 21");
    source.exec("DELETE FROM media WHERE id = 1");
    walgate.run_until_caught_up();

    let consumer = Consumer {
        example,
        topic: format!("{}.public.media", source.name()),
        environment: s3.environment().into(),
        sqlite: servers::tests_folder().join(format!("{}.db", source.name())),
        postgres: Source::new(&format!("{test}_db")),
    };
    let expected = sorted(resolved(&walgate, 17));
    assert_says(&consumer.run(&format!("{}-1", source.name())), "17 new, 0 repeated");
    assert_eq!(sorted(consumer.received()), expected);
    assert_says(&consumer.run(&format!("{}-2", source.name())), "0 new, 17 repeated");
    assert_eq!(consumer.received().len(), 17);

    // What was altered ends it, and neither its id nor its offset is stored.
    source.exec("INSERT INTO media VALUES (31, repeat('x', 9000))");
    walgate.run_until_caught_up();
    let events = hub.wait_for("the last event", |events| events.len() == 18);
    let last = events.iter().find(|event| event.aggregate_id() == Some("31")).expect("it is there");
    let uri = last.json["data"]["name"]["$claim"]["uri"].as_str().expect("a claim");
    let whole = std::fs::read(s3.path(uri)).expect("an object");
    s3.forget_checksums();
    std::fs::write(s3.path(uri), [&whole[1..], b"y"].concat()).expect("the store's folder");
    let group = format!("{}-2", source.name());
    let output = consumer.run(&group);
    let log = [output.stderr.as_slice(), &output.stdout].concat();
    let log = String::from_utf8_lossy(&log).into_owned();
    assert!(!output.status.success() && log.contains("is not what was published"), "{log}");
    assert_eq!(consumer.received().len(), 17);
    std::fs::write(s3.path(uri), whole).expect("the store's folder");
    assert_says(&consumer.run(&group), "1 new, 0 repeated");
    assert_eq!(consumer.received().len(), 18);
}

#[test]
fn python_resolves_verifies_and_takes_once() {
    resolves_verifies_and_takes_once(Example::Python, "consumer_python");
}

#[test]
fn rust_resolves_verifies_and_takes_once() {
    resolves_verifies_and_takes_once(Example::Rust, "consumer_rust");
}

/// Maven fetches some 30 MB for it, and starts slowly.
#[test]
#[ignore = "needs Maven: scripts/test --test it consumers::java -- --ignored"]
fn java_resolves_verifies_and_takes_once() {
    resolves_verifies_and_takes_once(Example::Java, "consumer_java");
}
