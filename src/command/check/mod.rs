//! `walgate check`: everything that would keep `walgate run` from working, found at once, within 30 s.
//!
//! Comes in: a configuration. Goes out: a [`Report`]. Always holds: nothing is changed, neither on the
//! source nor on the hub (a probe file and a probe id excepted, see `hub`), and nobody is fenced, so it may
//! run beside a running pipeline. Source and hub are looked at side by side; what needs both (topics, and
//! whether slot and checkpoint belong together) comes after them. Every step has a deadline of its own; what
//! was found before one is told. DESIGN sections 3 and 7; issue 3, "What bad input gets".

mod claims;
mod filters;
mod hub;
mod outbox;
mod publication;
mod replica;
pub mod report;
mod rules;
mod source;
mod tables;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use crate::config::{Config, ConfigError, SnapshotMode};
use crate::pipeline::guard::{self, Start};
use crate::pipeline::{Pipeline, start};
use crate::sink::checkpoint::Stored;
use crate::wal::client::connect;
use crate::wal::slot;
pub use publication::create as create_publication;
use report::Report;
use source::SourceView;

/// Each of the two sides, side by side.
const SIDE_TIME_MAX: Duration = Duration::from_secs(13);
/// What needs both, side by side.
const BOTH_TIME_MAX: Duration = Duration::from_secs(13);

/// Reads the configuration file; its faults go to stdout too where JSON is asked for.
///
/// # Errors
/// [`Failure::Usage`] with all faults.
pub fn load(path: &Path, json: bool) -> Result<Config, Failure> {
    super::load(path).inspect_err(|failure| {
        if !json {
            return;
        }
        let report = match Config::load(path) {
            Err(ConfigError::Invalid { faults, .. }) => Report::of_file(&faults),
            Err(error) => {
                let report = Report::default();
                report.fault("", error.to_string(), error.hint().unwrap_or_default());
                report
            }
            Ok(_) => {
                let report = Report::default();
                report.fault("source.url", failure.to_string(), "");
                report
            }
        };
        report.print(true);
    })
}

/// Checks and prints.
///
/// # Errors
/// [`Failure::Found`] when there are faults.
pub async fn run(config: Config, json: bool) -> Result<(), Failure> {
    let report = Report::default();
    let pipelines = Pipeline::all(&Arc::new(config), false)?;
    if pipelines.is_empty() {
        report.warning(
            "table",
            "no rule sends anything anywhere",
            "write a rule with mode = \"event\", or a [[replica]] and a rule with mode = \"replicate\"",
        );
    }
    let admin = async {
        if let Some(first) = pipelines.first() {
            within("admin.listen", SIDE_TIME_MAX, &report, admin_port(first, &report)).await;
        }
    };
    let all = futures_util::future::join_all(pipelines.iter().map(|pipeline| examine(pipeline, &report)));
    tokio::join!(admin, all);
    report.print(json);
    if report.has_faults() { Err(Failure::Found) } else { Ok(()) }
}

async fn examine(pipeline: &Pipeline, report: &Report) {
    let source = within("source.url", SIDE_TIME_MAX, report, source::examine(pipeline, report));
    match &pipeline.replica {
        None => {
            let hub = within("hub", SIDE_TIME_MAX, report, hub::examine(pipeline, report));
            let claims =
                within("claim_check.store", SIDE_TIME_MAX, report, claims::examine(pipeline, report));
            let (source, hub, _) = tokio::join!(source, hub, claims);
            let (Some(source), hub) = (source.flatten(), hub.flatten()) else { return };
            let stored = hub.as_ref().map(|hub| hub.stored.clone());
            let topics = async {
                if let Some(hub) = hub {
                    hub::topics(pipeline, hub, &source, report).await;
                }
            };
            let agreement = agreement(pipeline, &source, stored.as_ref(), report);
            let agreement = within("source.slot", BOTH_TIME_MAX, report, agreement);
            tokio::join!(agreement, within("hub", BOTH_TIME_MAX, report, topics));
        }
        Some(replica) => {
            let key = format!("{}.url", replica.key_path);
            let found = within(&key, SIDE_TIME_MAX, report, replica::examine(pipeline, replica, report));
            let (source, found) = tokio::join!(source, found);
            let (Some(source), found) = (source.flatten(), found.flatten()) else { return };
            let stored = found.as_ref().map(|found| found.stored.clone());
            let tables = async {
                if let Some(found) = &found {
                    replica::tables(replica, found, &source, report).await;
                }
            };
            let agreement = agreement(pipeline, &source, stored.as_ref(), report);
            let agreement = within("source.slot", BOTH_TIME_MAX, report, agreement);
            tokio::join!(agreement, within(&key, BOTH_TIME_MAX, report, tables));
        }
    }
}

/// `step`, or a fault when it takes too long.
async fn within<T>(key: &str, limit: Duration, report: &Report, step: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(limit, step).await.ok();
    if done.is_none() {
        report.fault(
            key,
            format!("no answer within {} s", limit.as_secs()),
            "see that the servers run, are not overloaded, and that no firewall drops what is sent to them",
        );
    }
    done
}

/// Do slot and checkpoint belong together, and are there slots enough for what is to be made?
async fn agreement(pipeline: &Pipeline, source: &SourceView, stored: Option<&Stored>, report: &Report) {
    if !source.may_replicate {
        return;
    }
    let checkpoint = stored.and_then(|stored| stored.checkpoint.clone());
    let identified = start::identify(pipeline, &source.client, checkpoint.as_ref()).await;
    let (identity, wal_flush_lsn, history) = match identified {
        Ok(identified) => identified,
        Err(error) => {
            let remedy = "see that the server takes replication connections (max_wal_senders, pg_hba.conf)";
            return report.error("source.url", &error.context("a replication connection"), remedy);
        }
    };
    let mut needs_copy = pipeline.config.source.snapshot == SnapshotMode::Initial;
    if let Some(stored) = stored {
        let is_copied = |oid: u32| stored.tables.get(&oid).is_some_and(|state| state.done);
        needs_copy &= source.tables.iter().any(|matched| !is_copied(matched.table.oid));
        let mut decided = guard::decide(checkpoint, source.slot.as_ref(), &identity, wal_flush_lsn);
        if let (Ok(Start::Resume(checkpoint)), Some(history)) = (&decided, &history) {
            decided = guard::timeline_switch(checkpoint, identity.timeline, history)
                .map(|()| Start::Resume(checkpoint.clone()));
        }
        if let Err(error) = decided {
            report.error("source.slot", &error, "");
        }
    }
    source::free_slots(pipeline, source, needs_copy, report);
}

async fn admin_port(pipeline: &Pipeline, report: &Report) {
    let Some(listen) = pipeline.config.admin.listen else { return };
    let Err(error) = tokio::net::TcpListener::bind(listen).await else { return };
    let is_running = match connect(&pipeline.url, "walgate check").await {
        Ok(client) => {
            slot::state(&client, &pipeline.slot).await.ok().flatten().is_some_and(|slot| slot.is_active)
        }
        Err(_) => false,
    };
    let message = format!("{listen} cannot be listened on: {error}");
    let remedy = "set admin.listen to another port, to port 0, or to \"off\"";
    if is_running {
        report.note("admin.listen", format!("{message} (the pipeline is running)"), remedy);
    } else {
        report.warning("admin.listen", message, remedy);
    }
}
