//! One pipeline: one slot, its publications, one destination.
//!
//! [`Pipeline::run`] is one attempt, from taking the lock to the end of the stream. It never retries
//! by itself and keeps no state between attempts: whatever went wrong, the next attempt starts from
//! what the destination has stored, which is what a crash would do (EXACTLY_ONCE.md).

pub mod cadence;
pub mod guard;
mod inflow;
pub mod pump;
pub mod start;
pub mod status;
pub mod tables;
pub mod stream;
#[cfg(test)]
mod simulation;

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::wal::publication::Publications;
use crate::wal::url::ConnectUrl;
use status::{PipelineStatus, SharedStatus, State};

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
    /// The slot's name, and the pipeline's.
    pub slot: String,
    /// Its publications.
    pub publications: Publications,
    /// End when caught up.
    pub until_caught_up: bool,
    /// Shared with whoever asks.
    pub status: SharedStatus,
    /// Held by the sink's thread: one at a time.
    pub sink_gate: Arc<tokio::sync::Mutex<()>>,
}

impl Pipeline {
    /// The hub's pipeline of `config`.
    ///
    /// # Errors
    /// Definite: the source's URL cannot be used.
    pub fn of_hub(config: Arc<Config>, until_caught_up: bool) -> Result<Pipeline> {
        let url = ConnectUrl::from_env(config.source.url.expose())
            .map_err(|error| Error::definite(format!("source.url: {error}")).with_hint(error.hint()))?;
        let slot = format!("{}_hub", config.source.slot);
        let sink = match config.hub.kind {
            crate::config::HubKind::Kafka(_) => "kafka",
            crate::config::HubKind::File(_) => "file",
        };
        let source_name = config.source.name.clone().unwrap_or_else(|| url.database.clone());
        let status = PipelineStatus {
            pipeline: slot.clone(),
            source: source_name.clone(),
            source_address: format!("{}/{}", url.address(), url.database),
            sink: sink.into(),
            ..PipelineStatus::default()
        };
        Ok(Pipeline {
            source_name,
            publications: Publications::new(&config.source.publication, &slot),
            status: SharedStatus::new(status),
            sink_gate: Arc::default(),
            slot,
            url,
            config,
            until_caught_up,
        })
    }

    /// `<source.name>.<slot name>`: the checkpoint's key and the transactional id.
    pub fn name(&self) -> String {
        format!("{}.{}", self.source_name, self.slot)
    }

    /// The application name of its connections.
    pub fn application_name(&self) -> String {
        format!("walgate/{}.{}", self.source_name, self.slot)
    }

    /// One attempt.
    ///
    /// # Errors
    /// Any: the engine decides by class whether to try again.
    pub async fn run(&self, wish: &mut watch::Receiver<Wish>) -> Result<Ended> {
        self.status.enter(State::Starting);
        let Some(lock) = start::take_lock(self, wish).await? else { return Ok(Ended::Drained) };
        let mut asked = wish.clone();
        let started = tokio::select! {
            biased;
            error = lock.lost() => return Err(error),
            () = drain_wished(&mut asked) => return Ok(Ended::Drained),
            started = start::start(self) => started?,
        };
        let copied = tokio::select! {
            biased;
            error = lock.lost() => return Err(error),
            () = drain_wished(&mut asked) => return Ok(Ended::Drained),
            copied = crate::snapshot::run(self, started) => copied?,
        };
        stream::run(self, copied, &lock, wish).await
    }
}

/// Resolves when the engine wishes the end.
pub async fn drain_wished(wish: &mut watch::Receiver<Wish>) {
    // A sender that has gone cannot wish anything: the process is ending.
    let _ = wish.wait_for(|wish| *wish == Wish::Drain).await;
}
