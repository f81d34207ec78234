//! A table's net changes as a few statements.
//!
//! Comes in: entries of a fold. Goes out: one statement for each kind and for each set of unchanged columns, sent one
//! behind the other without waiting in between. Always holds: deletes come first, since what they free may be needed; a row
//! that should be there and is not, or the other way round, ends the attempt, so that it is found row by row.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio_postgres::types::ToSql;

use super::apply::{Applier, Prepared, Trouble};
use super::copy::copy;
use super::params::{Cells, Column};
use super::plan::Set;
use super::statements::{Kind, Mask, Of};
use crate::error::{Error, Result};
use crate::wal::client::Client;

impl Applier {
    /// A table's net changes. Deletes first: what they free may be needed.
    pub(super) async fn set(
        &mut self,
        client: &Client,
        cells: &mut Cells<'_>,
        index: usize,
        mut set: Set,
    ) -> Result<(), Trouble> {
        let table = self.table(index);
        let width = table.width();
        if !set.groups.incomplete.is_empty() {
            let incomplete = std::mem::take(&mut set.groups.incomplete);
            let filled = self.source.fill(cells, &table, &incomplete).await?;
            set.groups.inserts.extend(filled.into_iter().flatten());
        }
        let Set { groups, mut copied } = set;
        let mut work = Vec::new();
        for (rows, touches) in [
            (&groups.deletes, Touches::All),
            (&groups.uncertain_deletes, Touches::Any),
            (&groups.absent, Touches::None),
        ] {
            self.plan_work(client, index, Kind::DeleteSet, Mask::new(), rows, touches, &mut work).await?;
        }
        for (mask, is_certain, rows) in &groups.updates {
            let touches = if *is_certain { Touches::All } else { Touches::Any };
            self.plan_work(client, index, Kind::UpdateSet, mask.clone(), rows, touches, &mut work).await?;
        }
        self.plan_work(client, index, Kind::UpsertSet, Mask::new(), &groups.upserts, Touches::Any, &mut work)
            .await?;
        if !groups.is_copied() {
            self.plan_work(
                client,
                index,
                Kind::InsertSet,
                Mask::new(),
                &groups.inserts,
                Touches::Any,
                &mut work,
            )
            .await?;
        }
        // It is written while the server is at the statements before.
        let writing = async {
            tokio::task::yield_now().await;
            if copied.is_none() {
                copied = groups.copied(&table, cells);
            }
        };
        let (counts, ()) = tokio::join!(run_all(client, cells, width, &work), writing);
        let counts = counts?;
        let mut missing_of = Vec::new();
        for (one, count) in work.iter().zip(counts) {
            let has_missing = count < u64::try_from(one.rows.len()).unwrap_or(u64::MAX);
            if has_missing && one.touches == Touches::All {
                return Err(Trouble::Again(Error::transient(format!(
                    "{} has not all rows that were to change",
                    table.name
                ))));
            }
            if count > 0 && one.touches == Touches::None {
                return Err(Trouble::Again(Error::transient(format!(
                    "{} has rows that were to be new",
                    table.name
                ))));
            }
            if has_missing && one.kind == Kind::UpdateSet {
                missing_of.push(one.rows);
            }
        }
        if let Some(copied) = copied {
            let prepared = self.prepared(client, index, copied.kind, Mask::new()).await?;
            copy(client, &prepared.statement, copied).await?;
        }
        for rows in missing_of {
            self.insert_missing(client, cells, index, rows).await?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    async fn plan_work<'r>(
        &mut self,
        client: &Client,
        index: usize,
        kind: Kind,
        mask: Mask,
        rows: &'r [usize],
        touches: Touches,
        work: &mut Vec<Work<'r>>,
    ) -> Result<()> {
        if !rows.is_empty() {
            let prepared = self.prepared(client, index, kind, mask).await?;
            work.push(Work { prepared, kind, rows, touches });
        }
        Ok(())
    }

    /// Inserts those of `rows` that are not there.
    async fn insert_missing(
        &mut self,
        client: &Client,
        cells: &mut Cells<'_>,
        index: usize,
        rows: &[usize],
    ) -> Result<(), Trouble> {
        let table = self.table(index);
        let width = table.width();
        let prepared = self.prepared(client, index, Kind::Missing, Mask::new()).await?;
        let missing: Vec<usize> = {
            let columns = columns(cells, rows, width, &prepared);
            let found = client.query(&prepared.statement, &as_parameters(&columns)).await?;
            let number =
                |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i64>(0)).unwrap_or(usize::MAX);
            found.iter().filter_map(|row| rows.get(number(row).wrapping_sub(1)).copied()).collect()
        };
        let filled = self.source.fill(cells, &table, &missing).await?;
        let filled: Vec<usize> = filled.into_iter().flatten().collect();
        let mut work = Vec::new();
        self.plan_work(client, index, Kind::UpsertSet, Mask::new(), &filled, Touches::Any, &mut work).await?;
        run_all(client, cells, width, &work).await?;
        Ok(())
    }
}

/// How many of its rows a statement must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touches {
    All,
    Any,
    None,
}

/// A statement about to run.
struct Work<'r> {
    prepared: Arc<Prepared>,
    kind: Kind,
    rows: &'r [usize],
    touches: Touches,
}

/// Runs statements, one behind the other without waiting in between; how many rows each one touched.
async fn run_all(
    client: &Client,
    cells: &Cells<'_>,
    width: usize,
    work: &[Work<'_>],
) -> Result<Vec<u64>, Trouble> {
    let columns: Vec<Vec<Column<'_>>> =
        work.iter().map(|one| columns(cells, one.rows, width, &one.prepared)).collect();
    let running = work.iter().zip(&columns).map(|(one, columns)| async move {
        client.execute(&one.prepared.statement, &as_parameters(columns)).await
    });
    let mut counts = Vec::with_capacity(work.len());
    // The first error is the cause of the others.
    for count in join_all(running).await {
        counts.push(count?);
    }
    Ok(counts)
}

fn columns<'c>(
    cells: &'c Cells<'_>,
    rows: &'c [usize],
    width: usize,
    prepared: &Prepared,
) -> Vec<Column<'c>> {
    let parameters = prepared.parameters.iter();
    let column = |of: &Of| {
        let (Of::Old(at) | Of::New(at)) = of;
        Column { cells, rows, at: *at, width }
    };
    parameters.map(column).collect()
}

fn as_parameters<'c>(columns: &'c [Column<'_>]) -> Vec<&'c (dyn ToSql + Sync)> {
    columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect()
}
