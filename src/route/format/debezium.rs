//! Debezium's JSON envelope without inlined schemas: `before after source transaction op ts_ms ts_us ts_ns`.
//!
//! Comes in: a plan, a stamp and the row's cells. Goes out: events whose key is the object of the key columns and whose value is
//! what a consumer of Debezium's PostgreSQL connector expects under one set of its options (`docs/debezium.md`). Always holds:
//! every time in it is the commit's, and `sequence` is made of this transaction's own commit, so that a replay is equal.
//! What is too large for the hub leaves column by column: `referred.rs`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::referred::{Referred, Row};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::route::batch::{Batch, Event, Moved};
use crate::route::claim::{BINARY, Claim, Claims, ColumnPlace, directory_of_messages};
use crate::route::event::{
    EventWriter, RowEvent, Stamp, append, column_name, missing_key, text_of, value_error, write_id,
    write_number,
};
use crate::route::message::{MessagePlace, OUTBOX_PREFIX};
use crate::route::plan::{Op, TablePlan, json_string};
use crate::route::value::{self, DebeziumKind, Style, TypeCatalog};
use crate::wal::pgoutput::{Relation, Value};

/// The version of Debezium whose form this is: in `source.version`, and constant, so that a replay is equal after an upgrade too.
const FORM_VERSION: &str = "3.6.3.Final";

/// Where Debezium publishes logical messages.
pub fn message_topic(source_name: &str) -> String {
    format!("{source_name}.message")
}

/// The parts of `source` that do not change from event to event of a table, or of the logical messages.
#[derive(Debug)]
pub(in crate::route) struct SourceBlock {
    /// `{"version":…,"connector":"postgresql","name":"shop","ts_ms":`
    head_json: Vec<u8>,
    /// `,"db":"shop","sequence":"[`
    database_json: Vec<u8>,
    /// `,"schema":"public","table":"orders","txId":`
    table_json: Vec<u8>,
}

impl SourceBlock {
    /// Of a table; a logical message is of none, and both names are empty.
    pub fn new(source_name: &str, database: &str, schema: &str, table: &str) -> Self {
        let head = format!(r#"{{"version":"{FORM_VERSION}","connector":"postgresql","name":"#);
        let part = |name: &str, text: &str| [name.as_bytes(), &json_string(text)].concat();
        SourceBlock {
            head_json: [head.as_bytes(), &json_string(source_name), br#","ts_ms":"#].concat(),
            database_json: [part(r#","db":"#, database), br#","sequence":"["#.to_vec()].concat(),
            table_json: [part(r#","schema":"#, schema), part(r#","table":"#, table), br#","txId":"#.to_vec()]
                .concat(),
        }
    }

    fn write(&self, out: &mut Vec<u8>, stamp: &Stamp, lsn: Lsn) {
        let facts = stamp.facts;
        let micros = facts.at.unix_micros();
        out.extend_from_slice(&self.head_json);
        write_signed(out, micros.div_euclid(1000));
        out.extend_from_slice(if facts.is_copy {
            br#","snapshot":"true""#
        } else {
            br#","snapshot":"false""#
        });
        out.extend_from_slice(&self.database_json);
        if facts.is_copy {
            out.extend_from_slice(br#"null,\""#);
        } else {
            out.extend_from_slice(br#"\""#);
            write_number(out, facts.commit_lsn.0);
            out.extend_from_slice(br#"\",\""#);
        }
        write_number(out, lsn.0);
        out.extend_from_slice(br#"\"]","ts_us":"#);
        write_signed(out, micros);
        out.extend_from_slice(br#","ts_ns":"#);
        write_signed(out, micros.saturating_mul(1000));
        out.extend_from_slice(&self.table_json);
        match facts.xid {
            Some(xid) => write_number(out, u64::from(xid)),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#","lsn":"#);
        write_number(out, lsn.0);
        out.extend_from_slice(br#","xmin":null,"origin":"#);
        match &stamp.origin {
            Some(name) => value::write_str(out, name),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#","origin_lsn":null}"#);
    }
}

/// See the module.
#[derive(Debug)]
pub(in crate::route) struct DebeziumForm {
    source: SourceBlock,
    /// One for each column of the relation.
    pub(super) kinds: Vec<DebeziumKind>,
    /// Indexes of the key's columns, in its order; empty: the table has no key.
    pub(super) key: Vec<usize>,
}

impl DebeziumForm {
    /// Of a relation.
    pub fn new(
        source_name: &str,
        database: &str,
        types: &TypeCatalog,
        relation: &Relation,
        key: Vec<usize>,
    ) -> Self {
        let kind = |column: &crate::wal::pgoutput::RelationColumn| {
            DebeziumKind::of(types, column.type_oid, column.type_modifier)
        };
        DebeziumForm {
            source: SourceBlock::new(source_name, database, &relation.namespace, &relation.name),
            kinds: relation.columns.iter().map(kind).collect(),
            key,
        }
    }

    fn write_value(
        &self,
        out: &mut Vec<u8>,
        (plan, at): (&TablePlan, usize),
        text: &[u8],
        style: &Style,
    ) -> Result<()> {
        let kind = self.kinds.get(at).expect("a kind for each column");
        value::write_debezium(out, kind, text, style).map_err(|error| value_error(plan, at, error))
    }

    /// `{"id":42}`
    fn write_key(
        &self,
        out: &mut Vec<u8>,
        plan: &TablePlan,
        cells: &[Value<'_>],
        style: &Style,
    ) -> Result<std::ops::Range<usize>> {
        let start = out.len();
        out.push(b'{');
        for (nth, &at) in self.key.iter().enumerate() {
            if nth > 0 {
                out.push(b',');
            }
            out.extend_from_slice(
                &plan.columns.get(at).expect("a key is of the relation's columns").name_json,
            );
            match cells.get(at) {
                Some(Value::Text(text)) => self.write_value(out, (plan, at), text, style)?,
                Some(Value::Null) => out.extend_from_slice(b"null"),
                _ => return Err(missing_key(plan, at)),
            }
        }
        out.push(b'}');
        Ok(start..out.len())
    }

    /// A row: every published column, null where it is not known, a reference where it was taken out.
    fn write_row(
        &self,
        out: &mut Vec<u8>,
        plan: &TablePlan,
        row: &Row<'_, '_>,
        style: &Style,
        referred: &mut Referred<'_>,
    ) -> Result<()> {
        let mut separator = b'{';
        for (at, (column, cell)) in plan.columns.iter().zip(row.cells).enumerate() {
            if !column.is_published {
                continue;
            }
            out.push(separator);
            separator = b',';
            out.extend_from_slice(&column.name_json);
            match cell {
                _ if !row.takes(plan, at) => out.extend_from_slice(b"null"),
                Value::Null => out.extend_from_slice(b"null"),
                Value::Text(text) if referred.has(row, at) => {
                    referred.write(out, (plan, self), (row, at), text, style)?;
                }
                Value::Text(text) => self.write_value(out, (plan, at), text, style)?,
                Value::Unchanged => {
                    value::write_unavailable(out, self.kinds.get(at).expect("a kind for each column"));
                }
                Value::Binary(_) => {
                    return Err(Error::definite(format!(
                        "column {} came in binary form, which was not asked for",
                        column_name(plan, at)
                    )));
                }
            }
        }
        if separator == b'{' {
            out.push(separator);
        }
        out.push(b'}');
        Ok(())
    }

    /// Appends the value of a truncate event.
    pub fn write_truncate(&self, out: &mut Vec<u8>, stamp: &Stamp, lsn: Lsn) {
        out.extend_from_slice(br#"{"before":null,"after":null"#);
        self.write_tail(out, stamp, lsn, Op::Truncate);
    }

    fn write_tail(&self, out: &mut Vec<u8>, stamp: &Stamp, lsn: Lsn, op: Op) {
        out.extend_from_slice(br#","source":"#);
        self.source.write(out, stamp, lsn);
        out.extend_from_slice(br#","transaction":null,"op":""#);
        out.push(match op {
            Op::Insert => b'c',
            Op::Update => b'u',
            Op::Delete => b'd',
            Op::Truncate => b't',
            Op::Read => b'r',
        });
        out.push(b'"');
        let micros = stamp.facts.at.unix_micros();
        for (name, number) in [
            (&br#","ts_ms":"#[..], micros.div_euclid(1000)),
            (br#","ts_us":"#, micros),
            (br#","ts_ns":"#, micros.saturating_mul(1000)),
        ] {
            out.extend_from_slice(name);
            write_signed(out, number);
        }
        out.push(b'}');
    }
}

impl EventWriter {
    /// Appends a row's event; returns whether it has a key.
    pub(in crate::route) fn write_debezium(
        &self,
        batch: &mut Batch,
        (plan, form): (&TablePlan, &DebeziumForm),
        stamp: &Stamp,
        event: &RowEvent<'_, '_>,
    ) -> Result<bool> {
        let style = &self.style;
        let identity = event.new.or(event.before.cells()).unwrap_or_default();
        let has_key = !form.key.is_empty();
        let out = &mut batch.bytes;
        let id = append(out, |out| write_id(out, stamp, event.number));
        let key = has_key.then(|| form.write_key(out, plan, identity, style)).transpose()?;
        let moved = match event.moved {
            Some(cells) if has_key => {
                let key = form.write_key(out, plan, cells, style)?;
                Some(if event.op == Op::Delete { Moved::To(key) } else { Moved::From(key) })
            }
            _ => None,
        };
        let rows = Row::of(event);
        let name = if self.claims.is_some() { text_of(out, &id) } else { String::new() };
        let mut referred = Referred::new(self.claims.as_ref(), &name, (plan, form), &rows);
        let start = out.len();
        loop {
            let [before, after] = &rows;
            for (name, row) in [(&br#"{"before":"#[..], before), (br#","after":"#, after)] {
                out.extend_from_slice(name);
                match row {
                    Some(row) => form.write_row(out, plan, row, style, &mut referred)?,
                    None => out.extend_from_slice(b"null"),
                }
            }
            form.write_tail(out, stamp, event.lsn, event.op);
            if !referred.needs_more(out.len() - start, (plan, form), &rows) {
                break;
            }
            out.truncate(start);
        }
        let value = Some(start..out.len());
        let claims = referred.claims();
        let traceparent = stamp.append_traceparent(out);
        // Without a key librdkafka would deal the rows out, and their order would be lost.
        let partition = (!has_key).then_some(0);
        let label = plan.op(event.op).label;
        batch.push(Event { partition, key, value, moved, traceparent, claims, ..Event::new(label, id) });
        Ok(has_key)
    }
}

/// Appends the value of a logical message; what is too large of it is its content, which is returned then.
pub(in crate::route) fn write_message(
    out: &mut Vec<u8>,
    source: &SourceBlock,
    stamp: &Stamp,
    place: MessagePlace,
    content: &[u8],
    (claims, source_name, id): (Option<&Claims>, &str, &str),
) -> Option<Claim> {
    let start = out.len();
    out.extend_from_slice(br#"{"op":"m","ts_ms":"#);
    write_signed(out, stamp.facts.at.unix_micros().div_euclid(1000));
    out.extend_from_slice(br#","source":"#);
    source.write(out, stamp, place.lsn);
    out.extend_from_slice(br#","transaction":null,"message":{"prefix":"#);
    value::write_str(out, OUTBOX_PREFIX);
    out.extend_from_slice(br#","content":""#);
    let bytes = out.len() - start + content.len().div_ceil(3) * 4 + br#""}}"#.len();
    let claim = claims.filter(|claims| claims.is_large(bytes)).map(|claims| {
        let directory = directory_of_messages(source_name);
        let column = ColumnPlace {
            directory: &directory,
            id,
            column: "content",
            is_before: false,
            relation: OUTBOX_PREFIX,
        };
        let claim = claims.column(content.to_vec(), BINARY, &column);
        out.extend_from_slice(claim.reference().as_bytes());
        claim
    });
    if claim.is_none() {
        out.extend_from_slice(STANDARD.encode(content).as_bytes());
    }
    out.extend_from_slice(br#""}}"#);
    claim
}

fn write_signed(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}
