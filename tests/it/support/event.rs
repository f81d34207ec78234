//! One event as a consumer sees it, and the order that its id states (DESIGN section 4).

use std::collections::BTreeMap;

use serde_json::Value;

/// An event and where it was found.
#[derive(Clone, Debug)]
pub struct Event {
    /// The topic; for the file hub the file's name without `.jsonl`.
    pub topic: String,
    /// The partition; 0 in the file hub.
    pub partition: i32,
    /// The offset; the line's number, from 0, in the file hub.
    pub offset: i64,
    /// The Kafka key; the file hub has none.
    pub key: Option<String>,
    /// The Kafka headers; the file hub has none.
    pub headers: BTreeMap<String, String>,
    /// The value, parsed: digits beyond an f64 are lost, `raw` has them.
    pub json: Value,
    /// The value, as it was sent.
    pub raw: String,
}

/// What an event's id says about its place: compares as the changes happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The commit's LSN; of a snapshot's row `copied_at - 1`.
    pub lsn: u64,
    /// The table's oid and 1 in a snapshot, which comes after the stream up to this LSN.
    pub snapshot_of: Option<u32>,
    /// The ordinal in the transaction; of a snapshot the row's number.
    pub number: u64,
    /// The partition that a truncate names.
    pub partition: Option<u32>,
}

impl Event {
    /// The id.
    #[track_caller]
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// The operation.
    #[track_caller]
    pub fn op(&self) -> &str {
        self.text("op")
    }

    /// `schema.table` of the source; of a logical message, which is of no table, nothing.
    #[track_caller]
    pub fn table(&self) -> String {
        if self.json["source"]["table"].is_null() && self.op() == "message" {
            return String::new();
        }
        let part = |name| {
            self.json["source"][name].as_str().unwrap_or_else(|| panic!("no source.{name}: {}", self.raw))
        };
        format!("{}.{}", part("schema"), part("table"))
    }

    /// The aggregate's id, if there is one.
    pub fn aggregate_id(&self) -> Option<&str> {
        self.json["aggregate_id"].as_str()
    }

    /// A value of the new row; null also when it is absent.
    pub fn data(&self, column: &str) -> &Value {
        &self.json["data"][column]
    }

    /// The columns whose value was not in the WAL.
    #[track_caller]
    pub fn unchanged(&self) -> Vec<&str> {
        let names = self.json["unchanged"].as_array().unwrap_or_else(|| panic!("no unchanged: {}", self.raw));
        names.iter().map(|name| name.as_str().expect("unchanged lists names")).collect()
    }

    /// A field's text; panics when there is none.
    #[track_caller]
    pub fn text(&self, field: &str) -> &str {
        self.json[field].as_str().unwrap_or_else(|| panic!("no text in {field}: {}", self.raw))
    }

    /// What the id says; panics when it is not of the documented form.
    #[track_caller]
    pub fn place(&self) -> Place {
        parse_id(self.id(), self.json["source"]["name"].as_str().unwrap_or_default())
            .unwrap_or_else(|| panic!("id is not of the documented form: {}", self.raw))
    }
}

/// `<source>/<16 hex>/<8 hex or more>` or `<source>/<16 hex>/r<oid>-<8 hex or more>`, either with `/p<partition>`.
fn parse_id(id: &str, source: &str) -> Option<Place> {
    let mut parts = id.strip_prefix(source)?.strip_prefix('/')?.split('/');
    let lsn = upper_hex(parts.next()?, 16..=16)?;
    let ordinal = parts.next()?;
    let (snapshot_of, number) = match ordinal.strip_prefix('r') {
        Some(rest) => {
            let (oid, row) = rest.split_once('-')?;
            (Some(oid.parse().ok()?), row)
        }
        None => (None, ordinal),
    };
    let number = upper_hex(number, 8..=16)?;
    let partition = match parts.next() {
        Some(text) => Some(text.strip_prefix('p')?.parse().ok()?),
        None => None,
    };
    parts.next().is_none().then_some(Place { lsn, snapshot_of, number, partition })
}

fn upper_hex(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let is_ours =
        length.contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    is_ours.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_order_as_the_changes_happened() {
        let place = |id| parse_id(id, "shop").expect(id);
        let stream = place("shop/000000000193B748/00000006");
        assert_eq!(stream, Place { lsn: 0x193_B748, snapshot_of: None, number: 6, partition: None });
        let row = place("shop/000000000193B747/r16384-00000001");
        assert!(row < stream);
        assert!(place("shop/000000000193B747/r16384-00000000/p3") < row);
        assert!(stream < place("shop/000000000193B748/100000000"));
        for wrong in
            ["shop/193B748/00000006", "shop/000000000193b748/00000006", "shop/000000000193B748/6", "x"]
        {
            assert_eq!(parse_id(wrong, "shop"), None, "{wrong}");
        }
    }
}
