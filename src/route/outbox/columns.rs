//! Which column of an outbox table is what, and whether its type will do.
//!
//! Comes in: the rule, the relation, its types. Goes out: indexes into the relation, or everything that is wrong, each
//! with the key that it is about. `check` shows them all; a start takes them as one error.

use crate::config::{OutboxRule, Role};
use crate::route::value::{Kind, TypeCatalog};
use crate::wal::pgoutput::Relation;

/// Indexes of the columns, by role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The row's own id.
    pub id: usize,
    /// What the event is about.
    pub aggregate_type: usize,
    /// Which one.
    pub aggregate_id: usize,
    /// The event's type.
    pub event_type: usize,
    /// Its data.
    pub payload: usize,
    /// A JSON object of headers.
    pub headers: Option<usize>,
    /// The row's own topic.
    pub topic: Option<usize>,
    /// When it occurred.
    pub timestamp: Option<usize>,
    /// Columns that are headers by themselves.
    pub header_columns: Vec<usize>,
}

/// Something that is wrong with the rule or the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The key below the rule: `outbox.payload`.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl Columns {
    /// Finds each column by the name that the rule has for it, else by its own name or Debezium's.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn find(rule: &OutboxRule, relation: &Relation, types: &TypeCatalog) -> Result<Columns, Vec<Misfit>> {
        let mut misfits = Vec::new();
        let [id, aggregate_type, aggregate_id, event_type, payload, headers, topic, timestamp] = Role::ALL
            .map(|role| match find(rule, relation, role) {
                Ok(at) => {
                    let misfit = at.and_then(|at| wrong_type(relation, types, role, at));
                    misfits.extend(misfit);
                    at
                }
                Err(misfit) => {
                    misfits.push(misfit);
                    None
                }
            });
        let mut header_columns = Vec::new();
        for name in &rule.header_columns {
            match position(relation, name) {
                Some(at) => header_columns.push(at),
                None => misfits.push(missing(relation, "header_columns", name)),
            }
        }
        match (id, aggregate_type, aggregate_id, event_type, payload) {
            (Some(id), Some(aggregate_type), Some(aggregate_id), Some(event_type), Some(payload))
                if misfits.is_empty() =>
            {
                Ok(Columns {
                    id,
                    aggregate_type,
                    aggregate_id,
                    event_type,
                    payload,
                    headers,
                    topic,
                    timestamp,
                    header_columns,
                })
            }
            _ => Err(misfits),
        }
    }
}

fn find(rule: &OutboxRule, relation: &Relation, role: Role) -> Result<Option<usize>, Misfit> {
    if let Some(name) = rule.named(role) {
        return position(relation, name).map(Some).ok_or_else(|| missing(relation, role.name(), name));
    }
    let found = [Some(role.name()), role.alias()].into_iter().flatten();
    match found.filter_map(|name| position(relation, name)).next() {
        Some(at) => Ok(Some(at)),
        None if role.is_optional() => Ok(None),
        None => Err(missing(relation, role.name(), role.name())),
    }
}

fn position(relation: &Relation, name: &str) -> Option<usize> {
    relation.columns.iter().position(|column| column.name == name)
}

fn missing(relation: &Relation, key: &str, name: &str) -> Misfit {
    let names: Vec<String> = relation.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    Misfit {
        key: format!("outbox.{key}"),
        message: format!("column \"{name}\" does not exist"),
        remedy: format!(
            "name the column that is meant, outbox.{key}; the table has {} (generated columns are not sent)",
            names.join(", ")
        ),
    }
}

fn wrong_type(relation: &Relation, types: &TypeCatalog, role: Role, at: usize) -> Option<Misfit> {
    let column = relation.columns.get(at).expect("an index of the relation's columns");
    let kind = types.kind(column.type_oid).unwrap_or(&Kind::Text);
    let (fits, wanted) = match role {
        Role::Id | Role::AggregateId => {
            let is_whole = !matches!(kind, Kind::Json | Kind::Array { .. } | Kind::Hstore);
            (is_whole, "a simple value: a number, a text, a uuid")
        }
        Role::AggregateType | Role::Type | Role::Topic => (matches!(kind, Kind::Text), "text"),
        Role::Payload => {
            (matches!(kind, Kind::Json | Kind::Text | Kind::Bytea), "json, jsonb, text or bytea")
        }
        Role::Headers => (matches!(kind, Kind::Json), "json or jsonb, an object of strings"),
        Role::Timestamp => (matches!(kind, Kind::Timestamptz | Kind::Timestamp), "timestamptz or timestamp"),
    };
    (!fits).then(|| Misfit {
        key: format!("outbox.{}", role.name()),
        message: format!(
            "column \"{}\" has the type {}, which cannot be its {}",
            column.name,
            types.name(column.type_oid).unwrap_or("that is not known"),
            role.name()
        ),
        remedy: format!("it must be {wanted}; outbox.{} names another column", role.name()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::pgoutput::{RelationColumn, ReplicaIdentity};

    const JSONB: u32 = 3802;
    const TEXT: u32 = 25;
    const INT8: u32 = 20;

    fn relation(columns: &[(&str, u32)]) -> Relation {
        let column = |&(name, type_oid): &(&str, u32)| RelationColumn {
            key: name == "id",
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
        };
        Relation {
            oid: 1,
            namespace: "public".into(),
            name: "outbox".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        }
    }

    #[test]
    fn debeziums_names_are_known() {
        let table = relation(&[
            ("id", INT8),
            ("aggregatetype", TEXT),
            ("aggregateid", TEXT),
            ("type", TEXT),
            ("payload", JSONB),
        ]);
        let found = Columns::find(&OutboxRule::default(), &table, &TypeCatalog::builtin()).expect("it fits");
        assert_eq!((found.aggregate_type, found.aggregate_id, found.payload, found.headers), (1, 2, 4, None));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let table = relation(&[
            ("id", INT8),
            ("aggregate_type", INT8),
            ("aggregate_id", TEXT),
            ("payload", INT8),
            ("headers", TEXT),
        ]);
        let rule = OutboxRule { header_columns: vec!["tenant".into()], ..OutboxRule::default() };
        let misfits = Columns::find(&rule, &table, &TypeCatalog::builtin()).expect_err("it does not fit");
        let keys: Vec<&str> = misfits.iter().map(|misfit| misfit.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "outbox.aggregate_type",
                "outbox.type",
                "outbox.payload",
                "outbox.headers",
                "outbox.header_columns"
            ]
        );
    }
}
