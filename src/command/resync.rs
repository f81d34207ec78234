//! `walgate resync`: copies tables again. DESIGN sections 6 and 7.
//!
//! Comes in: a pipeline and tables. Goes out: a logical message in the source's WAL, which the pipeline's process finds
//! in its place among the changes, now or when it next runs. It then stores that the tables are to be copied, and copies
//! them as a new generation (EXACTLY_ONCE.md, "Copying a table", point 6). The message's transaction is the order: what
//! committed before it is in the copy.

use std::sync::Arc;

use clap::Args;

use super::Failure;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::pipeline::leaves;
use crate::pipeline::tables::{self, MatchedTable};
use crate::route::message::{RESYNC_PREFIX, ResyncRequest};
use crate::route::name::TablePattern;
use crate::wal::client::{classify, connect};
use crate::wal::lock;

/// What `walgate resync` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Tables of the source: schema.table
    #[arg(value_name = "TABLE", required_unless_present = "all")]
    pub tables: Vec<String>,
    /// Every table of the pipeline
    #[arg(long, conflicts_with = "tables")]
    pub all: bool,
    /// `hub`, a replica's name, or a slot's name; may be left out where there is only one
    #[arg(long, value_name = "P")]
    pub pipeline: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Writes the message.
///
/// # Errors
/// Usage: no such pipeline or table. As the connection.
pub async fn run(config: Config, arguments: &Arguments) -> Result<(), Failure> {
    let pipelines = Pipeline::all(&Arc::new(config), false)?;
    let pipeline = choose(&pipelines, arguments.pipeline.as_deref())?;
    let client = connect(&pipeline.url, "walgate resync").await?;
    let taken = tables::taken(pipeline, &client).await?;
    let name =
        |matched: &MatchedTable| TablePattern::exact(&matched.table.schema, &matched.table.name).to_string();
    let is_asked = |one: &MatchedTable, asked: &String| leaves::is_named(&one.table, asked);
    if let Some(unknown) = arguments.tables.iter().find(|asked| !taken.iter().any(|one| is_asked(one, asked)))
    {
        let known: Vec<String> = taken.iter().map(name).collect();
        return Err(Failure::Usage(format!(
            "{unknown} is no table of the pipeline {}\n  remedy: known are {}",
            pipeline.slot,
            known.join(", ")
        )));
    }
    let is_chosen =
        |one: &&MatchedTable| arguments.all || arguments.tables.iter().any(|asked| is_asked(one, asked));
    let chosen: Vec<&MatchedTable> = taken.iter().filter(is_chosen).collect();
    let request = ResyncRequest {
        pipeline: pipeline.slot.clone(),
        tables: chosen.iter().map(|matched| matched.table.oid).collect(),
    };
    let content = serde_json::to_string(&request).expect("plain data");
    client
        .execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, $1::text, $2::text)",
            &[&RESYNC_PREFIX, &content],
        )
        .await
        .map_err(|error| {
            Failure::Error(classify(error).context("the message that asks for the copy cannot be written"))
        })?;
    let is_running = lock::holder(&client, &pipeline.slot).await?.is_some();
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({ "pipeline": pipeline.slot, "tables": chosen.iter().map(|one| name(one)).collect::<Vec<_>>(), "running": is_running })
        );
        return Ok(());
    }
    let when = if is_running {
        "as soon as the running process has come to it"
    } else {
        "when `walgate run` next comes to it"
    };
    for matched in chosen {
        println!("{}: {} is copied again, {when}", pipeline.slot, name(matched));
    }
    Ok(())
}

fn choose<'p>(pipelines: &'p [Pipeline], asked: Option<&str>) -> Result<&'p Pipeline, Failure> {
    let known: Vec<&str> = pipelines.iter().map(Pipeline::short_name).collect();
    match (asked, pipelines) {
        (Some(asked), _) => {
            let mut named = pipelines.iter().filter(|one| one.is_named(asked));
            named.next().ok_or_else(|| {
                Failure::Usage(format!(
                    "there is no pipeline {asked}\n  remedy: known are {}",
                    known.join(", ")
                ))
            })
        }
        (None, [only]) => Ok(only),
        (None, []) => Err(Failure::Error(Error::definite("no rule sends anything anywhere"))),
        (None, _) => Err(Failure::Usage(format!(
            "there are several pipelines\n  remedy: name one with --pipeline: {}",
            known.join(", ")
        ))),
    }
}
