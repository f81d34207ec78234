//! The hub, whichever kind it is: opening it, its topics, its sink.
//!
//! Opening fences other processes and reads what is stored; everything here blocks and is called
//! from a thread that may.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use super::checkpoint::{Checkpoint, Stored, TableState, VERSION};
use super::file::{Directory, FileSink};
use super::kafka::{AtLeastOnce, ExactlyOnce, Preflight, Producing, Session, Topics};
use super::{SinkLimits, Stop, Worker, file, kafka};
use crate::claim::stage::ClaimSettings;
use crate::config::{Delivery, Hub, HubKind, KafkaHub};
use crate::error::{Class, Error, Result};
use crate::route::batch::Labels;

/// The hub's topics.
#[derive(Debug)]
pub enum HubTopics {
    /// Kafka's.
    Kafka(Arc<Topics>),
    /// Files: made by the first event, of one partition each.
    File,
}

impl HubTopics {
    /// Makes what is missing.
    ///
    /// # Errors
    /// See [`Topics::ensure`].
    pub fn ensure(&self, topics: &[String]) -> Result<()> {
        match self {
            HubTopics::Kafka(kafka) => kafka.ensure(topics),
            HubTopics::File => Ok(()),
        }
    }

    /// What a topic takes at once, in bytes; `None`: anything.
    ///
    /// # Errors
    /// See [`Topics::message_bytes_max`].
    pub fn message_bytes_max(&self, topic: &str) -> Result<Option<u64>> {
        match self {
            HubTopics::Kafka(kafka) => kafka.message_bytes_max(topic),
            HubTopics::File => Ok(None),
        }
    }

    /// Partitions of a topic.
    ///
    /// # Errors
    /// See [`Topics::partitions`].
    pub fn partitions(&self, topic: &str) -> Result<i32> {
        match self {
            HubTopics::Kafka(kafka) => kafka.partitions(topic),
            HubTopics::File => Ok(1),
        }
    }
}

/// The hub, opened by this process, with nobody else able to write as this pipeline.
#[derive(Debug)]
pub enum OpenHub {
    /// Kafka.
    Kafka {
        /// The fencing producer.
        session: Session,
        /// What was configured.
        hub: Hub,
        /// The cluster's topics.
        topics: Arc<Topics>,
    },
    /// A directory.
    File(Directory),
}

impl OpenHub {
    /// Fences others out and reads what is stored about the pipeline `name`.
    ///
    /// # Errors
    /// Fenced while another process holds the hub; transient when it cannot be reached.
    pub fn open(hub: &Hub, name: &str) -> Result<(OpenHub, Stored)> {
        match &hub.kind {
            HubKind::Kafka(kafka) => {
                let topics = Arc::new(Topics::new(kafka)?);
                let opened = Session::open(kafka, &topics, name);
                let (session, stored) = opened.map_err(|error| reason(kafka, error))?;
                known_version(&stored)?;
                Ok((OpenHub::Kafka { session, hub: hub.clone(), topics }, stored))
            }
            HubKind::File(file) => {
                let directory = Directory::open(&file.path, name)?;
                let stored = directory.stored();
                known_version(&stored)?;
                Ok((OpenHub::File(directory), stored))
            }
        }
    }

    /// Stores the pipeline's record at once.
    ///
    /// # Errors
    /// When the hub cannot be written, or another process has taken over.
    pub fn store(&mut self, checkpoint: &Checkpoint, tables: &[TableState]) -> Result<()> {
        match self {
            OpenHub::Kafka { session, .. } => session.store(checkpoint, tables),
            OpenHub::File(directory) => {
                directory.enter(tables);
                directory.store(checkpoint)
            }
        }
    }

    /// Whether a topic holds events of an earlier pipeline.
    ///
    /// # Errors
    /// When the hub cannot be reached.
    pub fn has_events(&self, topics: &[String]) -> Result<Vec<String>> {
        match self {
            OpenHub::Kafka { topics: cluster, .. } => cluster.not_empty(topics),
            OpenHub::File(directory) => {
                Ok(topics.iter().filter(|topic| directory.topic_bytes(topic) > 0).cloned().collect())
            }
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
        labels: &Arc<Labels>,
        (limits, claims): (SinkLimits, Option<ClaimSettings>),
        gate: OwnedMutexGuard<()>,
    ) -> Result<(Worker, Arc<HubTopics>)> {
        let stop = Stop::default();
        match self {
            OpenHub::File(directory) => {
                let sink = FileSink::new(directory, checkpoint, labels.clone());
                Ok((Worker::start(name, sink, stop, gate, claims)?, Arc::new(HubTopics::File)))
            }
            OpenHub::Kafka { session, hub, topics } => {
                let HubKind::Kafka(kafka) = &hub.kind else { unreachable!("a Kafka hub was opened") };
                let topics = Arc::new(HubTopics::Kafka(topics));
                let producing = Producing::new(topics.clone(), labels.clone(), limits, stop.clone());
                let worker = match hub.delivery {
                    Delivery::ExactlyOnce => {
                        let sink = ExactlyOnce::new(session, checkpoint, producing);
                        Worker::start(name, sink, stop, gate, claims)?
                    }
                    Delivery::AtLeastOnce => Worker::start(
                        name,
                        AtLeastOnce::new(kafka, session, checkpoint, producing)?,
                        stop,
                        gate,
                        claims,
                    )?,
                };
                Ok((worker, topics))
            }
        }
    }
}

/// A checkpoint of a later Walgate is not guessed at.
fn known_version(stored: &Stored) -> Result<()> {
    match &stored.checkpoint {
        Some(checkpoint) if checkpoint.v != VERSION => Err(Error::definite(format!(
            "the checkpoint has the form {}, this version of walgate knows {VERSION}",
            checkpoint.v
        ))
        .with_hint("run the version of walgate that wrote it, or a later one")),
        _ => Ok(()),
    }
}

/// librdkafka waits for ever for credentials to become right: why brokers are out of reach has to be asked.
fn reason(kafka: &KafkaHub, error: Error) -> Error {
    if error.class() != Class::Transient {
        return error;
    }
    match Preflight::open(kafka) {
        Err(reason) if reason.is_definite() => reason,
        _ => error,
    }
}

/// What is stored about the pipeline `name`, read beside the process that runs it.
///
/// # Errors
/// When the hub cannot be reached.
pub fn peek(hub: &Hub, name: &str) -> Result<Stored> {
    match &hub.kind {
        HubKind::Kafka(kafka) => kafka::peek(kafka, &Topics::new(kafka)?, name),
        HubKind::File(file) => file::peek(&file.path),
    }
}

/// Removes what is stored about the pipeline `name`; its events stay. False: nothing was stored.
///
/// # Errors
/// When the hub cannot be reached, or a process still runs the pipeline.
pub fn forget(hub: &Hub, name: &str) -> Result<bool> {
    match &hub.kind {
        HubKind::Kafka(kafka) => kafka::forget(kafka, &Topics::new(kafka)?, name),
        HubKind::File(file) => file::forget(&file.path),
    }
}

/// The directory of a file hub.
pub fn file_path(hub: &Hub) -> Option<&PathBuf> {
    match &hub.kind {
        HubKind::File(file) => Some(&file.path),
        HubKind::Kafka(_) => None,
    }
}
