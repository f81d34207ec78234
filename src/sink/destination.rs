//! A pipeline's destination, whichever it is: opening it, what is stored there, its sink.
//!
//! Opening fences other processes and reads what is stored; everything here blocks and is called from a thread that may.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use super::checkpoint::{Checkpoint, Identity, Stored, TableState};
use super::hub::{self, HubTopics, OpenHub};
use super::replica::{self, Copier, Made, Makes, ReplicaSession, ReplicaSettings, Wanted};
use super::{SinkLimits, Stop, Worker};
use crate::claim::stage::ClaimSettings;
use crate::config::Hub;
use crate::error::Result;
use crate::route::batch::Labels;
use crate::route::row::{Target, Targets};

/// Where a pipeline's changes go, and what it takes to get there.
#[derive(Clone, Debug)]
pub enum Address {
    /// The event store.
    Hub(Hub),
    /// A database.
    Replica(Box<ReplicaSettings>),
}

/// The destination, opened by this process, with nobody else able to write as this pipeline.
pub enum OpenDestination {
    /// The event store.
    Hub(Box<OpenHub>),
    /// A database.
    Replica(Box<ReplicaSession>),
}

/// What reaches the destination beside its sink.
pub enum Beside {
    /// The topics of a hub.
    Hub(Arc<HubTopics>),
    /// What copies into a replica.
    Replica(Arc<Copier>),
}

impl OpenDestination {
    /// Fences others out and reads what is stored about the pipeline `name`, whose source is `source`.
    ///
    /// # Errors
    /// Fenced while another process holds it; transient when it cannot be reached; definite, among others, when a
    /// replica is the source itself.
    pub fn open(address: &Address, name: &str, source: &Identity) -> Result<(OpenDestination, Stored)> {
        match address {
            Address::Hub(hub) => {
                let (hub, stored) = OpenHub::open(hub, name)?;
                Ok((OpenDestination::Hub(Box::new(hub)), stored))
            }
            Address::Replica(settings) => {
                let (session, stored) = ReplicaSession::open(ReplicaSettings::clone(settings), source)?;
                Ok((OpenDestination::Replica(Box::new(session)), stored))
            }
        }
    }

    /// Stores the pipeline's record at once.
    ///
    /// # Errors
    /// When it cannot be written, or another process has taken over.
    pub fn store(&mut self, checkpoint: &Checkpoint, tables: &[TableState]) -> Result<()> {
        match self {
            OpenDestination::Hub(hub) => hub.store(checkpoint, tables),
            OpenDestination::Replica(session) => session.store(checkpoint, tables),
        }
    }

    /// Which of the topics hold events of an earlier pipeline.
    ///
    /// # Errors
    /// When the hub cannot be reached.
    pub fn has_events(&self, topics: &[String]) -> Result<Vec<String>> {
        match self {
            OpenDestination::Hub(hub) => hub.has_events(topics),
            OpenDestination::Replica(_) => Ok(Vec::new()),
        }
    }

    /// Makes a replica's missing tables and columns; a hub makes its topics as they are needed.
    ///
    /// # Errors
    /// As [`ReplicaSession::prepare`].
    pub fn prepare(&mut self, wanted: &[Wanted], makes: Makes) -> Result<Made> {
        match self {
            OpenDestination::Hub(_) => Ok(Made::default()),
            OpenDestination::Replica(session) => session.prepare(wanted, makes),
        }
    }

    /// Why a table cannot be copied in ranges of `column`; `None`: it can.
    ///
    /// # Errors
    /// When the replica cannot be reached.
    pub fn obstacle(&mut self, target: &Target, column: &str) -> Result<Option<String>> {
        match self {
            // An event of a key change must tell the values that did not change, and only a whole copy has them.
            OpenDestination::Hub(_) => Ok(Some("a hub gets whole copies".to_owned())),
            OpenDestination::Replica(session) => session.obstacle(target, column),
        }
    }

    /// Starts the sink's thread, which goes on from `checkpoint`.
    ///
    /// # Errors
    /// Definite when properties are wrong.
    pub fn start(
        self,
        name: &str,
        checkpoint: Checkpoint,
        (labels, targets): (&Arc<Labels>, &Arc<Targets>),
        (limits, claims): (SinkLimits, Option<ClaimSettings>),
        gate: OwnedMutexGuard<()>,
    ) -> Result<(Worker, Beside)> {
        match self {
            OpenDestination::Hub(hub) => {
                let (worker, topics) = hub.start(name, checkpoint, labels, (limits, claims), gate)?;
                Ok((worker, Beside::Hub(topics)))
            }
            OpenDestination::Replica(session) => {
                let stop = Stop::default();
                let copier = Arc::new(session.copier(targets.clone()));
                let sink = session.into_sink(checkpoint, targets.clone(), limits, stop.clone());
                Ok((Worker::start(name, sink, stop, gate, None)?, Beside::Replica(copier)))
            }
        }
    }
}

/// What is stored about the pipeline `name`, read beside the process that runs it.
///
/// # Errors
/// When the destination cannot be reached.
pub fn peek(address: &Address, name: &str) -> Result<Stored> {
    match address {
        Address::Hub(of) => hub::peek(of, name),
        Address::Replica(settings) => replica::peek(settings),
    }
}

/// Removes what is stored about the pipeline `name`; its events, or rows, stay. False: nothing was stored.
///
/// # Errors
/// When the destination cannot be reached, or a process still runs the pipeline.
pub fn forget(address: &Address, name: &str) -> Result<bool> {
    match address {
        Address::Hub(of) => hub::forget(of, name),
        Address::Replica(settings) => replica::forget(settings),
    }
}
