//! Who reads a slot: `pg_recvlogical` to /dev/null, or `walgate` to Kafka under one of its deliveries.
//!
//! Each has a slot, and Walgate a source name, so topics and checkpoints, of its own: several can wait for one
//! backlog and be run in turn. All of them read the same publication with the same options of pgoutput.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{self, Process, Taken};
use crate::servers::{Database, kafka_brokers, postgres_program};
use crate::{Result, hub, table};

/// A kind of reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `pg_recvlogical` to /dev/null.
    Recvlogical,
    /// Walgate to Kafka, `delivery = "at-least-once"`.
    AtLeastOnce,
    /// Walgate to Kafka, `delivery = "exactly-once"`.
    ExactlyOnce,
}

impl Kind {
    /// Walgate's deliveries.
    pub const DELIVERIES: [Kind; 2] = [Kind::AtLeastOnce, Kind::ExactlyOnce];

    /// Short, for names of slots.
    fn tag(self) -> &'static str {
        match self {
            Kind::Recvlogical => "recv",
            Kind::AtLeastOnce => "alo",
            Kind::ExactlyOnce => "eo",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Recvlogical => "pg_recvlogical to /dev/null",
            Kind::AtLeastOnce => "walgate, at-least-once",
            Kind::ExactlyOnce => "walgate, exactly-once",
        })
    }
}

/// One reader with a slot of its own.
pub struct Contender {
    /// Its kind.
    pub kind: Kind,
    name: String,
    folder: tempfile::TempDir,
    database_url: String,
    /// Sections of its configuration, after the others.
    more: String,
}

impl Contender {
    /// `nth` tells it from others of its kind in the database.
    pub fn new(database: &Database, scenario: &str, kind: Kind, nth: u64) -> Result<Contender> {
        let name = format!("{scenario}_{}_{nth}_{}", kind.tag(), std::process::id());
        let folder = crate::servers::folder()?;
        Ok(Contender { kind, name, folder, database_url: database.url(), more: String::new() })
    }

    /// Walgate with these sections in its configuration, too.
    pub fn with_configuration(self, more: &str) -> Contender {
        Contender { more: more.to_owned(), ..self }
    }

    /// Makes its slot, before the backlog is written: Walgate by a run that ends with nothing to do.
    pub fn prepare(&self, database: &Database) -> Result<()> {
        if self.kind == Kind::Recvlogical {
            let slot = &self.name;
            return database
                .session()
                .run(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        }
        self.run_until_caught_up("never").map(drop)
    }

    /// Reads everything up to `end_lsn`, which is behind the last transaction of the backlog.
    pub fn read_backlog(&self, end_lsn: &str) -> Result<Taken> {
        if self.kind != Kind::Recvlogical {
            return self.run_until_caught_up("never");
        }
        let mut command = Command::new(postgres_program("pg_recvlogical")?);
        command.args(["--start", "--no-loop", "--file", "/dev/null", "--slot", &self.name]);
        command.args(["--endpos", end_lsn, "--dbname", &self.database_url]);
        for option in ["proto_version=1", "messages=true", concat!("publication_names=", table::name!())] {
            command.args(["--option", option]);
        }
        Process::start(&self.name, &mut command, &self.log())?.finish()
    }

    /// Walgate's copy of the table, with all that is before and after it.
    pub fn copy(&self) -> Result<Taken> {
        self.run_until_caught_up("initial")
    }

    /// Starts Walgate for good.
    pub fn follow(&self) -> Result<Process> {
        Process::start(&self.name, &mut self.walgate("never", &["run"])?, &self.log())
    }

    /// The topic of its events.
    pub fn topic(&self) -> String {
        format!("{}.public.{}", self.name, table::NAME)
    }

    /// An error when the topic does not hold so many events.
    pub fn expect_events(&self, count: u64) -> Result<()> {
        if self.kind == Kind::Recvlogical {
            return Ok(());
        }
        let found = hub::count(&kafka_brokers()?, &self.topic())?;
        if found == count {
            return Ok(());
        }
        Err(format!("{}: {found} events are in the topic, {count} were expected", self.name).into())
    }

    /// Removes its topic.
    pub fn forget(&self) -> Result<()> {
        match self.kind {
            Kind::Recvlogical => Ok(()),
            _ => hub::remove(&kafka_brokers()?, &self.topic()),
        }
    }

    fn run_until_caught_up(&self, snapshot: &str) -> Result<Taken> {
        let mut command = self.walgate(snapshot, &["run", "--until-caught-up"])?;
        Process::start(&self.name, &mut command, &self.log())?.finish()
    }

    fn walgate(&self, snapshot: &str, arguments: &[&str]) -> Result<Command> {
        let (name, url, brokers) = (&self.name, &self.database_url, kafka_brokers()?);
        let (publication, more) = (table::NAME, &self.more);
        let delivery = match self.kind {
            Kind::ExactlyOnce => "exactly-once",
            Kind::AtLeastOnce => "at-least-once",
            Kind::Recvlogical => unreachable!("it is no delivery of Walgate's"),
        };
        let configuration = format!(
            "[source]\nname = \"{name}\"\nurl = \"{url}\"\nslot = \"{name}\"\n\
                publication = \"{publication}\"\nsnapshot = \"{snapshot}\"\n\n\
                [hub]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\ndelivery = \"{delivery}\"\n\n\
                [hub.properties]\n\"compression.type\" = \"lz4\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}"
        );
        process::walgate(self.folder.path(), &configuration, arguments)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}
