//! From commit to consumer under a steady load of small transactions, the two deliveries in turn.
//!
//! Transactions are begun by a fixed schedule, dealt out over several connections, whether or not earlier ones
//! have come through: a stall shows in the latency of all that it delays (no coordinated omission). Each inserts
//! one row and waits for its commit to be on disk. One clock, since all is on one machine. Latency is from
//! `clock_timestamp()` in the INSERT, so the commit's own wait for the disk is in it, to the return of the
//! consumer's poll; the same from the commit's return at the writer, and from the schedule, stand beside it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use serde::Deserialize;

use crate::contender::{Contender, Kind};
use crate::process::Process;
use crate::report::{Report, Unit};
use crate::servers::{Database, Session, client, kafka_brokers};
use crate::{Result, Settings, hub, say, table};

const CONNECTIONS: u64 = 12;
/// Not counted: connections, caches and the broker get warm.
pub const WARM_UP_SECONDS: u64 = 3;
/// How long the first event, and what is missing at the end, may take.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(60);
/// Numbers of a run's rows begin at a multiple of it.
pub const RUN_ROWS_MAX: u64 = 1_000_000_000;

/// A transaction as its writer saw it, microseconds since 1970.
#[derive(Clone, Copy)]
pub struct Written {
    id: u64,
    scheduled_us: u64,
    returned_us: u64,
}

/// An event as the consumer saw it, microseconds since 1970.
#[derive(Clone, Copy)]
pub struct Received {
    pub id: u64,
    pub written_us: u64,
    pub received_us: u64,
}

#[derive(Deserialize)]
struct Envelope {
    data: Row,
}

#[derive(Deserialize)]
struct Row {
    id: u64,
    written_us: u64,
}

/// See the module.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let database = Database::new("latency")?;
    let name = table::NAME;
    create_table(database.session())?;
    database.session().run(&format!("CREATE PUBLICATION {name} FOR TABLE {name}"))?;
    let mut base = 0;
    for nth in 1..=settings.runs {
        for turn in 0..Kind::DELIVERIES.len() {
            let kind = Kind::DELIVERIES[(turn + usize::try_from(nth)?) % Kind::DELIVERIES.len()];
            base += RUN_ROWS_MAX;
            let contender = Contender::new(&database, "latency", kind, nth)?;
            contender.prepare(&database)?;
            one_run(settings, &database, &contender, base, report)?;
            contender.forget()?;
        }
    }
    Ok(())
}

/// The table, whose rows say when they were written.
pub fn create_table(session: &Session) -> Result<()> {
    session.run(&format!(
        "CREATE TABLE {} (id bigint PRIMARY KEY, payload text NOT NULL DEFAULT repeat('walgate ', 16), \
        written_us bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)",
        table::NAME
    ))
}

fn one_run(
    settings: &Settings,
    database: &Database,
    contender: &Contender,
    base: u64,
    report: &mut Report,
) -> Result<()> {
    let mut process = contender.follow()?;
    let consumer = hub::follow(&kafka_brokers()?, &contender.topic())?;
    wait_for_stream(database, &mut process, &consumer, base)?;

    let warm_up = settings.rate * WARM_UP_SECONDS;
    let count = warm_up + settings.rate * settings.seconds;
    let (written, received) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| receive(&consumer, base, count));
        let written = write(database, settings.rate, base, count);
        let received = reader.join().expect("the reader does not panic");
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((written?, received?))
    })?;
    let taken = process.stop()?;

    let figures = Figures::of(&written, &received, base, warm_up)?;
    let kind = contender.kind;
    say(format_args!(
        "latency: {kind}: p50 {:.2} ms, p99 {:.2} ms at {:.0} transactions/s",
        quantile(&figures.from_insert, 0.5),
        quantile(&figures.from_insert, 0.99),
        figures.rate
    ));
    for (what, histogram, quantiles) in [
        ("latency", &figures.from_insert, &[(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max")][..]),
        ("latency from the commit's return", &figures.from_return, &[(0.5, "p50"), (0.99, "p99")]),
        ("latency from the schedule", &figures.from_schedule, &[(0.5, "p50"), (0.99, "p99")]),
    ] {
        for (q, q_name) in quantiles {
            report.add(format!("{what} {q_name}, {kind}"), Unit::Milliseconds, quantile(histogram, *q));
        }
    }
    report.add(format!("latency: transactions a second, {kind}"), Unit::PerSecond, figures.rate);
    report.add(format!("latency: CPU of the run, {kind}"), Unit::Seconds, taken.cpu_seconds);
    report.add_memory(format!("latency: peak memory, {kind}"), taken.memory_peak_bytes);
    Ok(())
}

/// Writes row `base` and waits for its event.
fn wait_for_stream(
    database: &Database,
    process: &mut Process,
    consumer: &BaseConsumer,
    base: u64,
) -> Result<()> {
    database.session().run(&format!("INSERT INTO {} (id) VALUES ({base})", table::NAME))?;
    let started_at = Instant::now();
    loop {
        process.expect_alive()?;
        match consumer.poll(Duration::from_millis(20)) {
            Some(Ok(_)) => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            None if started_at.elapsed() > ARRIVAL_TIME_MAX => return Err("no event has come".into()),
            None => {}
        }
    }
}

/// The events of rows after `base`, at least `count` of them.
fn receive(consumer: &BaseConsumer, base: u64, count: u64) -> Result<Vec<Received>> {
    let mut received = Vec::with_capacity(usize::try_from(count)?);
    let mut heard_at = Instant::now();
    while received.len() < usize::try_from(count)? {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let received_us = now_us();
                let value = message.payload().ok_or("an event without a value came")?;
                let Row { id, written_us } = serde_json::from_slice::<Envelope>(value)?.data;
                if id > base {
                    received.push(Received { id, written_us, received_us });
                }
                heard_at = Instant::now();
            }
            Some(Err(error)) => return Err(error.into()),
            None if heard_at.elapsed() > ARRIVAL_TIME_MAX => {
                return Err(format!("{} of {count} events have come", received.len()).into());
            }
            None => {}
        }
    }
    Ok(received)
}

/// Inserts `count` rows after `base`, `rate` a second.
pub fn write(database: &Database, rate: u64, base: u64, count: u64) -> Result<Vec<Written>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Time for all of them to connect.
        let (start, start_us) =
            (tokio::time::Instant::now() + Duration::from_millis(500), now_us() + 500_000);
        let writers: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let url = database.url();
                tokio::spawn(async move {
                    let client = client(&url).await?;
                    let insert = client
                        .prepare(concat!("INSERT INTO ", table::name!(), " (id) VALUES ($1::bigint)"))
                        .await?;
                    let mut written = Vec::new();
                    for nth in (connection..count).step_by(usize::try_from(CONNECTIONS)?) {
                        let due = Duration::from_micros(nth * 1_000_000 / rate);
                        tokio::time::sleep_until(start + due).await;
                        let id = base + 1 + nth;
                        client.execute(&insert, &[&i64::try_from(id)?]).await?;
                        let scheduled_us = start_us + u64::try_from(due.as_micros())?;
                        written.push(Written { id, scheduled_us, returned_us: now_us() });
                    }
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(written)
                })
            })
            .collect();
        let mut all = Vec::new();
        for writer in writers {
            all.extend(writer.await??);
        }
        Ok(all)
    })
}

/// Histograms in microseconds.
pub struct Figures {
    pub from_insert: Histogram<u64>,
    pub from_return: Histogram<u64>,
    pub from_schedule: Histogram<u64>,
    /// Transactions that returned, a second.
    pub rate: f64,
}

impl Figures {
    /// Without the first `warm_up` rows; an error unless every row's event came exactly once.
    pub fn of(written: &[Written], received: &[Received], base: u64, warm_up: u64) -> Result<Figures> {
        let (mut written, mut received) = (written.to_vec(), received.to_vec());
        written.sort_by_key(|row| row.id);
        received.sort_by_key(|row| row.id);
        if !written.iter().map(|row| row.id).eq(received.iter().map(|row| row.id)) {
            return Err("some are missing, or came twice".into());
        }
        let histogram = || Histogram::<u64>::new(3);
        let mut figures = Figures {
            from_insert: histogram()?,
            from_return: histogram()?,
            from_schedule: histogram()?,
            rate: 0.0,
        };
        let pairs = || written.iter().zip(&received).filter(|(written, _)| written.id > base + warm_up);
        for (written, received) in pairs() {
            figures.from_insert.record(received.received_us.saturating_sub(received.written_us))?;
            figures.from_return.record(received.received_us.saturating_sub(written.returned_us))?;
            figures.from_schedule.record(received.received_us.saturating_sub(written.scheduled_us))?;
        }
        let returned = || pairs().map(|(written, _)| written.returned_us);
        if let (Some(first), Some(last)) = (returned().min(), returned().max()) {
            let seconds = Duration::from_micros(last - first).as_secs_f64();
            figures.rate = crate::backlog::per_second(figures.from_insert.len(), seconds);
        }
        Ok(figures)
    }
}

/// In milliseconds.
pub fn quantile(histogram: &Histogram<u64>, q: f64) -> f64 {
    Duration::from_micros(histogram.value_at_quantile(q)).as_secs_f64() * 1e3
}

pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
