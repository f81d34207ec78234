//! A replica: a PostgreSQL database that receives rows.
//!
//! Comes in: batches of row changes, in the order of the source. Goes out: the same rows in the replica's tables, with the
//! checkpoint in the same transactions, and receipts. Always holds (EXACTLY_ONCE.md, "Confirming a replica"):
//!
//! 1. Only whole source transactions become visible, in commit order: the replica's transaction is committed where one
//!    ends, and what of a batch lies behind that end goes into the next, which stays open until its own end has come.
//! 2. The checkpoint's row is replaced in that same transaction, under our epoch and over the row that we know; else
//!    another process has taken over, and everything is rolled back.
//! 3. A receipt is given only after a commit with `synchronous_commit = on`, which proves all those before it: they are
//!    committed without waiting for the disk, several source transactions at a time.
//! 4. Nothing in flight survives an error: the sink ends, and its successor goes on from what is stored.
//!
//! `session.rs` connects and takes the epoch, `record.rs` is the checkpoint, `table.rs` what a table is there; `plan.rs`
//! says what to do with a part of a batch, net changes where they fold (`fold.rs`); `apply.rs` does it: as sets (`sets.rs`),
//! by COPY (`copy.rs`), or one by one (`ordered.rs`, `decide.rs`), with the texts of `statements.rs` and the parameters of `params.rs`; the rows of an initial copy come by connections of their own
//! (`lane.rs`); `fetch.rs` asks the source for values that are not in the
//! WAL, `conflict.rs` keeps account of rows that do not fit.

mod session;
mod lane;
mod origin;
mod record;
mod schema;
mod table;
mod statements;
mod params;
mod fold;
mod plan;
mod apply;
mod sets;
mod binary;
mod copy;
mod ranges;
mod ordered;
mod decide;
mod fetch;
mod conflict;
mod sequences;
mod indexes;

pub use conflict::{CONFLICTS_TOTAL, ConflictKind};
pub use indexes::Indexer;
pub use lane::{Copier, Lane};
pub use origin::Origin;
pub use schema::{Made, Makes, Wanted};
pub use sequences::{Brought, ReplicaSequence};
pub use session::{ReplicaSession, forget, peek, stored};

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::apply::Applier;
use super::checkpoint::{Checkpoint, TableState};
use super::{Durable, Inbox, Sink, SinkLimits, Stop};
use crate::config::OnConflict;
use crate::error::{Error, Fault, Result};
use crate::lsn::Lsn;
use crate::route::batch::{Batch, More};
use crate::route::row::Targets;
use crate::wal::client::classify;
use crate::wal::url::ConnectUrl;

/// A transaction is committed when it holds this much, in bytes.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// A transaction is committed after this long, even if more is coming.
const GROUP_TIME_MAX: Duration = Duration::from_millis(100);
/// How often what is committed is proved durable while more is coming: each time the disk is waited for, a tenth of a second
/// after a quarter of one's writes.
const CONFIRM_TIME: Duration = Duration::from_secs(1);

/// What a replica's session needs.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// The replica's name in `replication.toml`.
    pub name: String,
    /// Where it is.
    pub url: ConnectUrl,
    /// The source, for values that are not in the WAL.
    pub source_url: ConnectUrl,
    /// `walgate/<source.name>.<slot>`: by it a successor finds our sessions.
    pub application_name: String,
    /// `<source.name>.<slot>`: the checkpoint's key.
    pub pipeline: String,
    /// What is done about rows that do not fit.
    pub on_conflict: OnConflict,
}

/// The replica's transaction.
#[derive(Debug)]
struct Open {
    since: Instant,
    bytes: usize,
    /// It ends where a source transaction does.
    is_whole: bool,
}

/// See the module.
pub struct ReplicaSink {
    session: ReplicaSession,
    applier: Applier,
    stop: Stop,
    checkpoint: Checkpoint,
    /// The replica's transaction, where one is open.
    open: Option<Open>,
    /// The checkpoint has moved, or states of tables wait, and this is not committed.
    is_dirty: bool,
    tables: Vec<TableState>,
    /// Sequence and safe LSN of batches without a receipt.
    waiting: VecDeque<(u64, Lsn)>,
    /// How many of them are committed as a whole.
    committed: usize,
    confirmed_at: Instant,
    /// Receipts that are not given yet.
    ready: Vec<Durable>,
    more: More,
}

impl ReplicaSink {
    fn new(
        session: ReplicaSession,
        checkpoint: Checkpoint,
        targets: Arc<Targets>,
        // Nothing of a batch is kept once it was accepted.
        _: SinkLimits,
        stop: Stop,
    ) -> Self {
        ReplicaSink {
            applier: Applier::new(&session.settings, targets, session.has_replica_role),
            session,
            stop,
            checkpoint,
            open: None,
            is_dirty: false,
            tables: Vec::new(),
            waiting: VecDeque::new(),
            committed: 0,
            confirmed_at: Instant::now(),
            ready: Vec::new(),
            more: More::default(),
        }
    }

    /// Applies a part of a batch in the open transaction, or in a new one.
    fn apply(&mut self, batch: &Batch, part: Range<usize>, is_whole: bool, inbox: &mut Inbox) -> Result<()> {
        let share = batch.bytes.len() / batch.rows.changes.len() * part.len();
        let ReplicaSink { session, applier, stop, open, .. } = self;
        let begins = open.is_none();
        session.link.run(stop, async |client| applier.apply(client, batch, part, begins, inbox).await)?;
        let open = open.get_or_insert(Open { since: Instant::now(), bytes: 0, is_whole });
        open.bytes += share;
        open.is_whole = is_whole;
        Ok(())
    }

    /// Commits the open transaction with the checkpoint, without waiting for the disk.
    fn commit(&mut self) -> Result<()> {
        self.stop.check()?;
        let ReplicaSink { session, applier, stop, checkpoint, tables, open, .. } = self;
        let ReplicaSession { link, record, settings, .. } = session;
        assert!(
            open.take().is_some_and(|open| open.is_whole),
            "only whole source transactions are committed"
        );
        link.run(stop, async |client| {
            record.replace(client, checkpoint, tables, false).await?;
            crate::failpoint::hit("replica.before-commit");
            client
                .batch_execute("COMMIT")
                .await
                .map_err(|error| refused_commit(&settings.name, applier, error))
        })?;
        crate::failpoint::hit("replica.after-commit");
        record.committed(checkpoint);
        applier.conflicts.committed();
        tables.clear();
        self.is_dirty = false;
        self.committed = self.waiting.len();
        Ok(())
    }

    /// Proves what is committed durable; gives its receipts.
    fn confirm(&mut self) -> Result<()> {
        self.stop.check()?;
        assert!(self.open.is_none(), "a commit of its own");
        crate::failpoint::hit("replica.before-confirm");
        let ReplicaSink { session, stop, checkpoint, tables, .. } = self;
        let ReplicaSession { link, record, .. } = session;
        link.run(stop, async |client| record.store(client, checkpoint, tables).await)?;
        crate::failpoint::hit("replica.after-confirm");
        tables.clear();
        if self.is_dirty {
            self.is_dirty = false;
            self.committed = self.waiting.len();
        }
        self.confirmed_at = Instant::now();
        let stored = self.checkpoint.safe_lsn;
        let proved = self.waiting.drain(..self.committed);
        self.ready.extend(proved.map(|(sequence, safe_lsn)| Durable::of(sequence, safe_lsn.min(stored))));
        self.committed = 0;
        Ok(())
    }
}

/// What a DEFERRABLE constraint refuses at the end stays refused.
fn refused_commit(replica: &str, applier: &Applier, error: tokio_postgres::Error) -> Error {
    let Some(answer) = error.as_db_error().filter(|answer| apply::is_about_data(answer.code().code())) else {
        return classify(error);
    };
    let constraint = answer.constraint().unwrap_or_default().to_owned();
    let target = applier.target(answer.schema().unwrap_or_default(), answer.table().unwrap_or_default());
    let refused = Error::definite(format!(
        "the replica {replica} refuses a transaction at its end, constraint {constraint}"
    ))
    .with_source(classify(error))
    .with_hint("remove rows of the replica that do not come from the source, or drop the constraint there");
    match target {
        Some(target) => target.blamed(refused, Fault::Rows),
        None => refused,
    }
}

impl Sink for ReplicaSink {
    fn accept(&mut self, batch: &Batch, inbox: &mut Inbox) -> Result<()> {
        let [whole, rest] = plan::parts(batch);
        if let Some((_, progress)) = &batch.rows.whole {
            if !whole.is_empty() {
                self.apply(batch, whole, true, inbox)?;
            } else if let Some(open) = &mut self.open {
                open.is_whole = true;
            }
            self.checkpoint.advance(progress);
            self.is_dirty = true;
        }
        self.tables.extend_from_slice(&batch.tables);
        if !rest.is_empty() {
            if self.open.as_ref().is_some_and(|open| open.is_whole) {
                self.commit()?;
            }
            // The next transaction may stay open for long, and be followed by others at once.
            let is_due = self.confirmed_at.elapsed() >= CONFIRM_TIME;
            if self.open.is_none() && self.committed > 0 && is_due {
                self.confirm()?;
            }
            self.apply(batch, rest, false, inbox)?;
        }
        self.waiting.push_back((batch.sequence, batch.progress.safe_lsn));
        self.more = batch.more;
        Ok(())
    }

    fn settle(&mut self, idle: bool, receipts: &mut Vec<Durable>) -> Result<()> {
        receipts.append(&mut self.ready);
        let may_wait = self.more.is_coming() && !idle;
        if let Some(open) = &self.open {
            if !open.is_whole {
                return Ok(());
            }
            if may_wait && open.bytes < GROUP_BYTES_MAX && open.since.elapsed() < GROUP_TIME_MAX {
                return Ok(());
            }
            self.commit()?;
        }
        let has_something = self.committed > 0 || self.is_dirty;
        if has_something && (idle || self.confirmed_at.elapsed() >= CONFIRM_TIME) {
            self.confirm()?;
            receipts.append(&mut self.ready);
        }
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        let is_inside = self.open.as_ref().is_some_and(|open| !open.is_whole);
        let is_waiting = self.open.is_some() || self.committed > 0 || self.is_dirty;
        (is_waiting && !is_inside).then(|| self.more.patience())
    }
}
