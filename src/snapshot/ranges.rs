//! The next range of a table that is copied in ranges of its key: where it ends, and what is stored when it does.
//!
//! Comes in: how far the copy has come, a snapshot. Goes out: conditions that cut the range into as many parts as there are
//! workers, all in this one snapshot. Always holds: its end is found in the snapshot that it is copied from; equal keys are
//! never in two ranges; it begins where the last one ended, and the last one is open. `route/ranges.rs` says why a range
//! for each snapshot is exact.

use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::pipeline::ranges::RangedTable;
use crate::route::ranges::{KeyKind, Ranges};
use crate::sink::checkpoint::TableState;
use crate::wal::catalog::{SourceColumn, SourceTable};
use crate::wal::client::{Client, classify};
use crate::wal::sql::{quote_ident, quote_literal};

/// See the module.
pub struct NextRange {
    /// What is copied.
    ranges: Ranges,
    rows_before: u64,
    /// The key's column, quoted.
    column: String,
    /// The last keys of the parts but the last one.
    inner: Vec<String>,
    /// The last key; `None`: it is the last range.
    up_to: Option<String>,
}

impl NextRange {
    /// Finds its end, about `rows` rows behind its beginning, in `keeper`'s snapshot. No rows: the rest of the table.
    ///
    /// # Errors
    /// As the connection.
    pub async fn find(
        keeper: &Client,
        table: &SourceTable,
        (ranges, rows_before): (Ranges, u64),
        rows: u64,
        parts: usize,
    ) -> Result<NextRange> {
        let column = quote_ident(&ranges.column);
        // ONLY of a partitioned table is nothing.
        let only = if table.is_partitioned { "" } else { "ONLY " };
        let rows_of_part = (rows / u64::try_from(parts).unwrap_or(1)).max(1);
        let mut after = ranges.next_after().map(str::to_owned);
        let mut ends = Vec::new();
        while rows > 0 && ends.len() < parts {
            let condition = match &after {
                Some(after) => format!(" WHERE {}", compare(&ranges, &column, ">", after)),
                None => String::new(),
            };
            // Without its table's name the result would be what is ordered, which is text.
            let sql = format!(
                "SELECT {column}::text FROM {only}{} AS t{condition} ORDER BY t.{column} OFFSET {} LIMIT 1",
                table.sql_name(),
                rows_of_part - 1
            );
            let found = keeper.query_opt(&sql, &[]).await.map_err(|error| {
                classify(error).context(format_args!("cutting {} into ranges", table.display_name()))
            })?;
            let Some(end) = found.map(|row| row.get::<_, String>(0)) else { break };
            after = Some(end.clone());
            ends.push(end);
        }
        let up_to = if ends.len() == parts { ends.pop() } else { None };
        Ok(NextRange { ranges, rows_before, column, inner: ends, up_to })
    }

    /// The conditions of its parts; of a table in several files, one for all.
    pub fn conditions(&self, has_one_file: bool) -> Vec<Option<String>> {
        let mut conditions = Vec::new();
        let mut after = self.ranges.next_after();
        let inner = self.inner.iter().filter(|_| has_one_file).map(|end| Some(end.as_str()));
        for end in inner.chain([self.up_to.as_deref()]) {
            let compare = |operator, bound| compare(&self.ranges, &self.column, operator, bound);
            let both = [after.map(|after| compare(">", after)), end.map(|end| compare("<=", end))];
            let both: Vec<String> = both.into_iter().flatten().collect();
            conditions.push((!both.is_empty()).then(|| both.join(" AND ")));
            after = end;
        }
        conditions
    }

    /// How far the copy has come.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Whether there are rows of an earlier attempt to copy it.
    pub fn has_begun(&self) -> bool {
        self.ranges.has_begun
    }

    /// Whether it is the first one.
    pub fn is_first(&self) -> bool {
        self.ranges.next_after().is_none()
    }

    /// The table's state when `rows` of its rows were copied at `copied_at`, all if it is `done`.
    pub fn state(&self, of_table: &TableState, copied_at: Lsn, done: bool, rows: u64) -> TableState {
        let mut ranges = self.ranges.clone();
        ranges.has_begun = true;
        let mut rows_done = self.rows_before;
        if done {
            ranges.finish(self.up_to.clone(), copied_at);
            rows_done += rows;
        }
        TableState { done: ranges.is_complete(), rows: rows_done, ranges: Some(ranges), ..of_table.clone() }
    }
}

fn compare(ranges: &Ranges, column: &str, operator: &str, bound: &str) -> String {
    format!("{column} {operator} {}::{}", quote_literal(bound), ranges.kind.sql_type())
}

/// Refuses a table that is not what it was when the attempt began.
///
/// # Errors
/// Transient: the next attempt goes by what it is.
pub fn check(table: &SourceTable, ranged: &RangedTable) -> Result<()> {
    let is_there = |column: &SourceColumn| {
        column.name == ranged.column && KeyKind::of(column.type_oid) == Some(ranged.kind)
    };
    match table.columns.iter().any(is_there) {
        true => Ok(()),
        false => Err(Error::transient(format!(
            "table {}: \"{}\", by which it is copied in ranges, was changed",
            table.display_name(),
            ranged.column
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(after: Option<&str>, inner: &[&str], up_to: Option<&str>) -> NextRange {
        let mut ranges = Ranges::new("id".into(), KeyKind::Integer);
        if let Some(after) = after {
            ranges.finish(Some(after.into()), Lsn(5));
        }
        let inner = inner.iter().map(|end| (*end).to_owned()).collect();
        NextRange { ranges, rows_before: 7, column: "\"id\"".into(), inner, up_to: up_to.map(str::to_owned) }
    }

    #[test]
    fn parts_meet_and_leave_nothing_out() {
        let whole = range(None, &[], None).conditions(true);
        assert_eq!(whole, [None]);
        let parts = range(Some("10"), &["15"], Some("20")).conditions(true);
        let expected = [
            "\"id\" > '10'::pg_catalog.int8 AND \"id\" <= '15'::pg_catalog.int8",
            "\"id\" > '15'::pg_catalog.int8 AND \"id\" <= '20'::pg_catalog.int8",
        ];
        assert_eq!(parts, expected.map(|condition| Some(condition.to_owned())));
        let of_leaves = range(Some("10"), &["15"], None).conditions(false);
        assert_eq!(of_leaves, [Some("\"id\" > '10'::pg_catalog.int8".to_owned())]);
    }
}
