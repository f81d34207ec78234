//! `walgate drop`: a clean leave. DESIGN section 7.
//!
//! Comes in: a pipeline that nobody runs. Goes out: nothing of Walgate's is left on source and hub but
//! the events. The order is the argument: first the lock, so that nobody starts meanwhile; then the
//! hub's checkpoint, whose removal fences a frozen process and fails before anything is touched when
//! the hub cannot be reached; then the slot, the publications and the schema `walgate`. Half done is
//! "slot without a checkpoint", which every start refuses and names this command for; and each step
//! goes on over what is missing, so doing it again mends it.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::Failure;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::pipeline::start::blocking;
use crate::sink::destination;
use crate::wal::client::{Client, classify, connect};
use crate::wal::lock::{self, Lock};
use crate::wal::slot;

/// A process that was just killed has its lock until the server has noticed.
const LOCK_TIME_MAX: Duration = Duration::from_secs(2);
const LOCK_TRY_TIME: Duration = Duration::from_millis(200);

/// Walgate's own schema, if `walgate migrate` made it: its history says so.
const OWN_SCHEMA: &str = "SELECT pg_catalog.to_regclass('walgate.migration') IS NOT NULL";
/// Somebody else's relations in it: then it stays.
const FOREIGN: &str = "SELECT c.relname::text FROM pg_catalog.pg_class c \
WHERE c.relnamespace = 'walgate'::pg_catalog.regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') \
  AND c.relname <> 'migration' ORDER BY 1 LIMIT 1";
/// Another installation on the same database uses the schema, too.
const OTHER_SLOTS: &str = "SELECT slot_name::text FROM pg_catalog.pg_replication_slots \
WHERE database = pg_catalog.current_database() AND plugin = 'pgoutput' AND NOT temporary \
  AND (slot_name LIKE '%\\_hub' OR slot_name LIKE '%\\_r\\_%') ORDER BY 1";

/// What `walgate drop` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this pipeline: `hub`, a replica's name, or its slot's name
    #[arg(long, value_name = "P")]
    pub pipeline: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print what was removed as JSON
    #[arg(long)]
    pub json: bool,
}

/// What was removed.
#[derive(Debug, Default, Serialize)]
struct Removed {
    pipeline: String,
    /// The checkpoint's name, if there was one.
    checkpoint: Option<String>,
    /// The slot's name, if there was one.
    slot: Option<String>,
    publications: Vec<String>,
    schema: Option<&'static str>,
}

/// Removes the pipeline.
///
/// # Errors
/// Usage: not confirmed, or no such pipeline. Otherwise when a process runs it, or source or hub
/// cannot be reached.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let config_path = config.path.clone();
    let mut pipelines = Pipeline::all(&Arc::new(config), false)?;
    if let Some(asked) = &arguments.pipeline {
        let known: Vec<String> =
            pipelines.iter().map(|one| format!("{} (or: {})", one.slot, one.short_name())).collect();
        pipelines.retain(|pipeline| pipeline.is_named(asked));
        if pipelines.is_empty() {
            return Err(Failure::Usage(format!(
                "there is no pipeline {asked}\n  remedy: known is {}",
                known.join(", ")
            )));
        }
    }
    if !arguments.yes {
        confirm(&pipelines, &config_path)?;
    }
    for pipeline in &pipelines {
        let removed = remove(pipeline).await?;
        report(&removed, arguments.json);
    }
    Ok(())
}

fn confirm(pipelines: &[Pipeline], config_path: &std::path::Path) -> Result<(), Failure> {
    let slots: Vec<&str> = pipelines.iter().map(|pipeline| pipeline.slot.as_str()).collect();
    let what = format!(
        "the slot {} on {}, its publications and its checkpoint at the destination; events and tables stay",
        slots.join(", "),
        pipelines.first().map_or_else(String::new, |pipeline| pipeline.url.address().to_string())
    );
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "drop removes {what}; there is no terminal to ask on\n  remedy: type `walgate --config {} drop --yes`",
            config_path.display()
        )));
    }
    eprint!(
        "This removes {what}.\nChanges from now on are lost to it until a new start copies again.\nType yes to go on: "
    );
    // A terminal that cannot be written cannot be answered either.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(Failure::Error(Error::definite("nothing was removed"))),
    }
}

async fn remove(pipeline: &Pipeline) -> Result<Removed> {
    let client = connect(&pipeline.url, &pipeline.application_name()).await?;
    let lock = take_lock(pipeline, &client).await?;
    let (address, name) = (pipeline.address()?, pipeline.name());
    let had_checkpoint = blocking(move || destination::forget(&address, &name)).await.map_err(|error| {
        let (chain, slot) = (error.chain(), &pipeline.slot);
        let hint = error.hint().map_or_else(String::new, |hint| format!("{hint}; "));
        Error::definite(format!("the checkpoint cannot be removed, so nothing was: {chain}")).with_hint(format!(
            "{hint}then type `walgate drop` again. A destination that never comes back leaves the slot, which retains WAL: SELECT pg_drop_replication_slot('{slot}')"
        ))
    })?;
    let mut removed = Removed { pipeline: pipeline.slot.clone(), ..Removed::default() };
    removed.checkpoint = had_checkpoint.then(|| pipeline.name());
    if slot::remove(&client, &pipeline.slot).await? {
        removed.slot = Some(pipeline.slot.clone());
    }
    removed.publications = pipeline.publications.remove(&client).await?;
    removed.schema = remove_schema(&client).await?;
    drop(lock);
    Ok(removed)
}

async fn take_lock(pipeline: &Pipeline, client: &Client) -> Result<Lock> {
    let deadline = Instant::now() + LOCK_TIME_MAX;
    loop {
        if let Some(lock) =
            Lock::try_take(&pipeline.url, &pipeline.application_name(), &pipeline.slot).await?
        {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            let who = lock::holder(client, &pipeline.slot).await?;
            let who = who.map_or_else(String::new, |holder| format!(" ({holder} on the source)"));
            return Err(Error::definite(format!(
                "another process runs the pipeline {}{who}; nothing was removed",
                pipeline.slot
            ))
            .with_hint("stop it first (SIGTERM, or Ctrl-C where it runs), and its standbys, then type `walgate drop` again"));
        }
        tokio::time::sleep(LOCK_TRY_TIME).await;
    }
}

async fn remove_schema(client: &Client) -> Result<Option<&'static str>> {
    let is_own: bool = client.query_one(OWN_SCHEMA, &[]).await.map_err(classify)?.get(0);
    if !is_own {
        return Ok(None);
    }
    let others = client.query(OTHER_SLOTS, &[]).await.map_err(classify)?;
    if let Some(other) = others.first() {
        let slot: String = other.get(0);
        tracing::info!(slot, "the schema walgate stays: another slot may need it");
        return Ok(None);
    }
    if let Some(foreign) = client.query_opt(FOREIGN, &[]).await.map_err(classify)? {
        let relation: String = foreign.get(0);
        tracing::warn!(relation, "the schema walgate stays: it holds what walgate did not make");
        return Ok(None);
    }
    client
        .batch_execute("DROP SCHEMA walgate CASCADE")
        .await
        .map_err(|error| classify(error).context("DROP SCHEMA walgate").with_hint("run it as its owner"))?;
    Ok(Some("walgate"))
}

fn report(removed: &Removed, is_json: bool) {
    if is_json {
        println!("{}", serde_json::to_string(removed).expect("plain data"));
        return;
    }
    let checkpoint = removed.checkpoint.as_ref().map(|name| format!("checkpoint {name}"));
    let slot = removed.slot.as_ref().map(|name| format!("slot {name}"));
    let publications = removed.publications.iter().map(|name| format!("publication {name}"));
    let schema = removed.schema.map(|name| format!("schema {name}"));
    let parts: Vec<String> = checkpoint.into_iter().chain(slot).chain(publications).chain(schema).collect();
    if parts.is_empty() {
        println!("{}: nothing was there to remove", removed.pipeline);
    }
    for part in parts {
        println!("{}: {part} removed", removed.pipeline);
    }
}
