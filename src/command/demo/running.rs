//! The engine at work on a pipeline inside of this process, so that it can be watched, drained and killed.
//!
//! In: a pipeline. Out: its attempts, one after the other, as [`engine::supervise`] makes them. Always: it ends when
//! its handle is dropped.

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::engine;
use crate::error::{Error, Result};
use crate::pipeline::status::State;
use crate::pipeline::{Pipeline, Wish};

/// A pipeline that runs; ended at once when dropped.
#[derive(Debug)]
pub struct Running {
    task: JoinHandle<Result<()>>,
    wish: watch::Sender<Wish>,
    ended: watch::Receiver<bool>,
}

impl Running {
    /// Starts it.
    pub fn start(pipeline: Pipeline) -> Running {
        let (wish, mut wishes) = watch::channel(Wish::Run);
        let (end, ended) = watch::channel(false);
        let task = tokio::spawn(async move {
            let result = engine::supervise(&pipeline, &mut wishes).await;
            pipeline.status.enter(State::Stopped);
            let _ = end.send(true);
            result
        });
        Running { task, wish, ended }
    }

    /// Waits for `work`, which needs the pipeline to run.
    ///
    /// # Errors
    /// Definite: the pipeline has ended.
    pub async fn unless_it_ends<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let mut ended = self.ended.clone();
        tokio::select! {
            biased;
            done = work => Ok(done),
            _ = ended.wait_for(|ended| *ended) => Err(Error::definite("the pipeline has ended")),
        }
    }

    /// Ends it where it stands: nothing is drained, nothing confirmed, as by a crash.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Asks it to drain, and waits for its end.
    ///
    /// # Errors
    /// Definite: what stopped it.
    pub async fn drain(self) -> Result<()> {
        let _ = self.wish.send(Wish::Drain);
        self.end().await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Definite: what stopped it.
    pub async fn end(mut self) -> Result<()> {
        (&mut self.task)
            .await
            .unwrap_or_else(|error| Err(Error::definite("the pipeline has panicked").with_source(error)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
