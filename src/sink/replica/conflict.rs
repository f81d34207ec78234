//! Conflicts: where the replica's rows are not what the source's change says they were.
//!
//! Comes in: conflicts, as they are found. Goes out: rows of `walgate.conflict`, in the same transaction as the rows they
//! speak of, and counts, when that is committed. Always holds: what is rolled back is neither written nor counted; a
//! pipeline keeps about 10 000 of them, and none for longer than 30 days.

use std::time::{Duration, Instant};

use metrics::counter;
use tokio_postgres::types::PgLsn;

use crate::change::Position;
use crate::config::OnConflict;
use crate::error::Result;
use crate::wal::client::{Client, classify};

/// Conflicts, by pipeline, relation and kind.
pub const CONFLICTS_TOTAL: &str = "walgate_conflicts_total";

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// A row that the source inserted was there.
    InsertExists,
    /// A row that the source updated was not.
    UpdateMissing,
    /// A row that the source deleted was not.
    DeleteMissing,
}

impl ConflictKind {
    /// Its name in `walgate.conflict` and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            ConflictKind::InsertExists => "insert_exists",
            ConflictKind::UpdateMissing => "update_missing",
            ConflictKind::DeleteMissing => "delete_missing",
        }
    }
}

const ENTER: &str = "INSERT INTO walgate.conflict \
    (pipeline, relation, kind, resolution, key, commit_lsn, ordinal, replica_row) \
    SELECT $1, u.relation, u.kind, $2, u.key::json, u.commit_lsn, u.ordinal, u.replica_row::json \
    FROM unnest($3::text[], $4::text[], $5::text[], $6::pg_lsn[], $7::bigint[], $8::text[]) \
    AS u (relation, kind, key, commit_lsn, ordinal, replica_row)";
const PRUNE: &str = "DELETE FROM walgate.conflict WHERE pipeline = $1 AND (at < pg_catalog.now() - '30 days'::interval \
    OR id <= (SELECT id FROM walgate.conflict WHERE pipeline = $1 ORDER BY id DESC OFFSET 10000 LIMIT 1))";
/// A larger row of the replica is not kept with its conflict, in bytes.
const ROW_BYTES_MAX: usize = 64 << 10;
/// How long conflicts gather before old ones are looked for.
const PRUNE_TIME: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Debug)]
pub(super) struct Conflict {
    pub relation: String,
    pub kind: ConflictKind,
    /// As JSON.
    pub key: String,
    pub position: Position,
    /// As JSON, where there was one.
    pub replica_row: Option<String>,
}

/// Those of the open transaction.
#[derive(Debug)]
pub(super) struct Conflicts {
    pipeline: String,
    policy: OnConflict,
    /// Found, not written yet.
    found: Vec<Conflict>,
    /// Written, not committed yet.
    written: Vec<(String, ConflictKind)>,
    pruned_at: Option<Instant>,
}

impl Conflicts {
    pub fn new(pipeline: String, policy: OnConflict) -> Self {
        Conflicts { pipeline, policy, found: Vec::new(), written: Vec::new(), pruned_at: None }
    }

    pub fn policy(&self) -> OnConflict {
        self.policy
    }

    /// Takes one.
    pub fn enter(&mut self, mut conflict: Conflict) {
        conflict.replica_row = conflict.replica_row.filter(|row| row.len() <= ROW_BYTES_MAX);
        self.found.push(conflict);
    }

    /// What was found since the last writing was rolled back.
    pub fn roll_back(&mut self) {
        self.found.clear();
    }

    /// Writes what was found, in the open transaction.
    pub async fn write(&mut self, client: &Client) -> Result<()> {
        if self.found.is_empty() {
            return Ok(());
        }
        let found = &self.found;
        let column = |of: fn(&Conflict) -> &str| found.iter().map(of).collect::<Vec<_>>();
        let lsns: Vec<PgLsn> = found.iter().map(|one| PgLsn::from(one.position.commit_lsn.0)).collect();
        let ordinals: Vec<i64> =
            found.iter().map(|one| i64::try_from(one.position.ordinal).unwrap_or(i64::MAX)).collect();
        let rows: Vec<Option<&str>> = found.iter().map(|one| one.replica_row.as_deref()).collect();
        client
            .execute(
                ENTER,
                &[
                    &self.pipeline,
                    &self.policy.name(),
                    &column(|one| &one.relation),
                    &column(|one| one.kind.name()),
                    &column(|one| &one.key),
                    &lsns,
                    &ordinals,
                    &rows,
                ],
            )
            .await
            .map_err(classify)?;
        if self.pruned_at.is_none_or(|at| at.elapsed() > PRUNE_TIME) {
            self.pruned_at = Some(Instant::now());
            client.execute(PRUNE, &[&self.pipeline]).await.map_err(classify)?;
        }
        self.written.extend(self.found.drain(..).map(|one| (one.relation, one.kind)));
        Ok(())
    }

    /// What was written is committed: it counts.
    pub fn committed(&mut self) {
        // Metrics name a pipeline by its slot, which has no dot.
        let slot = self.pipeline.rsplit('.').next().unwrap_or_default();
        for (relation, kind) in self.written.drain(..) {
            tracing::debug!(relation, kind = kind.name(), "conflict on the replica");
            let labels =
                [("pipeline", slot.to_owned()), ("relation", relation), ("kind", kind.name().to_owned())];
            counter!(CONFLICTS_TOTAL, &labels).increment(1);
        }
    }
}
