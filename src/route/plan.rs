//! A rule compiled for one table: which columns go into its events, what its aggregate is, and every
//! piece of JSON that does not change from row to row.
//!
//! Comes in: the relation as the stream (or the catalog, for the copy) describes it, the rule, and
//! what the relation message does not say (the primary key). Goes out: a [`TablePlan`], with which
//! an event costs no lookup by name. A plan is made again when the relation changes.

use sha2::{Digest, Sha256};

use super::batch::{Label, LabelId, Labels};
use super::claim;
use super::filter::{EnumLabels, TableFacts};
use super::format::{CloudEventsForm, DebeziumForm, EventSettings, Form};
use super::selection::{Names, Selection, SelectionContext, is_key};
use super::template::{EventTypeNames, OpWord, TopicNames, TopicTemplate};
use super::value::{self, Kind, TypeCatalog};
use crate::config::{Format, TableRule};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::wal::pgoutput::Relation;

/// The operations of row events, in the order of `TablePlan::ops`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A removed row.
    Delete,
    /// All rows removed.
    Truncate,
    /// A row of the initial copy.
    Read,
}

impl Op {
    const ALL: [Op; 5] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Read];

    /// The event's `op`.
    pub fn name(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Read => "read",
        }
    }

    fn word(self) -> OpWord {
        match self {
            Op::Insert => OpWord::Inserted,
            Op::Update => OpWord::Updated,
            Op::Delete => OpWord::Deleted,
            Op::Truncate => OpWord::Truncated,
            Op::Read => OpWord::Read,
        }
    }
}

/// One column of the relation.
#[derive(Debug)]
pub struct ColumnPlan {
    /// Its name.
    pub name: String,
    /// `"name":`, escaped.
    pub name_json: Vec<u8>,
    /// How its text becomes JSON.
    pub kind: Kind,
    /// Whether the rule lets it into events.
    pub is_published: bool,
}

/// What is equal for all events of one operation on the table.
#[derive(Debug)]
pub struct OpPlan {
    /// The interned label.
    pub label: LabelId,
    /// `","type":"orders.updated","aggregate_type":"orders","aggregate_id":`, after the id.
    pub head_json: Vec<u8>,
    /// `,"op":"update","occurred_at":"`, after the aggregate id.
    pub op_json: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct TablePlan {
    /// OID of the table, of a partitioned table: of its root.
    pub oid: u32,
    /// What the rule selects.
    pub selection: Selection,
    /// The table's name: the Kafka key of events that have no aggregate.
    pub table: String,
    /// One for each column of the relation, in its order.
    pub columns: Vec<ColumnPlan>,
    /// Indexes of the columns whose texts make the aggregate id; empty: the table has no key.
    pub aggregate: Vec<usize>,
    /// `","source":{"name":"shop","schema":"public","table":"orders","lsn":"`.
    pub source_json: Vec<u8>,
    /// `,"schema_id":"9f2c01d4"},"data":`.
    pub schema_json: Vec<u8>,
    /// Changes of transactions with a smaller commit LSN are in the copy.
    pub copied_at: Lsn,
    /// Whether a delete has a tombstone behind it.
    pub has_tombstones: bool,
    /// The form of its events.
    pub(super) form: Form,
    /// What the keys of its claims begin with.
    pub claim_directory: String,
    /// Large columns are stored one by one.
    pub claims_columns: bool,
    ops: [OpPlan; 5],
}

/// What plans are made from, besides the relation itself.
pub struct PlanContext<'a> {
    /// `source.name`.
    pub source_name: &'a str,
    /// Types by OID.
    pub types: &'a TypeCatalog,
    /// Labels of enums, for filters.
    pub enums: &'a EnumLabels,
    /// Where labels are interned.
    pub labels: &'a Labels,
    /// The hub's `topic`.
    pub topic: &'a TopicTemplate,
    /// The form of events.
    pub events: &'a EventSettings,
}

impl TablePlan {
    /// Compiles `rule` for `relation`, whose primary key has the columns `primary_key`; `facts` are for its filter.
    ///
    /// # Errors
    /// Definite: as [`Selection::of`]; an aggregate outside of the replica identity; a topic name that Kafka cannot
    /// have.
    pub fn compile(
        context: &PlanContext<'_>,
        relation: &Relation,
        rule: &TableRule,
        primary_key: &[String],
        facts: &TableFacts,
        copied_at: Lsn,
    ) -> Result<TablePlan> {
        let of = SelectionContext { types: context.types, enums: context.enums, primary_key, facts };
        let selection = Selection::of(of, relation, rule, rule.aggregate_id.as_deref())?;
        let names = Names { relation, rule, qualified: &selection.relation };
        let aggregate = match &rule.aggregate_id {
            Some(listed) => names.indexes(listed)?,
            None => selection.key.clone(),
        };
        let has_identity = relation.columns.iter().any(|column| column.key);
        if has_identity
            && let Some(&outside) = aggregate.iter().find(|&&at| !selection.is_full && !is_key(relation, at))
        {
            let name = names.name(outside);
            return Err(names
                .refuse(format!("the aggregate id's column \"{name}\" is not in the replica identity"))
                .with_hint(format!("ALTER TABLE {} REPLICA IDENTITY FULL;", selection.sql_name)));
        }

        let columns: Vec<ColumnPlan> = relation
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| ColumnPlan {
                name: column.name.clone(),
                name_json: [json_string(&column.name), b":".to_vec()].concat(),
                kind: context.types.kind(column.type_oid).cloned().unwrap_or(Kind::Text),
                is_published: selection.is_published(at),
            })
            .collect();
        let aggregate_type = rule.aggregate_type.clone().unwrap_or_else(|| relation.name.clone());
        let topic_names = TopicNames {
            source: context.source_name,
            schema: &relation.namespace,
            table: &relation.name,
            aggregate_type: &aggregate_type,
        };
        let topic = context.topic.render(&topic_names).map_err(|error| names.refuse(error.to_string()))?;
        let type_names = EventTypeNames {
            schema: &relation.namespace,
            table: &relation.name,
            aggregate_type: &aggregate_type,
        };
        let ops = Op::ALL.map(|op| {
            let event_type = rule.event_type.render(&type_names, op.word());
            OpPlan {
                head_json: [
                    &br#"","type":"#[..],
                    &json_string(&event_type),
                    br#","aggregate_type":"#,
                    &json_string(&aggregate_type),
                    br#","aggregate_id":"#,
                ]
                .concat(),
                op_json: format!(r#","op":"{}","occurred_at":""#, op.name()).into_bytes(),
                label: context.labels.intern(Label {
                    topic: topic.legal.clone(),
                    relation: selection.relation.clone(),
                    event_type,
                    aggregate_type: aggregate_type.clone(),
                    op: op.name(),
                    format: context.events.format,
                }),
            }
        });
        let source_json = source_json(context.source_name, relation);
        let schema_id = schema_id(context.types, relation, &|at| selection.is_published(at));
        let schema_json = schema_json(&schema_id);
        let form = match context.events.format {
            Format::Outbox => Form::Outbox,
            Format::Debezium => {
                let database = &context.events.database;
                // Debezium has the columns in the order of the primary key's index.
                let is_its_key = |by_index: &Vec<usize>| {
                    rule.aggregate_id.is_none()
                        && by_index.len() == aggregate.len()
                        && by_index.iter().all(|at| aggregate.contains(at))
                };
                let key =
                    names.indexes(primary_key).ok().filter(is_its_key).unwrap_or_else(|| aggregate.clone());
                let form = DebeziumForm::new(context.source_name, database, context.types, relation, key);
                Form::Debezium(Box::new(form))
            }
            Format::CloudEvents => {
                let about = (aggregate_type.as_str(), schema_id.as_str());
                let event_types = Op::ALL.map(|op| (op, rule.event_type.render(&type_names, op.word())));
                Form::CloudEvents(Box::new(CloudEventsForm::new(
                    context.source_name,
                    relation,
                    about,
                    event_types,
                )))
            }
        };
        Ok(TablePlan {
            oid: relation.oid,
            selection,
            table: relation.name.clone(),
            columns,
            aggregate,
            source_json,
            schema_json,
            copied_at,
            has_tombstones: context.events.tombstones,
            form,
            claim_directory: claim::directory(context.source_name, &relation.namespace, &relation.name),
            claims_columns: rule.claims_columns,
            ops,
        })
    }

    /// What is equal for all events of `op`.
    pub fn op(&self, op: Op) -> &OpPlan {
        let [insert, update, delete, truncate, read] = &self.ops;
        match op {
            Op::Insert => insert,
            Op::Update => update,
            Op::Delete => delete,
            Op::Truncate => truncate,
            Op::Read => read,
        }
    }
}

/// `","source":{"name":"shop","schema":"public","table":"orders","lsn":"`, behind the time.
pub(super) fn source_json(source_name: &str, relation: &Relation) -> Vec<u8> {
    [
        &br#"","source":{"name":"#[..],
        &json_string(source_name),
        br#","schema":"#,
        &json_string(&relation.namespace),
        br#","table":"#,
        &json_string(&relation.name),
        br#","lsn":""#,
    ]
    .concat()
}

/// A fingerprint of the published columns and their types: eight hexadecimal digits.
pub(super) fn schema_id(
    types: &TypeCatalog,
    relation: &Relation,
    is_published: &dyn Fn(usize) -> bool,
) -> String {
    let mut hash = Sha256::new();
    for (_, column) in relation.columns.iter().enumerate().filter(|(at, _)| is_published(*at)) {
        hash.update(column.name.as_bytes());
        hash.update([0]);
        match types.name(column.type_oid) {
            Some(name) => hash.update(name.as_bytes()),
            None => hash.update(column.type_oid.to_string().as_bytes()),
        }
        hash.update([0]);
        hash.update(column.type_modifier.to_be_bytes());
    }
    hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// `,"schema_id":"9f2c01d4"},"data":`.
pub(super) fn schema_json(schema_id: &str) -> Vec<u8> {
    format!(r#","schema_id":"{schema_id}"}},"data":"#).into_bytes()
}

/// A JSON string, quotes included.
pub(super) fn json_string(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    value::write_str(&mut out, text);
    out
}
