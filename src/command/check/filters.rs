//! `check`: the filters of the rules, by the same steps that a start takes.
//!
//! Comes in: matched tables. Goes out: what PostgreSQL or Walgate refuses, who evaluates what is taken, and which old
//! or new rows a filter cannot know. DESIGN sections 3 and 4.

use super::report::{Report, Severity};
use super::source::SourceView;
use super::tables::rule_name;
use crate::config::{ColumnSet, OnUnknownOld, Pushdown};
use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::pipeline::filters::compiled;
use crate::pipeline::pushdown;
use crate::pipeline::tables::{self, MatchedTable};
use crate::route::filter::{EnumLabels, Evaluator, Filter};
use crate::route::value::TypeCatalog;
use crate::wal::catalog;
use crate::wal::client::{Client, classify};
use crate::wal::pgoutput::ReplicaIdentity;
use crate::wal::publication::server_version;

/// Columns of the table $1 whose values may be stored out of line: never those that their type keeps within 24 bytes, the
/// size from which on a value is moved (heap_toast.c). Strings of up to 5 characters and numerics of up to 20 digits are.
const TOASTABLE: &str = "SELECT a.attname::text FROM pg_catalog.pg_attribute a \
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> 'p' AND a.attlen = -1 \
  AND NOT (a.atttypid IN (1042, 1043) AND a.atttypmod BETWEEN 4 AND 9) \
  AND NOT (a.atttypid = 1700 AND a.atttypmod >= 4 AND ((a.atttypmod - 4) >> 16 & 65535) <= 20)";

/// See the module. Reads the tables' facts into `taken`.
///
/// # Errors
/// As the connection.
pub async fn examine(
    pipeline: &Pipeline,
    view: &mut SourceView,
    types: &TypeCatalog,
    taken: &mut [MatchedTable],
    report: &Report,
) -> Result<EnumLabels> {
    let enums = catalog::enums(&view.client).await?;
    tables::read_facts(&view.client, taken).await?;
    let version = server_version(&view.client).await?;
    for matched in taken.iter() {
        let filter = compiled(&mut view.client, types, &enums, matched).await?;
        if matched.rule.pushdown == Pushdown::Auto {
            pushed(pipeline, version, matched, filter.as_ref().and_then(|one| one.as_ref().ok()), report);
        }
        let Some(filter) = filter else { continue };
        let key = format!("{}.where", matched.rule.key_path);
        let name = [rule_name(&matched.table)];
        match filter {
            Err(error) => {
                let remedy = error.hint().unwrap_or_default().to_owned();
                report.add_about(Severity::Fault, &key, &name, error.chain(), remedy);
            }
            Ok(filter) => {
                evaluator(&filter, &key, &name, report);
                let is_replica = pipeline.replica.is_some();
                unknown(&view.client, is_replica, matched, &filter, (&key, &name), report).await?;
            }
        }
    }
    Ok(enums)
}

fn evaluator(filter: &Filter, key: &str, name: &[String], report: &Report) {
    let message = match filter.evaluator() {
        Evaluator::Own => format!("the filter of {} is evaluated by Walgate", name.join(", ")),
        Evaluator::Server => format!(
            "the filter of {} is evaluated by PostgreSQL, on the source, a batch at a time, because of {}",
            name.join(", "),
            filter.why_server().unwrap_or("its form")
        ),
    };
    let remedy = match filter.evaluator() {
        Evaluator::Own => "nothing to do",
        Evaluator::Server => {
            "nothing to do; docs/filters.md says what Walgate evaluates itself, which is faster"
        }
    };
    report.add_about(Severity::Note, key, name, message, remedy);
}

/// What of the rule the publication does.
fn pushed(
    pipeline: &Pipeline,
    version: i32,
    matched: &MatchedTable,
    filter: Option<&Filter>,
    report: &Report,
) {
    let (key, name) = (format!("{}.pushdown", matched.rule.key_path), rule_name(&matched.table));
    let note = |message: String, remedy: &str| {
        report.add_about(Severity::Note, &key, std::slice::from_ref(&name), message, remedy);
    };
    match (filter, &matched.rule.filter) {
        (Some(filter), _) => match pushdown::why_not(pipeline, version, matched, filter) {
            None => note(
                format!("the filter of {name} is pushed down into the publication"),
                "while it is there, PostgreSQL refuses DROP COLUMN and ALTER TYPE of its columns on the source: write pushdown = \"off\" before",
            ),
            Some(why) => note(format!("the filter of {name} is not pushed down: {why}"), "nothing to do"),
        },
        (None, None) => note(format!("the rule has no filter of {name} to be pushed down"), "nothing to do"),
        (None, Some(_)) => {}
    }
    if matched.rule.columns != ColumnSet::All {
        note(
            format!(
                "the list of columns of {name} is not pushed down: rows in the WAL would lack a column that is added to the list later"
            ),
            "nothing to do",
        );
    }
}

/// Rows on whose side of the filter nothing is known, because the WAL does not have their values.
async fn unknown(
    client: &Client,
    is_replica: bool,
    matched: &MatchedTable,
    filter: &Filter,
    (key, name): (&str, &[String]),
    report: &Report,
) -> Result<()> {
    let table = &matched.table;
    if table.identity == ReplicaIdentity::Full || !table.has_usable_identity() {
        return Ok(());
    }
    let identity = table.identity_columns().unwrap_or_default();
    let mut outside: Vec<String> = filter
        .columns()
        .iter()
        .filter_map(|&at| table.columns.get(at).map(|column| column.name.clone()))
        .filter(|column| !identity.contains(column))
        .collect();
    if outside.is_empty() {
        return Ok(());
    }
    let remedy = format!("ALTER TABLE {} REPLICA IDENTITY FULL;", table.sql_name());
    if is_replica {
        return looked_up(client, matched, &outside, (key, name), report).await;
    }
    let consequence = match matched.rule.on_unknown_old {
        OnUnknownOld::Delete => {
            "an update to a row that does not pass is published as a delete, whether or not the row passed before"
        }
        OnUnknownOld::Drop => {
            "an update to a row that does not pass is not published, also where the row passed before"
        }
    };
    report.add_about(
        Severity::Note,
        key,
        name,
        format!(
            "table {}: old values of {} are not in the WAL, so {consequence}; an update to a row that passes is published as an update, also where it enters",
            name.join(", "),
            quoted(&outside)
        ),
        format!("where this matters: {remedy}"),
    );
    retain_toastable(client, matched, &mut outside).await?;
    if !outside.is_empty() {
        report.add_about(
            Severity::Fault,
            key,
            name,
            format!(
                "table {}: the filter depends on {}, whose large (TOASTed) values are not sent where they do not change: such an update would stop the pipeline",
                name.join(", "),
                quoted(&outside)
            ),
            remedy,
        );
    }
    Ok(())
}

/// A replica finds such values out.
async fn looked_up(
    client: &Client,
    matched: &MatchedTable,
    outside: &[String],
    (key, name): (&str, &[String]),
    report: &Report,
) -> Result<()> {
    let mut outside = outside.to_vec();
    retain_toastable(client, matched, &mut outside).await?;
    if !outside.is_empty() {
        report.add_about(
            Severity::Note,
            key,
            name,
            format!(
                "table {}: the filter depends on {}, whose large (TOASTed) values are not sent where they do not change: they are looked up, in the replica's own row or in the source's",
                name.join(", "),
                quoted(&outside)
            ),
            format!(
                "nothing to do; ALTER TABLE {} REPLICA IDENTITY FULL spares the look-ups, for more WAL",
                matched.table.sql_name()
            ),
        );
    }
    Ok(())
}

async fn retain_toastable(client: &Client, matched: &MatchedTable, columns: &mut Vec<String>) -> Result<()> {
    let rows = client.query(TOASTABLE, &[&matched.table.oid]).await.map_err(classify)?;
    let toastable: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    columns.retain(|column| toastable.contains(column));
    Ok(())
}

fn quoted(columns: &[String]) -> String {
    columns.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ")
}
