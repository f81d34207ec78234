//! What the source does: tables, a backlog of about so many changes, and transactions for a steady load.
//!
//! In: a name, or the user's SQL file. Out: what makes the tables, what writes the backlog, and a script for pgbench.
//! Always: the tables of all are in the schema `public`; a row's text is new each time, so that no compression between
//! source and destination finds the last row in the next one.

mod sql;

use std::path::PathBuf;

use clap::ValueEnum;
use tokio::process::Command;

use super::ground::Ground;
use crate::command::throwaway::output_of;
use crate::error::{Error, Result};
use crate::wal::client::classify;

/// The clients of pgbench that write a load.
pub const CLIENTS: u64 = 4;
/// The rows of a transaction of `bulk`, in the backlog.
const BULK_ROWS: u64 = 100_000;

/// The workloads that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Inserts in large transactions
    Bulk,
    /// pgbench's TPC-B
    Oltp,
    /// Single-row inserts
    Small,
    /// Inserts of rows with 100 columns
    Wide,
    /// Inserts of rows of 512 KiB, stored out of line
    Large,
    /// Single-row updates by key
    Update,
    /// Inserts of which a filter lets 1 in 10 pass
    Filtered,
    /// Inserts, updates and deletes in transactions of 1 to 20
    Mixed,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One of ours.
    Named(Name),
    /// The user's.
    File {
        /// Run by pgbench, a transaction each time.
        script: PathBuf,
        /// Makes its tables; without it they are pgbench's, or those of the source that was given.
        schema: Option<PathBuf>,
    },
}

/// A part of a backlog.
enum Step {
    /// Statements.
    Sql(String),
    /// So many transactions of a script.
    Pgbench(u64),
}

impl Workload {
    /// As it is called.
    pub fn name(&self) -> String {
        match self {
            Workload::Named(name) => {
                name.to_possible_value().expect("no variant is skipped").get_name().to_owned()
            }
            Workload::File { script, .. } => {
                script.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
        }
    }

    /// What it is, in a sentence.
    pub fn about(&self) -> String {
        let about = match self {
            Workload::Named(Name::Bulk) => {
                "inserts of rows of about 180 bytes, in transactions of 100 000 rows; in the steady load and the burst of 1000"
            }
            Workload::Named(Name::Oltp) => {
                "pgbench's TPC-B: three updates and an insert a transaction, scale 5"
            }
            Workload::Named(Name::Small) => "inserts of rows of about 180 bytes, a transaction each",
            Workload::Named(Name::Wide) => {
                "inserts of rows with 100 columns, about 1.4 kB, in transactions of 100; a tenth of the rows asked for"
            }
            Workload::Named(Name::Large) => {
                "inserts of rows with 512 KiB of text stored out of line, a transaction each; one for 500 of the rows asked for. Events travel by claim check into a directory"
            }
            Workload::Named(Name::Update) => {
                "updates of rows of about 180 bytes by their key, in no order, a transaction each"
            }
            Workload::Named(Name::Filtered) => {
                "as bulk, with a row filter (id % 10 = 0) that one row in ten passes: Walgate's own `where`; for native, pglogical and pg_recvlogical the filter of the publication or replication set"
            }
            Workload::Named(Name::Mixed) => {
                "transactions of 1 to 20 changes: 5 of 10 insert a row of about 180 bytes, 4 update one, 1 deletes one; in the steady load one each"
            }
            Workload::File { schema: Some(_), .. } => {
                "the given SQL file, run by pgbench on the tables of --schema; as many transactions as rows were asked for"
            }
            Workload::File { schema: None, .. } => {
                "the given SQL file, run by pgbench; as many transactions as rows were asked for"
            }
        };
        about.to_owned()
    }

    /// The condition that rows must pass, in SQL, with the table that it is for.
    pub fn filter(&self) -> Option<(&'static str, &'static str)> {
        (*self == Workload::Named(Name::Filtered)).then_some(("bench_rows", "id % 10 = 0"))
    }

    /// Whether its events travel by claim check.
    pub fn is_large(&self) -> bool {
        *self == Workload::Named(Name::Large)
    }

    /// Whether it is the user's: what its changes give in events is then not known beforehand.
    pub fn is_users(&self) -> bool {
        matches!(self, Workload::File { .. })
    }

    /// How many changes, or for a user's file transactions, its backlog has when `rows` were asked for.
    pub fn scaled(&self, rows: u64) -> u64 {
        match self {
            Workload::Named(Name::Wide) => rows.div_ceil(10),
            Workload::Named(Name::Large) => rows.div_ceil(500),
            _ => rows,
        }
    }

    /// What its backlog writes, about, for the question whether the disk has room: rows, indexes, WAL.
    pub fn bytes_expected(&self, rows: u64) -> u64 {
        let row_bytes = match self {
            Workload::Named(Name::Wide) => 3000,
            Workload::Named(Name::Large) => 520 << 10,
            _ => 500,
        };
        self.scaled(rows).saturating_mul(row_bytes)
    }

    /// The changes a second of the steady load, where `rate` were asked for: of large rows fewer.
    pub fn rate(&self, rate: u64) -> u64 {
        match self {
            Workload::Named(Name::Large) => rate.div_ceil(100).min(20),
            Workload::Named(Name::Wide) => rate.div_ceil(2),
            _ => rate,
        }
    }

    /// The changes of a transaction of the steady load, where that is known beforehand.
    pub fn changes_per_transaction(&self) -> Option<u64> {
        match self {
            Workload::Named(Name::Bulk | Name::Filtered) => Some(1000),
            Workload::Named(Name::Oltp) => Some(4),
            Workload::Named(Name::Wide) => Some(100),
            Workload::Named(_) => Some(1),
            Workload::File { .. } => None,
        }
    }

    /// Makes the tables and their first rows, in an empty database (a user's own: in a copy of theirs).
    ///
    /// # Errors
    /// What the server, psql or pgbench said.
    pub async fn set_up(&self, ground: &Ground, database: &str, rows: u64) -> Result<()> {
        let server = &ground.source;
        let statements = match self {
            Workload::Named(Name::Oltp) => return initialise_pgbench(ground, database, "5").await,
            Workload::Named(Name::Bulk | Name::Small | Name::Filtered) => vec![sql::CREATE_ROWS.to_owned()],
            Workload::Named(Name::Update | Name::Mixed) => {
                vec![
                    sql::CREATE_ROWS.to_owned(),
                    sql::insert_rows(rows),
                    "VACUUM ANALYZE public.bench_rows".to_owned(),
                ]
            }
            Workload::Named(Name::Wide) => vec![sql::create_wide()],
            Workload::Named(Name::Large) => vec![sql::CREATE_LARGE.to_owned()],
            Workload::File { schema: Some(schema), .. } => {
                let mut psql = ground.on_source("psql", database);
                psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(schema);
                return output_of(&format!("psql -f {}", schema.display()), psql).await.map(drop).map_err(
                    |error| error.with_hint("mend the file of --schema; it must make the workload's tables in an empty database"),
                );
            }
            Workload::File { schema: None, .. } if server.is_throwaway() => {
                return initialise_pgbench(ground, database, "1").await;
            }
            Workload::File { schema: None, .. } => return Ok(()),
        };
        let client = server.connect(database).await?;
        for statement in statements {
            client.batch_execute(&statement).await.map_err(classify)?;
        }
        Ok(())
    }

    /// Writes the backlog; commits do not wait for the disk meanwhile.
    ///
    /// # Errors
    /// What the server or pgbench said.
    pub async fn write_backlog(&self, ground: &Ground, database: &str, rows: u64) -> Result<()> {
        let count = self.scaled(rows);
        let in_chunks = |chunk: u64, statement: &dyn Fn(u64) -> String| {
            let full = std::iter::repeat_n(chunk, usize::try_from(count / chunk).unwrap_or(usize::MAX));
            let rest = (!count.is_multiple_of(chunk)).then_some(count % chunk);
            full.chain(rest).map(|rows| Step::Sql(statement(rows))).collect()
        };
        let steps: Vec<Step> = match self {
            Workload::Named(Name::Bulk | Name::Filtered) => in_chunks(BULK_ROWS, &sql::insert_rows),
            Workload::Named(Name::Wide) => {
                vec![Step::Sql(sql::loop_of(count.div_ceil(100), &sql::insert_wide(100)))]
            }
            Workload::Named(Name::Small) => vec![Step::Sql(sql::loop_of(count, &sql::insert_rows(1)))],
            Workload::Named(Name::Large) => vec![Step::Sql(sql::loop_of(count, sql::INSERT_LARGE))],
            Workload::Named(Name::Update) => vec![Step::Sql(sql::loop_of(count, &sql::update_one(count)))],
            Workload::Named(Name::Mixed) => vec![Step::Sql(sql::mixed_loop(count))],
            Workload::Named(Name::Oltp) => vec![Step::Pgbench(count.div_ceil(4))],
            Workload::File { .. } => vec![Step::Pgbench(count)],
        };
        let client = ground.source.connect(database).await?;
        client.batch_execute("SET synchronous_commit = off").await.map_err(classify)?;
        for step in steps {
            match step {
                Step::Sql(statement) => client.batch_execute(&statement).await.map_err(classify)?,
                Step::Pgbench(transactions) => {
                    let mut pgbench = self.pgbench(ground, database)?;
                    let each = transactions.div_ceil(CLIENTS).to_string();
                    pgbench.env("PGOPTIONS", "-c synchronous_commit=off").args(["-t", &each]);
                    run_pgbench(pgbench).await?;
                }
            }
        }
        Ok(())
    }

    /// pgbench with this workload's transactions; how many, and how fast, is to be added.
    ///
    /// # Errors
    /// Definite: its script cannot be written.
    pub fn pgbench(&self, ground: &Ground, database: &str) -> Result<Command> {
        let mut pgbench = ground.on_source("pgbench", database);
        pgbench.args(["-n", "-c", &CLIENTS.to_string()]);
        let script = match self {
            Workload::Named(Name::Oltp) => {
                pgbench.args(["-b", "tpcb-like"]);
                return Ok(pgbench);
            }
            Workload::File { script, .. } => {
                pgbench.arg("-f").arg(script);
                return Ok(pgbench);
            }
            Workload::Named(Name::Bulk | Name::Filtered) => sql::insert_rows(1000),
            Workload::Named(Name::Small) => sql::insert_rows(1),
            Workload::Named(Name::Wide) => sql::insert_wide(100),
            Workload::Named(Name::Large) => sql::INSERT_LARGE.to_owned(),
            Workload::Named(Name::Update) => sql::UPDATE_ANY.to_owned(),
            Workload::Named(Name::Mixed) => sql::MIXED_ONE.to_owned(),
        };
        pgbench.arg("-f").arg(ground.scratch.write(&format!("{}.sql", self.name()), &(script + ";\n"))?);
        Ok(pgbench)
    }

    /// Runs one of its transactions, to find what is wrong with it before anything is measured.
    ///
    /// # Errors
    /// What pgbench said.
    pub async fn try_once(&self, ground: &Ground, database: &str) -> Result<()> {
        let mut pgbench = self.pgbench(ground, database)?;
        pgbench.args(["-c", "1", "-t", "1"]);
        run_pgbench(pgbench).await.map(drop)
    }
}

async fn initialise_pgbench(ground: &Ground, database: &str, scale: &str) -> Result<()> {
    let mut pgbench = ground.on_source("pgbench", database);
    pgbench.args(["-i", "-q", "-s", scale]);
    output_of("pgbench -i", pgbench).await.map(drop)
}

/// What a run of pgbench says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Processed {
    /// Transactions.
    pub transactions: u64,
    /// Transactions a second, without the time to connect.
    pub per_second: f64,
}

/// Runs pgbench to its end.
///
/// # Errors
/// Definite: what it said; a transaction that failed ends a client, and is an error too.
pub async fn run_pgbench(mut pgbench: Command) -> Result<Processed> {
    let output = pgbench
        .output()
        .await
        .map_err(|error| Error::definite("pgbench cannot be run").with_source(error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let faults: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("error:") || line.contains("ERROR:") || line.contains("fatal:"))
        .take(3)
        .collect();
    if !output.status.success() || !faults.is_empty() {
        return Err(Error::definite(format!("pgbench failed ({}): {}", output.status, faults.join("; ")))
            .with_hint("mend what it says: of a workload file, try `pgbench -n -f FILE -t 1`; of a full disk, see --disk-free-min"));
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    processed(&printed).ok_or_else(|| Error::definite("pgbench does not say how many transactions it made"))
}

fn processed(printed: &str) -> Option<Processed> {
    let value = |name: &str| printed.lines().find_map(|line| line.strip_prefix(name));
    let transactions =
        value("number of transactions actually processed: ")?.split('/').next()?.trim().parse().ok()?;
    let per_second = value("tps = ")?.split(' ').next()?.parse().ok()?;
    Some(Processed { transactions, per_second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pgbench_prints() {
        let printed = "scaling factor: 1\nnumber of transactions actually processed: 4711/5000\nlatency average = 1 ms\ntps = 470.5 (without initial connection time)\n";
        assert_eq!(processed(printed), Some(Processed { transactions: 4711, per_second: 470.5 }));
        assert_eq!(processed("nothing"), None);
    }

    #[test]
    fn every_named_workload_says_what_it_is() {
        for name in Name::value_variants() {
            let workload = Workload::Named(*name);
            assert!(workload.about().len() > 20 && workload.scaled(1) == 1, "{name:?}");
        }
    }
}
