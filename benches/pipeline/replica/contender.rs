//! Who fills a replica: `walgate`, a subscription of PostgreSQL, or one of pglogical.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{self, Process, Taken};
use crate::servers::{Database, Session};
use crate::{Result, table};

/// How often the replica is asked whether it has the last transaction.
const ASK_TIME: Duration = Duration::from_millis(2);
const TIME_MAX: Duration = Duration::from_secs(600);

/// A way to fill a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `walgate run`, `mode = "replicate"`.
    Walgate,
    /// `CREATE SUBSCRIPTION`, with its defaults.
    Native,
    /// The extension, with its defaults.
    Pglogical,
}

impl Kind {
    /// Those that this server has.
    pub fn present(session: &Session) -> Result<Vec<Kind>> {
        let found = session.value(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'pglogical' \
            AND current_setting('shared_preload_libraries') LIKE '%pglogical%'",
        )?;
        let pglogical = (found != "0").then_some(Kind::Pglogical);
        Ok([Kind::Walgate, Kind::Native].into_iter().chain(pglogical).collect())
    }

    /// As the report names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Walgate => "walgate",
            Kind::Native => "native subscription",
            Kind::Pglogical => "pglogical",
        }
    }

    fn tag(self) -> &'static str {
        match self {
            Kind::Walgate => "w",
            Kind::Native => "n",
            Kind::Pglogical => "p",
        }
    }
}

/// What a run took.
pub struct Drained {
    /// Until the last transaction was visible.
    pub seconds: f64,
    /// Of the walgate process.
    pub taken: Option<Taken>,
}

/// One of them, with a slot and a database of its own.
pub struct Contender {
    /// Its kind.
    pub kind: Kind,
    name: String,
    folder: tempfile::TempDir,
    source_url: String,
    target: Database,
}

/// What runs now.
pub enum Running {
    /// The process.
    Walgate(Box<Process>),
    /// A subscription.
    Subscription,
}

impl Contender {
    /// `nth` tells it from others of its kind.
    pub fn new(source: &Database, scenario: &str, kind: Kind, nth: u64) -> Result<Contender> {
        let scenario = scenario.replace('-', "_");
        let name = format!("{scenario}_{}_{nth}_{}", kind.tag(), std::process::id());
        let target = Database::of_replica(&format!("{scenario}_{}_{nth}", kind.tag()))?;
        Ok(Contender { kind, name, folder: crate::servers::folder()?, source_url: source.url(), target })
    }

    /// A session with the replica.
    pub fn target(&self) -> &Session {
        self.target.session()
    }

    /// The replica.
    pub fn database(&self) -> &Database {
        &self.target
    }

    /// Makes its slot, before the backlog is written.
    pub fn prepare(&self, source: &Database) -> Result<()> {
        let (name, source_url, publication) = (&self.name, &self.source_url, table::NAME);
        match self.kind {
            Kind::Walgate => {
                let mut command = self.walgate("never", &["run", "--until-caught-up"])?;
                Process::start(name, &mut command, &self.log())?.finish().map(drop)
            }
            Kind::Native => self.target().run(&format!(
                "CREATE SUBSCRIPTION {name} CONNECTION '{source_url}' PUBLICATION {publication} \
                WITH (enabled = false, copy_data = false)"
            )),
            Kind::Pglogical => {
                let tables = format!("ARRAY['{}', '{}']", table::NAME, super::END);
                let make = |node: &str, url: &str| {
                    format!(
                        "CREATE EXTENSION IF NOT EXISTS pglogical; SELECT pglogical.create_node('{node}', '{url}')"
                    )
                };
                let known = source
                    .session()
                    .value("SELECT count(*) FROM pg_extension WHERE extname = 'pglogical'")?;
                if known == "0" {
                    source.session().run(&make("provider", source_url))?;
                    source.session().run(&format!(
                        "SELECT pglogical.replication_set_add_table('default', t::regclass) FROM unnest({tables}) t"
                    ))?;
                }
                let target_url = self.target.url();
                self.target().run(&make(name, &target_url))?;
                self.target().run(&format!(
                    "SELECT pglogical.create_subscription('{name}', '{source_url}', synchronize_structure := false, \
                    synchronize_data := false)"
                ))?;
                self.wait("SELECT (status = 'replicating')::int FROM pglogical.show_subscription_status()")?;
                self.target().run(&format!("SELECT pglogical.alter_subscription_disable('{name}', true)"))
            }
        }
    }

    /// Starts it for good.
    pub fn start(&self) -> Result<Running> {
        let name = &self.name;
        match self.kind {
            Kind::Walgate => {
                let process = Process::start(name, &mut self.walgate("never", &["run"])?, &self.log())?;
                return Ok(Running::Walgate(Box::new(process)));
            }
            Kind::Native => self.target().run(&format!("ALTER SUBSCRIPTION {name} ENABLE"))?,
            Kind::Pglogical => {
                self.target().run(&format!("SELECT pglogical.alter_subscription_enable('{name}', true)"))?;
            }
        }
        Ok(Running::Subscription)
    }

    /// Stops it; what the process took.
    pub fn stop(&self, running: Running) -> Result<Option<Taken>> {
        let name = &self.name;
        match (running, self.kind) {
            (Running::Walgate(process), _) => return process.stop().map(Some),
            (_, Kind::Pglogical) => {
                self.target().run(&format!("SELECT pglogical.alter_subscription_disable('{name}', true)"))?;
            }
            _ => self.target().run(&format!("ALTER SUBSCRIPTION {name} DISABLE"))?,
        }
        Ok(None)
    }

    /// Applies the backlog, whose last transaction is visible when `is_there` gives 1.
    pub fn drain(&self, is_there: &str) -> Result<Drained> {
        let started_at = Instant::now();
        let running = self.start()?;
        self.wait(is_there)?;
        let seconds = started_at.elapsed().as_secs_f64();
        Ok(Drained { seconds, taken: self.stop(running)? })
    }

    /// Walgate's initial copy, with all that is before and after it.
    pub fn copy(&self) -> Result<Taken> {
        let mut command = self.walgate("initial", &["run", "--until-caught-up"])?;
        Process::start(&self.name, &mut command, &self.log())?.finish()
    }

    /// Its slot goes, so that the source need not keep WAL for it; with it the replica's database.
    pub fn forget(self, source: &Database) -> Result<()> {
        let name = &self.name;
        match self.kind {
            Kind::Walgate => source.session().run(&format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}_r_replica'"
            )),
            Kind::Native => self.target().run(&format!("DROP SUBSCRIPTION {name}")),
            Kind::Pglogical => self.target().run(&format!("SELECT pglogical.drop_subscription('{name}')")),
        }
    }

    fn wait(&self, question: &str) -> Result<()> {
        let started_at = Instant::now();
        while self.target().value(question)? != "1" {
            if started_at.elapsed() > TIME_MAX {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                return Err(format!("{}: not done after {} s\n{log}", self.name, TIME_MAX.as_secs()).into());
            }
            std::thread::sleep(ASK_TIME);
        }
        Ok(())
    }

    fn walgate(&self, snapshot: &str, arguments: &[&str]) -> Result<Command> {
        let (name, source_url, target_url) = (&self.name, &self.source_url, self.target.url());
        let publication = table::NAME;
        let configuration = format!(
            "[source]\nname = \"{name}\"\nurl = \"{source_url}\"\nslot = \"{name}\"\n\
                publication = \"{publication}\"\nsnapshot = \"{snapshot}\"\n\n\
                [[replica]]\nname = \"replica\"\nurl = \"{target_url}\"\n\n\
                [[table]]\nname = \"public.*\"\nmode = \"replicate\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n"
        );
        process::walgate(self.folder.path(), &configuration, arguments)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}
