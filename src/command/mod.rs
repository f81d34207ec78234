//! The commands: what is typed, and what each does.
//!
//! Exit codes: 0 done; 1 failed, or `check` found something; 2 wrong usage or configuration file.
//! Machine output goes to stdout, with `--json`; logs to stderr.

pub mod log;
pub mod status;
pub mod tail;
pub mod drop;
pub mod init;
pub mod check;
pub mod migrate;
pub mod verify;
pub mod resync;
pub mod sync_sequences;
pub mod claims;
mod throwaway;
mod demo;
mod bench;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::config::Config;
use crate::error::Error;
use crate::pipeline::Pipeline;

/// Logical data replication for PostgreSQL: table by table, as events or as rows, exactly once
#[derive(Debug, Parser)]
#[command(name = "walgate", version, about, max_term_width = 100)]
pub struct Cli {
    /// The configuration file
    #[arg(long, global = true, default_value = Config::FILE_NAME, value_name = "FILE")]
    pub config: PathBuf,
    /// How log lines on stderr are written
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: log::LogFormat,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented configuration file for a database
    Init {
        /// The database: postgres://user:password@host:5432/database
        #[arg(long, value_name = "URL")]
        source: String,
        /// Replace the file if there is one
        #[arg(long)]
        force: bool,
    },
    /// Find everything that is wrong, at once, each with its remedy
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create or upgrade Walgate's own objects on source and replicas
    Migrate {
        /// Print the SQL for an administrator instead
        #[arg(long)]
        print: bool,
        /// Create an outbox table on the source too; the name is schema.table
        #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = migrate::OUTBOX)]
        outbox: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run all pipelines, creating what is missing where allowed
    Run {
        /// End, exit code 0, when everything committed before now is durably delivered
        #[arg(long)]
        until_caught_up: bool,
    },
    /// Show how each pipeline is: state, slot, retained WAL, lag, copy, last error
    Status(status::Arguments),
    /// Print events from the hub, one JSON value a line
    Tail(tail::Arguments),
    /// Compare the replicas' tables with the source; exit code 1 when something differs
    Verify(verify::Arguments),
    /// Copy tables again, while the rest goes on
    Resync(resync::Arguments),
    /// Bring the replicas' sequences forward to the source's; exit code 1 when one could not be
    SyncSequences(sync_sequences::Arguments),
    /// Compare the claim store with the hub's events, or remove what none of them needs
    #[command(subcommand)]
    Claims(claims::Command),
    /// Remove slots, publications, checkpoints and Walgate's own objects; events and tables stay
    Drop(drop::Arguments),
    /// Show all of it on a throwaway local cluster: nothing to install but PostgreSQL
    Demo(demo::Arguments),
    /// Compare events, replication and PostgreSQL's own on this machine, under your workload
    Bench(Box<bench::Arguments>),
}

impl Command {
    /// The level of the log where `WALGATE_LOG` sets none.
    pub fn log_level(&self) -> &'static str {
        match self {
            // It tells its own story; a log between its lines would only confuse.
            Command::Demo(_) | Command::Bench(_) => "error",
            _ => "info",
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage or configuration file.
    Usage(String),
    /// The command worked, and found something: it has printed what.
    Found,
    /// It failed.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) => write!(f, "walgate: {text}"),
            Failure::Found => Ok(()),
            Failure::Error(error) => {
                write!(f, "walgate: {}", error.chain())?;
                error.hint().map_or(Ok(()), |hint| write!(f, "\n  remedy: {hint}"))
            }
        }
    }
}

/// The replicas' pipelines: all, or that of the replica with this name.
///
/// # Errors
/// Usage: there is none.
fn replicas(config: Config, name: Option<&str>) -> Result<Vec<Pipeline>, Failure> {
    let mut pipelines = Pipeline::all(&Arc::new(config), false)?;
    pipelines.retain(|pipeline| pipeline.replica.is_some());
    if let Some(name) = name {
        pipelines.retain(|pipeline| pipeline.short_name() == name);
    }
    if pipelines.is_empty() {
        return Err(Failure::Usage(
            "there is no such replica that a rule sends rows to\n  remedy: see [[replica]] and the rules with mode = \"replicate\" or \"both\"".into(),
        ));
    }
    Ok(pipelines)
}

/// Prints a report to stdout, as one line of JSON or as `text` puts it.
fn print<R: Serialize>(report: &R, as_json: bool, text: impl FnOnce(&R) -> String) {
    let printed = match as_json {
        true => format!("{}\n", serde_json::to_string(report).expect("plain data")),
        false => text(report),
    };
    // A reader that has gone away does not want the rest.
    let _ = std::io::stdout().write_all(printed.as_bytes());
}

/// Runs the command.
///
/// # Errors
/// See [`Failure`].
pub async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Init { source, force } => Ok(init::run(&cli.config, &source, force).await?),
        Command::Check { json } => check::run(check::load(&cli.config, json)?, json).await,
        Command::Migrate { print, outbox, json } => {
            migrate::run(load(&cli.config)?, migrate::Asked { print, outbox, json }).await
        }
        Command::Run { until_caught_up } => {
            let config = load(&cli.config)?;
            Ok(crate::engine::run(Arc::new(config), until_caught_up).await?)
        }
        Command::Status(arguments) => status::run(load(&cli.config)?, &arguments).await,
        Command::Tail(arguments) => tail::run(load(&cli.config)?, arguments).await,
        Command::Verify(arguments) => verify::run(load(&cli.config)?, &arguments).await,
        Command::Resync(arguments) => resync::run(load(&cli.config)?, &arguments).await,
        Command::SyncSequences(arguments) => sync_sequences::run(load(&cli.config)?, &arguments).await,
        Command::Claims(command) => claims::run(load(&cli.config)?, &command).await,
        Command::Drop(arguments) => drop::run(load(&cli.config)?, &arguments).await,
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Bench(arguments) => bench::run(*arguments).await,
    }
}

/// Reads the configuration file; a source URL that cannot be used is a fault of the file as well.
fn load(path: &std::path::Path) -> Result<Config, Failure> {
    let config = Config::load(path).map_err(|error| {
        let hint = error.hint().map_or_else(String::new, |hint| format!("\n  remedy: {hint}"));
        Failure::Usage(format!("{error}{hint}"))
    })?;
    match crate::wal::url::ConnectUrl::from_env(config.source.url.expose()) {
        Ok(_) => Ok(config),
        Err(error) => {
            let (file, hint) = (path.display(), error.hint());
            Err(Failure::Usage(format!("{file} has 1 fault:\n  source.url: {error}\n    remedy: {hint}")))
        }
    }
}
