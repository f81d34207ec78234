//! A mode beside a source that works: latency under a steady load, and lag through a burst.
//!
//! In: a prepared workload, a mode. Out: percentiles of the probes' times, the lag through the burst, the WAL that the
//! source kept, and the transactions that the source's own clients made in the burst. Always: the same probes run from
//! beginning to end, by their schedule; `no consumer` does the same without any slot, so that what a mode costs the
//! source can be seen.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::contender::{Contender, Place, Running};
use super::drain::Prepared;
use super::figure::Figure;
use super::ground::Ground;
use super::mode::Mode;
use super::observer::{Observers, Pace};
use super::probe::{self, Probe, Writing};
use super::results::{LagCurve, Results, as_f64, milliseconds};
use super::workload::run_pgbench;
use crate::error::{Error, Result};
use crate::wal::client::Client;

/// Not counted: connections and caches get warm.
const WARM_UP: Duration = Duration::from_secs(2);
/// The first probe's way, with what a reader's start takes.
const FIRST_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a mode may take to catch up, for each second of the burst.
const CATCH_UP_FACTOR_MAX: u32 = 20;
const CATCH_UP_TIME_MIN: Duration = Duration::from_secs(60);
/// After it has caught up, for the end of the curve.
const AFTERWARDS: Duration = Duration::from_millis(500);
const KEPT_TIME: Duration = Duration::from_millis(200);
/// Of a curve, in seconds.
const BUCKET_SECONDS: f64 = 0.1;
/// Of the curve, before the burst.
const BEFORE: Duration = Duration::from_secs(1);
/// Of a p99.9, which needs values beyond it.
const COUNT_FOR_P999: u64 = 1000;

/// What is asked of a run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How long the steady load is; the burst is half as long, at least a second.
    pub seconds: u64,
    /// Transactions a second of the steady load.
    pub transactions_per_second: f64,
}

impl Load {
    fn burst_seconds(self) -> u64 {
        self.seconds.div_ceil(2)
    }
}

/// Runs it once; returns what was seen, in a line.
///
/// # Errors
/// What failed of the mode.
pub async fn run(
    ground: &Ground,
    prepared: &Prepared,
    mode: Mode,
    load: Load,
    results: &mut Results,
) -> Result<String> {
    let database = ground.name("live");
    ground.source.create_database(&database, &prepared.source_template).await?;
    let place =
        Place { source_database: &database, target_template: &prepared.target_template, relays: None };
    let contender =
        Contender::prepare(ground, &prepared.workload, &prepared.publications, mode, &place).await?;
    ground.source.checkpoint().await;
    ground.target.checkpoint().await;
    let client = ground.source.connect(&database).await?;
    let mut observers = contender.observe(Pace::Fast)?;
    let mut running = contender.follow(&mut observers).await?;
    probe::write(&client, 0).await?;
    if mode != Mode::Nobody {
        observers.wait_for(0, FIRST_TIME_MAX, child_of(&mut running)).await?;
    }
    let ran =
        Run { ground, prepared, mode, load, database: &database, client: &client, observers: &observers };
    let line = ran.measure(&mut running, results).await?;
    contender.stop(running).await?;
    drop((observers, client));
    contender.forget().await?;
    ground.source.drop_database(&database).await?;
    Ok(line)
}

fn child_of(running: &mut Running) -> Option<&mut super::child::Child> {
    match running {
        Running::Process(child) => Some(child),
        _ => None,
    }
}

struct Run<'a> {
    ground: &'a Ground,
    prepared: &'a Prepared,
    mode: Mode,
    load: Load,
    database: &'a str,
    client: &'a Client,
    observers: &'a Observers,
}

impl Run<'_> {
    async fn measure(&self, running: &mut Running, results: &mut Results) -> Result<String> {
        let Run { ground, prepared, mode, load, database, .. } = *self;
        let name = prepared.workload.name();
        let start = Instant::now() + Duration::from_millis(200);
        let address = ground.source.address.database(database);
        let writing = Writing::begin(&address, 0, start).await?;

        let steady = WARM_UP + Duration::from_secs(load.seconds);
        let mut pgbench = prepared.workload.pgbench(ground, database)?;
        pgbench.args(["-R", &format!("{:.3}", load.transactions_per_second)]);
        pgbench.args(["-T", &steady.as_secs().to_string()]);
        let (_, kept_steady) = self.while_watching(run_pgbench(pgbench)).await?;
        let steady_until = Instant::now();

        let mut pgbench = prepared.workload.pgbench(ground, database)?;
        pgbench.args(["-T", &load.burst_seconds().to_string()]);
        let burst_at = Instant::now();
        let (burst, kept_burst) = self.while_watching(run_pgbench(pgbench)).await?;
        let burst_until = Instant::now();

        let (probes, kept_after) = self.while_watching(self.catch_up(writing, burst_until, running)).await?;
        results.add(&name, mode, Figure::SourceRate, burst.per_second);
        if mode == Mode::Nobody {
            return Ok(format!(
                "{name}: {}: {:.0} transactions/s in the burst",
                mode.name(),
                burst.per_second
            ));
        }
        let mebibytes = |bytes: u64| as_f64(bytes) / f64::from(1 << 20);
        results.add(&name, mode, Figure::RetainedSteady, mebibytes(kept_steady));
        results.add(&name, mode, Figure::RetainedBurst, mebibytes(kept_burst.max(kept_after)));
        let timed = self.timed(&probes)?;
        let p99 = note_latencies(results, &name, mode, &timed, start + WARM_UP, steady_until)?;
        note_burst(results, &name, mode, &timed, burst_at, burst_until);
        Ok(format!(
            "{name}: {}: p99 {p99:.1} ms; {:.0} transactions/s in the burst",
            mode.name(),
            burst.per_second
        ))
    }

    /// Does the work, and watches meanwhile what the source keeps for the mode's slots.
    async fn while_watching<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, u64)> {
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(KEPT_TIME);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut kept_max = 0;
        loop {
            tokio::select! {
                done = &mut work => return Ok((done?, kept_max)),
                _ = ticks.tick() => {
                    kept_max = kept_max.max(Contender::retained_wal_bytes(self.client).await?);
                }
            }
        }
    }

    /// Until a probe that was due after the burst is visible; then the probes end, and all of them must be.
    async fn catch_up(&self, writing: Writing, after: Instant, running: &mut Running) -> Result<Vec<Probe>> {
        if self.mode == Mode::Nobody {
            return writing.end().await;
        }
        let limit =
            CATCH_UP_TIME_MIN.max(Duration::from_secs(self.load.burst_seconds()) * CATCH_UP_FACTOR_MAX);
        self.observers
            .wait_for(writing.first_due_after(after), limit, child_of(running))
            .await
            .map_err(|error| error.context("the mode has not caught up with the burst"))?;
        tokio::time::sleep(AFTERWARDS).await;
        let probes = writing.end().await?;
        for probe in &probes {
            self.observers.wait_for(probe.id, FIRST_TIME_MAX, child_of(running)).await?;
        }
        Ok(probes)
    }

    fn timed(&self, probes: &[Probe]) -> Result<Vec<Timed>> {
        let timed = probes.iter().map(|probe| {
            let visible_at = self.observers.visible_at(probe.id)?;
            let visible_at =
                visible_at.ok_or_else(|| Error::definite(format!("probe {} is missing", probe.id)))?;
            Ok(Timed { probe: *probe, visible_at })
        });
        timed.collect()
    }
}

/// A probe with the end of its way.
#[derive(Clone, Copy, Debug)]
struct Timed {
    probe: Probe,
    visible_at: Instant,
}

impl Timed {
    fn lag(&self) -> Duration {
        self.visible_at.saturating_duration_since(self.probe.began_at)
    }

    fn lag_of_commit(&self) -> Duration {
        self.visible_at.saturating_duration_since(self.probe.returned_at)
    }
}

/// Of the probes that were due in the steady load; returns the p99 in ms.
fn note_latencies(
    results: &mut Results,
    workload: &str,
    mode: Mode,
    timed: &[Timed],
    from: Instant,
    until: Instant,
) -> Result<f64> {
    let histogram = || Histogram::<u64>::new(3).expect("three digits are allowed");
    let (mut from_due, mut from_return) = (histogram(), histogram());
    let record = |histogram: &mut Histogram<u64>, time: Duration| {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        histogram.record(microseconds).expect("a histogram that grows takes all values");
    };
    for one in timed.iter().filter(|one| one.probe.began_at >= from && one.probe.began_at < until) {
        record(&mut from_due, one.lag());
        record(&mut from_return, one.lag_of_commit());
    }
    if from_due.is_empty() {
        return Err(Error::definite("no probe was due in the steady load"));
    }
    let at = |histogram: &Histogram<u64>, q| milliseconds(histogram.value_at_quantile(q));
    results.add(workload, mode, Figure::LatencyP50, at(&from_due, 0.5));
    results.add(workload, mode, Figure::LatencyP99, at(&from_due, 0.99));
    if from_due.len() >= COUNT_FOR_P999 {
        results.add(workload, mode, Figure::LatencyP999, at(&from_due, 0.999));
    }
    results.add(workload, mode, Figure::LatencyMax, milliseconds(from_due.max()));
    results.add(workload, mode, Figure::FromReturnP50, at(&from_return, 0.5));
    results.add(workload, mode, Figure::FromReturnP99, at(&from_return, 0.99));
    let p99 = at(&from_due, 0.99);
    results.add_latencies(workload, mode, from_due);
    Ok(p99)
}

fn note_burst(
    results: &mut Results,
    workload: &str,
    mode: Mode,
    timed: &[Timed],
    from: Instant,
    until: Instant,
) {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let within = timed.iter().filter(|one| one.probe.began_at >= from);
    if let Some(peak) = within.map(Timed::lag).max() {
        results.add(workload, mode, Figure::LagPeak, ms(peak));
    }
    let after = timed.iter().filter(|one| one.probe.began_at >= until).min_by_key(|one| one.probe.began_at);
    if let Some(after) = after {
        let caught_up = after.visible_at.saturating_duration_since(until);
        results.add(workload, mode, Figure::CatchUp, caught_up.as_secs_f64());
    }
    let mut points: Vec<(f64, f64)> = Vec::new();
    for one in timed.iter().filter(|one| one.probe.began_at + BEFORE >= from) {
        let at = match one.probe.began_at.checked_duration_since(from) {
            Some(since) => since.as_secs_f64(),
            None => -from.saturating_duration_since(one.probe.began_at).as_secs_f64(),
        };
        let bucket = (at / BUCKET_SECONDS).floor() * BUCKET_SECONDS;
        match points.last_mut() {
            Some((known, lag)) if (*known - bucket).abs() < BUCKET_SECONDS / 2.0 => {
                *lag = lag.max(ms(one.lag()))
            }
            _ => points.push((bucket, ms(one.lag()))),
        }
    }
    let burst_seconds = until.saturating_duration_since(from).as_secs_f64();
    results.lag_curves.push(LagCurve {
        workload: workload.to_owned(),
        mode: mode.name(),
        points,
        burst_seconds,
    });
}
