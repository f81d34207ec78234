//! `cleanup = "delete"`: rows of outbox tables go once the hub holds their events, beside the stream.
//!
//! Comes in: how far the hub has confirmed, and whether outbox rows came. Goes out: a task of its own with a session of its
//! own, which is ended with the stream; nothing waits for it but `--until-caught-up`. Always holds: a row is removed only
//! after the receipt for its event. No key is remembered for that; a sweep tells by the rows themselves:
//!
//! 1. It reads `x`, the smallest transaction id that may still be running (`pg_snapshot_xmin`), and then `L`, where the
//!    next WAL record will be written. Every transaction below `x`, sub-transactions included, has ended by then, and its
//!    commit record lies before `L`, since that is written before anybody takes the transaction for ended.
//! 2. It waits until the hub has confirmed `L`: all of them are durable there, by the copy or by the stream.
//! 3. It removes the rows whose `xmin` is below `x`. What was inserted later stays for the next sweep.
//!
//! So nothing is lost with the process: the first sweep of the next one finds what this one has left. A transaction that
//! stays open, in any database of the server, holds `x` back, and cleaning with it, never delivery. `xmin` has 32 bits: it is taken for the nearest id below
//! the next one. A row is older than half of them only when it has been there for two thousand million transactions;
//! then it is durable, whatever the comparison says. A table that was never copied (`snapshot = "never"`, once) may hold
//! rows that were never published: it is left alone. The deletes come back in the stream and are no events.
//!
//! Rows that somebody else has locked are skipped and come in a later sweep; so do those of a table that is locked as a
//! whole. (Rejected: remembering keys, which needs memory in step with what is in flight, and a sweep after a crash
//! nevertheless; a long transaction with the snapshot, which would keep the whole database from being vacuumed.)

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::Pipeline;
use super::start::Started;
use crate::config::Cleanup as CleanupMode;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::wal::client::{Client, classify, connect};

/// See the module: `x`, and how the next ids are counted.
const HORIZON: &str = "SELECT pg_catalog.pg_snapshot_xmin(s)::text::int8, pg_catalog.pg_snapshot_xmax(s)::text::int8 \
FROM pg_catalog.pg_current_snapshot() s";
/// `L`, in a statement after the one before. At a page's start it lies behind the page's header, which is no record.
const WRITTEN: &str = "SELECT (w.lsn - CASE WHEN w.at <= 40 THEN w.at ELSE 0 END)::pg_catalog.pg_lsn::text FROM (\
SELECT c.lsn, ((c.lsn - '0/0'::pg_catalog.pg_lsn) % pg_catalog.current_setting('wal_block_size')::numeric) AS at \
FROM pg_catalog.pg_current_wal_insert_lsn() c(lsn)) w";
/// How long a table's lock is waited for.
const SETTINGS: &str = "SET lock_timeout = '1s'";
/// Blocks of a table that one statement looks at, 1 MiB: what it removes at most is what they hold.
const BLOCKS: i64 = 128;
/// Between two sweeps while rows come.
const SWEEP_TIME: Duration = Duration::from_millis(200);
/// A pause is at least so many times the sweep before it: a table that was large once is read in whole each time.
const PAUSE_TIMES: u32 = 3;
/// Between two sweeps while rows are left that could not be removed, and after an error.
const RETRY_TIME: Duration = Duration::from_secs(5);
/// After an error that somebody must do something about: a right that is missing.
const DEFINITE_TIME: Duration = Duration::from_secs(60);
/// How long `--until-caught-up` waits for a sweep, and for transactions that hold it back.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the task is told by the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    confirmed: Lsn,
    /// Outbox rows so far.
    rows: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Cleanup(Option<Task>);

#[derive(Debug)]
struct Task {
    handle: JoinHandle<()>,
    told: watch::Sender<Told>,
    /// The last sweep that has ended.
    swept: watch::Receiver<Swept>,
    /// Since when `--until-caught-up` waits.
    waits_since: Option<Instant>,
    /// The ids below which it waits for.
    awaited: Option<i64>,
}

impl Cleanup {
    /// Of a pipeline whose copies are done.
    pub fn begin(pipeline: &Pipeline, started: &Started) -> Cleanup {
        let mut tables = Vec::new();
        for matched in &started.tables {
            let is_asked =
                matched.rule.outbox.as_ref().is_some_and(|outbox| outbox.cleanup == CleanupMode::Delete);
            let copied_at = started.states.get(&matched.table.oid).map(|state| state.copied_at);
            match copied_at {
                _ if !is_asked => {}
                Some(_) if matched.table.is_partitioned => tracing::warn!(
                    table = matched.table.display_name(),
                    "its rows are not removed: it is partitioned, so drop its partitions"
                ),
                Some(Lsn::ZERO) | None => tracing::warn!(
                    table = matched.table.display_name(),
                    remedy = format!(
                        "walgate resync --pipeline {} {}",
                        pipeline.short_name(),
                        matched.table.display_name()
                    ),
                    "its rows are not removed: it was never copied, so that some may never have been published"
                ),
                Some(_) => tables.push((matched.table.display_name(), matched.table.sql_name())),
            }
        }
        if tables.is_empty() {
            return Cleanup(None);
        }
        let (told, hears) = watch::channel(Told { confirmed: started.ledger.confirmed_lsn(), rows: 0 });
        let (tells, swept) = watch::channel(Swept::default());
        let pipeline = pipeline.clone();
        let handle = tokio::spawn(async move { sweep_for_ever(&pipeline, &tables, hears, &tells).await });
        Cleanup(Some(Task { handle, told, swept, waits_since: None, awaited: None }))
    }

    /// Something was confirmed; `rows` outbox rows came so far.
    pub fn tell(&self, confirmed: Lsn, rows: u64) {
        if let Some(task) = &self.0 {
            task.told.send_replace(Told { confirmed, rows });
        }
    }

    /// Whether what was inserted before `target`, which is confirmed, has been swept: with every transaction ended that
    /// ran when that was confirmed, or nothing left.
    pub fn is_done(&mut self, target: Lsn) -> bool {
        let Some(task) = &mut self.0 else { return true };
        let since = *task.waits_since.get_or_insert_with(Instant::now);
        let swept = *task.swept.borrow();
        if swept.written >= target {
            let awaited = *task.awaited.get_or_insert(swept.next);
            if swept.is_empty || swept.horizon >= awaited {
                return true;
            }
        }
        let is_late = since.elapsed() >= PATIENCE;
        if is_late {
            tracing::warn!(
                "rows of outbox tables are left: a transaction has been open for long; the next start goes on with them"
            );
        }
        is_late
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.handle.abort();
        }
    }
}

async fn sweep_for_ever(
    pipeline: &Pipeline,
    tables: &[(String, String)],
    mut hears: watch::Receiver<Told>,
    tells: &watch::Sender<Swept>,
) {
    let mut client = None;
    loop {
        let rows = hears.borrow_and_update().rows;
        let swept = sweep(pipeline, tables, &mut client, &mut hears, tells).await;
        let more_came = hears.borrow().rows > rows;
        let pause = match swept {
            Ok(swept) if more_came || pipeline.until_caught_up => SWEEP_TIME.max(swept.took * PAUSE_TIMES),
            Ok(swept) if swept.is_empty => {
                // Nothing is left: until something comes.
                if hears.wait_for(|told| told.rows > rows).await.is_err() {
                    return;
                }
                SWEEP_TIME
            }
            Ok(_) => RETRY_TIME,
            Err(error) => {
                let pause = if error.is_definite() { DEFINITE_TIME } else { RETRY_TIME };
                tracing::warn!(
                    pipeline = pipeline.slot,
                    remedy = error.hint().unwrap_or_default(),
                    "rows of an outbox could not be removed: {}; tried again in {} s",
                    error.chain(),
                    pause.as_secs()
                );
                client = None;
                pause
            }
        };
        sleep(pause).await;
    }
}

/// What came of a sweep.
#[derive(Clone, Copy, Debug, Default)]
struct Swept {
    /// `L`.
    written: Lsn,
    /// `x`, and the next id at that time.
    horizon: i64,
    next: i64,
    /// The tables hold nothing any more.
    is_empty: bool,
    /// How long removing took.
    took: Duration,
}

/// One sweep over all tables.
async fn sweep(
    pipeline: &Pipeline,
    tables: &[(String, String)],
    client: &mut Option<Client>,
    hears: &mut watch::Receiver<Told>,
    tells: &watch::Sender<Swept>,
) -> Result<Swept> {
    if client.is_none() {
        let opened = connect(&pipeline.url, &format!("{} cleanup", pipeline.application_name())).await?;
        opened.batch_execute(SETTINGS).await.map_err(classify)?;
        *client = Some(opened);
    }
    let client = client.as_ref().expect("opened above");
    let row = client.query_one(HORIZON, &[]).await.map_err(classify)?;
    let (horizon, next): (i64, i64) = (row.get(0), row.get(1));
    let row = client.query_one(WRITTEN, &[]).await.map_err(classify)?;
    let written: Lsn = row
        .get::<_, String>(0)
        .parse()
        .map_err(|error| Error::transient("the source's LSN cannot be read").with_source(error))?;
    let told = hears.wait_for(|told| told.confirmed >= written).await;
    drop(told.map_err(|_| Error::transient("the stream has ended"))?);
    crate::failpoint::hit("cleanup.before-delete");
    let begun_at = Instant::now();
    let mut is_empty = true;
    for (name, sql_name) in tables {
        let swept = sweep_table(client, name, sql_name, (horizon, next)).await;
        is_empty &= swept.map_err(|error| error.context(format_args!("table {name}")))?;
    }
    let swept = Swept { written, horizon, next, is_empty, took: begun_at.elapsed() };
    tells.send_replace(swept);
    Ok(swept)
}

/// Removes what may go of one table, some blocks at a time; whether nothing is left.
async fn sweep_table(
    client: &Client,
    name: &str,
    sql_name: &str,
    (horizon, next): (i64, i64),
) -> Result<bool> {
    // The nearest id below the next one that has these 32 bits.
    let xmin = "r.xmin::text::int8";
    let older =
        format!("$2::int8 - ((($2::int8 - {xmin}) % 4294967296 + 4294967296) % 4294967296) < $1::int8");
    // A row that was changed meanwhile has another `xmin`, which is looked at again; one that is locked cannot change.
    let delete = client
        .prepare(&format!(
            "DELETE FROM ONLY {sql_name} d WHERE d.ctid = ANY (ARRAY(SELECT r.ctid FROM ONLY {sql_name} r \
             WHERE r.ctid >= $3::text::pg_catalog.tid AND r.ctid < $4::text::pg_catalog.tid AND {older} \
             FOR UPDATE SKIP LOCKED))"
        ))
        .await
        .map_err(classify)?;
    let blocks = client
        .query_one(
            "SELECT pg_catalog.pg_relation_size($1::text::regclass) / pg_catalog.current_setting('block_size')::int8",
            &[&sql_name],
        )
        .await
        .map_err(classify)?;
    let blocks: i64 = blocks.get(0);
    let mut removed = 0;
    for from in (0..blocks).step_by(usize::try_from(BLOCKS).expect("a small number")) {
        let (first, end) = (format!("({from},0)"), format!("({},0)", from + BLOCKS));
        removed += client.execute(&delete, &[&horizon, &next, &first, &end]).await.map_err(classify)?;
        crate::failpoint::hit("cleanup.after-delete");
    }
    if removed > 0 {
        tracing::debug!(table = name, removed, "rows of an outbox were removed");
    }
    let left = client.query_one(&format!("SELECT EXISTS (SELECT FROM ONLY {sql_name})"), &[]).await;
    Ok(!left.map_err(classify)?.get::<_, bool>(0))
}
