//! The keys of a rule with `mode = "outbox"`: what the columns of a hand-written outbox table are called, what its
//! payload is, and whether its rows are removed (docs/outbox.md).
//!
//! What depends on the table itself, its columns and their types, is found later, by `check` and at start, in
//! `route/outbox/columns.rs`.

use super::file::Section;
use super::schema;
use crate::route::template::TopicTemplate;

/// What an outbox table is read by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxRule {
    /// The columns that the rule names, by role.
    pub names: Vec<(Role, String)>,
    /// `outbox.header_columns`: columns whose texts travel as headers of the same name.
    pub header_columns: Vec<String>,
    /// What a payload is that is of no JSON type.
    pub payload_format: PayloadFormat,
    /// `outbox.topic_template`: where rows without a topic of their own go. `None`: `hub.topic`.
    pub topic: Option<TopicTemplate>,
    /// What becomes of rows that the hub holds.
    pub cleanup: Cleanup,
}

/// What a column of an outbox table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The row's own id.
    Id,
    /// What the event is about.
    AggregateType,
    /// Which one.
    AggregateId,
    /// The event's type.
    Type,
    /// The event's data.
    Payload,
    /// A JSON object: more headers.
    Headers,
    /// The row's own topic.
    Topic,
    /// When it occurred.
    Timestamp,
}

/// What a payload is that is of no JSON type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PayloadFormat {
    /// A string: text as it stands, bytea in base64.
    #[default]
    Text,
    /// JSON, embedded.
    Json,
}

/// What becomes of rows that the hub holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cleanup {
    /// They stay.
    #[default]
    Keep,
    /// They are removed.
    Delete,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 8] = [
        Role::Id,
        Role::AggregateType,
        Role::AggregateId,
        Role::Type,
        Role::Payload,
        Role::Headers,
        Role::Topic,
        Role::Timestamp,
    ];

    /// The key below `outbox`, and the column's default name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Id => "id",
            Role::AggregateType => "aggregate_type",
            Role::AggregateId => "aggregate_id",
            Role::Type => "type",
            Role::Payload => "payload",
            Role::Headers => "headers",
            Role::Topic => "topic",
            Role::Timestamp => "timestamp",
        }
    }

    /// The name that Debezium's outbox router has for it, where that is another one.
    pub fn alias(self) -> Option<&'static str> {
        match self {
            Role::AggregateType => Some("aggregatetype"),
            Role::AggregateId => Some("aggregateid"),
            Role::Id | Role::Type | Role::Payload | Role::Headers | Role::Topic | Role::Timestamp => None,
        }
    }

    /// Whether a table may do without.
    pub fn is_optional(self) -> bool {
        matches!(self, Role::Headers | Role::Topic | Role::Timestamp)
    }
}

impl OutboxRule {
    /// The column that the rule names for a role.
    pub fn named(&self, role: Role) -> Option<&str> {
        self.names.iter().find(|(one, _)| *one == role).map(|(_, name)| name.as_str())
    }
}

/// Keys of a rule that speak of rows as rows: an outbox table's are events as they stand.
const OF_ROWS: &[&str] = &[
    "where",
    "on_unknown_old",
    "columns",
    "exclude",
    "replicas",
    "to",
    "key",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "pushdown",
    "mask",
];

/// The keys of a rule with `mode = "outbox"`; of another one, that it has none of them. `copies`: rows of before the
/// start are published.
pub(super) fn read(section: &Section<'_>, is_outbox: bool, copies: bool) -> Option<OutboxRule> {
    if !is_outbox {
        section.choice("cleanup", &[("keep", ()), ("delete", ())], &[]);
        if section.string("cleanup").as_deref() == Some("delete") {
            section.fault("cleanup", "belongs to mode = \"outbox\"", "remove cleanup, or change mode");
        }
        if section.has("outbox") {
            section.fault("outbox", "belongs to mode = \"outbox\"", "remove outbox, or change mode");
        }
        return None;
    }
    for key in OF_ROWS.iter().filter(|key| section.has(key)) {
        section.fault(
            key,
            "has no meaning with mode = \"outbox\": the table's inserts are published as they stand",
            format!("remove {key}, or change mode"),
        );
    }
    let choices = [("keep", Cleanup::Keep), ("delete", Cleanup::Delete)];
    let cleanup = section.choice("cleanup", &choices, &[]).unwrap_or_default();
    if cleanup == Cleanup::Delete && !copies {
        section.fault(
            "cleanup",
            "\"delete\" belongs to source.snapshot = \"initial\": rows of before the start would be removed that were never published",
            "write snapshot = \"initial\" in [source], or cleanup = \"keep\"",
        );
    }
    let outbox = section.section("outbox");
    outbox.allow(schema::OUTBOX);
    let names = Role::ALL.into_iter().filter_map(|role| Some((role, outbox.string(role.name())?)));
    let formats = [("text", PayloadFormat::Text), ("json", PayloadFormat::Json)];
    Some(OutboxRule {
        names: names.collect(),
        header_columns: outbox.strings("header_columns").unwrap_or_default(),
        payload_format: outbox.choice("payload_format", &formats, &[]).unwrap_or_default(),
        topic: read_topic(&outbox),
        cleanup,
    })
}

fn read_topic(outbox: &Section<'_>) -> Option<TopicTemplate> {
    let text = outbox.string("topic_template")?;
    match TopicTemplate::parse(&text) {
        Ok(template) => Some(template),
        Err(error) => {
            outbox.fault("topic_template", error.to_string(), error.remedy());
            None
        }
    }
}
