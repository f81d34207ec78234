//! The initial copy of one table to Kafka, the two deliveries in turn.
//!
//! Time is from the start of the process, without slot, topic or checkpoint, to its end: all rows delivered, the
//! stream reached. The table has been read once, so its hint bits are set and its pages cached.

use crate::backlog::per_second;
use crate::contender::{Contender, Kind};
use crate::report::{Report, Unit};
use crate::servers::Database;
use crate::{Result, Settings, say, table};

/// See the module.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let database = Database::new("snapshot")?;
    let (session, rows) = (database.session(), settings.rows);
    table::create(session)?;
    table::insert(session, 1, rows)?;
    session.run(&format!("ANALYZE {}", table::NAME))?;
    session.value(&format!("SELECT count(b) FROM {}", table::NAME))?;
    session.run("CHECKPOINT")?;
    say(format_args!("snapshot: table of {rows} rows of {} bytes", table::row_bytes(session)?));

    for nth in 0..=settings.runs {
        for turn in 0..Kind::DELIVERIES.len() {
            let both = Kind::DELIVERIES;
            let kind = both[(turn + usize::try_from(nth)?) % both.len()];
            let contender = Contender::new(&database, "snapshot", kind, nth)?;
            let taken = contender.copy()?;
            contender.expect_events(rows)?;
            contender.forget()?;
            let rate = per_second(rows, taken.seconds);
            if nth == 0 {
                say(format_args!("snapshot: {kind}, unmeasured, done"));
                continue;
            }
            say(format_args!("snapshot, round {nth}: {kind}: {:.2} s, {rate:.0} rows/s", taken.seconds));
            report.add(format!("snapshot: {kind}"), Unit::PerSecond, rate);
            let cpu = taken.cpu_seconds * 1e6 / per_second(rows, 1.0);
            report.add(format!("snapshot: CPU per 1M events, {kind}"), Unit::Seconds, cpu);
            report.add_memory(format!("snapshot: peak memory, {kind}"), taken.memory_peak_bytes);
        }
    }
    Ok(())
}
