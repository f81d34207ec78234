//! `check`, the source's side: the server, the role, what they allow.
//!
//! Manual: "Logical Decoding", "Role Attributes", "Replication Settings".

use super::report::Report;
use super::{publication, tables};
use crate::config::BacklogReader;
use crate::pipeline::Pipeline;
use crate::pipeline::tables::MatchedTable;
use crate::wal::client::{Client, classify, connect};
use crate::wal::slot::{self, SlotState};
use crate::wal::sql::quote_ident;
use crate::wal::url::{Host, SslMode};

/// One row. The role `rds_replication` stands for REPLICATION on Amazon's servers.
const SERVER: &str = "SELECT pg_catalog.current_setting('server_version_num')::int4, \
pg_catalog.current_setting('server_version'), pg_catalog.current_setting('wal_level'), \
CURRENT_USER::text, r.rolsuper, r.rolreplication OR COALESCE((SELECT pg_catalog.pg_has_role(g.oid, 'USAGE') \
  FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_replication'), false), \
pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('max_replication_slots')::int4, \
(SELECT count(*)::int4 FROM pg_catalog.pg_replication_slots), \
pg_catalog.current_setting('max_wal_senders')::int4, \
(SELECT count(*)::int4 FROM pg_catalog.pg_stat_replication), \
(SELECT s.setting::int8 FROM pg_catalog.pg_settings s WHERE s.name = 'max_slot_wal_keep_size'), \
pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), \
pg_catalog.current_database()::text \
FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER";

/// Versions of PostgreSQL that Walgate is tested with.
const MAJOR_VERSIONS: std::ops::RangeInclusive<i32> = 14..=18;
/// Less than this is soon used up while a consumer is away, in MiB.
const KEEP_SIZE_SMALL_MB: i64 = 1024;

/// What the server says of itself and of the role.
pub struct Server {
    /// The role.
    pub role: String,
    /// The database.
    pub database: String,
    /// Whether the role is a superuser.
    pub is_superuser: bool,
    /// Whether the role may create publications.
    pub may_create: bool,
    slots_max: i32,
    slots_used: i32,
    senders_max: i32,
    senders_used: i32,
}

/// The source, as it was found.
pub struct SourceView {
    /// A session with it.
    pub client: Client,
    /// See [`Server`].
    pub server: Server,
    /// The tables that the rules take.
    pub tables: Vec<MatchedTable>,
    /// Topics of those of them whose rules fit.
    pub topics: Vec<(u32, String)>,
    /// OIDs of those whose updates may leave a TOASTed value out.
    pub toasted: Vec<u32>,
    /// The pipeline's slot.
    pub slot: Option<SlotState>,
    /// Whether a replication connection can be asked for at all.
    pub may_replicate: bool,
}

/// Everything about the source; `None`: nothing more can be asked.
pub async fn examine(pipeline: &Pipeline, report: &Report) -> Option<SourceView> {
    let client = match connect(&pipeline.url, &format!("{} check", pipeline.application_name())).await {
        Ok(client) => client,
        Err(error) => {
            let remedy = format!(
                "see that the server runs and that {} is reachable from here",
                pipeline.url.address()
            );
            report.error("source.url", &error, &remedy);
            return None;
        }
    };
    encryption(pipeline, report);
    let (server, may_replicate) = match server(&client, report).await {
        Ok(found) => found?,
        Err(error) => {
            report.error("source.url", &error.context("asking the server for its settings"), "");
            return None;
        }
    };
    let mut view = SourceView {
        client,
        server,
        tables: vec![],
        topics: vec![],
        toasted: vec![],
        slot: None,
        may_replicate,
    };
    match slot::state(&view.client, &pipeline.slot).await {
        Ok(slot) => view.slot = slot,
        Err(error) => report.error("source.slot", &error, ""),
    }
    other_database(&view, report);
    if let Err(error) = tables::examine(pipeline, &mut view, report).await {
        report.error("table", &error.context("comparing rules and tables"), "");
    }
    if let Err(error) = publication::examine(pipeline, &view, report).await {
        report.error("source.publication", &error, "");
    }
    Some(view)
}

/// Are there slots and walsenders enough? A copy needs one of each beside the stream's.
pub fn free_slots(pipeline: &Pipeline, view: &SourceView, needs_copy: bool, report: &Report) {
    let Server { slots_max, slots_used, senders_max, senders_used, .. } = &view.server;
    let (slots_free, senders_free) = (slots_max - slots_used, senders_max - senders_used);
    let copies = i32::from(needs_copy);
    let slots_needed = copies + i32::from(view.slot.is_none());
    let senders_needed = copies + i32::from(!view.slot.as_ref().is_some_and(|slot| slot.is_active));
    if slots_free < slots_needed {
        report.fault(
            "source.slot",
            format!("{slots_free} replication slots of {slots_max} are free, {slots_needed} are needed (one for the stream, one for the initial copy while it lasts)"),
            format!("drop a slot that nobody needs (SELECT slot_name, active FROM pg_replication_slots), or: ALTER SYSTEM SET max_replication_slots = {}; and restart the server", slots_used + slots_needed),
        );
    }
    let is_read_by_sql = pipeline.config.source.backlog_reader == BacklogReader::Auto;
    // What a copy needs is free again after it.
    if is_read_by_sql && slots_free >= slots_needed && slots_free == slots_needed - copies {
        report.warning(
            "source.backlog_reader",
            format!("no replication slot of {slots_max} is left to read a backlog by SQL: it is read by the stream, which takes longer"),
            format!("ALTER SYSTEM SET max_replication_slots = {}; and restart the server; or write backlog_reader = \"off\"", slots_max + 1),
        );
    }
    if senders_free < senders_needed {
        report.fault(
            "source.url",
            format!("{senders_free} WAL senders of {senders_max} are free, {senders_needed} are needed"),
            format!(
                "ALTER SYSTEM SET max_wal_senders = {}; and restart the server",
                senders_used + senders_needed
            ),
        );
    }
}

/// `None`: a server so old that nothing more can be asked.
async fn server(client: &Client, report: &Report) -> crate::error::Result<Option<(Server, bool)>> {
    let row = client.query_one(SERVER, &[]).await.map_err(classify)?;
    let major = row.get::<_, i32>(0) / 10_000;
    let server = Server {
        role: row.get(3),
        is_superuser: row.get(4),
        may_create: row.get(12),
        database: row.get(13),
        slots_max: row.get(7),
        slots_used: row.get(8),
        senders_max: row.get(9),
        senders_used: row.get(10),
    };
    if row.get::<_, String>(2) != "logical" {
        report.fault(
            "source.url",
            format!("wal_level is {}, logical replication needs logical", row.get::<_, String>(2)),
            "ALTER SYSTEM SET wal_level = 'logical'; and restart the server",
        );
    }
    let may_replicate = server.is_superuser || row.get::<_, bool>(5);
    if !may_replicate {
        report.fault(
            "source.url",
            format!("role {} has no REPLICATION right", server.role),
            format!("ALTER ROLE {} REPLICATION;", quote_ident(&server.role)),
        );
    }
    if row.get::<_, bool>(6) {
        report.fault(
            "source.url",
            "the server is a standby: publications cannot be changed there, and its slots do not survive a promotion",
            "name the primary server in source.url",
        );
    }
    let version: String = row.get(1);
    if major > *MAJOR_VERSIONS.end() {
        report.warning(
            "source.url",
            format!("PostgreSQL {version} is newer than this version of Walgate knows"),
            format!(
                "look for a newer Walgate; this one is tested with PostgreSQL 14 to {}",
                MAJOR_VERSIONS.end()
            ),
        );
    }
    if major < *MAJOR_VERSIONS.start() {
        report.fault(
            "source.url",
            format!("PostgreSQL {version} is too old"),
            "upgrade the server to PostgreSQL 14 or later",
        );
        return Ok(None);
    }
    match row.get::<_, Option<i64>>(11) {
        Some(limit) if (0..KEEP_SIZE_SMALL_MB).contains(&limit) => report.warning(
            "source.slot",
            format!("max_slot_wal_keep_size is {limit} MB: a slot that retains more WAL is lost, and everything has to be copied again"),
            "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf(); -- as the disk allows",
        ),
        Some(limit) if limit >= 0 => report.note(
            "source.slot",
            format!("max_slot_wal_keep_size is {limit} MB: while Walgate is away for longer than that, its slot is lost"),
            "",
        ),
        _ => report.note(
            "source.slot",
            "max_slot_wal_keep_size is not limited: while Walgate is away, WAL is retained until the disk is full",
            "watch walgate_retained_wal_bytes; or ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();",
        ),
    }
    Ok(Some((server, may_replicate)))
}

fn encryption(pipeline: &Pipeline, report: &Report) {
    let Host::Tcp(host) = &pipeline.url.host else { return };
    let is_here = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    let mode = pipeline.url.ssl_mode;
    if !is_here && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
        report.warning(
            "source.url",
            format!("sslmode={mode} does not make sure that the connection to {host} is encrypted"),
            "write ?sslmode=verify-full, with sslrootcert=FILE where the server's authority is a private one",
        );
    }
}

/// A slot of our name that belongs to another database: two installations share one server.
fn other_database(view: &SourceView, report: &Report) {
    let Some(slot) = &view.slot else { return };
    if slot.database.as_ref().is_some_and(|database| *database != view.server.database) {
        report.fault(
            "source.slot",
            format!(
                "slot {} belongs to the database {}",
                slot.name,
                slot.database.as_deref().unwrap_or_default()
            ),
            "choose another source.slot: slots are named once for the whole server",
        );
    }
    if slot.is_active {
        report.note("source.slot", format!("slot {} is in use: the pipeline is running", slot.name), "");
    }
}
