//! Which tables are copied in ranges of their key, and how far that has come when an attempt starts.
//!
//! Comes in: tables whose copy is not done, what is stored about them, the catalog, the replica. Goes out: for each that is
//! copied in ranges the column by which it is cut. Always holds: a copy that was begun in ranges goes on in the same ones,
//! or the table is copied anew. What ranges are, and why that is exact: `route/ranges.rs`.
//!
//! Only for replicas. An event of a key change must tell the values that did not change, which in the WAL are missing; a
//! hub that gets half a table has no row to take them from, and an aggregate's order would be broken by `read` events that
//! come between its changes. So a hub gets whole copies, and its stream waits for them.

use std::collections::BTreeMap;

use super::Pipeline;
use super::start::{MatchedTable, blocking};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::route::filter::EnumLabels;
use crate::route::ranges::{KeyKind, Ranges};
use crate::route::row::Targets;
use crate::route::row_plan::RowPlan;
use crate::route::selection::SelectionContext;
use crate::route::value::TypeCatalog;
use crate::sink::checkpoint::TableState;
use crate::sink::destination::OpenDestination;
use crate::wal::client::{Client, classify};

/// Columns of the table $1 that cannot be NULL and lead an index by which rows are found in their order; of text only what
/// compares bytes of UTF-8. The primary key's first.
const CANDIDATES: &str = "\
SELECT a.attname::text, a.atttypid FROM pg_catalog.pg_index i \
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = c.relam AND m.amname = 'btree' \
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation \
WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NULL AND a.attnotnull AND i.indcollation[0] = a.attcollation \
  AND (a.attcollation = 0 OR EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database() \
       AND d.encoding = pg_catalog.pg_char_to_encoding('UTF8') AND CASE l.collprovider \
         WHEN 'c' THEN l.collcollate IN ('C', 'POSIX') \
         WHEN 'd' THEN d.datcollate IN ('C', 'POSIX') AND COALESCE(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') = 'c' \
         ELSE false END)) \
ORDER BY i.indisprimary DESC, i.indexrelid";

/// About how many rows the table $1 has, its partitions included. What was never analyzed is taken for rows of 80 bytes.
const ESTIMATE: &str = "\
SELECT COALESCE(sum(CASE WHEN c.reltuples > 0 AND c.relpages > 0 THEN c.reltuples / c.relpages ELSE 100 END \
  * (pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int8)), 0)::int8 \
FROM pg_catalog.pg_class c WHERE c.relkind = 'r' \
  AND (c.oid = $1 OR c.oid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree($1::oid::regclass) p))";

/// A table that is copied in ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangedTable {
    /// The column by which it is cut.
    pub column: String,
    /// How its values compare.
    pub kind: KeyKind,
    /// About how many rows the whole table has.
    pub rows_estimated: u64,
}

/// Tables that are copied in ranges, by OID.
pub type RangedTables = BTreeMap<u32, RangedTable>;

/// What plans of rows are made from.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Types by OID.
    pub types: &'a TypeCatalog,
    /// Labels of enums.
    pub enums: &'a EnumLabels,
    /// Tables of the replica.
    pub targets: &'a Targets,
}

/// Finds the tables to be copied in ranges among those of `tables` that are not done. Of one whose copy has begun in ranges
/// that cannot go on, `states` says nothing any more.
///
/// # Errors
/// As the connections.
pub async fn find(
    pipeline: &Pipeline,
    client: &Client,
    mut destination: OpenDestination,
    tables: &[MatchedTable],
    context: Context<'_>,
    states: &mut BTreeMap<u32, TableState>,
) -> Result<(OpenDestination, RangedTables)> {
    let mut ranged = RangedTables::new();
    let rows_max = pipeline.config.source.snapshot_range_rows;
    let Context { types, enums, targets } = context;
    for matched in tables {
        let table = &matched.as_sent();
        let state = states.get(&table.oid);
        if pipeline.replica.is_none() || state.is_some_and(|state| state.done || state.parked().is_some()) {
            continue;
        }
        let before = state.and_then(|state| state.ranges.clone());
        let rows = client.query_one(ESTIMATE, &[&table.oid]).await.map_err(classify)?;
        let rows_estimated = u64::try_from(rows.get::<_, i64>(0)).unwrap_or(0);
        if before.is_none() && (rows_max == 0 || rows_estimated <= rows_max) {
            continue;
        }
        let relation = table.relation();
        let context =
            SelectionContext { types, enums, primary_key: &table.primary_key, facts: &matched.facts };
        let plan = RowPlan::compile(context, &relation, &matched.rule, targets, Lsn::ZERO)?;
        let is_key = |name: &str| plan.selection.key.iter().any(|at| plan.selection.column_name(*at) == name);
        let rows = client.query(CANDIDATES, &[&table.oid]).await.map_err(classify)?;
        let mut candidates = rows.iter().filter_map(|row| {
            let column = row.get::<_, String>(0);
            Some((KeyKind::of(row.get(1)).filter(|_| is_key(&column))?, column))
        });
        let found = match &before {
            None => candidates.next(),
            Some(before) => {
                candidates.find(|(kind, column)| (*kind, column) == (before.kind, &before.column))
            }
        };
        let obstacle = match &found {
            None => Some("no index begins with a column of its key whose order is certain".to_owned()),
            Some((_, column)) => {
                let mut known = Vec::new();
                targets.refresh(&mut known);
                let target = known.get(plan.target.index()).expect("a plan's target is interned").clone();
                let (opened, obstacle) = obstacle(destination, target, column.clone()).await?;
                destination = opened;
                obstacle
            }
        };
        let name = table.display_name();
        match (found, obstacle) {
            (Some((kind, column)), None) => {
                tracing::info!(table = name, column, rows_estimated, "is copied in ranges of its key");
                ranged.insert(table.oid, RangedTable { column, kind, rows_estimated });
            }
            (_, reason) => {
                let reason = reason.unwrap_or_default();
                tracing::info!(table = name, reason, "is large, and is copied as a whole");
                if let Some(state) = states.get_mut(&table.oid) {
                    *state = state.undone();
                }
            }
        }
    }
    Ok((destination, ranged))
}

async fn obstacle(
    mut destination: OpenDestination,
    target: std::sync::Arc<crate::route::row::Target>,
    column: String,
) -> Result<(OpenDestination, Option<String>)> {
    blocking(move || {
        let obstacle = destination.obstacle(&target, &column)?;
        Ok((destination, obstacle))
    })
    .await
}

/// Makes ranges one that take the same from `safe_lsn` on. A table whose ranges are all copied and passed is in doubt up to
/// what is committed now, `source_lsn`; behind that it is a table like any other. Returns what must be stored.
pub fn settle(states: &mut BTreeMap<u32, TableState>, safe_lsn: Lsn, source_lsn: Lsn) -> Vec<TableState> {
    let mut changed = Vec::new();
    for state in states.values_mut() {
        let Some(ranges) = &mut state.ranges else { continue };
        ranges.merge(safe_lsn);
        if !ranges.is_complete() || ranges.copied_at() > safe_lsn {
            continue;
        }
        match ranges.doubt_to {
            None => ranges.doubt_to = Some(source_lsn),
            Some(doubt_to) if doubt_to <= safe_lsn => state.ranges = None,
            Some(_) => continue,
        }
        changed.push(state.clone());
    }
    changed
}

/// The ranges of a table that is copied so, or was until a moment ago; `None`: it is copied as a whole.
pub fn ranges_of(ranged: &RangedTables, state: Option<&TableState>, oid: u32) -> Option<Ranges> {
    let begun = state.and_then(|state| state.ranges.clone());
    begun.or_else(|| ranged.get(&oid).map(|table| Ranges::new(table.column.clone(), table.kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_table_is_in_doubt_until_the_stream_has_come_to_where_the_source_was() {
        let mut ranges = Ranges::new("id".into(), KeyKind::Integer);
        ranges.finish(Some("5".into()), Lsn(10));
        ranges.finish(None, Lsn(20));
        let state = TableState {
            oid: 1,
            schema: "public".into(),
            table: "t".into(),
            key: vec!["id".into()],
            selection: None,
            copied_at: Lsn(20),
            done: true,
            rows: 9,
            root: None,
            ranges: Some(ranges),
            parked: None,
            shape: None,
        };
        let mut states = BTreeMap::from([(1, state)]);
        assert!(settle(&mut states, Lsn(15), Lsn(90)).is_empty(), "the stream has not passed the last range");
        assert_eq!(settle(&mut states, Lsn(20), Lsn(90)).len(), 1);
        assert!(settle(&mut states, Lsn(89), Lsn(200)).is_empty());
        assert_eq!(settle(&mut states, Lsn(90), Lsn(200)).len(), 1);
        assert_eq!(states.get(&1).and_then(|state| state.ranges.clone()), None);
    }
}
