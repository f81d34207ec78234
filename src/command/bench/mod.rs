//! `walgate bench`: events, replication and PostgreSQL's own, side by side, on this machine and under this workload.
//!
//! In: modes, workloads, sizes; servers, or none, and then throwaway clusters. Out: figures on stdout, as a table or JSON,
//! and an HTML report. Always: Walgate is measured as what it is, a process `walgate run` with a configuration file; the
//! modes take turns; every figure says how it was measured, what was left out says why; whichever way it ends, its
//! processes, folders and databases go, and what was measured until then is told, and told to be partial.
//!
//! It is for users' machines and workloads. What the project itself compares from release to release is `benches/`.

mod address;
mod arrived;
mod child;
mod contender;
mod disk;
mod drain;
mod figure;
mod ground;
mod html;
mod live;
mod machine;
mod mode;
mod observer;
mod plan;
mod probe;
mod process;
mod progress;
mod publications;
mod reading;
mod relay;
mod results;
mod scratch;
mod server;
mod table;
mod workload;

use std::io::Write;

pub use plan::Arguments;

use super::Failure;
use crate::engine;
use crate::error::{Error, Result};
use drain::{Prepared, Round};
use ground::Ground;
use live::Load;
use mode::Mode;
use plan::Plan;
use progress::Progress;
use publications::Publications;
use results::{LeftOut, Results, State, Told, as_f64};
use workload::Workload;

/// Least transactions a second of a steady load: pgbench takes no fewer.
const RATE_MIN: f64 = 0.1;

/// Runs the benchmark.
///
/// # Errors
/// Usage. [`Failure::Found`] when a mode failed; the results say which. What ended all of it otherwise, an interrupt
/// included, after the partial results are told.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let plan = Plan::of(&arguments)?;
    let progress = Progress::new();
    let mut results = Results::new(plan.command.clone());
    let mut ground = None;
    let ended = tokio::select! {
        biased;
        () = engine::wait_for_signal() => Err(Error::definite("interrupted")),
        ended = measure(&plan, &mut ground, &mut results, &progress) => ended,
    };
    progress.finish();
    results.state = match (&ended, results.failed.is_empty()) {
        (Err(error), _) => State::Partial(error.chain().to_string()),
        (Ok(()), false) => State::Partial("some of it failed, see there".to_owned()),
        (Ok(()), true) => State::Complete,
    };
    let cleaned = match &ground {
        Some(ground) => ground.clean().await,
        None => Ok(()),
    };
    // The servers stop and their folders go before anything is told: who reads the results may leave.
    drop(ground);
    tell(&arguments, &results)?;
    ended?;
    cleaned?;
    if results.failed.is_empty() { Ok(()) } else { Err(Failure::Found) }
}

fn tell(arguments: &Arguments, results: &Results) -> Result<()> {
    let reading = reading::of(results);
    let printed = match arguments.json {
        true => format!("{}\n", results.json(&reading)),
        false => table::text(results, &reading),
    };
    // A reader that has gone away does not want the rest.
    let _ = std::io::stdout().write_all(printed.as_bytes());
    let Some(path) = &arguments.report else { return Ok(()) };
    std::fs::write(path, html::page(results, &reading)).map_err(|error| {
        Error::definite(format!("the report {} cannot be written", path.display())).with_source(error)
    })
}

async fn measure(
    plan: &Plan,
    place: &mut Option<Ground>,
    results: &mut Results,
    progress: &Progress,
) -> Result<()> {
    let folder = std::env::temp_dir();
    let needed = plan.workloads.iter().map(|workload| needed_bytes(plan, workload)).max().unwrap_or_default();
    disk::expect(&folder, needed, plan.disk_free_bytes_min)?;
    progress.doing("starting servers");
    let ground = Ground::prepare(&plan.given, plan.modes.contains(&Mode::Pglogical)).await?;
    let ground = &*place.insert(ground);
    results.machine = machine::describe(ground).await?;
    let mut modes = plan.modes.clone();
    modes.retain(|mode| {
        let reason = ground.lacks(*mode);
        results.left_out.extend(reason.clone().map(|reason| LeftOut {
            workload: None,
            what: mode.name().to_owned(),
            reason,
        }));
        reason.is_none()
    });
    if modes.is_empty() {
        let reasons: Vec<String> =
            results.left_out.iter().map(|left| format!("{}: {}", left.what, left.reason)).collect();
        return Err(Error::definite(format!("no mode can be measured here: {}", reasons.join("; "))));
    }
    if plan.seconds == 0 {
        let what = "latency, burst, and the source's own transactions".to_owned();
        results.left_out.push(LeftOut { workload: None, what, reason: "--seconds 0".to_owned() });
    }
    progress.expect(plan.steps(modes.len()));
    tokio::select! {
        error = disk::runs_out(&folder, plan.disk_free_bytes_min) => Err(error),
        ended = measure_all(plan, ground, &modes, results, progress) => ended,
    }
}

/// The source's rows and WAL, as much again for the target and its WAL, and a file hub of events.
fn needed_bytes(plan: &Plan, workload: &Workload) -> u64 {
    workload.bytes_expected(plan.rows).saturating_mul(4)
}

async fn measure_all(
    plan: &Plan,
    ground: &Ground,
    modes: &[Mode],
    results: &mut Results,
    progress: &Progress,
) -> Result<()> {
    // The user's own come first, once and unmeasured: what is wrong with them is said at once.
    for workload in plan.workloads.iter().filter(|workload| workload.is_users()) {
        progress.doing(format!("trying {}", workload.name()));
        let prepared = prepare(plan, ground, workload).await?;
        let database = ground.name("try");
        ground.source.create_database(&database, &prepared.source_template).await?;
        let tried = workload.try_once(ground, &database).await;
        forget(ground, 0).await;
        tried.map_err(|error| error.context(format!("the workload {}", workload.name())))?;
    }
    for workload in &plan.workloads {
        let name = workload.name();
        progress.doing(format!("{name}: making its tables"));
        let done = match prepare(plan, ground, workload).await {
            Ok(prepared) => measure_workload(plan, ground, &prepared, modes, results, progress).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            results.fail(&name, "the workload", error.chain().to_string());
            progress.say(format!("{name} failed: {}", error.chain()));
        }
        forget(ground, 0).await;
    }
    Ok(())
}

async fn forget(ground: &Ground, count: usize) {
    ground.target.drop_after(count).await;
    ground.source.drop_after(count).await;
}

/// Makes the workload's tables on the source, publishes them, and makes the same on the target.
async fn prepare(plan: &Plan, ground: &Ground, workload: &Workload) -> Result<Prepared> {
    let (source_template, target_template) = (ground.name("source"), ground.name("target"));
    let own = match (workload, ground.source.is_throwaway()) {
        (Workload::File { schema: None, .. }, false) => ground.source.address.0.database.clone(),
        _ => "template0".to_owned(),
    };
    ground.source.create_database(&source_template, &own).await?;
    workload.set_up(ground, &source_template, plan.rows).await?;
    let client = ground.source.connect(&source_template).await?;
    let publications = Publications::make(&ground.source, &client, workload).await?;
    drop(client);
    ground.target.create_database(&target_template, "template0").await?;
    drain::copy_template(ground, &source_template, &target_template).await?;
    Ok(Prepared { workload: workload.clone(), source_template, target_template, publications })
}

async fn measure_workload(
    plan: &Plan,
    ground: &Ground,
    prepared: &Prepared,
    modes: &[Mode],
    results: &mut Results,
    progress: &Progress,
) -> Result<()> {
    let name = prepared.workload.name();
    let at = results.workloads.len();
    results.workloads.push(Told {
        name: name.clone(),
        about: prepared.workload.about(),
        changes: vec![],
        transactions: vec![],
        wal_bytes: vec![],
        steady_changes_per_second: None,
    });
    let runs = usize::try_from(plan.runs).unwrap_or(usize::MAX);
    let mut changes_per_transaction = prepared.workload.changes_per_transaction().map(as_f64);
    for round in std::iter::once(Round::Bytes).chain((0..runs).map(Round::Measured)) {
        progress.doing(match round {
            Round::Bytes => format!("{name}: a round unmeasured, in which bytes are counted"),
            Round::Measured(nth) => format!("{name}: backlog, run {} of {}", nth + 1, plan.runs),
        });
        let backlog =
            drain::round(ground, prepared, modes, round, plan.rows, results, |line| progress.done(line))
                .await?;
        changes_per_transaction.get_or_insert(as_f64(backlog.changes) / as_f64(backlog.transactions.max(1)));
        if let (Round::Measured(_), Some(told)) = (round, results.workloads.get_mut(at)) {
            told.changes.push(backlog.changes);
            told.transactions.push(backlog.transactions);
            told.wal_bytes.push(backlog.wal_bytes);
        }
    }
    if plan.seconds == 0 {
        return Ok(());
    }
    let rate = prepared.workload.rate(plan.rate);
    if let Some(told) = results.workloads.get_mut(at) {
        told.steady_changes_per_second = Some(rate);
    }
    let per_second = as_f64(rate) / changes_per_transaction.unwrap_or(1.0).max(f64::MIN_POSITIVE);
    let load = Load { seconds: plan.seconds, transactions_per_second: per_second.max(RATE_MIN) };
    let mut turns: Vec<Mode> = modes.iter().copied().chain([Mode::Nobody]).collect();
    for nth in 0..runs {
        for mode in &turns {
            progress.doing(format!("{name}: load, run {} of {}: {}", nth + 1, plan.runs, mode.name()));
            let counts = (ground.source.count(), ground.target.count());
            match live::run(ground, prepared, *mode, load, results).await {
                Ok(line) => progress.done(line),
                Err(error) => {
                    results.fail(&name, &format!("{}, load", mode.name()), error.chain().to_string());
                    progress.done(format!("{name}: {} failed: {}", mode.name(), error.chain()));
                    ground.target.drop_after(counts.1).await;
                    ground.source.drop_after(counts.0).await;
                }
            }
        }
        turns.rotate_left(1);
    }
    Ok(())
}
