//! What Walgate can do, measured against PostgreSQL's own client and its own subscription: `make bench`.
//!
//! In: the servers that `scripts/bench` started, named by `WALGATE_TEST_*`. Out: a table on the terminal and in
//! `target/bench/figures.md`, each run's figure, and a verdict for every goal. Always: what is compared runs side
//! by side in one run of the program, contenders interleaved and their order turned from round to round; every
//! event is counted at the far side, outside of the time measured; figures are medians of the runs.

mod backlog;
mod claims;
mod contender;
mod goals;
mod hub;
mod latency;
mod machine;
mod process;
mod replica;
mod report;
mod servers;
mod snapshot;
mod table;

use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{CommandFactory, Parser};

/// Between two measurements.
const PAUSE: Duration = Duration::from_secs(1);

/// Measures `walgate` on throwaway servers; start it by `make bench` or `scripts/bench [OPTIONS]`.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo bench --bench pipeline --")]
pub struct Settings {
    /// Rows of the backlog, of the one large transaction and of the snapshot
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Single-row transactions of the backlog of small ones [default: 3/10 of the rows]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    transactions: Option<u64>,
    /// Runs of each contender
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    runs: u64,
    /// Transactions a second while latency is measured
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Seconds for which latency is measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    only: Vec<Scenario>,
    /// Is the S3 server of this folder instead; the program starts itself so
    #[arg(long, hide = true, value_name = "FOLDER")]
    serve_s3: Option<std::path::PathBuf>,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
    /// Given by test runners: nothing is measured
    #[arg(long, hide = true)]
    test: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// A backlog in transactions of 100k rows
    Bulk,
    /// A backlog of single-row transactions
    Small,
    /// A backlog of one transaction
    Huge,
    /// From commit to consumer under a steady load
    Latency,
    /// The initial copy of one table
    Snapshot,
    /// A replica, and a backlog of inserts in transactions of 100k rows
    ReplicaBulk,
    /// A replica, and a backlog of single-row transactions
    ReplicaSmall,
    /// A replica, and a backlog of single-row updates
    ReplicaUpdates,
    /// A replica, and a backlog of one transaction that updates half as many rows
    ReplicaOneUpdate,
    /// The initial copy of one table to a replica
    ReplicaCopy,
    /// From commit to visible on a replica under a steady load
    ReplicaLag,
    /// Rows of 2 MB through claim checks, one for 2000 rows
    Claims,
    /// A tenth of the rows, each hundredth of them 1 MB
    ClaimsMixed,
    /// Memory: one transaction of five times the rows, and rows of 30 MB, one for 10000 rows
    ClaimsMemory,
}

/// What keeps the figures from being had; shown, and the end.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Settings {
    fn transactions(&self) -> u64 {
        self.transactions.unwrap_or((self.rows * 3).div_ceil(10))
    }

    fn scenarios(&self) -> Vec<Scenario> {
        use clap::ValueEnum;
        let all = Scenario::value_variants().iter().copied();
        all.filter(|scenario| self.only.is_empty() || self.only.contains(scenario)).collect()
    }
}

fn main() -> ExitCode {
    let settings = Settings::parse();
    if let Some(folder) = &settings.serve_s3 {
        return exit_code(claims::serve(folder));
    }
    if settings.test || !settings.bench {
        println!("{}", Settings::command().render_help());
        return ExitCode::SUCCESS;
    }
    exit_code(measure(&settings))
}

fn exit_code(ended: Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(settings: &Settings) -> Result<()> {
    let mut report = report::Report::new(settings, machine::describe()?);
    for scenario in settings.scenarios() {
        match scenario {
            Scenario::Bulk => backlog::bulk(settings, &mut report)?,
            Scenario::Small => backlog::small(settings, &mut report)?,
            Scenario::Huge => backlog::huge(settings, &mut report)?,
            Scenario::Latency => latency::run(settings, &mut report)?,
            Scenario::Snapshot => snapshot::run(settings, &mut report)?,
            Scenario::ReplicaBulk => replica::bulk(settings, &mut report)?,
            Scenario::ReplicaSmall => replica::small(settings, &mut report)?,
            Scenario::ReplicaUpdates => replica::updates(settings, &mut report)?,
            Scenario::ReplicaOneUpdate => replica::one_update(settings, &mut report)?,
            Scenario::ReplicaCopy => replica::copy(settings, &mut report)?,
            Scenario::ReplicaLag => replica::lag(settings, &mut report)?,
            Scenario::Claims => claims::copy(settings, &mut report)?,
            Scenario::ClaimsMixed => claims::mixed(settings, &mut report)?,
            Scenario::ClaimsMemory => claims::memory(settings, &mut report)?,
        }
    }
    let path = report.write()?;
    println!("\n{}\nwritten to {}", report.markdown(), path.display());
    Ok(())
}

/// Before each measurement: what the one before it has left to be written is written, and the machine is at rest.
pub fn settle() -> Result<()> {
    if !Command::new("sync").status()?.success() {
        return Err("sync has failed".into());
    }
    std::thread::sleep(PAUSE);
    Ok(())
}

/// A line of progress, on stderr.
pub fn say(text: impl std::fmt::Display) {
    eprintln!("bench: {text}");
}
