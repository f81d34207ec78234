//! `walgate status`: how each pipeline is, whether or not a process runs it. DESIGN section 7,
//! docs/commands.md.
//!
//! Comes in: a running process's own word (its admin port), the source's slots and locks, the hub's
//! checkpoint. Goes out: a `Report`, as text or as JSON. Nothing is changed, nobody is fenced. What
//! cannot be known is null: without a process at hand, the lag in seconds.

mod local;
mod text;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Failure;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::pipeline::Pipeline;
use crate::pipeline::guard;
use crate::pipeline::parking;
use crate::pipeline::start::blocking;
use crate::pipeline::status::{CopyProgress, ParkedTable, PipelineStatus, Reading, State};
use crate::pipeline::tables::{self, rule_of};
use crate::sink::checkpoint::{Checkpoint, Identity, Phase, Stored};
use crate::sink::destination;
use crate::wal::catalog::SourceTable;
use crate::wal::client::{Client, connect};
use crate::wal::lock::{self, Holder};
use crate::wal::slot::{self, SlotState};

/// Between two pictures of `--watch`.
const WATCH_TIME: Duration = Duration::from_secs(2);
/// A hub that does not answer is said to be unreachable after so long; the rest is shown.
const HUB_TIME_MAX: Duration = Duration::from_secs(5);

/// What `walgate status` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Refresh every 2 s until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

/// All that `status` says.
#[derive(Debug, Serialize)]
struct Report {
    pipelines: Vec<PipelineReport>,
    /// Slots with our prefix that no pipeline of this configuration owns.
    orphaned_slots: Vec<SlotState>,
}

/// One pipeline.
#[derive(Debug, Serialize)]
struct PipelineReport {
    pipeline: String,
    source: String,
    source_address: String,
    sink: String,
    state: State,
    process: Option<Process>,
    /// The session that holds the pipeline's lock on the source.
    holder: Option<Holder>,
    slot: Option<SlotState>,
    /// How the process at hand reads the slot.
    reader: Option<Reading>,
    retained_wal_bytes: Option<i64>,
    confirmed_lsn: Option<Lsn>,
    received_lsn: Option<Lsn>,
    source_lsn: Option<Lsn>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<f64>,
    in_flight_bytes: Option<u64>,
    events: Option<u64>,
    rows_applied: Option<u64>,
    restarts: Option<u64>,
    /// The copy that runs in the process at hand.
    snapshot: Option<CopyProgress>,
    tables: Option<usize>,
    tables_copied: Option<usize>,
    rows_copied: Option<u64>,
    tables_without_identity: Vec<String>,
    parked_tables: Vec<ParkedTable>,
    checkpoint: Option<Checkpoint>,
    last_error: Option<String>,
    last_error_at: Option<u64>,
    hub_error: Option<String>,
}

/// Where the process is that runs the pipeline, or waits to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Process {
    /// It answers on `admin.listen`.
    Here,
    /// It holds the lock or the slot on the source, and does not answer here.
    Elsewhere,
}

/// Prints the report, once or until Ctrl-C.
///
/// # Errors
/// When the source cannot be reached; what is known without it is printed all the same.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let pipelines = Pipeline::all(&Arc::new(config), false)?;
    if !arguments.watch {
        let (report, error) = gather(&pipelines).await;
        print(&report, arguments);
        return error.map_or(Ok(()), |error| Err(error.into()));
    }
    loop {
        let shown = tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            (report, error) = gather(&pipelines) => {
                let shown = print(&report, arguments);
                if let Some(error) = error {
                    eprintln!("{}", Failure::Error(error));
                }
                shown
            }
        };
        if !shown {
            // Whoever read it has gone.
            return Ok(());
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(WATCH_TIME) => {}
        }
    }
}

/// False: nobody reads it any more.
fn print(report: &Report, arguments: &Arguments) -> bool {
    let mut stdout = std::io::stdout().lock();
    let text = if arguments.json {
        format!("{}\n", serde_json::to_string(report).expect("plain data"))
    } else if arguments.watch && stdout.is_terminal() {
        // Home, and clear what is below: the picture stands still.
        format!("\x1b[H\x1b[J{}", text::render(report))
    } else {
        text::render(report)
    };
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}

/// What the source says.
struct SourceSide {
    slots: Vec<SlotState>,
    holder: Option<Holder>,
    end: Lsn,
    tables: Vec<SourceTable>,
}

async fn gather(pipelines: &[Pipeline]) -> (Report, Option<Error>) {
    let mut reports = Vec::with_capacity(pipelines.len());
    let (mut orphaned_slots, mut first_error) = (Vec::new(), None);
    for pipeline in pipelines {
        let own = pipeline.status.read();
        let (process, source, stored) = tokio::join!(
            local::ask(pipeline.config.admin.listen, &own),
            ask_source(pipeline),
            ask_destination(pipeline)
        );
        let source = match source {
            Ok(source) => Some(source),
            Err(error) => {
                first_error.get_or_insert(error.context("the source cannot be asked"));
                None
            }
        };
        if let Some(source) = &source {
            let is_owned = |slot: &&SlotState| pipelines.iter().any(|pipeline| pipeline.slot == slot.name);
            orphaned_slots = source.slots.iter().filter(|slot| !is_owned(slot)).cloned().collect();
        }
        reports.push(describe(pipeline, process, source.as_ref(), stored));
    }
    (Report { pipelines: reports, orphaned_slots }, first_error)
}

async fn ask_source(pipeline: &Pipeline) -> Result<SourceSide> {
    let client = connect(&pipeline.url, "walgate status").await?;
    let slots = slot::states(&client, &format!("{}_", pipeline.config.source.slot)).await?;
    let holder = lock::holder(&client, &pipeline.slot).await?;
    let end = slot::source_end(&client).await?;
    let tables = tables(pipeline, &client).await?;
    Ok(SourceSide { slots, holder, end, tables })
}

/// The tables that the rules take and the publications send, or will when they are made.
async fn tables(pipeline: &Pipeline, client: &Client) -> Result<Vec<SourceTable>> {
    let mut tables = tables::all(pipeline, client).await?;
    tables.retain(|table| table.is_logged && rule_of(pipeline, table).is_some());
    if !pipeline.publications.is_managed()
        && let Ok(members) = pipeline.publications.members(client).await
    {
        tables.retain(|table| members.contains_key(&table.oid));
    }
    Ok(tables)
}

async fn ask_destination(pipeline: &Pipeline) -> Result<Stored, String> {
    let address = pipeline.address().map_err(|error| with_remedy(&error))?;
    let name = pipeline.name();
    let peek = blocking(move || destination::peek(&address, &name));
    match tokio::time::timeout(HUB_TIME_MAX, peek).await {
        Ok(stored) => stored.map_err(|error| with_remedy(&error)),
        Err(_) => Err(format!("it has not answered within {} s", HUB_TIME_MAX.as_secs())),
    }
}

fn with_remedy(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{} (remedy: {hint})", error.chain()),
        None => error.chain(),
    }
}

fn describe(
    pipeline: &Pipeline,
    process: Option<PipelineStatus>,
    source: Option<&SourceSide>,
    hub: Result<Stored, String>,
) -> PipelineReport {
    let slot = source.and_then(|source| source.slots.iter().find(|slot| slot.name == pipeline.slot));
    let holder = source.and_then(|source| source.holder.clone());
    let is_elsewhere = holder.is_some() || slot.is_some_and(|slot| slot.is_active);
    let (stored, hub_error) = match hub {
        Ok(stored) => (Some(stored), None),
        Err(error) => (None, Some(error)),
    };
    let checkpoint = stored.as_ref().and_then(|stored| stored.checkpoint.clone());
    let state = match &process {
        Some(process) => process.state,
        None if is_elsewhere => state_elsewhere(checkpoint.as_ref(), slot),
        None => State::Stopped,
    };
    let own = pipeline.status.read();
    let confirmed_lsn = slot
        .and_then(|slot| slot.confirmed_flush_lsn)
        .max(process.as_ref().map(|process| process.confirmed_lsn).filter(|lsn| *lsn != Lsn::ZERO));
    let source_lsn = source.map(|source| source.end).max(process.as_ref().map(|process| process.source_lsn));
    let last_error = match (&process, is_elsewhere, source) {
        (Some(process), ..) => process.last_error.clone(),
        // Nobody runs it: would a start be refused?
        (None, false, Some(source)) if hub_error.is_none() => {
            refusal(pipeline, checkpoint.as_ref(), slot, source.end)
        }
        _ => None,
    };
    let is_copied =
        |stored: &Stored, table: &SourceTable| stored.tables.get(&table.oid).is_some_and(|t| t.done);
    PipelineReport {
        state,
        process: match (&process, is_elsewhere) {
            (Some(_), _) => Some(Process::Here),
            (None, true) => Some(Process::Elsewhere),
            (None, false) => None,
        },
        retained_wal_bytes: slot.and_then(|slot| slot.retained_wal_bytes),
        lag_bytes: confirmed_lsn.and_then(|confirmed| Some(source_lsn?.bytes_since(confirmed))),
        confirmed_lsn,
        source_lsn,
        received_lsn: process.as_ref().map(|process| process.received_lsn),
        reader: process
            .as_ref()
            .filter(|process| process.state == State::Streaming)
            .map(|process| process.reader),
        lag_seconds: process
            .as_ref()
            .filter(|process| process.state != State::Standby)
            .map(|p| p.lag_seconds),
        in_flight_bytes: process.as_ref().map(|process| process.in_flight_bytes),
        events: process.as_ref().map(|process| process.events),
        rows_applied: process.as_ref().map(|process| process.rows_applied),
        restarts: process.as_ref().map(|process| process.restarts),
        snapshot: process.as_ref().and_then(|process| process.snapshot.clone()),
        tables: source.map(|source| source.tables.len()),
        tables_copied: source
            .zip(stored.as_ref())
            .map(|(source, stored)| source.tables.iter().filter(|table| is_copied(stored, table)).count()),
        rows_copied: stored.as_ref().map(|stored| stored.tables.values().map(|table| table.rows).sum()),
        tables_without_identity: source.map_or_else(Vec::new, |source| {
            let without = source.tables.iter().filter(|table| !table.has_usable_identity());
            without.map(SourceTable::display_name).collect()
        }),
        parked_tables: stored.as_ref().map_or_else(Vec::new, |stored| {
            let is_taken =
                |oid: u32| source.is_none_or(|source| source.tables.iter().any(|table| table.oid == oid));
            parking::shown(stored.tables.values().filter(|state| is_taken(state.oid)))
        }),
        last_error,
        last_error_at: process.as_ref().and_then(|process| process.last_error_at),
        slot: slot.cloned(),
        holder,
        checkpoint,
        hub_error,
        pipeline: own.pipeline,
        source: own.source,
        source_address: own.source_address,
        sink: own.sink.into_owned(),
    }
}

/// What a process that cannot be asked is doing, by what it leaves on source and hub.
fn state_elsewhere(checkpoint: Option<&Checkpoint>, slot: Option<&SlotState>) -> State {
    // The copy reads from a temporary slot; the pipeline's own is used by the stream alone.
    if slot.is_some_and(|slot| slot.is_active) {
        return State::Streaming;
    }
    match checkpoint.map(|checkpoint| checkpoint.phase) {
        Some(Phase::Snapshot) => State::Snapshot,
        _ => State::Starting,
    }
}

/// Why the next start would be refused, with the remedy; the source's identity is not compared.
fn refusal(
    pipeline: &Pipeline,
    checkpoint: Option<&Checkpoint>,
    slot: Option<&SlotState>,
    end: Lsn,
) -> Option<String> {
    let identity = checkpoint.map_or_else(
        || Identity {
            system_identifier: String::new(),
            timeline: 0,
            database_oid: 0,
            slot: pipeline.slot.clone(),
            options: String::new(),
        },
        |checkpoint| checkpoint.identity.clone(),
    );
    guard::decide(checkpoint.cloned(), slot, &identity, end).err().map(|error| with_remedy(&error))
}
