//! One pipeline: one slot, its publications, one destination.
//!
//! [`Pipeline::run`] is one attempt, from taking the lock to the end of the stream. It never retries
//! by itself and keeps no state between attempts: whatever went wrong, the next attempt starts from
//! what the destination has stored, which is what a crash would do (EXACTLY_ONCE.md).

pub mod cadence;
mod cleanup;
pub mod filters;
pub mod guard;
mod inflow;
pub mod leaves;
pub mod oversized;
pub mod parking;
pub mod pump;
pub mod pushdown;
pub mod ranges;
pub mod shape;
pub mod start;
pub mod status;
pub mod tables;
pub mod sequences;
pub mod indexes;
pub mod stream;
#[cfg(test)]
mod simulation;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::watch;

use crate::claim::stage::ClaimSettings;
use crate::config::{Config, Destination, HubKind, Mode, Replica};
use crate::error::{Error, Result};
use crate::route::claim::Claims;
use crate::route::format::EventSettings;
use crate::route::value::Style;
use crate::sink::destination::Address;
use crate::sink::replica::ReplicaSettings;
use crate::wal::publication::Publications;
use crate::wal::url::ConnectUrl;
use parking::Parking;
use status::{ParkedTable, PipelineStatus, SharedStatus, State};

/// What the engine wants of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Run,
    /// Finish what is in flight, then end.
    Drain,
}

/// Why an attempt ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Drained,
    /// `--until-caught-up`: everything committed before the attempt is durable.
    CaughtUp,
    /// A table came or went that the rules speak of: start again, with its copy first.
    TablesChanged,
    /// The next range of a table is to be copied: start again with it.
    RangeDue,
}

/// What a pipeline is made of, for all its attempts.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The whole configuration.
    pub config: Arc<Config>,
    /// Where the source is.
    pub url: ConnectUrl,
    /// `source.name`, the database's name if it is not set.
    pub source_name: String,
    /// The form of events.
    pub events: EventSettings,
    /// The slot's name, and the pipeline's.
    pub slot: String,
    /// Its publications.
    pub publications: Publications,
    /// The replica that gets the rows; `None`: events go to the hub.
    pub replica: Option<Replica>,
    /// End when caught up.
    pub until_caught_up: bool,
    /// Shared with whoever asks.
    pub status: SharedStatus,
    /// A backlog broke off while it was read by SQL: the next attempt reads by the stream, so that it gets on.
    pub avoids_sql: Arc<AtomicBool>,
    /// Held by the sink's thread: one at a time.
    pub sink_gate: Arc<tokio::sync::Mutex<()>>,
}

impl Pipeline {
    /// The hub's pipeline of `config`.
    ///
    /// # Errors
    /// Definite: the source's URL cannot be used.
    pub fn of_hub(config: Arc<Config>, until_caught_up: bool) -> Result<Pipeline> {
        Pipeline::of(config, None, until_caught_up)
    }

    /// Every pipeline of `config`: one for the hub and one for each replica that a rule sends something to.
    ///
    /// # Errors
    /// Definite: a URL cannot be used.
    pub fn all(config: &Arc<Config>, until_caught_up: bool) -> Result<Vec<Pipeline>> {
        let replicas = config.replicas.iter().cloned().map(Some);
        let pipelines = std::iter::once(None).chain(replicas);
        let pipelines = pipelines.map(|replica| Pipeline::of(config.clone(), replica, until_caught_up));
        pipelines.filter(|pipeline| pipeline.as_ref().map_or(true, Pipeline::has_rules)).collect()
    }

    fn of(config: Arc<Config>, replica: Option<Replica>, until_caught_up: bool) -> Result<Pipeline> {
        let url = ConnectUrl::from_env(config.source.url.expose())
            .map_err(|error| Error::definite(format!("source.url: {error}")).with_hint(error.hint()))?;
        let (slot, sink) = match (&replica, &config.hub.kind) {
            (Some(replica), _) => (format!("{}_r_{}", config.source.slot, replica.name), "replica"),
            (None, HubKind::Kafka(_)) => (format!("{}_hub", config.source.slot), "kafka"),
            (None, HubKind::File(_)) => (format!("{}_hub", config.source.slot), "file"),
        };
        let source_name = config.source.name.clone().unwrap_or_else(|| url.database.clone());
        let status = PipelineStatus {
            pipeline: slot.clone(),
            source: source_name.clone(),
            source_address: format!("{}/{}", url.address(), url.database),
            sink: sink.into(),
            ..PipelineStatus::default()
        };
        let events = EventSettings {
            format: config.hub.format,
            tombstones: config.hub.tombstones,
            style: Style { bigint_as_string: config.source.bigint_as_string },
            database: url.database.clone(),
            claims: config.claim_check.clone().filter(|_| replica.is_none()).map(|claim_check| {
                Claims::new(claim_check, ClaimSettings::bytes_max_of(config.limits.memory_bytes_max))
            }),
        };
        Ok(Pipeline {
            source_name,
            events,
            publications: Publications::new(&config.source.publication, &slot),
            status: SharedStatus::new(status),
            avoids_sql: Arc::default(),
            sink_gate: Arc::default(),
            slot,
            url,
            replica,
            config,
            until_caught_up,
        })
    }

    /// `hub`, or the replica's name.
    pub fn short_name(&self) -> &str {
        self.replica.as_ref().map_or("hub", |replica| &replica.name)
    }

    /// Whether a command's `--pipeline` means it.
    pub fn is_named(&self, name: &str) -> bool {
        name == self.slot || name == self.short_name()
    }

    /// Where its changes go.
    pub fn destination(&self) -> Destination<'_> {
        match &self.replica {
            Some(replica) => Destination::Replica(&replica.name),
            None => Destination::Hub,
        }
    }

    /// Where its changes go, and what it takes to get there.
    ///
    /// # Errors
    /// Definite: the replica's URL cannot be used.
    pub fn address(&self) -> Result<Address> {
        let Some(replica) = &self.replica else { return Ok(Address::Hub(self.config.hub.clone())) };
        let url = replica_url(replica)?;
        Ok(Address::Replica(Box::new(ReplicaSettings {
            name: replica.name.clone(),
            url,
            source_url: self.url.clone(),
            application_name: self.application_name(),
            pipeline: self.name(),
            on_conflict: replica.on_conflict,
        })))
    }

    /// The largest row that may be held, in bytes as PostgreSQL sends it. A replica takes every row.
    pub fn row_bytes_max(&self) -> usize {
        match self.replica {
            None => oversized::row_bytes_max(self.config.limits.memory_bytes_max),
            Some(_) => usize::MAX,
        }
    }

    /// What stores large events before they are published.
    pub fn claim_settings(&self) -> Option<ClaimSettings> {
        let claim_check = self.config.claim_check.clone().filter(|_| self.replica.is_none())?;
        Some(ClaimSettings {
            claim_check,
            bytes_max: ClaimSettings::bytes_max_of(self.config.limits.memory_bytes_max),
            pipeline: self.slot.clone(),
            status: self.status.clone(),
        })
    }

    /// Whether a rule sends anything to its destination.
    fn has_rules(&self) -> bool {
        let mut rules = self.config.tables.iter();
        rules.any(|rule| rule.mode != Mode::Off && rule.speaks_of(self.destination()))
    }

    /// `<source.name>.<slot name>`: the checkpoint's key and the transactional id.
    pub fn name(&self) -> String {
        format!("{}.{}", self.source_name, self.slot)
    }

    /// The application name of its connections.
    pub fn application_name(&self) -> String {
        format!("walgate/{}.{}", self.source_name, self.slot)
    }

    /// One attempt, which parks the tables of `parking`, and empties it once that is stored.
    ///
    /// # Errors
    /// Any: the engine decides by class whether to try again.
    pub async fn run(&self, wish: &mut watch::Receiver<Wish>, parking: &mut Vec<Parking>) -> Result<Ended> {
        self.status.enter(State::Starting);
        let Some(lock) = start::take_lock(self, wish).await? else { return Ok(Ended::Drained) };
        let mut asked = wish.clone();
        let started = tokio::select! {
            biased;
            error = lock.lost() => return Err(error),
            () = drain_wished(&mut asked) => return Ok(Ended::Drained),
            started = start::start(self, parking) => started?,
        };
        let copied = tokio::select! {
            biased;
            error = lock.lost() => return Err(error),
            () = drain_wished(&mut asked) => return Ok(Ended::Drained),
            copied = crate::snapshot::run(self, started) => copied?,
        };
        if self.replica.is_some() {
            tokio::select! {
                biased;
                error = lock.lost() => return Err(error),
                () = drain_wished(&mut asked) => return Ok(Ended::Drained),
                () = sequences::sync_at_start(self) => {}
            }
        }
        let ended = stream::run(self, copied, &lock, wish).await?;
        match self.status.read().parked_tables.as_slice() {
            parked @ [_, ..] if ended == Ended::CaughtUp => Err(caught_up_without(parked)),
            _ => Ok(ended),
        }
    }
}

/// Not everything was delivered: nothing is left out silently.
fn caught_up_without(parked: &[ParkedTable]) -> Error {
    let names: Vec<&str> = parked.iter().map(|parked| parked.table.as_str()).collect();
    Error::definite(format!("caught up, but without tables that are parked: {}", names.join(", ")))
        .with_hint("`walgate status` says why; mended, they come back by themselves, or by `walgate resync`")
}

/// Where a replica is.
///
/// # Errors
/// Definite: its URL cannot be used.
pub fn replica_url(replica: &Replica) -> Result<ConnectUrl> {
    ConnectUrl::from_env(replica.url.expose()).map_err(|error| {
        Error::definite(format!("{}.url: {error}", replica.key_path)).with_hint(error.hint())
    })
}

/// Resolves when the engine wishes the end.
pub async fn drain_wished(wish: &mut watch::Receiver<Wish>) {
    // A sender that has gone cannot wish anything: the process is ending.
    let _ = wish.wait_for(|wish| *wish == Wish::Drain).await;
}
