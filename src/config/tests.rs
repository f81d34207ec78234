//! The whole file: what is accepted, each refusal, and that all of them come at once.

use super::*;
use std::time::Duration;

const URL: &str = "url = \"postgres://db/shop\"\n";

fn env(name: &str) -> Option<String> {
    match name {
        "PASSWORD" => Some("s3cr@t/".to_owned()),
        "DATABASE_URL" => Some("postgres://u:p%40@db/shop".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, Faults> {
    Config::parse(text, &env, Path::new("/base"))
}

fn valid(text: &str) -> Config {
    parse(text).unwrap_or_else(|faults| panic!("{text}\n{faults}"))
}

/// Each fault as `key: message`.
fn faults(text: &str) -> Vec<String> {
    let faults = parse(text).expect_err(text);
    for fault in &faults {
        assert!(!fault.remedy.is_empty(), "{fault}");
        assert!(!fault.message.ends_with('.'), "{fault}");
    }
    faults.iter().map(|fault| format!("{}: {}", fault.key, fault.message)).collect()
}

fn source(keys: &str) -> String {
    format!("[source]\n{URL}{keys}")
}

fn section(name: &str, keys: &str) -> String {
    format!("[source]\n{URL}\n{name}\n{keys}")
}

fn rule(keys: &str) -> String {
    section("[[table]]", &format!("name = \"public.orders\"\n{keys}"))
}

fn kafka(keys: &str) -> String {
    section("[hub]", &format!("kind = \"kafka\"\nbrokers = \"k:9092\"\n{keys}"))
}

/// The text has exactly one fault, of this key, whose message holds these words.
#[track_caller]
fn one_fault(text: &str, key: &str, words: &str) {
    let found = faults(text);
    assert_eq!(found.len(), 1, "{text}\n{found:#?}");
    assert!(found[0].starts_with(&format!("{key}: ")) && found[0].contains(words), "{text}\n{found:#?}");
}

#[test]
fn the_example_at_the_root_is_valid() {
    let text = include_str!("../../replication.toml");
    let config = valid(text);
    assert_eq!(config.hub.kind, HubKind::File(FileHub { path: "/base/hub".into() }));
    assert!(choose(&config.tables, Destination::Hub, "public", "orders").is_some());
    let same = valid("[source]\nurl = \"postgres://postgres@localhost:5432/postgres\"\n");
    assert_eq!((config.source, config.hub, config.limits), (same.source, same.hub, same.limits));
}

#[test]
fn everything_not_set_has_a_default() {
    let config = valid(&source(""));
    assert_eq!(config.source.name, None);
    assert_eq!(config.source.slot, "walgate");
    assert_eq!(config.source.publication, Publication::Managed);
    assert_eq!(config.source.snapshot, SnapshotMode::Initial);
    assert_eq!(config.source.snapshot_workers, 2);
    assert!(!config.source.bigint_as_string);
    assert_eq!(config.source.backlog_reader, BacklogReader::Auto);
    assert_eq!(config.source.backlog_temp_bytes_max, 1 << 30);
    assert_eq!(config.source.decoding_memory_bytes_max, 256 << 20);
    assert_eq!(config.hub.kind, HubKind::File(FileHub { path: "/base/hub".into() }));
    assert_eq!(config.hub.delivery, Delivery::ExactlyOnce);
    assert_eq!(config.admin.listen, Some(([127, 0, 0, 1], 9187).into()));
    assert_eq!(
        config.limits,
        Limits { memory_bytes_max: 268_435_456, drain_timeout: Duration::from_secs(10) }
    );
    assert_eq!(config.tables.len(), 1);
    assert_eq!(config.tables[0].name.to_string(), "public.*");
    assert_eq!(config.tables[0].mode, Mode::Event);
}

#[test]
fn everything_can_be_set() {
    let config = valid(
        r#"
        [source]
        name = "shop"
        url = "postgres://walgate:${PASSWORD}@db:5432/shop?sslmode=verify-full"
        slot = "wg_2"
        publication = "their_own"
        snapshot = "never"
        snapshot_workers = 32
        failover = false
        backlog_reader = "off"
        slots = 1
        backlog_temp_bytes_max = 1_048_576
        decoding_memory_bytes_max = 2_097_152
        keep_wal_bytes_max = 0
        bigint = "string"

        [hub]
        kind = "kafka"
        brokers = "a:9092, b:9092"
        topic = "all.{aggregate_type}"
        format = "outbox"
        delivery = "at-least-once"
        tombstones = false
        create_topics = false
        partitions = 12
        replication_factor = 3
        topic_config = { "retention.ms" = 604800000 }
        [hub.properties]
        "compression.type" = "lz4"
        linger.ms = 5
        "sasl.password" = "${PASSWORD}"

        [admin]
        listen = "off"

        [limits]
        memory_bytes_max = 1048576
        drain_timeout = "500ms"

        [[table]]
        name = '"a.b".T'
        mode = "off"
        [[table]]
        name = "public.orders"
        mode = "event"
        exclude = ["internal_note"]
        key = ["id"]
        aggregate_type = "Order"
        aggregate_id = ["customer", "id"]
        event_type = "Order{Op}"
        partitions = "root"
        pushdown = "off"
        claim_check.columns = false
        mask = {}
        cleanup = "keep"
        [[table]]
        name = "public.o*"
        columns = ["a", "B"]
        "#,
    );
    assert_eq!(config.source.url.expose(), "postgres://walgate:s3cr%40t%2F@db:5432/shop?sslmode=verify-full");
    assert_eq!(config.source.publication, Publication::Existing("their_own".into()));
    assert!(config.source.bigint_as_string);
    assert_eq!(config.source.backlog_reader, BacklogReader::Off);
    assert_eq!(config.source.backlog_temp_bytes_max, 1 << 20);
    assert_eq!(config.source.decoding_memory_bytes_max, 2 << 20);
    let HubKind::Kafka(hub) = &config.hub.kind else { panic!("{:?}", config.hub) };
    assert_eq!((hub.partitions, hub.replication_factor, hub.create_topics), (12, Some(3), false));
    assert_eq!(hub.topic_config["retention.ms"], "604800000");
    let properties: Vec<_> = hub.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(properties, [("compression.type", "lz4"), ("linger.ms", "5"), ("sasl.password", "s3cr@t/")]);
    assert_eq!(config.admin.listen, None);
    assert_eq!(config.limits.drain_timeout, Duration::from_millis(500));
    let [off, orders, o] = &config.tables[..] else { panic!("{:?}", config.tables) };
    assert_eq!((off.mode, off.key_path.as_str()), (Mode::Off, "table[0]"));
    assert_eq!(orders.columns, ColumnSet::Except(vec!["internal_note".into()]));
    assert_eq!(orders.aggregate_id, Some(vec!["customer".into(), "id".into()]));
    assert_eq!(o.columns, ColumnSet::Only(vec!["a".into(), "B".into()]));

    let debug = format!("{config:?}");
    assert!(!debug.contains("s3cr"), "{debug}");
}

#[test]
fn all_faults_come_at_once_in_the_order_of_lines() {
    let text = r#"
[source]
slto = "walgate"
snapshot = "nevr"
snapshot_workers = "2"
[hub]
kind = "file"
brokers = "k:9092"
format = "avro"
[[table]]
name = "orders"
colums = ["a"]
[[table]]
name = "public.x"
columns = ["a"]
exclude = ["b"]
where = "a > ${NOT_A_VARIABLE_HERE}"
[replicas]
"#;
    let faults = parse(text).expect_err("it is full of faults");
    let found: Vec<(Option<usize>, &str)> = faults.iter().map(|f| (f.line, f.key.as_str())).collect();
    assert_eq!(
        found,
        [
            (Some(2), "source.url"),
            (Some(3), "source.slto"),
            (Some(4), "source.snapshot"),
            (Some(5), "source.snapshot_workers"),
            (Some(8), "hub.brokers"),
            (Some(9), "hub.format"),
            (Some(11), "table[0].name"),
            (Some(12), "table[0].colums"),
            (Some(16), "table[1].exclude"),
            (Some(17), "table[1].where"),
            (Some(18), "replicas"),
        ],
        "{faults}"
    );
    let text = faults.to_string();
    for part in [
        "did you mean slot?",
        "did you mean \"never\"?",
        "did you mean columns?",
        "did you mean replica?",
        "write the schema too: public.orders",
        "table[1].exclude (line 16): columns and exclude contradict each other\n    remedy: keep one of the two",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn what_is_not_toml_is_reported_without_its_text() {
    let faults = parse("[source]\nurl = \"postgres://u:s3cret@db\nx = = 1\n").expect_err("not TOML");
    assert!(faults.iter().count() >= 1);
    assert!(faults.iter().all(|fault| fault.line.is_some()), "{faults}");
    assert!(!faults.to_string().contains("s3cret"), "{faults}");
    let twice = parse("[source]\nslot = \"a\"\nslot = \"b\"\n").expect_err("duplicate key");
    assert_eq!(twice.iter().next().and_then(|fault| fault.line), Some(3), "{twice}");
}

#[test]
fn the_source_is_checked() {
    one_fault("", "source.url", "missing");
    one_fault("[source]\nurl = \"\"", "source.url", "empty");
    one_fault("[source]\nurl = \"mysql://db/shop\"", "source.url", "does not begin with postgres://");
    one_fault("[source]\nurl = \"${DATABASE_URL}?sslmode=require\"", "source.url", "does not begin with");
    assert_eq!(valid("[source]\nurl = \"${DATABASE_URL}\"").source.url.expose(), "postgres://u:p%40@db/shop");
    one_fault(&source("slot = \"Wal-gate\""), "source.slot", "\"Wal-gate\" cannot begin a slot's name");
    one_fault(&source(&format!("slot = \"{}\"", "s".repeat(51))), "source.slot", "cannot begin");
    one_fault(&source("slot = \"\""), "source.slot", "empty");
    one_fault(&source("name = \"a\\nb\""), "source.name", "control character");
    one_fault(&source(&format!("publication = \"{}\"", "p".repeat(64))), "source.publication", "longer");
    one_fault(&source("snapshot = \"always\""), "source.snapshot", "is no snapshot");
    one_fault(&source("snapshot_workers = 0"), "source.snapshot_workers", "0 is out of range");
    one_fault(&source("snapshot_workers = 33"), "source.snapshot_workers", "33 is out of range");
    one_fault(&source("snapshot_workers = 2.5"), "source.snapshot_workers", "expected an integer");
    one_fault(&source("bigint = \"text\""), "source.bigint", "is no bigint");
    one_fault(&source("backlog_reader = \"on\""), "source.backlog_reader", "is no backlog_reader");
    one_fault(&source("backlog_temp_bytes_max = -1"), "source.backlog_temp_bytes_max", "out of range");
    one_fault(&source("failover = \"no\""), "source.failover", "expected true or false, found a string");
    one_fault("source = 1", "source", "expected a section");
    one_fault("[[source]]\nurl = \"postgres://db\"", "source", "expected a section, found a list");
}

#[test]
fn missing_variables_are_named_with_their_keys() {
    let text = "[source]\nurl = \"postgres://${NOT_SET}:${NOR_THIS}@db/shop\"\nslot = \"${EITHER}\"\n";
    let found = faults(text);
    assert_eq!(
        found,
        [
            "source.url: the environment variable NOT_SET is not set",
            "source.url: the environment variable NOR_THIS is not set",
            "source.slot: the environment variable EITHER is not set",
        ]
    );
    one_fault(&rule("columns = [\"a\", \"${NOT_SET}\"]"), "table[0].columns[1]", "NOT_SET is not set");
    one_fault(&kafka("properties = { x = \"${NOT_SET}\" }"), "hub.properties.x", "NOT_SET is not set");
}

#[test]
fn a_fault_does_not_tell_what_a_variable_holds() {
    let faults = parse(&source("slot = \"${PASSWORD}\"")).expect_err("no slot's name");
    let text = faults.to_string();
    assert!(text.contains("\"${PASSWORD}\" cannot begin") && !text.contains("s3cr"), "{text}");
}

#[test]
fn the_hub_is_checked() {
    one_fault(&section("[hub]", "kind = \"kafak\""), "hub.kind", "is no kind");
    one_fault(&section("[hub]", "kind = \"kafka\""), "hub.brokers", "missing");
    one_fault(&section("[hub]", "brokers = \"k:9092\""), "hub.brokers", "belongs to kind = \"kafka\"");
    one_fault(
        &section("[hub]", "kind = \"kafka\"\nbrokers = \"a:1,,b:2\""),
        "hub.brokers",
        "no list of servers",
    );
    one_fault(&kafka("path = \"hub\""), "hub.path", "belongs to kind = \"file\"");
    for key in ["properties = { x = 1 }", "partitions = 6", "replication_factor = 1", "create_topics = true"]
    {
        let name = key.split(' ').next().expect("split gives one part at least");
        one_fault(&section("[hub]", key), &format!("hub.{name}"), "belongs to kind = \"kafka\"");
    }
    one_fault(&section("[hub]", "topic_config = {}"), "hub.topic_config", "belongs to kind = \"kafka\"");
    one_fault(&section("[hub]", "topic = \"{tabel}\""), "hub.topic", "unknown placeholder {tabel}");
    one_fault(&section("[hub]", "topic = \"\""), "hub.topic", "empty");
    one_fault(&section("[hub]", "path = 1"), "hub.path", "expected a string");
    one_fault(&section("[hub]", "delivery = \"exactly_once\""), "hub.delivery", "is no delivery");
    one_fault(&section("[hub]", "format = \"xml\""), "hub.format", "is no format");
    one_fault(&kafka("partitions = 0"), "hub.partitions", "0 is out of range");
    one_fault(&kafka("replication_factor = 0"), "hub.replication_factor", "0 is out of range");
    one_fault(&kafka("properties = { x = [1] }"), "hub.properties.x", "found a list");
    one_fault(&kafka("properties = { \"a.b\" = 1, a.b = 2 }"), "hub.properties.\"a.b\"", "twice");
    assert!(
        matches!(valid(&section("[hub]", "path = \"/abs\"")).hub.kind, HubKind::File(h) if h.path == Path::new("/abs"))
    );
}

#[test]
fn properties_that_walgate_sets_are_refused() {
    for name in [
        "transactional.id",
        "enable.idempotence",
        "acks",
        "partitioner",
        "bootstrap.servers",
        "metadata.broker.list",
        "isolation.level",
        "group.id",
        "enable.auto.commit",
    ] {
        let found = faults(&kafka(&format!("[hub.properties]\n\"{name}\" = \"x\"")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("hub.properties.") && found[0].contains(name), "{found:?}");
        assert!(found[0].ends_with("is set by Walgate itself"), "{found:?}");
    }
    assert_eq!(faults(&kafka("[hub.properties]\ngroup.id = \"x\"")).len(), 1, "without quotes too");
}

#[test]
fn admin_and_limits_are_checked() {
    one_fault(&section("[admin]", "listen = \"9187\""), "admin.listen", "no address");
    one_fault(&section("[admin]", "listen = 9187"), "admin.listen", "expected a string");
    one_fault(&section("[limits]", "memory_bytes_max = 0"), "limits.memory_bytes_max", "0 is out of range");
    one_fault(&section("[limits]", "memory_bytes_max = \"25%\""), "limits.memory_bytes_max", "an integer");
    one_fault(&section("[limits]", "drain_timeout = \"10\""), "limits.drain_timeout", "no length of time");
    one_fault(&section("[limits]", "drain_timeout = 10"), "limits.drain_timeout", "expected a string");
    one_fault(&section("[limits]", "drain_timeout = \"25h\""), "limits.drain_timeout", "over a day");
    assert_eq!(
        valid(&section("[admin]", "listen = \"localhost:0\"")).admin.listen,
        Some(([127, 0, 0, 1], 0).into())
    );
    assert_eq!(
        valid(&section("[admin]", "listen = \"[::1]:80\"")).admin.listen.map(|address| address.port()),
        Some(80)
    );
}

#[test]
fn rules_are_checked() {
    one_fault(&section("[[table]]", "mode = \"event\""), "table[0].name", "missing");
    one_fault(&section("[[table]]", "name = \"a.b.c\""), "table[0].name", "\"a.b.c\" is no schema.table");
    one_fault(&section("[table]", "name = \"public.a\""), "table", "expected a list of sections");
    one_fault(&rule("mode = \"evnt\""), "table[0].mode", "is no mode");
    one_fault(&rule("columns = []"), "table[0].columns", "empty");
    one_fault(&rule("exclude = []"), "table[0].exclude", "empty");
    one_fault(&rule("key = []"), "table[0].key", "empty");
    one_fault(&rule("aggregate_id = []"), "table[0].aggregate_id", "empty");
    one_fault(&rule("columns = [\"a\", \"b\", \"a\"]"), "table[0].columns[2]", "twice");
    one_fault(&rule("columns = [\"a\", 1]"), "table[0].columns[1]", "expected a string");
    one_fault(&rule("key = \"id\""), "table[0].key", "expected a list");
    one_fault(&rule("columns = [\"a\"]\nexclude = [\"b\"]"), "table[0].exclude", "contradict");
    one_fault(&rule("key = [\"id\"]\nexclude = [\"id\"]"), "table[0].exclude", "always included");
    one_fault(&rule("aggregate_type = \"\""), "table[0].aggregate_type", "empty");
    one_fault(&rule("event_type = \"Order{OP}\""), "table[0].event_type", "unknown placeholder {OP}");
    one_fault(
        &rule("[[table]]\nname = '\"public\".orders'"),
        "table[1].name",
        "has a rule already: table[0]",
    );
    valid(&rule("[[table]]\nname = \"public.order*\"\n[[table]]\nname = \"public.order*\"\n"));
}

#[test]
fn the_hub_has_three_formats() {
    for (text, format) in
        [("outbox", Format::Outbox), ("debezium", Format::Debezium), ("cloudevents", Format::CloudEvents)]
    {
        let config = valid(&section("[hub]", &format!("format = \"{text}\"\ntombstones = true")));
        assert_eq!((config.hub.format, config.hub.tombstones), (format, true));
    }
    assert!(!valid(&section("[hub]", "")).hub.tombstones);
}

#[test]
fn later_keys_of_the_source_and_the_hub_are_refused() {
    const LATER: &str = "is not available in this version";
    one_fault(&source("failover = true"), "source.failover", LATER);
    one_fault(&source("slots = 2"), "source.slots", LATER);
    one_fault(&source("keep_wal_bytes_max = 1"), "source.keep_wal_bytes_max", LATER);
    one_fault(&section("[hub]", "format = \"avro\""), "hub.format", LATER);
}

#[test]
fn a_claim_store_is_a_bucket_or_a_directory() {
    let claim_check = |keys: &str| section("[claim_check]", keys);
    assert_eq!(valid(&source("")).claim_check, None);
    let directory =
        valid(&claim_check("store = \"file:///var/lib/claims%20x\"")).claim_check.expect("it has one");
    assert_eq!(directory.store, ClaimStoreAddress::Directory("/var/lib/claims x".into()));
    assert_eq!(directory.threshold_bytes, 262_144);
    let keys = "store = \"s3://b/p/q/\"\nendpoint = \"http://s3:9000/\"\npath_style = true\nregion = \"r\"\n\
        access_key_id = \"a\"\nsecret_access_key = \"s\"\nsse = \"aws:kms\"\nsse_kms_key_id = \"k\"\n\
        tags = { team = \"shop\" }\nthreshold_bytes = 1024";
    let Some(ClaimStoreAddress::S3(s3)) = valid(&claim_check(keys)).claim_check.map(|found| found.store)
    else {
        panic!("a bucket");
    };
    assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("b", "p/q"));
    assert_eq!(s3.endpoint.as_deref(), Some("http://s3:9000"));
    assert_eq!((s3.encryption, s3.tags.len()), (Some(Encryption::Kms), 1));

    one_fault(&claim_check("threshold_bytes = 4096"), "claim_check.store", "is missing");
    one_fault(&claim_check("store = \"s3://\""), "claim_check.store", "is no claim store");
    one_fault(&claim_check("store = \"file://claims\""), "claim_check.store", "no URL of a directory");
    one_fault(
        &claim_check("store = \"file:///c\"\nregion = \"r\""),
        "claim_check.region",
        "belongs to a store on S3",
    );
    let half = "store = \"s3://b\"\naccess_key_id = \"a\"";
    one_fault(&claim_check(half), "claim_check.secret_access_key", "is missing");
    let kms = "store = \"s3://b\"\nsse_kms_key_id = \"k\"";
    one_fault(&claim_check(kms), "claim_check.sse_kms_key_id", "belongs to sse");
    one_fault(
        &claim_check("store = \"s3://b\"\nthreshold_bytes = 1"),
        "claim_check.threshold_bytes",
        "out of range",
    );
    one_fault(&claim_check("store = \"s3://b\"\nendpoint = \"s3:9000\""), "claim_check.endpoint", "no URL");
    for format in ["debezium", "cloudevents"] {
        let both = format!("store = \"s3://b\"\n[hub]\nformat = {format:?}");
        assert!(valid(&claim_check(&both)).claim_check.is_some());
    }
}

/// A replica `r` with more keys.
fn replica(keys: &str) -> String {
    section("[[replica]]", &format!("name = \"r\"\nurl = \"postgres://r/shop\"\n{keys}"))
}

#[test]
fn replicas_are_checked() {
    let config = valid(&replica("on_conflict = \"skip\"\ncreate_tables = false"));
    assert_eq!(config.replicas.len(), 1);
    assert_eq!((config.replicas[0].on_conflict, config.replicas[0].create_tables), (OnConflict::Skip, false));
    let policies = |replica: &Replica| (replica.on_table_error, replica.on_schema_change);
    assert_eq!(policies(&config.replicas[0]), (OnTableError::Stop, OnSchemaChange::Park));
    let config = valid(&replica("on_table_error = \"park\"\non_schema_change = \"follow\""));
    assert_eq!(policies(&config.replicas[0]), (OnTableError::Park, OnSchemaChange::Follow));
    one_fault(&replica("on_table_error = \"skip\""), "replica[0].on_table_error", "skip");
    one_fault(&section("[[replica]]", "url = \"postgres://r/shop\""), "replica[0].name", "missing");
    one_fault(&section("[[replica]]", "name = \"r\""), "replica[0].url", "missing");
    one_fault(
        &section("[[replica]]", "name = \"R\"\nurl = \"postgres://r/s\""),
        "replica[0].name",
        "cannot end",
    );
    one_fault(
        &section("[[replica]]", "name = \"r\"\nurl = \"http://r/s\""),
        "replica[0].url",
        "no URL of a PostgreSQL",
    );
    one_fault(&replica("nmae = \"s\""), "replica[0].nmae", "unknown key");
    one_fault(
        &replica("[[replica]]\nname = \"r\"\nurl = \"postgres://x/s\""),
        "replica[1].name",
        "taken already",
    );
}

#[test]
fn rules_speak_of_destinations() {
    let config = valid(&replica(
        r#"[[replica]]
        name = "s"
        url = "postgres://s/shop"
        [[table]]
        name = "public.*"
        [[table]]
        name = "public.*"
        mode = "replicate"
        [[table]]
        name = "public.orders"
        mode = "replicate"
        replicas = ["s"]
        to = "sales.*"
        [[table]]
        name = "public.secret"
        mode = "off"
        [[table]]
        name = "public.events"
        mode = "off"
        replicas = ["r"]
        "#,
    ));
    let chosen = |destination, table| {
        choose(&config.tables, destination, "public", table).map(|rule| rule.key_path.as_str())
    };
    let (hub, r, s) = (Destination::Hub, Destination::Replica("r"), Destination::Replica("s"));
    assert_eq!(
        [hub, r, s].map(|to| chosen(to, "orders")),
        [Some("table[0]"), Some("table[1]"), Some("table[2]")]
    );
    assert_eq!([hub, r, s].map(|to| chosen(to, "secret")), [None; 3]);
    assert_eq!([hub, r, s].map(|to| chosen(to, "events")), [Some("table[0]"), None, Some("table[1]")]);
    assert_eq!(config.tables[2].target_name("public", "orders"), ("sales".to_owned(), "orders".to_owned()));
    one_fault(&rule("mode = \"replicate\""), "table[0].mode", "there is no replica");
    let with_rule = |keys: &str| replica(&format!("[[table]]\nname = \"public.t\"\n{keys}"));
    one_fault(&with_rule("mode = \"both\"\nreplicas = [\"q\"]"), "table[0].replicas", "no replica \"q\"");
    one_fault(&with_rule("replicas = [\"r\"]"), "table[0].replicas", "belongs to mode");
    one_fault(&with_rule("to = \"a.b\""), "table[0].to", "belongs to mode");
    one_fault(&with_rule("mode = \"both\"\nto = \"a\""), "table[0].to", "no schema.table");
    let doubled = with_rule("mode = \"both\"\n[[table]]\nname = \"public.t\"\nmode = \"replicate\"");
    one_fault(&doubled, "table[1].name", "has a rule for the replica r already: table[0]");
}

#[test]
fn later_keys_of_rules_are_refused() {
    const LATER: &str = "is not available in this version";
    one_fault(&rule("claim_check.columns = true"), "table[0].claim_check.columns", "no claim store");
    one_fault(&rule("mask = { email = \"hash\" }"), "table[0].mask", LATER);
    one_fault(&rule("on_unknown_old = \"drop\""), "table[0].on_unknown_old", "no meaning without where");
    one_fault(&rule("pushdown = \"on\""), "table[0].pushdown", "is no pushdown");
}

#[test]
fn an_outbox_table_has_keys_of_its_own() {
    let outbox = |keys: &str| rule(&format!("mode = \"outbox\"\n{keys}"));
    let config =
        valid(&outbox("cleanup = \"delete\"\noutbox.payload = \"body\"\noutbox.payload_format = \"json\""));
    let read = config.tables[0].outbox.as_ref().expect("an outbox");
    assert_eq!((read.named(Role::Payload), read.named(Role::Id)), (Some("body"), None));
    assert_eq!((read.payload_format, read.cleanup), (PayloadFormat::Json, Cleanup::Delete));
    assert!(config.tables[0].speaks_of(Destination::Hub));
    assert!(!config.tables[0].speaks_of(Destination::Replica("r")));
    for key in ["where = \"true\"", "columns = [\"id\"]", "event_type = \"x\"", "key = [\"id\"]"] {
        let name = key.split(' ').next().expect("a key");
        one_fault(&outbox(key), &format!("table[0].{name}"), "has no meaning with mode = \"outbox\"");
    }
    one_fault(&rule("outbox.id = \"event_id\""), "table[0].outbox", "belongs to mode = \"outbox\"");
    one_fault(&rule("cleanup = \"delete\""), "table[0].cleanup", "belongs to mode = \"outbox\"");
    one_fault(&outbox("outbox.paylaod = \"body\""), "table[0].outbox.paylaod", "unknown key");
    one_fault(&outbox("outbox.topic_template = \"{x}\""), "table[0].outbox.topic_template", "placeholder");
    let never = outbox("cleanup = \"delete\"").replacen("[source]", "[source]\nsnapshot = \"never\"", 1);
    one_fault(&never, "table[0].cleanup", "belongs to source.snapshot");
}

#[test]
fn filters_are_taken_as_they_stand() {
    let config = valid(&rule("where = \"region = 'EU'\"\non_unknown_old = \"drop\""));
    assert_eq!(config.tables[0].filter.as_deref(), Some("region = 'EU'"));
    assert_eq!(config.tables[0].on_unknown_old, OnUnknownOld::Drop);
    one_fault(&rule("where = \" \""), "table[0].where", "is empty");
    let unknown = rule("where = \"a\"\non_unknown_old = \"keep\"");
    one_fault(&unknown, "table[0].on_unknown_old", "is no on_unknown_old");
}

#[test]
fn the_exact_rule_wins_then_the_last_pattern() {
    let config = valid(
        r#"
        source.url = "postgres://db/shop"
        table = [
            { name = "public.orders", aggregate_type = "exact" },
            { name = "public.*", aggregate_type = "all" },
            { name = "public.o*", aggregate_type = "o" },
            { name = "sales.*", mode = "off" },
        ]
        "#,
    );
    let chosen = |schema, table| {
        choose(&config.tables, Destination::Hub, schema, table).map(|rule| rule.key_path.as_str())
    };
    assert_eq!(chosen("public", "orders"), Some("table[0]"));
    assert_eq!(chosen("public", "others"), Some("table[2]"));
    assert_eq!(chosen("public", "users"), Some("table[1]"));
    assert_eq!(chosen("sales", "orders"), None, "off is nothing");
    assert_eq!(chosen("other", "orders"), None);
}

#[test]
fn a_leaf_has_the_rule_of_its_root_or_one_of_its_name() {
    let config = valid(
        r#"
        source.url = "postgres://db/shop"
        table = [
            { name = "public.*" },
            { name = "public.m", partitions = "leaf" },
            { name = "archive.m_1", aggregate_type = "first" },
            { name = "archive.m_2", mode = "off" },
            { name = "archive.*", mode = "off" },
        ]
        "#,
    );
    let chosen = |root, leaf| {
        let rule = choose_of_leaf(&config.tables, Destination::Hub, ("public", root), ("archive", leaf));
        rule.map(|rule| rule.key_path.as_str())
    };
    assert_eq!(chosen("m", "m_0"), Some("table[1]"), "a pattern that matches the leaf says nothing");
    assert_eq!(chosen("m", "m_1"), Some("table[2]"));
    assert_eq!(chosen("m", "m_2"), None);
    assert_eq!(chosen("other", "m_1"), None, "its root is taken as one table");
    one_fault(&rule("partitions = \"leaves\""), "table[0].partitions", "is no partitions");
}

#[test]
fn a_file_is_loaded_from_its_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mine.toml");
    let error = Config::load(&path).expect_err("no such file");
    assert!(error.hint().is_some_and(|hint| hint.contains("walgate init")), "{error}");
    std::fs::write(&path, source("slots = 3")).expect("the folder can be written");
    let error = Config::load(&path).expect_err("refused").to_string();
    assert!(error.contains("mine.toml has 1 fault:\n  source.slots (line 3): "), "{error}");
    std::fs::write(&path, source("")).expect("the folder can be written");
    let config = Config::load(&path).expect("valid");
    assert_eq!(config.hub.kind, HubKind::File(FileHub { path: folder.path().join("hub") }));
    assert_eq!(config.path, path);
}
