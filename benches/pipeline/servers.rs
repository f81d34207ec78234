//! The servers as `scripts/servers` names them, and a database of a scenario's own.
//!
//! Always: a [`Database`] goes at its end, with its slots, also when the scenario failed.

use std::future::Future;
use std::path::PathBuf;

use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::Result;

/// The broker, `host:port`.
pub fn kafka_brokers() -> Result<String> {
    variable("WALGATE_TEST_KAFKA")
}

/// A program of the PostgreSQL installation.
pub fn postgres_program(name: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(variable("WALGATE_TEST_PG_BIN")?).join(name))
}

/// A folder that goes with its owner, on the disk that the servers use.
pub fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("bench.").tempdir_in(variable("WALGATE_TEST_DIR")?)?)
}

/// A variable that `scripts/servers` sets.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set: run `make bench` or scripts/bench").into())
}

/// A session with the server. Blocks.
pub struct Session {
    runtime: Runtime,
    client: Client,
}

impl Session {
    /// As the superuser of that URL.
    pub fn connect(url: &str) -> Result<Session> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client(url))?;
        Ok(Session { runtime, client })
    }

    /// Runs one statement, or several in one transaction.
    pub fn run(&self, sql: &str) -> Result<()> {
        self.wait(self.client.batch_execute(sql))
    }

    /// Runs one statement with these parameters.
    pub fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<()> {
        self.wait(self.client.execute(sql, parameters)).map(drop)
    }

    /// The one value of a query, as text.
    pub fn value(&self, sql: &str) -> Result<String> {
        let answer = self.wait(self.client.simple_query(sql))?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        row.ok_or_else(|| format!("no value came from: {sql}").into())
    }

    fn wait<T>(
        &self,
        answer: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        self.runtime.block_on(answer).map_err(|error| {
            let reason = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
            format!("PostgreSQL: {reason}").into()
        })
    }
}

/// A connection whose other half runs on the runtime of the caller.
pub async fn client(url: &str) -> std::result::Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A database of its own.
pub struct Database {
    name: String,
    server_url: String,
    session: Option<Session>,
}

impl Database {
    /// An empty one on the source's server.
    pub fn new(scenario: &str) -> Result<Database> {
        Database::on(variable("WALGATE_TEST_PG_URL")?, scenario)
    }

    /// An empty one on the replica's server.
    pub fn of_replica(name: &str) -> Result<Database> {
        Database::on(variable("WALGATE_BENCH_REPLICA_URL")?, name)
    }

    fn on(server_url: String, name: &str) -> Result<Database> {
        let name = format!("bench_{name}_{}", std::process::id());
        Session::connect(&server_url)?.run(&format!("CREATE DATABASE {name} TEMPLATE template0"))?;
        let mut database = Database { name, server_url, session: None };
        database.session = Some(Session::connect(&database.url())?);
        Ok(database)
    }

    /// Its URL, as the superuser.
    pub fn url(&self) -> String {
        let server = self.server_url.rsplit_once('/').map_or(self.server_url.as_str(), |(server, _)| server);
        format!("{server}/{}", self.name)
    }

    /// A session with it.
    pub fn session(&self) -> &Session {
        self.session.as_ref().expect("a database has its session until it is dropped")
    }

    fn remove(&mut self) -> Result<()> {
        if let Some(session) = self.session.take() {
            session.run(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                WHERE database = current_database() AND NOT active",
            )?;
        }
        let server = Session::connect(&self.server_url)?;
        // The workers of pglogical do not answer the server's barrier, for which DROP DATABASE waits.
        if server.value("SHOW shared_preload_libraries")?.contains("pglogical") {
            return Ok(());
        }
        server.run(&format!("DROP DATABASE {} WITH (FORCE)", self.name))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The servers are taken down after us: a database that stays is no harm.
        if let Err(error) = self.remove() {
            crate::say(format_args!("database {} stays: {error}", self.name));
        }
    }
}
