//! Claim checks: what is too large for the hub leaves the batch's buffer, a reference stays (DESIGN section 5).
//!
//! Comes in: an event, or a column's value, as it was just written. Goes out: a [`Claim`], which is the object that
//! must be stored before the event may be published, and the reference in its place. Always holds: nothing is stored
//! here; keys and bytes depend on the event alone, so that a replay stores the same objects again; a large value is
//! moved, not copied.

use std::sync::Arc;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::plan::TablePlan;
use super::value::{self, Kind, Style, ValueError};
use crate::config::ClaimCheck;
use crate::wal::pgoutput::Value;

/// The content type of a whole event.
pub const JSON: &str = "application/json";
/// The content type of a column that is a string.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// The content type of a bytea column.
pub const BINARY: &str = "application/octet-stream";

/// What an event takes besides its values, names of columns included.
const ENVELOPE_BYTES: usize = 16 << 10;

/// The unreserved characters of RFC 3986 stay.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Of a column the dot goes as well: it ends the event's id.
const COLUMN: &AsciiSet = &PART.add(b'.');

/// An object to be stored.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Within the store; the store puts its prefix in front.
    pub key: String,
    /// What the reference says.
    pub uri: String,
    /// The object; the store takes it out.
    pub body: Bytes,
    /// Its size.
    pub bytes: usize,
    /// Of the object.
    pub sha256: [u8; 32],
    /// Of the object.
    pub content_type: &'static str,
    /// `schema.table`, for errors.
    pub relation: String,
    /// Goes with the body.
    pub held: Option<Arc<Held>>,
}

impl Claim {
    /// The reference as one string: the URI, and what proves the object behind it.
    pub fn reference(&self) -> String {
        let mut sha256 = Vec::with_capacity(64);
        write_sha256(&mut sha256, self);
        let sha256 = String::from_utf8_lossy(&sha256);
        let content_type = utf8_percent_encode(self.content_type, PART);
        format!("{}#bytes={}&sha256={sha256}&content_type={content_type}", self.uri, self.bytes)
    }
}

/// Counts a body for as long as it is in memory.
#[derive(Debug)]
pub struct Held {
    bytes: usize,
    all: Arc<watch::Sender<usize>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.send_modify(|all| *all -= self.bytes);
    }
}

/// Where in the batch's buffer a written event stands: `{...,"data":` data and before `,"unchanged":...,"claim":` null, and
/// what follows.
#[derive(Clone, Copy, Debug)]
pub(in crate::route) struct Written {
    /// Its first byte.
    pub start: usize,
    /// Behind `"data":`.
    pub data: usize,
    /// Before `,"unchanged":`.
    pub unchanged: usize,
    /// Behind `"claim":`.
    pub claim: usize,
}

/// Takes out what is too large.
#[derive(Clone, Debug)]
pub struct Claims {
    claim_check: Arc<ClaimCheck>,
    /// Bytes of bodies that are in memory.
    held: Arc<watch::Sender<usize>>,
    held_bytes_max: usize,
}

impl Claims {
    /// As configured; copies of it count together what they hold.
    pub fn new(claim_check: ClaimCheck, held_bytes_max: usize) -> Self {
        Claims { claim_check: Arc::new(claim_check), held: Arc::new(watch::Sender::new(0)), held_bytes_max }
    }

    /// Whether less is held than may be: for those who write rows side by side.
    pub fn has_room(&self) -> bool {
        *self.held.borrow() < self.held_bytes_max
    }

    /// Waits for it.
    pub async fn room(&self) {
        // It has a sender: this one.
        let _ = self.held.subscribe().wait_for(|held| *held < self.held_bytes_max).await;
    }

    /// Whether an event, or a column's value, of so many bytes is too large.
    pub(in crate::route) fn is_large(&self, bytes: usize) -> bool {
        bytes > self.claim_check.threshold_bytes
    }

    /// Room for a large row at once: a buffer that grows by doubling would hold it twice.
    pub(super) fn reserve(&self, out: &mut Vec<u8>, plan: &TablePlan, rows: &[Option<&[Value<'_>]>]) {
        let cells = rows.iter().flatten().flat_map(|cells| plan.columns.iter().zip(*cells).enumerate());
        let stays = |at: usize, text: &[u8]| !(plan.may_claim(at) && self.is_large(text.len()));
        let bytes: usize = cells
            .map(|(at, (column, cell))| match cell {
                Value::Text(text) if column.is_published && stays(at, text) => {
                    value::json_bytes_max(&column.kind, text)
                }
                _ => 0,
            })
            .sum();
        if self.is_large(bytes) {
            out.reserve_exact(bytes + ENVELOPE_BYTES);
        }
    }

    /// Takes the event that ends the buffer out of it, and writes its envelope in its place.
    pub(in crate::route) fn take_event(
        &self,
        out: &mut Vec<u8>,
        written: Written,
        (directory, id, relation): (&str, &str, &str),
    ) -> Claim {
        let body = split_off(out, written.start);
        let claim = self.claim(event_key(directory, id), body, JSON, relation);
        let at = |place: usize| place - written.start;
        let (head, rest) = claim.body.split_at(at(written.data));
        let (_, rest) = rest.split_at(at(written.unchanged) - at(written.data));
        let (rest, end) = rest.split_at(at(written.claim) - at(written.unchanged));
        let end = end.strip_prefix(b"null").expect("an event is written without a claim");
        out.extend_from_slice(head);
        out.extend_from_slice(br#"null,"before":null"#);
        out.extend_from_slice(rest);
        write_reference(out, &claim);
        out.extend_from_slice(end);
        claim
    }

    /// Takes the data that ends the buffer, from `data` on, out of it, as a whole event's object.
    pub(in crate::route) fn take_data(
        &self,
        out: &mut Vec<u8>,
        data: usize,
        (directory, id, relation): (&str, &str, &str),
    ) -> Claim {
        let body = split_off(out, data);
        self.claim(event_key(directory, id), body, JSON, relation)
    }

    /// By how much an event of so many bytes is too large.
    pub(in crate::route) fn excess(&self, bytes: usize) -> usize {
        bytes.saturating_sub(self.claim_check.threshold_bytes)
    }

    /// An object of a column; nothing is written.
    pub(in crate::route) fn column(
        &self,
        body: Vec<u8>,
        content_type: &'static str,
        column: &ColumnPlace<'_>,
    ) -> Claim {
        self.claim(column.key(), Bytes::from(body), content_type, column.relation)
    }

    /// Writes the reference of a column's value in its place, if that is too large; `None`: it is not.
    ///
    /// # Errors
    /// A value that its type cannot have.
    pub(super) fn take_column(
        &self,
        out: &mut Vec<u8>,
        (kind, text, style): (&Kind, &[u8], &Style),
        column: &ColumnPlace<'_>,
    ) -> Result<Option<Claim>, ValueError> {
        // A form that is larger than its text makes the whole event travel, if it comes to that.
        if !self.is_large(text.len()) {
            return Ok(None);
        }
        let (body, content_type) = match kind {
            Kind::Bytea => {
                let mut body = Vec::with_capacity(text.len() / 2);
                value::write_bytes(&mut body, text)?;
                (body, BINARY)
            }
            Kind::Text => (value::checked_utf8(kind, text)?.as_bytes().to_vec(), TEXT),
            Kind::Json => (value::checked_utf8(kind, text)?.as_bytes().to_vec(), JSON),
            other => {
                let mut body = Vec::with_capacity(text.len());
                value::write_value(&mut body, other, text, style)?;
                (body, JSON)
            }
        };
        if !self.is_large(body.len()) {
            return Ok(None);
        }
        let claim = self.column(body, content_type, column);
        out.extend_from_slice(br#"{"$claim":"#);
        write_reference(out, &claim);
        out.push(b'}');
        Ok(Some(claim))
    }

    fn claim(&self, key: String, body: Bytes, content_type: &'static str, relation: &str) -> Claim {
        let uri = self.claim_check.store.uri(&key);
        let (bytes, sha256) = (body.len(), Sha256::digest(&body).into());
        self.held.send_modify(|all| *all += bytes);
        let held = Some(Arc::new(Held { bytes, all: self.held.clone() }));
        Claim { key, uri, body, bytes, sha256, content_type, relation: relation.to_owned(), held }
    }
}

/// A column of an event, as its object's key names it.
#[derive(Clone, Copy, Debug)]
pub struct ColumnPlace<'a> {
    /// [`directory`] of the table.
    pub directory: &'a str,
    /// The event's id.
    pub id: &'a str,
    /// Its name.
    pub column: &'a str,
    /// The old row's value.
    pub is_before: bool,
    /// `schema.table`.
    pub relation: &'a str,
}

impl ColumnPlace<'_> {
    /// The object's key within the store.
    pub fn key(&self) -> String {
        let id = utf8_percent_encode(self.id, PART);
        let before = if self.is_before { ".before" } else { "" };
        // The name of a whole event's object ends with .json.
        match self.column {
            "json" => format!("{}{id}{before}.%6Ason", self.directory),
            column => format!("{}{id}{before}.{}", self.directory, utf8_percent_encode(column, COLUMN)),
        }
    }
}

/// The key of a whole event's object, within the store; `directory` is its table's.
pub fn event_key(directory: &str, id: &str) -> String {
    format!("{directory}{}.json", id_part(id))
}

/// An event's id, or what it begins with, as it stands in keys.
pub fn id_part(id: &str) -> String {
    utf8_percent_encode(id, PART).to_string()
}

/// What the keys of logical messages begin with: as their topic's name has it, for want of a table.
pub fn directory_of_messages(source_name: &str) -> String {
    directory(source_name, "walgate", "outbox")
}

/// `<source>/<schema>/<table>/`: what the keys of a table's objects begin with.
pub fn directory(source_name: &str, schema: &str, table: &str) -> String {
    format!("{}/{}/{}/", part(source_name), part(schema), part(table))
}

/// A name as one part of a path. A name of PostgreSQL may be `..`.
pub fn part(name: &str) -> String {
    match name {
        "." | ".." => name.replace('.', "%2E"),
        name => utf8_percent_encode(name, PART).to_string(),
    }
}

/// What `check` stores for a moment, beside the tables' objects; `nonce`: of this process.
pub fn probe(claim_check: &ClaimCheck, source_name: &str, nonce: u32) -> Claim {
    let key = format!("{}/walgate-check-{nonce}", part(source_name));
    let body = Bytes::from_static(b"probe\n");
    Claims::new(claim_check.clone(), usize::MAX).claim(key, body, TEXT, "none")
}

/// `{"uri":...,"bytes":...,"sha256":...,"content_type":...}`
fn write_reference(out: &mut Vec<u8>, claim: &Claim) {
    out.extend_from_slice(br#"{"uri":"#);
    value::write_str(out, &claim.uri);
    out.extend_from_slice(br#","bytes":"#);
    out.extend_from_slice(itoa::Buffer::new().format(claim.bytes).as_bytes());
    out.extend_from_slice(br#","sha256":""#);
    write_sha256(out, claim);
    out.extend_from_slice(br#"","content_type":""#);
    out.extend_from_slice(claim.content_type.as_bytes());
    out.extend_from_slice(br#""}"#);
}

/// Its 64 hexadecimal digits.
pub(in crate::route) fn write_sha256(out: &mut Vec<u8>, claim: &Claim) {
    for byte in claim.sha256 {
        out.extend([byte >> 4, byte & 0xF].map(|nibble| b"0123456789abcdef"[usize::from(nibble)]));
    }
}

/// What stands from `start` on. The larger part keeps the buffer, unless that is far larger than it.
fn split_off(out: &mut Vec<u8>, start: usize) -> Bytes {
    let bytes = out.len() - start;
    if bytes < start || out.capacity() > 2 * out.len() {
        return Bytes::from(out.split_off(start));
    }
    let whole = std::mem::take(out);
    out.extend_from_slice(whole.get(..start).expect("an event begins within its buffer"));
    Bytes::from(whole).slice(start..)
}

impl TablePlan {
    /// Whether the value of the column at `at` may be stored by itself: an event's key stays in it.
    pub(super) fn may_claim(&self, at: usize) -> bool {
        self.claims_columns && !self.is_key(at)
    }

    /// Whether the column at `at` is of the key, or of the aggregate's id.
    pub(super) fn is_key(&self, at: usize) -> bool {
        self.selection.key.contains(&at) || self.aggregate.contains(&at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClaimStoreAddress;

    fn claims(threshold_bytes: usize) -> Claims {
        let store = ClaimStoreAddress::Directory("/c".into());
        Claims::new(ClaimCheck { store, threshold_bytes }, 1)
    }

    const EVENT: &str =
        r#"{"v":1,"id":"s/1/2","data":{"a":"b"},"before":{"a":1},"unchanged":["x"],"claim":null}"#;

    /// The event behind what is in the buffer already.
    fn take(threshold_bytes: usize, before: &[u8]) -> (Vec<u8>, Option<Claim>) {
        let mut out = before.to_vec();
        let place = |text| out.len() + EVENT.find(text).expect(text);
        let written = Written {
            start: out.len(),
            data: place("{\"a\":\"b\"}"),
            unchanged: place(",\"unchanged\""),
            claim: place("null}"),
        };
        out.extend_from_slice(EVENT.as_bytes());
        let taker = claims(threshold_bytes);
        let is_large = taker.is_large(out.len() - written.start);
        let claim = is_large.then(|| taker.take_event(&mut out, written, ("s/p/t/", "s/1/2", "p.t")));
        (out, claim)
    }

    #[test]
    fn case_o3_an_event_over_the_threshold_is_moved_and_one_at_it_is_not() {
        for before in [&b""[..], b"what was there before", &[b'x'; 500]] {
            let (out, claim) = take(EVENT.len(), before);
            assert!(claim.is_none() && out == [before, EVENT.as_bytes()].concat());
            let (out, claim) = take(EVENT.len() - 1, before);
            let claim = claim.expect("it is too large");
            assert_eq!((claim.body.as_ref(), claim.bytes), (EVENT.as_bytes(), EVENT.len()));
            assert_eq!(claim.key, "s/p/t/s%2F1%2F2.json");
            let (kept, envelope) = out.split_at(before.len());
            assert_eq!(kept, before);
            let sha256: String = Sha256::digest(EVENT).iter().map(|byte| format!("{byte:02x}")).collect();
            let expected = format!(
                r#"{{"v":1,"id":"s/1/2","data":null,"before":null,"unchanged":["x"],"claim":{{"uri":"file:///c/s/p/t/s%252F1%252F2.json","bytes":{},"sha256":"{sha256}","content_type":"application/json"}}}}"#,
                EVENT.len()
            );
            assert_eq!(String::from_utf8_lossy(envelope), expected);
        }
    }

    #[test]
    fn a_column_is_stored_in_its_own_form() {
        let place = |column| ColumnPlace {
            directory: "s/p/t/",
            id: "s/1/2",
            column,
            is_before: false,
            relation: "p.t",
        };
        for (kind, text, body, content_type) in [
            (Kind::Bytea, "\\x00ff0a0b", &b"\x00\xff\x0a\x0b"[..], "application/octet-stream"),
            (Kind::Text, "a\"b\nc", b"a\"b\nc", "text/plain; charset=utf-8"),
            (Kind::Json, "{\"a\":\n1}", b"{\"a\":\n1}", "application/json"),
            (Kind::Hstore, "\"a\"=>\"b\"", b"{\"a\":\"b\"}", "application/json"),
        ] {
            let mut out = Vec::new();
            let taken =
                claims(3).take_column(&mut out, (&kind, text.as_bytes(), &Style::default()), &place("c"));
            let claim = taken.expect("it is legal").expect("it is too large");
            assert_eq!((claim.body.as_ref(), claim.content_type), (body, content_type));
            let json: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
            assert_eq!(json["$claim"]["bytes"], body.len());
        }
        // Four bytes of text, one of data.
        let mut out = Vec::new();
        let small = claims(3).take_column(&mut out, (&Kind::Bytea, b"\\x00", &Style::default()), &place("c"));
        assert!(small.expect("it is legal").is_none() && out.is_empty());
    }

    #[test]
    fn no_two_objects_of_an_event_share_a_key() {
        let key = |column, is_before| {
            ColumnPlace { directory: "", id: "s/1/2", column, is_before, relation: "" }.key()
        };
        assert_eq!(key("photo", false), "s%2F1%2F2.photo");
        assert_eq!(key("photo", true), "s%2F1%2F2.before.photo");
        assert_eq!(key("before.photo", false), "s%2F1%2F2.before%2Ephoto");
        assert_eq!(key("json", false), "s%2F1%2F2.%6Ason");
        assert_eq!(directory("a/b", "p", "t.é"), "a%2Fb/p/t.%C3%A9/");
        assert_eq!(directory("a", "..", "."), "a/%2E%2E/%2E/", "it stays within the store");
    }
}
