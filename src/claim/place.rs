//! Which event an object belongs to: told by its key alone, and found in whatever refers to it.
//!
//! Comes in: keys of the store, and values of events. Goes out: the place of the event in its source's order. Always
//! holds: a key that Walgate would not have written has no place, and nobody touches its object; in an event, a reference
//! to any store is found, wherever in its value it stands and whatever form the event has: an object's key has its
//! event's id in it, and a text that looks like one is taken for one, so that too much is kept rather than too little.

use std::collections::BTreeMap;

use memchr::memmem::Finder;

use crate::change::Position;
use crate::lsn::Lsn;
use crate::route::claim;
use crate::sink::checkpoint::{Checkpoint, TableState};

/// Where an event of one source stands: what its id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Of the stream.
    Change(Position),
    /// A row of a copy.
    Row {
        /// The copy's consistent point.
        copied_at: Lsn,
        /// The table's OID.
        oid: u32,
        /// The row's number.
        row: u64,
    },
}

impl Place {
    /// Whether the hub has, or had, all that was ever published from there: nothing of it comes any more, after no
    /// crash. `tables`: their copies, by OID, read together with the checkpoint.
    ///
    /// A table's state is stored before the first row of its copy; a later copy has a later consistent point. So the rows
    /// of an earlier one are over when the state is of a later, and those of a table without any when the stream has
    /// passed the point: a copy that begins now begins behind it.
    pub fn is_settled(&self, checkpoint: &Checkpoint, tables: &BTreeMap<u32, TableState>) -> bool {
        match *self {
            Place::Change(position) => position <= checkpoint.position(),
            Place::Row { copied_at, oid, .. } => match tables.get(&oid) {
                Some(state) => copied_at < state.copied_at || (state.done && copied_at == state.copied_at),
                None => copied_at <= checkpoint.commit_lsn,
            },
        }
    }

    /// What stands behind the source's name in an id, `separator` between its parts; how long it is, too.
    fn parse(text: &[u8], separator: &[u8]) -> Option<(Place, usize)> {
        let (lsn, rest) = text.split_at_checked(16)?;
        let lsn = hexadecimal(lsn)?;
        let rest = rest.strip_prefix(separator)?;
        let (oid, rest) = match rest.strip_prefix(b"r") {
            Some(rest) => {
                let (oid, rest) = rest.split_at(rest.iter().position(|&byte| byte == b'-')?);
                let oid = std::str::from_utf8(oid).ok().filter(|oid| !oid.starts_with(['0', '+']))?;
                (Some(oid.parse().ok()?), rest.get(1..)?)
            }
            None => (None, rest),
        };
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
        let length = rest.iter().position(|byte| !is_digit(byte)).unwrap_or(rest.len());
        let (number, rest) = rest.split_at(length);
        // Eight digits, or more without a zero in front.
        if number.len() < 8 || number.len() > 8 && number.first() == Some(&b'0') {
            return None;
        }
        let number = hexadecimal(number)?;
        let place = match oid {
            Some(oid) => Place::Row { copied_at: Lsn(lsn.checked_add(1)?), oid, row: number },
            None => Place::Change(Position { commit_lsn: Lsn(lsn), ordinal: number }),
        };
        Some((place, text.len() - rest.len()))
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let is_upper = digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    let text = std::str::from_utf8(digits).ok().filter(|_| is_upper)?;
    u64::from_str_radix(text, 16).ok()
}

/// Finds the places of one source's events.
#[derive(Debug)]
pub struct Places {
    /// The source's name, as keys begin with it.
    source: String,
    /// What the names of its objects begin with.
    id: String,
    /// What precedes an event's place in a key, and between its parts: as a key has it, and as a file's URL has it.
    forms: [(Finder<'static>, &'static [u8]); 2],
}

impl Places {
    /// Of the source with this name.
    pub fn of(source_name: &str) -> Self {
        let id = claim::id_part(&format!("{source_name}/"));
        let form = |id: &str, separator: &'static str| {
            (Finder::new(id.as_bytes()).into_owned(), separator.as_bytes())
        };
        let forms = [form(&id, "%2F"), form(&claim::id_part(&id), "%252F")];
        Places { source: claim::part(source_name), id, forms }
    }

    /// What the keys of all objects of the source begin with.
    pub fn directory(&self) -> String {
        format!("{}/", self.source)
    }

    /// The event to which the object with this key, within the store, belongs; `None`: Walgate did not store it.
    pub fn of_key(&self, key: &str) -> Option<Place> {
        let mut parts = key.split('/');
        let (source, _, _) = (parts.next()?, parts.next()?, parts.next()?);
        let (file, rest) = (parts.next()?, parts.next());
        let place =
            file.strip_prefix(self.id.as_str()).filter(|_| source == self.source && rest.is_none())?;
        let (parsed, length) = Place::parse(place.as_bytes(), b"%2F")?;
        let suffix = place.get(length..)?;
        (suffix.len() > 1 && suffix.starts_with('.')).then_some(parsed)
    }

    /// The events to whose objects this value refers, or may refer; some of them more than once.
    pub fn of_references<'v>(&'v self, value: &'v [u8]) -> impl Iterator<Item = Place> + 'v {
        self.forms.iter().flat_map(move |(finder, separator)| {
            let behind = finder.needle().len();
            let found = finder.find_iter(value).filter_map(move |at| value.get(at + behind..));
            found.filter_map(|rest| Some(Place::parse(rest, separator)?.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::tests::store_at;
    use crate::route::claim::{ColumnPlace, directory, event_key};
    use crate::sink::checkpoint::Identity;

    const CHANGE: Place = Place::Change(Position { commit_lsn: Lsn(0x193_B748), ordinal: 6 });
    const ROW: Place = Place::Row { copied_at: Lsn(0x193_B749), oid: 16_385, row: 0x1_0000_0000 };

    #[test]
    fn every_key_that_is_written_is_read() {
        for source in ["shop", "shop.eu", "..", "a b/c", "%2F", "é"] {
            let places = Places::of(source);
            let directory = directory(source, "a.b", "t/%2F");
            for (id, place) in
                [("000000000193B748/00000006", CHANGE), ("000000000193B748/r16385-100000000", ROW)]
            {
                let id = format!("{source}/{id}");
                let whole = event_key(&directory, &id);
                assert_eq!(places.of_key(&whole), Some(place), "{whole}");
                for (column, is_before) in [("json", false), ("a.b/c", true), ("00000007", false)] {
                    let column =
                        ColumnPlace { directory: &directory, id: &id, column, is_before, relation: "" };
                    assert_eq!(places.of_key(&column.key()), Some(place), "{}", column.key());
                }
                for store in [store_at("file:///var/claim store"), store_at("s3://b/p")] {
                    let event = format!(r#"{{"id":"{id}","claim":{{"uri":"{}"}}}}"#, store.uri(&whole));
                    let found: Vec<Place> = places.of_references(event.as_bytes()).collect();
                    assert!(found.contains(&place), "{event}: {found:?}");
                }
                let other = Places::of("other");
                assert_eq!(other.of_key(&whole), None);
            }
        }
    }

    #[test]
    fn what_is_not_ours_has_no_place() {
        let places = Places::of("shop");
        for key in [
            "",
            "shop/walgate-check-77",
            "shop/public/t/readme.json",
            "shop/public/t/.new-0123456789abcdef",
            "shop/public/t/shop%2F000000000193B748%2F00000006",
            "shop/public/t/shop%2F000000000193B748%2F00000006.",
            "shop/public/t/shop%2F000000000193b748%2F00000006.json",
            "shop/public/t/shop%2F000000000193B748%2F006.json",
            "shop/public/t/shop%2F000000000193B748%2F000000006.json",
            "shop/public/t/shop%2F000000000193B748%2Fr016385-00000006.json",
            "shop/public/t/shop%2F000000000193B748%2F00000006%2Fp1.json",
            "shop/public/t/x/shop%2F000000000193B748%2F00000006.json",
            "shop/t/shop%2F000000000193B748%2F00000006.json",
            "hops/public/t/shop%2F000000000193B748%2F00000006.json",
        ] {
            assert_eq!(places.of_key(key), None, "{key}");
        }
        // An event's own id is no reference.
        assert_eq!(places.of_references(br#"{"id":"shop/000000000193B748/00000006"}"#).count(), 0);
    }

    fn state(copied_at: Lsn, done: bool) -> TableState {
        let text = format!(
            r#"{{"oid":16385,"schema":"s","table":"t","copied_at":"{copied_at}","done":{done},"rows":0}}"#
        );
        serde_json::from_str(&text).expect("a state")
    }

    #[test]
    fn only_what_lies_at_or_before_the_checkpoint_is_settled() {
        let mut checkpoint = Checkpoint::pending(Identity {
            system_identifier: String::new(),
            timeline: 1,
            database_oid: 1,
            slot: String::new(),
            options: String::new(),
        });
        (checkpoint.commit_lsn, checkpoint.ordinal) = (Lsn(100), 6);
        let none = BTreeMap::new();
        let change = |lsn, ordinal| Place::Change(Position { commit_lsn: Lsn(lsn), ordinal });
        for (place, expected) in [
            (change(99, 900), true),
            (change(100, 6), true),
            (change(100, 7), false),
            (change(101, 0), false),
        ] {
            assert_eq!(place.is_settled(&checkpoint, &none), expected, "{place:?}");
        }
        let row = |copied_at| Place::Row { copied_at: Lsn(copied_at), oid: 16_385, row: 1 };
        let of = |state: TableState| BTreeMap::from([(16_385, state)]);
        for (tables, copied_at, expected) in [
            (none.clone(), 100, true),
            (none, 101, false),
            (of(state(Lsn(90), true)), 90, true),
            (of(state(Lsn(90), false)), 90, false),
            (of(state(Lsn(90), false)), 89, true),
            (of(state(Lsn(90), true)), 91, false),
        ] {
            assert_eq!(row(copied_at).is_settled(&checkpoint, &tables), expected, "{copied_at} {tables:?}");
        }
    }
}
