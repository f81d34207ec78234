//! `walgate sync-sequences`: brings the replicas' sequences forward, before readers and writers move over. DESIGN
//! sections 6 and 7.
//!
//! Comes in: the replicas, a margin. Goes out: for every sequence of a replicated column, what became of it; exit code 1
//! when one could not be read or set. It takes no lock and asks nobody who runs: a value only ever moves forward
//! (`sink/replica/sequences.rs`), so the order in which this and a pipeline's start do it is all one, and nothing that it
//! writes is part of a checkpoint.

use clap::Args;
use serde::Serialize;

use super::Failure;
use crate::config::Config;
use crate::pipeline::sequences::{self, SyncState, Synced};

/// What `walgate sync-sequences` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this replica
    #[arg(long, value_name = "NAME")]
    pub replica: Option<String>,
    /// So many increments past the source's value [default: 1000, or the sequence's cache]
    #[arg(long, value_name = "N")]
    pub margin: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    /// Every one that is there could be read and set.
    done: bool,
    sequences: Vec<Synced>,
}

/// Brings them forward and prints.
///
/// # Errors
/// [`Failure::Found`] when one was refused; usage: no such replica; as the connections.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let pipelines = super::replicas(config, arguments.replica.as_deref())?;
    let mut report = Report { done: true, sequences: Vec::new() };
    for pipeline in &pipelines {
        report.sequences.extend(sequences::sync(pipeline, arguments.margin).await?);
    }
    report.done = report.sequences.iter().all(|one| one.state != SyncState::Refused);
    super::print(&report, arguments.json, text);
    if report.done { Ok(()) } else { Err(Failure::Found) }
}

fn text(report: &Report) -> String {
    if report.sequences.is_empty() {
        return "no replicated column draws from a sequence\n".to_owned();
    }
    report.sequences.iter().map(line).collect()
}

fn line(one: &Synced) -> String {
    let Synced { replica, source, table, column, .. } = one;
    let name = match &one.sequence {
        Some(sequence) if sequence != source => format!("{sequence} (here {source})"),
        _ => source.clone(),
    };
    let number = |value: Option<i64>| value.map_or_else(String::new, |value| value.to_string());
    let message = one.message.clone().unwrap_or_default();
    let what = match one.state {
        SyncState::Moved => {
            format!("set to {}, the source's is {}", number(one.value), number(one.source_value))
        }
        SyncState::Cut => format!("set to {}: {message}", number(one.value)),
        SyncState::Ahead => format!("is past the source's, {}, by the margin", number(one.source_value)),
        SyncState::Absent => format!("the replica has no sequence for {table}.{column}"),
        SyncState::Refused => format!("NOT SET: {message}"),
    };
    let remedy = one.remedy.as_ref().map_or_else(String::new, |remedy| format!("\n  remedy: {remedy}"));
    format!("{replica}: {name}: {what}{remedy}\n")
}
