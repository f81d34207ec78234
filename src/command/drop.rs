//! `walgate drop`: a clean leave. DESIGN section 7.
//!
//! Comes in: a pipeline that nobody runs. Goes out: nothing of Walgate's is left on source and hub but
//! the events. The order is the argument: first the lock, so that nobody starts meanwhile; then the
//! hub's checkpoint, whose removal fences a frozen process and fails before anything is touched when
//! the hub cannot be reached; then the slot, the publications and the schema `walgate`. Half done is
//! "slot without a checkpoint", which every start refuses and names this command for; and each step
//! goes on over what is missing, so doing it again mends it. Of a pipeline that is no longer in the file only
//! the source's side is known: its slot, by name, and its publications go, and what stays is told.

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
use crate::wal::publication::Publications;
use crate::wal::slot;
use crate::wal::url::ConnectUrl;

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
    /// Only this pipeline: `hub`, a replica's name, or its slot's name, also one that the file names no more
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
    /// What stays, where the file does not say where it is.
    left: Option<String>,
}

/// A pipeline's side on the source.
struct OnSource {
    url: ConnectUrl,
    application_name: String,
    slot: String,
    publications: Publications,
}

impl OnSource {
    fn of(pipeline: &Pipeline) -> Self {
        OnSource {
            url: pipeline.url.clone(),
            application_name: pipeline.application_name(),
            slot: pipeline.slot.clone(),
            publications: pipeline.publications.clone(),
        }
    }
}

/// Removes the pipeline.
///
/// # Errors
/// Usage: not confirmed, or no such pipeline. Otherwise when a process runs it, or source or hub
/// cannot be reached.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let config = Arc::new(config);
    let mut pipelines = Pipeline::all(&config, false)?;
    if let Some(asked) = &arguments.pipeline {
        let known: Vec<String> =
            pipelines.iter().map(|one| format!("{} (or: {})", one.slot, one.short_name())).collect();
        pipelines.retain(|pipeline| pipeline.is_named(asked));
        if pipelines.is_empty() {
            if let Some(orphan) = orphan(&config, asked).await? {
                return drop_orphan(&config, &orphan, arguments).await;
            }
            return Err(Failure::Usage(format!(
                "there is no pipeline {asked}\n  remedy: known is {}",
                known.join(", ")
            )));
        }
    }
    if !arguments.yes {
        let slots: Vec<&str> = pipelines.iter().map(|pipeline| pipeline.slot.as_str()).collect();
        let address = pipelines.first().map_or_else(String::new, |one| one.url.address().to_string());
        let what = format!(
            "the slot {} on {address}, its publications and its checkpoint at the destination; events and tables stay",
            slots.join(", ")
        );
        confirm(&what, &config.path)?;
    }
    for pipeline in &pipelines {
        let removed = remove(pipeline).await?;
        report(&removed, arguments.json);
    }
    Ok(())
}

/// The slot of a pipeline that the file names no more: by its own name, or by that of its replica.
async fn orphan(config: &Config, asked: &str) -> Result<Option<OnSource>> {
    let url = ConnectUrl::from_env(config.source.url.expose())
        .map_err(|error| Error::definite(format!("source.url: {error}")).with_hint(error.hint()))?;
    let client = connect(&url, "walgate drop").await?;
    let prefix = &config.source.slot;
    let slots = slot::states(&client, &format!("{prefix}_")).await?;
    let is_asked = |name: &str| {
        name == asked || name == format!("{prefix}_r_{asked}") || name == format!("{prefix}_{asked}")
    };
    let is_ours = |slot: &&slot::SlotState| {
        is_asked(&slot.name)
            && slot.plugin.as_deref() == Some("pgoutput")
            && slot.database.as_deref() == Some(url.database.as_str())
    };
    Ok(slots.iter().find(is_ours).map(|slot| {
        let source_name = config.source.name.as_ref().unwrap_or(&url.database);
        OnSource {
            application_name: format!("walgate/{source_name}.{}", slot.name),
            publications: Publications::new(&config.source.publication, &slot.name),
            slot: slot.name.clone(),
            url: url.clone(),
        }
    }))
}

async fn drop_orphan(config: &Config, orphan: &OnSource, arguments: &Arguments) -> Result<(), Failure> {
    if !arguments.yes {
        let what = format!(
            "the slot {} on {}, of which the file names no pipeline, and its publications; what its destination holds stays",
            orphan.slot,
            orphan.url.address()
        );
        confirm(&what, &config.path)?;
    }
    let client = connect(&orphan.url, &orphan.application_name).await?;
    let lock = take_lock(orphan, &client).await?;
    let mut removed = Removed { pipeline: orphan.slot.clone(), ..Removed::default() };
    remove_from_source(orphan, &client, &mut removed).await?;
    drop(lock);
    let name = config.source.name.as_ref().unwrap_or(&orphan.url.database);
    removed.left = Some(format!(
        "the checkpoint {name}.{} stays at its destination, which the file does not name, and so does a replication origin on a replica; there, where no other pipeline uses it: DROP SCHEMA walgate CASCADE, and pg_replication_origin_drop of what pg_replication_origin names",
        orphan.slot
    ));
    report(&removed, arguments.json);
    Ok(())
}

fn confirm(what: &str, config_path: &std::path::Path) -> Result<(), Failure> {
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
    let on_source = OnSource::of(pipeline);
    let client = connect(&pipeline.url, &on_source.application_name).await?;
    let lock = take_lock(&on_source, &client).await?;
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
    remove_from_source(&on_source, &client, &mut removed).await?;
    drop(lock);
    Ok(removed)
}

async fn remove_from_source(on_source: &OnSource, client: &Client, removed: &mut Removed) -> Result<()> {
    if slot::remove(client, &on_source.slot).await? {
        removed.slot = Some(on_source.slot.clone());
    }
    removed.publications = on_source.publications.remove(client).await?;
    removed.schema = remove_schema(client).await?;
    Ok(())
}

async fn take_lock(on_source: &OnSource, client: &Client) -> Result<Lock> {
    let deadline = Instant::now() + LOCK_TIME_MAX;
    let OnSource { url, application_name, slot, .. } = on_source;
    loop {
        if let Some(lock) = Lock::try_take(url, application_name, slot).await? {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            let who = lock::holder(client, slot).await?;
            let who = who.map_or_else(String::new, |holder| format!(" ({holder} on the source)"));
            return Err(Error::definite(format!(
                "another process runs the pipeline {slot}{who}; nothing was removed"
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
    if let Some(left) = &removed.left {
        println!("{}: {left}", removed.pipeline);
    }
}
