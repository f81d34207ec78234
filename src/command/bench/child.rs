//! A program that reads or sends while it is measured: `walgate run`, `pg_recvlogical`.
//!
//! Always: it does not outlive its handle, nor our process; when it ends by itself, its last words are the error.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child as Process, Command};

use super::scratch::Scratch;
use crate::error::{Error, Result};

/// Longer than `limits.drain_timeout`.
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
const WORDS_MAX: usize = 12;

/// See the module.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: Process,
    pid: u32,
    log: PathBuf,
    scratch: Scratch,
}

impl Child {
    /// Starts it, its standard error in a file; its standard output is the command's affair.
    ///
    /// # Errors
    /// Definite: it cannot be run.
    pub fn start(name: &str, mut command: Command, log: &Path, scratch: &Scratch) -> Result<Child> {
        let failed = |error| Error::definite(format!("{name} cannot be run")).with_source(error);
        let file = std::fs::File::create(log).map_err(failed)?;
        command.stdin(Stdio::null()).stderr(file).process_group(0).kill_on_drop(true);
        let process = command.spawn().map_err(failed)?;
        let pid = process.id().expect("it has not been waited for");
        scratch.began(pid);
        Ok(Child { name: name.to_owned(), process, pid, log: log.to_owned(), scratch: scratch.clone() })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it prints, where that is piped; once.
    pub fn stdout(&mut self) -> Option<tokio::process::ChildStdout> {
        self.process.stdout.take()
    }

    /// An error when it has ended.
    ///
    /// # Errors
    /// Definite: with its last words.
    pub fn expect_alive(&mut self) -> Result<()> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failure(&format!("has ended ({status})"))),
            Err(error) => {
                Err(Error::definite(format!("{} cannot be waited for", self.name)).with_source(error))
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Definite: it failed, or takes too long; with its last words.
    pub async fn finish(mut self, limit: Duration) -> Result<()> {
        match tokio::time::timeout(limit, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.failure(&format!("failed ({status})"))),
            Ok(Err(error)) => {
                Err(Error::definite(format!("{} cannot be waited for", self.name)).with_source(error))
            }
            Err(_) => Err(self.failure(&format!("has not ended after {} s", limit.as_secs()))),
        }
    }

    /// Asks it to end by this signal, and waits.
    ///
    /// # Errors
    /// As [`Child::finish`].
    pub async fn stop(self, signal: Signal) -> Result<()> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may have ended already: then its status says how.
            let _ = kill_process(pid, signal);
        }
        self.finish(STOP_TIME_MAX).await
    }

    fn failure(&self, what: &str) -> Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(WORDS_MAX)..).unwrap_or_default();
        Error::definite(format!("{} {what}: {}", self.name, last.join("; ")))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Waited for at once, so that it does not write into a folder that is being removed.
        if let Ok(None) = self.process.try_wait() {
            let _ = self.process.start_kill();
            for _ in 0..100 {
                if !matches!(self.process.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.scratch.ended(self.pid);
    }
}
