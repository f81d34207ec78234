//! When the tables that Walgate made on a replica get their other indexes: once the stream has passed the last copy, in
//! the background, beside the stream.
//!
//! Comes in: how far the replica has confirmed. Goes out: a task of its own, with connections of its own, which is ended
//! with the stream. Always holds: nothing waits for it but `--until-caught-up`, which would else leave a replica without
//! indexes; nothing that it does is part of a checkpoint; what is unfinished is taken up at the next start. Before the
//! copies are passed, an index would only slow them down, and a unique one could see what the source never had.

use tokio::task::JoinHandle;

use super::start::Started;
use super::{Pipeline, tables};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::sink::destination::Address;
use crate::sink::replica::Indexer;
use crate::wal::client::connect;
use crate::wal::index::SourceIndex;

/// See the module.
#[derive(Debug)]
pub enum Indexes {
    /// Until the replica has confirmed this.
    Waiting(Lsn),
    /// At work, or done.
    Begun(JoinHandle<()>),
    /// The hub has none.
    None,
}

impl Indexes {
    /// Of a pipeline whose copies are done.
    pub fn new(pipeline: &Pipeline, started: &Started) -> Indexes {
        match &pipeline.replica {
            // Between two ranges a table is of several moments, which a unique index would not have: not in this attempt.
            Some(_) if !started.ranged.is_empty() => Indexes::Waiting(Lsn(u64::MAX)),
            Some(_) => {
                let copied_at = started.states.values().map(|state| state.copied_at).max();
                Indexes::Waiting(copied_at.unwrap_or(Lsn::ZERO))
            }
            None => Indexes::None,
        }
    }

    /// Begins when it is time.
    pub fn go_on(&mut self, pipeline: &Pipeline, confirmed: Lsn) {
        let Indexes::Waiting(copied_at) = self else { return };
        if confirmed < *copied_at {
            return;
        }
        let pipeline = pipeline.clone();
        *self = Indexes::Begun(tokio::spawn(async move {
            if let Err(error) = make(&pipeline).await {
                tracing::warn!(
                    pipeline = pipeline.slot,
                    "indexes of the replica are not complete: {}; the next start goes on with them",
                    error.chain()
                );
            }
        }));
    }

    /// Whether nothing more comes of it.
    pub fn are_done(&self) -> bool {
        match self {
            Indexes::Waiting(_) => false,
            Indexes::Begun(task) => task.is_finished(),
            Indexes::None => true,
        }
    }
}

impl Drop for Indexes {
    fn drop(&mut self) {
        if let Indexes::Begun(task) = self {
            task.abort();
        }
    }
}

async fn make(pipeline: &Pipeline) -> Result<()> {
    let Address::Replica(settings) = pipeline.address()? else { return Ok(()) };
    let indexer = Indexer::open(&settings).await?;
    let pending = indexer.pending().await?;
    if pending.is_empty() {
        return Ok(());
    }
    let source = connect(&pipeline.url, &format!("{} indexes", pipeline.application_name())).await?;
    let taken = tables::taken(pipeline, &source).await?;
    for created in &pending {
        // Under another name by now, or left out: then it is none of ours any more.
        let is_it = |matched: &&tables::MatchedTable| {
            let (schema, name) = matched.rule.target_name(&matched.table.schema, &matched.table.name);
            matched.table.oid == created.oid && schema == created.schema && name == created.name
        };
        if taken.iter().any(|matched| is_it(&matched)) {
            indexer.make(created, &SourceIndex::of_table(&source, created.oid).await?).await?;
        }
    }
    Ok(())
}
