//! A source: a database of its own on a running server, and sessions with it.
//!
//! In: a test's name. Out: SQL in, text out, exactly as `psql` would show it under the settings below.
//! Always: at its end the database is gone, with its slots, also when the test failed.

use std::future::Future;
use std::sync::LazyLock;
use std::sync::mpsc;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::{Cluster, PATIENCE, servers, unique_name, wait_until};

/// A row as text; `None` is NULL.
pub type TextRow = Vec<Option<String>>;

/// Text forms that do not depend on the server's settings.
const SESSION_SETTINGS: &str = "-c timezone=UTC -c datestyle=ISO -c intervalstyle=iso_8601 \
    -c extra_float_digits=3 -c bytea_output=hex -c client_min_messages=warning";

/// A database of its own, dropped at the end with its slots.
pub struct Source {
    name: String,
    server_url: String,
    session: Option<Session>,
}

/// A connection with a source, as its superuser.
pub struct Session {
    client: std::sync::Arc<Client>,
}

impl Source {
    /// A database on the shared server.
    pub fn new(test: &str) -> Self {
        Self::at(servers::postgres_url(), test)
    }

    /// A database on a cluster of the test's own.
    pub fn on(cluster: &Cluster, test: &str) -> Self {
        Self::at(cluster.url("postgres"), test)
    }

    fn at(server_url: String, test: &str) -> Self {
        let name = unique_name(test);
        Session::connect(&server_url).exec(&format!("CREATE DATABASE {name} TEMPLATE template0"));
        let session = Session::connect(&database_url(&server_url, &name));
        Self { name, server_url, session: Some(session) }
    }

    /// The database's name, which is the source's name in events and the prefix of its slots and topics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL of the database, as its superuser.
    pub fn url(&self) -> String {
        database_url(&self.server_url, &self.name)
    }

    /// Another connection: for transactions that overlap.
    pub fn session(&self) -> Session {
        Session::connect(&self.url())
    }

    /// Connects anew, after the server was restarted.
    pub fn reconnect(&mut self) {
        self.session = Some(self.session());
    }

    /// Runs statements; panics with the server's message.
    #[track_caller]
    pub fn exec(&self, sql: &str) {
        self.own().exec(sql);
    }

    /// The rows of a query, as text.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<TextRow> {
        self.own().query(sql)
    }

    /// The one value of a query, as text; panics on NULL or on no row.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        self.own().value(sql)
    }

    fn own(&self) -> &Session {
        self.session.as_ref().expect("a source has its session until it is dropped")
    }

    /// Drops every slot of this database, ending who uses it.
    pub fn drop_slots(&self) {
        let server = Session::connect(&self.server_url);
        let of_ours = format!("FROM pg_replication_slots WHERE database = '{}'", self.name);
        wait_until("the source's slots to be free", || {
            server.query(&format!("SELECT pg_terminate_backend(active_pid) {of_ours} AND active"));
            server.query(&format!("SELECT 1 {of_ours} AND active")).is_empty()
        });
        server.query(&format!("SELECT pg_drop_replication_slot(slot_name) {of_ours}"));
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.session = None;
        // A server of the test's own may be gone already, and the shared one goes soon.
        let reachable = Session::try_connect(&self.server_url).is_ok();
        if reachable && !std::thread::panicking() {
            self.drop_slots();
            let server = Session::connect(&self.server_url);
            let oid = server.value(&format!("SELECT oid FROM pg_database WHERE datname = '{}'", self.name));
            server.exec(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
            // As a replica's it has origins, for which the server has few places.
            server.query(&format!("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname ~ '^walgate.*_{oid}(/copy[0-9]+)?$'"));
        } else if reachable {
            // The failure of the test is what counts: nothing here may panic on top of it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.drop_slots()));
            if let Ok(server) = Session::try_connect(&self.server_url) {
                let _ = server.try_exec(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
            }
        }
    }
}

impl Session {
    /// Connects, or panics.
    #[track_caller]
    pub fn connect(url: &str) -> Self {
        Self::try_connect(url).unwrap_or_else(|error| panic!("connecting to {url}: {error}"))
    }

    /// Connects.
    pub fn try_connect(url: &str) -> Result<Self, tokio_postgres::Error> {
        let mut config: tokio_postgres::Config = url.parse()?;
        config.options(SESSION_SETTINGS).connect_timeout(PATIENCE);
        wait(async move {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            Ok(Self { client: client.into() })
        })
    }

    /// Runs statements; panics with the server's message.
    #[track_caller]
    pub fn exec(&self, sql: &str) {
        self.try_exec(sql).unwrap_or_else(|error| panic!("{}\n{sql}", describe(&error)));
    }

    /// Runs statements.
    pub fn try_exec(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        let (client, sql) = (self.client.clone(), sql.to_owned());
        wait(async move { client.batch_execute(&sql).await })
    }

    /// The rows of a query, as text.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<TextRow> {
        let (client, text) = (self.client.clone(), sql.to_owned());
        let messages = wait(async move { client.simple_query(&text).await })
            .unwrap_or_else(|error| panic!("{}\n{sql}", describe(&error)));
        let text_row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        };
        messages.into_iter().filter_map(text_row).collect()
    }

    /// The one value of a query, as text; panics on NULL or on no row.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        match self.query(sql).into_iter().next().and_then(|row| row.into_iter().next()).flatten() {
            Some(value) => value,
            None => panic!("no value from {sql}"),
        }
    }
}

/// The same server, another database.
fn database_url(server_url: &str, database: &str) -> String {
    let (server, _) = server_url.rsplit_once('/').expect("the server's URL names a database");
    format!("{server}/{database}")
}

fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Runs a future on the background runtime and waits for it, whether or not the caller is on a runtime.
fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime for the tests' sessions can be made")
    });
    let (sender, receiver) = mpsc::sync_channel(1);
    RUNTIME.spawn(async move {
        let _ = sender.send(future.await);
    });
    receiver.recv().expect("a session's future does not panic")
}
