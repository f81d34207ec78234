//! `[[table]]`: the rules, which rows and columns of which tables go where; and which rule takes a table.

use super::file::Section;
use super::outbox::{self, OutboxRule};
use super::replica::Replica;
use super::schema;
use crate::route::name::{TablePattern, TargetName};
use crate::route::template::EventTypeTemplate;

/// A rule, as it can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRule {
    /// The tables that it takes.
    pub name: TablePattern,
    /// What becomes of their changes.
    pub mode: Mode,
    /// `replicas`: which of them the rule speaks of. `None`: all.
    pub replicas: Option<Vec<String>>,
    /// `to`: its name on the replica; a part that is `*` is the table's own. `None`: the same name.
    pub to: Option<TargetName>,
    /// `where`: the rows that go, an SQL expression of PostgreSQL's meaning.
    pub filter: Option<String>,
    /// What becomes of an update whose new row does not pass while the old one is not known.
    pub on_unknown_old: OnUnknownOld,
    /// How partitioned tables among them are taken.
    pub partitions: Partitions,
    /// Whether the filter may go into the publication.
    pub pushdown: Pushdown,
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
    /// How an outbox table is read, with [`Mode::Outbox`] only.
    pub outbox: Option<OutboxRule>,
    /// `claim_check.columns`: large columns are stored one by one, the rest of the event stays inline.
    pub claims_columns: bool,
    /// Where the rule stands in the file, `table[2]`, for faults that are found later.
    pub key_path: String,
}

/// What becomes of a table's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Events on the hub.
    Event,
    /// Rows on replicas.
    Replicate,
    /// Both.
    Both,
    /// The inserts of an outbox table, as the events that they are.
    Outbox,
    /// Nothing.
    Off,
}

/// Where changes go: what a rule may speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination<'a> {
    /// The event store.
    Hub,
    /// The replica of this name.
    Replica(&'a str),
}

/// How a partitioned table is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitions {
    /// As one table, its root.
    #[default]
    Root,
    /// Each of its leaves as a table of its own, by the rule of its root; a rule with the leaf's exact name wins.
    Leaf,
}

/// Whether a filter may go into the publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pushdown {
    /// Walgate alone evaluates it.
    #[default]
    Off,
    /// Where that changes nothing but what is sent.
    Auto,
}

/// Where a filter's verdict on the old row is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnknownOld {
    /// A delete is published: it converges, but tells the key.
    #[default]
    Delete,
    /// Nothing is: consumers keep a row that may have passed.
    Drop,
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
            replicas: None,
            to: None,
            filter: None,
            on_unknown_old: OnUnknownOld::default(),
            partitions: Partitions::default(),
            pushdown: Pushdown::default(),
            columns: ColumnSet::All,
            key: None,
            aggregate_type: None,
            aggregate_id: None,
            event_type: EventTypeTemplate::default(),
            outbox: None,
            claims_columns: false,
            key_path: key_path.into(),
        }
    }
}

impl TableRule {
    /// Whether the rule says anything of the destination, be it that nothing goes there.
    pub fn speaks_of(&self, destination: Destination<'_>) -> bool {
        let is_listed =
            |name: &str| self.replicas.as_ref().is_none_or(|names| names.iter().any(|one| one == name));
        match (self.mode, destination) {
            (Mode::Event | Mode::Both | Mode::Outbox, Destination::Hub) => true,
            // With replicas it is only they that get nothing.
            (Mode::Off, Destination::Hub) => self.replicas.is_none(),
            (Mode::Replicate | Mode::Both | Mode::Off, Destination::Replica(name)) => is_listed(name),
            (Mode::Replicate, Destination::Hub) | (Mode::Event | Mode::Outbox, Destination::Replica(_)) => {
                false
            }
        }
    }

    /// `schema.table` on a replica.
    pub fn target_name(&self, schema: &str, table: &str) -> (String, String) {
        match &self.to {
            Some(to) => to.of(schema, table),
            None => (schema.to_owned(), table.to_owned()),
        }
    }
}

/// The rule that says what goes to `destination` of a table: of those that speak of it, one with its exact name, else
/// the last pattern that matches. `None`: nothing goes there.
pub fn choose<'a>(
    rules: &'a [TableRule],
    destination: Destination<'_>,
    schema: &str,
    table: &str,
) -> Option<&'a TableRule> {
    let is_match = |rule: &&TableRule| rule.speaks_of(destination) && rule.name.matches(schema, table);
    let exact = rules.iter().filter(|rule| rule.name.is_exact()).find(is_match);
    exact.or_else(|| rules.iter().rev().find(is_match)).filter(|rule| rule.mode != Mode::Off)
}

/// The same of a leaf of the partitioned table `root`, schema and name each, if that is taken leaf by leaf: of the rules
/// with the leaf's exact name and the root's, the first.
pub fn choose_of_leaf<'a>(
    rules: &'a [TableRule],
    destination: Destination<'_>,
    root: (&str, &str),
    leaf: (&str, &str),
) -> Option<&'a TableRule> {
    let of_root = choose(rules, destination, root.0, root.1)?;
    if of_root.partitions == Partitions::Root {
        return None;
    }
    let mut exact = rules.iter().filter(|rule| rule.name.is_exact() && rule.speaks_of(destination));
    let own = exact.find(|rule| rule.name.matches(leaf.0, leaf.1));
    own.or(Some(of_root)).filter(|rule| rule.mode != Mode::Off)
}

/// The rules of the file; without any, everything in `public` as events.
/// `copies`: `source.snapshot = "initial"`.
pub(super) fn read(root: &Section<'_>, replicas: &[Replica], copies: bool) -> Vec<TableRule> {
    let has_store = root.has("claim_check");
    if !root.has("table") {
        return vec![TableRule::events_of(TablePattern::all_of("public"), "table")];
    }
    let sections = root.sections("table");
    let mut rules = Vec::with_capacity(sections.len());
    for section in &sections {
        let Some(rule) = read_rule(section, replicas, (copies, has_store)) else { continue };
        if let Some((first, destination)) = doubled(&rules, &rule, replicas) {
            section.fault_of_value(
                "name",
                &format!("has a rule{destination} already: {first}"),
                "make one rule of the two",
            );
        }
        rules.push(rule);
    }
    rules
}

/// The rule before with the same exact name and a destination that both speak of.
fn doubled(rules: &[TableRule], rule: &TableRule, replicas: &[Replica]) -> Option<(String, String)> {
    let names = replicas.iter().map(|replica| Destination::Replica(&replica.name));
    let mut destinations = std::iter::once(Destination::Hub).chain(names).filter(|one| rule.speaks_of(*one));
    let is_same = |other: &&TableRule| rule.name.is_exact() && other.name == rule.name;
    destinations.find_map(|destination| {
        let other = rules.iter().filter(is_same).find(|other| other.speaks_of(destination))?;
        let named = match destination {
            Destination::Hub => String::new(),
            Destination::Replica(name) => format!(" for the replica {name}"),
        };
        Some((other.key_path.clone(), named))
    })
}

fn read_rule(
    section: &Section<'_>,
    known: &[Replica],
    (copies, has_store): (bool, bool),
) -> Option<TableRule> {
    section.allow(schema::TABLE);
    refuse_later(section);
    let name = read_name(section);
    let mode = section.choice(
        "mode",
        &[
            ("event", Mode::Event),
            ("replicate", Mode::Replicate),
            ("both", Mode::Both),
            ("outbox", Mode::Outbox),
            ("off", Mode::Off),
        ],
        &[],
    );
    let mode = mode.unwrap_or(Mode::Event);
    let outbox = outbox::read(section, mode == Mode::Outbox, copies);
    let replicas = read_replicas(section, mode, known);
    let to = read_to(section, mode);
    let filter = read_filter(section);
    let on_unknown_old = read_on_unknown_old(section);
    let partitions = read_partitions(section, to.as_ref());
    let pushdown = section.choice("pushdown", &[("off", Pushdown::Off), ("auto", Pushdown::Auto)], &[]);
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
        mode,
        replicas,
        to,
        filter,
        on_unknown_old,
        partitions,
        pushdown: pushdown.unwrap_or_default(),
        columns,
        key,
        aggregate_type,
        aggregate_id,
        event_type,
        outbox,
        claims_columns: read_claims_columns(section, has_store),
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

fn read_replicas(section: &Section<'_>, mode: Mode, known: &[Replica]) -> Option<Vec<String>> {
    if matches!(mode, Mode::Replicate | Mode::Both) && known.is_empty() {
        section.fault("mode", "there is no replica", "add a [[replica]] section with name and url");
    }
    let names = section.strings("replicas")?;
    if mode == Mode::Event {
        section.fault(
            "replicas",
            "belongs to mode = \"replicate\", \"both\" or \"off\"",
            "remove replicas, or change mode",
        );
    }
    for name in names.iter().filter(|name| known.iter().all(|replica| replica.name != **name)) {
        let list: Vec<&str> = known.iter().map(|replica| replica.name.as_str()).collect();
        let remedy = match schema::nearest(name, &list) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("known are: {}", list.join(", ")),
        };
        section.fault("replicas", format!("there is no replica {name:?}"), remedy);
    }
    Some(names)
}

fn read_to(section: &Section<'_>, mode: Mode) -> Option<TargetName> {
    let text = section.string("to")?;
    if matches!(mode, Mode::Event | Mode::Off) {
        section.fault("to", "belongs to mode = \"replicate\" or \"both\"", "remove to, or change mode");
    }
    let named = TablePattern::parse(&text).map(TargetName::of_pattern);
    match named {
        Ok(Some(name)) => return Some(name),
        Ok(None) => section.fault_of_value(
            "to",
            "mixes a name and *",
            "write schema.table, or * alone for the table's own",
        ),
        Err(error) => section.fault_of_value("to", &format!("is no schema.table: {error}"), error.remedy()),
    }
    None
}

/// The text; whether it fits the table is found by `check` and at start.
fn read_filter(section: &Section<'_>) -> Option<String> {
    let text = section.string("where")?;
    if text.trim().is_empty() {
        section.fault_of_value("where", "is empty", "write an SQL condition, or remove where");
        return None;
    }
    Some(text)
}

fn read_on_unknown_old(section: &Section<'_>) -> OnUnknownOld {
    let choices = [("delete", OnUnknownOld::Delete), ("drop", OnUnknownOld::Drop)];
    let chosen = section.choice("on_unknown_old", &choices, &[]);
    if section.has("on_unknown_old") && !section.has("where") {
        section.fault("on_unknown_old", "has no meaning without where", "remove on_unknown_old");
    }
    chosen.unwrap_or_default()
}

fn read_partitions(section: &Section<'_>, to: Option<&TargetName>) -> Partitions {
    let choices = [("root", Partitions::Root), ("leaf", Partitions::Leaf)];
    let partitions = section.choice("partitions", &choices, &[]).unwrap_or_default();
    if partitions == Partitions::Leaf && to.is_some_and(TargetName::is_of_one_table) {
        section.fault(
            "to",
            "would give every leaf the same name",
            "write to = \"schema.*\", or give each leaf a rule with its name and its own `to`",
        );
    }
    partitions
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

fn read_claims_columns(section: &Section<'_>, has_store: bool) -> bool {
    let claim_check = section.section("claim_check");
    claim_check.allow(&["columns"]);
    let claims_columns = claim_check.boolean("columns").unwrap_or(false);
    if claims_columns && !has_store {
        claim_check.fault("columns", "there is no claim store", "add a [claim_check] section with store");
    }
    claims_columns
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
    if !section.properties("mask").is_empty() {
        section.fault_of_later("mask", "masking", "remove mask, and list the columns in exclude");
    }
}
