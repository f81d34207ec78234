//! Folding: many changes of a key become one, so that a table's changes can be applied as sets.
//!
//! Comes in: changes of one table, in order. Goes out: one [`Entry`] for each key. Always holds: applying the entries,
//! deletes before the others, leaves what applying the changes in their order would leave, column by column where values
//! did not change. Pure.
//!
//! Keys are equal here when their texts are. Where SQL's equality is coarser (numeric 1.0 and 1.00, citext, char(n), -0,
//! nondeterministic collations) this is still right: the source has at most one row of equal keys at a time, and a key
//! whose text changes comes as a key change, which is applied alone (pgoutput compares the bytes; FIELD_NOTES 3.3). So of
//! equal keys with other texts at most one entry does not delete, and the deletes come first. The alternative, to apply
//! such tables row by row, is six times slower, and schemas that came from elsewhere have numeric keys everywhere.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use foldhash::quality::RandomState;

use super::params::Cells;
use crate::route::row::{Cell, RowChange, RowOp};

/// What is left to do with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Net {
    /// It came and went: a row that is there is not the source's.
    Nothing,
    /// It is new.
    Insert,
    /// It should be there with these cells, whether or not it is.
    Upsert,
    /// It is there, and gets these cells.
    Update,
    /// It goes.
    Delete,
}

/// One key's net change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub net: Net,
    /// Where its row begins: the new one, of a delete the old one.
    pub row: usize,
    /// The replica must have it (Update, Delete), or cannot have it (Insert).
    pub is_certain: bool,
}

/// A change that cannot follow those before it in the same set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DoesNotFold;

/// The texts of a key.
#[derive(Clone, Copy)]
struct Key<'a> {
    bytes: &'a [u8],
    row: &'a [Cell],
    columns: &'a [usize],
}

impl<'a> Key<'a> {
    fn texts(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let (bytes, row) = (self.bytes, self.row);
        self.columns.iter().map(move |at| match row.get(*at) {
            Some(Cell::Text(range)) => bytes.get(range.clone()),
            _ => None,
        })
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.texts().eq(other.texts())
    }
}

impl Eq for Key<'_> {}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for text in self.texts() {
            text.hash(state);
        }
    }
}

/// The changes of one table.
pub(super) struct Fold<'a> {
    key: &'a [usize],
    width: usize,
    index: HashMap<Key<'a>, usize, RandomState>,
    entries: Vec<Entry>,
}

impl<'a> Fold<'a> {
    /// For a table whose rows have `width` cells and are identified by those of `key`.
    pub fn new(key: &'a [usize], width: usize) -> Self {
        Fold { key, width, index: HashMap::default(), entries: Vec::new() }
    }

    /// The net changes, in the order in which their keys came first.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// Takes a change: an Insert, Update without an old key, Upsert or Delete whose key has a text in every column.
    pub fn add(&mut self, cells: &mut Cells<'a>, change: &RowChange) -> Result<(), DoesNotFold> {
        let (net, row) = match change.op {
            RowOp::Insert if change.is_certain => (Net::Insert, change.new.start),
            RowOp::Insert | RowOp::Upsert => (Net::Upsert, change.new.start),
            RowOp::Update => (Net::Update, change.new.start),
            RowOp::Delete => (Net::Delete, change.old.start),
            RowOp::Decide(_) | RowOp::Truncate { .. } | RowOp::Clear | RowOp::ClearRange { .. } => {
                return Err(DoesNotFold);
            }
        };
        let key = Key { bytes: cells.batch_bytes(), row: cells.of_batch(row, self.width), columns: self.key };
        let entry = Entry { net, row, is_certain: change.is_certain };
        let at = *self.index.entry(key).or_insert(self.entries.len());
        match self.entries.get_mut(at) {
            None => self.entries.push(entry),
            Some(before) => *before = combine(cells, self.width, *before, entry)?,
        }
        Ok(())
    }
}

fn combine(cells: &mut Cells<'_>, width: usize, before: Entry, after: Entry) -> Result<Entry, DoesNotFold> {
    let is_whole = |row| !cells.row(row, width).contains(&Cell::Unchanged);
    match (before.net, after.net) {
        // It came and went, so nothing of it is left to build on.
        (Net::Nothing, Net::Insert) => Ok(Entry { is_certain: before.is_certain, ..after }),
        (Net::Nothing, Net::Update) => Ok(Entry { net: Net::Upsert, is_certain: false, ..after }),
        (Net::Nothing, Net::Upsert) => Ok(after),
        (_, Net::Nothing) | (Net::Nothing, Net::Delete) => Ok(before),
        (Net::Insert, Net::Delete) if before.is_certain => Ok(Entry { net: Net::Nothing, ..before }),
        (Net::Insert | Net::Upsert, Net::Delete) => Ok(Entry { is_certain: false, ..after }),
        (Net::Update | Net::Delete, Net::Delete) => Ok(Entry { is_certain: before.is_certain, ..after }),
        // What did not change since the delete is in no row that the replica would still have.
        (Net::Delete, _) if !is_whole(after.row) => Err(DoesNotFold),
        (Net::Delete, _) => Ok(Entry { net: Net::Upsert, is_certain: false, ..after }),
        (net @ (Net::Insert | Net::Upsert | Net::Update), _) => {
            let row = if is_whole(after.row) { after.row } else { cells.merge(before.row, after.row, width) };
            Ok(Entry { net, row, is_certain: before.is_certain })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Position;
    use crate::lsn::Lsn;
    use crate::route::row::{TargetId, Targets};

    /// Changes of key `k`, each with the cells k, a, b: `None` is "unchanged".
    fn fold(changes: &[(RowOp, bool, [Option<&'static str>; 2])]) -> Vec<(Net, bool, Vec<Option<String>>)> {
        let (mut bytes, mut cells, mut list) = (b"k".to_vec(), Vec::new(), Vec::new());
        for (op, is_certain, texts) in changes {
            let start = cells.len();
            cells.push(Cell::Text(0..1));
            for text in texts {
                let from = bytes.len();
                bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
                cells.push(text.map_or(Cell::Unchanged, |_| Cell::Text(from..bytes.len())));
            }
            let range = start..cells.len();
            let is_delete = *op == RowOp::Delete;
            list.push(RowChange {
                target: target(),
                op: op.clone(),
                position: Position { commit_lsn: Lsn(1), ordinal: 2 },
                is_certain: *is_certain,
                new: if is_delete { 0..0 } else { range.clone() },
                old: if is_delete { range } else { 0..0 },
            });
        }
        let mut all = Cells::new(&bytes, &cells);
        let mut fold = Fold::new(&[0], 3);
        for change in &list {
            if fold.add(&mut all, change).is_err() {
                return vec![];
            }
        }
        let texts = |entry: &Entry| {
            let row = all.row(entry.row, 3).iter().skip(1);
            row.map(|cell| all.text(cell).map(|text| String::from_utf8_lossy(text).into_owned())).collect()
        };
        fold.entries.iter().map(|entry| (entry.net, entry.is_certain, texts(entry))).collect()
    }

    fn target() -> TargetId {
        Targets::default().intern(crate::route::row::Target {
            oid: 1,
            relation: String::new(),
            schema: String::new(),
            name: String::new(),
            columns: vec![],
            key: vec![0],
            is_filtered: false,
        })
    }

    const A: [Option<&str>; 2] = [Some("a"), Some("b")];

    #[test]
    fn the_rules_of_folding() {
        use RowOp::{Delete, Insert, Update, Upsert};
        let some = |texts: [&str; 2]| texts.map(|text| Some(text.to_owned())).to_vec();
        for (changes, expected) in [
            (
                vec![(Insert, true, A), (Update, true, [Some("c"), None])],
                Some((Net::Insert, true, some(["c", "b"]))),
            ),
            (
                vec![(Insert, false, A), (Update, true, [Some("c"), None])],
                Some((Net::Upsert, false, some(["c", "b"]))),
            ),
            (
                vec![(Update, true, [Some("a"), None]), (Update, true, [None, Some("d")])],
                Some((Net::Update, true, some(["a", "d"]))),
            ),
            (
                vec![(Upsert, false, A), (Update, true, [None, Some("d")])],
                Some((Net::Upsert, false, some(["a", "d"]))),
            ),
            (
                vec![(Delete, true, A), (Insert, true, [Some("c"), Some("d")])],
                Some((Net::Upsert, false, some(["c", "d"]))),
            ),
            (vec![(Delete, true, A), (Insert, true, [Some("c"), None])], None),
            (vec![(Update, true, A), (Delete, true, A)], Some((Net::Delete, true, some(["a", "b"])))),
            (vec![(Insert, true, A), (Delete, true, A)], Some((Net::Nothing, true, some(["a", "b"])))),
            (vec![(Insert, false, A), (Delete, true, A)], Some((Net::Delete, false, some(["a", "b"])))),
            (
                vec![(Insert, true, A), (Delete, true, A), (Insert, true, [Some("c"), Some("d")])],
                Some((Net::Insert, true, some(["c", "d"]))),
            ),
        ] {
            assert_eq!(fold(&changes), expected.into_iter().collect::<Vec<_>>(), "{changes:?}");
        }
    }
}
