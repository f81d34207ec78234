//! `[source]`: the database whose WAL is read.

use std::fmt;

use super::file::Section;
use super::schema;

/// The source, as it can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Names the source in events, topics and checkpoints. `None`: the database's name, which the URL or
    /// the server says.
    pub name: Option<String>,
    /// Where the source is, with its password.
    pub url: SecretUrl,
    /// The prefix of slots and managed publications: the hub's slot is `<slot>_hub`.
    pub slot: String,
    /// Who makes the publication.
    pub publication: Publication,
    /// Whether existing rows are copied first.
    pub snapshot: SnapshotMode,
    /// How many tables, or ranges of one table, are copied at a time; 1 to 32.
    pub snapshot_workers: usize,
    /// A table with more rows is copied to a replica in ranges of about so many, where the order of its key is certain;
    /// 0: never.
    pub snapshot_range_rows: u64,
    /// Whether a backlog may be read by SQL.
    pub backlog_reader: BacklogReader,
    /// What decoding a backlog by SQL may take on the source's disk at a time; above it, it is read by the stream.
    pub backlog_temp_bytes_max: u64,
    /// What the source may hold in memory of transactions that it decodes for a pipeline; above it, it spills them to disk.
    pub decoding_memory_bytes_max: u64,
    /// `bigint = "string"`: int8 values as JSON strings, for consumers that lose digits over 2^53.
    pub bigint_as_string: bool,
}

/// Who makes the publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// Walgate does, and keeps its tables in step with the rules.
    Managed,
    /// An administrator did, under this name.
    Existing(String),
}

/// How a backlog is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BacklogReader {
    /// By the SQL functions of logical decoding, where they can be used; else by the stream.
    Auto,
    /// By the stream.
    Off,
}

/// Whether existing rows are copied before the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Once, when the slot is made.
    Initial,
    /// Not at all: only what is committed after the slot was made.
    Never,
}

/// A URL that may hold a password: prints as `<redacted>`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        SecretUrl(url.into())
    }

    /// The URL with its password: for connecting, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Seconds of copying, which is what the rest of the stream waits for, and what a crash costs.
const SNAPSHOT_RANGE_ROWS: u64 = 2_000_000;

/// What any server has to spare, and more than any chunk needs without a huge transaction.
const BACKLOG_TEMP_BYTES_MAX: u64 = 1 << 30;

/// A transaction of half a million rows; one that is spilled takes half as long again to decode.
const DECODING_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// More than any table has, and within an int8.
const SNAPSHOT_RANGE_ROWS_MAX: u64 = 1_000_000_000_000;

/// The longest prefix: `<prefix>_r_<replica>` and `<prefix>_hub_inserts` must stay within 63 bytes.
const SLOT_LENGTH_MAX: usize = 50;

/// The longest identifier that PostgreSQL keeps, in bytes (`NAMEDATALEN` - 1).
const IDENTIFIER_LENGTH_MAX: usize = 63;

pub(super) fn read(section: &Section<'_>) -> Source {
    section.allow(schema::SOURCE);
    refuse_later(section);
    Source {
        name: read_name(section),
        url: read_url(section),
        slot: read_slot(section),
        publication: read_publication(section),
        snapshot: section
            .choice("snapshot", &[("initial", SnapshotMode::Initial), ("never", SnapshotMode::Never)], &[])
            .unwrap_or(SnapshotMode::Initial),
        snapshot_workers: section
            .integer("snapshot_workers", 1..=32)
            .and_then(|workers| usize::try_from(workers).ok())
            .unwrap_or(2),
        snapshot_range_rows: section
            .integer("snapshot_range_rows", 0..=SNAPSHOT_RANGE_ROWS_MAX)
            .unwrap_or(SNAPSHOT_RANGE_ROWS),
        backlog_reader: section
            .choice("backlog_reader", &[("auto", BacklogReader::Auto), ("off", BacklogReader::Off)], &[])
            .unwrap_or(BacklogReader::Auto),
        backlog_temp_bytes_max: section
            .integer("backlog_temp_bytes_max", 0..=u64::MAX)
            .unwrap_or(BACKLOG_TEMP_BYTES_MAX),
        decoding_memory_bytes_max: section
            .integer("decoding_memory_bytes_max", 0..=u64::MAX)
            .unwrap_or(DECODING_MEMORY_BYTES_MAX),
        bigint_as_string: section
            .choice("bigint", &[("number", false), ("string", true)], &[])
            .unwrap_or(false),
    }
}

fn refuse_later(section: &Section<'_>) {
    if section.boolean("failover") == Some(true) {
        section.fault_of_later("failover", "failover = true", "write failover = false");
    }
    if section.integer("slots", 1..=64).is_some_and(|slots| slots > 1) {
        section.fault_of_later("slots", "more than one slot for the hub", "write slots = 1");
    }
    if section.integer("keep_wal_bytes_max", 0..=u64::MAX).is_some_and(|bytes| bytes > 0) {
        section.fault_of_later(
            "keep_wal_bytes_max",
            "dropping the slot when it retains too much WAL",
            "write keep_wal_bytes_max = 0, and let the server's max_slot_wal_keep_size limit it",
        );
    }
}

fn read_name(section: &Section<'_>) -> Option<String> {
    let name = section.string("name")?;
    if name.chars().any(char::is_control) {
        section.fault_of_value("name", "holds a control character", "write a name that can be printed");
    }
    Some(name)
}

fn read_url(section: &Section<'_>) -> SecretUrl {
    const EXAMPLE: &str = "write url = \"postgres://USER:${PGPASSWORD}@HOST:5432/DATABASE\"";
    if !section.has("url") {
        section.fault_of_missing("url", "the database to read from", EXAMPLE);
        return SecretUrl::new("");
    }
    let url = section.url("url").unwrap_or_else(|| "postgres://".to_owned());
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        let remedy =
            format!("{EXAMPLE}; a variable with a whole URL stands alone: url = \"${{DATABASE_URL}}\"");
        section.fault("url", "is no URL of a PostgreSQL server: it does not begin with postgres://", remedy);
    }
    SecretUrl(url)
}

fn read_slot(section: &Section<'_>) -> String {
    const DEFAULT: &str = "walgate";
    let Some(slot) = section.string("slot") else { return DEFAULT.to_owned() };
    let is_legal = slot.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !is_legal || slot.len() > SLOT_LENGTH_MAX {
        section.fault_of_value(
            "slot",
            "cannot begin a slot's name",
            format!("use at most {SLOT_LENGTH_MAX} lower-case letters, digits and _"),
        );
    }
    slot
}

fn read_publication(section: &Section<'_>) -> Publication {
    match section.string("publication") {
        None => Publication::Managed,
        Some(word) if word == "managed" => Publication::Managed,
        Some(name) => {
            if name.len() > IDENTIFIER_LENGTH_MAX {
                section.fault_of_value(
                    "publication",
                    "is longer than an identifier can be",
                    format!(
                        "write the publication's name, at most {IDENTIFIER_LENGTH_MAX} bytes, or \"managed\""
                    ),
                );
            }
            Publication::Existing(name)
        }
    }
}
