//! `check`, a replica's side: can it be reached, is it another database, does it take the rows?
//!
//! Nothing is made there, nobody is fenced. DESIGN section 6.

use super::report::{Report, Severity};
use super::source::SourceView;
use super::tables::rule_name;
use crate::config::{OnSchemaChange, Replica};
use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::pipeline::sequences::{drawn_from, grant_on_source};
use crate::pipeline::start::{blocking, went_into};
use crate::pipeline::tables::MatchedTable;
use crate::route::name::TablePattern;
use crate::sink::checkpoint::{Stored, TableState};
use crate::sink::destination::{self, Address};
use crate::sink::replica::{Origin, ReplicaSequence};
use crate::wal::client::{Client, classify, connect};
use crate::wal::server::Server;
use crate::wal::sql::{quote_ident, quote_qualified};

/// The role and its rights.
const SERVER: &str = "SELECT CURRENT_USER::text, pg_catalog.current_database()::text, \
pg_catalog.pg_is_in_recovery(), \
pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), \
pg_catalog.to_regnamespace('walgate') IS NOT NULL";
const ROLE: &str = "SELECT CURRENT_USER::text";
/// A table by schema and name: its OID, what may be done with it, and what would fire there.
const TABLE: &str = "SELECT c.oid, c.relkind::text, \
pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE') \
  AND pg_catalog.has_table_privilege(c.oid, 'INSERT') AND pg_catalog.has_table_privilege(c.oid, 'UPDATE') \
  AND pg_catalog.has_table_privilege(c.oid, 'DELETE'), \
ARRAY(SELECT t.tgname::text FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal \
  AND t.tgenabled IN ('R', 'A') ORDER BY 1), \
EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled <> 'D') \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE n.nspname = $1 AND c.relname = $2";
/// Columns of the table $1, with their types as a CREATE TABLE has them.
const COLUMNS: &str = "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated <> '', \
a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = '' \
FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// The replica, as it was found.
pub struct ReplicaView {
    /// What is stored about the pipeline.
    pub stored: Stored,
    client: Client,
    role: String,
    may_create: bool,
    has_replica_role: bool,
}

/// Everything about the replica that does not depend on tables; `None`: it cannot be used.
pub async fn examine(pipeline: &Pipeline, replica: &Replica, report: &Report) -> Option<ReplicaView> {
    let key = format!("{}.url", replica.key_path);
    let address = match pipeline.address() {
        Ok(address) => address,
        Err(error) => {
            report.error(&key, &error, "");
            return None;
        }
    };
    let Address::Replica(settings) = &address else { return None };
    let client = match connect(&settings.url, &format!("{} check", pipeline.application_name())).await {
        Ok(client) => client,
        Err(error) => {
            let remedy = format!(
                "see that the replica runs and that {} is reachable from here",
                settings.url.address()
            );
            report.error(&key, &error.context(format_args!("replica {}", replica.name)), &remedy);
            return None;
        }
    };
    match server(pipeline, replica, &client, &key, report).await {
        Ok(Some((role, may_create, has_replica_role))) => {
            let name = pipeline.name();
            match blocking(move || destination::peek(&address, &name)).await {
                Ok(stored) => Some(ReplicaView { stored, client, role, may_create, has_replica_role }),
                Err(error) => {
                    report.error(&key, &error.context("reading the checkpoint"), "");
                    None
                }
            }
        }
        Ok(None) => None,
        Err(error) => {
            report.error(&key, &error.context(format_args!("asking the replica {}", replica.name)), "");
            None
        }
    }
}

async fn server(
    pipeline: &Pipeline,
    replica: &Replica,
    client: &Client,
    key: &str,
    report: &Report,
) -> Result<Option<(String, bool, bool)>> {
    let row = client.query_one(SERVER, &[]).await.map_err(classify)?;
    let (role, database, is_standby): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
    let (may_create, has_schema): (bool, bool) = (row.get(3), row.get(4));
    let name = &replica.name;
    if is_standby {
        report.fault(
            key,
            format!("the replica {name} is a standby, which takes no writes"),
            "name its primary",
        );
        return Ok(None);
    }
    if is_source(pipeline, client).await? {
        report.fault(key, format!("the replica {name} is the source itself"), "name another database");
        return Ok(None);
    }
    if !may_create && !has_schema {
        report.fault(
            key,
            format!(
                "replica {name}: role {role} may not create the schema walgate, which holds the checkpoint"
            ),
            format!("GRANT CREATE ON DATABASE {} TO {};", quote_ident(&database), quote_ident(&role)),
        );
    }
    let has_replica_role = client.batch_execute("SET session_replication_role = replica").await.is_ok();
    if !has_replica_role {
        report.warning(
            key,
            format!(
                "replica {name}: role {role} may not set session_replication_role, so triggers fire and foreign keys are checked there, and tables that have some are applied row by row"
            ),
            format!(
                "GRANT SET ON PARAMETER session_replication_role TO {}; (PostgreSQL 15 and later), or make the role a superuser",
                quote_ident(&role)
            ),
        );
    }
    if let Some(grant) = Origin::find(client, &pipeline.name()).await?.missing_grant() {
        report.note(
            key,
            format!(
                "replica {name}: role {role} may not set a replication origin, so that other readers of its WAL cannot tell replicated rows from its own"
            ),
            format!("only where rows could come back in a loop; {grant}"),
        );
    }
    Ok(Some((role, may_create, has_replica_role)))
}

/// By cluster and database; a source that cannot be asked is told of elsewhere.
async fn is_source(pipeline: &Pipeline, client: &Client) -> Result<bool> {
    let Ok(source) = connect(&pipeline.url, "walgate check").await else { return Ok(false) };
    let here = Server::of(client).await?;
    let Ok(there) = Server::of(&source).await else { return Ok(false) };
    Ok(here.is(&there.system_identifier, there.database_oid))
}

/// What depends on the tables.
pub async fn tables(replica: &Replica, view: &ReplicaView, source: &SourceView, report: &Report) {
    for matched in &source.tables {
        if let Err(error) = table(replica, view, source, matched, report).await {
            report.error(&format!("{}.url", replica.key_path), &error, "");
        }
    }
    if let Err(error) = sequences(replica, view, source, report).await {
        report.error(&format!("{}.url", replica.key_path), &error, "");
    }
}

/// Sequences that are not brought forward, for want of a right on either side.
async fn sequences(
    replica: &Replica,
    view: &ReplicaView,
    source: &SourceView,
    report: &Report,
) -> Result<()> {
    let role = source.client.query_one(ROLE, &[]).await.map_err(classify)?.get::<_, String>(0);
    for (matched, sequence) in drawn_from(&source.client, &source.tables).await? {
        let (schema, table) = matched.rule.target_name(&matched.table.schema, &matched.table.name);
        let place = (schema.as_str(), table.as_str(), sequence.column.as_str());
        let Some(found) = ReplicaSequence::of_column(&view.client, place, &sequence).await? else { continue };
        let on_source = (!sequence.may_read).then(|| grant_on_source(&sequence, &role));
        for grant in found.missing_grant().into_iter().chain(on_source) {
            report.add_about(
                Severity::Warning,
                &format!("{}.to", matched.rule.key_path),
                &[rule_name(&matched.table)],
                format!(
                    "replica {}: its sequence {} is not brought forward to the source's {}",
                    replica.name,
                    found.display_name(),
                    sequence.display_name()
                ),
                grant,
            );
        }
    }
    Ok(())
}

async fn table(
    replica: &Replica,
    view: &ReplicaView,
    source: &SourceView,
    matched: &MatchedTable,
    report: &Report,
) -> Result<()> {
    let (about, rule) = ([rule_name(&matched.table)], &matched.rule);
    let (schema, name) = rule.target_name(&matched.table.schema, &matched.table.name);
    let shown = TablePattern::exact(&schema, &name);
    let sql_name = quote_qualified(&schema, &name);
    let place = format!("replica {}: table {shown}", replica.name);
    let fault = |key: &str, message: String, remedy: String| {
        report.add_about(Severity::Fault, &format!("{}.{key}", rule.key_path), &about, message, remedy);
    };
    let Some(found) = view.client.query_opt(TABLE, &[&schema, &name]).await.map_err(classify)? else {
        if !replica.create_tables {
            fault("to", format!("{place} does not exist"), "make it, or write create_tables = true".into());
        } else if !view.may_create {
            fault(
                "to",
                format!("{place} does not exist, and role {} may not make it", view.role),
                format!(
                    "make it, or let the role: GRANT CREATE ON SCHEMA {} TO {};",
                    quote_ident(&schema),
                    quote_ident(&view.role)
                ),
            );
        }
        return Ok(());
    };
    let (oid, kind, may_write): (u32, String, bool) = (found.get(0), found.get(1), found.get(2));
    if !matches!(kind.as_str(), "r" | "p") {
        fault("to", format!("{place} is no table"), "name a table with `to`".into());
        return Ok(());
    }
    if !may_write {
        fault(
            "to",
            format!("{place}: role {} may not write it", view.role),
            format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {sql_name} TO {};",
                quote_ident(&view.role)
            ),
        );
        return Ok(());
    }
    let state = view.stored.tables.get(&matched.table.oid);
    if let Some(parked) = state.and_then(TableState::parked) {
        let remedy = parked.remedy.clone().unwrap_or_default();
        fault("name", format!("{place} is parked: {}", parked.reason), remedy);
    }
    // What was copied into another table, under an earlier `to`, says nothing of this one; nor does one that was
    // parked before its first copy.
    let is_copied = state.is_some_and(|state| went_into(state, &schema, &name));
    let has_rows = format!("SELECT EXISTS (SELECT FROM {sql_name})");
    if !is_copied && view.client.query_one(&has_rows, &[]).await.map_err(classify)?.get(0) {
        fault(
            "to",
            format!("{place} is not empty, and nothing was copied into it by this pipeline"),
            format!(
                "if its rows may go: TRUNCATE {sql_name}; on the replica; else choose another name with `to`"
            ),
        );
    }
    let triggers: Vec<String> = found.get(3);
    let fires: bool = found.get(4);
    if !triggers.is_empty() || fires && !view.has_replica_role {
        let which =
            if triggers.is_empty() { "triggers or foreign keys".to_owned() } else { triggers.join(", ") };
        report.add_about(
            Severity::Warning,
            &format!("{}.to", rule.key_path),
            &about,
            format!("{place} has {which}, which may change or refuse rows; it is applied row by row"),
            "see that they are meant for replicated rows, else disable them there",
        );
    }
    columns(replica, view, source, matched, (oid, &place, &sql_name), report).await
}

/// Columns that are missing, that take nothing, or whose type is another one.
async fn columns(
    replica: &Replica,
    view: &ReplicaView,
    source: &SourceView,
    matched: &MatchedTable,
    (oid, place, sql_name): (u32, &str, &str),
    report: &Report,
) -> Result<()> {
    let (about, rule) = ([rule_name(&matched.table)], &matched.rule);
    let key = format!("{}.columns", rule.key_path);
    let there = view.client.query(COLUMNS, &[&oid]).await.map_err(classify)?;
    let here = source.client.query(COLUMNS, &[&matched.table.oid]).await.map_err(classify)?;
    let is_key = |name: &String| match &rule.key {
        Some(names) => names.contains(name),
        None => matched.table.primary_key.contains(name) || matched.table.identity_key.contains(name),
    };
    let goes = |name: &String| rule.columns.takes(name) || is_key(name);
    let sent: Vec<(String, String)> = here
        .iter()
        .filter(|row| !row.get::<_, bool>(2))
        .map(|row| (row.get(0), row.get(1)))
        .filter(|(name, _)| goes(name))
        .collect();
    for (name, of_type) in &sent {
        let Some(row) = there.iter().find(|row| row.get::<_, &str>(0) == name) else {
            let severity = match replica.on_schema_change {
                OnSchemaChange::Park => Severity::Fault,
                // The next start adds it.
                OnSchemaChange::Follow => Severity::Note,
            };
            report.add_about(
                severity,
                &key,
                &about,
                format!("{place} has no column \"{name}\""),
                format!(
                    "ALTER TABLE {sql_name} ADD COLUMN {} {of_type}; or leave it out by exclude",
                    quote_ident(name)
                ),
            );
            continue;
        };
        let type_there: String = row.get(1);
        if type_there != *of_type {
            report.add_about(
                Severity::Warning,
                &key,
                &about,
                format!("{place}: column \"{name}\" is of type {type_there}, on the source of type {of_type}: a value that it does not take is an error of the table (on_table_error)"),
                format!("ALTER TABLE {sql_name} ALTER COLUMN {} TYPE {of_type};", quote_ident(name)),
            );
        }
    }
    for row in there.iter().filter(|row| row.get::<_, bool>(3)) {
        let name: String = row.get(0);
        if !sent.iter().any(|(sent, _)| *sent == name) {
            report.add_about(
                Severity::Fault,
                &key,
                &about,
                format!("{place}: column \"{name}\" is NOT NULL, has no default, and is not sent"),
                format!(
                    "ALTER TABLE {sql_name} ALTER COLUMN {} SET DEFAULT ...; or DROP NOT NULL",
                    quote_ident(&name)
                ),
            );
        }
    }
    Ok(())
}
