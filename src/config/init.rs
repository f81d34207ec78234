//! The text that `walgate init` writes: a commented replication.toml for one database.
//!
//! In come the URL, whose password the caller has replaced by `${PGPASSWORD}`, and what was found in the
//! database; out comes a file that parses as it stands. Every key of this version is in it, those that are on
//! by default commented out with their defaults, so that the file is also the manual page nearest to hand.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::env;
use crate::route::name::TablePattern;

/// How many tables a comment lists before it only counts.
const LISTED_MAX: usize = 20;

/// Writes the file.
///
/// `tables` are the source's tables, and `without_key` those of them that have neither a primary key nor another
/// replica identity, as `schema.table`, quoted where a part needs it (as [`TablePattern`] prints).
pub fn render(
    url_with_password_replaced: &str,
    source_name: &str,
    tables: &[String],
    without_key: &[String],
) -> String {
    let mut text = String::from(HEAD);
    // The source's name is text, the URL may hold ${PGPASSWORD}.
    let source = SOURCE
        .replace("@NAME@", &quoted(&env::escape(source_name)))
        .replace("@URL@", &quoted(url_with_password_replaced));
    text.push_str(&source);
    text.push_str(HUB);
    text.push_str(REST);
    text.push_str(TABLES);
    list(&mut text, "Found in the database", tables);
    list(&mut text, WITHOUT_KEY, without_key);
    for pattern in schemas(tables) {
        let name = quoted(&env::escape(&pattern.to_string()));
        let _ = write!(text, "\n[[table]]\nname = {name}\nmode = \"event\"\n");
    }
    text.push_str(EXAMPLE);
    text
}

/// One pattern for each schema that has tables; `public.*` when nothing was found.
fn schemas(tables: &[String]) -> Vec<TablePattern> {
    let schemas: BTreeSet<String> = tables
        .iter()
        .filter_map(|table| TablePattern::parse(table).ok())
        .filter_map(|pattern| pattern.names().map(|(schema, _)| schema.to_owned()))
        .collect();
    if schemas.is_empty() {
        return vec![TablePattern::all_of("public")];
    }
    schemas.iter().map(|schema| TablePattern::all_of(schema)).collect()
}

fn list(text: &mut String, title: &str, tables: &[String]) {
    if tables.is_empty() {
        return;
    }
    let _ = write!(text, "#\n# {title} ({}):\n", tables.len());
    for table in tables.iter().take(LISTED_MAX) {
        // A name may hold a line break, which would end the comment.
        let _ = writeln!(text, "#   {}", table.replace(char::is_control, " "));
    }
    if let Some(more) = tables.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
        let _ = writeln!(text, "#   and {more} more");
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

const HEAD: &str = r#"# Walgate: which tables of a PostgreSQL database become events, and where those go.
#
# What is commented out shows its default. ${NAME} takes an environment variable, percent-encoded inside a URL;
# $${ stands for ${ itself. Unknown keys are errors: `walgate check` finds everything that is wrong, at once.

"#;

const SOURCE: &str = r#"[source]
name = @NAME@                        # names the source in events, topics and checkpoints: keep it
url = @URL@
# slot = "walgate"                     # prefix: the hub's slot and publication are walgate_hub
# publication = "managed"              # or the name of an existing one, for a role that may not create any
# snapshot = "initial"                 # existing rows first, as "read" events; or "never"
# snapshot_workers = 2                 # 1 to 32
# snapshot_range_rows = 2000000        # larger tables are copied to replicas in ranges of the key; 0: never
# bigint = "number"                    # or "string", for consumers that lose digits over 2^53
# backlog_reader = "auto"              # a slot that is far behind is read by SQL, in bulk; or "off"

"#;

const HUB: &str = r#"[hub]
kind = "file"                          # a directory; for Kafka see below
path = "hub"                           # beside this file: <path>/<topic>.jsonl, one event a line
# topic = "{source}.{schema}.{table}"  # also {aggregate_type}; characters that Kafka forbids become _
# format = "outbox"                    # the envelope of an event; or "debezium", "cloudevents"
# tombstones = false                   # true: after a delete the same key with a null value, for compacted topics
# delivery = "exactly-once"            # or "at-least-once": after a crash, events may come again with equal ids

# For Kafka, instead of the lines above:
# [hub]
# kind = "kafka"
# brokers = "kafka-1:9092,kafka-2:9092"
# create_topics = true
# partitions = 6                       # of topics that Walgate creates; the next two likewise
# replication_factor = 3               # default: the broker's
# topic_config = { "retention.ms" = 604800000 }
# [hub.properties]                     # any librdkafka property
# "compression.type" = "lz4"

# Events that are too large for the hub are stored by themselves; they travel as a reference (docs/claims.md):
# [claim_check]
# store = "s3://shop-claims/walgate"   # or "file:///var/lib/walgate/claims"
# threshold_bytes = 262144             # larger events go there
# endpoint = "http://s3:9000"          # any S3-compatible server; without it AWS
# path_style = true                    # region, access_key_id, secret_access_key: here, or as AWS tools find them

"#;

const REST: &str = r#"[admin]
# listen = "127.0.0.1:9187"            # /healthz /readyz /metrics; port 0 takes a free one; "off"

[limits]
# memory_bytes_max = 268435456         # bytes in flight before reading waits
# drain_timeout = "10s"                # how long a shutdown waits for what is in flight

"#;

const TABLES: &str = r#"# Tables: schema.table, literal and case-sensitive; * stands for any characters; a part that holds a dot is
# quoted, '"a.b".t'. An exact name wins over a pattern, a later pattern over an earlier one.
"#;

const WITHOUT_KEY: &str = "Without a primary key or other replica identity: only their inserts and truncates are seen, \
                           until\n# ALTER TABLE ... REPLICA IDENTITY FULL, or a primary key";

const EXAMPLE: &str = r#"
# [[table]]
# name = "public.orders"
# mode = "event"                       # or "off"
# exclude = ["internal_note"]          # or columns = [...]; the key is always included
# key = ["id"]                         # for tables without a primary key; default: identity index, else primary key
# aggregate_type = "Order"             # default: the table's name
# aggregate_id = ["id"]                # default: the key
# event_type = "Order{Op}"             # default "{table}.{op}", orders.updated; {Op}: Inserted, Updated, Deleted, ...

# [[table]]
# name = "public.outbox"               # a service's outbox table: its inserts are events as they stand, docs/outbox.md
# mode = "outbox"
# cleanup = "keep"                     # or "delete": rows go once the hub holds their events
"#;

#[cfg(test)]
mod tests {
    use super::super::{Config, HubKind, choose};
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Config {
        let env = |name: &str| (name == "PGPASSWORD").then(|| "s3cr/t".to_owned());
        Config::parse(text, &env, Path::new("/etc/walgate"))
            .unwrap_or_else(|faults| panic!("{faults}\n{text}"))
    }

    #[test]
    fn what_init_writes_is_a_valid_file() {
        let tables = ["public.orders".to_owned(), "\"a.b\".t".to_owned(), "sales.x\ny".to_owned()];
        let text = render("postgres://walgate:${PGPASSWORD}@db:5432/shop", "shop", &tables, &tables[1..2]);
        let config = parse(&text);
        assert_eq!(config.source.url.expose(), "postgres://walgate:s3cr%2Ft@db:5432/shop");
        assert_eq!(config.source.name.as_deref(), Some("shop"));
        let names: Vec<String> = config.tables.iter().map(|rule| rule.name.to_string()).collect();
        assert_eq!(names, ["\"a.b\".*", "public.*", "sales.*"]);
        assert!(matches!(config.hub.kind, HubKind::File(hub) if hub.path == Path::new("/etc/walgate/hub")));
        assert!(text.contains("\n# Found in the database (3):\n"), "{text}");
        assert!(text.contains("REPLICA IDENTITY FULL, or a primary key (1):\n#   \"a.b\".t\n"), "{text}");
    }

    #[test]
    fn odd_names_stay_what_they_are() {
        let name = "sh\"op\\ ${x}\n";
        let text = render("postgres://db/shop", name.trim_end(), &["s${y}.t".to_owned()], &[]);
        let config = parse(&text);
        assert_eq!(config.source.name.as_deref(), Some("sh\"op\\ ${x}"));
        assert!(choose(&config.tables, crate::config::Destination::Hub, "s${y}", "t").is_some());
        assert_eq!(quoted("a\nb"), "\"a\\U0000000Ab\"");
    }

    #[test]
    fn an_empty_database_gets_the_default_rule() {
        let config = parse(&render("postgres://db/shop", "shop", &[], &[]));
        assert_eq!(config.tables.len(), 1);
        assert!(choose(&config.tables, crate::config::Destination::Hub, "public", "later").is_some());
    }

    #[test]
    fn many_tables_are_counted() {
        let tables: Vec<String> = (0..25).map(|n| format!("public.t{n}")).collect();
        let text = render("postgres://db/shop", "shop", &tables, &[]);
        assert!(text.contains("#   public.t19\n#   and 5 more\n"), "{text}");
        parse(&text);
    }

    /// Each commented default, uncommented, changes nothing: so the comments say the truth.
    #[test]
    fn commented_defaults_are_the_defaults() {
        let text = render("postgres://db/shop", "shop", &[], &[]);
        let (defaults, _) = text.split_once("# For Kafka, instead").expect("the file has this line");
        let (_, rest) = text.split_once("[admin]").expect("the file has this section");
        let (rest, _) = rest.split_once("# Tables:").expect("the file has this line");
        let written = format!("{defaults}\n[admin]{rest}");
        let uncommented: String = written
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|line| line.contains(" = ")).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert!(uncommented.contains("\nsnapshot_workers = 2"), "{uncommented}");
        assert!(uncommented.contains("\ndrain_timeout = "), "{uncommented}");
        let bare = parse("source = { url = \"postgres://db/shop\", name = \"shop\" }");
        assert_eq!(parse(&uncommented), bare);
    }
}
