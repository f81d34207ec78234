//! A rule against one table, whatever the destination: which columns go, what identifies a row, which rows pass.
//!
//! Comes in: the relation as the stream (or the catalog, for the copy) describes it, the rule, and what the relation
//! message does not say. Goes out: a [`Selection`], part of every plan.

use std::sync::Arc;

use super::crossing::RowFilter;
use super::filter::{EnumLabels, Filter, TableFacts};
use super::value::TypeCatalog;
use crate::config::{ColumnSet, TableRule};
use crate::error::{Error, Result};
use crate::wal::pgoutput::{Relation, ReplicaIdentity};

/// See the module. Columns are named by their index in the relation.
#[derive(Debug)]
pub struct Selection {
    /// OID of the table.
    pub oid: u32,
    /// `schema.table`, for errors.
    pub relation: String,
    /// `"schema"."table"`, for remedies.
    pub sql_name: String,
    /// One for each column of the relation, in its order.
    pub columns: Vec<SelectedColumn>,
    /// The columns that identify a row; empty: nothing but the whole row does.
    pub key: Vec<usize>,
    /// The columns whose change is a key change: the key's and, of events, the aggregate's.
    pub moving: Vec<usize>,
    /// REPLICA IDENTITY FULL.
    pub is_full: bool,
    /// The rule leaves out columns: an update of those alone is no change.
    pub is_projected: bool,
    /// The rows that go; `None`: all.
    pub filter: Option<Arc<RowFilter>>,
}

/// A column of the relation.
#[derive(Clone, Debug)]
pub struct SelectedColumn {
    /// Its name.
    pub name: String,
    /// Whether the rule lets it through, or the key needs it.
    pub is_published: bool,
    /// Whether it belongs to the replica identity (all columns under FULL).
    pub is_identity: bool,
}

/// What a table is selected with, besides its relation and its rule.
#[derive(Clone, Copy)]
pub struct SelectionContext<'a> {
    /// Types by OID.
    pub types: &'a TypeCatalog,
    /// Labels of enums.
    pub enums: &'a EnumLabels,
    /// Columns of the primary key.
    pub primary_key: &'a [String],
    /// What the filter must know of the table.
    pub facts: &'a TableFacts,
}

impl Selection {
    /// Applies `rule` to `relation`. `more_key` are columns that the destination needs like the key: the aggregate's.
    ///
    /// # Errors
    /// Definite: a column that the rule names does not exist; a list without the key; a filter that is none.
    pub fn of(
        context: SelectionContext<'_>,
        relation: &Relation,
        rule: &TableRule,
        more_key: Option<&[String]>,
    ) -> Result<Selection> {
        let qualified = format!("{}.{}", relation.namespace, relation.name);
        let names = Names { relation, rule, qualified: &qualified };
        let is_full = relation.replica_identity == ReplicaIdentity::Full;
        let key = match &rule.key {
            Some(listed) => names.indexes(listed)?,
            None if is_full || relation.columns.iter().all(|column| !column.key) => {
                // In the order of the relation, as the identity's columns below.
                let mut key = names.indexes(context.primary_key)?;
                key.sort_unstable();
                key
            }
            None => (0..relation.columns.len()).filter(|&at| is_key(relation, at)).collect(),
        };
        let has_identity = relation.columns.iter().any(|column| column.key);
        if has_identity
            && !is_full
            && let Some(&outside) = key.iter().find(|&&at| !is_key(relation, at))
        {
            return Err(names
                .refuse(format!(
                    "the key's column \"{}\" is not in the replica identity",
                    names.name(outside)
                ))
                .with_hint(format!(
                    "ALTER TABLE {} REPLICA IDENTITY FULL;",
                    crate::wal::sql::quote_qualified(&relation.namespace, &relation.name)
                )));
        }
        let mut moving = key.clone();
        moving.extend(more_key.map(|listed| names.indexes(listed)).transpose()?.unwrap_or_default());
        moving.sort_unstable();
        moving.dedup();

        let listed = names.listed()?;
        let is_listed = |at: usize| listed.get(at).copied().unwrap_or(false);
        if matches!(rule.columns, ColumnSet::Only(_))
            && let Some(&missing) = moving.iter().find(|&&at| !is_listed(at))
        {
            let name = names.name(missing);
            return Err(names
                .refuse(format!("the key's column \"{name}\" is not among the listed columns"))
                .with_hint(format!("add \"{name}\" to columns")));
        }
        let columns: Vec<SelectedColumn> = relation
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| SelectedColumn {
                name: column.name.clone(),
                is_published: is_listed(at) || moving.contains(&at),
                is_identity: column.key,
            })
            .collect();
        let filter = match &rule.filter {
            None => None,
            Some(text) => {
                let filter = Filter::compile(text, relation, context.types, context.enums, context.facts)
                    .map_err(|error| {
                        let place = format!("table {qualified}, {}.where", rule.key_path);
                        Error::from(error).context(place)
                    })?;
                Some(Arc::new(RowFilter { filter, on_unknown_old: rule.on_unknown_old }))
            }
        };
        Ok(Selection {
            oid: relation.oid,
            sql_name: crate::wal::sql::quote_qualified(&relation.namespace, &relation.name),
            is_projected: columns.iter().any(|column| !column.is_published),
            relation: qualified,
            columns,
            key,
            moving,
            is_full,
            filter,
        })
    }

    /// Whether the column goes.
    pub fn is_published(&self, at: usize) -> bool {
        self.columns.get(at).is_some_and(|column| column.is_published)
    }

    /// Whether the column belongs to the replica identity.
    pub fn is_identity(&self, at: usize) -> bool {
        self.columns.get(at).is_some_and(|column| column.is_identity)
    }

    /// A column's name, for errors.
    pub fn column_name(&self, at: usize) -> &str {
        self.columns.get(at).map_or("", |column| &column.name)
    }
}

/// The names that a rule may say.
pub(super) struct Names<'a> {
    pub relation: &'a Relation,
    pub rule: &'a TableRule,
    pub qualified: &'a str,
}

impl Names<'_> {
    pub fn refuse(&self, message: String) -> Error {
        Error::definite(format!("table {}, {}: {message}", self.qualified, self.rule.key_path))
    }

    fn index_of(&self, name: &String) -> Result<usize> {
        self.relation.columns.iter().position(|column| column.name == *name).ok_or_else(|| {
            self.refuse(format!("column \"{name}\" does not exist")).with_hint(
                "correct the name, or remove it from the rule; generated columns are not sent by the server",
            )
        })
    }

    pub fn indexes(&self, names: &[String]) -> Result<Vec<usize>> {
        names.iter().map(|name| self.index_of(name)).collect()
    }

    pub fn name(&self, at: usize) -> &str {
        self.relation.columns.get(at).map_or("", |column| column.name.as_str())
    }

    /// For each column, whether the rule's list lets it through (the key comes on top).
    fn listed(&self) -> Result<Vec<bool>> {
        let (names, listed) = match &self.rule.columns {
            ColumnSet::All => return Ok(vec![true; self.relation.columns.len()]),
            ColumnSet::Only(names) => (names, true),
            ColumnSet::Except(names) => (names, false),
        };
        let mut published = vec![!listed; self.relation.columns.len()];
        for at in self.indexes(names)? {
            *published.get_mut(at).expect("an index of the relation's columns") = listed;
        }
        Ok(published)
    }
}

pub(super) fn is_key(relation: &Relation, at: usize) -> bool {
    relation.columns.get(at).is_some_and(|column| column.key)
}
