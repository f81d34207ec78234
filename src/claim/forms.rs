//! References in the other forms of an event: `dataref` of a CloudEvent, the strings in Debezium's rows.
//!
//! Comes in: an event's value. Goes out: what of it is elsewhere, and where in the value that belongs. Always holds: only
//! objects that this event can have are named; of Debezium's form, which does not tell its event's id, those of its
//! table, source and column. CloudEvents extension "Dataref"; `route/format/` writes both.

use std::borrow::Cow;
use std::ops::Range;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::resolve::{ClaimedColumn, Reference, claimed_columns, columns, inline};
use crate::config::ClaimStoreAddress;
use crate::route::claim::{self, ColumnPlace};

/// A part of an event that is an object of the claim store.
pub(super) struct Part<'e> {
    /// The object's.
    pub key: String,
    /// What it must be.
    pub reference: Reference<'e>,
    /// What the object takes the place of, in the event's value.
    pub at: Range<usize>,
    /// Whether it is a CloudEvent's data.
    is_data: bool,
}

impl Part<'_> {
    /// The object as it stands in the event.
    pub fn inline(&self, body: &[u8]) -> Vec<u8> {
        match self.is_data {
            true => [br#","data":"#, body].concat(),
            false => inline(body, &self.reference.content_type),
        }
    }
}

/// An event of one of these forms.
pub(super) struct Found<'e> {
    /// Its id; of Debezium's form, its place.
    pub event: String,
    /// What is elsewhere; of a CloudEvent the data, and once they are there, columns in them.
    pub parts: Vec<Part<'e>>,
    /// It refers to another store than the one that is configured.
    pub elsewhere: Option<String>,
}

#[derive(Deserialize)]
struct CloudEvent<'e> {
    #[serde(borrow, rename = "specversion")]
    _version: Cow<'e, str>,
    #[serde(borrow)]
    id: Cow<'e, str>,
    #[serde(borrow)]
    source: Cow<'e, str>,
    #[serde(borrow, default)]
    dataref: Option<&'e RawValue>,
    #[serde(default, rename = "databytes")]
    bytes: usize,
    #[serde(borrow, default, rename = "datasha256")]
    sha256: Cow<'e, str>,
    #[serde(borrow, default)]
    data: Option<&'e RawValue>,
}

#[derive(Deserialize)]
struct Data<'e> {
    #[serde(borrow)]
    row: Option<&'e RawValue>,
    #[serde(borrow)]
    before: Option<&'e RawValue>,
}

#[derive(Deserialize)]
struct Debezium<'e> {
    #[serde(borrow)]
    source: Source<'e>,
    #[serde(borrow, default)]
    before: Option<&'e RawValue>,
    #[serde(borrow, default)]
    after: Option<&'e RawValue>,
    #[serde(borrow, default)]
    message: Option<&'e RawValue>,
}

#[derive(Deserialize)]
struct Source<'e> {
    #[serde(borrow, rename = "connector")]
    _connector: Cow<'e, str>,
    #[serde(borrow)]
    name: Cow<'e, str>,
    #[serde(borrow)]
    schema: Cow<'e, str>,
    #[serde(borrow)]
    table: Cow<'e, str>,
}

/// What such an event refers to; `None`: it has another form.
pub(super) fn find<'e>(address: &ClaimStoreAddress, value: &'e [u8]) -> Option<Found<'e>> {
    if let Ok(event) = serde_json::from_slice::<CloudEvent<'e>>(value) {
        return Some(of_cloudevent(address, value, event));
    }
    serde_json::from_slice::<Debezium<'e>>(value).ok().map(|event| of_debezium(address, value, &event))
}

fn of_cloudevent<'e>(address: &ClaimStoreAddress, value: &'e [u8], event: CloudEvent<'e>) -> Found<'e> {
    let directory = directory_of(&event.source);
    let mut found = Found { event: event.id.to_string(), parts: Vec::new(), elsewhere: None };
    if let Some(dataref) = event.dataref {
        let Ok(uri) = serde_json::from_str::<Cow<'e, str>>(dataref.get()) else { return found };
        let key = claim::event_key(&directory, &event.id);
        if address.uri(&key) != uri {
            found.elsewhere = Some(uri.into_owned());
            return found;
        }
        // As Walgate writes it, it is the last but for what belongs to it.
        let start = place(value, dataref.get()).start.checked_sub(br#","dataref":"#.len());
        let is_ours =
            |start: &usize| value.get(*start..).is_some_and(|rest| rest.starts_with(br#","dataref":"#));
        let Some(start) = start.filter(is_ours) else { return found };
        let at = start..value.iter().rposition(|&byte| byte == b'}').unwrap_or(value.len());
        let reference =
            Reference { uri, bytes: event.bytes, sha256: event.sha256, content_type: claim::JSON.into() };
        found.parts.push(Part { key, reference, at, is_data: true });
        return found;
    }
    // Of a message the data may be anything.
    let data = event.data.and_then(|data| serde_json::from_str::<Data<'e>>(data.get()).ok());
    let rows = data.map_or_else(Default::default, |data| [(data.row, false), (data.before, true)]);
    let claimed = claimed_columns(address, (&directory, &event.id), rows);
    found.parts.extend(claimed.into_iter().map(|ClaimedColumn { key, reference, text }| Part {
        key,
        reference,
        at: place(value, text),
        is_data: false,
    }));
    found
}

fn of_debezium<'e>(address: &ClaimStoreAddress, value: &'e [u8], event: &Debezium<'e>) -> Found<'e> {
    let Source { name, schema, table, .. } = &event.source;
    let directory = match event.message {
        Some(_) => claim::directory_of_messages(name),
        None => claim::directory(name, schema, table),
    };
    let mut found = Found { event: format!("of {name}"), parts: Vec::new(), elsewhere: None };
    for (row, is_before) in [(event.after, false), (event.before, true), (event.message, false)] {
        for (column, text) in columns(row) {
            // A reference has nothing that JSON escapes.
            let Ok(string) = serde_json::from_str::<&'e str>(text.get()) else { continue };
            let Some((id, key)) = object_of(address, (name, &directory), (&column, is_before), string) else {
                continue;
            };
            let Some(reference) = reference_of(string) else { continue };
            found.event = id;
            found.parts.push(Part { key, reference, at: place(value, text.get()), is_data: false });
        }
    }
    found
}

/// `<uri>#bytes=<n>&sha256=<hex>&content_type=<type>`
fn reference_of(text: &str) -> Option<Reference<'_>> {
    let (uri, proof) = text.rsplit_once('#')?;
    let (bytes, rest) = proof.strip_prefix("bytes=")?.split_once("&sha256=")?;
    let (sha256, content_type) = rest.split_once("&content_type=")?;
    let content_type = percent_decode_str(content_type).decode_utf8().ok()?;
    Some(Reference { uri: uri.into(), bytes: bytes.parse().ok()?, sha256: sha256.into(), content_type })
}

/// The id of the event, and the key of the object, that a string of this column refers to.
fn object_of(
    address: &ClaimStoreAddress,
    (source, directory): (&str, &str),
    (column, is_before): (&str, bool),
    text: &str,
) -> Option<(String, String)> {
    let (uri, _) = text.rsplit_once('#')?;
    let file = uri.strip_prefix(&address.uri(directory))?;
    let file = match address {
        ClaimStoreAddress::S3(_) => file.into(),
        ClaimStoreAddress::Directory(_) => percent_decode_str(file).decode_utf8().ok()?,
    };
    let end = ColumnPlace { directory: "", id: "", column, is_before, relation: "" }.key();
    let id = percent_decode_str(file.strip_suffix(&end)?).decode_utf8().ok()?;
    id.strip_prefix(source)?.strip_prefix('/')?;
    let key = ColumnPlace { directory, id: &id, column, is_before, relation: "" }.key();
    (address.uri(&key) == uri).then(|| (id.into_owned(), key))
}

/// Where a part of the value stands in it.
fn place(value: &[u8], part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - value.as_ptr().addr();
    start..start + part.len()
}

/// Where the objects are of what has this `source`: `/walgate/<source>/<schema>/<table>`, of messages `/walgate/<source>`.
fn directory_of(source: &str) -> String {
    let mut parts = source.split('/').skip(2).map(|part| percent_decode_str(part).decode_utf8_lossy());
    let name = parts.next().unwrap_or_default();
    match (parts.next(), parts.next()) {
        (Some(schema), Some(table)) => claim::directory(&name, &schema, &table),
        _ => claim::directory_of_messages(&name),
    }
}
