//! `walgate verify`: are the replicas' tables what the rules say? DESIGN sections 6 and 7.
//!
//! Comes in: the tables of each replica's pipeline. Goes out: for every table its rows, and the keys that differ. Rows
//! are compared as text, under the rule's filter, list and names: first by checksums of 4096 ranges of the keys' hash,
//! computed by both servers, then, where two checksums differ, key by key. Nothing is changed. Always holds with
//! `--wait`: a key is only called different if it is so after the replica has passed everything that the source had
//! committed before the key was read there, and the source's row did not change meanwhile.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Failure;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::pipeline::Pipeline;
use crate::pipeline::leaves;
use crate::pipeline::tables::{self, MatchedTable};
use crate::route::name::TablePattern;
use crate::route::row::Targets;
use crate::route::row_plan::RowPlan;
use crate::route::selection::SelectionContext;
use crate::sink::checkpoint::Parked;
use crate::sink::destination::Address;
use crate::sink::replica;
use crate::wal::catalog;
use crate::wal::client::{Client, classify, connect};
use crate::wal::slot;
use crate::wal::sql::{quote_ident, quote_qualified};

/// Between two looks at the replica's checkpoint.
const LOOK_TIME: Duration = Duration::from_millis(100);
/// Without any progress of the replica for so long, `--wait` gives up.
const STILL_TIME_MAX: Duration = Duration::from_secs(60);
/// Keys that differ are looked at so often under `--wait` before they are called different.
const LOOKS_MAX: usize = 20;
/// Keys shown for each table, as text.
const KEYS_SHOWN: usize = 20;

/// What `walgate verify` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only these tables of the source: schema.table
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Only this replica
    #[arg(long, value_name = "NAME")]
    pub replica: Option<String>,
    /// While writes go on: compare once the replica has passed what the source has committed
    #[arg(long)]
    pub wait: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    equal: bool,
    tables: Vec<TableReport>,
}

/// Of one table.
#[derive(Debug, Serialize)]
pub(super) struct TableReport {
    replica: String,
    /// On the source.
    table: String,
    /// On the replica.
    target: String,
    /// Why it is parked, and so not compared.
    pub(super) parked: Option<String>,
    pub(super) rows_source: u64,
    pub(super) rows_replica: u64,
    pub(super) differing: Vec<Differing>,
}

/// A key whose rows differ.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(super) struct Differing {
    /// The texts of its columns, of a table without a key all of them; null for NULL.
    key: Vec<Option<String>>,
    what: What,
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum What {
    /// Only the source has it.
    Missing,
    /// Only the replica has it.
    Extra,
    /// Both have it, with other values.
    Different,
}

/// Compares and prints.
///
/// # Errors
/// [`Failure::Found`] when something differs; usage: no such table or replica; as the connections.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let pipelines = super::replicas(config, arguments.replica.as_deref())?;
    let mut report = Report { equal: true, tables: Vec::new() };
    for pipeline in &pipelines {
        report.tables.extend(compare(pipeline, arguments).await?);
    }
    if report.tables.is_empty() {
        return Err(Failure::Usage(format!(
            "no table that is replicated has the name {}\n  remedy: names are schema.table, as on the source",
            arguments.tables.join(", ")
        )));
    }
    report.equal = report.tables.iter().all(|table| table.differing.is_empty() && table.parked.is_none());
    super::print(&report, arguments.json, text);
    if report.equal { Ok(()) } else { Err(Failure::Found) }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for table in &report.tables {
        let TableReport { replica, table: name, target, parked, rows_source, rows_replica, differing } =
            table;
        let target = if name == target { String::new() } else { format!(" ({target})") };
        if let Some(reason) = parked {
            out.push_str(&format!("{replica}: {name}{target}: parked, not compared: {reason}\n"));
            continue;
        }
        match differing.len() {
            0 => out.push_str(&format!("{replica}: {name}{target}: equal, {rows_source} rows\n")),
            count => out.push_str(&format!(
                "{replica}: {name}{target}: {count} keys differ; {rows_source} rows on the source, {rows_replica} on the replica\n"
            )),
        }
        for differing in differing.iter().take(KEYS_SHOWN) {
            let key: Vec<&str> = differing.key.iter().map(|part| part.as_deref().unwrap_or("NULL")).collect();
            let what = match differing.what {
                What::Missing => "missing on the replica",
                What::Extra => "only on the replica",
                What::Different => "has other values",
            };
            out.push_str(&format!("  {}: {what}\n", key.join(", ")));
        }
        if differing.len() > KEYS_SHOWN {
            out.push_str(&format!("  ... and {} more (--json lists all)\n", differing.len() - KEYS_SHOWN));
        }
    }
    out
}

/// The sessions of a comparison.
struct Sides<'p> {
    pipeline: &'p Pipeline,
    source: Client,
    replica: Client,
}

/// One table as it is read on both sides.
struct Compared {
    /// What the filter's names and operators are looked up in.
    search_path: Option<String>,
    name: String,
    target: String,
    /// `SELECT` of bucket, key texts and row's hash, without a condition.
    rows_source: String,
    rows_replica: String,
}

/// The tables of one replica.
pub(super) async fn compare(pipeline: &Pipeline, arguments: &Arguments) -> Result<Vec<TableReport>> {
    let Address::Replica(settings) = pipeline.address()? else { return Ok(Vec::new()) };
    let failed = |error: Error| error.context(format_args!("replica {}", pipeline.short_name()));
    let sides = Sides {
        pipeline,
        source: connect(&pipeline.url, "walgate verify").await?,
        replica: connect(&settings.url, "walgate verify").await.map_err(failed)?,
    };
    let (types, enums) = (catalog::types(&sides.source).await?, catalog::enums(&sides.source).await?);
    let is_asked = |matched: &MatchedTable| {
        let mut tables = arguments.tables.iter();
        arguments.tables.is_empty() || tables.any(|asked| leaves::is_named(&matched.table, asked))
    };
    let taken = tables::taken(pipeline, &sides.source).await?;
    let asked: Vec<&MatchedTable> = taken.iter().filter(|matched| is_asked(matched)).collect();
    let stored = replica::stored(&sides.replica, &pipeline.name()).await.map_err(failed)?;
    let bar = progress(asked.len(), arguments);
    let mut reports = Vec::new();
    for matched in asked {
        let state = stored.tables.get(&matched.table.oid);
        if let Some(parked) = state.and_then(|state| state.parked.as_ref()) {
            reports.push(parked_table(pipeline, matched, parked));
            continue;
        }
        let context = SelectionContext {
            types: &types,
            enums: &enums,
            primary_key: &matched.table.primary_key,
            facts: &matched.facts,
        };
        let compared = compared(context, matched)?;
        bar.set_message(compared.name.clone());
        let search_path = compared.search_path.as_deref().unwrap_or("pg_catalog");
        sides.source.batch_execute(&format!("SET search_path = {search_path}")).await.map_err(classify)?;
        reports.push(sides.table(&compared, arguments.wait).await.map_err(failed)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(reports)
}

/// Of a table that differs, by what the pipeline itself says.
fn parked_table(pipeline: &Pipeline, matched: &MatchedTable, parked: &Parked) -> TableReport {
    let (table, rule) = (&matched.table, &matched.rule);
    let (schema, name) = rule.target_name(&table.schema, &table.name);
    TableReport {
        replica: pipeline.short_name().to_owned(),
        table: TablePattern::exact(&table.schema, &table.name).to_string(),
        target: TablePattern::exact(&schema, &name).to_string(),
        parked: Some(parked.reason.clone()),
        rows_source: 0,
        rows_replica: 0,
        differing: Vec::new(),
    }
}

fn progress(tables: usize, arguments: &Arguments) -> ProgressBar {
    if arguments.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} tables, {elapsed}: {msg}");
    ProgressBar::new(tables as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// How a table is read.
fn compared(context: SelectionContext<'_>, matched: &MatchedTable) -> Result<Compared> {
    let (table, rule, targets) = (&matched.table, &matched.rule, Targets::default());
    let plan = RowPlan::compile(context, &table.relation(), rule, &targets, Lsn::ZERO)?;
    let mut known = Vec::new();
    targets.refresh(&mut known);
    let target = known.get(plan.target.index()).expect("a plan's target is interned");
    let text = |name: &String| format!("{}::text", quote_ident(name));
    let columns: Vec<String> = target.columns.iter().map(|column| text(&column.name)).collect();
    let key: Vec<String> = match target.key.is_empty() {
        true => columns.clone(),
        false => target.key.iter().filter_map(|&at| columns.get(at).cloned()).collect(),
    };
    let (key, row) =
        (format!("ARRAY[{}]::text[]", key.join(", ")), format!("ARRAY[{}]::text[]", columns.join(", ")));
    let select = |from: &str, condition: &str| {
        format!(
            "SELECT ('x' || substr(md5(key::text), 1, 3))::bit(12)::int AS bucket, key, md5(cells::text) AS hash \
             FROM (SELECT {key} AS key, {row} AS cells FROM {from}{condition}) AS r"
        )
    };
    let only = if table.is_partitioned { "" } else { "ONLY " };
    let condition = rule.filter.as_ref().map(|filter| format!(" WHERE ({filter}\n)")).unwrap_or_default();
    Ok(Compared {
        search_path: plan.selection.filter.as_ref().map(|filter| filter.filter.search_path()),
        name: TablePattern::exact(&table.schema, &table.name).to_string(),
        target: TablePattern::exact(&target.schema, &target.name).to_string(),
        rows_source: select(&format!("{only}{}", table.sql_name()), &condition),
        rows_replica: select(&quote_qualified(&target.schema, &target.name), ""),
    })
}

/// Rows of some buckets: by key, the hashes of its rows in their order.
type Rows = BTreeMap<Vec<Option<String>>, Vec<String>>;

impl Sides<'_> {
    async fn table(&self, compared: &Compared, wait: bool) -> Result<TableReport> {
        if wait {
            self.wait().await?;
        }
        let (here, there) = tokio::try_join!(
            sums(&self.source, &compared.rows_source),
            sums(&self.replica, &compared.rows_replica)
        )?;
        let buckets: Vec<i32> = here
            .keys()
            .chain(there.keys())
            .filter(|bucket| here.get(*bucket) != there.get(*bucket))
            .copied()
            .collect();
        let mut differing = BTreeMap::new();
        for look in 0..LOOKS_MAX {
            if buckets.is_empty() {
                break;
            }
            // The source first: what is read there is what the replica must have reached.
            let before = rows(&self.source, &compared.rows_source, &buckets).await?;
            if wait {
                self.wait().await?;
            }
            let there = rows(&self.replica, &compared.rows_replica, &buckets).await?;
            differing = differ(&before, &there);
            if !wait || differing.is_empty() {
                break;
            }
            // A row that changes all the time is looked at again; one that stands still and differs, differs.
            let after = rows(&self.source, &compared.rows_source, &buckets).await?;
            let stands_still = |key: &Vec<Option<String>>| before.get(key) == after.get(key);
            if look > 0 && differing.keys().all(stands_still) {
                break;
            }
        }
        let count = |sums: &Sums| sums.values().map(|(rows, _)| rows).sum();
        Ok(TableReport {
            replica: self.pipeline.short_name().to_owned(),
            table: compared.name.clone(),
            target: compared.target.clone(),
            rows_source: count(&here),
            rows_replica: count(&there),
            parked: None,
            differing: differing.into_iter().map(|(key, what)| Differing { key, what }).collect(),
        })
    }

    /// Until the replica has passed everything that the source has committed by now.
    async fn wait(&self) -> Result<()> {
        let end = slot::source_end(&self.source).await?;
        let (mut reached, mut moved_at) = (Lsn::ZERO, Instant::now());
        loop {
            let stored = replica::stored(&self.replica, &self.pipeline.name()).await?;
            let safe_lsn = stored.checkpoint.map_or(Lsn::ZERO, |checkpoint| checkpoint.safe_lsn);
            if safe_lsn >= end {
                return Ok(());
            }
            if safe_lsn > reached {
                (reached, moved_at) = (safe_lsn, Instant::now());
            } else if moved_at.elapsed() > STILL_TIME_MAX {
                return Err(Error::definite(format!(
                    "the replica stands still at {safe_lsn}, the source is at {end}"
                ))
                .with_hint("is `walgate run` running? `walgate status` says; without --wait, verify compares as things are"));
            }
            tokio::time::sleep(LOOK_TIME).await;
        }
    }
}

/// By bucket, rows and checksum.
type Sums = BTreeMap<i32, (u64, String)>;

async fn sums(client: &Client, rows: &str) -> Result<Sums> {
    let query = format!(
        "SELECT bucket, count(*), sum(('x' || substr(hash, 1, 15))::bit(60)::bigint)::text FROM ({rows}) AS t GROUP BY bucket"
    );
    let found = client.query(&query, &[]).await.map_err(classify)?;
    let count = |row: &tokio_postgres::Row| u64::try_from(row.get::<_, i64>(1)).unwrap_or(0);
    Ok(found.iter().map(|row| (row.get(0), (count(row), row.get(2)))).collect())
}

async fn rows(client: &Client, rows: &str, buckets: &[i32]) -> Result<Rows> {
    let query = format!("SELECT key, hash FROM ({rows}) AS t WHERE bucket = ANY ($1)");
    let mut found = Rows::new();
    for row in client.query(&query, &[&buckets]).await.map_err(classify)? {
        found.entry(row.get(0)).or_default().push(row.get(1));
    }
    found.values_mut().for_each(|hashes| hashes.sort_unstable());
    Ok(found)
}

fn differ(here: &Rows, there: &Rows) -> BTreeMap<Vec<Option<String>>, What> {
    let mut differing = BTreeMap::new();
    for (key, hashes) in here {
        match there.get(key) {
            Some(others) if others == hashes => {}
            Some(others) if others.len() > hashes.len() => drop(differing.insert(key.clone(), What::Extra)),
            Some(others) if others.len() < hashes.len() => drop(differing.insert(key.clone(), What::Missing)),
            Some(_) => drop(differing.insert(key.clone(), What::Different)),
            None => drop(differing.insert(key.clone(), What::Missing)),
        }
    }
    differing
        .extend(there.keys().filter(|key| !here.contains_key(*key)).map(|key| (key.clone(), What::Extra)));
    differing
}
