//! Draining a backlog: one round, in which every mode reads the same WAL, one after the other.
//!
//! In: a workload with its templates, the modes. Out: throughput, processor time, memory, what is stored; or, in the
//! round through the relays, only bytes. Always: each mode's slot is made before the backlog is written; who begins
//! changes from round to round; afterwards what arrived is compared with the source, outside of the time measured, and a
//! difference is a failure of that mode.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::contender::{Contender, Place, Relays, Running};
use super::figure::Figure;
use super::ground::Ground;
use super::mode::Mode;
use super::observer::Pace;
use super::process::{self, Kind, Sampler, Taken, Usage, Watched};
use super::publications::Publications;
use super::relay::Relay;
use super::results::{Results, as_f64};
use super::workload::Workload;
use super::{arrived, probe};
use crate::error::{Error, Result};
use crate::wal::client::{Client, classify};

const CREATE_SLOT: &str = "SELECT pg_catalog.pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
/// Changes (I, U, D) and transactions (B) that a slot would send.
const COUNT: &str = "
SELECT count(*) FILTER (WHERE get_byte(data, 0) IN (73, 85, 68)), count(*) FILTER (WHERE get_byte(data, 0) = 66)
FROM pg_catalog.pg_logical_slot_get_binary_changes($1::text::name, NULL, NULL, 'proto_version', '1', 'publication_names', $2::text)";
const DROP_SLOT: &str = "SELECT pg_catalog.pg_drop_replication_slot($1::text::name)";
/// A commit whose WAL is on the disk when it returns; its LSN is before the end of the WAL.
const END: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'walgate_bench', 'end')::text";
const WAL_BYTES: &str = "SELECT pg_catalog.pg_wal_lsn_diff($1::text::pg_lsn, $2::text::pg_lsn)::bigint";
/// A mode that takes longer is given up: a debug build on a busy machine is far below it.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(900);
/// Between two looks whether a process has ended.
const END_LOOK_TIME: Duration = Duration::from_millis(2);
/// Between two runs, for what a server or a broker does behind them.
const PAUSE: Duration = Duration::from_millis(500);
/// The probe that ends a backlog.
const LAST: i64 = 0;

/// A workload with its tables made, ready to be copied.
pub struct Prepared {
    /// The workload.
    pub workload: Workload,
    /// A database of the source with its tables and first rows.
    pub source_template: String,
    /// The same on the target.
    pub target_template: String,
    /// What is published of it.
    pub publications: Publications,
}

/// What a backlog is.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// On the source, without the probe.
    pub changes: u64,
    /// Of them, what passes the filter.
    pub passing: u64,
    /// With the probe's.
    pub transactions: u64,
    /// Written meanwhile.
    pub wal_bytes: u64,
}

/// Which round it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Through the relays: bytes.
    Bytes,
    /// Measured, the n-th.
    Measured(usize),
}

/// Runs a round. `said` hears of every mode that is through.
///
/// # Errors
/// What makes the workload impossible; what fails of one mode is noted among the results.
pub async fn round(
    ground: &Ground,
    prepared: &Prepared,
    modes: &[Mode],
    round: Round,
    rows: u64,
    results: &mut Results,
    mut said: impl FnMut(String),
) -> Result<Backlog> {
    let Prepared { workload, publications, .. } = prepared;
    let (name, database) = (workload.name(), ground.name("drain"));
    ground.source.create_database(&database, &prepared.source_template).await?;
    let relays = match round {
        Round::Measured(_) => None,
        Round::Bytes => Some(Relays {
            source: Relay::start(&ground.source.address).await?,
            target: Relay::start(&ground.target.address).await?,
        }),
    };
    let place = Place {
        source_database: &database,
        target_template: &prepared.target_template,
        relays: relays.as_ref(),
    };
    let mut contenders = Vec::new();
    for mode in modes {
        match Contender::prepare(ground, workload, publications, *mode, &place).await {
            Ok(contender) => contenders.push(contender),
            Err(error) => {
                results.fail(&name, mode.name(), error.chain().to_string());
                said(format!("{name}: {} failed: {}", mode.name(), error.chain()));
            }
        }
    }
    let client = ground.source.connect(&database).await?;
    let (backlog, end_lsn) = write_backlog(ground, prepared, &client, &database, rows).await?;
    let expected = arrived::contents(&client, publications).await?;
    ground.source.checkpoint().await;
    if let (Round::Measured(nth), false) = (round, contenders.is_empty()) {
        let turn = nth % contenders.len();
        contenders.rotate_left(turn);
    }
    for contender in contenders {
        ground.target.checkpoint().await;
        tokio::time::sleep(PAUSE).await;
        let mode = contender.mode;
        let drained = drain(ground, &contender, &end_lsn, relays.as_ref()).await;
        let checked = match drained {
            Ok(drained) => {
                check(ground, prepared, &contender, &backlog, &expected).await.map(|stored| (drained, stored))
            }
            Err(error) => Err(error),
        };
        match checked {
            Ok((drained, stored)) => {
                let per_second = as_f64(backlog.changes) / drained.seconds;
                said(match round {
                    Round::Bytes => format!("{name}: {}, bytes counted", mode.name()),
                    Round::Measured(_) => {
                        format!(
                            "{name}: {}: {:.2} s, {per_second:.0} changes/s",
                            mode.name(),
                            drained.seconds
                        )
                    }
                });
                note(results, &name, mode, round, &backlog, &drained, stored);
            }
            Err(error) => {
                results.fail(&name, mode.name(), error.chain().to_string());
                said(format!("{name}: {} failed: {}", mode.name(), error.chain()));
            }
        }
        if let Err(error) = contender.forget().await {
            results.fail(&name, mode.name(), format!("what it made stays until the end: {}", error.chain()));
        }
    }
    drop(client);
    ground.source.drop_database(&database).await?;
    Ok(backlog)
}

/// Writes it, counts it, and returns an LSN that is behind all of it and before the end of the WAL.
async fn write_backlog(
    ground: &Ground,
    prepared: &Prepared,
    client: &Client,
    database: &str,
    rows: u64,
) -> Result<(Backlog, String)> {
    let Prepared { workload, publications, .. } = prepared;
    let (all, passing) = (ground.name("count"), ground.name("count"));
    for slot in [&all, &passing] {
        client.query(CREATE_SLOT, &[slot]).await.map_err(classify)?;
    }
    let begins_at = ground.source.wal_lsn().await?;
    workload.write_backlog(ground, database, rows).await?;
    // Its commits did not wait for the disk, and only what is there is decoded: this one waits, for all of them.
    client.query(END, &[]).await.map_err(classify)?;
    let ends_at = ground.source.wal_lsn().await?;
    let wal_bytes: i64 = client.query_one(WAL_BYTES, &[&ends_at, &begins_at]).await.map_err(classify)?.get(0);
    let mut counted = Vec::new();
    for (slot, names) in [(&all, &publications.all), (&passing, &publications.passing)] {
        counted.push(match names.is_empty() {
            true => (0, 0),
            false => {
                let row = client.query_one(COUNT, &[slot, &names.join(",")]).await.map_err(classify)?;
                (row.get::<_, i64>(0), row.get::<_, i64>(1))
            }
        });
        client.query(DROP_SLOT, &[slot]).await.map_err(classify)?;
    }
    let count = |value: i64| u64::try_from(value).unwrap_or_default();
    let [(changes, transactions), (passing, _)] = counted.as_slice() else {
        return Err(Error::definite("the backlog was not counted"));
    };
    let backlog = Backlog {
        changes: count(*changes),
        passing: count(*passing),
        transactions: count(*transactions),
        wal_bytes: count(wal_bytes),
    };
    if backlog.changes == 0 {
        return Err(Error::definite("the workload changes nothing")
            .with_hint("its transactions must insert, update or delete rows of ordinary tables"));
    }
    probe::write(client, LAST).await?;
    let end_lsn = client.query_one(END, &[]).await.map_err(classify)?.get(0);
    Ok((backlog, end_lsn))
}

/// What a drain took.
struct Drained {
    seconds: f64,
    usage: Usage,
    has_kafka: bool,
    wire_source_bytes: Option<u64>,
    wire_target_bytes: Option<u64>,
}

async fn drain(
    ground: &Ground,
    contender: &Contender<'_>,
    end_lsn: &str,
    relays: Option<&Relays>,
) -> Result<Drained> {
    let observers = contender.observe(Pace::Slow)?;
    let passed = || relays.map(|relays| (relays.source.bytes(), relays.target.bytes()));
    let before = passed();
    let has_kafka = contender.kafka()?.is_some();
    let sampler = Sampler::start(Watched {
        source: ground.source.postmaster,
        target: ground.target.postmaster,
        broker: ground.broker.filter(|_| has_kafka),
        reader: contender.reader(),
    });
    let began = Instant::now();
    let (ended_at, running) = if contender.mode == Mode::Recvlogical {
        let child = contender.receive_until(end_lsn)?;
        // It is waited for when it has been looked at: until then /proc still has its times.
        while !process::is_over(child.pid()) {
            if began.elapsed() > DRAIN_TIME_MAX {
                return Err(Error::definite(format!("not at the end after {} s", DRAIN_TIME_MAX.as_secs())));
            }
            tokio::time::sleep(END_LOOK_TIME).await;
        }
        (Instant::now(), Running::Process(Box::new(child)))
    } else {
        let mut running = contender.start().await?;
        let child = match &mut running {
            Running::Process(child) => Some(&mut **child),
            _ => None,
        };
        (observers.wait_for(LAST, DRAIN_TIME_MAX, child).await?, running)
    };
    let usage = sampler.finish();
    let after = passed();
    match (running, contender.mode) {
        (Running::Process(child), Mode::Recvlogical) => child.finish(DRAIN_TIME_MAX).await?,
        (running, _) => contender.stop(running).await?,
    }
    let bytes = before.zip(after).map(|(before, after)| (after.0 - before.0, after.1 - before.1));
    Ok(Drained {
        seconds: ended_at.saturating_duration_since(began).as_secs_f64(),
        usage,
        has_kafka,
        wire_source_bytes: bytes.map(|bytes| bytes.0),
        wire_target_bytes: bytes.map(|bytes| bytes.1),
    })
}

/// Compares what arrived; returns what the destination keeps, where it keeps something.
async fn check(
    ground: &Ground,
    prepared: &Prepared,
    contender: &Contender<'_>,
    backlog: &Backlog,
    expected: &[String],
) -> Result<Option<u64>> {
    let mut stored = None;
    if contender.mode.has_replica() {
        let client = ground.target.connect(contender.target_database()).await?;
        let found = arrived::contents(&client, &prepared.publications).await?;
        if let Some((table, _)) =
            prepared.publications.tables.iter().zip(expected.iter().zip(&found)).find(|(_, (a, b))| a != b)
        {
            return Err(Error::definite(format!(
                "the replica's rows of {} are not the source's",
                table.quoted()
            )));
        }
        let grown = ground.target.database_bytes(contender.target_database()).await?;
        let before = ground.target.database_bytes(&prepared.target_template).await?;
        stored = Some(grown.saturating_sub(before));
    }
    if contender.mode.has_hub() {
        // Of a filter that Walgate itself evaluates the server's publications may know nothing.
        let is_known = !prepared.workload.is_users() && !prepared.publications.passing.is_empty();
        let changes = if prepared.workload.filter().is_some() { backlog.passing } else { backlog.changes };
        let events = match contender.kafka()? {
            Some(hub) => {
                arrived::in_kafka(hub, contender.topics_prefix(), is_known.then_some(changes + 1)).await?
            }
            None => arrived::in_files(contender.folder())?,
        };
        if is_known && events.count != changes + 1 {
            return Err(Error::definite(format!(
                "the hub holds {} events, {} were expected",
                events.count,
                changes + 1
            )));
        }
        *stored.get_or_insert_default() += events.bytes;
    }
    Ok(stored)
}

fn note(
    results: &mut Results,
    workload: &str,
    mode: Mode,
    round: Round,
    backlog: &Backlog,
    drained: &Drained,
    stored: Option<u64>,
) {
    let changes = as_f64(backlog.changes);
    let mut add = |figure, value: Option<f64>| {
        if let Some(value) = value {
            results.add(workload, mode, figure, value);
        }
    };
    if round == Round::Bytes {
        add(Figure::WireSource, drained.wire_source_bytes.map(|bytes| as_f64(bytes) / changes));
        let has_target_leg = mode.is_walgate() && mode.has_replica();
        let target = drained.wire_target_bytes.filter(|_| has_target_leg);
        add(Figure::WireTarget, target.map(|bytes| as_f64(bytes) / changes));
        return;
    }
    add(Figure::DrainSeconds, Some(drained.seconds));
    add(Figure::Throughput, Some(changes / drained.seconds));
    add(Figure::Stored, stored.map(|bytes| as_f64(bytes) / changes));
    let usage = &drained.usage;
    let cpu = |taken: Option<&Taken>| taken.map(|taken| taken.cpu_seconds * 1e6 / changes);
    // A process may have come and gone between two looks: then its memory is not known.
    let memory = |taken: Option<&Taken>| {
        let bytes = taken.map(|taken| taken.memory_bytes).filter(|bytes| *bytes > 0)?;
        Some(as_f64(bytes) / f64::from(1 << 20))
    };
    let of = |kinds: &BTreeMap<Kind, Taken>, kind| kinds.get(&kind).copied();
    let target = usage.target.as_ref().filter(|_| mode.has_replica());
    add(Figure::CpuSource, cpu(usage.source.as_ref()));
    add(Figure::CpuSourceWalsenders, cpu(of(&usage.source_kinds, Kind::Walsender).as_ref()));
    add(Figure::CpuSourceBackends, cpu(of(&usage.source_kinds, Kind::Backend).as_ref()));
    add(Figure::CpuReader, cpu(usage.reader.as_ref()));
    add(Figure::CpuBroker, cpu(usage.broker.as_ref()));
    add(Figure::CpuTarget, cpu(target));
    if target.is_some() {
        add(Figure::CpuTargetWorkers, cpu(of(&usage.target_kinds, Kind::Worker).as_ref()));
        add(Figure::CpuTargetBackends, cpu(of(&usage.target_kinds, Kind::Backend).as_ref()));
    }
    // A sum with a part missing would compare nothing.
    let is_whole = usage.source.is_some() && (usage.target.is_some() || !mode.has_replica());
    if is_whole && (usage.broker.is_some() || !drained.has_kafka) {
        let parts = [usage.source.as_ref(), usage.reader.as_ref(), usage.broker.as_ref(), target];
        add(Figure::CpuAll, Some(parts.into_iter().filter_map(cpu).sum()));
    }
    add(Figure::MemoryReader, memory(usage.reader.as_ref()));
    add(Figure::MemorySource, memory(usage.source.as_ref()));
    add(Figure::MemoryTarget, memory(target));
    add(Figure::MemoryBroker, memory(usage.broker.as_ref()));
}

/// Dumps a database of the source into an empty one of the target, with its rows.
///
/// # Errors
/// What `pg_dump` or `psql` said.
pub async fn copy_template(ground: &Ground, from: &str, to: &str) -> Result<()> {
    let path: &Path = &ground.scratch.path().join("template.sql");
    let mut dump = ground.on_source("pg_dump", from);
    dump.args(["--no-publications", "--no-subscriptions", "--no-owner", "--no-privileges", "-f"]).arg(path);
    crate::command::throwaway::output_of("pg_dump", dump).await?;
    let mut load = ground.target.command(&ground.programs, "psql", to);
    load.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(path);
    crate::command::throwaway::output_of("psql", load).await?;
    let _ = std::fs::remove_file(path);
    Ok(())
}
