//! Replication slots: what the server says of them, making and removing them.
//! Manual: "pg_replication_slots", "Replication Management Functions".

use super::client::{Client, classify};
use super::connection::ReplicationConnection;
use super::sqlstate::{UNDEFINED_OBJECT, sqlstate_of};
use crate::error::{Error, Result};
use crate::lsn::Lsn;

/// `invalidation_reason` exists from PostgreSQL 16 on; going through JSON leaves it out before.
const STATE: &str = "SELECT s.slot_name::text, s.plugin::text, s.database::text, s.active, s.active_pid, \
s.restart_lsn::text, s.confirmed_flush_lsn::text, s.wal_status, to_jsonb(s) ->> 'invalidation_reason', \
pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::int8 \
FROM pg_catalog.pg_replication_slots s WHERE s.slot_name LIKE $1 AND NOT s.temporary ORDER BY 1";

/// In kilobytes, and never less than what the server has.
const ALLOW_MEMORY: &str = "SELECT pg_catalog.set_config(s.name, '@KILOBYTES@', false) FROM pg_catalog.pg_settings s \
WHERE s.name = ANY ('@SETTINGS@') AND s.setting::int8 < @KILOBYTES@";

/// A permanent slot: those of running copies are temporary, and go with their session.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SlotState {
    /// Its name.
    pub name: String,
    /// Its output plugin.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// Whether a walsender uses it.
    pub is_active: bool,
    /// That walsender.
    pub active_pid: Option<i32>,
    /// The WAL that it retains begins here.
    pub restart_lsn: Option<Lsn>,
    /// What was confirmed.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
    /// Why it was invalidated.
    pub invalidation_reason: Option<String>,
    /// WAL that it retains, in bytes.
    pub retained_wal_bytes: Option<i64>,
}

impl SlotState {
    /// Whether it can still be read.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }
}

/// Where decoding holds what in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// For a stream: the transactions that have not ended.
    Stream,
    /// For a function's result: these, and the result.
    Function,
}

/// Lets a session that decodes hold up to `bytes` of each in memory, where the server's own limit is less; 0 leaves that as
/// it is. A decoder has one such buffer, and there are few decoders, so that it may be larger than what the server
/// grants by default (manual: `logical_decoding_work_mem`).
///
/// # Errors
/// As the connection.
pub async fn allow_memory(
    connection: &mut ReplicationConnection,
    bytes: u64,
    decoding: Decoding,
) -> Result<()> {
    if bytes > 0 {
        let kilobytes = i32::try_from(bytes.div_ceil(1024)).unwrap_or(i32::MAX);
        let settings = match decoding {
            Decoding::Stream => "{logical_decoding_work_mem}",
            Decoding::Function => "{logical_decoding_work_mem,work_mem}",
        };
        let allow =
            ALLOW_MEMORY.replace("@SETTINGS@", settings).replace("@KILOBYTES@", &kilobytes.to_string());
        connection.query(&allow).await?;
    }
    Ok(())
}

/// The slot of that name.
///
/// # Errors
/// As the connection.
pub async fn state(client: &Client, name: &str) -> Result<Option<SlotState>> {
    Ok(states_like(client, &name.replace('_', "\\_")).await?.pop())
}

/// All slots whose names begin with `prefix`.
///
/// # Errors
/// As the connection.
pub async fn states(client: &Client, prefix: &str) -> Result<Vec<SlotState>> {
    states_like(client, &format!("{}%", prefix.replace('_', "\\_"))).await
}

async fn states_like(client: &Client, pattern: &str) -> Result<Vec<SlotState>> {
    let rows = client.query(STATE, &[&pattern]).await.map_err(classify)?;
    let lsn = |text: Option<String>| text.and_then(|text| text.parse().ok());
    Ok(rows
        .iter()
        .map(|row| SlotState {
            name: row.get(0),
            plugin: row.get(1),
            database: row.get(2),
            is_active: row.get(3),
            active_pid: row.get(4),
            restart_lsn: lsn(row.get(5)),
            confirmed_flush_lsn: lsn(row.get(6)),
            wal_status: row.get(7),
            invalidation_reason: row.get(8),
            retained_wal_bytes: row.get(9),
        })
        .collect())
}

/// The source's end of WAL; of a standby, of what it has replayed.
///
/// # Errors
/// As the connection.
pub async fn source_end(client: &Client) -> Result<Lsn> {
    const END: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
    ELSE pg_catalog.pg_current_wal_lsn() END)::text";
    let text: Option<String> = client.query_one(END, &[]).await.map_err(classify)?.get(0);
    text.unwrap_or_default()
        .parse()
        .map_err(|error| Error::transient("the source's end of WAL cannot be read").with_source(error))
}

/// Makes a permanent logical slot and returns its consistent point. Waits for the transactions that
/// are writing now; [`writers`] says who they are.
///
/// # Errors
/// Definite: no REPLICATION right, `wal_level`, no free slot.
pub async fn create(client: &Client, name: &str) -> Result<Lsn> {
    const CREATE: &str =
        "SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')";
    let row = client
        .query_one(CREATE, &[&name])
        .await
        .map_err(|error| classify(error).context(format_args!("slot {name} cannot be made")))?;
    let text: String = row.get(0);
    text.parse().map_err(|error| Error::transient("the new slot's LSN cannot be read").with_source(error))
}

/// Removes a slot, if it is there; ends our own walsender that still holds it.
///
/// # Errors
/// As the connection; definite when another role's walsender holds it.
pub async fn remove(client: &Client, name: &str) -> Result<bool> {
    let Some(slot) = state(client, name).await? else { return Ok(false) };
    if let Some(pid) = slot.active_pid {
        client
            .execute("SELECT pg_catalog.pg_terminate_backend($1, 5000)", &[&pid])
            .await
            .map_err(classify)?;
    }
    match client.execute("SELECT pg_catalog.pg_drop_replication_slot($1)", &[&name]).await.map_err(classify) {
        Ok(_) => Ok(true),
        // One that was still being made went with the session that made it.
        Err(error) if sqlstate_of(&error) == Some(UNDEFINED_OBJECT) => Ok(true),
        Err(error) => Err(error.context(format_args!("slot {name} cannot be dropped"))),
    }
}

/// The transactions for which the creation of a slot waits: pids and users, and the prepared ones, which no
/// process owns and which may wait for ever.
///
/// # Errors
/// As the connection.
pub async fn writers(client: &Client) -> Result<Vec<String>> {
    const WRITERS: &str = "SELECT pid, usename::text, application_name, \
    EXTRACT(EPOCH FROM clock_timestamp() - xact_start)::int4 FROM pg_catalog.pg_stat_activity \
    WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() ORDER BY xact_start LIMIT 5";
    const PREPARED: &str = "SELECT gid, owner::text, database::text, \
    EXTRACT(EPOCH FROM clock_timestamp() - prepared)::int4 FROM pg_catalog.pg_prepared_xacts \
    ORDER BY prepared LIMIT 5";
    let rows = client.query(PREPARED, &[]).await.map_err(classify)?;
    let prepared = rows.iter().map(|row| {
        let (gid, owner, database, seconds) = (
            row.get::<_, String>(0),
            row.get::<_, String>(1),
            row.get::<_, String>(2),
            row.get::<_, Option<i32>>(3),
        );
        format!(
            "prepared transaction '{gid}' ({owner}, database {database}, for {} s)",
            seconds.unwrap_or_default()
        )
    });
    let rows = client.query(WRITERS, &[]).await.map_err(classify)?;
    Ok(prepared
        .chain(rows.iter().map(|row| {
            let (pid, user, application, seconds) = (
                row.get::<_, i32>(0),
                row.get::<_, Option<String>>(1),
                row.get::<_, Option<String>>(2),
                row.get::<_, Option<i32>>(3),
            );
            format!(
                "pid {pid} ({}, {}, for {} s)",
                user.unwrap_or_default(),
                application.unwrap_or_default(),
                seconds.unwrap_or_default()
            )
        }))
        .collect())
}
