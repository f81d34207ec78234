//! `[[table]]`: the rules, which rows and columns of which tables go where; and which rule takes a table.

use std::collections::HashMap;

use super::file::Section;
use super::schema;
use crate::route::name::TablePattern;
use crate::route::template::EventTypeTemplate;

/// A rule, as it can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRule {
    /// The tables that it takes.
    pub name: TablePattern,
    /// What becomes of their changes.
    pub mode: Mode,
    /// The columns that an event carries, besides the key.
    pub columns: ColumnSet,
    /// The key of tables without one. `None`: the identity index, else the primary key.
    pub key: Option<Vec<String>>,
    /// What events are about. `None`: the table's name.
    pub aggregate_type: Option<String>,
    /// The columns that say which one. `None`: the key.
    pub aggregate_id: Option<Vec<String>>,
    /// Names the events' types.
    pub event_type: EventTypeTemplate,
    /// Where the rule stands in the file, `table[2]`, for faults that are found later.
    pub key_path: String,
}

/// What becomes of a table's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Events on the hub.
    Event,
    /// Nothing.
    Off,
}

/// Which columns go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnSet {
    /// Each.
    All,
    /// `columns = [...]`: these, and the key.
    Only(Vec<String>),
    /// `exclude = [...]`: all but these.
    Except(Vec<String>),
}

impl ColumnSet {
    /// Whether the column goes, if it is not of the key.
    pub fn takes(&self, column: &str) -> bool {
        match self {
            ColumnSet::All => true,
            ColumnSet::Only(columns) => columns.iter().any(|name| name == column),
            ColumnSet::Except(columns) => !columns.iter().any(|name| name == column),
        }
    }

    /// The columns that the rule names, for checking that the table has them.
    pub fn named(&self) -> &[String] {
        match self {
            ColumnSet::All => &[],
            ColumnSet::Only(columns) | ColumnSet::Except(columns) => columns,
        }
    }
}

impl TableRule {
    /// Everything of these tables as events.
    pub fn events_of(name: TablePattern, key_path: impl Into<String>) -> Self {
        TableRule {
            name,
            mode: Mode::Event,
            columns: ColumnSet::All,
            key: None,
            aggregate_type: None,
            aggregate_id: None,
            event_type: EventTypeTemplate::default(),
            key_path: key_path.into(),
        }
    }
}

/// The rule that takes a table: one with its exact name, else the last pattern that matches.
pub fn choose<'a>(rules: &'a [TableRule], schema: &str, table: &str) -> Option<&'a TableRule> {
    let is_match = |rule: &&TableRule| rule.name.matches(schema, table);
    rules
        .iter()
        .filter(|rule| rule.name.is_exact())
        .find(is_match)
        .or_else(|| rules.iter().rev().find(is_match))
}

/// The rules of the file; without any, everything in `public` as events.
pub(super) fn read(root: &Section<'_>) -> Vec<TableRule> {
    if !root.has("table") {
        return vec![TableRule::events_of(TablePattern::all_of("public"), "table")];
    }
    let sections = root.sections("table");
    let mut rules = Vec::with_capacity(sections.len());
    let mut exact: HashMap<TablePattern, &str> = HashMap::new();
    for section in &sections {
        let Some(rule) = read_rule(section) else { continue };
        if rule.name.is_exact()
            && let Some(first) = exact.insert(rule.name.clone(), section.path())
        {
            section.fault_of_value(
                "name",
                &format!("has a rule already: {first}"),
                "make one rule of the two",
            );
        }
        rules.push(rule);
    }
    rules
}

fn read_rule(section: &Section<'_>) -> Option<TableRule> {
    section.allow(schema::TABLE);
    refuse_later(section);
    let name = read_name(section);
    let mode = section.choice(
        "mode",
        &[("event", Mode::Event), ("off", Mode::Off)],
        &["replicate", "both", "outbox"],
    );
    let columns = read_columns(section);
    let key = section.strings("key");
    if let (ColumnSet::Except(excluded), Some(key)) = (&columns, &key) {
        for column in key.iter().filter(|column| excluded.contains(column)) {
            section.fault(
                "exclude",
                format!("the key column {column:?} is always included"),
                format!("remove {column:?} from exclude, or from key"),
            );
        }
    }
    let aggregate_type = section.string("aggregate_type");
    let aggregate_id = section.strings("aggregate_id");
    let event_type = read_event_type(section);
    Some(TableRule {
        name: name?,
        mode: mode.unwrap_or(Mode::Event),
        columns,
        key,
        aggregate_type,
        aggregate_id,
        event_type,
        key_path: section.path().to_owned(),
    })
}

fn read_name(section: &Section<'_>) -> Option<TablePattern> {
    if !section.has("name") {
        section.fault_of_missing("name", "the tables that the rule takes", "write name = \"public.orders\"");
        return None;
    }
    let text = section.string("name")?;
    match TablePattern::parse(&text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            section.fault_of_value("name", &format!("is no schema.table: {error}"), error.remedy());
            None
        }
    }
}

fn read_columns(section: &Section<'_>) -> ColumnSet {
    let columns = section.strings("columns");
    let exclude = section.strings("exclude");
    if section.has("columns") && section.has("exclude") {
        section.fault("exclude", "columns and exclude contradict each other", "keep one of the two");
    }
    match (columns, exclude) {
        (Some(columns), _) => ColumnSet::Only(columns),
        (None, Some(exclude)) => ColumnSet::Except(exclude),
        (None, None) => ColumnSet::All,
    }
}

fn read_event_type(section: &Section<'_>) -> EventTypeTemplate {
    let Some(text) = section.string("event_type") else { return EventTypeTemplate::default() };
    EventTypeTemplate::parse(&text).unwrap_or_else(|error| {
        section.fault("event_type", error.to_string(), error.remedy());
        EventTypeTemplate::default()
    })
}

/// Refuses what later versions do; a default that is written out is fine.
fn refuse_later(section: &Section<'_>) {
    for (key, what, remedy) in [
        ("where", "a row filter", "remove where, and let consumers filter"),
        ("replicas", "replication", "remove replicas"),
        ("to", "replication", "remove to"),
        ("outbox", "mode = \"outbox\"", "remove outbox, and write mode = \"event\""),
    ] {
        if section.has(key) {
            section.fault_of_later(key, what, remedy);
        }
    }
    if section.has("on_unknown_old") {
        section.choice("on_unknown_old", &[("delete", ()), ("drop", ())], &[]);
        section.fault("on_unknown_old", "has no meaning without where", "remove on_unknown_old");
    }
    section.choice("pushdown", &[("off", ())], &["auto"]);
    section.choice("partitions", &[("root", ())], &["leaf"]);
    section.choice("cleanup", &[("keep", ())], &["delete"]);
    let claim_check = section.section("claim_check");
    claim_check.allow(&["columns"]);
    if claim_check.boolean("columns") == Some(true) {
        claim_check.fault_of_later(
            "columns",
            "claim_check.columns = true",
            "write claim_check.columns = false",
        );
    }
    if !section.properties("mask").is_empty() {
        section.fault_of_later("mask", "masking", "remove mask, and list the columns in exclude");
    }
}
