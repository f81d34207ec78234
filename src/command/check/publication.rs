//! `check`: the publications, managed or given, and the rights that keeping them takes.
//!
//! Manual: "CREATE PUBLICATION", "ALTER PUBLICATION" (adding a table needs its ownership).

use super::report::{Report, Severity};
use super::source::SourceView;
use super::tables::rule_name;
use crate::config::Publication;
use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::pipeline::tables::{self, MatchedTable};
use crate::wal::client::classify;
use crate::wal::sql::{quote_ident, quote_literal, quote_qualified};

const KEY: &str = "source.publication";
const PUBLICATIONS: &str = "SELECT p.pubname::text, pg_catalog.pg_has_role(p.pubowner, 'USAGE'), p.pubinsert, \
p.pubupdate, p.pubdelete, p.pubtruncate FROM pg_catalog.pg_publication p WHERE p.pubname = ANY ($1)";
/// Those of the tables $1 that the role does not own.
const NOT_OWNED: &str = "SELECT c.oid FROM pg_catalog.pg_class c \
WHERE c.oid = ANY ($1) AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')";

/// See the module.
pub async fn examine(pipeline: &Pipeline, view: &SourceView, report: &Report) -> Result<()> {
    match &pipeline.config.source.publication {
        Publication::Managed => managed(pipeline, view, report).await,
        Publication::Existing(name) => existing(pipeline, view, name, report).await,
    }
}

async fn managed(pipeline: &Pipeline, view: &SourceView, report: &Report) -> Result<()> {
    let names = pipeline.publications.names();
    let rows = view.client.query(PUBLICATIONS, &[&names]).await.map_err(classify)?;
    let (role, role_sql) = (&view.server.role, quote_ident(&view.server.role));
    let members = pipeline.publications.members(&view.client).await?;
    let new: Vec<u32> =
        view.tables.iter().map(|one| one.table.oid).filter(|oid| !members.contains_key(oid)).collect();
    let mut grants = Vec::new();
    let mut reasons = Vec::new();
    if rows.len() < names.len() && !view.server.may_create {
        reasons.push(format!(
            "role {role} may not create publications in the database {}",
            view.server.database
        ));
        grants
            .push(format!("GRANT CREATE ON DATABASE {} TO {role_sql};", quote_ident(&view.server.database)));
    }
    for row in rows.iter().filter(|row| !row.get::<_, bool>(1)) {
        let name: String = row.get(0);
        reasons.push(format!("role {role} does not own the publication {name}"));
        grants.push(format!("ALTER PUBLICATION {} OWNER TO {role_sql};", quote_ident(&name)));
    }
    let not_owned: Vec<u32> =
        view.client.query(NOT_OWNED, &[&new]).await.map_err(classify)?.iter().map(|row| row.get(0)).collect();
    let foreign: Vec<&MatchedTable> =
        view.tables.iter().filter(|one| not_owned.contains(&one.table.oid)).collect();
    let about: Vec<String> = foreign.iter().map(|one| rule_name(&one.table)).collect();
    if !foreign.is_empty() {
        reasons.push(format!(
            "role {role} does not own, and so may not add to a publication: {}",
            about.join(", ")
        ));
        grants.extend(
            foreign.iter().map(|one| format!("ALTER TABLE {} OWNER TO {role_sql};", one.table.sql_name())),
        );
    }
    if !reasons.is_empty() {
        let remedy = format!(
            "as an administrator: {}\nand write source.publication = \"{}\"\nor:\n{}",
            create(&pipeline.config.source.slot, &view.tables),
            pipeline.config.source.slot,
            grants.join("\n")
        );
        report.add_about(Severity::Fault, KEY, &about, reasons.join("; "), remedy);
    }
    Ok(())
}

/// The publication that an administrator makes. Tables without an identity are left out: publishing
/// their updates would make the application's own statements fail. A root whose leaves are tables of their own stands for
/// them, so that later ones are sent too, where no other partitioned table is sent as one.
pub fn create(name: &str, tables: &[MatchedTable]) -> String {
    let has_identity = |one: &&MatchedTable| one.table.has_usable_identity();
    let is_by_root = tables.iter().any(|one| one.table.root.is_some())
        && tables.iter().all(|one| !one.table.is_partitioned)
        && tables.iter().filter(|one| one.table.root.is_some()).all(|one| has_identity(&one));
    let named = |one: &MatchedTable| match &one.table.root {
        Some((schema, root)) if is_by_root => quote_qualified(schema, root),
        _ => one.table.sql_name(),
    };
    let mut tables: Vec<String> = tables.iter().filter(has_identity).map(named).collect();
    tables.sort_unstable();
    tables.dedup();
    let list = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", tables.join(", ")) };
    format!(
        "CREATE PUBLICATION {}{list} WITH (publish_via_partition_root = {});",
        quote_ident(name),
        !is_by_root
    )
}

async fn existing(pipeline: &Pipeline, view: &SourceView, name: &str, report: &Report) -> Result<()> {
    let names = pipeline.publications.names();
    let Some(row) = view.client.query_opt(PUBLICATIONS, &[&names]).await.map_err(classify)? else {
        report.fault(
            KEY,
            format!("publication \"{name}\" does not exist"),
            format!(
                "as an administrator: {}\nor set source.publication = \"managed\"",
                create(name, &view.tables)
            ),
        );
        return Ok(());
    };
    let operations = ["insert", "update", "delete", "truncate"];
    let left_out: Vec<&str> = operations
        .iter()
        .zip(2..)
        .filter(|(_, at)| !row.get::<_, bool>(*at))
        .map(|(word, _)| *word)
        .collect();
    if !left_out.is_empty() {
        report.warning(
            KEY,
            format!("publication {name} does not publish {}: there are no events of it", left_out.join(", ")),
            format!(
                "ALTER PUBLICATION {} SET (publish = {});",
                quote_ident(name),
                quote_literal(&operations.join(", "))
            ),
        );
    }
    let outboxes = || view.tables.iter().filter(|one| one.rule.outbox.is_some());
    if left_out.contains(&"insert") && outboxes().next().is_some() {
        let names: Vec<String> = outboxes().map(|one| rule_name(&one.table)).collect();
        let message = format!(
            "publication {name} does not publish insert, which is all that an outbox table is: {}",
            names.join(", ")
        );
        let remedy = format!(
            "ALTER PUBLICATION {} SET (publish = {});",
            quote_ident(name),
            quote_literal(&operations.join(", "))
        );
        report.add_about(Severity::Fault, KEY, &names, message, remedy);
    }
    for missing in
        tables::published_otherwise(pipeline, &view.client, &all_taken(pipeline, view).await?).await?
    {
        report.add_about(Severity::Fault, KEY, &[missing.table], missing.message, missing.remedy);
    }
    if !left_out.contains(&"update") || !left_out.contains(&"delete") {
        failing_updates(view, name, report);
    }
    for one in &view.tables {
        let table = rule_name(&one.table);
        let Some(published) = &one.published else { continue };
        let lacks = published.columns.as_ref().map(|sent| {
            let all = one.table.columns.iter().map(|column| &column.name);
            all.filter(|column| !sent.contains(column)).cloned().collect::<Vec<_>>()
        });
        if let Some(lacks) = lacks.filter(|lacks| !lacks.is_empty()) {
            let message =
                format!("publication {name} does not send these columns of {table}: {}", lacks.join(", "));
            report.add_about(Severity::Note, KEY, std::slice::from_ref(&table), message, "");
        }
        if let Some(filter) = &published.row_filter {
            let message = format!("publication {name} sends only rows of {table} that pass {filter}");
            report.add_about(Severity::Note, KEY, &[table], message, "");
        }
    }
    Ok(())
}

async fn all_taken(pipeline: &Pipeline, view: &SourceView) -> Result<Vec<MatchedTable>> {
    tables::taken(pipeline, &view.client).await
}

/// Tables without an identity in a publication that sends updates.
fn failing_updates(view: &SourceView, name: &str, report: &Report) {
    let failing: Vec<&MatchedTable> =
        view.tables.iter().filter(|one| !one.table.has_usable_identity()).collect();
    if failing.is_empty() {
        return;
    }
    let names: Vec<String> = failing.iter().map(|one| rule_name(&one.table)).collect();
    let statements: Vec<String> = failing
        .iter()
        .map(|one| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", one.table.sql_name()))
        .collect();
    report.add_about(
        Severity::Warning,
        KEY,
        &names,
        format!("publication {name} publishes updates of tables without a usable replica identity: PostgreSQL refuses every UPDATE and DELETE on {}", names.join(", ")),
        statements.join("\n"),
    );
}
