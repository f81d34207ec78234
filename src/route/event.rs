//! Writes outbox events (DESIGN section 4) straight into a batch's buffer.
//!
//! Comes in: a plan, a stamp (what is equal for all events of a transaction) and the row's cells as
//! received. Goes out: one [`Event`] whose value is one line of JSON. Always holds: the text that
//! the server sent is copied once, escaped, into the buffer, with no value in between and no
//! allocation per event; the same input gives the same bytes, so that a replay is equal.

use std::io::Write;
use std::ops::Range;

use super::batch::{Batch, Event, Moved};
use super::claim::{Claim, Claims, ColumnPlace, Written};
use super::crossing::Outcome;
use super::format::{Form, write_tombstone};
use super::images::{Images, Place, unknown};
use super::message::MessagePlace;
use super::plan::{Op, TablePlan, json_string};
use super::value::{self, Style};
use crate::change::{Position, Transaction};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::pgoutput::{Old, Value};
use crate::wal::timestamp::Timestamp;

/// What is equal for all events of one source transaction, or of one table's copy.
#[derive(Debug, Default)]
pub struct Stamp {
    /// `shop/000000000193B748/`, of snapshot rows with `r<oid>-` behind it.
    id_prefix: Vec<u8>,
    /// RFC 3339, six digits of a second.
    occurred_at: Vec<u8>,
    /// `","commit_lsn":"0/193B748","xid":757,"seq":`.
    commit_json: Vec<u8>,
    /// `,"origin":null,"snapshot":false`.
    origin_json: Vec<u8>,
    traceparent: Option<Vec<u8>>,
    /// The same as values, for the other forms of an event.
    pub(super) facts: StampFacts,
    /// The replication origin that the transaction was applied from.
    pub(super) origin: Option<String>,
}

/// What a stamp is made of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StampFacts {
    /// Of the transaction; of a copy, just before `copied_at`.
    pub commit_lsn: Lsn,
    /// The commit's time.
    pub at: Timestamp,
    /// `None` for what is of no transaction.
    pub xid: Option<u32>,
    /// Whether it is of the initial copy.
    pub is_copy: bool,
}

impl Stamp {
    /// The stamp of a streamed transaction.
    pub fn of_transaction(source_name: &str, transaction: &Transaction) -> Self {
        let mut stamp = Stamp::default();
        stamp.renew(source_name, transaction);
        stamp
    }

    /// The same in place: small transactions would spend more on its buffers than on their rows.
    pub fn renew(&mut self, source_name: &str, transaction: &Transaction) {
        self.fill(source_name, transaction.commit_lsn, transaction.commit_time, Some(transaction.xid));
        self.set_origin(transaction);
    }

    /// Takes over what logical messages and Origin said about the open transaction.
    pub fn set_origin(&mut self, transaction: &Transaction) {
        self.origin_json.clear();
        self.origin_json.extend_from_slice(br#","origin":"#);
        match &transaction.origin {
            Some(name) => self.origin_json.extend_from_slice(&json_string(name)),
            None => self.origin_json.extend_from_slice(b"null"),
        }
        self.origin_json.extend_from_slice(br#","snapshot":false"#);
        self.traceparent = transaction.traceparent.clone().map(String::into_bytes);
        self.origin.clone_from(&transaction.origin);
    }

    /// The stamp of a non-transactional message. The WAL holds no time for it: it is the time of this
    /// sending, and so the one field that differs when it is sent again.
    pub fn of_message(source_name: &str, lsn: Lsn, sent_at: Timestamp) -> Self {
        let mut stamp = Stamp::at(source_name, lsn, sent_at, None);
        stamp.origin_json.extend_from_slice(br#","origin":null,"snapshot":false"#);
        stamp
    }

    /// The stamp of the copy of table `oid` at `copied_at`.
    pub fn of_copy(source_name: &str, copied_at: Lsn, taken_at: Timestamp, oid: u32) -> Self {
        let mut stamp = Stamp::at(source_name, Lsn(copied_at.0.saturating_sub(1)), taken_at, None);
        write!(stamp.id_prefix, "r{oid}-").expect("a Vec takes every byte");
        stamp.origin_json.extend_from_slice(br#","origin":null,"snapshot":true"#);
        stamp.facts.is_copy = true;
        stamp
    }

    /// The trace context of the transaction.
    pub(super) fn traceparent(&self) -> Option<&[u8]> {
        self.traceparent.as_deref()
    }

    /// Appends it, for the header.
    pub(super) fn append_traceparent(&self, out: &mut Vec<u8>) -> Option<Range<usize>> {
        self.traceparent.as_ref().map(|text| append(out, |out| out.extend_from_slice(text)))
    }

    /// From the time on to `"data":`, for an event that is of no table.
    pub(super) fn write_message_source(&self, out: &mut Vec<u8>, source_name: &str, place: MessagePlace) {
        out.extend_from_slice(&self.occurred_at);
        out.extend_from_slice(br#"","source":{"name":"#);
        out.extend_from_slice(&json_string(source_name));
        out.extend_from_slice(br#","schema":null,"table":null,"lsn":""#);
        write_lsn(out, place.lsn);
        out.extend_from_slice(&self.commit_json);
        write_number(out, place.number);
        out.extend_from_slice(&self.origin_json);
        out.extend_from_slice(br#","schema_id":null},"data":"#);
    }

    /// The commit's time, or the copy's.
    pub(super) fn occurred_at(&self) -> &[u8] {
        &self.occurred_at
    }

    /// From the change's LSN on to `,"schema_id"`, behind a plan's `source_json`.
    pub(super) fn write_place(&self, out: &mut Vec<u8>, place: MessagePlace) {
        write_lsn(out, place.lsn);
        out.extend_from_slice(&self.commit_json);
        write_number(out, place.number);
        out.extend_from_slice(&self.origin_json);
    }

    fn at(source_name: &str, lsn: Lsn, at: Timestamp, xid: Option<u32>) -> Self {
        let mut stamp = Stamp::default();
        stamp.fill(source_name, lsn, at, xid);
        stamp
    }

    fn fill(&mut self, source_name: &str, lsn: Lsn, at: Timestamp, xid: Option<u32>) {
        self.facts = StampFacts { commit_lsn: lsn, at, xid, is_copy: false };
        self.id_prefix.clear();
        self.id_prefix.extend_from_slice(source_name.as_bytes());
        self.id_prefix.push(b'/');
        write_hex(&mut self.id_prefix, lsn.0, 16);
        self.id_prefix.push(b'/');
        self.occurred_at.clear();
        at.write_rfc3339(&mut self.occurred_at);
        self.commit_json.clear();
        self.commit_json.extend_from_slice(br#"","commit_lsn":""#);
        write_lsn(&mut self.commit_json, lsn);
        self.commit_json.extend_from_slice(br#"","xid":"#);
        match xid {
            Some(xid) => write_number(&mut self.commit_json, u64::from(xid)),
            None => self.commit_json.extend_from_slice(b"null"),
        }
        self.commit_json.extend_from_slice(br#","seq":"#);
    }
}

/// The old row of an update or delete, as far as it was sent.
#[derive(Clone, Copy, Debug)]
pub enum Before<'r, 'a> {
    /// Nothing of it.
    Unknown,
    /// Its identity columns; the others are placeholders.
    Key(&'r [Value<'a>]),
    /// All of it.
    Row(&'r [Value<'a>]),
}

impl<'r, 'a> Before<'r, 'a> {
    pub(super) fn cells(self) -> Option<&'r [Value<'a>]> {
        match self {
            Before::Unknown => None,
            Before::Key(cells) | Before::Row(cells) => Some(cells),
        }
    }
}

/// One row event to be written.
#[derive(Clone, Copy)]
pub struct RowEvent<'r, 'a> {
    /// What is done with the row.
    pub op: Op,
    /// Of the change in the WAL.
    pub lsn: Lsn,
    /// The ordinal, or the row's number in the copy.
    pub number: u64,
    /// The new row; `None` for a delete.
    pub new: Option<&'r [Value<'a>]>,
    /// The old row.
    pub before: Before<'r, 'a>,
    /// The cells of the aggregate that this half of a key change is linked with.
    pub moved: Option<&'r [Value<'a>]>,
}

/// What names an event, as it stands in the batch.
pub(super) struct Named {
    /// The header `id`.
    pub id: Range<usize>,
    /// The aggregate's id; where there is none, the table's name.
    pub key: Range<usize>,
    /// Whether `key` is an aggregate's id.
    pub has_aggregate: bool,
    /// The other half of a key change.
    pub moved: Option<Moved>,
}

/// Writes events; keeps its scratch space between them.
#[derive(Debug)]
pub struct EventWriter {
    /// How values are written.
    pub style: Style,
    /// What takes out of them what is too large; `None`: everything travels inline.
    pub(super) claims: Option<Claims>,
    key: Vec<u8>,
}

impl EventWriter {
    /// A writer of the given style.
    pub fn new(style: Style, claims: Option<Claims>) -> Self {
        EventWriter { style, claims, key: Vec::new() }
    }

    /// Appends a row event to `batch`.
    ///
    /// # Errors
    /// Definite, naming table, column and position: a value that its type cannot have.
    pub fn write_row(
        &mut self,
        batch: &mut Batch,
        plan: &TablePlan,
        stamp: &Stamp,
        event: &RowEvent<'_, '_>,
    ) -> Result<()> {
        let result = self.try_write_row(batch, plan, stamp, event);
        result.map_err(|error| {
            error.context(format_args!(
                "table {}, change {:08X} at {}",
                plan.selection.relation, event.number, event.lsn
            ))
        })
    }

    fn try_write_row(
        &mut self,
        batch: &mut Batch,
        plan: &TablePlan,
        stamp: &Stamp,
        event: &RowEvent<'_, '_>,
    ) -> Result<()> {
        let has_key = match &plan.form {
            Form::Outbox => self.write_outbox(batch, plan, stamp, event),
            Form::Debezium(form) => self.write_debezium(batch, (plan, form), stamp, event),
            Form::CloudEvents(form) => self.write_cloudevent(batch, (plan, form), stamp, event),
        }?;
        if event.op == Op::Delete && has_key && plan.has_tombstones {
            write_tombstone(batch);
        }
        Ok(())
    }

    /// Appends what names an event: its id, its key, and the key that it is linked with.
    pub(super) fn write_named(
        &mut self,
        out: &mut Vec<u8>,
        plan: &TablePlan,
        stamp: &Stamp,
        event: &RowEvent<'_, '_>,
    ) -> Result<Named> {
        let identity = event.new.or(event.before.cells()).unwrap_or_default();
        let has_aggregate = self.write_aggregate(plan, identity)?;
        let id = append(out, |out| write_id(out, stamp, event.number));
        let key = append(out, |out| {
            out.extend_from_slice(if has_aggregate { &self.key } else { plan.table.as_bytes() });
        });
        let moved = match event.moved {
            Some(cells) if self.write_aggregate(plan, cells)? => {
                let key = append(out, |out| out.extend_from_slice(&self.key));
                Some(if event.op == Op::Delete { Moved::To(key) } else { Moved::From(key) })
            }
            _ => None,
        };
        Ok(Named { id, key, has_aggregate, moved })
    }

    /// Appends a row's event as DESIGN section 4 has it; returns whether it has an aggregate.
    fn write_outbox(
        &mut self,
        batch: &mut Batch,
        plan: &TablePlan,
        stamp: &Stamp,
        event: &RowEvent<'_, '_>,
    ) -> Result<bool> {
        let op = plan.op(event.op);
        let out = &mut batch.bytes;
        if let Some(taker) = &self.claims {
            taker.reserve(out, plan, &[event.new, event.before.cells()]);
        }
        let Named { id, key, has_aggregate, moved } = self.write_named(out, plan, stamp, event)?;
        let mut claims = Vec::new();
        let start = out.len();
        out.extend_from_slice(br#"{"v":1,"id":"#);
        append_json_string(out, id.clone())?;
        out.pop();
        out.extend_from_slice(&op.head_json);
        if has_aggregate {
            append_json_string(out, key.clone())?
        } else {
            out.extend_from_slice(b"null")
        }
        out.extend_from_slice(&op.op_json);
        out.extend_from_slice(&stamp.occurred_at);
        out.extend_from_slice(&plan.source_json);
        write_lsn(out, event.lsn);
        out.extend_from_slice(&stamp.commit_json);
        write_number(out, event.number);
        out.extend_from_slice(&stamp.origin_json);
        out.extend_from_slice(&plan.schema_json);
        let data = out.len();
        let mut object = Object { plan, id: id.clone(), is_before: false, claims: &mut claims };
        match event.new {
            Some(cells) => self.write_claiming(out, &mut object, cells, |_| true)?,
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#","before":"#);
        object.is_before = true;
        match event.before {
            Before::Unknown => out.extend_from_slice(b"null"),
            Before::Key(cells) => {
                self.write_claiming(out, &mut object, cells, |at| plan.selection.is_identity(at))?
            }
            Before::Row(cells) => self.write_claiming(out, &mut object, cells, |_| true)?,
        }
        let unchanged = out.len();
        out.extend_from_slice(br#","unchanged":"#);
        write_unchanged(out, plan, event.new.unwrap_or_default());
        let (from, to) = match &moved {
            Some(Moved::From(range)) => (Some(range), None),
            Some(Moved::To(range)) => (None, Some(range)),
            None => (None, None),
        };
        write_moved(out, br#","moved_from":"#, from)?;
        write_moved(out, br#","moved_to":"#, to)?;
        out.extend_from_slice(br#","claim":null}"#);
        let is_large = |taker: &&Claims| taker.is_large(out.len() - start);
        claims.extend(self.claims.as_ref().filter(is_large).map(|taker| {
            let of = (plan.claim_directory.as_str(), &*text_of(out, &id), plan.selection.relation.as_str());
            let claim = out.len() - b"null}".len();
            taker.take_event(out, Written { start, data, unchanged, claim }, of)
        }));
        let (key, value) = (Some(key), Some(start..out.len()));
        let traceparent = stamp.append_traceparent(out);
        batch.push(Event { key, value, moved, traceparent, claims, ..Event::new(op.label, id) });
        Ok(has_aggregate)
    }

    /// Appends the events of a change that became something; nothing where it is not seen.
    ///
    /// # Errors
    /// As [`EventWriter::write_row`].
    pub(super) fn write_images(
        &mut self,
        batch: &mut Batch,
        (plan, stamp): (&TablePlan, &Stamp),
        images: &Images<'_, '_>,
        outcome: Outcome,
        place: Place,
    ) -> Result<()> {
        let before = match &images.old {
            None => Before::Unknown,
            Some((Old::Key(_), cells)) => Before::Key(cells),
            Some((Old::Full(_), cells)) => Before::Row(cells),
        };
        let new = images.new.as_deref();
        let (lsn, number) = (place.lsn, place.position.ordinal);
        let event = |op, new, before| RowEvent { op, lsn, number, new, before, moved: None };
        let is_moved = images.is_key_changed(&plan.selection);
        let insert = RowEvent {
            number: if is_moved { place.position.insert_half().ordinal } else { number },
            ..event(Op::Insert, new, Before::Unknown)
        };
        match outcome {
            Outcome::Nothing => Ok(()),
            Outcome::Unknown(column) => Err(unknown(&plan.selection, column, place)),
            Outcome::Insert => self.write_row(batch, plan, stamp, &insert),
            Outcome::Delete => {
                let before = match (before, new) {
                    // An update that left the filter: its key did not change, so the new row tells it.
                    (Before::Unknown, Some(new)) => Before::Key(new),
                    (before, _) => before,
                };
                self.write_row(batch, plan, stamp, &event(Op::Delete, None, before))
            }
            Outcome::Update if is_moved => {
                let delete = RowEvent { moved: new, ..event(Op::Delete, None, before) };
                self.write_row(batch, plan, stamp, &delete)?;
                let moved = images.old.as_ref().map(|(_, cells)| cells.as_slice());
                self.write_row(batch, plan, stamp, &RowEvent { moved, ..insert })
            }
            Outcome::Update if images.is_unseen(&plan.selection) => Ok(()),
            Outcome::Update => {
                // A key was sent because one of its columns is TOASTed, not because it changed.
                let before = if matches!(before, Before::Key(_)) { Before::Unknown } else { before };
                self.write_row(batch, plan, stamp, &event(Op::Update, new, before))
            }
        }
    }

    /// Appends the truncate event for one partition of the table's topic.
    pub fn write_truncate(
        &mut self,
        batch: &mut Batch,
        plan: &TablePlan,
        stamp: &Stamp,
        lsn: Lsn,
        number: u64,
        partition: i32,
    ) -> Result<()> {
        let op = plan.op(Op::Truncate);
        let out = &mut batch.bytes;
        let id = append(out, |out| {
            write_id(out, stamp, number);
            write!(out, "/p{partition}").expect("a Vec takes every byte");
        });
        let key = append(out, |out| out.extend_from_slice(plan.table.as_bytes()));
        let start = out.len();
        match &plan.form {
            Form::Outbox => write_outbox_truncate(out, plan, stamp, (lsn, number), &id)?,
            Form::Debezium(form) => form.write_truncate(out, stamp, lsn),
            Form::CloudEvents(form) => form.write_truncate(out, stamp, lsn, (&id, &key))?,
        }
        let value = Some(start..out.len());
        let key = (!matches!(plan.form, Form::Debezium(_))).then_some(key);
        let traceparent = stamp.append_traceparent(out);
        let partition = Some(partition);
        batch.events.push(Event { partition, key, value, traceparent, ..Event::new(op.label, id) });
        Ok(())
    }

    /// Puts the aggregate id's text into `self.key`; false: the row has none.
    fn write_aggregate(&mut self, plan: &TablePlan, cells: &[Value<'_>]) -> Result<bool> {
        self.key.clear();
        match plan.aggregate.as_slice() {
            [] => Ok(false),
            [only] => match cells.get(*only) {
                Some(Value::Text(text)) => {
                    self.key.extend_from_slice(text);
                    Ok(true)
                }
                Some(Value::Null) => Ok(false),
                _ => Err(missing_key(plan, *only)),
            },
            several => {
                self.key.push(b'[');
                for (nth, at) in several.iter().enumerate() {
                    if nth > 0 {
                        self.key.push(b',');
                    }
                    match cells.get(*at) {
                        Some(Value::Text(text)) => {
                            value::write_string(&mut self.key, text)
                                .map_err(|error| value_error(plan, *at, error))?;
                        }
                        Some(Value::Null) => self.key.extend_from_slice(b"null"),
                        _ => return Err(missing_key(plan, *at)),
                    }
                }
                self.key.push(b']');
                Ok(true)
            }
        }
    }

    /// Appends a row without the columns that travel by claim check.
    pub(super) fn write_claiming(
        &self,
        out: &mut Vec<u8>,
        object: &mut Object<'_>,
        cells: &[Value<'_>],
        takes: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let plan = object.plan;
        out.push(b'{');
        let mut separator: &[u8] = b"";
        for (at, (column, cell)) in plan.columns.iter().zip(cells).enumerate() {
            if !column.is_published || matches!(cell, Value::Unchanged) || !takes(at) {
                continue;
            }
            out.extend_from_slice(separator);
            separator = b",";
            out.extend_from_slice(&column.name_json);
            match cell {
                Value::Null => out.extend_from_slice(b"null"),
                Value::Text(text) => {
                    if let Some(claims) = self.claims.as_ref().filter(|_| plan.may_claim(at)) {
                        let value = (&column.kind, *text, &self.style);
                        let taken = object.take(claims, out, value, &column.name);
                        if taken.map_err(|error| value_error(plan, at, error))? {
                            continue;
                        }
                    }
                    value::write_value(out, &column.kind, text, &self.style)
                        .map_err(|error| value_error(plan, at, error))?;
                }
                Value::Binary(_) | Value::Unchanged => {
                    return Err(Error::definite(format!(
                        "column {} came in binary form, which was not asked for",
                        column_name(plan, at)
                    )));
                }
            }
        }
        out.push(b'}');
        Ok(())
    }
}

fn write_outbox_truncate(
    out: &mut Vec<u8>,
    plan: &TablePlan,
    stamp: &Stamp,
    (lsn, number): (Lsn, u64),
    id: &Range<usize>,
) -> Result<()> {
    let op = plan.op(Op::Truncate);
    out.extend_from_slice(br#"{"v":1,"id":"#);
    append_json_string(out, id.clone())?;
    out.pop();
    for part in [&op.head_json[..], b"null", &op.op_json, &stamp.occurred_at, &plan.source_json] {
        out.extend_from_slice(part);
    }
    write_lsn(out, lsn);
    out.extend_from_slice(&stamp.commit_json);
    write_number(out, number);
    out.extend_from_slice(&stamp.origin_json);
    out.extend_from_slice(&plan.schema_json);
    out.extend_from_slice(
        br#"null,"before":null,"unchanged":[],"moved_from":null,"moved_to":null,"claim":null}"#,
    );
    Ok(())
}

/// One of the two rows of an event.
pub(super) struct Object<'r> {
    pub plan: &'r TablePlan,
    /// Where the event's id stands in the batch's buffer.
    pub id: Range<usize>,
    pub is_before: bool,
    /// The columns that were taken out.
    pub claims: &'r mut Vec<Claim>,
}

impl Object<'_> {
    /// Writes a reference in the place of a value that is too large; false: it is not.
    fn take(
        &mut self,
        claims: &Claims,
        out: &mut Vec<u8>,
        value: (&value::Kind, &[u8], &Style),
        column: &str,
    ) -> Result<bool, value::ValueError> {
        if !claims.is_large(value.1.len()) {
            return Ok(false);
        }
        let id = text_of(out, &self.id);
        let place = ColumnPlace {
            directory: &self.plan.claim_directory,
            id: &id,
            column,
            is_before: self.is_before,
            relation: &self.plan.selection.relation,
        };
        let claim = claims.take_column(out, value, &place)?;
        let is_taken = claim.is_some();
        self.claims.extend(claim);
        Ok(is_taken)
    }
}

/// A copy of what stands there: an id.
pub(in crate::route) fn text_of(out: &[u8], range: &Range<usize>) -> String {
    String::from_utf8_lossy(out.get(range.clone()).expect("a range of this buffer")).into_owned()
}

/// Appends what `write` writes and says where it stands.
pub(super) fn append(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
    let start = out.len();
    write(out);
    start..out.len()
}

/// Appends the bytes that stand at `range` once more, as a JSON string.
pub(super) fn append_json_string(out: &mut Vec<u8>, range: Range<usize>) -> Result<()> {
    let text = out.get(range.clone()).expect("a range of this buffer");
    // The usual id and key need no escape: copied within the buffer, without a detour.
    if text.iter().all(|&byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_within(range);
        out.push(b'"');
        return Ok(());
    }
    let text = text.to_vec();
    value::write_string(out, &text).map_err(|error| Error::definite("a key is not UTF-8").with_source(error))
}

pub(super) fn write_id(out: &mut Vec<u8>, stamp: &Stamp, number: u64) {
    out.extend_from_slice(&stamp.id_prefix);
    write_hex(out, number, 8);
}

pub(super) fn write_lsn(out: &mut Vec<u8>, lsn: Lsn) {
    write_hex(out, lsn.0 >> 32, 1);
    out.push(b'/');
    write_hex(out, lsn.0 & 0xFFFF_FFFF, 1);
}

/// Upper-case hexadecimal digits, at least `digits_min`; the formatting machinery of the standard
/// library takes ten times as long, and this is done twice an event.
fn write_hex(out: &mut Vec<u8>, number: u64, digits_min: u32) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(digits_min);
    for place in (0..digits).rev() {
        let digit = number.checked_shr(4 * place).unwrap_or(0) & 0xF;
        out.push(b"0123456789ABCDEF"[usize::try_from(digit).expect("four bits fit")]);
    }
}

pub(super) fn write_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

pub(super) fn write_unchanged(out: &mut Vec<u8>, plan: &TablePlan, cells: &[Value<'_>]) {
    out.push(b'[');
    let mut separator: &[u8] = b"";
    for (column, _) in plan
        .columns
        .iter()
        .zip(cells)
        .filter(|(column, cell)| column.is_published && matches!(cell, Value::Unchanged))
    {
        out.extend_from_slice(separator);
        separator = b",";
        let name = column.name_json.strip_suffix(b":").expect("a name ends with its colon");
        out.extend_from_slice(name);
    }
    out.push(b']');
}

fn write_moved(out: &mut Vec<u8>, name: &[u8], moved: Option<&Range<usize>>) -> Result<()> {
    out.extend_from_slice(name);
    match moved {
        Some(range) => append_json_string(out, range.clone()),
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
    }
}

pub(super) fn column_name(plan: &TablePlan, at: usize) -> String {
    plan.columns.get(at).map_or_else(String::new, |column| {
        String::from_utf8_lossy(column.name_json.strip_suffix(b":").unwrap_or_default()).into_owned()
    })
}

pub(super) fn missing_key(plan: &TablePlan, at: usize) -> Error {
    Error::definite(format!("the aggregate id's column {} was not sent", column_name(plan, at))).with_hint(
        "give the table REPLICA IDENTITY FULL, or choose an aggregate_id within its replica identity",
    )
}

pub(super) fn value_error(plan: &TablePlan, at: usize, error: value::ValueError) -> Error {
    Error::definite(format!("column {} holds what its type cannot have", column_name(plan, at)))
        .with_source(error)
        .with_hint("a database with SQL_ASCII encoding can hold bytes that are not UTF-8; correct the row, or exclude the column")
}

/// The position as the ids of its events carry it: for tests and for those who look an event up.
pub fn event_id(source_name: &str, position: Position) -> String {
    format!("{source_name}/{:016X}/{:08X}", position.commit_lsn.0, position.ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hex_is_what_the_standard_library_writes(number: u64, lsn: u64) {
            let mut out = Vec::new();
            write_hex(&mut out, number, 8);
            out.push(b' ');
            write_lsn(&mut out, Lsn(lsn));
            prop_assert_eq!(String::from_utf8(out).expect("ASCII"), format!("{number:08X} {}", Lsn(lsn)));
        }
    }
}
