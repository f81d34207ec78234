//! Outbox tables: what a service wrote as an event becomes that event (DESIGN sections 3 and 4, docs/outbox.md).
//!
//! Comes in: the rows of a table whose rule says `mode = "outbox"`. Goes out: for each INSERT one event of op `message`,
//! in the form that a logical message of `walgate.outbox` has, or a dead letter with the reason. A DELETE is clean-up and
//! no event; an UPDATE would change what was published, so it is a dead letter. Always holds: no row of an outbox table
//! stops a pipeline, since what is in the WAL can be mended by nobody; none is lost silently either.

pub mod columns;
mod headers;
mod writer;

use super::plan::{self, PlanContext};
use super::template::TopicTemplate;
use super::value::Kind;
use crate::config::{PayloadFormat, TableRule};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::pgoutput::Relation;
use crate::wal::sql::{quote_ident, quote_qualified};
use columns::{Columns, Misfit};
pub use writer::OutboxWriter;

/// A rule of this mode, compiled for one table.
#[derive(Debug)]
pub struct OutboxPlan {
    /// `schema.table`.
    pub relation: String,
    /// Changes of transactions with a smaller commit LSN are in the copy.
    pub copied_at: Lsn,
    source_name: String,
    schema: String,
    table: String,
    /// Name and kind of each column of the relation.
    columns: Vec<(String, Kind)>,
    at: Columns,
    payload_format: PayloadFormat,
    /// Where rows without a topic of their own go.
    topic: TopicTemplate,
    /// `","source":{...,"lsn":"`, behind the time.
    source_json: Vec<u8>,
    /// `,"schema_id":"9f2c01d4"},"data":`.
    schema_json: Vec<u8>,
}

impl OutboxPlan {
    /// Compiles `rule`, whose mode is `outbox`, for `relation`.
    ///
    /// # Errors
    /// Definite: columns are missing or of other types than they must be, all of them as one.
    pub fn compile(
        context: &PlanContext<'_>,
        relation: &Relation,
        rule: &TableRule,
        copied_at: Lsn,
    ) -> Result<OutboxPlan> {
        let outbox = rule.outbox.as_ref().expect("the rule's mode is outbox");
        let qualified = format!("{}.{}", relation.namespace, relation.name);
        let at = Columns::find(outbox, relation, context.types)
            .map_err(|misfits| refused(&qualified, &rule.key_path, &misfits))?;
        let columns = relation.columns.iter().map(|column| {
            let kind = context.types.kind(column.type_oid).cloned().unwrap_or(Kind::Text);
            (column.name.clone(), kind)
        });
        Ok(OutboxPlan {
            copied_at,
            columns: columns.collect(),
            payload_format: outbox.payload_format,
            topic: outbox.topic.clone().unwrap_or_else(|| context.topic.clone()),
            source_json: plan::source_json(context.source_name, relation),
            schema_json: plan::schema_json(&plan::schema_id(context.types, relation, &|_| true)),
            source_name: context.source_name.to_owned(),
            schema: relation.namespace.clone(),
            table: relation.name.clone(),
            relation: qualified,
            at,
        })
    }

    /// What is copied of the rows that are there, nearly in the order in which they came: transactions by the age of their
    /// id, the rows of one by the row's id where that counts up, else as they lie.
    pub fn from(&self, is_partitioned: bool) -> String {
        let only = if is_partitioned { "" } else { "ONLY " };
        let (id, kind) = self.columns.get(self.at.id).expect("an index of the columns");
        let by_id = match kind {
            Kind::Integer | Kind::Bigint => format!(", {}", quote_ident(id)),
            _ => String::new(),
        };
        let name = quote_qualified(&self.schema, &self.table);
        format!("FROM {only}{name} ORDER BY pg_catalog.age(xmin) DESC{by_id}, ctid")
    }

    /// How many columns a row has.
    pub fn width(&self) -> usize {
        self.columns.len()
    }
}

fn refused(table: &str, key_path: &str, misfits: &[Misfit]) -> Error {
    let told: Vec<String> = misfits.iter().map(|one| format!("{}: {}", one.key, one.message)).collect();
    let remedy = misfits.first().map_or("", |misfit| &misfit.remedy);
    Error::definite(format!("table {table}, {key_path}: {}", told.join("; "))).with_hint(remedy)
}
