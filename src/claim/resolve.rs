//! The reading side: the whole event behind what was published, fetched and verified.
//!
//! Comes in: an event's value. Goes out: the same event with everything in it. Always holds: what does not have the
//! size and the sha256 of its reference is an error, never shown; only the keys that this very event can have are
//! fetched, since what looks like a reference may be a row's own JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{ClaimStore, forms};
use crate::config::ClaimStoreAddress;
use crate::error::{Error, Result};
use crate::route::claim::{self, ColumnPlace};
use crate::route::value;

/// What stands in an event in place of an object.
#[derive(Debug, Deserialize)]
pub(super) struct Reference<'e> {
    #[serde(borrow)]
    pub uri: Cow<'e, str>,
    pub bytes: usize,
    #[serde(borrow)]
    pub sha256: Cow<'e, str>,
    #[serde(borrow)]
    pub content_type: Cow<'e, str>,
}

impl Reference<'_> {
    /// Whether an object is the one that was published; else what it is.
    pub fn compare(&self, body: &[u8]) -> Result<(), String> {
        let found: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        match body.len() == self.bytes && found == self.sha256 {
            true => Ok(()),
            false => Err(format!(
                "it has {} bytes and the sha256 {found}, published were {} bytes and {}",
                body.len(),
                self.bytes,
                self.sha256
            )),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ColumnReference<'e> {
    #[serde(borrow, rename = "$claim")]
    pub claim: Reference<'e>,
}

#[derive(Deserialize)]
pub(super) struct Envelope<'e> {
    #[serde(borrow)]
    pub id: Cow<'e, str>,
    #[serde(borrow, default)]
    source: Option<Table<'e>>,
    #[serde(borrow, default)]
    data: Option<&'e RawValue>,
    #[serde(borrow, default)]
    before: Option<&'e RawValue>,
    #[serde(borrow, default)]
    pub claim: Option<Reference<'e>>,
}

/// A column's value that is an object of its own: its key, and where the reference stands.
pub(super) struct ClaimedColumn<'e> {
    pub key: String,
    pub reference: Reference<'e>,
    pub text: &'e str,
}

impl<'e> Envelope<'e> {
    /// The key of the object that the whole event would be.
    pub fn key(&self) -> String {
        claim::event_key(&directory_of(self), &self.id)
    }

    /// The columns that claim an object that can only be theirs, in no order.
    pub fn claimed_columns(&self, address: &ClaimStoreAddress) -> Vec<ClaimedColumn<'e>> {
        claimed_columns(address, (&directory_of(self), &self.id), [(self.data, false), (self.before, true)])
    }
}

/// The columns of rows that claim an object that can only be theirs: that of the event with this id, in this directory. A
/// row comes with whether it is the one before the change.
pub(super) fn claimed_columns<'e>(
    address: &ClaimStoreAddress,
    (directory, id): (&str, &str),
    rows: [(Option<&'e RawValue>, bool); 2],
) -> Vec<ClaimedColumn<'e>> {
    let mut claimed = Vec::new();
    for (row, is_before) in rows {
        for (column, text) in columns(row) {
            let Ok(ColumnReference { claim: reference }) = serde_json::from_str(text.get()) else { continue };
            let place = ColumnPlace { directory, id, column: &column, is_before, relation: "" };
            let key = place.key();
            if address.uri(&key) == reference.uri {
                claimed.push(ClaimedColumn { key, reference, text: text.get() });
            }
        }
    }
    claimed
}

/// The columns of a row; none where it is no row: the payload of a message may be anything.
pub(super) fn columns<'e>(
    row: Option<&'e RawValue>,
) -> impl Iterator<Item = (Cow<'e, str>, &'e RawValue)> + use<'e> {
    let columns =
        row.and_then(|row| serde_json::from_str::<BTreeMap<Cow<'e, str>, &'e RawValue>>(row.get()).ok());
    columns.into_iter().flatten()
}

#[derive(Deserialize)]
struct Table<'e> {
    #[serde(borrow)]
    name: Cow<'e, str>,
    #[serde(borrow, default)]
    schema: Option<Cow<'e, str>>,
    #[serde(borrow, default)]
    table: Option<Cow<'e, str>>,
}

/// The event with everything that it claims in its place; what is no event is returned as it is.
///
/// # Errors
/// Definite, naming event and object: it is missing, or altered. Else what the store says.
pub async fn resolve(store: &ClaimStore, address: &ClaimStoreAddress, value: &[u8]) -> Result<Vec<u8>> {
    let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(value) else {
        let whole = resolve_form(store, address, value).await?;
        // The data of a CloudEvent may have columns that are elsewhere.
        return resolve_form(store, address, &whole).await;
    };
    let Some(reference) = &envelope.claim else {
        return resolve_columns(store, address, value, &envelope).await;
    };
    let key = envelope.key();
    if address.uri(&key) != reference.uri {
        return Err(elsewhere(&envelope.id, &reference.uri, address));
    }
    let whole = fetch(store, &key, &envelope.id, reference).await?;
    let inner: Envelope<'_> = serde_json::from_slice(&whole).map_err(|error| {
        Error::definite(format!("what event {} claims is no event", envelope.id)).with_source(error)
    })?;
    resolve_columns(store, address, &whole, &inner).await
}

/// An event of another form than our envelope.
async fn resolve_form(store: &ClaimStore, address: &ClaimStoreAddress, value: &[u8]) -> Result<Vec<u8>> {
    let Some(found) = forms::find(address, value) else { return Ok(value.to_vec()) };
    if let Some(uri) = &found.elsewhere {
        return Err(elsewhere(&found.event, uri, address));
    }
    let mut pieces = Vec::with_capacity(found.parts.len());
    for part in &found.parts {
        let body = fetch(store, &part.key, &found.event, &part.reference).await?;
        pieces.push((part.at.clone(), part.inline(&body)));
    }
    Ok(splice(value, pieces))
}

fn elsewhere(id: &str, uri: &str, address: &ClaimStoreAddress) -> Error {
    Error::definite(format!("event {id} is at {uri}, which is not in the claim store")).with_hint(format!(
        "set claim_check.store to what it was when the event was published; now it is {}",
        address.uri("")
    ))
}

async fn resolve_columns(
    store: &ClaimStore,
    address: &ClaimStoreAddress,
    value: &[u8],
    envelope: &Envelope<'_>,
) -> Result<Vec<u8>> {
    let mut pieces: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    for ClaimedColumn { key, reference, text } in envelope.claimed_columns(address) {
        let body = fetch(store, &key, &envelope.id, &reference).await?;
        let start = text.as_ptr().addr() - value.as_ptr().addr();
        pieces.push((start..start + text.len(), inline(&body, &reference.content_type)));
    }
    Ok(splice(value, pieces))
}

/// The value with these pieces in it.
pub(super) fn splice(value: &[u8], mut pieces: Vec<(Range<usize>, Vec<u8>)>) -> Vec<u8> {
    pieces.sort_by_key(|(range, _)| range.start);
    let mut whole = Vec::with_capacity(value.len());
    let mut at = 0;
    for (range, piece) in pieces {
        whole.extend_from_slice(value.get(at..range.start).expect("parts of it, in their order"));
        whole.extend_from_slice(&piece);
        at = range.end;
    }
    whole.extend_from_slice(value.get(at..).expect("parts of it, in their order"));
    whole
}

/// A column's object in the form that it has in an event.
pub(super) fn inline(body: &[u8], content_type: &str) -> Vec<u8> {
    match content_type {
        claim::JSON => {
            body.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }).collect()
        }
        claim::BINARY => format!("\"{}\"", STANDARD.encode(body)).into_bytes(),
        _ => {
            let mut text = Vec::with_capacity(body.len() + 2);
            value::write_str(&mut text, &String::from_utf8_lossy(body));
            text
        }
    }
}

async fn fetch(store: &ClaimStore, key: &str, id: &str, reference: &Reference<'_>) -> Result<Bytes> {
    let uri = &reference.uri;
    let Some(body) = store.get(key).await? else {
        return Err(Error::definite(format!("event {id}: {uri} is missing")).with_hint(
            "restore the object; or see whether a lifecycle rule of the bucket removes objects before the topic's retention ends",
        ));
    };
    reference.compare(&body).map_err(|what| {
        Error::definite(format!("event {id}: {uri} was altered: {what}"))
            .with_hint("restore the object, and see who else may write in the claim store")
    })?;
    Ok(body)
}

/// Where the objects of the event's table are.
fn directory_of(envelope: &Envelope<'_>) -> String {
    let Some(Table { name, schema, table }) = &envelope.source else { return String::new() };
    match (schema, table) {
        (Some(schema), Some(table)) => claim::directory(name, schema, table),
        _ => claim::directory_of_messages(name),
    }
}
