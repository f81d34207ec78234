//! `[[replica]]`: databases that receive rows.

use super::file::Section;
use super::schema;
use super::source::SecretUrl;

/// A replica, as it can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Names it in rules, commands and its slot: `<source.slot>_r_<name>`.
    pub name: String,
    /// Where it is, with its password.
    pub url: SecretUrl,
    /// Missing tables are made from the source's definition.
    pub create_tables: bool,
    /// What a row that is not as the source's change expects it leads to.
    pub on_conflict: OnConflict,
    /// What an error leads to that belongs to one table.
    pub on_table_error: OnTableError,
    /// What a change of a table's definition leads to, where the replica's table does not fit it.
    pub on_schema_change: OnSchemaChange,
    /// Where it stands in the file, `replica[0]`.
    pub key_path: String,
}

/// What a conflict leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// The replica becomes equal to the source.
    #[default]
    Apply,
    /// The replica's row stays.
    Skip,
    /// The pipeline stops.
    Error,
}

impl OnConflict {
    /// Its name in the file, and in `walgate.conflict`.
    pub fn name(self) -> &'static str {
        match self {
            OnConflict::Apply => "apply",
            OnConflict::Skip => "skip",
            OnConflict::Error => "error",
        }
    }
}

/// What an error of one table leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTableError {
    /// The pipeline stops.
    #[default]
    Stop,
    /// The table is parked, the others go on.
    Park,
}

/// What a change of a table's definition leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSchemaChange {
    /// The table is parked, the others go on.
    #[default]
    Park,
    /// Columns that came are added to the replica's table; what cannot be followed is parked.
    Follow,
}

/// The slot's own name: with what the copy's slot has behind it, it must stay within 63 bytes.
const SLOT_LENGTH_MAX: usize = 63 - "_c0000000".len();

pub(super) fn read(root: &Section<'_>, slot: &str) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = Vec::new();
    for section in root.sections("replica") {
        section.allow(schema::REPLICA);
        let Some(replica) = read_replica(&section, slot) else { continue };
        if let Some(first) = replicas.iter().find(|known| known.name == replica.name) {
            section.fault_of_value(
                "name",
                &format!("is taken already: {}", first.key_path),
                "give each replica a name of its own",
            );
        }
        replicas.push(replica);
    }
    replicas
}

fn read_replica(section: &Section<'_>, slot: &str) -> Option<Replica> {
    const EXAMPLE: &str = "write url = \"postgres://USER:${REPLICA_PASSWORD}@HOST:5432/DATABASE\"";
    let name = read_name(section, slot);
    let url = match section.has("url") {
        true => section.url("url"),
        false => {
            section.fault_of_missing("url", "the database that receives the rows", EXAMPLE);
            None
        }
    };
    if let Some(url) = &url
        && !url.starts_with("postgres://")
        && !url.starts_with("postgresql://")
    {
        section.fault(
            "url",
            "is no URL of a PostgreSQL server: it does not begin with postgres://",
            format!("{EXAMPLE}; a variable with a whole URL stands alone: url = \"${{REPLICA_URL}}\""),
        );
    }
    let conflicts =
        [OnConflict::Apply, OnConflict::Skip, OnConflict::Error].map(|policy| (policy.name(), policy));
    let on_conflict = section.choice("on_conflict", &conflicts, &[]);
    let errors = [("stop", OnTableError::Stop), ("park", OnTableError::Park)];
    let on_table_error = section.choice("on_table_error", &errors, &[]);
    let changes = [("park", OnSchemaChange::Park), ("follow", OnSchemaChange::Follow)];
    let on_schema_change = section.choice("on_schema_change", &changes, &[]);
    Some(Replica {
        create_tables: section.boolean("create_tables").unwrap_or(true),
        on_conflict: on_conflict.unwrap_or_default(),
        on_table_error: on_table_error.unwrap_or_default(),
        on_schema_change: on_schema_change.unwrap_or_default(),
        key_path: section.path().to_owned(),
        name: name?,
        url: SecretUrl::new(url?),
    })
}

fn read_name(section: &Section<'_>, slot: &str) -> Option<String> {
    if !section.has("name") {
        section.fault_of_missing("name", "the replica's name", "write name = \"reporting\"");
        return None;
    }
    let name = section.string("name")?;
    let is_legal = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let length_max = SLOT_LENGTH_MAX.saturating_sub(slot.len() + "_r_".len());
    if name.is_empty() || !is_legal || name.len() > length_max {
        section.fault_of_value(
            "name",
            "cannot end a slot's name",
            format!("use at most {length_max} lower-case letters, digits and _, or shorten source.slot"),
        );
    }
    Some(name)
}
