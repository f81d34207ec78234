//! A huge table copied in ranges of its key: which of its changes are applied while some ranges are copied and others
//! are not.
//!
//! Comes in: the ranges that are copied, in the order of the key, each with the consistent point of a snapshot of its
//! own; changes, in the order of their commits. Goes out: which half of a change is to be applied. The argument
//! (EXACTLY_ONCE.md, "Copying a table", point 5):
//!
//! - Ranges are copied one after the other from the smallest key up, each from a later snapshot. So those with
//!   `copied_at <= commit_lsn` are the first ones, and what is applied of a transaction is what lies at or below one key,
//!   its [`Frontier`]. What lies above is in a copy: of a finished range, since its snapshot is later than the commit;
//!   of one that is not finished, since its slot will be made later than now, when the commit was already read from the
//!   WAL.
//! - A key change is two halves, each judged by its own key. An old key that was not sent is the new one.
//! - A row that comes over the frontier is an insert: the replica may not have it, so values that did not change are
//!   fetched from the source. If it is gone there, its delete or its next key change is still to come, and will not find
//!   it: until the stream has passed all that was committed while such values were fetched, a missing row is no conflict
//!   ([`Ranges::doubt_to`]).
//! - A TRUNCATE deletes what lies at or below the frontier.
//! - Two neighbours become one, with the later `copied_at`, when the stream has passed that: of what is still to come,
//!   both take everything.
//!
//! The order of keys must be the server's, so only types whose order is certain are taken: see [`KeyKind`]. Pure.

use serde::{Deserialize, Serialize};

use super::filter::datetime;
use crate::lsn::Lsn;

/// The types whose texts Walgate orders as PostgreSQL orders the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// int2, int4, int8.
    Integer,
    /// Printed in lower-case hexadecimal of one form, which orders as the bytes do.
    Uuid,
    /// text, varchar under "C" in a database in UTF-8.
    Text,
    /// date.
    Date,
    /// timestamp.
    Timestamp,
    /// timestamptz.
    Timestamptz,
}

/// A key as it compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key<'a> {
    Integer(i64),
    Bytes(&'a [u8]),
    Moment(i128),
}

impl KeyKind {
    /// Of a type, by OID; `None`: its order is not certain. Of text types the collation is to be asked for as well.
    pub fn of(type_oid: u32) -> Option<Self> {
        match type_oid {
            20 | 21 | 23 => Some(KeyKind::Integer),
            2950 => Some(KeyKind::Uuid),
            25 | 1043 => Some(KeyKind::Text),
            1082 => Some(KeyKind::Date),
            1114 => Some(KeyKind::Timestamp),
            1184 => Some(KeyKind::Timestamptz),
            _ => None,
        }
    }

    /// What a value is compared as in SQL; of text, under "C".
    pub fn sql_type(self) -> &'static str {
        match self {
            KeyKind::Integer => "pg_catalog.int8",
            KeyKind::Uuid => "pg_catalog.uuid",
            KeyKind::Text => "pg_catalog.text",
            KeyKind::Date => "pg_catalog.date",
            KeyKind::Timestamp => "pg_catalog.timestamp",
            KeyKind::Timestamptz => "pg_catalog.timestamptz",
        }
    }

    fn read(self, text: &[u8]) -> Option<Key<'_>> {
        match self {
            KeyKind::Integer => std::str::from_utf8(text).ok()?.parse().ok().map(Key::Integer),
            KeyKind::Uuid | KeyKind::Text => Some(Key::Bytes(text)),
            KeyKind::Date => datetime::read_date(text).map(Key::Moment),
            KeyKind::Timestamp => datetime::read_timestamp(text, false).map(Key::Moment),
            KeyKind::Timestamptz => datetime::read_timestamp(text, true).map(Key::Moment),
        }
    }

    /// Whether a value lies at or below another; `None`: a text that its type does not print.
    pub fn is_at_most(self, text: &[u8], bound: &[u8]) -> Option<bool> {
        Some(self.read(text)? <= self.read(bound)?)
    }
}

/// A range that is copied: it begins behind the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Its last key's text; `None`: it is the last range.
    pub up_to: Option<String>,
    /// The consistent point of its snapshot.
    pub copied_at: Lsn,
}

/// How far a table's copy in ranges has come. Names of fields are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// The column by which it is cut.
    pub column: String,
    /// How its values compare.
    pub kind: KeyKind,
    /// From the smallest key up, with growing `copied_at`.
    pub finished: Vec<Finished>,
    /// How many were copied, before neighbours became one.
    pub count: u64,
    /// Rows behind the finished ranges may be on the replica: their copy has begun.
    pub has_begun: bool,
    /// All are copied, and what the stream sends up to here may miss rows that were gone from the source when their
    /// values were fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt_to: Option<Lsn>,
}

/// What is applied of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontier<'r> {
    /// Nothing: everything is in a copy, or will be.
    Nothing,
    /// What lies at or below this key.
    UpTo(&'r str),
    /// Everything.
    Everything,
}

/// Which half of a change is to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// None.
    Nothing,
    /// The old row goes.
    Old,
    /// The new row comes.
    New,
    /// The change as it is.
    Whole,
}

/// A key whose text its type does not print, or that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKey;

impl Ranges {
    /// A copy that has not begun.
    pub fn new(column: String, kind: KeyKind) -> Self {
        Ranges { column, kind, finished: Vec::new(), count: 0, has_begun: false, doubt_to: None }
    }

    /// Whether every range is copied.
    pub fn is_complete(&self) -> bool {
        self.finished.last().is_some_and(|last| last.up_to.is_none())
    }

    /// The key behind which the next range begins; `None`: it is the first one.
    pub fn next_after(&self) -> Option<&str> {
        self.finished.last().and_then(|last| last.up_to.as_deref())
    }

    /// The latest snapshot's consistent point.
    pub fn copied_at(&self) -> Lsn {
        self.finished.last().map_or(Lsn::ZERO, |last| last.copied_at)
    }

    /// The next range is copied.
    pub fn finish(&mut self, up_to: Option<String>, copied_at: Lsn) {
        assert!(!self.is_complete(), "nothing follows the last range");
        assert!(copied_at >= self.copied_at(), "a later range has a later snapshot");
        self.finished.push(Finished { up_to, copied_at });
        self.count += 1;
        self.has_begun = false;
    }

    /// The stream has passed `safe_lsn`: ranges that from now on take the same become one.
    pub fn merge(&mut self, safe_lsn: Lsn) {
        let passed = self.finished.iter().take_while(|range| range.copied_at <= safe_lsn).count();
        self.finished.drain(..passed.saturating_sub(1));
    }

    /// What is applied of a transaction.
    pub fn frontier(&self, commit_lsn: Lsn) -> Frontier<'_> {
        match self.finished.iter().take_while(|range| range.copied_at <= commit_lsn).last() {
            None => Frontier::Nothing,
            Some(Finished { up_to: Some(up_to), .. }) => Frontier::UpTo(up_to),
            Some(Finished { up_to: None, .. }) => Frontier::Everything,
        }
    }
}

impl Frontier<'_> {
    /// Which half of a change is to be applied, by the keys that its rows have; `None`: there is no such row. An old
    /// key that was not sent is the new one.
    ///
    /// # Errors
    /// A text that its type does not print.
    pub fn part(self, kind: KeyKind, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<Part, UnknownKey> {
        let bound = match self {
            Frontier::Nothing => return Ok(Part::Nothing),
            Frontier::Everything => return Ok(Part::Whole),
            Frontier::UpTo(bound) => bound.as_bytes(),
        };
        let is_in = |key: &[u8]| kind.is_at_most(key, bound).ok_or(UnknownKey);
        Ok(match (old.map(is_in).transpose()?, new.map(is_in).transpose()?) {
            (None | Some(true), None | Some(true)) => Part::Whole,
            (Some(true), Some(false)) => Part::Old,
            (Some(false), Some(true)) => Part::New,
            (None | Some(false), None | Some(false)) => Part::Nothing,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_compare_as_the_server_compares_them() {
        for (kind, ascending) in [
            (KeyKind::Integer, &["-9223372036854775808", "-10", "9", "10"][..]),
            (KeyKind::Text, &["", "A", "Z", "a", "aa", "b", "ä"]),
            (
                KeyKind::Uuid,
                &["00000000-0000-0000-0000-0000000000ff", "0a000000-0000-0000-0000-000000000000"],
            ),
            (KeyKind::Date, &["-infinity", "0044-03-15 BC", "0001-01-01", "10000-01-01", "infinity"]),
            (KeyKind::Timestamp, &["0044-03-15 12:00:00 BC", "1999-12-31 23:59:59.9", "2000-01-01 00:00:00"]),
            (KeyKind::Timestamptz, &["-infinity", "1999-12-31 23:59:59.99+00", "2000-01-01 00:00:00+00"]),
        ] {
            for (at, lower) in ascending.iter().enumerate() {
                for (other_at, other) in ascending.iter().enumerate() {
                    let found = kind.is_at_most(lower.as_bytes(), other.as_bytes());
                    assert_eq!(found, Some(at <= other_at), "{lower:?} and {other:?}");
                }
            }
        }
        assert_eq!(KeyKind::Integer.is_at_most(b"x", b"1"), None);
        assert_eq!(KeyKind::Timestamp.is_at_most(b"2000-01-01", b"infinity"), None);
        assert_eq!(KeyKind::of(1700), None, "numeric: 1.0 and 1.00 are equal");
    }

    #[test]
    fn the_stored_form() {
        let mut ranges = Ranges::new("id".into(), KeyKind::Integer);
        ranges.finish(Some("10".into()), Lsn(0x50));
        ranges.has_begun = true;
        let text = serde_json::to_string(&ranges).expect("plain data");
        let expected = r#"{"column":"id","kind":"integer","finished":[{"up_to":"10","copied_at":"0/50"}],"count":1,"has_begun":true}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Ranges>(&text).expect("its own form"), ranges);
    }

    /// A table: keys and values.
    type Table = BTreeMap<i64, u32>;

    /// What happens next.
    #[derive(Clone, Debug)]
    enum Happening {
        /// The source commits: one row gets a value.
        Put(i64),
        /// A row goes.
        Delete(i64),
        /// A row gets another key.
        Move(i64, i64),
        /// All rows go.
        Truncate,
        /// The stream applies so many commits.
        Stream(usize),
        /// The next range is copied, of so many rows.
        Copy(usize),
        /// A copy is begun and dies; then the next start.
        Crash(usize),
    }

    /// One committed change.
    #[derive(Clone, Copy, Debug)]
    enum Change {
        Put(i64, u32),
        Delete(i64),
        Move(i64, i64, u32),
        Truncate,
    }

    /// The source with its WAL, and the replica with what is stored there. Commit n stands at LSN 10 (n + 1).
    struct World {
        source: Table,
        wal: Vec<Change>,
        replica: Table,
        ranges: Ranges,
        applied: usize,
        value: u32,
    }

    fn lsn(commit: usize) -> Lsn {
        Lsn(10 * (u64::try_from(commit).expect("small") + 1))
    }

    impl World {
        fn happen(&mut self, happening: &Happening) {
            self.value += 1;
            let value = self.value;
            match *happening {
                Happening::Put(key) => self.commit(Change::Put(key, value)),
                Happening::Delete(key) if self.source.contains_key(&key) => self.commit(Change::Delete(key)),
                Happening::Move(old, new) if old != new && !self.source.contains_key(&new) => {
                    if let Some(value) = self.source.get(&old).copied() {
                        self.commit(Change::Move(old, new, value));
                    }
                }
                Happening::Delete(_) | Happening::Move(..) => {}
                Happening::Truncate => self.commit(Change::Truncate),
                Happening::Stream(count) => (0..count).for_each(|_| self.apply_next()),
                Happening::Copy(rows) => self.copy(rows, false),
                Happening::Crash(rows) => self.copy(rows, true),
            }
        }

        fn commit(&mut self, change: Change) {
            apply(&mut self.source, change);
            self.wal.push(change);
        }

        /// As the router and the replica's sink do it.
        fn apply_next(&mut self) {
            let Some(change) = self.wal.get(self.applied).copied() else { return };
            let frontier = self.ranges.frontier(lsn(self.applied));
            self.applied += 1;
            let part = |old: Option<i64>, new: Option<i64>| {
                let texts = [old, new].map(|key| key.map(|key| key.to_string()));
                let [old, new] = texts.each_ref().map(|text| text.as_deref().map(str::as_bytes));
                frontier.part(KeyKind::Integer, old, new).expect("integers")
            };
            match change {
                Change::Put(key, _) if part(None, Some(key)) == Part::Whole => {
                    apply(&mut self.replica, change)
                }
                Change::Delete(key) if part(Some(key), None) == Part::Whole => {
                    apply(&mut self.replica, change)
                }
                Change::Put(..) | Change::Delete(_) => {}
                Change::Move(old, new, value) => match part(Some(old), Some(new)) {
                    Part::Whole => apply(&mut self.replica, change),
                    Part::Old => apply(&mut self.replica, Change::Delete(old)),
                    Part::New => apply(&mut self.replica, Change::Put(new, value)),
                    Part::Nothing => {}
                },
                Change::Truncate => match frontier {
                    Frontier::Nothing => {}
                    Frontier::Everything => self.replica.clear(),
                    Frontier::UpTo(bound) => {
                        let bound: i64 = bound.parse().expect("an integer");
                        self.replica.retain(|key, _| *key > bound);
                    }
                },
            }
        }

        fn copy(&mut self, rows: usize, dies: bool) {
            let safe_lsn = Lsn(10 * u64::try_from(self.applied).expect("small"));
            self.ranges.merge(safe_lsn);
            if self.ranges.is_complete() {
                return;
            }
            let after = self.ranges.next_after().map(|text| text.parse::<i64>().expect("an integer"));
            let is_behind = |key: &i64| after.is_none_or(|after| *key > after);
            if self.ranges.has_begun {
                self.replica.retain(|key, _| !is_behind(key));
            }
            self.ranges.has_begun = true;
            let rest: Vec<(i64, u32)> = self
                .source
                .iter()
                .filter(|(key, _)| is_behind(key))
                .map(|(key, value)| (*key, *value))
                .collect();
            let up_to = rest.get(rows.max(1) - 1).map(|(key, _)| *key);
            let range = rest.iter().filter(|(key, _)| up_to.is_none_or(|up_to| *key <= up_to));
            for (key, value) in range.take(if dies { rows / 2 } else { usize::MAX }) {
                assert_eq!(self.replica.insert(*key, *value), None, "copied over another row");
            }
            if !dies {
                self.ranges.finish(up_to.map(|key| key.to_string()), lsn(self.wal.len()));
            }
        }
    }

    fn apply(table: &mut Table, change: Change) {
        match change {
            Change::Put(key, value) => drop(table.insert(key, value)),
            Change::Delete(key) => drop(table.remove(&key)),
            Change::Move(old, new, value) => {
                table.remove(&old);
                table.insert(new, value);
            }
            Change::Truncate => table.clear(),
        }
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let key = || -20i64..20;
        prop_oneof![
            6 => key().prop_map(Happening::Put),
            3 => key().prop_map(Happening::Delete),
            6 => (key(), key()).prop_map(|(old, new)| Happening::Move(old, new)),
            1 => Just(Happening::Truncate),
            3 => (0usize..8).prop_map(Happening::Stream),
            3 => (0usize..6).prop_map(Happening::Copy),
            1 => (0usize..6).prop_map(Happening::Crash),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn whatever_happens_the_replica_ends_as_the_source(
            before in prop::collection::btree_map(-20i64..20, 0u32..5, 0..30),
            history in prop::collection::vec(happening(), 0..120),
        ) {
            let mut world = World {
                source: before,
                wal: Vec::new(),
                replica: Table::new(),
                ranges: Ranges::new("id".into(), KeyKind::Integer),
                applied: 0,
                value: 100,
            };
            for happening in &history {
                world.happen(happening);
            }
            while !world.ranges.is_complete() {
                world.copy(3, false);
            }
            while world.applied < world.wal.len() {
                world.apply_next();
            }
            prop_assert_eq!(world.replica, world.source);
        }

        #[test]
        fn merging_changes_nothing_that_is_still_to_come(
            bounds in prop::collection::btree_set(-50i64..50, 1..8),
            steps in prop::collection::vec(0u64..3, 8),
            safe in 0u64..20,
            later in 0u64..20,
        ) {
            let mut ranges = Ranges::new("id".into(), KeyKind::Integer);
            let mut copied_at = 0;
            for (bound, step) in bounds.iter().zip(&steps) {
                copied_at += step;
                ranges.finish(Some(bound.to_string()), Lsn(copied_at));
            }
            let mut merged = ranges.clone();
            merged.merge(Lsn(safe));
            let commit_lsn = Lsn(safe + later);
            prop_assert_eq!(merged.frontier(commit_lsn), ranges.frontier(commit_lsn));
            prop_assert!(merged.finished.iter().filter(|range| range.copied_at <= Lsn(safe)).count() <= 1);
        }
    }
}
