//! The connection with a replica: opened, set up, and owned by one process at a time.
//!
//! Comes in: the settings and the source's identity. Goes out: a session that holds the pipeline's newest epoch, and
//! what is stored. Always holds: the epoch was taken by a synchronous commit before anything was read, so what was
//! read is durable, and nobody before us can write any more (EXACTLY_ONCE.md, "Who runs"). Blocking: the session has
//! a runtime of its own, which runs only while something is asked of it, on whatever thread that is; never inside of
//! another runtime's tasks. Manual: "Asynchronous Commit", `session_replication_role`.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

use super::lane::Copier;
use super::origin::Origin;
use super::record::{Record, forget_rows, read_stored};
use super::{ReplicaSettings, ReplicaSink};
use crate::error::{Error, Result};
use crate::migrations::{self, Side};
use crate::route::row::Targets;
use crate::sink::checkpoint::{Checkpoint, Identity, Stored, TableState};
use crate::sink::{SinkLimits, Stop};
use crate::wal::client::{Client, classify, connect};
use crate::wal::server::Server;
use crate::wal::sqlstate::{INSUFFICIENT_PRIVILEGE, sqlstate_of};
use crate::wal::url::ConnectUrl;

/// What every session sets, whatever its role and database say. Plans are made once for a statement, of any number of
/// rows, and must be those of a large table though it is small or unknown now: by index, row for row.
const SETTINGS: &str = "SET synchronous_commit = off; SET idle_session_timeout = 0; \
    SET default_transaction_read_only = off; SET default_transaction_isolation = 'read committed'; \
    SET array_nulls = on; SET xmloption = content; SET plan_cache_mode = force_generic_plan; \
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off";
/// A replica's transaction lasts as long as the source's, whatever limit the role has. Since PostgreSQL 17, therefore not
/// among the settings that every connection has from its start, as the other limits of time are.
const NO_TRANSACTION_TIMEOUT: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
    WHERE name = 'transaction_timeout'";
const REPLICA_ROLE: &str = "SET session_replication_role = replica";
/// `pg_terminate_backend` waits, and `idle_session_timeout` exists, from here on.
const VERSION_MIN: i32 = 140_000;
/// Ends our predecessor's sessions, which may hold locks in an open transaction, and waits up to 5 s for each.
const END_PREDECESSOR: &str = "SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity \
    WHERE application_name = pg_catalog.current_setting('application_name') AND usename = current_user \
    AND datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()";
/// The clock makes epochs differ from those of a row that was removed and is there again.
const TAKE_EPOCH: &str = "INSERT INTO walgate.checkpoint AS c (pipeline, epoch) \
    VALUES ($1, (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint) \
    ON CONFLICT (pipeline) DO UPDATE SET epoch = greatest(c.epoch + 1, excluded.epoch) RETURNING epoch";
/// A row that is locked for longer belongs to somebody whom we could not end.
const BEGIN_EPOCH: &str = "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '10s'";
const SCHEMA_EXISTS: &str = "SELECT pg_catalog.to_regclass('walgate.copied_table') IS NOT NULL";

/// The longest name that the server keeps, in bytes.
const NAME_BYTES_MAX: usize = 63;
/// How often a statement that lasts asks whether it is still wanted.
const STOP_CHECK_TIME: Duration = Duration::from_millis(100);

/// A connection and the runtime that drives it.
pub(super) struct Link {
    pub(super) client: Option<Client>,
    runtime: Option<Runtime>,
}

impl Link {
    pub(super) fn open(url: &ConnectUrl, application_name: &str) -> Result<Link> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::transient("no runtime can be made").with_source(error))?;
        let client = runtime.block_on(connect(url, application_name))?;
        Ok(Link { client: Some(client), runtime: Some(runtime) })
    }

    /// Runs `work` with the connection; gives up when `stop` says so.
    pub(super) fn run<T>(&mut self, stop: &Stop, work: impl AsyncFnOnce(&Client) -> Result<T>) -> Result<T> {
        let client = self.client.as_ref().expect("a link has its client until it is dropped");
        let runtime = self.runtime.as_ref().expect("a link has its runtime until it is dropped");
        drive(runtime, stop, work(client))
    }

    /// Runs `work` with the connection alone.
    pub(super) fn run_mut<T>(&mut self, work: impl AsyncFnOnce(&mut Client) -> Result<T>) -> Result<T> {
        let client = self.client.as_mut().expect("a link has its client until it is dropped");
        let runtime = self.runtime.as_ref().expect("a link has its runtime until it is dropped");
        runtime.block_on(work(client))
    }
}

pub(super) fn drive<T>(runtime: &Runtime, stop: &Stop, work: impl Future<Output = Result<T>>) -> Result<T> {
    runtime.block_on(async {
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(STOP_CHECK_TIME, &mut work).await {
                Ok(done) => return done,
                Err(_) => stop.check()?,
            }
        }
    })
}

impl Drop for Link {
    fn drop(&mut self) {
        self.client = None;
        // Also where a task of another runtime drops it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A session that owns the pipeline's record on a replica.
pub struct ReplicaSession {
    pub(super) link: Link,
    pub(super) settings: ReplicaSettings,
    pub(super) record: Record,
    /// Whether triggers and foreign keys are off for it.
    pub(super) has_replica_role: bool,
}

impl ReplicaSession {
    /// Connects, sets the session, makes Walgate's own tables where they are missing, ends the predecessor's sessions,
    /// takes the epoch, sets the replication origin where it may, and reads what is stored. Blocks.
    ///
    /// # Errors
    /// As the connection; definite when the URL leads to the source itself, rights are missing, or what is stored is
    /// of a newer version.
    pub fn open(settings: ReplicaSettings, source: &Identity) -> Result<(ReplicaSession, Stored)> {
        let failed = |error: Error| error.context(format_args!("replica {}", settings.name));
        let mut link =
            Link::open(&settings.url, &session_name(&settings.application_name)).map_err(failed)?;
        let opened = link.run_mut(async |client| {
            refuse_server(client, &settings, source).await?;
            let has_replica_role = set_up(client).await?;
            migrations::apply(client, Side::Replica).await.map_err(|error| needs_rights(error, &settings))?;
            end_predecessor(client).await?;
            let epoch = take_epoch(client, &settings.pipeline).await?;
            Origin::find(client, &settings.pipeline).await?.set_up(client, &settings.name).await?;
            let stored = read_stored(client, &settings.pipeline).await?;
            let record = Record::new(client, &settings, epoch, stored.checkpoint.as_ref()).await?;
            Ok((record, stored, has_replica_role))
        });
        let (record, stored, has_replica_role) = opened.map_err(failed)?;
        if !has_replica_role {
            tracing::warn!(
                replica = settings.name,
                "session_replication_role cannot be set: triggers fire and foreign keys are checked there, and what has them is applied row by row"
            );
        }
        Ok((ReplicaSession { link, settings, record, has_replica_role }, stored))
    }

    /// Stores the pipeline's record and states of tables at once, durably.
    ///
    /// # Errors
    /// As the connection; fenced when another process has taken over.
    pub fn store(&mut self, checkpoint: &Checkpoint, tables: &[TableState]) -> Result<()> {
        let ReplicaSession { link, record, .. } = self;
        link.run(&Stop::default(), async |client| record.store(client, checkpoint, tables).await)
    }

    /// Whether triggers and foreign keys are off for it.
    pub fn has_replica_role(&self) -> bool {
        self.has_replica_role
    }

    /// What copies into the replica beside it, as long as it has the newest epoch.
    pub fn copier(&self, targets: Arc<Targets>) -> Copier {
        Copier::new(self.settings.clone(), self.record.ownership.clone(), targets)
    }

    /// Becomes a sink that goes on from `checkpoint`.
    pub fn into_sink(
        self,
        checkpoint: Checkpoint,
        targets: Arc<Targets>,
        limits: SinkLimits,
        stop: Stop,
    ) -> ReplicaSink {
        ReplicaSink::new(self, checkpoint, targets, limits, stop)
    }
}

/// What is stored, read beside the running process. Blocks.
///
/// # Errors
/// As the connection; definite when what is stored is of a newer version.
pub fn peek(settings: &ReplicaSettings) -> Result<Stored> {
    let mut link = Link::open(&settings.url, "walgate")?;
    link.run_mut(async |client| stored(client, &settings.pipeline).await)
        .map_err(|error| error.context(format_args!("replica {}", settings.name)))
}

/// The same on a connection with the replica that is there already.
///
/// # Errors
/// As [`peek`].
pub async fn stored(client: &Client, pipeline: &str) -> Result<Stored> {
    match client.query_one(SCHEMA_EXISTS, &[]).await.map_err(classify)?.get(0) {
        true => read_stored(client, pipeline).await,
        false => Ok(Stored::default()),
    }
}

/// Removes what is stored about the pipeline, never a replica's rows; with the last pipeline Walgate's own tables go,
/// where the role may drop them.
/// False: nothing was stored. Blocks.
///
/// # Errors
/// As the connection, or when the role may not.
pub fn forget(settings: &ReplicaSettings) -> Result<bool> {
    let mut link = Link::open(&settings.url, "walgate")?;
    link.run_mut(async |client| {
        let had_rows = match client.query_one(SCHEMA_EXISTS, &[]).await.map_err(classify)?.get(0) {
            true => forget_rows(client, &settings.pipeline).await?,
            false => false,
        };
        // The server keeps a place for each, of which there are few.
        Origin::find(client, &settings.pipeline).await?.drop(client).await?;
        Ok(had_rows)
    })
    .map_err(|error| error.context(format_args!("replica {}", settings.name)))
}

/// The name under which a predecessor's sessions are found: as given, or, where the server would cut it or replace
/// letters of it, with a fingerprint in place of its end.
pub(super) fn session_name(application_name: &str) -> String {
    if application_name.len() <= NAME_BYTES_MAX
        && application_name.bytes().all(|byte| (b' '..=b'~').contains(&byte))
    {
        return application_name.to_owned();
    }
    let plain: String = application_name.chars().filter(char::is_ascii_graphic).take(46).collect();
    let fingerprint: String =
        Sha256::digest(application_name).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{plain}~{fingerprint}")
}

async fn refuse_server(client: &Client, settings: &ReplicaSettings, source: &Identity) -> Result<()> {
    let server = Server::of(client).await?;
    if server.is(&source.system_identifier, source.database_oid) {
        return Err(Error::definite(format!(
            "its URL leads to the source itself, the database {} at {}",
            settings.url.database,
            settings.url.address()
        ))
        .with_hint(format!("correct url of the replica {} in replication.toml", settings.name)));
    }
    if server.version < VERSION_MIN {
        return Err(Error::definite(format!(
            "its server is PostgreSQL {}, a replica needs 14",
            server.version / 10_000
        ))
        .with_hint("upgrade it, or name another server"));
    }
    if server.is_standby {
        // It may be one for a moment only, in a failover.
        return Err(Error::transient(format!("its server at {} is a standby", settings.url.address()))
            .with_hint("name the primary server in the replica's url"));
    }
    Ok(())
}

fn needs_rights(error: Error, settings: &ReplicaSettings) -> Error {
    if sqlstate_of(&error) != Some(INSUFFICIENT_PRIVILEGE) {
        return error;
    }
    error.with_hint(format!(
        "GRANT CREATE ON DATABASE {} TO {}, or give the SQL of `walgate migrate --print` to an administrator",
        crate::wal::sql::quote_ident(&settings.url.database),
        crate::wal::sql::quote_ident(&settings.url.user)
    ))
}

/// Sets a session that writes rows; whether triggers and foreign keys are off.
pub(super) async fn set_up(client: &Client) -> Result<bool> {
    client.batch_execute(SETTINGS).await.map_err(classify)?;
    client.query(NO_TRANSACTION_TIMEOUT, &[]).await.map_err(classify)?;
    match client.batch_execute(REPLICA_ROLE).await.map_err(classify) {
        Ok(()) => Ok(true),
        Err(error) if sqlstate_of(&error) == Some(INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn end_predecessor(client: &Client) -> Result<()> {
    let rows = client.query(END_PREDECESSOR, &[]).await.map_err(classify)?;
    if !rows.is_empty() {
        tracing::info!(sessions = rows.len(), "ended the predecessor's sessions on the replica");
    }
    Ok(())
}

async fn take_epoch(client: &Client, pipeline: &str) -> Result<i64> {
    let doing = |error| classify(error).context("taking the epoch of walgate.checkpoint");
    client.batch_execute(BEGIN_EPOCH).await.map_err(doing)?;
    let epoch = client.query_one(TAKE_EPOCH, &[&pipeline]).await.map_err(doing)?.get(0);
    client.batch_execute("COMMIT").await.map_err(doing)?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_server_would_change_gets_a_fingerprint() {
        assert_eq!(session_name("walgate/shop.walgate_r"), "walgate/shop.walgate_r");
        let long = format!("walgate/{}.slot", "s".repeat(60));
        assert_eq!(session_name(&long).len(), NAME_BYTES_MAX);
        assert_ne!(session_name(&long), session_name(&format!("{long}2")));
        assert_ne!(session_name("walgate/é"), session_name("walgate/è"));
    }
}
