//! The engine: runs the pipelines, starts them again after transient errors, drains them at the end.

pub mod admin;
pub mod backoff;
pub mod metrics;
pub mod monitor;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::error::{Class, Error, Result};
use crate::pipeline::parking::{self, Parking};
use crate::pipeline::status::State;
use crate::pipeline::tables::all_of;
use crate::pipeline::{Ended, Pipeline, Wish};
use backoff::Backoff;

/// An attempt that lasted so long was a good one: the next error starts with the shortest pause.
const GOOD_ATTEMPT_TIME: Duration = Duration::from_secs(30);

/// Between an end because of tables, new ones or such as are parked, and the next start.
const TABLES_PAUSE: Duration = Duration::from_millis(200);

/// Runs everything that `config` asks for, until asked to end, caught up, or stopped by definite errors. A pipeline
/// that stops leaves the others running: a replica that refuses rows never holds up the hub.
///
/// # Errors
/// Definite, of every pipeline that stopped; nothing to run.
pub async fn run(config: Arc<Config>, until_caught_up: bool) -> Result<()> {
    let pipelines = Pipeline::all(&config, until_caught_up)?;
    if pipelines.is_empty() {
        return Err(Error::definite("no rule sends anything anywhere").with_hint(
            "write a [[table]] rule with mode = \"event\", or a [[replica]] and a rule with mode = \"replicate\"",
        ));
    }
    let statuses = pipelines.iter().map(|pipeline| pipeline.status.clone()).collect();
    let admin = admin::start(config.admin.listen, statuses);
    let (wish, wishes) = watch::channel(Wish::Run);
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("draining");
        // Nobody left to drain: then the process is ending anyway.
        let _ = wish.send(Wish::Drain);
        wait_for_signal().await;
        tracing::warn!("asked twice: leaving what is in flight to the next start");
        std::process::exit(0);
    });
    let mut running = Vec::with_capacity(pipelines.len());
    for pipeline in pipelines {
        let ended = start(&pipeline, wishes.clone())?;
        let monitor = tokio::spawn(monitor::run(pipeline.clone()));
        running.push((pipeline, ended, monitor));
    }
    let mut errors = Vec::new();
    for (pipeline, ended, monitor) in running {
        let ended = ended
            .await
            .unwrap_or_else(|_| Err(Error::definite("the pipeline's thread ended without a word")));
        errors.extend(ended.err());
        pipeline.status.enter(State::Stopped);
        monitor.abort();
    }
    admin.abort();
    if errors.is_empty() { Ok(()) } else { Err(all_of(errors)) }
}

/// Starts a pipeline on a thread and a runtime of its own: what wakes the reader is then polled by the reader itself,
/// not by another thread that has to wake it (a third of all CPU under load, measured).
fn start(pipeline: &Pipeline, mut wishes: watch::Receiver<Wish>) -> Result<oneshot::Receiver<Result<()>>> {
    let (sender, ended) = oneshot::channel();
    let supervised = pipeline.clone();
    std::thread::Builder::new()
        .name(pipeline.slot.clone())
        .spawn(move || {
            let ended = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(8)
                .build()
                .map_err(|error| Error::transient("a runtime cannot be started").with_source(error))
                .and_then(|runtime| {
                    let ended = runtime.block_on(supervise(&supervised, &mut wishes));
                    // A blocking call into a dead broker may last: nobody waits for it.
                    runtime.shutdown_background();
                    ended
                });
            supervised.status.enter(State::Stopped);
            // Nobody to tell: then the process is ending anyway.
            let _ = sender.send(ended);
        })
        .map_err(|error| Error::transient("the pipeline's thread cannot be started").with_source(error))?;
    Ok(ended)
}

/// Runs one pipeline, attempt after attempt, until it is drained, caught up, or stopped by a definite error.
///
/// # Errors
/// Definite.
pub async fn supervise(pipeline: &Pipeline, wish: &mut watch::Receiver<Wish>) -> Result<()> {
    let mut backoff = Backoff::default();
    let mut parking = Vec::new();
    loop {
        let began = tokio::time::Instant::now();
        let error = match pipeline.run(wish, &mut parking).await {
            Ok(Ended::TablesChanged) => {
                // Usually once; should a source change without end, it is not for us to spin.
                tokio::time::sleep(TABLES_PAUSE).await;
                continue;
            }
            Ok(Ended::RangeDue) => continue,
            Ok(Ended::Drained | Ended::CaughtUp) => return Ok(()),
            Err(error) => error,
        };
        if let Some(tables) = parking::asked_for(pipeline, &error) {
            parking.retain(|known: &Parking| tables.iter().all(|one| one.oid != known.oid));
            parking.extend(tables);
            tokio::time::sleep(TABLES_PAUSE).await;
            continue;
        }
        note(pipeline, &error);
        if error.is_definite() {
            return Err(error);
        }
        if began.elapsed() >= GOOD_ATTEMPT_TIME {
            backoff = Backoff::default();
        }
        let pause = backoff.next_pause();
        pipeline.status.enter(if error.class() == Class::Fenced { State::Standby } else { State::Backoff });
        pipeline.status.update(|status| status.restarts += 1);
        metrics::restart(&pipeline.slot);
        let mut drain = wish.clone();
        tokio::select! {
            () = crate::pipeline::drain_wished(&mut drain) => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn note(pipeline: &Pipeline, error: &Error) {
    let text = match error.hint() {
        Some(hint) => format!("{} (remedy: {hint})", error.chain()),
        None => error.chain(),
    };
    if error.is_definite() {
        tracing::error!(pipeline = pipeline.slot, "{text}");
    } else {
        tracing::warn!(pipeline = pipeline.slot, "{text}");
    }
    pipeline.status.note_error(text);
}

/// Resolves at SIGTERM or Ctrl-C.
///
/// # Panics
/// When the process cannot wait for signals.
pub async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be waited for");
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be waited for");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
