//! Rows on a replica: Walgate, PostgreSQL's own subscription, and pglogical where the server has it.
//!
//! Source and replica are two clusters. Every run has a slot, and a database on the replica, of its own, made before
//! the backlog is written, so that all read the same bytes into equal tables. Time is from the start of the process,
//! or of the subscription, until the last transaction of the backlog is visible on the replica, which is asked every
//! two milliseconds. Afterwards the replica's rows are compared with the source's: a difference ends the benchmark.

mod contender;
mod copy;
mod lag;

use contender::{Contender, Kind};

use crate::backlog::per_second;
use crate::report::{Report, Unit};
use crate::servers::{Database, Session};
use crate::{Result, Settings, say, settle, table};

pub use copy::{PSQL, run as copy};
pub use lag::run as lag;

/// The table whose one row is the backlog's last transaction.
const END: &str = "bench_end";

/// Inserts in transactions of 100k rows.
pub fn bulk(settings: &Settings, report: &mut Report) -> Result<()> {
    let rows = settings.rows;
    drain(Backlog { name: "bulk", there_before: 0, changes: rows }, settings, report, |session| {
        table::insert_in_bulk(session, rows)
    })
}

/// Inserts of one row, a transaction each.
pub fn small(settings: &Settings, report: &mut Report) -> Result<()> {
    let changes = settings.transactions();
    drain(Backlog { name: "small", there_before: 0, changes }, settings, report, |session| {
        table::insert_one_by_one(session, changes)
    })
}

/// Updates of one row by its key, a transaction each, in no order of the keys.
pub fn updates(settings: &Settings, report: &mut Report) -> Result<()> {
    let changes = settings.transactions();
    drain(Backlog { name: "updates", there_before: changes, changes }, settings, report, |session| {
        table::update_one_by_one(session, changes)
    })
}

/// One transaction that updates half as many rows as `--rows` says.
pub fn one_update(settings: &Settings, report: &mut Report) -> Result<()> {
    let changes = settings.rows.div_ceil(2);
    drain(Backlog { name: "one-update", there_before: changes, changes }, settings, report, table::update_all)
}

#[derive(Clone, Copy)]
struct Backlog {
    name: &'static str,
    there_before: u64,
    changes: u64,
}

/// Names of a scenario's series begin with it.
pub fn series(scenario: &str, kind: &str) -> String {
    format!("replica, {scenario}: {kind}")
}

/// What takes part, as the report names it.
pub fn names() -> [&'static str; 3] {
    [Kind::Walgate, Kind::Native, Kind::Pglogical].map(Kind::name)
}

fn drain(
    backlog: Backlog,
    settings: &Settings,
    report: &mut Report,
    write: impl Fn(&Session) -> Result<()>,
) -> Result<()> {
    let Backlog { name, there_before, changes } = backlog;
    let source = Database::new(&format!("r_{}", name.replace('-', "_")))?;
    set_up(source.session(), there_before)?;
    source.session().run(&format!("CREATE PUBLICATION {n} FOR TABLE {n}, {END}", n = table::NAME))?;
    let rounds: Vec<Vec<Contender>> = (1..=settings.runs)
        .map(|nth| {
            Kind::present(source.session())?
                .into_iter()
                .map(|kind| {
                    let contender = Contender::new(&source, name, kind, nth)?;
                    set_up(contender.target(), there_before)?;
                    contender.prepare(&source)?;
                    Ok(contender)
                })
                .collect()
        })
        .collect::<Result<_>>()?;

    let session = source.session();
    session.run("SET synchronous_commit = off")?;
    write(session)?;
    session.run("SET synchronous_commit = on")?;
    session.run(&format!("INSERT INTO {END} VALUES (1)"))?;
    session.run("CHECKPOINT")?;
    say(format_args!("replica, {name}: {changes} changes wait"));
    let expected = contents(session)?;

    for (nth, round) in rounds.iter().enumerate() {
        for turn in 0..round.len() {
            let contender = round.get((turn + nth) % round.len()).expect("a remainder is in range");
            contender.target().run("CHECKPOINT")?;
            settle()?;
            let drained = contender.drain(&format!("SELECT count(*) FROM {END}"))?;
            let (kind, seconds) = (contender.kind.name(), drained.seconds);
            if contents(contender.target())? != expected {
                return Err(format!("{name}: {kind}: the replica's rows are not the source's").into());
            }
            say(format_args!(
                "replica, {name}, round {}: {kind}: {seconds:.2} s, {:.0} changes/s",
                nth + 1,
                per_second(changes, seconds)
            ));
            report.add(series(name, kind), Unit::Seconds, seconds);
            if let Some(taken) = drained.taken {
                let cpu = taken.cpu_seconds * 1e6 / per_second(changes, 1.0);
                report.add(series(name, "CPU of walgate per 1M changes"), Unit::Seconds, cpu);
                report.add_memory(series(name, "peak memory of walgate"), taken.memory_peak_bytes);
            }
        }
    }
    rounds.into_iter().flatten().try_for_each(|contender| contender.forget(&source))
}

/// The tables, with so many rows in them, on either side.
fn set_up(session: &Session, rows: u64) -> Result<()> {
    table::create_table(session)?;
    session.run(&format!("CREATE TABLE {END} (n int PRIMARY KEY)"))?;
    if rows > 0 {
        session.run("SET synchronous_commit = off")?;
        table::insert(session, 1, rows)?;
        session.run("SET synchronous_commit = on")?;
    }
    session.run(&format!("VACUUM ANALYZE {}", table::NAME))
}

/// How many rows there are, and a sum over all that is in them.
fn contents(session: &Session) -> Result<String> {
    session.value(&format!(
        "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {} t",
        table::NAME
    ))
}
