//! A mode at work on one database: made ready before a backlog is written, started, stopped, and taken away again.
//!
//! In: a mode, a database of the source, a template of the target. Out: a reader with a slot of its own, whose changes
//! arrive at a destination of its own. Always: Walgate is this same program, `walgate run` on a configuration of the
//! benchmark's, everything not named in it at its default; so it is a process whose time and memory are its own.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;

use super::address::Address;
use super::child::Child;
use super::ground::Ground;
use super::mode::Mode;
use super::observer::{Observers, Pace};
use super::probe;
use super::publications::Publications;
use super::relay::Relay;
use super::workload::Workload;
use crate::config::{Config, HubKind, KafkaHub};
use crate::error::{Error, Result};
use crate::sink::kafka::Topics;
use crate::wal::client::{Client, classify};
use crate::wal::sql::{quote_ident, quote_literal};

const CREATE_SLOT: &str = "SELECT pg_catalog.pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
const PGLOGICAL_IS_THERE: &str =
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pglogical')";
const PGLOGICAL_NODE: &str = "SELECT pglogical.create_node($1::text::name, $2::text)";
const PGLOGICAL_ADD: &str =
    "SELECT pglogical.replication_set_add_table($1::text::name, $2::text::regclass, row_filter := $3::text)";
const PGLOGICAL_SUBSCRIBE: &str = "SELECT pglogical.create_subscription($1::text::name, $2::text, synchronize_structure := false, synchronize_data := false)";
const PGLOGICAL_STATUS: &str = "SELECT status = 'replicating' FROM pglogical.show_subscription_status()";
const PGLOGICAL_STOP: &str = "SELECT pglogical.alter_subscription_disable($1::text::name, true)";
const PGLOGICAL_START: &str = "SELECT pglogical.alter_subscription_enable($1::text::name, true)";
const PGLOGICAL_DROP: &str = "SELECT pglogical.drop_subscription($1::text::name)";
/// What the source keeps for this database's slots, and what they have not confirmed.
const KEPT: &str = "
SELECT coalesce(max(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)), 0)::bigint
FROM pg_catalog.pg_replication_slots WHERE database = pg_catalog.current_database()";
/// For a connection, a slot, a worker.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// For a run of Walgate that has nothing to deliver, on a busy machine.
const WALGATE_START_TIME_MAX: Duration = Duration::from_secs(120);

/// The two relays of the round that counts bytes.
#[derive(Debug)]
pub struct Relays {
    /// In front of the source.
    pub source: Relay,
    /// In front of the target.
    pub target: Relay,
}

/// See the module.
pub struct Contender<'a> {
    /// What it is.
    pub mode: Mode,
    ground: &'a Ground,
    workload: &'a Workload,
    publications: &'a Publications,
    name: String,
    /// The source's database, as the reader reaches it.
    source: Address,
    source_database: String,
    /// The target's, as who writes it reaches it.
    target: Option<Address>,
    target_database: String,
    folder: PathBuf,
    /// The reader's process, for whom watches it.
    reader: Arc<Mutex<Option<u32>>>,
}

/// What runs now.
pub enum Running {
    /// A process.
    Process(Box<Child>),
    /// Workers of the target.
    Subscription,
    /// Nothing.
    Nobody,
}

/// Where and through what a contender works.
pub struct Place<'a> {
    /// A database of the source with the workload's tables.
    pub source_database: &'a str,
    /// One of the target with the same rows.
    pub target_template: &'a str,
    /// Only in the round that counts bytes.
    pub relays: Option<&'a Relays>,
}

impl<'a> Contender<'a> {
    /// Makes it ready: its destination, and its slot.
    ///
    /// # Errors
    /// What the servers or Walgate said.
    pub async fn prepare(
        ground: &'a Ground,
        workload: &'a Workload,
        publications: &'a Publications,
        mode: Mode,
        place: &Place<'_>,
    ) -> Result<Contender<'a>> {
        let name = ground.name(match mode {
            Mode::KafkaAtLeastOnce => "kafka_alo",
            Mode::KafkaExactlyOnce => "kafka_eo",
            _ => mode.name(),
        });
        let not_through =
            || Error::definite("bytes cannot be counted: sslmode=verify-full lets nothing stand between");
        let mut source = ground.source.address.database(place.source_database);
        let mut target = ground.target.address.database(&name);
        if let Some(relays) = place.relays {
            source = source.through(relays.source.port()).ok_or_else(not_through)?;
            if mode.is_walgate() {
                target = target.through(relays.target.port()).ok_or_else(not_through)?;
            }
        }
        let contender = Contender {
            mode,
            ground,
            workload,
            publications,
            source,
            source_database: place.source_database.to_owned(),
            target: mode.has_replica().then_some(target),
            target_database: name.clone(),
            folder: ground.scratch.folder(&name)?,
            name,
            reader: Arc::default(),
        };
        if mode.has_replica() {
            ground.target.create_database(&contender.target_database, place.target_template).await?;
        }
        contender.make_slot().await.map_err(|error| error.context(format!("preparing {}", mode.name())))?;
        Ok(contender)
    }

    async fn make_slot(&self) -> Result<()> {
        let source = self.ground.source.connect(&self.source_database).await?;
        match self.mode {
            Mode::Nobody => Ok(()),
            Mode::Recvlogical => self.create_slot(&source).await,
            Mode::Native => {
                self.create_slot(&source).await?;
                let publications: Vec<String> =
                    self.passing()?.iter().map(|name| quote_ident(name)).collect();
                let statement = format!(
                    "CREATE SUBSCRIPTION {name} CONNECTION {conninfo} PUBLICATION {publications} \
                     WITH (enabled = false, copy_data = false, create_slot = false, slot_name = {slot})",
                    name = quote_ident(&self.name),
                    conninfo = quote_literal(&self.source.conninfo()),
                    publications = publications.join(", "),
                    slot = quote_literal(&self.name)
                );
                self.on_target().await?.batch_execute(&statement).await.map_err(classify)
            }
            Mode::Pglogical => self.subscribe_pglogical(&source).await,
            _ => {
                self.write_configuration()?;
                let child = self.walgate(&["run", "--until-caught-up"])?;
                child.finish(WALGATE_START_TIME_MAX).await
            }
        }
    }

    async fn create_slot(&self, source: &Client) -> Result<()> {
        source.query(CREATE_SLOT, &[&self.name]).await.map(drop).map_err(classify)
    }

    /// The publications of a reader that does not filter by itself.
    fn passing(&self) -> Result<&[String]> {
        match self.publications.passing.as_slice() {
            [] => Err(Error::definite("publications have no row filters before PostgreSQL 15")),
            names => Ok(names),
        }
    }

    async fn subscribe_pglogical(&self, source: &Client) -> Result<()> {
        let target = self.on_target().await?;
        let is_there: bool = source.query_one(PGLOGICAL_IS_THERE, &[]).await.map_err(classify)?.get(0);
        if !is_there {
            source.batch_execute("CREATE EXTENSION pglogical").await.map_err(classify)?;
            source
                .query(PGLOGICAL_NODE, &[&self.source_database, &self.source.conninfo()])
                .await
                .map_err(classify)?;
            for table in &self.publications.tables {
                let set = if table.has_identity { "default" } else { "default_insert_only" };
                source
                    .query(PGLOGICAL_ADD, &[&set, &table.quoted(), &table.filter])
                    .await
                    .map_err(classify)?;
            }
        }
        let own = self.ground.target.address.database(&self.target_database).conninfo();
        target.batch_execute("CREATE EXTENSION pglogical").await.map_err(classify)?;
        target.query(PGLOGICAL_NODE, &[&self.name, &own]).await.map_err(classify)?;
        target.query(PGLOGICAL_SUBSCRIBE, &[&self.name, &self.source.conninfo()]).await.map_err(classify)?;
        let began = tokio::time::Instant::now();
        loop {
            let rows = target.query(PGLOGICAL_STATUS, &[]).await.map_err(classify)?;
            if rows.iter().any(|row| row.get(0)) {
                break;
            }
            if began.elapsed() > READY_TIME_MAX {
                return Err(Error::definite("pglogical's subscription does not begin to replicate")
                    .with_hint("the target's log says why; a source with the setting output_plugin_libraries must name pglogical_output there"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        target.query(PGLOGICAL_STOP, &[&self.name]).await.map(drop).map_err(classify)
    }

    async fn on_target(&self) -> Result<Client> {
        self.ground.target.connect(&self.target_database).await
    }

    /// Begins to look at its destinations; `pg_recvlogical` has one only when it is followed.
    ///
    /// # Errors
    /// None that is not a fault of ours.
    pub fn observe(&self, pace: Pace) -> Result<Observers> {
        let mut observers = Observers::default();
        let topic = self.topic(probe::TABLE);
        match self.hub()? {
            Some(HubKind::File(hub)) => observers.file(hub.path, topic, pace),
            Some(HubKind::Kafka(hub)) => observers.kafka(hub, topic),
            None => {}
        }
        if self.mode.has_replica() {
            observers.replica(self.ground.target.address.database(&self.target_database), pace);
        }
        Ok(observers)
    }

    fn topic(&self, table: &str) -> String {
        format!("{}.public.{table}", self.name)
    }

    /// The hub of its configuration.
    fn hub(&self) -> Result<Option<HubKind>> {
        if !self.mode.has_hub() {
            return Ok(None);
        }
        let config = Config::parse(&self.configuration(), &|_| None, &self.folder)
            .map_err(|faults| Error::definite(format!("the benchmark's own configuration: {faults}")))?;
        Ok(Some(config.hub.kind))
    }

    /// Starts it for good; `pg_recvlogical` prints into a pipe for the observers.
    ///
    /// # Errors
    /// What the servers said.
    pub async fn follow(&self, observers: &mut Observers) -> Result<Running> {
        if self.mode != Mode::Recvlogical {
            return self.start().await;
        }
        let mut command = self.recvlogical()?;
        command.args(["--file", "-"]).stdout(Stdio::piped());
        let mut child = self.spawn(command)?;
        if let Some(stdout) = child.stdout() {
            observers.pipe(stdout);
        }
        Ok(Running::Process(Box::new(child)))
    }

    /// Starts it for good.
    ///
    /// # Errors
    /// What the servers said.
    pub async fn start(&self) -> Result<Running> {
        match self.mode {
            Mode::Nobody => return Ok(Running::Nobody),
            Mode::Native => {
                let statement = format!("ALTER SUBSCRIPTION {} ENABLE", quote_ident(&self.name));
                self.on_target().await?.batch_execute(&statement).await.map_err(classify)?;
            }
            Mode::Pglogical => {
                self.on_target().await?.query(PGLOGICAL_START, &[&self.name]).await.map_err(classify)?;
            }
            Mode::Recvlogical => {
                let mut command = self.recvlogical()?;
                command.args(["--file", "/dev/null"]);
                return Ok(Running::Process(Box::new(self.spawn(command)?)));
            }
            _ => return Ok(Running::Process(Box::new(self.walgate(&["run"])?))),
        }
        Ok(Running::Subscription)
    }

    /// `pg_recvlogical` until this LSN is behind it, to nowhere.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn receive_until(&self, end_lsn: &str) -> Result<Child> {
        let mut command = self.recvlogical()?;
        command.args(["--file", "/dev/null", "--endpos", end_lsn]);
        self.spawn(command)
    }

    /// Stops it.
    ///
    /// # Errors
    /// What it said.
    pub async fn stop(&self, running: Running) -> Result<()> {
        match (running, self.mode) {
            // Before PostgreSQL 16 it knows no other.
            (Running::Process(child), Mode::Recvlogical) => child.stop(Signal::INT).await,
            (Running::Process(child), _) => child.stop(Signal::TERM).await,
            (Running::Nobody, _) => Ok(()),
            (Running::Subscription, Mode::Pglogical) => {
                self.on_target().await?.query(PGLOGICAL_STOP, &[&self.name]).await.map(drop).map_err(classify)
            }
            (Running::Subscription, _) => {
                let statement = format!("ALTER SUBSCRIPTION {} DISABLE", quote_ident(&self.name));
                self.on_target().await?.batch_execute(&statement).await.map_err(classify)
            }
        }
    }

    /// What the source keeps for its slots.
    ///
    /// # Errors
    /// As the connection.
    pub async fn retained_wal_bytes(client: &Client) -> Result<u64> {
        let row = client.query_one(KEPT, &[]).await.map_err(classify)?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
    }

    /// The reader's process, now or later.
    pub fn reader(&self) -> Arc<Mutex<Option<u32>>> {
        self.reader.clone()
    }

    /// The target's database.
    pub fn target_database(&self) -> &str {
        &self.target_database
    }

    /// Its folder, with what a file hub and its claim store hold.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Its Kafka, if it has one.
    ///
    /// # Errors
    /// None that is not a fault of ours.
    pub fn kafka(&self) -> Result<Option<KafkaHub>> {
        Ok(match self.hub()? {
            Some(HubKind::Kafka(hub)) => Some(hub),
            _ => None,
        })
    }

    /// What its topics begin with.
    pub fn topics_prefix(&self) -> String {
        format!("{}.", self.name)
    }

    /// Takes its destination away; its slots go with the source's database.
    ///
    /// # Errors
    /// What the servers said.
    pub async fn forget(self) -> Result<()> {
        if self.mode == Mode::Pglogical {
            self.on_target().await?.query(PGLOGICAL_DROP, &[&self.name]).await.map_err(classify)?;
        }
        if self.mode.has_replica() {
            self.ground.target.drop_database(&self.target_database).await?;
        }
        if let Some(hub) = self.kafka()? {
            remove_topics(hub, self.topics_prefix()).await?;
        }
        std::fs::remove_dir_all(&self.folder).map_err(|error| {
            Error::definite(format!("{} cannot be removed", self.folder.display())).with_source(error)
        })
    }

    fn spawn(&self, command: Command) -> Result<Child> {
        let name = if self.mode == Mode::Recvlogical { "pg_recvlogical" } else { "walgate" };
        let child = Child::start(name, command, &self.folder.join("log"), &self.ground.scratch)?;
        *self.reader.lock().expect("no holder panics") = Some(child.pid());
        Ok(child)
    }

    fn recvlogical(&self) -> Result<Command> {
        let mut command =
            self.ground.source.command(&self.ground.programs, "pg_recvlogical", &self.source_database);
        command.envs(self.source.environment()).stdout(Stdio::null());
        command.args(["--start", "--no-loop", "--slot", &self.name, "--dbname", &self.source_database]);
        command.args(["--option", "proto_version=1", "--option", "messages=true"]);
        let publications = format!("publication_names={}", self.passing()?.join(","));
        command.args(["--option", &publications]);
        Ok(command)
    }

    fn walgate(&self, arguments: &[&str]) -> Result<Child> {
        let program = std::env::current_exe()
            .map_err(|error| Error::definite("walgate's own program cannot be found").with_source(error))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(self.folder.join(Config::FILE_NAME)).args(arguments);
        command.current_dir(&self.folder).stdout(Stdio::null());
        self.spawn(command)
    }

    fn write_configuration(&self) -> Result<()> {
        let path = self.folder.join(Config::FILE_NAME);
        // It has the servers' passwords.
        std::fs::write(&path, self.configuration()).map_err(|error| {
            Error::definite(format!("{} cannot be written", path.display())).with_source(error)
        })
    }

    /// What is not said here has its default.
    fn configuration(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut text = format!(
            "[source]\nname = \"{name}\"\nslot = \"{name}\"\nurl = {url}\nsnapshot = \"never\"\n\
             [admin]\nlisten = \"off\"\n",
            name = self.name,
            url = quoted(&self.source.url())
        );
        let brokers = self.ground.brokers.as_deref().filter(|_| self.mode != Mode::File);
        if self.mode.has_hub() {
            text += "[hub]\n";
            match brokers {
                Some(brokers) => {
                    let delivery = match self.mode {
                        Mode::KafkaAtLeastOnce => "at-least-once",
                        _ => "exactly-once",
                    };
                    text += &format!(
                        "kind = \"kafka\"\nbrokers = {}\ndelivery = \"{delivery}\"\n",
                        quoted(brokers)
                    );
                }
                None => text += "kind = \"file\"\npath = \"hub\"\n",
            }
            if self.workload.is_large() {
                let store = format!("file://{}", self.folder.join("claims").display());
                text += &format!("[claim_check]\nstore = {}\n", quoted(&store));
            }
        }
        if let Some(target) = &self.target {
            text += &format!("[[replica]]\nname = \"replica\"\nurl = {}\n", quoted(&target.url()));
        }
        let mode = match self.mode {
            Mode::Both => "both",
            Mode::Replicate => "replicate",
            _ => "event",
        };
        let schemas: BTreeSet<&str> =
            self.publications.tables.iter().map(|table| table.schema.as_str()).collect();
        for schema in schemas {
            let name = quoted(&format!("\"{schema}\".*"));
            text += &format!("[[table]]\nname = {name}\nmode = \"{mode}\"\n");
        }
        for table in self.publications.tables.iter().filter(|table| table.filter.is_some()) {
            let name = quoted(&format!("{}.{}", table.schema, table.name));
            let condition = quoted(table.filter.unwrap_or_default());
            text += &format!("[[table]]\nname = {name}\nmode = \"{mode}\"\nwhere = {condition}\n");
        }
        text
    }
}

async fn remove_topics(hub: KafkaHub, prefix: String) -> Result<()> {
    let remove = move || {
        let topics = Topics::new(&hub)?;
        for name in topics.existing()?.into_keys().filter(|name| name.starts_with(&prefix)) {
            topics.remove(&name)?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(remove)
        .await
        .unwrap_or_else(|error| Err(Error::definite("removing topics has panicked").with_source(error)))
}
