//! Everything that a benchmark stands on: two servers, a broker if there is one, a folder, and PostgreSQL's programs.
//!
//! In: the arguments. Out: the ground, and what it lacks. Always: [`Ground::clean`] and the drop together leave nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::process::Command;

use super::mode::Mode;
use super::process;
use super::scratch::Scratch;
use super::server::Server;
use crate::command::throwaway::programs::Programs;
use crate::error::Result;

/// See the module.
pub struct Ground {
    /// Whose WAL is read.
    pub source: Server,
    /// Who receives rows.
    pub target: Server,
    /// `host:port`, if given.
    pub brokers: Option<String>,
    /// The broker's process, where it is on this machine.
    pub broker: Option<u32>,
    /// PostgreSQL's.
    pub programs: Programs,
    /// Of the benchmark's own. Last: it goes when the servers have gone.
    pub scratch: Scratch,
    names: AtomicU32,
}

/// The servers that were given.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--source`
    pub source: Option<String>,
    /// `--target`
    pub target: Option<String>,
    /// `--kafka`
    pub brokers: Option<String>,
}

impl Ground {
    /// Starts what was not given, and connects to what was.
    ///
    /// # Errors
    /// Definite: what does not start; as the connections.
    pub async fn prepare(given: &Given, with_pglogical: bool) -> Result<Ground> {
        let programs = Programs::find()?;
        let scratch = Scratch::make()?;
        let server = async |role, url: &Option<String>| match url {
            Some(url) => Server::given(role, url).await,
            None => Server::throwaway(role, &programs, with_pglogical && is_installed(&programs)).await,
        };
        let source = server("source", &given.source).await?;
        let target = server("target", &given.target).await?;
        let brokers = given.brokers.clone();
        let broker = brokers.as_deref().and_then(local_port).and_then(process::listening_on);
        Ok(Ground { source, target, brokers, broker, programs, scratch, names: AtomicU32::new(1) })
    }

    /// Why a mode cannot be measured here.
    pub fn lacks(&self, mode: Mode) -> Option<String> {
        match mode {
            Mode::KafkaAtLeastOnce | Mode::KafkaExactlyOnce if self.brokers.is_none() => {
                Some("no broker was given: --kafka HOST:PORT".to_owned())
            }
            Mode::Pglogical if !self.source.has_pglogical || !self.target.has_pglogical => {
                let without = [&self.source, &self.target].into_iter().find(|server| !server.has_pglogical);
                let role = without.map_or("source", |server| server.role);
                Some(format!(
                    "the extension pglogical is not installed, or not in shared_preload_libraries, on the {role}"
                ))
            }
            Mode::Recvlogical if !self.programs.path("pg_recvlogical").is_file() => {
                Some(format!("{} has no pg_recvlogical", self.programs.bin.display()))
            }
            _ => None,
        }
    }

    /// A program of libpq's that talks to a database of the source.
    pub fn on_source(&self, program: &str, database: &str) -> Command {
        self.source.command(&self.programs, program, database)
    }

    /// A name that nobody else has, for a database, a slot, a subscription, topics: at most 40 of a-z, 0-9 and _.
    pub fn name(&self, what: &str) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let what: String = what.chars().take(10).map(plain).collect();
        format!("walgate_bench_{}_{number}_{what}", std::process::id())
    }

    /// Removes what was made on servers that were given.
    ///
    /// # Errors
    /// What stays, and why.
    pub async fn clean(&self) -> Result<()> {
        let (source, target) = (self.source.clean().await, self.target.clean().await);
        source.and(target)
    }
}

fn is_installed(programs: &Programs) -> bool {
    let answer = std::process::Command::new(programs.path("pg_config")).arg("--pkglibdir").output();
    answer.is_ok_and(|answer| {
        let folder = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        std::path::Path::new(&folder).join("pglogical.so").is_file()
    })
}

/// The port of `127.0.0.1:9092`, of the first broker.
fn local_port(brokers: &str) -> Option<u16> {
    let (host, port) = brokers.split(',').next()?.trim().rsplit_once(':')?;
    ["127.0.0.1", "localhost", "[::1]"].contains(&host).then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_elsewhere_has_no_process_here() {
        assert_eq!(local_port("127.0.0.1:9092,other:9092"), Some(9092));
        assert_eq!(local_port("kafka:9092"), None);
        assert_eq!(local_port("kafka"), None);
    }
}
