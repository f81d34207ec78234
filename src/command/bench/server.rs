//! A server that takes part: a throwaway cluster, or one that was given.
//!
//! In: nothing, or a URL. Out: databases of the benchmark's own, sessions with them, and the process to look at. Always:
//! no database that was there is written to; those that are made are named `walgate_bench_...`, and are dropped.

use std::process::Stdio;
use std::sync::Mutex;

use tokio::process::Command;

use super::address::Address;
use super::process;
use crate::command::throwaway::programs::Programs;
use crate::command::throwaway::{Cluster, Purpose};
use crate::error::{Error, Result};
use crate::wal::client::{Client, classify, connect};
use crate::wal::sql::{quote_ident, quote_literal};
use crate::wal::url::Host;

/// Of a throwaway cluster: as one would run it for such a load; no checkpoint and no autovacuum comes in the middle of a
/// measurement. Everything else, `fsync` and `synchronous_commit` among it, is as PostgreSQL has it.
const SETTINGS: [&str; 10] = [
    "shared_buffers=256MB",
    "max_wal_size=8GB",
    "checkpoint_timeout=30min",
    "autovacuum=off",
    "max_connections=200",
    "max_replication_slots=64",
    "max_wal_senders=64",
    "max_worker_processes=64",
    "max_logical_replication_workers=32",
    // Else a subscription waits for up to 5 s until the launcher may start its worker.
    "wal_retrieve_retry_interval=100ms",
];
/// Settings that the figures depend on.
const TOLD_SETTINGS: [&str; 7] = [
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "fsync",
    "synchronous_commit",
    "logical_decoding_work_mem",
];
const SETTING: &str = "SELECT pg_catalog.current_setting($1, true)";
const VERSION: &str = "SELECT pg_catalog.current_setting('server_version'), pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_backend_pid()";
const HAS_PGLOGICAL: &str = "
SELECT EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'pglogical')
  AND pg_catalog.current_setting('shared_preload_libraries') LIKE '%pglogical%'";
const DROP_SLOTS: &str = "
SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots
WHERE database = $1::text AND NOT active";
const END_SLOT_USERS: &str = "
SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots
WHERE database = $1::text AND active";
const SUBSCRIPTIONS: &str = "
SELECT subname::text FROM pg_catalog.pg_subscription s
JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = pg_catalog.current_database()";
const EMPTY_DATABASE: &str =
    "DROP EXTENSION IF EXISTS pglogical CASCADE; DROP SCHEMA IF EXISTS public CASCADE";
const WAL_LSN: &str = "SELECT pg_catalog.pg_current_wal_lsn()::text";
const DATABASE_BYTES: &str = "SELECT pg_catalog.pg_database_size($1::text::name)";

/// See the module.
pub struct Server {
    /// `source` or `target`.
    pub role: &'static str,
    /// Where it is.
    pub address: Address,
    /// As it prints it.
    pub version: String,
    /// 150018
    pub version_number: i32,
    /// Whether pglogical is installed, and loaded.
    pub has_pglogical: bool,
    /// Its first process, where that is on this machine.
    pub postmaster: Option<u32>,
    admin: Client,
    made: Mutex<Vec<String>>,
    cluster: Option<Cluster>,
}

impl Server {
    /// A throwaway one.
    ///
    /// # Errors
    /// Definite: it does not start.
    pub async fn throwaway(role: &'static str, programs: &Programs, with_pglogical: bool) -> Result<Server> {
        let mut settings: Vec<String> = SETTINGS.map(str::to_owned).into();
        if with_pglogical {
            settings.push("shared_preload_libraries=pglogical".to_owned());
        }
        let purpose = Purpose { name: "bench", settings, is_on_tcp: true };
        let cluster = Cluster::start(programs.clone(), purpose).await?;
        let address = Address::parse(&cluster.url("postgres"))?;
        Server::open(role, address, Some(cluster)).await
    }

    /// One that was given.
    ///
    /// # Errors
    /// As the connection.
    pub async fn given(role: &'static str, url: &str) -> Result<Server> {
        let address = Address::parse(url).map_err(|error| error.context(format!("--{role}")))?;
        Server::open(role, address, None).await.map_err(|error| error.context(format!("--{role}")))
    }

    async fn open(role: &'static str, address: Address, cluster: Option<Cluster>) -> Result<Server> {
        let admin = connect(&address.0, "walgate bench").await?;
        let row = admin.query_one(VERSION, &[]).await.map_err(classify)?;
        let (version, version_number, backend) = (row.get(0), row.get(1), row.get::<_, i32>(2));
        let has_pglogical = admin.query_one(HAS_PGLOGICAL, &[]).await.map_err(classify)?.get(0);
        let is_local = match &address.0.host {
            Host::Unix(_) => true,
            Host::Tcp(host) => ["localhost", "127.0.0.1", "::1"].contains(&host.as_str()),
        };
        // A port may lead into a container: its process numbers are others.
        let backend =
            u32::try_from(backend).ok().filter(|pid| process::title(*pid).starts_with("postgres: "));
        let postmaster = backend.filter(|_| is_local).and_then(process::parent);
        let made = Mutex::default();
        Ok(Server { role, address, version, version_number, has_pglogical, postmaster, admin, made, cluster })
    }

    /// Whether it is a throwaway one.
    pub fn is_throwaway(&self) -> bool {
        self.cluster.is_some()
    }

    /// What the figures depend on: `shared_buffers = 256MB, ...`.
    ///
    /// # Errors
    /// As the connection.
    pub async fn settings(&self) -> Result<String> {
        let mut told = Vec::new();
        for name in TOLD_SETTINGS {
            let row = self.admin.query_one(SETTING, &[&name]).await.map_err(classify)?;
            told.push(format!("{name} = {}", row.get::<_, Option<String>>(0).unwrap_or_default()));
        }
        Ok(told.join(", "))
    }

    /// Connects to a database.
    ///
    /// # Errors
    /// As the connection.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        connect(&self.address.database(database).0, "walgate bench").await
    }

    /// A program of libpq's that talks to a database; it ends with its handle.
    pub fn command(&self, programs: &Programs, program: &str, database: &str) -> Command {
        let mut command = Command::new(programs.path(program));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.envs(self.address.database(database).environment()).env("LC_ALL", "C").process_group(0);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Makes a database, as a copy of one.
    ///
    /// # Errors
    /// Definite: the role may not, the template is in use.
    pub async fn create_database(&self, name: &str, template: &str) -> Result<()> {
        self.made.lock().expect("no holder panics").push(name.to_owned());
        let statement = format!("CREATE DATABASE {} TEMPLATE {}", quote_ident(name), quote_ident(template));
        self.admin.batch_execute(&statement).await.map_err(|error| {
            classify(error).context(format!("making a database on the {}", self.role)).with_hint(
                "the role must have CREATEDB, and nobody else may be connected to a database that is copied",
            )
        })
    }

    /// Drops a database, with the slots and subscriptions in it.
    ///
    /// # Errors
    /// As the connection.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        if let Ok(inside) = self.connect(name).await {
            for row in inside.query(SUBSCRIPTIONS, &[]).await.map_err(classify)? {
                let subscription = quote_ident(row.get(0));
                inside
                    .batch_execute(&format!("ALTER SUBSCRIPTION {subscription} DISABLE"))
                    .await
                    .map_err(classify)?;
                inside
                    .batch_execute(&format!("ALTER SUBSCRIPTION {subscription} SET (slot_name = NONE)"))
                    .await
                    .map_err(classify)?;
                inside.batch_execute(&format!("DROP SUBSCRIPTION {subscription}")).await.map_err(classify)?;
            }
            // The workers of pglogical do not answer the server's barrier, for which DROP DATABASE would wait: what
            // takes room goes, the rest goes with the cluster.
            if self.has_pglogical && self.is_throwaway() {
                self.drop_slots(name).await?;
                inside.batch_execute(EMPTY_DATABASE).await.map_err(classify)?;
                self.made.lock().expect("no holder panics").retain(|made| made != name);
                return Ok(());
            }
        }
        self.drop_slots(name).await?;
        self.admin.batch_execute("SET statement_timeout = '60s'").await.map_err(classify)?;
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_ident(name));
        let dropped = self.admin.batch_execute(&statement).await.map_err(classify);
        self.admin.batch_execute("RESET statement_timeout").await.map_err(classify)?;
        dropped?;
        self.made.lock().expect("no holder panics").retain(|made| made != name);
        Ok(())
    }

    async fn drop_slots(&self, database: &str) -> Result<()> {
        self.admin.query(END_SLOT_USERS, &[&database]).await.map_err(classify)?;
        // Who used a slot leaves it a moment after it was told to go.
        for _ in 0..50 {
            self.admin.query(DROP_SLOTS, &[&database]).await.map_err(classify)?;
            let left = self.admin.query(END_SLOT_USERS, &[&database]).await.map_err(classify)?;
            if left.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Err(Error::transient(format!("a slot of database {database} on the {} stays in use", self.role)))
    }

    /// How many databases there are of the benchmark's.
    pub fn count(&self) -> usize {
        self.made.lock().expect("no holder panics").len()
    }

    /// Drops those after the first `count`, as far as they can be dropped: what stays goes at the end.
    pub async fn drop_after(&self, count: usize) {
        let made = self.made.lock().expect("no holder panics").get(count..).unwrap_or_default().to_vec();
        for name in made {
            if let Err(error) = self.drop_database(&name).await {
                tracing::warn!(database = name, "{}", error.chain());
            }
        }
    }

    /// Drops all databases that were made and are still there. A throwaway cluster goes as a whole.
    ///
    /// # Errors
    /// Which database stays, and why.
    pub async fn clean(&self) -> Result<()> {
        if self.is_throwaway() {
            return Ok(());
        }
        let made = std::mem::take(&mut *self.made.lock().expect("no holder panics"));
        for name in made.iter().rev() {
            self.drop_database(name).await.map_err(|error| {
                error
                    .context(format!("database {name} on the {} stays", self.role))
                    .with_hint(format!("DROP DATABASE {} WITH (FORCE)", quote_ident(name)))
            })?;
        }
        Ok(())
    }

    /// A checkpoint now, so that none comes later. Where the role may not, there may be one later.
    pub async fn checkpoint(&self) {
        let _ = self.admin.batch_execute("CHECKPOINT").await;
    }

    /// Where its WAL ends.
    ///
    /// # Errors
    /// As the connection.
    pub async fn wal_lsn(&self) -> Result<String> {
        Ok(self.admin.query_one(WAL_LSN, &[]).await.map_err(classify)?.get(0))
    }

    /// What a database takes on its disk.
    ///
    /// # Errors
    /// As the connection.
    pub async fn database_bytes(&self, name: &str) -> Result<u64> {
        let row = self.admin.query_one(DATABASE_BYTES, &[&name]).await.map_err(classify)?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
    }
}

/// A publication's definition for tables, and which of their changes.
pub fn create_publication(name: &str, tables: &str, publish: &str) -> String {
    format!(
        "CREATE PUBLICATION {} FOR TABLE {tables} WITH (publish = {})",
        quote_ident(name),
        quote_literal(publish)
    )
}
