//! CloudEvents 1.0 in structured JSON.
//!
//! Comes in: a plan, a stamp and the row's cells. Goes out: events of the outbox's id, type and key, in the envelope of the
//! CloudEvents specification (JSON format, Kafka protocol binding). `data` is an object of `row`, `before` and `unchanged`, since
//! an extension holds no objects or lists; everything else that our envelope has is an extension (`docs/cloudevents.md`). Data that
//! are too large are an object of the claim store, which the extension `dataref` names.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::route::batch::{Batch, Event, Moved};
use crate::route::claim::{Claim, Claims, directory_of_messages, write_sha256};
use crate::route::event::{
    Before, EventWriter, Named, Object, RowEvent, Stamp, append_json_string, text_of, write_lsn,
    write_number, write_unchanged,
};
use crate::route::message::{MessagePlace, OUTBOX_PREFIX};
use crate::route::plan::{Op, TablePlan, json_string};
use crate::route::value::{self, Kind, Style};
use crate::wal::pgoutput::Relation;

/// Before the data.
const DATA: &[u8] = br#","data":"#;

/// See the module.
#[derive(Debug)]
pub(in crate::route) struct CloudEventsForm {
    /// `,"source":"/walgate/shop/public/orders","datacontenttype":"application/json","aggregatetype":"orders","schemaid":"9f2c01d4","type":`
    head_json: Vec<u8>,
    /// The rest of it for each operation: `"orders.updated","walgateop":"update","time":"`.
    ops: [Vec<u8>; 5],
}

impl CloudEventsForm {
    /// Of a relation; `event_types` in the order of `ops`.
    pub fn new(
        source_name: &str,
        relation: &Relation,
        (aggregate_type, schema_id): (&str, &str),
        ops: [(Op, String); 5],
    ) -> Self {
        let source = format!(
            "/walgate/{}/{}/{}",
            percent_encoded(source_name),
            percent_encoded(&relation.namespace),
            percent_encoded(&relation.name)
        );
        let head_json = [
            &br#","source":"#[..],
            &json_string(&source),
            br#","datacontenttype":"application/json","aggregatetype":"#,
            &json_string(aggregate_type),
            br#","schemaid":"#,
            &json_string(schema_id),
            br#","type":"#,
        ]
        .concat();
        let ops = ops.map(|(op, event_type)| {
            let op = format!(r#","walgateop":"{}","time":""#, op.name());
            [&json_string(&event_type)[..], op.as_bytes()].concat()
        });
        CloudEventsForm { head_json, ops }
    }

    /// Appends the value of a truncate event, whose id and key are there.
    pub fn write_truncate(
        &self,
        out: &mut Vec<u8>,
        stamp: &Stamp,
        lsn: Lsn,
        (id, key): (&Range<usize>, &Range<usize>),
    ) -> Result<()> {
        let attributes = Attributes { id, subject: None, key, moved: None, lsn };
        write_attributes(out, (&self.head_json, self.op(Op::Truncate)), stamp, &attributes)?;
        out.extend_from_slice(br#","data":{"row":null,"before":null,"unchanged":[]}}"#);
        Ok(())
    }

    fn op(&self, op: Op) -> &[u8] {
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

/// What of an event's attributes is not of its table.
struct Attributes<'e> {
    id: &'e Range<usize>,
    subject: Option<&'e Range<usize>>,
    key: &'e Range<usize>,
    moved: Option<&'e Moved>,
    lsn: Lsn,
}

impl EventWriter {
    /// Appends a row's event; returns whether it has an aggregate.
    pub(in crate::route) fn write_cloudevent(
        &mut self,
        batch: &mut Batch,
        (plan, form): (&TablePlan, &CloudEventsForm),
        stamp: &Stamp,
        event: &RowEvent<'_, '_>,
    ) -> Result<bool> {
        let out = &mut batch.bytes;
        if let Some(taker) = &self.claims {
            taker.reserve(out, plan, &[event.new, event.before.cells()]);
        }
        let Named { id, key, has_aggregate, moved } = self.write_named(out, plan, stamp, event)?;
        let mut claims = Vec::new();
        let start = out.len();
        let subject = has_aggregate.then_some(&key);
        let attributes = Attributes { id: &id, subject, key: &key, moved: moved.as_ref(), lsn: event.lsn };
        write_attributes(out, (&form.head_json, form.op(event.op)), stamp, &attributes)?;
        out.extend_from_slice(DATA);
        let data = out.len();
        out.extend_from_slice(br#"{"row":"#);
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
        out.extend_from_slice(br#","unchanged":"#);
        write_unchanged(out, plan, event.new.unwrap_or_default());
        out.push(b'}');
        let of = (plan.claim_directory.as_str(), &id, plan.selection.relation.as_str());
        claims.extend(end(out, (start, data), self.claims.as_ref(), of));
        let value = Some(start..out.len());
        let traceparent = stamp.append_traceparent(out);
        let label = plan.op(event.op).label;
        batch.push(Event { key: Some(key), value, moved, traceparent, claims, ..Event::new(label, id) });
        Ok(has_aggregate)
    }
}

/// Ends an event whose data was written; where it is too large, a reference to its data stays.
fn end(
    out: &mut Vec<u8>,
    (start, data): (usize, usize),
    claims: Option<&Claims>,
    (directory, id, relation): (&str, &Range<usize>, &str),
) -> Option<Claim> {
    let claim = claims.filter(|claims| claims.is_large(out.len() + 1 - start)).map(|claims| {
        let claim = claims.take_data(out, data, (directory, &text_of(out, id), relation));
        out.truncate(data - DATA.len());
        out.extend_from_slice(br#","dataref":"#);
        value::write_str(out, &claim.uri);
        out.extend_from_slice(br#","databytes":"#);
        out.extend_from_slice(itoa::Buffer::new().format(claim.bytes).as_bytes());
        out.extend_from_slice(br#","datasha256":""#);
        write_sha256(out, &claim);
        out.push(b'"');
        claim
    });
    out.push(b'}');
    claim
}

/// Appends the value of a logical message: its payload is the data, as the application wrote it.
pub(in crate::route) fn write_message(
    out: &mut Vec<u8>,
    (source_name, aggregate_type, event_type): (&str, &str, &str),
    stamp: &Stamp,
    place: MessagePlace,
    (id, key): (&Range<usize>, &Range<usize>),
    (payload, claims): (&[u8], Option<&Claims>),
) -> Result<Option<Claim>> {
    let start = out.len();
    let head = [
        &br#","source":"#[..],
        &json_string(&format!("/walgate/{}", percent_encoded(source_name))),
        br#","datacontenttype":"application/json","aggregatetype":"#,
        &json_string(aggregate_type),
        br#","type":"#,
    ]
    .concat();
    let op = [&json_string(event_type)[..], br#","walgateop":"message","time":""#].concat();
    let attributes = Attributes { id, subject: Some(key), key, moved: None, lsn: place.lsn };
    write_attributes(out, (&head, &op), stamp, &attributes)?;
    out.extend_from_slice(DATA);
    let data = out.len();
    value::write_value(out, &Kind::Json, payload, &Style::default())
        .map_err(|error| Error::definite("a message's payload is not JSON").with_source(error))?;
    let directory = directory_of_messages(source_name);
    Ok(end(out, (start, data), claims, (&directory, id, OUTBOX_PREFIX)))
}

fn write_attributes(
    out: &mut Vec<u8>,
    (head, op): (&[u8], &[u8]),
    stamp: &Stamp,
    attributes: &Attributes<'_>,
) -> Result<()> {
    let facts = stamp.facts;
    out.extend_from_slice(br#"{"specversion":"1.0","id":"#);
    append_json_string(out, attributes.id.clone())?;
    out.extend_from_slice(head);
    out.extend_from_slice(op);
    out.extend_from_slice(stamp.occurred_at());
    out.push(b'"');
    let mut text = |name: &[u8], range: Option<&Range<usize>>| {
        // An attribute that has no value is left out, as is one whose value would be empty.
        let Some(range) = range.filter(|range| !range.is_empty()) else { return Ok(()) };
        out.extend_from_slice(name);
        append_json_string(out, range.clone())
    };
    text(br#","subject":"#, attributes.subject)?;
    text(br#","partitionkey":"#, Some(attributes.key))?;
    match attributes.moved {
        Some(Moved::From(range)) => text(br#","movedfrom":"#, Some(range))?,
        Some(Moved::To(range)) => text(br#","movedto":"#, Some(range))?,
        None => {}
    }
    out.extend_from_slice(br#","lsn":""#);
    write_lsn(out, attributes.lsn);
    out.extend_from_slice(br#"","commitlsn":""#);
    write_lsn(out, facts.commit_lsn);
    out.push(b'"');
    if let Some(xid) = facts.xid {
        // An integer of CloudEvents has 31 bits and a sign.
        out.extend_from_slice(br#","xid":""#);
        write_number(out, u64::from(xid));
        out.push(b'"');
    }
    out.extend_from_slice(if facts.is_copy { br#","snapshot":true"# } else { br#","snapshot":false"# });
    for (name, text) in [
        (&br#","origin":"#[..], stamp.origin.as_deref().map(str::as_bytes)),
        (br#","traceparent":"#, stamp.traceparent()),
    ] {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            out.extend_from_slice(name);
            value::write_string(out, text)
                .map_err(|error| Error::definite("an attribute is not UTF-8").with_source(error))?;
        }
    }
    Ok(())
}

/// A part of a URI's path: RFC 3986, section 2.3.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn a_source_is_a_uri_reference() {
        assert_eq!(percent_encoded("sh op/é"), "sh%20op%2F%C3%A9");
    }
}
