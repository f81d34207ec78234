//! A backlog, read by each contender in turn.
//!
//! Every run has a slot of its own, made before the backlog is written, so all of them read the same bytes. Time
//! is from the start of the process to its end, for all contenders: Walgate's includes connecting, taking its
//! transactional id, reading its checkpoint and the last commit; what that is without any backlog is a figure of
//! its own. Before the first round each of Walgate's deliveries runs once, unmeasured: the broker's JVM is cold.

use std::time::Instant;

use crate::contender::{Contender, Kind};
use crate::report::{Report, Unit};
use crate::servers::{Database, Session};
use crate::{Result, Settings, say, settle, table};

const CONTENDERS: [Kind; 3] = [Kind::Recvlogical, Kind::AtLeastOnce, Kind::ExactlyOnce];

/// Transactions of 100k rows.
pub fn bulk(settings: &Settings, report: &mut Report) -> Result<()> {
    let rows = settings.rows;
    measure("bulk", rows, settings.runs, report, |session| table::insert_in_bulk(session, rows))
}

/// Single-row transactions.
pub fn small(settings: &Settings, report: &mut Report) -> Result<()> {
    let transactions = settings.transactions();
    measure("small", transactions, settings.runs, report, |session| {
        table::insert_one_by_one(session, transactions)
    })
}

/// One transaction: for its memory, so that one run must do.
pub fn huge(settings: &Settings, report: &mut Report) -> Result<()> {
    let rows = settings.rows;
    measure("huge", rows, 1, report, |session| table::insert(session, 1, rows))
}

fn measure(
    scenario: &str,
    rows: u64,
    runs: u64,
    report: &mut Report,
    write: impl Fn(&Session) -> Result<()>,
) -> Result<()> {
    let database = Database::new(scenario)?;
    table::create(database.session())?;
    let contender = |kind, nth| {
        let contender = Contender::new(&database, scenario, kind, nth)?;
        contender.prepare(&database).map(|()| contender)
    };

    let warm_up: Vec<Contender> =
        Kind::DELIVERIES.iter().map(|&kind| contender(kind, 0)).collect::<Result<_>>()?;
    for idle in warm_up.iter().cycle().take(warm_up.len() * usize::try_from(runs)?) {
        let taken = idle.read_backlog("0/0")?;
        report.add(format!("{scenario}: {} with nothing to do", idle.kind), Unit::Seconds, taken.seconds);
    }
    let rounds: Vec<Vec<Contender>> = (1..=runs)
        .map(|nth| CONTENDERS.iter().map(|&kind| contender(kind, nth)).collect())
        .collect::<Result<_>>()?;

    let end_lsn = write_backlog(scenario, rows, database.session(), write)?;
    for contender in &warm_up {
        contender.read_backlog(&end_lsn)?;
        contender.expect_events(rows)?;
        say(format_args!("{scenario}: {}, unmeasured, done", contender.kind));
    }
    for (nth, round) in rounds.iter().enumerate() {
        for turn in 0..round.len() {
            let contender = round.get((turn + nth) % round.len()).expect("a remainder is in range");
            settle()?;
            let taken = contender.read_backlog(&end_lsn)?;
            let kind = contender.kind;
            say(format_args!(
                "{scenario}, round {}: {kind}: {:.2} s, {:.0} rows/s",
                nth + 1,
                taken.seconds,
                per_second(rows, taken.seconds)
            ));
            report.add(format!("{scenario}: {kind}"), Unit::Seconds, taken.seconds);
            if kind != Kind::Recvlogical {
                let cpu = taken.cpu_seconds * 1e6 / per_second(rows, 1.0);
                report.add(format!("{scenario}: CPU per 1M events, {kind}"), Unit::Seconds, cpu);
                report.add_memory(format!("{scenario}: peak memory, {kind}"), taken.memory_peak_bytes);
            }
            contender.expect_events(rows)?;
        }
    }
    warm_up.iter().chain(rounds.iter().flatten()).try_for_each(Contender::forget)
}

/// Writes it and returns an LSN that is behind all of it and before the end of the WAL.
fn write_backlog(
    scenario: &str,
    rows: u64,
    session: &Session,
    write: impl Fn(&Session) -> Result<()>,
) -> Result<String> {
    let (started_at, start_lsn) = (Instant::now(), session.value("SELECT pg_current_wal_lsn()")?);
    session.run("SET synchronous_commit = off")?;
    write(session)?;
    session.run("SET synchronous_commit = on")?;
    // Its own commit comes behind it, so whoever waits for this LSN is not left waiting at the last record.
    let end_lsn = session.value("SELECT pg_logical_emit_message(true, 'bench', 'end')")?;
    session.run("CHECKPOINT")?;
    let wal_bytes = session.value(&format!("SELECT pg_wal_lsn_diff('{end_lsn}', '{start_lsn}')::int8"))?;
    say(format_args!(
        "{scenario}: backlog of {rows} rows of {} bytes, {wal_bytes} bytes of WAL, written in {:.1} s",
        table::row_bytes(session)?,
        started_at.elapsed().as_secs_f64()
    ));
    Ok(end_lsn)
}

/// How many of `count` came in one of `seconds`.
pub fn per_second(count: u64, seconds: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds
}
