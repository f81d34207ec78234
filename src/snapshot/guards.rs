//! The guards before a row is read (EXACTLY_ONCE.md, "Copying a table", points 2 and 3).

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::pipeline::start::MatchedTable;
use crate::wal::client::{Client, classify};

/// Transactions that the exported snapshot `$1` counts as committed and an ordinary snapshot does not.
const UNSETTLED: &str = "SELECT pg_catalog.count(*) FROM pg_catalog.generate_series( \
pg_catalog.pg_snapshot_xmin($1::text::pg_snapshot)::text::int8, pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)::text::int8 - 1) x \
WHERE pg_catalog.pg_visible_in_snapshot(x::text::xid8, $1::text::pg_snapshot) \
AND NOT pg_catalog.pg_visible_in_snapshot(x::text::xid8, pg_catalog.pg_current_snapshot())";

/// Read in the snapshot, pg_class gives the old file; the function gives the current one.
const REPLACED: &str = "SELECT oid FROM pg_catalog.pg_class WHERE relkind IN ('r', 'm', 't') \
AND relfilenode <> 0 AND relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(oid)";

const LEAVES: &str = "SELECT t.relid::pg_catalog.regclass::text FROM pg_catalog.pg_partition_tree($1::oid::regclass) t WHERE t.isleaf";

/// A commit takes moments to become visible after its record is written, unless it waits for a
/// synchronous standby.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// Waits until every commit that the snapshot counts is visible to everybody. Whoever reads before
/// takes rows for aborted and sets hint bits that lose them on the source as well.
///
/// # Errors
/// Transient when it takes too long.
pub async fn settle(keeper: &Client, ordinary: &Client) -> Result<()> {
    let row =
        keeper.query_one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await.map_err(classify)?;
    let exported: String = row.get(0);
    if !counts_recent(&exported) {
        return Ok(());
    }
    let deadline = tokio::time::Instant::now() + SETTLE_TIME_MAX;
    loop {
        let row = ordinary.query_one(UNSETTLED, &[&exported]).await.map_err(classify)?;
        if row.get::<_, i64>(0) == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::transient(
                "commits that the snapshot counts did not become visible within 60 s",
            )
            .with_hint("is a synchronous standby down? The commits wait for it"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a snapshot's text, `xmin:xmax:xip`, has any transaction between its bounds. A decoder's snapshot may
/// even have xmin > xmax, after an abort (seen), which the server prints and then refuses to read.
fn counts_recent(snapshot: &str) -> bool {
    let mut bounds = snapshot.split(':').map(str::parse::<u64>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(xmin)), Some(Ok(xmax))) => xmin < xmax,
        // The server judges what we do not know.
        _ => true,
    }
}

/// Locks every table, and every leaf of a partitioned one, against rewrites until the copy is done.
///
/// # Errors
/// Transient: a table was dropped meanwhile, or the lock was not to be had.
pub async fn lock(keeper: &Client, tables: &[MatchedTable]) -> Result<()> {
    for matched in tables {
        let table = &matched.table;
        let mut names = vec![table.sql_name()];
        if table.is_partitioned {
            let leaves = keeper.query(LEAVES, &[&table.oid]).await.map_err(classify)?;
            names.extend(leaves.iter().map(|row| row.get::<_, String>(0)));
        }
        let statement = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", names.join(", ONLY "));
        keeper.batch_execute(&statement).await.map_err(|error| {
            let error = classify(error).context(format_args!("table {}", table.display_name()));
            match crate::wal::sqlstate::sqlstate_of(&error) {
                // Dropped or renamed since it was listed: the next attempt lists again.
                Some("42P01" | "3F000") => Error::transient(error.chain()),
                _ => error,
            }
        })?;
    }
    Ok(())
}

/// OIDs of tables whose file is not the one that the snapshot knows: TRUNCATE and rewrites are not
/// MVCC-safe, a copy would find nothing.
///
/// # Errors
/// As the connection.
pub async fn replaced(keeper: &Client) -> Result<BTreeSet<u32>> {
    let rows = keeper.query(REPLACED, &[]).await.map_err(classify)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_whose_bounds_have_passed_each_other_counts_nothing_recent() {
        assert!(counts_recent("10:20:10,14,15"));
        assert!(!counts_recent("20:20:"));
        assert!(!counts_recent("11261:11260:"));
    }
}
