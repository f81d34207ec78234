//! What is to be measured: from what was typed to what can run.
//!
//! Always: what cannot be is refused before any server starts, as wrong usage.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::address::Address;
use super::ground::Given;
use super::mode::{Mode, ModeName};
use super::workload::{Name, Workload};
use crate::command::Failure;

/// What `walgate bench` is asked.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// What is compared [default: all that can be measured here]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODE")]
    pub modes: Vec<ModeName>,
    /// What the source does: bulk, oltp, small, wide, large, update, filtered, mixed, all, or an SQL file for pgbench
    #[arg(long, value_delimiter = ',', default_value = "bulk,small,oltp", value_name = "NAME|FILE")]
    pub workloads: Vec<String>,
    /// An SQL file that makes the tables of a workload file, in an empty database [default: the tables of pgbench -i, or
    /// those of --source]
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
    /// Changes of a backlog, about; of a workload file transactions
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub rows: u64,
    /// Runs of each mode; they take turns
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=99))]
    pub runs: u64,
    /// Length of the steady load in seconds, the burst being half as long; 0: backlogs only
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub seconds: u64,
    /// Changes a second of the steady load
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub rate: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Write an HTML report, one file that opens offline
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// A database on the source's server instead of a throwaway cluster; databases are made beside it, and dropped
    #[arg(long, value_name = "URL")]
    pub source: Option<String>,
    /// The same for the target
    #[arg(long, value_name = "URL", requires = "source")]
    pub target: Option<String>,
    /// Brokers for event-kafka and both; the topics that are made are removed
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka: Option<String>,
    /// Stop when less than so many MiB are free in TMPDIR
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub disk_free_min: u64,
}

/// What can run.
#[derive(Debug)]
pub struct Plan {
    /// In the order of tables.
    pub modes: Vec<Mode>,
    /// In the order in which they were named, each once.
    pub workloads: Vec<Workload>,
    /// As typed.
    pub rows: u64,
    /// As typed.
    pub runs: u64,
    /// As typed.
    pub seconds: u64,
    /// As typed.
    pub rate: u64,
    /// In bytes.
    pub disk_free_bytes_min: u64,
    /// Servers that were given.
    pub given: Given,
    /// The command, without passwords.
    pub command: String,
}

impl Plan {
    /// Of what was typed.
    ///
    /// # Errors
    /// Usage: all that is wrong, at once.
    pub fn of(arguments: &Arguments) -> Result<Plan, Failure> {
        let mut faults = Vec::new();
        let mut workloads = Vec::new();
        for typed in &arguments.workloads {
            match parse_workload(typed, arguments.schema.as_deref()) {
                Ok(found) => workloads.extend(found),
                Err(fault) => faults.push(fault),
            }
        }
        let mut unique: Vec<Workload> = Vec::new();
        for workload in workloads {
            if !unique.contains(&workload) {
                unique.push(workload);
            }
        }
        if let Some(schema) = &arguments.schema {
            if !schema.is_file() {
                faults.push(format!("--schema {}: there is no such file", schema.display()));
            }
            if !unique.iter().any(Workload::is_users) {
                faults.push("--schema is for a workload file, and --workloads names none".to_owned());
            }
        }
        for (flag, url) in [("--source", &arguments.source), ("--target", &arguments.target)] {
            if let Some(Err(error)) = url.as_deref().map(Address::parse) {
                faults.push(format!("{flag}: {error}"));
            }
        }
        if let Some(report) = &arguments.report {
            let folder = report.parent().filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) || report.is_dir() {
                faults.push(format!(
                    "--report {}: it is a folder, or its folder is not there",
                    report.display()
                ));
            }
        }
        if !faults.is_empty() {
            return Err(Failure::Usage(faults.join("\n  ")));
        }
        let names = match arguments.modes.as_slice() {
            [] => ModeName::value_variants(),
            typed => typed,
        };
        let mut modes: Vec<Mode> = names.iter().flat_map(|name| name.modes()).copied().collect();
        modes.sort_unstable();
        modes.dedup();
        Ok(Plan {
            modes,
            workloads: unique,
            rows: arguments.rows,
            runs: arguments.runs,
            seconds: arguments.seconds,
            rate: arguments.rate,
            disk_free_bytes_min: arguments.disk_free_min << 20,
            given: Given {
                source: arguments.source.clone(),
                target: arguments.target.clone(),
                brokers: arguments.kafka.clone(),
            },
            command: command_of(std::env::args()),
        })
    }

    /// How many measurements it takes, with so many modes.
    pub fn steps(&self, modes: usize) -> u64 {
        let modes = u64::try_from(modes).unwrap_or_default();
        let load = if self.seconds > 0 { (modes + 1) * self.runs } else { 0 };
        (modes * (self.runs + 1) + load) * u64::try_from(self.workloads.len()).unwrap_or_default()
    }
}

fn parse_workload(typed: &str, schema: Option<&Path>) -> Result<Vec<Workload>, String> {
    if typed == "all" {
        return Ok(Name::value_variants().iter().copied().map(Workload::Named).collect());
    }
    if let Ok(name) = Name::from_str(typed, false) {
        return Ok(vec![Workload::Named(name)]);
    }
    let script = Path::new(typed);
    let absolute = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if script.is_file() {
        return Ok(vec![Workload::File { script: absolute(script), schema: schema.map(absolute) }]);
    }
    let names: Vec<String> =
        Name::value_variants().iter().map(|name| Workload::Named(*name).name()).collect();
    Err(format!(
        "--workloads {typed}: there is no such workload and no such file; there are {}, all",
        names.join(", ")
    ))
}

/// As it was typed, but URLs without their passwords.
fn command_of(arguments: impl Iterator<Item = String>) -> String {
    let hidden =
        |url: &str| Address::parse(url).map_or_else(|_| "URL".to_owned(), |address| address.0.to_string());
    let mut words = vec!["walgate".to_owned()];
    let mut is_url = false;
    for word in arguments.skip(1) {
        let shown = match word.split_once('=') {
            _ if is_url => hidden(&word),
            Some((flag @ ("--source" | "--target"), url)) => format!("{flag}={}", hidden(url)),
            _ => word.clone(),
        };
        is_url = matches!(word.as_str(), "--source" | "--target");
        words.push(shown);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let arguments = Line::try_parse_from(words).map_err(|error| error.to_string())?.arguments;
        Plan::of(&arguments).map_err(|failure| failure.to_string())
    }

    #[test]
    fn names_give_modes_and_workloads_once_each() {
        let plan = plan("--modes native,event-kafka,native --workloads small,all --seconds 0 --runs 2")
            .expect("it can run");
        assert_eq!(plan.modes, [Mode::KafkaAtLeastOnce, Mode::KafkaExactlyOnce, Mode::Native]);
        assert_eq!((plan.workloads.len(), plan.steps(3)), (8, 8 * 3 * 3));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let fault = plan(
            "--workloads bulk,nothing.sql --schema none.sql --source mysql://x --report /nowhere/r.html",
        )
        .expect_err("four faults");
        for part in ["nothing.sql", "none.sql", "--source", "/nowhere/r.html", "filtered"] {
            assert!(fault.contains(part), "{part}: {fault}");
        }
        assert!(
            plan("--rows 0").is_err()
                && plan("--modes debezium").is_err()
                && plan("--target postgres://x@y/z").is_err()
        );
    }

    #[test]
    fn passwords_are_not_told() {
        let typed = [
            "walgate",
            "bench",
            "--source",
            "postgres://me:secret@db/shop",
            "--target=postgres://me:secret@r/shop",
        ];
        let told = command_of(typed.into_iter().map(str::to_owned));
        assert!(!told.contains("secret") && told.contains("db") && told.contains("--target="), "{told}");
    }
}
