//! `walgate demo`: the whole way of a row, on a throwaway cluster, with a crash in the middle (DESIGN section 7).
//!
//! In: PostgreSQL's programs and a number of seconds. Out: a story on stdout, and exit code 0 only if the events,
//! read as a consumer reads them, add up to exactly the source's tables and to exactly the changes that were
//! committed, and the replica's rows are the orders that its filter lets pass. Always: nothing is left behind, whichever way it ends; no port is opened; the engine is the one
//! that `walgate run` has.

mod check;
mod claim;
mod consumer;
mod progress;
mod reporting;
mod running;
mod verdict;
mod workload;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use tokio::time::Instant;

use super::Failure;
use super::throwaway::programs::Programs;
use super::throwaway::{Cluster, Purpose};
use crate::config::Config;
use crate::engine;
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::pipeline::status::State;
use crate::sink::file;
use crate::wal::client::{Client, classify};
use check::{Comparison, SourceTable};
use consumer::{Consumer, Fold, unix_micros};
use progress::{Progress, grouped, milliseconds};
use reporting::{FILTER, REPORTING};
use running::Running;
use verdict::Outage;
use workload::{Committed, DATABASE, Dice, ORDERS};

/// What `walgate demo` is asked.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How long the workload runs, in seconds
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

/// The copy, and what is left after the workload, must each be through in this time: ten times what they need.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_TIME: Duration = Duration::from_millis(20);
/// The publications that hold a table.
const PUBLICATION_OF: &str =
    "SELECT pubname::text FROM pg_publication_tables WHERE tablename = 'pgbench_history' ORDER BY pubname";

/// Nothing here has to survive a crash of the machine, and nobody else connects.
fn purpose() -> Purpose {
    let settings = ["fsync=off", "full_page_writes=off", "shared_buffers=64MB"];
    Purpose { name: "demo", settings: settings.map(str::to_owned).into(), is_on_tcp: false }
}

/// Runs the demo.
///
/// # Errors
/// [`Failure::Found`] when the events are not the source's changes, or the replica not what its rule says; the story says where. An error of its parts
/// otherwise, an interrupt included.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let progress = Progress::new();
    let shown = tokio::select! {
        () = engine::wait_for_signal() => Err(Error::definite("interrupted: the demo's server is stopped and its folder removed")),
        shown = show(&arguments, &progress) => shown,
    };
    progress.finish();
    if shown? { Ok(()) } else { Err(Failure::Found) }
}

/// The story; true: everything is equal.
async fn show(arguments: &Arguments, progress: &Progress) -> Result<bool> {
    let programs = Programs::find()?;
    let version = programs.version.clone();
    let cluster = progress
        .while_waiting(
            &format!("starting a PostgreSQL {version} of its own"),
            Cluster::start(programs, purpose()),
        )
        .await?;
    let folder = cluster.folder().to_owned();
    progress
        .while_waiting(
            "filling pgbench's tables, and orders (text, jsonb, text[], numeric, a 9.6 kB TOASTed column)",
            workload::fill(&cluster),
        )
        .await?;
    let is_equal = on_cluster(arguments, progress, &cluster).await?;
    progress.while_waiting("stopping the server", async { drop(cluster) }).await;
    if folder.exists() {
        return Err(Error::definite(format!("{} is still there", folder.display())).with_hint("remove it"));
    }
    progress.say(format!(
        "Nothing is left of it: the server is stopped, its folder removed. {:.0} s in all.",
        progress.elapsed().as_secs_f64()
    ));
    Ok(is_equal)
}

async fn on_cluster(arguments: &Arguments, progress: &Progress, cluster: &Cluster) -> Result<bool> {
    let client = cluster.connect(DATABASE).await?;
    let tables = check::tables(&client).await?;
    let mut rows_at_first = Vec::new();
    for table in &tables {
        rows_at_first.push(check::count(&client, table).await?);
    }
    let pipelines = Pipeline::all(&Arc::new(configuration(cluster)?), false)?;
    let [hub, replica] = pipelines.as_slice() else {
        return Err(Error::definite("the demo's configuration has another number of pipelines"));
    };
    let reporting = cluster.connect(REPORTING).await?;
    let mut consumer = Consumer::start(cluster.hub())?;

    let began = Instant::now();
    let running = Running::start(&pipelines);
    let copied = rows_at_first.iter().sum::<u64>();
    let copy = async {
        are_streaming(&pipelines).await?;
        let copied_in = began.elapsed();
        // So that the lag, from here on, is not that of a consumer which still reads the copy.
        while consumer.with_seen(|seen| seen.events) < copied {
            is_in_time(began)?;
            tokio::time::sleep(POLL_TIME).await;
        }
        Ok::<_, Error>(copied_in)
    };
    let copy = running.unless_it_ends(copy);
    let copied_in = progress.while_events_come("copying", &consumer, &hub.status, copy).await??;
    progress.say(format!(
        "copied {} rows in {:.1} s, each a `read` event, and {} orders as rows to the replica {REPORTING} (WHERE {FILTER});\n  from here on both stream",
        grouped(copied),
        copied_in.as_secs_f64(),
        grouped(reporting::count(&reporting).await?)
    ));
    warn_of_keyless(progress, &client).await?;

    let (committed, running, outage) =
        stream(arguments, progress, cluster, &pipelines, &consumer, running).await?;
    progress.while_events_come("finishing", &consumer, &hub.status, finish(running, &pipelines)).await?;
    let checking = async {
        let fold = consumer.finish().await?;
        let comparisons = compare(&client, &tables, &fold, &committed, &rows_at_first).await?;
        Ok::<_, Error>((fold, comparisons))
    };
    let (fold, comparisons) = progress
        .while_waiting("comparing what the events add up to with the source's tables", checking)
        .await?;
    let verified = progress.while_waiting("verifying the replica", reporting::verify(replica)).await?;
    progress.show_samples(&consumer);
    let is_resolved = claim::show(progress, cluster).await?;
    let lags = consumer.with_seen(|seen| std::mem::take(&mut seen.lags));
    let are_rows_equal = reporting::tell(progress, &verified, &committed);
    Ok(verdict::tell(progress, &committed, &fold, &comparisons, lags, &outage)
        && are_rows_equal
        && is_resolved)
}

/// Also written into the demo's folder, for commands that are run as such.
fn configuration(cluster: &Cluster) -> Result<Config> {
    let quoted = |text: String| toml::Value::String(text).to_string();
    let text = format!(
        "[source]\nname = \"shop\"\nurl = {}\n[hub]\nkind = \"file\"\npath = {}\n[admin]\nlisten = \"off\"\n\
         [claim_check]\nstore = {}\n\
         [[replica]]\nname = \"{REPORTING}\"\nurl = {}\n\
         [[table]]\nname = \"public.*\"\n\
         [[table]]\nname = \"{ORDERS}\"\nmode = \"replicate\"\nwhere = \"{FILTER}\"\n",
        quoted(cluster.url(DATABASE)),
        quoted(cluster.hub().to_string_lossy().into_owned()),
        quoted(claim::store_of(cluster)),
        quoted(cluster.url(REPORTING)),
    );
    claim::write_configuration(cluster, &text)?;
    Config::parse(&text, &|_| None, cluster.folder())
        .map_err(|faults| Error::definite(format!("the demo's own configuration: {faults}")))
}

/// Resolves when the copies are done.
async fn are_streaming(pipelines: &[Pipeline]) -> Result<()> {
    let began = Instant::now();
    for pipeline in pipelines {
        while pipeline.status.read().state != State::Streaming {
            is_in_time(began).map_err(|error| match pipeline.status.read().last_error {
                Some(last) => error.with_hint(last),
                None => error,
            })?;
            tokio::time::sleep(POLL_TIME).await;
        }
    }
    Ok(())
}

fn is_in_time(began: Instant) -> Result<()> {
    match began.elapsed() < PATIENCE {
        true => Ok(()),
        false => Err(Error::definite(format!(
            "the pipeline is not where it should be after {} s",
            PATIENCE.as_secs()
        ))),
    }
}

async fn warn_of_keyless(progress: &Progress, client: &Client) -> Result<()> {
    let rows = client.query(PUBLICATION_OF, &[]).await.map_err(classify)?;
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    progress.say(format!(
        "warning: pgbench_history has no key: it is in the publication {}, for inserts and truncates only;\n  its updates and deletes would not be seen (ALTER TABLE pgbench_history REPLICA IDENTITY FULL changes that)",
        names.join(", ")
    ));
    Ok(())
}

/// The workload, with the pipelines' violent end at a random moment of its middle.
async fn stream(
    arguments: &Arguments,
    progress: &Progress,
    cluster: &Cluster,
    pipelines: &[Pipeline],
    consumer: &Consumer,
    running: Running,
) -> Result<(Committed, Running, Outage)> {
    let length = Duration::from_secs(arguments.seconds);
    let permille = 400 + u32::try_from(Dice::new().below(200)).expect("below 200");
    let is_over = tokio::sync::Notify::new();
    let work = async {
        let committed = workload::run(cluster, length).await?;
        is_over.notify_one();
        Ok::<_, Error>(committed)
    };
    let crash = async {
        running.unless_it_ends(tokio::time::sleep(length * permille / 1000)).await?;
        let from = unix_micros(SystemTime::now());
        running.kill().await;
        pipelines.iter().for_each(|pipeline| pipeline.status.enter(State::Stopped));
        let stored = file::peek(&cluster.hub())?.checkpoint;
        let at = stored.map_or_else(|| "none".to_owned(), |checkpoint| checkpoint.commit_lsn.to_string());
        progress.say(format!(
            "killed both pipelines in the middle, {} events in; the hub's checkpoint is at {at}, the workload goes on",
            grouped(consumer.with_seen(|seen| seen.events))
        ));
        let running = Running::start(pipelines);
        running.unless_it_ends(are_streaming(pipelines)).await??;
        let until = unix_micros(SystemTime::now());
        progress.say(format!(
            "started them again: each went on from its checkpoint, streaming after {}",
            milliseconds(until.saturating_sub(from))
        ));
        running.unless_it_ends(is_over.notified()).await?;
        Ok::<_, Error>((running, Outage { from, until }))
    };
    let both = async { tokio::try_join!(work, crash) };
    let status = &pipelines.first().expect("there are two").status;
    let (committed, (running, outage)) =
        progress.while_events_come("streaming", consumer, status, both).await?;
    Ok((committed, running, outage))
}

/// Drains, then lets a last start deliver everything that was committed.
async fn finish(running: Running, pipelines: &[Pipeline]) -> Result<()> {
    let last = async {
        running.drain().await?;
        let last = |pipeline: &Pipeline| Pipeline { until_caught_up: true, ..pipeline.clone() };
        Running::start(&pipelines.iter().map(last).collect::<Vec<_>>()).end().await
    };
    tokio::time::timeout(PATIENCE, last)
        .await
        .unwrap_or_else(|_| Err(Error::definite("the pipelines do not catch up")))
}

async fn compare(
    client: &Client,
    tables: &[SourceTable],
    fold: &Fold,
    committed: &Committed,
    rows_at_first: &[u64],
) -> Result<Vec<Comparison>> {
    let mut comparisons = Vec::new();
    for (table, rows) in tables.iter().zip(rows_at_first) {
        comparisons.push(check::compare(client, table, fold, committed, *rows).await?);
    }
    Ok(comparisons)
}
