//! From commit to visible on the replica, under a steady load of small transactions.
//!
//! The load is that of `latency.rs`. The replica is asked in a loop, a millisecond between an answer and the next
//! question, for the rows that it did not have before: what is counted is the answer's arrival. Latency is from
//! `clock_timestamp()` in the INSERT, so the source's own flush to disk is in it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::contender::{Contender, Kind};
use super::{END, series};
use crate::latency::{self, Figures, Received};
use crate::report::{Report, Unit};
use crate::servers::{Database, Session, client};
use crate::{Result, Settings, say, settle, table};

const ASK_TIME: Duration = Duration::from_millis(1);
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(60);

/// See the module.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let source = Database::new("r_lag")?;
    set_up(source.session())?;
    source.session().run(&format!("CREATE PUBLICATION {n} FOR TABLE {n}, {END}", n = table::NAME))?;
    let mut base = 0;
    for nth in 1..=settings.runs {
        let mut kinds = Kind::present(source.session())?;
        let kinds_count = kinds.len();
        kinds.rotate_left(usize::try_from(nth)? % kinds_count);
        for kind in kinds {
            base += latency::RUN_ROWS_MAX;
            settle()?;
            let contender = Contender::new(&source, "lag", kind, nth)?;
            set_up(contender.target())?;
            contender.prepare(&source)?;
            one_run(settings, &source, &contender, base, report)?;
            contender.forget(&source)?;
        }
    }
    Ok(())
}

fn set_up(session: &Session) -> Result<()> {
    latency::create_table(session)?;
    session.run(&format!("CREATE TABLE {END} (n int PRIMARY KEY)"))
}

fn one_run(
    settings: &Settings,
    source: &Database,
    contender: &Contender,
    base: u64,
    report: &mut Report,
) -> Result<()> {
    let running = contender.start()?;
    source.session().run(&format!("INSERT INTO {} (id) VALUES ({base})", table::NAME))?;
    let warm_up = settings.rate * latency::WARM_UP_SECONDS;
    let count = warm_up + settings.rate * settings.seconds;
    let target_url = contender.database().url();
    // The row that says that the stream flows, before the load begins.
    receive(&target_url, base - 1, 1)?;
    let (written, received) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| receive(&target_url, base, count));
        let written = latency::write(source, settings.rate, base, count);
        let received = reader.join().expect("the reader does not panic");
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((written?, received?))
    })?;
    let taken = contender.stop(running)?;

    let figures = Figures::of(&written, &received, base, warm_up)?;
    let kind = contender.kind.name();
    let figure = |q| latency::quantile(&figures.from_insert, q);
    say(format_args!(
        "replica, lag: {kind}: p50 {:.2} ms, p99 {:.2} ms at {:.0} transactions/s",
        figure(0.5),
        figure(0.99),
        figures.rate
    ));
    for (q, name) in [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max")] {
        report.add(series(&format!("lag {name}"), kind), Unit::Milliseconds, figure(q));
    }
    let from_return = latency::quantile(&figures.from_return, 0.99);
    report.add(series("lag p99 from the commit's return", kind), Unit::Milliseconds, from_return);
    report.add(series("lag, transactions a second", kind), Unit::PerSecond, figures.rate);
    if let Some(taken) = taken {
        report.add(series("lag", "CPU of walgate in the run"), Unit::Seconds, taken.cpu_seconds);
        report.add_memory(series("lag", "peak memory of walgate"), taken.memory_peak_bytes);
    }
    Ok(())
}

/// The rows after `base`, as they become visible.
fn receive(url: &str, base: u64, count: u64) -> Result<Vec<Received>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client(url).await?;
        let rows = concat!(
            "SELECT id, written_us FROM ",
            table::name!(),
            " WHERE id > $1::bigint AND id < $2::bigint"
        );
        let rows = client.prepare(rows).await?;
        let last = i64::try_from(base + latency::RUN_ROWS_MAX)?;
        let mut received = Vec::with_capacity(usize::try_from(count)?);
        // All up to `low` have been seen; of those after it, these: commits do not come in the order of their ids.
        let (mut low, mut seen) = (base, BTreeSet::new());
        let mut heard_at = Instant::now();
        while received.len() < usize::try_from(count)? {
            let answer = client.query(&rows, &[&i64::try_from(low)?, &last]).await?;
            let received_us = latency::now_us();
            for row in &answer {
                let id = u64::try_from(row.get::<_, i64>(0))?;
                if seen.insert(id) {
                    received.push(Received {
                        id,
                        written_us: u64::try_from(row.get::<_, i64>(1))?,
                        received_us,
                    });
                    heard_at = Instant::now();
                }
            }
            while seen.remove(&(low + 1)) {
                low += 1;
            }
            if heard_at.elapsed() > ARRIVAL_TIME_MAX {
                return Err(format!("{} of {count} rows have come", received.len()).into());
            }
            tokio::time::sleep(ASK_TIME).await;
        }
        Ok(received)
    })
}
