//! The headers that a row brings along: its `headers` column, an object of strings, and columns that are headers by
//! themselves.
//!
//! Comes in: their texts. Goes out: a list of headers in the batch's buffer ([`push_header`]). Always holds: a header of
//! the row never takes the place of one of ours; its name gets `header-` in front. `traceparent` is the exception: the
//! row's is the event's.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::route::batch::push_header;

/// Header with the row's own id.
pub const OUTBOX_ID: &str = "outbox-id";
/// The trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Names that are ours.
const OURS: [&str; 9] = [
    "id",
    "type",
    "aggregate-type",
    "op",
    "content-type",
    "claim-check",
    "moved-from",
    "moved-to",
    OUTBOX_ID,
];

/// Appends one header of the row.
pub fn push(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    match OURS.contains(&name) {
        true => push_header(out, &format!("header-{name}"), value),
        false => push_header(out, name, value),
    }
}

/// Appends the headers of a JSON object; returns its `traceparent`.
///
/// # Errors
/// What is wrong with it, as a sentence's end.
pub fn push_object(out: &mut Vec<u8>, json: &[u8]) -> Result<Option<String>, String> {
    let mut text = serde_json::Deserializer::from_slice(json);
    text.deserialize_map(Object(out)).map_err(|error| format!("is no object of strings: {error}"))
}

struct Object<'o>(&'o mut Vec<u8>);

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<String>, A::Error> {
        let mut traceparent = None;
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            let text = match value.get().as_bytes() {
                [b'"', ..] => serde_json::from_str(value.get()).map_err(A::Error::custom)?,
                [b'{' | b'[', ..] => {
                    return Err(A::Error::custom(format!("the value of \"{name}\" is an object or a list")));
                }
                b"null" => continue,
                // A number or a boolean, as it stands.
                _ => value.get().to_owned(),
            };
            match name == TRACEPARENT {
                true => traceparent = Some(text),
                false => push(self.0, &name, text.as_bytes()),
            }
        }
        Ok(traceparent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::batch::headers_of;

    fn read(json: &str) -> (Vec<(String, String)>, Option<String>) {
        let mut out = Vec::new();
        let traceparent = push_object(&mut out, json.as_bytes()).expect(json);
        let text = |(name, value): (&str, &[u8])| {
            (name.to_owned(), String::from_utf8(value.to_vec()).expect("UTF-8"))
        };
        (headers_of(&out).map(text).collect(), traceparent)
    }

    #[test]
    fn values_are_texts_and_ours_are_kept() {
        let (headers, traceparent) = read(
            r#"{"tenant": "a\"é", "n": 1.10, "is": true, "none": null, "type": "x", "traceparent": "00-1"}"#,
        );
        let expected = [("tenant", "a\"é"), ("n", "1.10"), ("is", "true"), ("header-type", "x")];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(traceparent.as_deref(), Some("00-1"));
        assert_eq!(read("{}"), (vec![], None));
    }

    #[test]
    fn other_values_are_refused() {
        for json in ["[]", "\"a\"", "1", "null", "{\"a\": {}}", "{\"a\": [1]}"] {
            assert!(push_object(&mut Vec::new(), json.as_bytes()).is_err(), "{json}");
        }
    }
}
