//! `check`: the rules against the tables that are there, and what the role may read of them.
//!
//! Comes in: a session. Goes out: matched tables in the [`SourceView`], and findings. DESIGN section 3.

use std::collections::BTreeMap;

use super::filters;
use super::outbox;
use super::report::{Report, Severity};
use super::rules;
use super::source::SourceView;
use crate::config::{Publication, SnapshotMode};
use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::pipeline::leaves;
use crate::pipeline::tables::{self, MatchedTable, rule_of};
use crate::route::batch::Labels;
use crate::route::name::TablePattern;
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::{Client, classify};
use crate::wal::pgoutput::ReplicaIdentity;
use crate::wal::sql::quote_ident;

/// Generated columns, which the server does not send.
const GENERATED: &str = "SELECT a.attrelid, a.attname::text FROM pg_catalog.pg_attribute a \
WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''";
/// Tables with values that may be stored out of line.
const TOASTABLE: &str = "SELECT DISTINCT a.attrelid FROM pg_catalog.pg_attribute a \
WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> 'p'";
/// The tables $1 themselves and their leaves: name, kind, rights, whether row level security holds for
/// this role. The copy reads leaves, each by itself.
const RIGHTS: &str = "SELECT t.root, n.nspname::text, c.relname::text, c.relkind::text, t.is_leaf, \
pg_catalog.has_schema_privilege(n.oid, 'USAGE'), \
pg_catalog.has_table_privilege(c.oid, 'SELECT') OR (SELECT COALESCE(bool_and(\
  pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')), false) FROM pg_catalog.pg_attribute a \
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), \
c.relrowsecurity AND pg_catalog.row_security_active(c.oid) \
FROM (SELECT r.oid AS root, p.relid::oid AS relid, true AS is_leaf FROM unnest($1::oid[]) r(oid), \
        LATERAL pg_catalog.pg_partition_tree(r.oid::regclass) p WHERE p.isleaf \
      UNION SELECT r.oid, r.oid, k.relkind <> 'p' FROM unnest($1::oid[]) r(oid) JOIN pg_catalog.pg_class k ON k.oid = r.oid) t \
JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
ORDER BY 2, 3";

/// See the module.
pub async fn examine(pipeline: &Pipeline, view: &mut SourceView, report: &Report) -> Result<()> {
    let client = &view.client;
    let all = tables::all(pipeline, client).await?;
    unlogged(pipeline, &all, report);
    let published = match (&pipeline.config.source.publication, pipeline.publications.existing(client).await?)
    {
        // That it is not there is said by `publication`; without it, rules and tables can still be compared.
        (Publication::Existing(_), existing) if !existing.is_empty() => {
            pipeline.publications.published(client).await?
        }
        (Publication::Existing(_), _) => all.iter().map(published_whole).collect(),
        (Publication::Managed, _) => Vec::new(),
    };
    let mut taken = tables::taken_of(pipeline, all, &published);
    for missing in tables::missing(pipeline, client, &taken).await? {
        let key = format!("{}.name", missing.key_path);
        report.add_about(Severity::Fault, &key, &[missing.table], missing.message, missing.remedy);
    }
    if !pipeline.publications.is_managed() {
        let mut unpublished = names(taken.iter().filter(|one| one.published.is_none()));
        unpublished.retain(|name| !is_reported(report, name));
        if !unpublished.is_empty() {
            let publication = pipeline.publications.names().join(", ");
            report.add_about(
                Severity::Warning,
                "source.publication",
                &unpublished,
                format!(
                    "not in the publication {publication}, so without events: {}",
                    unpublished.join(", ")
                ),
                "add them to the publication, or leave them out by a rule with mode = \"off\"",
            );
        }
        taken.retain(|one| one.published.is_some());
    }
    if taken.is_empty() {
        report.warning(
            "table",
            "no table that is there is taken by a rule, so there will be no events",
            "name tables in [[table]] rules; names are case-sensitive",
        );
    }
    let oids: Vec<u32> = taken.iter().map(|one| one.table.oid).collect();
    generated_and_topics(pipeline, view, &taken, &oids, report).await?;
    let roots = leaves::roots(pipeline, &view.client).await?;
    for unseen in leaves::unseen(pipeline, &view.client, &taken, &roots).await? {
        report.add_about(Severity::Fault, &unseen.key_path, &[unseen.table], unseen.message, unseen.remedy);
    }
    by_leaf(&view.client, &roots, report).await?;
    identities(&taken, report);
    view.toasted = toasted(&view.client, &taken, &oids, report).await?;
    rights(pipeline, view, &oids, report).await?;
    view.tables = taken;
    outbox::all(view, report).await
}

fn published_whole(table: &SourceTable) -> crate::wal::publication::PublishedTable {
    crate::wal::publication::PublishedTable { oid: table.oid, columns: None, row_filter: None }
}

fn is_reported(report: &Report, table: &str) -> bool {
    report.of(Severity::Fault).iter().any(|finding| finding.tables.iter().any(|name| name == table))
}

/// A table's name as a rule writes it.
pub fn rule_name(table: &SourceTable) -> String {
    TablePattern::exact(&table.schema, &table.name).to_string()
}

fn names<'a>(tables: impl Iterator<Item = &'a MatchedTable>) -> Vec<String> {
    tables.map(|matched| rule_name(&matched.table)).collect()
}

fn unlogged(pipeline: &Pipeline, all: &[SourceTable], report: &Report) {
    let by_pattern = |table: &&SourceTable| {
        !table.is_logged
            && table.root.is_none()
            && rule_of(pipeline, table).is_some_and(|rule| !rule.name.is_exact())
    };
    let found: Vec<&SourceTable> = all.iter().filter(by_pattern).collect();
    if !found.is_empty() {
        let names: Vec<String> = found.iter().map(|table| rule_name(table)).collect();
        let statements: Vec<String> =
            found.iter().map(|table| format!("ALTER TABLE {} SET LOGGED;", table.sql_name())).collect();
        report.add_about(
            Severity::Warning,
            "table",
            &names,
            format!(
                "unlogged, so their changes are not in the WAL and they have no events: {}",
                names.join(", ")
            ),
            statements.join("\n"),
        );
    }
}

async fn generated_and_topics(
    pipeline: &Pipeline,
    view: &mut SourceView,
    taken: &[MatchedTable],
    oids: &[u32],
    report: &Report,
) -> Result<()> {
    let mut generated: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for row in view.client.query(GENERATED, &[&oids]).await.map_err(classify)? {
        generated.entry(row.get(0)).or_default().push(row.get(1));
    }
    let types = catalog::types(&view.client).await?;
    let mut fitting: Vec<MatchedTable> = taken
        .iter()
        .filter(|matched| match &matched.rule.outbox {
            Some(rule) => outbox::examine(matched, rule, &types, report),
            None => {
                rules::examine(matched, generated.get(&matched.table.oid).map_or(&[], Vec::as_slice), report)
            }
        })
        .cloned()
        .collect();
    let enums = filters::examine(pipeline, view, &types, &mut fitting, report).await?;
    fitting.retain(|matched| !is_reported(report, &rule_name(&matched.table)));
    if pipeline.replica.is_some() {
        if let Err(error) = tables::fit(pipeline, (&types, &enums), &fitting) {
            report.error("table", &error, "");
        }
        return Ok(());
    }
    let found = tables::topics_of(pipeline, (&types, &enums), &Labels::default(), &fitting);
    for (oid, error) in &found.errors {
        let about: Vec<String> = names(fitting.iter().filter(|one| one.table.oid == *oid));
        report.add_about(
            Severity::Fault,
            "hub.topic",
            &about,
            error.chain(),
            error.hint().unwrap_or_default(),
        );
    }
    view.topics = found.topics;
    Ok(())
}

/// Partitioned tables whose leaves are tables of their own.
async fn by_leaf(client: &Client, roots: &[MatchedTable], report: &Report) -> Result<()> {
    for (root, leaves) in roots.iter().zip(leaves::count(client, roots).await?) {
        let name = rule_name(&root.table);
        report.add_about(
            Severity::Note,
            &format!("{}.partitions", root.rule.key_path),
            std::slice::from_ref(&name),
            format!(
                "table {name} is taken leaf by leaf: {leaves} leaves now, each a table of its own; a new one is copied within 10 s"
            ),
            "",
        );
    }
    Ok(())
}

/// Tables whose updates and deletes are not seen.
fn identities(taken: &[MatchedTable], report: &Report) {
    let without: Vec<&MatchedTable> = taken.iter().filter(|one| !one.table.has_usable_identity()).collect();
    if without.is_empty() {
        return;
    }
    let names = names(without.iter().copied());
    let statements: Vec<String> = without
        .iter()
        .map(|one| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", one.table.sql_name()))
        .collect();
    report.add_about(
        Severity::Warning,
        "table",
        &names,
        format!(
            "without a usable replica identity, so their updates and deletes are not seen, only inserts and truncates: {}",
            names.join(", ")
        ),
        format!("add a primary key, or:\n{}", statements.join("\n")),
    );
}

/// Tables whose updates may leave a TOASTed value out; explained once.
async fn toasted(client: &Client, taken: &[MatchedTable], oids: &[u32], report: &Report) -> Result<Vec<u32>> {
    let rows = client.query(TOASTABLE, &[&oids]).await.map_err(classify)?;
    let toastable: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let found: Vec<&MatchedTable> = taken
        .iter()
        .filter(|one| toastable.contains(&one.table.oid) && one.table.identity != ReplicaIdentity::Full)
        .filter(|one| one.table.has_usable_identity() && one.rule.outbox.is_none())
        .collect();
    if !found.is_empty() {
        report.add_about(
            Severity::Note,
            "table",
            &names(found.iter().copied()),
            "an update that leaves a large (TOASTed) value as it is does not send it: the event names the column in `unchanged`, and the consumer keeps what it has",
            "where consumers need the value in every event: ALTER TABLE ... REPLICA IDENTITY FULL;",
        );
    }
    Ok(found.iter().map(|one| one.table.oid).collect())
}

/// What the copy needs: SELECT, no row level security, no foreign tables among the leaves.
async fn rights(pipeline: &Pipeline, view: &SourceView, oids: &[u32], report: &Report) -> Result<()> {
    let role = quote_ident(&view.server.role);
    let (mut unreadable, mut grants, mut schemas) = (Vec::new(), Vec::new(), Vec::new());
    let mut secured = Vec::new();
    for row in view.client.query(RIGHTS, &[&oids]).await.map_err(classify)? {
        let (schema, table, kind, is_leaf): (String, String, String, bool) =
            (row.get(1), row.get(2), row.get(3), row.get(4));
        let name = TablePattern::exact(&schema, &table).to_string();
        if kind == "f" {
            continue;
        }
        let (may_use, may_select, is_secured): (bool, bool, bool) = (row.get(5), row.get(6), row.get(7));
        if !may_use && !schemas.contains(&schema) {
            grants.push(format!("GRANT USAGE ON SCHEMA {} TO {role};", quote_ident(&schema)));
            schemas.push(schema.clone());
        }
        if !may_select {
            let sql_name = crate::wal::sql::quote_qualified(&schema, &table);
            grants.push(format!("GRANT SELECT ON {sql_name} TO {role};"));
        }
        if !(may_use && may_select) {
            unreadable.push(name.clone());
        }
        if is_leaf && is_secured {
            secured.push(name);
        }
    }
    if pipeline.config.source.snapshot == SnapshotMode::Never {
        return Ok(());
    }
    if !unreadable.is_empty() {
        report.add_about(
            Severity::Fault,
            "source.snapshot",
            &unreadable,
            format!("role {} may not read, and so not copy: {}", view.server.role, unreadable.join(", ")),
            grants.join("\n"),
        );
    }
    if !secured.is_empty() {
        report.add_about(
            Severity::Fault,
            "source.snapshot",
            &secured,
            format!("row level security hides rows from role {}: {}", view.server.role, secured.join(", ")),
            format!("ALTER ROLE {role} BYPASSRLS;"),
        );
    }
    Ok(())
}
