//! Both kinds of connection against real servers: the tests' shared one, and clusters of their own for what
//! needs another `pg_hba.conf`, certificates or a shutdown.
//!
//! In: `WALGATE_TEST_PG_URL` and `WALGATE_TEST_PG_BIN` (`make test` sets both). Always: what a test creates
//! or starts is gone after it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio_postgres::SimpleQueryMessage;
use walgate::error::{Error, Result};
use walgate::lsn::Lsn;
use walgate::wal::client::{self, Client};
use walgate::wal::connection::{ReplicationConnection, ReplicationStream, SESSION_SETTINGS};
use walgate::wal::sqlstate::{OBJECT_IN_USE, server_error_of, sqlstate_of};
use walgate::wal::url::ConnectUrl;

const WAIT_MAX: Duration = Duration::from_secs(30);

// ---- the shared server ----

#[tokio::test]
async fn both_sessions_have_the_settings_whatever_the_url_says() {
    let text = format!("{}?options=-c%20datestyle%3DGerman%20-c%20work_mem%3D5MB", shared_url());
    let (mut replication, client) = connect_both(&text).await;
    for (name, value) in [("work_mem", "5MB"), ("application_name", "live")].iter().chain(SESSION_SETTINGS) {
        let sql = format!("SELECT current_setting('{name}')");
        let expected = match *name {
            "datestyle" => "ISO, DMY", // German brought its own order of day and month, ISO ignores it.
            _ => value,
        };
        assert_eq!(replication.query(&sql).await.expect("a row"), [[Some(expected.to_owned())]], "{name}");
        let row = client.query_one(&sql, &[]).await.expect("a row");
        assert_eq!(row.get::<_, String>(0), expected, "{name}");
    }
    assert!(
        replication.parameter("server_version").is_some_and(|version| version.starts_with(char::is_numeric))
    );
}

#[tokio::test]
async fn a_replication_session_answers_commands_and_survives_their_errors() {
    let mut session = replication(&shared_url()).await.expect("connected");
    let identity = session.query("IDENTIFY_SYSTEM").await.expect("an answer");
    assert_eq!(identity.len(), 1);
    let system: u64 =
        identity[0][0].as_deref().and_then(|text| text.parse().ok()).expect("a system identifier");
    assert!(system > 0);
    assert!(identity[0][2].as_deref().is_some_and(|text| text.parse::<Lsn>().is_ok()));

    let error = session.query("SELECT * FROM no_such_table").await.expect_err("no table");
    assert!(error.is_definite());
    assert_eq!(sqlstate_of(&error), Some("42P01"));
    let rows = session
        .query("SELECT 1, NULL, 'ä' UNION ALL SELECT 2, '', '' ORDER BY 1")
        .await
        .expect("still usable");
    assert_eq!(rows[0], [Some("1".to_owned()), None, Some("ä".to_owned())]);
    assert_eq!(rows[1], [Some("2".to_owned()), Some(String::new()), Some(String::new())]);
    let first = session.query("SELECT 'a'; SELECT 'b'").await.expect("two sets");
    assert_eq!(first, [[Some("a".to_owned())]]);
}

#[tokio::test]
async fn an_abandoned_command_spoils_the_session_and_no_answer_is_mixed_up() {
    let mut session = replication(&shared_url()).await.expect("connected");
    let slow =
        tokio::time::timeout(Duration::from_millis(20), session.query("SELECT 'old', pg_sleep(0.2)")).await;
    assert!(slow.is_err());
    let error = session.query("SELECT 'new'").await.expect_err("the session is spoilt");
    assert!(!error.is_definite() && error.to_string().contains("abandoned"), "{error}");
}

#[tokio::test]
async fn a_stream_brings_the_frames_of_an_insert() {
    let test = Subject::new("live_insert").await;
    let mut stream = test.stream().await;
    test.sql("INSERT INTO walgate_live_insert VALUES (1, 'one'), (2, repeat('x', 300000))").await;
    let mut tags = Vec::new();
    let mut large_bytes = 0;
    while tags.last() != Some(&b'C') {
        let message = next_change(&mut stream).await.expect("a change");
        tags.push(message[0]);
        large_bytes = large_bytes.max(message.len());
    }
    assert_eq!(String::from_utf8_lossy(&tags), "BRIIC");
    assert!(large_bytes > 300_000);
    let begun = tokio::time::Instant::now();
    stream.close().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Closing waited for the walsender: the slot is free.
    let mut again = replication(&shared_url()).await.expect("connected");
    again.query(&format!("DROP_REPLICATION_SLOT {}", test.slot)).await.expect("nobody uses the slot");
    test.create_slot().await;
    test.clean().await;
}

#[tokio::test]
async fn a_slot_that_is_missing_is_definite_and_one_in_use_is_transient() {
    let test = Subject::new("live_in_use").await;
    let stream = test.stream().await;
    let session = replication(&shared_url()).await.expect("connected");
    let error = start(session, &test.slot, &test.publication).await.map(drop).expect_err("in use");
    assert_eq!(sqlstate_of(&error), Some(OBJECT_IN_USE));
    assert!(!error.is_definite() && error.to_string().contains(&test.slot), "{error}");
    stream.close().await;

    let session = replication(&shared_url()).await.expect("connected");
    let error = start(session, "walgate_no_such_slot", "p").await.map(drop).expect_err("no slot");
    assert_eq!(sqlstate_of(&error), Some("42704"));
    assert!(error.is_definite());
    test.clean().await;
}

#[tokio::test]
async fn a_terminated_walsender_says_57p01_and_so_does_a_terminated_client() {
    let test = Subject::new("live_terminate").await;
    let mut stream = test.stream().await;
    let victim = client::connect(&parse(&shared_url()), "victim").await.expect("connected");
    let pid = simple_value(&victim, "SELECT pg_backend_pid()").await;
    test.sql(&format!(
        "SELECT pg_terminate_backend(active_pid), pg_terminate_backend({pid})
         FROM pg_replication_slots WHERE slot_name = '{}'",
        test.slot
    ))
    .await;
    let error = loop {
        if let Err(error) = next_change(&mut stream).await {
            break error;
        }
    };
    assert_eq!(sqlstate_of(&error), Some("57P01"));
    assert!(!error.is_definite());
    let end = tokio::time::timeout(WAIT_MAX, victim.ended()).await.expect("the client hears of it");
    assert_eq!(sqlstate_of(&end), Some("57P01"));
    assert!(!end.is_definite());
    wait_for("the client to be closed", async || victim.is_closed().then_some(())).await;
    test.clean().await;
}

#[tokio::test]
async fn a_temporary_slot_exports_its_snapshot() {
    let mut session = replication(&shared_url()).await.expect("connected");
    let sql = "CREATE_REPLICATION_SLOT walgate_live_temporary TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT";
    let rows = session.query(sql).await.expect("a slot");
    assert_eq!(rows[0][0].as_deref(), Some("walgate_live_temporary"));
    assert!(rows[0][1].as_deref().is_some_and(|text| text.parse::<Lsn>().is_ok()));
    assert!(rows[0][2].is_some(), "the snapshot's name");
}

#[tokio::test]
async fn errors_of_statements_are_classified() {
    let client = client::connect(&parse(&shared_url()), "live").await.expect("connected");
    let error = client.query("SELECT 1 / 0", &[]).await.map_err(client::classify).expect_err("division");
    assert!(error.is_definite());
    assert_eq!(server_error_of(&error).map(|answer| answer.message.as_str()), Some("division by zero"));
    let error =
        client.query("SELECT 1::int", &[&"text"]).await.map_err(client::classify).expect_err("parameters");
    assert_eq!(sqlstate_of(&error), None);
    let error =
        client.query("SELECT $1::int4", &[&"text"]).await.map_err(client::classify).expect_err("a text");
    assert!(error.is_definite(), "{}", error.chain());
    let error =
        client.query_one("SELECT WHERE false", &[]).await.map_err(client::classify).expect_err("no row");
    assert!(error.to_string().contains("number of rows"), "{error}");
}

// ---- clusters of their own ----

#[tokio::test]
async fn authentication_and_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::write(folder.path());
    let cluster = Cluster::start("replica", |data| certificates.install(data));
    let (port, sockets) = (cluster.port, cluster.folder.display().to_string());
    let socket = |database: &str| format!("postgres://postgres@/{database}?host={sockets}&port={port}");

    let admin =
        client::connect(&parse(&socket("postgres")), "admin").await.expect("trust over the Unix socket");
    admin
        .batch_execute(
            "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'sesam öffne';
             CREATE ROLE plain LOGIN PASSWORD 'p';
             CREATE ROLE clear LOGIN REPLICATION PASSWORD 'p';
             CREATE ROLE certified LOGIN REPLICATION;
             SET password_encryption = 'md5';
             CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'p'",
        )
        .await
        .expect("roles");
    admin.batch_execute("CREATE DATABASE tls_only").await.expect("a database");
    admin.batch_execute("CREATE DATABASE clear_only").await.expect("a database");

    let at =
        |credentials: &str, host: &str, rest: &str| format!("postgres://{credentials}@{host}:{port}/{rest}");
    let ca = folder.path().join("ca.pem").display().to_string();
    let other_ca = folder.path().join("other.pem").display().to_string();
    let client_files = format!("sslcert={0}/client.pem&sslkey={0}/client.key", folder.path().display());
    let scram = "scram:sesam%20%C3%B6ffne";

    // What works, and whether it is encrypted.
    for (url, encrypted) in [
        (socket("postgres"), false),
        (socket("postgres") + "&sslmode=verify-full", false),
        (at(scram, "127.0.0.1", "postgres"), true),
        (at(scram, "127.0.0.1", "postgres?sslmode=disable"), false),
        (at(scram, "127.0.0.1", "postgres?sslmode=allow"), false),
        (at(scram, "127.0.0.1", "tls_only?sslmode=allow"), true),
        (at(scram, "127.0.0.1", "clear_only?sslmode=prefer"), false),
        (at(scram, "127.0.0.1", "tls_only?sslmode=require"), true),
        (at(scram, "127.0.0.1", "tls_only?sslmode=require&channel_binding=require"), true),
        (at(scram, "127.0.0.1", "tls_only?sslmode=require&channel_binding=disable"), true),
        (at(scram, "127.0.0.1", &format!("postgres?sslmode=verify-ca&sslrootcert={ca}")), true),
        (at(scram, "localhost", &format!("postgres?sslmode=verify-full&sslrootcert={ca}")), true),
        (at("hashed:p", "127.0.0.1", "postgres?sslmode=disable"), false),
        (at("clear:p", "127.0.0.1", "postgres?sslmode=require"), true),
        (at("certified", "127.0.0.1", &format!("postgres?sslmode=require&{client_files}")), true),
    ] {
        let (mut replication, client) = connect_both(&url).await;
        let sql = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert_eq!(replication.query(sql).await.expect("a row"), [[Some(encrypted.to_string())]], "{url}");
        assert_eq!(replication.is_encrypted(), encrypted, "{url}");
        let row = client.query_one(sql, &[]).await.expect("a row");
        assert_eq!(row.get::<_, String>(0), encrypted.to_string(), "{url}");
    }

    // What does not, by either kind: the SQLSTATE, a word of the message chain and one of the remedy.
    let mismatch = format!("postgres?sslmode=verify-full&sslrootcert={ca}");
    let stranger = format!("postgres?sslmode=verify-ca&sslrootcert={other_ca}");
    for (url, code, says, hint) in [
        (at("scram:wrong", "127.0.0.1", "postgres"), Some("28P01"), "password", "PGPASSWORD"),
        (
            at("hashed:wrong", "127.0.0.1", "postgres?sslmode=disable"),
            Some("28P01"),
            "password",
            "PGPASSWORD",
        ),
        (at("clear:wrong", "127.0.0.1", "postgres?sslmode=require"), Some("28P01"), "password", "PGPASSWORD"),
        (at("scram", "127.0.0.1", "postgres"), None, "there is none", "PGPASSWORD"),
        (at("hashed", "127.0.0.1", "postgres?sslmode=disable"), None, "there is none", "PGPASSWORD"),
        (at(scram, "127.0.0.1", "no_such"), Some("3D000"), "does not exist", "create the database"),
        (at("nobody:p", "127.0.0.1", "postgres"), Some("28P01"), "password", "PGPASSWORD"),
        (
            at(scram, "127.0.0.1", "tls_only?sslmode=disable"),
            Some("28000"),
            "no encryption",
            "sslmode=require",
        ),
        (at(scram, "127.0.0.1", "clear_only?sslmode=require"), Some("28000"), "pg_hba.conf", "pg_hba.conf"),
        (at(scram, "127.0.0.1", &mismatch), None, "not valid for name", "subjectAltName"),
        (at(scram, "127.0.0.1", &stranger), None, "UnknownIssuer", "sslrootcert"),
        (
            at(scram, "127.0.0.1", "postgres?sslmode=disable&channel_binding=require"),
            None,
            "channel binding",
            "sslmode",
        ),
        (at("clear:p", "127.0.0.1", "postgres?channel_binding=require"), None, "channel binding", "scram"),
        (at("certified", "127.0.0.1", "postgres?sslmode=require"), Some("28000"), "certificate", ""),
    ] {
        for error in refused_both(&url).await {
            let told = format!("{url}: {} [{}]", error.chain(), error.hint().unwrap_or_default());
            assert!(error.is_definite(), "{told}");
            assert_eq!(sqlstate_of(&error), code, "{told}");
            assert!(error.chain().contains(says), "{told}");
            assert!(error.hint().unwrap_or_default().contains(hint), "{told}");
            assert!(!told.replace(&url, "").contains("wrong"), "{told}");
        }
    }

    // A message of many TLS records, larger than the receive buffer.
    let mut session =
        replication(&at(scram, "127.0.0.1", "tls_only?sslmode=require")).await.expect("connected");
    let rows = session.query("SELECT repeat('x', 9000000)").await.expect("a row");
    assert_eq!(rows[0][0].as_ref().map(String::len), Some(9_000_000));

    // Without the attribute REPLICATION only the ordinary session is granted.
    let plain = at("plain:p", "127.0.0.1", "postgres");
    client::connect(&parse(&plain), "live").await.expect("an ordinary session");
    let error = replication(&plain).await.map(drop).expect_err("no REPLICATION");
    assert_eq!(sqlstate_of(&error), Some("42501"));
    assert!(error.is_definite() && error.hint().is_some_and(|hint| hint.contains("ALTER ROLE")), "{error}");

    // wal_level = replica: no logical slot.
    let mut session = replication(&socket("postgres")).await.expect("connected");
    let sql = "CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL pgoutput";
    let error = session.query(sql).await.map(drop).expect_err("wal_level");
    assert_eq!(sqlstate_of(&error), Some("55000"));
    assert!(error.is_definite() && error.hint().is_some_and(|hint| hint.contains("wal_level")), "{error}");

    // A server without TLS.
    admin.batch_execute("ALTER SYSTEM SET ssl = off").await.expect("set");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloaded");
    let demanding = at(scram, "127.0.0.1", "postgres?sslmode=require");
    let refused = wait_for("the server to refuse TLS", async || replication(&demanding).await.err()).await;
    assert!(
        refused.is_definite() && refused.hint().is_some_and(|hint| hint.contains("ssl = on")),
        "{refused}"
    );
    let (replication, _client) = connect_both(&at(scram, "127.0.0.1", "postgres?sslmode=prefer")).await;
    assert!(!replication.is_encrypted());
}

#[tokio::test]
async fn a_self_signed_certificate_in_sslrootcert_is_trusted_as_libpq_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::write_self_signed(folder.path());
    let cluster = Cluster::start("replica", |data| certificates.install(data));
    let at = |host: &str, mode: &str| {
        let root = folder.path().join("server.pem").display().to_string();
        format!("postgres://postgres@{host}:{}/certified?sslmode={mode}&sslrootcert={root}", cluster.port)
    };
    // pg_hba.conf refuses the role: whoever hears that has trusted the certificate.
    for (host, mode) in [("127.0.0.1", "require"), ("127.0.0.1", "verify-ca"), ("localhost", "verify-full")] {
        for error in refused_both(&at(host, mode)).await {
            assert_eq!(sqlstate_of(&error), None, "{}", error.chain());
            assert!(error.to_string().contains("there is none"), "{mode}: {}", error.chain());
        }
    }
    for error in refused_both(&at("127.0.0.1", "verify-full")).await {
        assert!(error.is_definite() && error.chain().contains("not valid for name"), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_shutdown_ends_every_session_with_a_transient_error() {
    let cluster = Cluster::start("logical", |_| {});
    let url =
        format!("postgres://postgres@/postgres?host={}&port={}", cluster.folder.display(), cluster.port);
    let client = client::connect(&parse(&url), "live").await.expect("connected");
    client.batch_execute("CREATE PUBLICATION p FOR ALL TABLES").await.expect("a publication");
    let mut session = replication(&url).await.expect("connected");
    session.query("CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL pgoutput").await.expect("a slot");
    let mut idle = replication(&url).await.expect("connected");
    let mut stream = start(session, "s", "p").await.expect("a stream");

    let stopping = cluster.stop_in_background();
    let end = tokio::time::timeout(WAIT_MAX, client.ended()).await.expect("the client hears of it");
    assert_eq!(sqlstate_of(&end), Some("57P01"));
    // The walsender goes last: it waits until we confirm what it has sent, then ends the stream.
    let error = loop {
        let payload = match next_payload(&mut stream).await {
            Ok(payload) => payload,
            Err(error) => break error,
        };
        if payload[0] == b'k' {
            let mut status = vec![b'r'];
            for _ in 0..3 {
                status.extend_from_slice(&payload[1..9]);
            }
            status.extend_from_slice(&[0; 9]);
            if let Err(error) = stream.send_copy_data(&status).await {
                break error;
            }
        }
    };
    assert!(!error.is_definite(), "{}", error.chain());
    assert!(error.to_string().contains("shuts down"), "{}", error.chain());
    stream.close().await;
    stopping.join().expect("stopped");
    let error = idle.query("IDENTIFY_SYSTEM").await.expect_err("the server is gone");
    assert!(!error.is_definite(), "{}", error.chain());

    for error in refused_both(&url).await {
        assert!(!error.is_definite(), "{}", error.chain());
        assert!(error.hint().is_some_and(|hint| hint.contains("running")), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    for error in refused_both(&format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1")).await {
        assert!(!error.is_definite() && error.to_string().contains("within 1 s"), "{error}");
    }
}

// ---- help ----

/// A table, its publication and its slot on the shared server.
struct Subject {
    name: String,
    slot: String,
    publication: String,
    client: Client,
}

impl Subject {
    async fn new(name: &str) -> Self {
        let client = client::connect(&parse(&shared_url()), "live").await.expect("connected");
        let test = Subject {
            name: format!("public.walgate_{name}"),
            slot: format!("walgate_{name}_{}", std::process::id()),
            publication: format!("walgate_{name}"),
            client,
        };
        test.sql(&format!("DROP PUBLICATION IF EXISTS {}", test.publication)).await;
        test.sql(&format!("DROP TABLE IF EXISTS {}", test.name)).await;
        test.sql(&format!("CREATE TABLE {} (id int PRIMARY KEY, name text)", test.name)).await;
        test.sql(&format!("CREATE PUBLICATION {} FOR TABLE {}", test.publication, test.name)).await;
        test.create_slot().await;
        test
    }

    async fn create_slot(&self) {
        self.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", self.slot)).await;
    }

    async fn stream(&self) -> ReplicationStream {
        let session = replication(&shared_url()).await.expect("connected");
        start(session, &self.slot, &self.publication).await.expect("a stream")
    }

    async fn sql(&self, sql: &str) {
        let sql = sql.replace("INTO walgate_", "INTO public.walgate_");
        self.client.batch_execute(&sql).await.map_err(client::classify).unwrap_or_else(|error| {
            panic!("{sql}: {}", error.chain());
        });
    }

    async fn clean(self) {
        let sql = format!("SELECT pg_drop_replication_slot('{}')", self.slot);
        wait_for("the slot to be free", async || self.client.batch_execute(&sql).await.ok()).await;
        self.sql(&format!("DROP PUBLICATION {}", self.publication)).await;
        self.sql(&format!("DROP TABLE {}", self.name)).await;
    }
}

fn shared_url() -> String {
    variable("WALGATE_TEST_PG_URL")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run make test"))
}

fn parse(url: &str) -> ConnectUrl {
    ConnectUrl::parse(url, |_| None).unwrap_or_else(|error| panic!("{url}: {error}"))
}

async fn replication(url: &str) -> Result<ReplicationConnection> {
    ReplicationConnection::connect(&parse(url), "live").await
}

async fn connect_both(url: &str) -> (ReplicationConnection, Client) {
    let fail = |error: Error| -> ! { panic!("{url}: {} [{:?}]", error.chain(), error.hint()) };
    let replication = replication(url).await.unwrap_or_else(|error| fail(error));
    let client = client::connect(&parse(url), "live").await.unwrap_or_else(|error| fail(error));
    (replication, client)
}

async fn refused_both(url: &str) -> [Error; 2] {
    [
        replication(url).await.map(drop).expect_err(url),
        client::connect(&parse(url), "live").await.map(drop).expect_err(url),
    ]
}

async fn start(session: ReplicationConnection, slot: &str, publication: &str) -> Result<ReplicationStream> {
    let options = [("proto_version", "1"), ("publication_names", publication), ("messages", "true")];
    session.start_replication(slot, Lsn::ZERO, &options).await
}

/// The payload of the next CopyData.
async fn next_payload(stream: &mut ReplicationStream) -> Result<Vec<u8>> {
    loop {
        if let Some(payload) = stream.next_frame()? {
            return Ok(payload.to_vec());
        }
        tokio::time::timeout(WAIT_MAX, stream.fill()).await.expect("the server sends something")?;
    }
}

/// The next pgoutput message, keepalives skipped.
async fn next_change(stream: &mut ReplicationStream) -> Result<Vec<u8>> {
    loop {
        let payload = next_payload(stream).await?;
        if payload[0] == b'w' {
            return Ok(payload[25..].to_vec());
        }
    }
}

/// One value by a simple query: dropping a prepared statement sends a Close, whose answer the connection
/// would still wait for when the server ends it, and then the server's word goes to nobody.
async fn simple_value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.expect("an answer");
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.expect("a value").to_owned()
}

async fn wait_for<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        if let Some(value) = poll().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < give_up, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// PEM files in a folder: `server.pem`, `server.key`, `ca.pem`, `other.pem`, `client.pem`, `client.key`.
struct Certificates(PathBuf);

impl Certificates {
    /// An authority, a server `localhost` and a client `certified` signed by it, and another authority.
    fn write(folder: &Path) -> Self {
        let authority = |name: &str| {
            let mut params = named(name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
        };
        let (ca, other) = (authority("the tests' authority"), authority("a stranger"));
        for (file, params) in
            [("server", named("server", &["localhost"])), ("client", named("certified", &[]))]
        {
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &ca).expect("a certificate");
            write(&folder.join(format!("{file}.pem")), &certificate.pem());
            write(&folder.join(format!("{file}.key")), &key.serialize_pem());
        }
        write(&folder.join("ca.pem"), &ca.pem());
        write(&folder.join("other.pem"), &other.pem());
        Certificates(folder.to_owned())
    }

    /// A server's certificate that is its own authority, as PostgreSQL's manual makes one.
    fn write_self_signed(folder: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = named("server", &["localhost"]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        write(&folder.join("server.pem"), &pem);
        write(&folder.join("ca.pem"), &pem);
        write(&folder.join("server.key"), &key.serialize_pem());
        Certificates(folder.to_owned())
    }

    /// Copies the server's files into its data directory, and turns TLS on with a `pg_hba.conf` to test.
    fn install(&self, data: &Path) {
        for file in ["server.pem", "server.key", "ca.pem"] {
            let text = std::fs::read_to_string(self.0.join(file)).expect("written before");
            write(&data.join(file), &text);
            run(Command::new("chmod").arg("600").arg(data.join(file)));
            run(Command::new("chown").arg("--reference").arg(data).arg(data.join(file)));
        }
        append(
            &data.join("postgresql.conf"),
            "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.pem'\n",
        );
        write(
            &data.join("pg_hba.conf"),
            "local     all        all       trust\n\
             hostssl   all        certified samehost cert\n\
             host      all        hashed    samehost md5\n\
             hostssl   all        clear     samehost password\n\
             hostssl   tls_only   all       samehost scram-sha-256\n\
             host      tls_only   all       samehost reject\n\
             hostnossl clear_only all       samehost scram-sha-256\n\
             host      clear_only all       samehost reject\n\
             host      all        all       samehost scram-sha-256\n",
        );
    }
}

fn named(common_name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts).expect("names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// A cluster of its own, in a folder of who may run a server; stopped and removed on drop.
struct Cluster {
    folder: PathBuf,
    port: u16,
}

impl Cluster {
    fn start(wal_level: &str, prepare: impl FnOnce(&Path)) -> Self {
        let parent = std::env::var("WALGATE_TEST_DIR").unwrap_or_else(|_| "/tmp".to_owned());
        let folder = run(as_postgres("mktemp").arg("-d").arg(format!("{parent}/connection.XXXXXX")));
        let cluster = Cluster { folder: folder.trim().into(), port: free_port() };
        let data = cluster.folder.join("data");
        run(as_postgres(program("initdb")).arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--auth-host=scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]));
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nwal_level = {wal_level}\n",
            cluster.port,
            cluster.folder.display()
        );
        append(&data.join("postgresql.conf"), &(settings + "shared_buffers = 16MB\n"));
        prepare(&data);
        let mut start = cluster.pg_ctl("start");
        start.args(["-w", "-t", "60", "-s", "-l"]).arg(cluster.folder.join("log"));
        // The server keeps the standard streams of pg_ctl: with pipes we would wait for its end.
        let status = start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let log = || std::fs::read_to_string(cluster.folder.join("log")).unwrap_or_default();
        assert!(status.is_ok_and(|status| status.success()), "{}", log());
        cluster
    }

    fn stop_in_background(&self) -> std::thread::JoinHandle<()> {
        let mut stop = self.pg_ctl("stop");
        stop.args(["-w", "-t", "60", "-m", "fast"]);
        std::thread::spawn(move || {
            run(&mut stop);
        })
    }

    fn pg_ctl(&self, action: &str) -> Command {
        let mut command = as_postgres(program("pg_ctl"));
        command.arg(action).arg("-D").arg(self.folder.join("data"));
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.pg_ctl("stop").args(["-w", "-t", "20", "-m", "immediate"]).output();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn program(name: &str) -> PathBuf {
    PathBuf::from(variable("WALGATE_TEST_PG_BIN")).join(name)
}

fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..20_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// PostgreSQL refuses to be root.
fn as_postgres(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let is_root = run(Command::new("id").arg("-u")).trim() == "0";
    let mut command = Command::new(if is_root { "runuser".as_ref() } else { program.as_ref() });
    if is_root {
        command.args(["-u", "postgres", "--"]).arg(program);
    }
    command.env("LC_ALL", "C.UTF-8").current_dir("/");
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn append(path: &Path, text: &str) {
    let old = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    write(path, &(old + text));
}
