//! The initial copy of one table to a replica, against `psql COPY | psql COPY` on one connection each.
//!
//! Both copy into an empty table with its primary key. Time is from the start of the process, Walgate's without slot
//! or checkpoint, to its end: all rows there, the stream reached. The table has been read once, so its hint bits are
//! set and its pages cached.

use std::process::Command;

use super::contender::{Contender, Kind};
use super::{END, contents, series, set_up};
use crate::backlog::per_second;
use crate::process::Process;
use crate::report::{Report, Unit};
use crate::servers::{Database, postgres_program};
use crate::{Result, Settings, say, settle, table};

/// As the report names it.
pub const PSQL: &str = "psql COPY to COPY";

/// See the module.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let source = Database::new("r_copy")?;
    set_up(source.session(), settings.rows)?;
    source.session().run(&format!("CREATE PUBLICATION {n} FOR TABLE {n}, {END}", n = table::NAME))?;
    source.session().run("CHECKPOINT")?;
    let expected = contents(source.session())?;
    for nth in 0..=settings.runs {
        for turn in 0..2 {
            settle()?;
            let is_walgate = (turn + nth) % 2 == 0;
            let contender = Contender::new(&source, "copy", Kind::Walgate, 2 * nth + turn)?;
            set_up(contender.target(), 0)?;
            contender.target().run("CHECKPOINT")?;
            let (name, taken) = match is_walgate {
                true => (Kind::Walgate.name(), contender.copy()?),
                false => (PSQL, psql(&source, contender.database())?),
            };
            if contents(contender.target())? != expected {
                return Err(format!("copy: {name}: the replica's rows are not the source's").into());
            }
            contender.forget(&source)?;
            if nth == 0 {
                say(format_args!("replica, copy: {name}, unmeasured, done"));
                continue;
            }
            let rate = per_second(settings.rows, taken.seconds);
            say(format_args!("replica, copy, round {nth}: {name}: {:.2} s, {rate:.0} rows/s", taken.seconds));
            report.add(series("copy", name), Unit::Seconds, taken.seconds);
            if is_walgate {
                let cpu = taken.cpu_seconds * 1e6 / per_second(settings.rows, 1.0);
                report.add(series("copy", "CPU of walgate per 1M rows"), Unit::Seconds, cpu);
                report.add_memory(series("copy", "peak memory of walgate"), taken.memory_peak_bytes);
            }
        }
    }
    Ok(())
}

fn psql(source: &Database, target: &Database) -> Result<crate::process::Taken> {
    let (psql, name) = (postgres_program("psql")?, table::NAME);
    let script = format!(
        "set -o pipefail; '{psql}' -qX '{}' -c 'COPY {name} TO STDOUT' | '{psql}' -qX '{}' -c 'COPY {name} FROM STDIN'",
        source.url(),
        target.url(),
        psql = psql.display()
    );
    let folder = crate::servers::folder()?;
    Process::start("psql", Command::new("bash").args(["-c", &script]), &folder.path().join("log"))?.finish()
}
