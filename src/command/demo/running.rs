//! The engine at work on pipelines inside of this process, so that they can be watched, drained and killed.
//!
//! In: pipelines. Out: their attempts, one after the other, as [`engine::supervise`] makes them. Always: they end when
//! their handle is dropped.

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::engine;
use crate::error::{Error, Result};
use crate::pipeline::status::State;
use crate::pipeline::{Pipeline, Wish};

/// Pipelines that run; ended at once when dropped.
#[derive(Debug)]
pub struct Running {
    tasks: JoinSet<Result<()>>,
    wish: watch::Sender<Wish>,
    ended: watch::Receiver<bool>,
}

impl Running {
    /// Starts them.
    pub fn start(pipelines: &[Pipeline]) -> Running {
        let (wish, wishes) = watch::channel(Wish::Run);
        let (end, ended) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for pipeline in pipelines.iter().cloned() {
            let (mut wishes, end) = (wishes.clone(), end.clone());
            tasks.spawn(async move {
                let result = engine::supervise(&pipeline, &mut wishes).await;
                pipeline.status.enter(State::Stopped);
                let _ = end.send(true);
                result
            });
        }
        Running { tasks, wish, ended }
    }

    /// Waits for `work`, which needs all of them to run.
    ///
    /// # Errors
    /// Definite: a pipeline has ended.
    pub async fn unless_it_ends<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let mut ended = self.ended.clone();
        tokio::select! {
            biased;
            done = work => Ok(done),
            _ = ended.wait_for(|ended| *ended) => Err(Error::definite("a pipeline has ended")),
        }
    }

    /// Ends them where they stand: nothing is drained, nothing confirmed, as by a crash.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    /// Asks them to drain, and waits for their end.
    ///
    /// # Errors
    /// Definite: what stopped one.
    pub async fn drain(self) -> Result<()> {
        let _ = self.wish.send(Wish::Drain);
        self.end().await
    }

    /// Waits for their end.
    ///
    /// # Errors
    /// Definite: what stopped one.
    pub async fn end(mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended
                .unwrap_or_else(|error| Err(Error::definite("a pipeline has panicked").with_source(error)))?;
        }
        Ok(())
    }
}
