//! The replica's destination against a real PostgreSQL: batches made by hand, driven through session and sink.
//!
//! Needs `WALGATE_TEST_PG_URL`, a superuser's URL; without it the tests fail. Each owns two databases, a source and a
//! replica, dropped at its end. Cases of CASES.md are named where a test shows one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use walgate::change::Position;
use walgate::config::OnConflict;
use walgate::error::Class;
use walgate::lsn::Lsn;
use walgate::route::batch::{Batch, More, Progress};
use walgate::route::row::{Cell, RowChange, RowOp, Target, TargetColumn, TargetId, Targets};
use walgate::sink::checkpoint::{
    Checkpoint, Identity, Parked, Phase, Shape, ShapeColumn, Stored, TableState,
};
use walgate::sink::replica::{Copier, ReplicaSession, ReplicaSettings, ReplicaSink, forget, peek};
use walgate::sink::{Durable, Inbox, Received, Sink, SinkLimits, Stop};
use walgate::wal::timestamp::Timestamp;
use walgate::wal::url::ConnectUrl;

#[allow(dead_code)]
#[path = "it/support/cluster.rs"]
mod cluster;
#[allow(dead_code)]
#[path = "it/support/servers.rs"]
mod servers;

/// Polls `condition` until it holds.
#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed().as_secs() < 30, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

// ---- databases ------------------------------------------------------------------------------------------

/// The session settings of FIELD_NOTES 2; tokio-postgres sets client_encoding itself.
const SESSION: &str = "-c datestyle=ISO -c intervalstyle=iso_8601 -c extra_float_digits=3 \
                       -c bytea_output=hex -c timezone=UTC -c row_security=off -c client_min_messages=warning";

/// A database with a connection.
struct Db {
    name: String,
    url: String,
    client: Option<Client>,
    runtime: tokio::runtime::Runtime,
}

fn server_url() -> String {
    std::env::var("WALGATE_TEST_PG_URL").expect("WALGATE_TEST_PG_URL is not set: run make test")
}

impl Db {
    fn connect(name: &str, user: &str) -> Db {
        Db::at(&server_url(), name, user)
    }

    fn at(server: &str, name: &str, user: &str) -> Db {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (server, _) = server.rsplit_once('/').unwrap();
        let url = format!("{server}/{name}").replace("postgres://postgres@", &format!("postgres://{user}@"));
        let mut config: Config = url.parse().unwrap();
        config.options(SESSION);
        let client = runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await.expect("PostgreSQL answers");
            tokio::spawn(connection);
            client
        });
        Db { name: name.to_owned(), url, client: Some(client), runtime }
    }

    fn create(server: &str, test: &str) -> Db {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("r_{test}_{:x}_{count}", std::process::id());
        Db::at(server, "postgres", "postgres").exec(&format!("CREATE DATABASE {name} TEMPLATE template0"));
        Db::at(server, &name, "postgres")
    }

    #[track_caller]
    fn exec(&self, sql: &str) {
        let client = self.client.as_ref().unwrap();
        if let Err(error) = self.runtime.block_on(client.batch_execute(sql)) {
            panic!("{error:?}\n{sql}");
        }
    }

    #[track_caller]
    fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let client = self.client.as_ref().unwrap();
        let messages = self
            .runtime
            .block_on(client.simple_query(sql))
            .unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
        let text = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect::<Vec<_>>())
            }
            _ => None,
        };
        messages.into_iter().filter_map(text).collect()
    }

    /// Rows with `|` between values and NULL as `~`.
    #[track_caller]
    fn lines(&self, sql: &str) -> Vec<String> {
        let line = |row: Vec<Option<String>>| {
            row.into_iter().map(|value| value.unwrap_or_else(|| "~".into())).collect::<Vec<_>>().join("|")
        };
        self.rows(sql).into_iter().map(line).collect()
    }

    fn value(&self, sql: &str) -> String {
        self.lines(sql).join(",")
    }

    fn url(&self) -> ConnectUrl {
        ConnectUrl::parse(&self.url, |_| None).unwrap()
    }
}

/// A source and a replica.
struct Pair {
    server: String,
    source: Db,
    replica: Db,
    settings: ReplicaSettings,
    identity: Identity,
}

impl Pair {
    fn new(test: &str) -> Pair {
        Pair::on(&server_url(), test)
    }

    fn on(server: &str, test: &str) -> Pair {
        let source = Db::create(server, &format!("{test}_s"));
        let replica = Db::create(server, &format!("{test}_r"));
        let settings = ReplicaSettings {
            name: "reporting".into(),
            url: replica.url(),
            source_url: source.url(),
            application_name: format!("walgate/{}.slot", source.name),
            pipeline: format!("{}.slot", source.name),
            on_conflict: OnConflict::Apply,
        };
        let identity = identity_of(&source);
        Pair { server: server.to_owned(), source, replica, settings, identity }
    }

    /// Connects anew, after the server was restarted.
    fn reconnect(&mut self) {
        for db in [&mut self.source, &mut self.replica] {
            *db = Db::at(&self.server, &db.name, "postgres");
        }
    }

    fn both(&self, sql: &str) {
        self.source.exec(sql);
        self.replica.exec(sql);
    }

    #[track_caller]
    fn session(&self) -> (ReplicaSession, Stored) {
        ReplicaSession::open(self.settings.clone(), &self.identity)
            .unwrap_or_else(|error| panic!("{}", error.chain()))
    }

    /// A sink that goes on from what is stored, or begins.
    #[track_caller]
    fn run(&self) -> Run {
        self.run_until(Stop::default())
    }

    #[track_caller]
    fn run_until(&self, stop: Stop) -> Run {
        let (mut session, stored) = self.session();
        let checkpoint = stored.checkpoint.unwrap_or_else(|| {
            let mut checkpoint = Checkpoint::pending(self.identity.clone());
            checkpoint.phase = Phase::Streaming;
            session.store(&checkpoint, &[]).expect("stored");
            checkpoint
        });
        let targets = Arc::new(Targets::default());
        let lsn = checkpoint.commit_lsn.0;
        let safe_lsn = checkpoint.safe_lsn;
        let limits = SinkLimits::of(256 << 20);
        let copier = session.copier(targets.clone());
        let sink = session.into_sink(checkpoint, targets.clone(), limits, stop);
        let (sender, batches) = tokio::sync::mpsc::channel(1);
        Run {
            sink,
            copier,
            targets,
            lsn,
            safe_lsn,
            ordinal: 0,
            sequence: 0,
            receipts: Vec::new(),
            batch: Batch::default(),
            inbox: Inbox::new(batches),
            sender,
            looks_ahead: false,
            held: None,
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.source.client = None;
        self.replica.client = None;
        let admin = Db::at(&self.server, "postgres", "postgres");
        for db in [&self.source, &self.replica] {
            let oid = admin.value(&format!("SELECT oid FROM pg_database WHERE datname = '{}'", db.name));
            admin.exec(&format!("DROP DATABASE {} WITH (FORCE)", db.name));
            // The server has few places for them.
            admin.rows(&format!("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname ~ '^walgate.*_{oid}(/copy[0-9]+)?$'"));
        }
    }
}

fn identity_of(db: &Db) -> Identity {
    Identity {
        system_identifier: db.value("SELECT system_identifier FROM pg_control_system()"),
        timeline: 1,
        database_oid: db
            .value("SELECT oid FROM pg_database WHERE datname = current_database()")
            .parse()
            .unwrap(),
        slot: "slot".into(),
        options: "0".into(),
    }
}

// ---- batches --------------------------------------------------------------------------------------------

/// A cell as a test writes it.
#[derive(Clone, Debug, PartialEq)]
enum V {
    T(String),
    N,
    U,
}

impl From<&str> for V {
    fn from(text: &str) -> V {
        V::T(text.into())
    }
}
impl From<String> for V {
    fn from(text: String) -> V {
        V::T(text)
    }
}
impl From<i32> for V {
    fn from(number: i32) -> V {
        V::T(number.to_string())
    }
}

macro_rules! row {
    ($($value:expr),*) => { &[$(V::from($value)),*][..] };
}

/// A running sink, and the batch that is being made for it.
struct Run {
    sink: ReplicaSink,
    copier: Copier,
    targets: Arc<Targets>,
    lsn: u64,
    safe_lsn: Lsn,
    ordinal: u64,
    sequence: u64,
    receipts: Vec<Durable>,
    batch: Batch,
    inbox: Inbox,
    sender: tokio::sync::mpsc::Sender<Batch>,
    /// Batches are given to the sink when the next one waits already.
    looks_ahead: bool,
    held: Option<Batch>,
}

impl Run {
    /// Copies what a query on the source gives by a lane; `meanwhile`: before it commits.
    fn copy(
        &self,
        pair: &Pair,
        target: TargetId,
        query: &str,
        meanwhile: impl FnOnce(),
    ) -> walgate::error::Result<()> {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let mut lane = self.copier.open(1).await?;
            let mut arrival = lane.begin(target).await?;
            let copy = format!("COPY ({query}) TO STDOUT (FORMAT {})", arrival.format());
            let mut rows = pin!(pair.source.client.as_ref().unwrap().copy_out(&copy).await.expect(query));
            while let Some(piece) = rows.next().await {
                arrival.send(piece.expect(query)).await?;
            }
            tokio::task::block_in_place(meanwhile);
            arrival.commit().await
        })
    }

    /// A table of the same name on both sides; columns as `name type`, types of pg_catalog or public.
    fn target(&self, pair: &Pair, name: &str, key: &[&str]) -> TargetId {
        self.renamed(pair, ("public", name), ("public", name), key)
    }

    fn renamed(&self, pair: &Pair, from: (&str, &str), to: (&str, &str), key: &[&str]) -> TargetId {
        let sql = format!(
            "SELECT a.attname, a.atttypid, n.nspname, t.typname, a.attrelid FROM pg_attribute a \
             JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace \
             JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace s ON s.oid = c.relnamespace \
             WHERE s.nspname = '{}' AND c.relname = '{}' AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            from.0.replace('\'', "''"),
            from.1.replace('\'', "''")
        );
        let rows = pair.source.rows(&sql);
        assert!(!rows.is_empty(), "{from:?} is not on the source");
        let text = |row: &Vec<Option<String>>, at: usize| row[at].clone().unwrap();
        let columns: Vec<TargetColumn> = rows
            .iter()
            .map(|row| TargetColumn {
                name: text(row, 0),
                type_oid: text(row, 1).parse().unwrap(),
                type_name: (text(row, 2), text(row, 3)),
            })
            .collect();
        let at = |name: &&str| columns.iter().position(|column| column.name == *name).unwrap();
        self.targets.intern(Target {
            oid: text(&rows[0], 4).parse().unwrap(),
            relation: format!("{}.{}", from.0, from.1),
            schema: to.0.into(),
            name: to.1.into(),
            key: key.iter().map(at).collect(),
            columns,
            is_filtered: false,
        })
    }

    fn cells(&mut self, values: &[V]) -> std::ops::Range<usize> {
        let start = self.batch.rows.cells.len();
        for value in values {
            let cell = match value {
                V::N => Cell::Null,
                V::U => Cell::Unchanged,
                V::T(text) => {
                    let from = self.batch.bytes.len();
                    self.batch.bytes.extend_from_slice(text.as_bytes());
                    Cell::Text(from..self.batch.bytes.len())
                }
            };
            self.batch.rows.cells.push(cell);
        }
        start..self.batch.rows.cells.len()
    }

    fn begin(&mut self) -> &mut Self {
        self.lsn += 0x100;
        self.ordinal = 0;
        self
    }

    fn change(&mut self, target: TargetId, op: RowOp, is_certain: bool, old: &[V], new: &[V]) -> &mut Self {
        self.ordinal += 2;
        let position = Position { commit_lsn: Lsn(self.lsn), ordinal: self.ordinal };
        let (old, new) = (self.cells(old), self.cells(new));
        self.batch.rows.changes.push(RowChange { target, op, position, is_certain, new, old });
        self
    }

    fn insert(&mut self, target: TargetId, new: &[V]) -> &mut Self {
        self.change(target, RowOp::Insert, true, &[], new)
    }

    fn update(&mut self, target: TargetId, new: &[V]) -> &mut Self {
        self.change(target, RowOp::Update, true, &[], new)
    }

    fn rekey(&mut self, target: TargetId, old: &[V], new: &[V]) -> &mut Self {
        self.change(target, RowOp::Update, true, old, new)
    }

    fn upsert(&mut self, target: TargetId, new: &[V]) -> &mut Self {
        self.change(target, RowOp::Upsert, false, &[], new)
    }

    fn delete(&mut self, target: TargetId, old: &[V]) -> &mut Self {
        self.change(target, RowOp::Delete, true, old, &[])
    }

    fn truncate(&mut self, targets: &[TargetId], restart_identity: bool) -> &mut Self {
        let op = RowOp::Truncate { targets: targets.to_vec(), restart_identity };
        self.change(targets[0], op, true, &[], &[])
    }

    /// Ends the source transaction.
    fn end(&mut self) -> &mut Self {
        self.safe_lsn = Lsn(self.lsn + 8);
        let progress = self.progress();
        self.batch.rows.whole = Some((self.batch.rows.changes.len(), progress));
        self
    }

    fn progress(&self) -> Progress {
        Progress {
            phase: Phase::Streaming,
            position: Position { commit_lsn: Lsn(self.lsn), ordinal: self.ordinal },
            safe_lsn: self.safe_lsn,
            xid: 7,
            commit_time: Timestamp(5),
        }
    }

    /// Hands over the batch as it is.
    fn accept(&mut self, more_is_coming: bool) -> walgate::error::Result<()> {
        self.sequence += 1;
        self.batch.sequence = self.sequence;
        self.batch.progress = match self.batch.progress.phase {
            Phase::Snapshot => self.batch.progress,
            _ => self.progress(),
        };
        if self.batch.progress.phase == Phase::Snapshot {
            // Rows of a copy belong to no transaction.
            self.batch.rows.whole = Some((self.batch.rows.changes.len(), self.batch.progress));
        }
        self.batch.more = if more_is_coming || self.looks_ahead { More::Likely } else { More::Unknown };
        let batch = std::mem::take(&mut self.batch);
        if !self.looks_ahead {
            return self.give(&batch);
        }
        let Some(before) = self.held.take() else {
            self.held = Some(batch);
            return Ok(());
        };
        self.sender.try_send(batch).expect("there is room for one");
        let result = self.give(&before);
        let Received::Batch(next) = self.inbox.receive(Some(Duration::ZERO)) else {
            panic!("it was not taken")
        };
        self.held = Some(next);
        result
    }

    fn give(&mut self, batch: &Batch) -> walgate::error::Result<()> {
        self.sink.accept(batch, &mut self.inbox)?;
        self.sink.settle(false, &mut self.receipts)
    }

    fn idle(&mut self) -> walgate::error::Result<()> {
        if let Some(held) = self.held.take() {
            self.give(&held)?;
        }
        self.sink.settle(true, &mut self.receipts)
    }

    /// Ends the transaction and delivers it durably.
    #[track_caller]
    fn deliver(&mut self) {
        self.try_deliver().unwrap_or_else(|error| panic!("{}\n{:?}", error.chain(), error.hint()));
        let last = self.receipts.last().expect("a receipt");
        assert_eq!((last.sequence(), last.safe_lsn()), (self.sequence, self.safe_lsn));
    }

    fn try_deliver(&mut self) -> walgate::error::Result<()> {
        self.end();
        self.accept(false)?;
        self.idle()
    }
}

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, b text)";

// ---- what comes out -------------------------------------------------------------------------------------

#[test]
fn changes_fold_and_arrive() {
    let pair = Pair::new("fold");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin();
    for id in 0..200 {
        run.insert(t, row![id, "a", "big"]);
    }
    run.deliver();
    assert_eq!(pair.replica.value("SELECT count(*), sum(id) FROM t"), "200|19900");
    run.begin()
        .update(t, row![1, "x", V::U])
        .update(t, row![1, V::U, V::N])
        .update(t, row![2, "y", V::U])
        .delete(t, row![2, V::U, V::U])
        .delete(t, row![3, V::U, V::U])
        .insert(t, row![3, "again", "z"])
        .insert(t, row![1000, "new", "n"])
        .update(t, row![1000, "newer", V::U])
        .insert(t, row![1001, "gone", "n"])
        .delete(t, row![1001, V::U, V::U])
        .upsert(t, row![4, "up", V::U])
        .upsert(t, row![1002, "up", ""]);
    run.deliver();
    assert_eq!(
        pair.replica.lines("SELECT * FROM t WHERE id < 6 OR id >= 1000 ORDER BY id"),
        ["0|a|big", "1|x|~", "3|again|z", "4|up|big", "5|a|big", "1000|newer|n", "1002|up|"]
    );
    assert_eq!(pair.replica.value("SELECT count(*) FROM walgate.conflict"), "0");
}

#[test]
fn case_r2_a_key_change_keeps_the_value_that_did_not_change() {
    let pair = Pair::new("rekey");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "a", "toast"]).insert(t, row![2, "b", "other"]);
    run.deliver();
    run.begin().rekey(t, row![1, V::U, V::U], row![10, "moved", V::U]).update(t, row![10, "again", V::U]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM t ORDER BY id"), ["2|b|other", "10|again|toast"]);
    // The replica's row is gone: its value comes from the source.
    pair.replica.exec("DELETE FROM t WHERE id = 2");
    pair.source.exec("INSERT INTO t VALUES (20, 'b', 'of the source')");
    run.begin().rekey(t, row![2, V::U, V::U], row![20, "b2", V::U]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM t ORDER BY id"), ["10|again|toast", "20|b2|of the source"]);
    assert_eq!(pair.replica.value("SELECT kind, key FROM walgate.conflict"), "update_missing|{\"id\":\"2\"}");
    // It is gone at the source as well: its end is still to come.
    run.begin().rekey(t, row![3, V::U, V::U], row![30, "c", V::U]);
    run.deliver();
    assert_eq!(pair.replica.value("SELECT count(*) FROM t WHERE id = 30"), "0");
}

#[test]
fn unchanged_values_of_missing_rows_come_from_the_source() {
    let pair = Pair::new("fetch");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    pair.source.exec("INSERT INTO t VALUES (1, 'a', 'toast''1'), (2, 'b', NULL), (3, 'c', 'three\\')");
    run.begin()
        .upsert(t, row![1, "a", V::U])
        .change(t, RowOp::Insert, true, &[], row![2, "b", V::U])
        .upsert(t, row![4, "not there", V::U])
        .update(t, row![3, "c", V::U]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM t ORDER BY id"), ["1|a|toast'1", "2|b|~", "3|c|three\\"]);
    // A row that left the filter and came back: what it had is no longer known.
    pair.source.exec("UPDATE t SET b = 'changed outside' WHERE id = 1");
    run.begin().change(t, RowOp::Delete, false, row![1, V::U, V::U], &[]).change(
        t,
        RowOp::Insert,
        true,
        &[],
        row![1, "back", V::U],
    );
    run.deliver();
    assert_eq!(pair.replica.value("SELECT * FROM t WHERE id = 1"), "1|back|changed outside");
}

#[test]
fn values_that_move_between_rows_of_a_unique_index_are_applied_in_order() {
    let pair = Pair::new("swap");
    pair.both("CREATE TABLE t (id int PRIMARY KEY, a int UNIQUE, b text)");
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, 1, "x"]).insert(t, row![2, 2, "y"]);
    run.deliver();
    run.begin()
        .update(t, row![1, 0, V::U])
        .update(t, row![2, 1, V::U])
        .update(t, row![1, 2, V::U])
        .delete(t, row![2, V::U, V::U])
        .insert(t, row![3, 1, "z"]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM t ORDER BY id"), ["1|2|x", "3|1|z"]);
    // A row of the replica's own is in the way.
    pair.replica.exec("INSERT INTO t VALUES (100, 7, 'local')");
    run.begin().insert(t, row![4, 7, "z"]);
    let error = run.try_deliver().expect_err("a unique violation");
    assert_eq!(error.class(), Class::Definite);
    assert!(
        error.chain().contains("public.t, key (id) = (4)") && error.chain().contains("t_a_key"),
        "{}",
        error.chain()
    );
}

#[test]
fn a_transaction_is_seen_as_a_whole() {
    let pair = Pair::new("whole");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    let count = || pair.replica.value("SELECT count(*) FROM t");
    // A whole one, and the beginning of the next, in one batch.
    run.begin().insert(t, row![1, "a", "b"]).end();
    run.begin().insert(t, row![2, "a", "b"]);
    run.accept(true).expect("accepted");
    assert_eq!((count().as_str(), run.receipts.len()), ("1", 0));
    // The middle.
    run.insert(t, row![3, "a", "b"]);
    run.accept(true).expect("accepted");
    run.idle().expect("nothing to do");
    assert_eq!((count().as_str(), run.receipts.len()), ("1", 0));
    // Its end alone, and a third one.
    run.end();
    run.begin().insert(t, row![4, "a", "b"]);
    run.accept(true).expect("accepted");
    assert_eq!(count(), "3");
    run.deliver();
    assert_eq!(count(), "4");
    assert_eq!(run.receipts.iter().map(Durable::sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let stored = peek(&pair.settings).expect("stored").checkpoint.expect("a checkpoint");
    assert_eq!((stored.commit_lsn, stored.safe_lsn, stored.xid), (Lsn(run.lsn), run.safe_lsn, 7));
    assert!(!stored.is_inside_transaction());
}

#[test]
fn groups_are_committed_first_and_receipts_follow_a_synchronous_commit() {
    let pair = Pair::new("groups");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    let confirmed = || pair.replica.value("SELECT confirmed_at FROM walgate.checkpoint");
    let before = confirmed();
    for id in 0..3 {
        run.begin().insert(t, row![id, "a", "b"]).end();
        run.accept(true).expect("accepted");
    }
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "0", "committed although more is coming");
    run.begin().insert(t, row![9, "a", "b"]).end();
    run.accept(false).expect("accepted");
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "4");
    assert_eq!(confirmed(), before, "confirmed with the group");
    assert!(run.receipts.is_empty());
    run.idle().expect("confirmed");
    assert_ne!(confirmed(), before);
    assert_eq!(run.receipts.len(), 4);
    // A keepalive: nothing but progress.
    run.receipts.clear();
    run.lsn += 0x1000;
    run.ordinal = 0;
    run.safe_lsn = Lsn(run.lsn);
    run.batch.rows.whole = Some((0, run.progress()));
    run.accept(false).expect("accepted");
    assert!(run.sink.patience().is_some());
    run.idle().expect("confirmed");
    assert_eq!(run.receipts.first().map(Durable::safe_lsn), Some(run.safe_lsn));
    assert_eq!(peek(&pair.settings).unwrap().checkpoint.unwrap().safe_lsn, run.safe_lsn);
    assert!(run.sink.patience().is_none());
}

#[test]
fn a_batch_without_changes_is_no_end_of_a_transaction() {
    let pair = Pair::new("noend");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "a", "b"]);
    run.deliver();
    let stored = || peek(&pair.settings).expect("stored").checkpoint;
    let before = stored();
    // The first changes of the next transaction are none of ours: nothing of it is open here, and it has not ended.
    run.begin().ordinal = 8;
    run.accept(false).expect("accepted");
    run.idle().expect("nothing to confirm");
    assert_eq!(stored(), before, "a position inside of a transaction was stored");
    run.change(t, RowOp::Insert, true, &[], row![2, "a", "b"]);
    run.deliver();
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "2");
}

#[test]
fn receipts_come_although_every_batch_ends_inside_a_transaction() {
    let pair = Pair::new("tails");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    let began = std::time::Instant::now();
    run.begin();
    let mut id = 0;
    while run.receipts.is_empty() {
        assert!(began.elapsed().as_secs() < 10, "no receipt under load");
        run.insert(t, row![id, "a", "b"]).end();
        run.begin().insert(t, row![id + 1, "a", "b"]);
        run.accept(true).expect("accepted");
        id += 2;
    }
    // What has a receipt is stored; the batch that was handed over last has none.
    let stored = peek(&pair.settings).expect("stored").checkpoint.expect("a checkpoint");
    let last = run.receipts.last().expect("one");
    assert!(stored.safe_lsn >= last.safe_lsn() && last.sequence() < run.sequence);
}

#[test]
fn a_successor_fences_who_was_before() {
    let pair = Pair::new("fence");
    pair.both(T);
    // Under another name, as from a host whose session cannot be ended.
    let mut first = pair.run();
    let t = first.target(&pair, "t", &["id"]);
    first.begin().insert(t, row![1, "a", "b"]);
    first.deliver();
    let mut other = pair.settings.clone();
    other.application_name = "walgate/other".into();
    let (mut second, stored) = ReplicaSession::open(other, &pair.identity).expect("opened");
    first.begin().insert(t, row![2, "a", "b"]);
    let error = first.try_deliver().expect_err("fenced");
    assert_eq!(error.class(), Class::Fenced, "{}", error.chain());
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "1");
    // A record that another has replaced is not replaced again, with the same epoch or not.
    let mut checkpoint = stored.checkpoint.expect("a checkpoint");
    pair.replica.exec("UPDATE walgate.checkpoint SET ordinal = ordinal + 1");
    checkpoint.safe_lsn = Lsn(checkpoint.safe_lsn.0 + 1);
    assert_eq!(second.store(&checkpoint, &[]).expect_err("replaced").class(), Class::Fenced);
}

/// A lane whose pipeline was taken over commits nothing, though nobody ends its session.
#[test]
fn a_successor_fences_the_lanes_of_a_copy() {
    let pair = Pair::new("lanes");
    pair.both(T);
    let run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.copy(&pair, t, "SELECT 1, 'a'::text, 'b'::text", || {}).expect("copied");
    let next = "UPDATE walgate.checkpoint SET epoch = epoch + 1";
    let other = Db::at(&pair.server, &pair.replica.name, "postgres");
    let error =
        run.copy(&pair, t, "SELECT 2, 'a'::text, 'b'::text", || other.exec(next)).expect_err("fenced");
    assert_eq!(error.class(), Class::Fenced, "{}", error.chain());
    let error = run.copy(&pair, t, "SELECT 3, 'a'::text, 'b'::text", || {}).expect_err("fenced");
    assert!(error.chain().contains("has taken over"), "{}", error.chain());
    wait_until("the lanes to go", || {
        pair.replica.value("SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass") == "0"
    });
    assert_eq!(pair.replica.lines("SELECT id FROM t"), ["1"]);
}

/// While a lane commits, nobody can take the next epoch: who comes finds its rows, or it finds who came.
#[test]
fn a_successor_waits_for_a_lane_that_has_looked() {
    let pair = Pair::new("lanewait");
    pair.both("CREATE TABLE t (id int PRIMARY KEY, a text, b text)");
    // At its commit a row waits for a lock, behind the look at the epoch.
    pair.replica.exec(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait();
         ALTER TABLE t ENABLE ALWAYS TRIGGER waits; SELECT pg_advisory_lock(77)",
    );
    let run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    let other = Db::at(&pair.server, &pair.replica.name, "postgres");
    std::thread::scope(|scope| {
        let copied = scope.spawn(|| run.copy(&pair, t, "SELECT 1, 'a'::text, 'b'::text", || {}));
        let waiting = |event: &str| {
            other.value(&format!("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = '{event}'")) == "1"
        };
        wait_until("the lane to commit", || waiting("advisory"));
        let successor = scope.spawn(|| {
            let third = Db::at(&pair.server, &pair.replica.name, "postgres");
            third.exec("UPDATE walgate.checkpoint SET epoch = epoch + 1");
            third.value("SELECT count(*) FROM t")
        });
        wait_until("the successor to wait for it", || waiting("transactionid"));
        pair.replica.exec("SELECT pg_advisory_unlock(77)");
        copied.join().expect("it ends").expect("committed");
        assert_eq!(successor.join().expect("it ends"), "1");
    });
}

#[test]
fn a_successor_ends_the_session_that_holds_locks() {
    let pair = Pair::new("successor");
    pair.both(T);
    let mut first = pair.run();
    let t = first.target(&pair, "t", &["id"]);
    first.begin().insert(t, row![1, "a", "b"]);
    first.accept(true).expect("accepted");
    // The first holds an open transaction with a row; the second writes the same key at once.
    let mut second = pair.run();
    let t2 = second.target(&pair, "t", &["id"]);
    second.begin().insert(t2, row![1, "second", "b"]);
    second.deliver();
    first.insert(t, row![2, "a", "b"]);
    let error = first.try_deliver().expect_err("its session was ended");
    assert_eq!(error.class(), Class::Transient, "{}", error.chain());
    assert_eq!(pair.replica.lines("SELECT * FROM t"), ["1|second|b"]);
}

#[test]
fn a_sink_that_is_dropped_in_the_middle_leaves_whole_transactions() {
    let pair = Pair::new("crash");
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "a", "b"]).end();
    run.begin().insert(t, row![2, "a", "b"]);
    run.accept(true).expect("accepted");
    let (lsn, safe_lsn) = (run.lsn - 0x100, run.safe_lsn);
    drop(run);
    let stored = pair.session().1.checkpoint.expect("a checkpoint");
    assert_eq!((stored.commit_lsn, stored.safe_lsn), (Lsn(lsn), safe_lsn));
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "1");
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![2, "a", "b"]);
    run.deliver();
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "2");
}

#[test]
fn conflicts_follow_the_policy() {
    for (policy, expected) in [
        (OnConflict::Apply, vec!["1|source|b", "2|source|b", "5|source|b"]),
        (OnConflict::Skip, vec!["1|local|l", "5|source|b"]),
    ] {
        let mut pair = Pair::new("policy");
        pair.settings.on_conflict = policy;
        pair.both(T);
        pair.replica.exec("INSERT INTO t VALUES (1, 'local', 'l')");
        let mut run = pair.run();
        let t = run.target(&pair, "t", &["id"]);
        run.begin()
            .insert(t, row![1, "source", "b"])
            .update(t, row![2, "source", "b"])
            .delete(t, row![3, V::U, V::U])
            .insert(t, row![5, "source", "b"])
            .change(t, RowOp::Delete, false, row![4, V::U, V::U], &[]);
        run.deliver();
        assert_eq!(pair.replica.lines("SELECT * FROM t ORDER BY id"), expected, "{policy:?}");
        assert_eq!(
            pair.replica
                .lines("SELECT kind, key, relation, replica_row, ordinal FROM walgate.conflict ORDER BY id"),
            [
                "insert_exists|{\"id\":\"1\"}|public.t|{\"id\":1,\"a\":\"local\",\"b\":\"l\"}|2",
                "update_missing|{\"id\":\"2\"}|public.t|~|4",
                "delete_missing|{\"id\":\"3\"}|public.t|~|6",
            ]
        );
    }
    let mut pair = Pair::new("policy");
    pair.settings.on_conflict = OnConflict::Error;
    pair.both(T);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "source", "b"]).update(t, row![2, "source", "b"]);
    let error = run.try_deliver().expect_err("a conflict");
    assert!(error.is_definite() && error.chain().contains("update_missing"), "{}", error.chain());
    assert!(error.chain().contains("key (id) = (2)"), "{}", error.chain());
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "0");
}

#[test]
fn case_r4_one_of_equal_rows() {
    let pair = Pair::new("keyless");
    pair.both("CREATE TABLE t (a int, b text, c json, p point)");
    let mut run = pair.run();
    let t = run.target(&pair, "t", &[]);
    let row = row![1, "x", "{\"a\": 1}", "(1,2)"];
    run.begin().insert(t, row).insert(t, row).insert(t, row).insert(t, row![V::N, V::N, V::N, V::N]);
    run.deliver();
    run.begin()
        .rekey(t, row, row![2, "y", V::U, "(1,2)"])
        .delete(t, row)
        .delete(t, row![V::N, V::N, V::N, V::N]);
    run.deliver();
    assert_eq!(
        pair.replica.lines("SELECT * FROM t ORDER BY a"),
        ["1|x|{\"a\": 1}|(1,2)", "2|y|{\"a\": 1}|(1,2)"]
    );
}

#[test]
fn case_r4_one_of_equal_rows_is_found_by_an_index() {
    let pair = Pair::new("keyindex");
    pair.both("CREATE EXTENSION citext; CREATE TABLE t (a numeric NOT NULL, b citext, c text)");
    pair.replica.exec("CREATE INDEX by_a ON t (a, c)");
    let mut run = pair.run();
    let t = run.target(&pair, "t", &[]);
    run.begin();
    for id in 0..500 {
        run.insert(t, row![id, "x", "y"]).insert(t, row![id, "X", V::N]);
    }
    run.insert(t, row!["1.0", "x", "y"]);
    run.deliver();
    let index = |what| {
        pair.replica.value(&format!("SELECT {what} FROM pg_stat_user_indexes WHERE indexrelname = 'by_a'"))
    };
    run.begin();
    for id in 1..400 {
        run.delete(t, row![id, "X", V::N]).rekey(t, row![id, "x", "y"], row![id, "X", "z"]);
    }
    run.deliver();
    assert_eq!(
        pair.replica.lines("SELECT * FROM t WHERE a < 2 ORDER BY a, a::text, c"),
        ["0|x|y", "0|X|~", "1|X|z", "1.0|x|y"]
    );
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "602");
    assert_eq!(pair.replica.value("SELECT count(*) FROM walgate.conflict"), "0");
    // The end of its session counts at once.
    drop(run);
    wait_until("the index's use to be counted", || index("idx_scan >= 798") == "t");
}

#[test]
fn case_t7_truncate_of_two_tables_with_a_foreign_key() {
    let pair = Pair::new("truncate");
    pair.both(
        "CREATE TABLE p (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, a text); \
         CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)",
    );
    let mut run = pair.run();
    let (p, c) = (run.target(&pair, "p", &["id"]), run.target(&pair, "c", &["id"]));
    pair.replica.exec("SELECT nextval('p_id_seq'), nextval('p_id_seq')");
    // The child first: the session's role does not check.
    run.begin().insert(c, row![1, 1]).insert(p, row![1, "a"]);
    run.deliver();
    run.begin().insert(p, row![2, "b"]).truncate(&[p, c], true).insert(p, row![3, "after"]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM p"), ["3|after"]);
    assert_eq!(pair.replica.value("SELECT count(*) FROM c"), "0");
    assert_eq!(pair.replica.value("SELECT nextval('p_id_seq')"), "1");
}

/// Rows of `t` in the replica's WAL from a slot's beginning: all of them, or only those without an origin.
fn inserts_in_wal(pair: &Pair, slot: &str, only_local: bool) -> usize {
    let changes = pair.replica.lines(&format!(
        "SELECT data FROM pg_logical_slot_peek_changes('{slot}', NULL, NULL, 'only-local', '{only_local}')"
    ));
    changes.iter().filter(|line| line.starts_with("table public.t: INSERT")).count()
}

#[test]
fn what_is_applied_carries_the_pipelines_origin_where_the_role_may_set_one() {
    let mut pair = Pair::new("origin");
    let (role, slot) = (format!("{}_role", pair.replica.name), pair.replica.name.clone());
    pair.both(T);
    pair.replica.exec(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {slot} TO {role}; ALTER TABLE t OWNER TO {role}"
    ));
    pair.replica.rows(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
    pair.settings.url.user = role.clone();
    let origins = "SELECT roname FROM pg_replication_origin WHERE roname LIKE";
    let origins = format!("{origins} 'walgate\\_{}%'", pair.settings.pipeline.replace('_', "\\_"));

    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "a", "b"]);
    run.deliver();
    assert_eq!(pair.replica.lines(&origins), Vec::<String>::new());
    assert_eq!((inserts_in_wal(&pair, &slot, false), inserts_in_wal(&pair, &slot, true)), (1, 1));
    drop(run);

    pair.replica.exec(&format!(
        "GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_session_setup(text), pg_replication_origin_drop(text) TO {role}"
    ));
    // The second takes the origin over from the first, whose session it ends.
    for id in [2, 3] {
        let mut run = pair.run();
        let t = run.target(&pair, "t", &["id"]);
        run.begin().insert(t, row![id, "a", "b"]);
        run.deliver();
        std::mem::forget(run);
    }
    pair.replica.exec("INSERT INTO t VALUES (4, 'its own', '')");
    assert_eq!((inserts_in_wal(&pair, &slot, false), inserts_in_wal(&pair, &slot, true)), (4, 2));
    assert_eq!(pair.replica.lines(&origins).len(), 1);

    // While another session holds it, the pipeline goes on without.
    pair.replica.exec(&format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{}'",
        pair.settings.application_name
    ));
    pair.replica.exec(&format!("SELECT pg_replication_origin_session_setup(({origins}))"));
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![5, "a", "b"]);
    run.deliver();
    drop(run);
    pair.replica.exec("SELECT pg_replication_origin_session_reset()");

    assert!(forget(&pair.settings).expect("removed"));
    assert_eq!(pair.replica.lines(&origins), Vec::<String>::new(), "it goes with the pipeline");
    pair.replica.rows(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    pair.replica
        .exec(&format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn case_r6_without_the_right_to_turn_foreign_keys_off_order_is_kept() {
    let mut pair = Pair::new("fk");
    let role = format!("{}_role", pair.replica.name);
    pair.both("CREATE TABLE p (id int PRIMARY KEY, a text); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)");
    let database = &pair.replica.name;
    pair.replica.exec(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {database} TO {role}; ALTER TABLE p OWNER TO {role}; ALTER TABLE c OWNER TO {role}"
    ));
    pair.settings.url.user = role.clone();
    let mut run = pair.run();
    let (p, c) = (run.target(&pair, "p", &["id"]), run.target(&pair, "c", &["id"]));
    run.begin();
    for id in 1..20 {
        run.insert(p, row![id, "a"]).insert(c, row![id, id]);
    }
    run.delete(c, row![3, V::U]).delete(p, row![3, V::U]);
    run.deliver();
    assert_eq!(pair.replica.value("SELECT count(*) FROM c"), "18");
    run.begin().insert(c, row![100, 100]);
    let error = run.try_deliver().expect_err("no parent");
    assert!(error.is_definite() && error.chain().contains("key (id) = (100)"), "{}", error.chain());
    drop(run);
    pair.replica
        .exec(&format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn case_f10_a_trigger_that_refuses_a_row_is_no_conflict() {
    let pair = Pair::new("trigger");
    pair.both(T);
    pair.replica.exec(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF TG_OP = 'DELETE' THEN RETURN NULL; END IF; IF NEW.a = 'no' THEN RETURN NULL; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER r BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION refuse(); \
         ALTER TABLE t ENABLE REPLICA TRIGGER r",
    );
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin()
        .insert(t, row![1, "a", "b"])
        .insert(t, row![2, "no", "b"])
        .update(t, row![1, "no", "c"])
        .delete(t, row![1, V::U, V::U]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM t"), ["1|a|b"]);
    assert_eq!(pair.replica.value("SELECT count(*) FROM walgate.conflict"), "0");
}

#[test]
fn values_are_refused_and_not_cut() {
    let pair = Pair::new("cut");
    for (name, on_source, on_replica, long) in [
        ("c", "char(5)", "char(3)", "abcde"),
        ("v", "varchar(5)", "varchar(3)", "abcde"),
        ("b", "bit(5)", "bit(3)", "10101"),
        ("vb", "bit varying(5)", "bit varying(3)", "10101"),
        ("i", "bigint", "smallint", "70000"),
        ("n", "numeric", "numeric(4,2)", "12345.67"),
    ] {
        pair.source.exec(&format!("CREATE TABLE {name} (id int PRIMARY KEY, x {on_source})"));
        pair.replica.exec(&format!("CREATE TABLE {name} (id int PRIMARY KEY, x {on_replica})"));
        for rows in [1, 100] {
            let mut run = pair.run();
            let t = run.target(&pair, name, &["id"]);
            run.begin();
            for id in 0..rows {
                run.insert(t, row![id, if id == rows - 1 { V::from(long) } else { V::N }]);
            }
            let error = run.try_deliver().expect_err(name);
            let key = format!("public.{name}, key (id) = ({})", rows - 1);
            assert!(error.is_definite() && error.chain().contains(&key), "{name}: {}", error.chain());
            assert!(error.hint().is_some());
        }
        assert_eq!(pair.replica.value(&format!("SELECT count(*) FROM {name}")), "0");
    }
}

#[test]
fn columns_of_the_replicas_own() {
    let pair = Pair::new("columns");
    pair.source.exec("CREATE TABLE t (id int PRIMARY KEY, a text, g int, n int)");
    pair.replica.exec(
        "CREATE TABLE t (extra text DEFAULT 'mine', id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text, \
         n int, g int GENERATED ALWAYS AS (n * 2) STORED)",
    );
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin();
    for id in 0..100 {
        run.insert(t, row![id, "a", 0, id]);
    }
    run.deliver();
    pair.replica.exec("UPDATE t SET extra = 'kept' WHERE id = 1");
    run.begin()
        .update(t, row![1, "b", 0, 7])
        .insert(t, row![200, "few", 0, 1])
        .upsert(t, row![2, "up", 0, 8])
        .rekey(t, row![3, V::U, V::U, V::U], row![300, "moved", 0, 9]);
    run.deliver();
    assert_eq!(
        pair.replica.lines("SELECT id, a, n, g, extra FROM t WHERE id IN (1, 2, 3, 4, 200, 300) ORDER BY id"),
        ["1|b|7|14|kept", "2|up|8|16|mine", "4|a|4|8|mine", "200|few|1|2|mine", "300|moved|9|18|mine"]
    );
    // Lines of a copy as well: the source is asked for the others only.
    run.copy(&pair, t, "SELECT 400, E'copy\\td'::text, 5", || {}).expect("copied");
    assert_eq!(pair.replica.value("SELECT id, a, n, g FROM t WHERE id = 400"), "400|copy\td|5|10");
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let pair = Pair::new("missing");
    pair.source
        .exec("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY, a text)");
    pair.replica.exec("CREATE TABLE u (id int PRIMARY KEY)");
    for (name, remedy) in [
        (
            "t",
            "CREATE TABLE \"public\".\"t\" (\"id\" \"pg_catalog\".\"int4\", \"a\" \"pg_catalog\".\"text\", PRIMARY KEY (\"id\"))",
        ),
        ("u", "ALTER TABLE \"public\".\"u\" ADD COLUMN \"a\" \"pg_catalog\".\"text\""),
    ] {
        let mut run = pair.run();
        let t = run.target(&pair, name, &["id"]);
        run.begin().insert(t, row![1, "a"]);
        let error = run.try_deliver().expect_err("missing");
        assert!(error.is_definite());
        assert!(error.hint().is_some_and(|hint| hint.starts_with(remedy)), "{:?}", error.hint());
        let sql = error.hint().unwrap().split("; or").next().unwrap().to_owned();
        drop(run);
        pair.replica.exec(&sql);
    }
}

#[test]
fn case_r8_odd_names() {
    let pair = Pair::new("names");
    let (schema, table) = ("Sche.ma \"x\"", "Ta'ble, ünïcode");
    pair.both(
        "CREATE SCHEMA \"Sche.ma \"\"x\"\"\"; CREATE TYPE \"Sche.ma \"\"x\"\"\".\"Mo.od\" AS ENUM ('a b', 'c\"d'); \
         CREATE TABLE \"Sche.ma \"\"x\"\"\".\"Ta'ble, ünïcode\" (\"I.d\" text, \"select\" \"Sche.ma \"\"x\"\"\".\"Mo.od\", \
         \"ä $1\" text[], PRIMARY KEY (\"I.d\", \"select\"))",
    );
    let mut run = pair.run();
    let t = run.renamed(&pair, (schema, table), (schema, table), &["I.d", "select"]);
    run.begin().insert(t, row!["k'\\\"", "a b", "{a,\"b c\"}"]).insert(t, row!["", "c\"d", "{}"]);
    run.deliver();
    run.begin().update(t, row!["k'\\\"", "a b", "{NULL}"]).rekey(
        t,
        row!["", "c\"d", V::U],
        row!["\u{1}é", "c\"d", V::U],
    );
    run.deliver();
    assert_eq!(
        pair.replica.lines("SELECT * FROM \"Sche.ma \"\"x\"\"\".\"Ta'ble, ünïcode\" ORDER BY \"select\""),
        ["k'\\\"|a b|{NULL}", "\u{1}é|c\"d|{}"]
    );
}

#[test]
fn keys_whose_equality_is_not_that_of_their_text() {
    let pair = Pair::new("equality");
    pair.both(
        "CREATE EXTENSION citext; CREATE TABLE n (k numeric PRIMARY KEY, a text); CREATE TABLE c (k citext PRIMARY KEY, a text); \
         CREATE TABLE f (k float8 PRIMARY KEY, a text); CREATE TABLE b (k char(4) PRIMARY KEY, a text); \
         CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         CREATE TABLE i (k text COLLATE ci PRIMARY KEY, a text)",
    );
    let mut run = pair.run();
    for (name, first, second, changed) in [
        ("n", "1.0", "1.00", "1.00|c"),
        ("c", "Ab", "aB", "aB|c"),
        ("f", "0", "-0", "-0|c"),
        ("b", "a   ", "b   ", "b   |c"),
        ("i", "Ab", "aB", "aB|c"),
    ] {
        let t = run.target(&pair, name, &["k"]);
        run.begin()
            .insert(t, row![first, "a"])
            .update(t, row![first, "b"])
            .rekey(t, row![first, V::U], row![second, "b"])
            .update(t, row![second, "c"]);
        run.deliver();
        assert_eq!(pair.replica.lines(&format!("SELECT * FROM {name}")), [changed]);
        // Both texts in one set, and from one to the other and back.
        run.begin().delete(t, row![second, V::U]).insert(t, row![first, "d"]).delete(t, row![first, V::U]);
        run.insert(t, row![second, "e"]).delete(t, row![second, V::U]).insert(t, row![first, "d"]);
        run.deliver();
        assert_eq!(pair.replica.value("SELECT count(*) FROM walgate.conflict"), "0", "{name}");
        assert_eq!(pair.replica.lines(&format!("SELECT a FROM {name}")), ["d"]);
    }
}

#[test]
fn a_copy_its_states_and_its_repetition() {
    let pair = Pair::new("copy");
    pair.both(T);
    let (mut session, stored) = pair.session();
    assert_eq!(stored, Stored::default());
    let mut checkpoint = Checkpoint::pending(pair.identity.clone());
    session.store(&checkpoint, &[]).expect("stored");
    checkpoint.phase = Phase::Snapshot;
    session.store(&checkpoint, &[]).expect("stored");
    assert_eq!(peek(&pair.settings).unwrap().checkpoint.as_ref(), Some(&checkpoint));
    drop(session);
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    let state = |done| TableState {
        selection: None,
        root: None,
        oid: 7,
        schema: "public".into(),
        table: "t".into(),
        key: vec!["id".into()],
        copied_at: Lsn(0x50),
        done,
        rows: 2,
        ranges: None,
        shape: done.then(|| Shape {
            files: [(7, 8)].into(),
            columns: [(1, ShapeColumn { name: "id".into(), type_oid: 23, defined_by: 9, has_missing: true })]
                .into(),
        }),
        parked: (!done).then(|| Parked {
            reason: "a 'check'".into(),
            remedy: None,
            since: 5,
            definition: "d".into(),
            tries: 1,
            retry_at: 9,
            is_tried: true,
        }),
    };
    for (is_again, done) in [(false, false), (true, true)] {
        if is_again {
            run.change(t, RowOp::Clear, true, &[], &[]);
        }
        for (nth, state) in [state(false), state(done)].into_iter().enumerate() {
            run.batch.tables.push(state);
            run.batch.progress = Progress { phase: Phase::Snapshot, ..Progress::default() };
            run.accept(false).expect("accepted");
            run.idle().expect("confirmed");
            if nth == 0 {
                run.copy(&pair, t, "VALUES (1, E'a\\\\\\n', NULL), (2, '', 'b')", || {}).expect("copied");
            }
        }
        assert_eq!(pair.replica.lines("SELECT * FROM t ORDER BY id"), ["1|a\\\n|~", "2||b"]);
        let stored = peek(&pair.settings).expect("stored");
        assert_eq!(stored.tables.get(&7), Some(&state(done)));
        assert_eq!(stored.checkpoint.map(|checkpoint| checkpoint.phase), Some(Phase::Snapshot));
    }
    // A table that holds other rows refuses.
    let error = run.copy(&pair, t, "SELECT 1, 'a'::text, 'b'::text", || {}).expect_err("the row is there");
    assert_eq!(error.table().map(|table| table.name.as_str()), Some("public.t"));
    assert!(
        error.is_definite() && error.hint().is_some_and(|hint| hint.contains("TRUNCATE")),
        "{}",
        error.chain()
    );
}

#[test]
fn forgetting_leaves_the_rows() {
    let mut pair = Pair::new("forget");
    pair.both(T);
    assert!(!forget(&pair.settings).expect("nothing is there"));
    assert_eq!(peek(&pair.settings).expect("nothing is there"), Stored::default());
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "a", "b"]);
    run.deliver();
    drop(run);
    let own = pair.settings.clone();
    pair.settings.pipeline = "another.slot".into();
    drop(pair.run());
    assert!(forget(&own).expect("removed"));
    assert_eq!(pair.replica.value("SELECT pipeline FROM walgate.checkpoint"), "another.slot");
    assert!(forget(&pair.settings).expect("removed"));
    assert_eq!(
        pair.replica.value("SELECT to_regnamespace('walgate') IS NULL, (SELECT count(*) FROM t)"),
        "t|1"
    );
    // And begins again.
    drop(pair.run());
}

#[test]
fn the_source_itself_is_refused() {
    let mut pair = Pair::new("itself");
    pair.settings.url = pair.source.url();
    let error = ReplicaSession::open(pair.settings.clone(), &pair.identity).err().expect("refused");
    assert!(error.is_definite() && error.chain().contains("the source itself"), "{}", error.chain());
    assert_eq!(pair.source.value("SELECT to_regnamespace('walgate') IS NULL"), "t");
}

// ---- values ---------------------------------------------------------------------------------------------

const ZOO: &str = r#"
    CREATE EXTENSION hstore; CREATE EXTENSION citext;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "great"', 'NULL', '');
    CREATE TYPE pair AS (a integer, "B c" text);
    CREATE TYPE tempo AS RANGE (subtype = float8);
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE DOMAIN price AS numeric(12, 2);
    CREATE DOMAIN tags AS text[];
"#;

/// Types, and values as SQL expressions: the edge values of CASES.md.
const VALUES: &[(&str, &[&str])] = &[
    ("boolean", &["true", "false"]),
    ("smallint", &["-32768", "32767"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    ("real", &["0.1", "'-0'", "'1.17549435e-38'", "'NaN'", "'Infinity'", "'-Infinity'"]),
    ("double precision", &["0.1", "'-0'", "5e-324", "1.7976931348623157e308", "'NaN'", "'-Infinity'"]),
    (
        "numeric",
        &[
            "0.00",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e130",
            "(repeat('9', 100) || '.' || repeat('1', 30))::numeric",
        ],
    ),
    ("numeric(10, 4)", &["1", "-0.0001"]),
    ("money", &["'-12.34'"]),
    (
        "text",
        &[
            "''",
            r#"E'quote " \\ / \t \n \r'"#,
            r"E'\b\f\x01\x1f\x7f'",
            "'äöü € 😀'",
            "'NULL'",
            "'\\N'",
            "'\\.'",
            "'{\"}'",
            "repeat('x\t\\', 20000)",
        ],
    ),
    ("varchar(5)", &["'abc'", "'a  '"]),
    ("char(8)", &["'a'", "''", "' a'"]),
    ("name", &["'a\"b'"]),
    ("\"char\"", &["'x'", "''"]),
    ("citext", &["'AbC'"]),
    ("json", &["E'{\"a\" : 1,\\n \\t\"a\":\\r\\n2}\\n'", "'null'"]),
    (
        "jsonb",
        &["'{\"k\":1, \"a\":[1,null,{}], \"b\":1234567890123456789012345678901234567890.10}'", "'\"\\n\"'"],
    ),
    (
        "bytea",
        &[
            "''",
            "(SELECT string_agg(set_byte('\\x00', 0, i % 256), '' ORDER BY i) FROM generate_series(0, 2000) i)",
        ],
    ),
    (
        "timestamp",
        &["'infinity'", "'-infinity'", "'0044-03-15 12:00:00.25 BC'", "'294276-12-31 23:59:59.999999'"],
    ),
    ("timestamp(0)", &["'2026-11-21 04:55:31'"]),
    ("timestamptz", &["'infinity'", "'4713-01-01 BC'", "'2026-11-21 04:55:30.5+05:30'"]),
    ("date", &["'4713-01-01 BC'", "'5874897-12-31'", "'infinity'"]),
    ("time", &["'24:00:00'", "'00:00:00.000001'"]),
    ("timetz", &["'24:00:00-15:59'", "'04:05:06.7+01'"]),
    ("interval", &["'-1 year 2 months -3 days 04:05:06.789'", "'00:00:00'", "'-00:00:00.000001'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("bit(5)", &["B'10101'"]),
    ("bit varying", &["B''", "B'101'"]),
    ("inet", &["'10.0.0.1'", "'10.0.0.1/8'", "'::ffff:1.2.3.0/120'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("point", &["'(1.5,-2)'"]),
    ("box", &["'((1,2),(3,4))'"]),
    ("tsvector", &["$$'it''s' 'a b':1A,2$$"]),
    ("tsquery", &["$$'it''s' & !b$$"]),
    ("xml", &["'<a b=\"c\">d &amp; e</a>'", "'text only'"]),
    ("int4range", &["'[1,10)'", "'empty'", "'(,)'"]),
    ("int4multirange", &["'{[1,2),[5,7)}'", "'{}'"]),
    ("tempo", &["'[1.5,)'"]),
    ("integer[]", &["'{}'", "'{1,NULL,3}'", "'[0:1]={1,2}'", "'{{1,2},{3,4}}'"]),
    ("text[]", &["'{NULL,\"NULL\",\"\",\"a\\\"b\\\\\",\"c d\",\"{,}\"}'"]),
    ("mood", &["'sad'", "'it''s \"great\"'", "''", "'NULL'"]),
    ("mood[]", &["'{sad,\"NULL\"}'"]),
    ("pair", &["ROW(1, 'a \"b\" (c), \\')", "ROW(NULL, NULL)"]),
    ("pair[]", &["ARRAY[ROW(1, 'x')::pair]"]),
    ("positive", &["1"]),
    ("price", &["1.10"]),
    ("tags", &["'{a,\"b c\"}'"]),
    ("box[]", &["'{(3,4),(1,2);(3,4),(1,2)}'"]),
    ("hstore", &["'a=>NULL, \"b \\\"c\"=>\"\"'", "''"]),
    ("oid", &["4294967295"]),
    ("regclass", &["'pg_catalog.pg_class'"]),
    ("pg_lsn", &["'FFFFFFFF/FFFFFFFF'"]),
    ("txid_snapshot", &["'10:20:10,14'"]),
];

/// R9: through sets, COPY, single rows, updates and the source's own look-up, every value keeps its text.
#[test]
fn case_r9_every_edge_value_keeps_its_text() {
    let pair = Pair::new("values");
    pair.both(ZOO);
    let mut run = pair.run();
    for (number, (type_name, values)) in VALUES.iter().enumerate() {
        let (sets, rows) = (format!("v{number}"), format!("o{number}"));
        for table in [&sets, &rows] {
            pair.both(&format!("CREATE TABLE {table} (id int PRIMARY KEY, x {type_name})"));
        }
        pair.replica.exec(&format!(
            "CREATE FUNCTION same{number}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
             CREATE TRIGGER s BEFORE INSERT OR UPDATE ON {rows} FOR EACH ROW EXECUTE FUNCTION same{number}(); \
             ALTER TABLE {rows} ENABLE ALWAYS TRIGGER s"
        ));
        for (id, value) in values.iter().enumerate() {
            pair.source.exec(&format!("INSERT INTO {sets} VALUES ({id}, {value})"));
        }
        let texts: Vec<String> = pair
            .source
            .rows(&format!("SELECT x FROM {sets} ORDER BY id"))
            .into_iter()
            .map(|row| row[0].clone().unwrap())
            .collect();
        let (s, o) = (run.target(&pair, &sets, &["id"]), run.target(&pair, &rows, &["id"]));
        let count = i32::try_from(texts.len()).unwrap();
        // Few: a set. Fetched: from the source. In order: the other table.
        run.begin();
        for (id, text) in (0..).zip(&texts) {
            run.insert(s, row![id + 1000, text.clone()])
                .insert(o, row![id, text.clone()])
                .upsert(s, row![id, V::U]);
        }
        run.deliver();
        // Many: COPY. Updates, of a set and in order.
        run.begin();
        for id in 0..100 {
            run.insert(s, row![id + 2000, texts[usize::try_from(id % count).unwrap()].clone()]);
        }
        for (id, text) in (0..).zip(&texts) {
            run.update(s, row![id + 1000, V::N]).insert(o, row![id + 1000, V::N]);
            run.update(o, row![id + 1000, text.clone()]);
        }
        run.deliver();
        run.begin();
        for (id, text) in (0..).zip(&texts) {
            run.update(s, row![id + 1000, text.clone()]).upsert(s, row![id + 3000, text.clone()]);
        }
        run.deliver();
        let read = |table: &str, from: i32, rows: i32| -> Vec<String> {
            let sql =
                format!("SELECT x FROM {table} WHERE id >= {from} AND id < {} ORDER BY id", from + rows);
            pair.replica.rows(&sql).into_iter().map(|row| row[0].clone().expect("a value")).collect()
        };
        for (table, from) in [(&sets, 0), (&sets, 1000), (&sets, 3000), (&rows, 0), (&rows, 1000)] {
            assert_eq!(read(table, from, count), texts, "{type_name} in {table} from {from}");
        }
        let copied: Vec<String> = (0..100).map(|id| texts[id % texts.len()].clone()).collect();
        assert_eq!(read(&sets, 2000, 100), copied, "{type_name} by COPY");
    }
}

// ---- sets against rows ----------------------------------------------------------------------------------

/// A source's table as a model, and its changes as pgoutput would send them, at random.
struct Model {
    rows: std::collections::BTreeMap<i32, [Option<String>; 3]>,
    random: rand::rngs::StdRng,
}

#[derive(Clone, Debug)]
enum Op {
    Insert(i32, [V; 3]),
    Update(i32, [V; 3]),
    Upsert(i32, [V; 3]),
    Rekey(i32, i32, [V; 3]),
    Delete(i32),
    Truncate,
}

impl Model {
    fn value(&mut self, at: usize) -> Option<String> {
        use rand::Rng;
        match self.random.random_range(0..8) {
            0 => None,
            1 => Some(String::new()),
            _ if at == 0 => Some(self.random.random_range(0..40).to_string()),
            _ => Some(format!(
                "v{}\\\t{}",
                self.random.random_range(0..1000),
                "x".repeat(self.random.random_range(0..9))
            )),
        }
    }

    /// A value for the unique column that no row has.
    fn free(&mut self, id: i32) -> Option<String> {
        let value = self.value(0).filter(|text| !text.is_empty());
        let is_taken =
            value.is_some() && self.rows.iter().any(|(other, row)| *other != id && row[0] == value);
        if is_taken { None } else { value }
    }

    fn whole(&mut self, id: i32) -> ([Option<String>; 3], [V; 3]) {
        let row = [self.free(id), self.value(1), self.value(2)];
        let cells = row.clone().map(|value| value.map_or(V::N, V::T));
        (row, cells)
    }

    /// The next change, and the row that it finds.
    fn next(&mut self) -> (Op, Option<[Option<String>; 3]>) {
        let before = self.rows.clone();
        let op = self.step();
        let old = match &op {
            Op::Update(id, _) | Op::Upsert(id, _) | Op::Rekey(id, _, _) | Op::Delete(id) => {
                before.get(id).cloned()
            }
            Op::Insert(..) | Op::Truncate => None,
        };
        (op, old)
    }

    fn step(&mut self) -> Op {
        use rand::Rng;
        let id = self.random.random_range(0..60);
        if self.random.random_range(0..400) == 0 {
            self.rows.clear();
            return Op::Truncate;
        }
        if !self.rows.contains_key(&id) {
            let (row, cells) = self.whole(id);
            self.rows.insert(id, row);
            return if self.random.random_range(0..4) == 0 {
                Op::Upsert(id, cells)
            } else {
                Op::Insert(id, cells)
            };
        }
        let choice = self.random.random_range(0..10);
        if choice < 2 {
            self.rows.remove(&id);
            return Op::Delete(id);
        }
        let (mut row, mut cells) = self.whole(id);
        // What did not change: of the columns that may be TOASTed.
        for at in 1..3 {
            if self.random.random_range(0..3) == 0 {
                row[at] = self.rows[&id][at].clone();
                cells[at] = V::U;
            }
        }
        let to = self.random.random_range(60..120);
        if choice == 2 && !self.rows.contains_key(&to) {
            self.rows.remove(&id);
            self.rows.insert(to, row);
            return Op::Rekey(id, to, cells);
        }
        self.rows.insert(id, row);
        if choice == 3 { Op::Upsert(id, cells) } else { Op::Update(id, cells) }
    }
}

fn play(run: &mut Run, target: TargetId, op: &Op) {
    let with = |id: i32, cells: &[V; 3]| {
        let mut row = vec![V::from(id)];
        row.extend_from_slice(cells);
        row
    };
    let key = |id: i32| vec![V::from(id), V::U, V::U, V::U];
    match op {
        Op::Insert(id, cells) => run.insert(target, &with(*id, cells)),
        Op::Update(id, cells) => run.update(target, &with(*id, cells)),
        Op::Upsert(id, cells) => run.upsert(target, &with(*id, cells)),
        Op::Rekey(old, new, cells) => run.rekey(target, &key(*old), &with(*new, cells)),
        Op::Delete(id) => run.delete(target, &key(*id)),
        Op::Truncate => run.truncate(&[target], false),
    };
}

/// A number, in one of its texts.
fn numeric(id: i32, form: usize) -> String {
    format!("{id}{}", ["", ".0", ".00"][form])
}

/// The same for a numeric key, whose text changes though the number does not.
fn play_numeric(
    run: &mut Run,
    target: TargetId,
    op: &Op,
    forms: &mut std::collections::BTreeMap<i32, usize>,
    drawn: usize,
) {
    let with = |id: i32, form: usize, cells: &[V]| {
        let mut row = vec![V::from(numeric(id, form))];
        row.extend_from_slice(cells);
        row
    };
    const REST: [V; 3] = [V::U, V::U, V::U];
    match op {
        Op::Truncate => {
            forms.clear();
            run.truncate(&[target], false)
        }
        Op::Insert(id, cells) => {
            forms.insert(*id, drawn);
            run.insert(target, &with(*id, drawn, cells))
        }
        Op::Upsert(id, cells) => {
            let form = *forms.entry(*id).or_insert(drawn);
            run.upsert(target, &with(*id, form, cells))
        }
        Op::Update(id, cells) if drawn == 0 || forms[id] == drawn => {
            run.update(target, &with(*id, forms[id], cells))
        }
        Op::Update(id, cells) => {
            let old = forms.insert(*id, drawn).unwrap();
            run.rekey(target, &with(*id, old, &REST), &with(*id, drawn, cells))
        }
        Op::Rekey(id, new, cells) => {
            let old = forms.remove(id).unwrap();
            forms.insert(*new, drawn);
            run.rekey(target, &with(*id, old, &REST), &with(*new, drawn, cells))
        }
        Op::Delete(id) => {
            let form = forms.remove(id).unwrap();
            run.delete(target, &with(*id, form, &REST))
        }
    };
}

/// The same for a table without a key, under REPLICA IDENTITY FULL.
fn play_keyless(run: &mut Run, target: TargetId, op: &Op, old: Option<[Option<String>; 3]>) {
    let with = |id: i32, cells: &[V]| {
        let mut row = vec![V::from(id)];
        row.extend_from_slice(cells);
        row
    };
    let old = old.map(|row| row.map(|value| value.map_or(V::N, V::T)));
    match (op, old) {
        (Op::Insert(id, cells) | Op::Upsert(id, cells), None) => run.insert(target, &with(*id, cells)),
        (Op::Update(id, cells) | Op::Upsert(id, cells), Some(old)) => {
            run.rekey(target, &with(*id, &old), &with(*id, cells))
        }
        (Op::Rekey(id, new, cells), Some(old)) => run.rekey(target, &with(*id, &old), &with(*new, cells)),
        (Op::Delete(id), Some(old)) => run.delete(target, &with(*id, &old)),
        (Op::Truncate, _) => run.truncate(&[target], false),
        other => panic!("{other:?}"),
    };
}

/// Random transactions, cut into batches at random: by sets, in order, and as the model has it.
#[test]
fn sets_and_rows_and_the_model_agree() {
    use rand::{Rng, SeedableRng};
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    eprintln!("SEED={seed}");
    let pair = Pair::new("model");
    // `s` folds; the trigger makes `o` ordered; `n` has keys of equal numbers with other texts.
    for (table, key) in [("s", "int"), ("o", "int"), ("n", "numeric")] {
        pair.both(&format!("CREATE TABLE {table} (id {key} PRIMARY KEY, u text UNIQUE, a text, b text)"));
    }
    pair.replica.exec(
        "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF TG_OP = ''DELETE'' THEN RETURN OLD; END IF; RETURN NEW; END'; \
         CREATE TRIGGER s BEFORE INSERT OR UPDATE OR DELETE ON o FOR EACH ROW EXECUTE FUNCTION same(); \
         ALTER TABLE o ENABLE ALWAYS TRIGGER s",
    );
    let mut run = pair.run();
    let mut model = Model { rows: Default::default(), random: rand::rngs::StdRng::seed_from_u64(seed) };
    pair.both("CREATE TABLE f (id int, u text, a text, b text)");
    let targets_of = |run: &Run| {
        (["s", "o", "n"].map(|name| run.target(&pair, name, &["id"])), run.target(&pair, "f", &[]))
    };
    let (mut targets, mut keyless) = targets_of(&run);
    let mut forms = std::collections::BTreeMap::new();
    for round in 0..60 {
        run.looks_ahead = model.random.random_bool(0.5);
        for _ in 0..model.random.random_range(1..6) {
            run.begin();
            for _ in 0..model.random.random_range(1..60) {
                let (op, old) = model.next();
                for target in [targets[0], targets[1]] {
                    play(&mut run, target, &op);
                }
                let drawn = model.random.random_range(0..3);
                play_numeric(&mut run, targets[2], &op, &mut forms, drawn);
                play_keyless(&mut run, keyless, &op, old);
                if model.random.random_range(0..25) == 0 {
                    run.accept(true).expect("accepted");
                }
            }
            run.end();
            if model.random.random_range(0..3) == 0 {
                run.accept(model.random.random_bool(0.5)).expect("accepted");
            }
        }
        run.end();
        run.accept(false).expect("accepted");
        run.idle().expect("confirmed");
        let expected: Vec<String> = model
            .rows
            .iter()
            .map(|(id, row)| {
                let values = row.clone().map(|value| value.unwrap_or_else(|| "~".into()));
                format!("{id}|{}", values.join("|"))
            })
            .collect();
        for table in ["s", "o", "n", "f"] {
            let found = pair.replica.lines(&format!("SELECT * FROM {table} ORDER BY id"));
            let expected: Vec<String> = match table {
                // The text of the key as well.
                "n" => (expected.iter().zip(&forms))
                    .map(|(line, (id, form))| {
                        format!("{}|{}", numeric(*id, *form), line.split_once('|').unwrap().1)
                    })
                    .collect(),
                _ => expected.clone(),
            };
            assert_eq!(found, expected, "table {table}, round {round}, SEED={seed}");
        }
        if round % 20 == 19 {
            // As after a crash.
            drop(run);
            run = pair.run();
            (targets, keyless) = targets_of(&run);
        }
    }
    assert_eq!(pair.replica.value("SELECT count(*) FROM walgate.conflict"), "0");
}

// ---- speed ----------------------------------------------------------------------------------------------

/// Not a test: `cargo test --test replica_live -- --ignored --nocapture speed`.
#[test]
#[ignore = "measures"]
fn speed() {
    let pair = Pair::new("speed");
    pair.both("CREATE TABLE t (id int PRIMARY KEY, a text, b text, c int); CREATE TABLE n (id numeric PRIMARY KEY, a text, b text, c int)");
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    let n = run.target(&pair, "n", &["id"]);
    let pad = "x".repeat(120);
    let rows = 300_000;
    let mut measure = |what: &str, rows: i32, transaction: i32, change: &dyn Fn(&mut Run, i32)| {
        let mut sink_time = std::time::Duration::ZERO;
        for id in 0..rows {
            if id % transaction == 0 {
                run.begin();
            }
            change(&mut run, id);
            if id % transaction == transaction - 1 {
                run.end();
            }
            if id % 3000 == 2999 || id == rows - 1 {
                let began = std::time::Instant::now();
                run.accept(true).expect("accepted");
                sink_time += began.elapsed();
            }
        }
        let began = std::time::Instant::now();
        run.idle().expect("confirmed");
        run.idle().expect("confirmed");
        sink_time += began.elapsed();
        eprintln!("{what}: {:.0} rows/s", f64::from(rows) / sink_time.as_secs_f64());
    };
    measure("insert, transactions of 100 000", rows, 100_000, &|run, id| {
        run.insert(t, row![id, "a", pad.as_str(), 1]);
    });
    measure("insert, transactions of 1", rows, 1, &|run, id| {
        run.insert(t, row![id + 300_000, "a", pad.as_str(), 1]);
    });
    measure("update, transactions of 1", rows, 1, &|run, id| {
        run.update(t, row![id * 7 % 300_000, "changed", pad.as_str(), id]);
    });
    measure("update with an unchanged column, transactions of 1", rows, 1, &|run, id| {
        run.update(t, row![id * 7 % 300_000, "changed again", V::U, id]);
    });
    measure("upsert, transactions of 10", rows, 10, &|run, id| {
        run.upsert(t, row![id * 7 % 300_000, "upserted", pad.as_str(), id]);
    });
    measure("delete, transactions of 1", rows, 1, &|run, id| {
        run.delete(t, row![id, V::U, V::U, V::U]);
    });
    pair.replica.exec("ALTER TABLE n DROP CONSTRAINT n_pkey, ADD PRIMARY KEY (id) DEFERRABLE");
    measure("insert in order, transactions of 10", 30_000, 10, &|run, id| {
        run.insert(n, row![id, "a", pad.as_str(), 1]);
    });
    measure("update in order, transactions of 10", 30_000, 10, &|run, id| {
        run.update(n, row![id, "b", pad.as_str(), 1]);
    });
    measure("key change, transactions of 10", 30_000, 10, &|run, id| {
        run.rekey(t, row![id + 300_000, V::U, V::U, V::U], row![id + 900_000, "k", V::U, 1]);
    });
}

// ---- crashes --------------------------------------------------------------------------------------------

/// Not a test of its own: what `crash_points_of_the_replica` runs in a process that dies.
#[test]
#[ignore = "the child of another test"]
fn crash_child() {
    let Ok(databases) = std::env::var("WALGATE_TEST_CRASH") else { return };
    let (source, replica) = databases.split_once(' ').expect("two names");
    let (source, replica) = (Db::connect(source, "postgres"), Db::connect(replica, "postgres"));
    let settings = ReplicaSettings {
        name: "reporting".into(),
        url: replica.url(),
        source_url: source.url(),
        application_name: format!("walgate/{}.slot", source.name),
        pipeline: format!("{}.slot", source.name),
        on_conflict: OnConflict::Error,
    };
    let identity = identity_of(&source);
    let pair =
        std::mem::ManuallyDrop::new(Pair { server: server_url(), source, replica, settings, identity });
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    // A source of 40 transactions, at 0x100, 0x200, ..: the stored ones are skipped by position.
    let from = i32::try_from(run.lsn / 0x100).expect("small");
    for number in from..40 {
        run.begin();
        run.insert(t, row![number, "a", "b"]);
        if number % 7 == 3 {
            run.accept(true).expect("accepted");
        }
        if number > 0 {
            run.update(t, row![number - 1, "updated", V::U]);
        }
        if number % 3 == 0 {
            run.end();
            run.accept(number % 2 == 0).expect("accepted");
        }
        if number % 5 == 0 {
            run.idle().expect("confirmed");
        }
        run.end();
    }
    run.deliver();
    // Told to the source: only what is durable.
    for receipt in &run.receipts {
        assert!(receipt.safe_lsn() <= run.safe_lsn);
    }
}

/// S3: killed at each of the replica's failpoints, at several passes of it, and every change is there once: with
/// on_conflict = error, a second application is an error.
#[test]
fn case_s3_crash_points_of_the_replica() {
    use std::process::Command;
    let of_sink = |name: &&&str| name.starts_with("replica.") && !name.starts_with("replica.copy.");
    for name in walgate::failpoint::NAMES.iter().filter(of_sink) {
        let pair = Pair::new("crashes");
        pair.both(T);
        let run = |failpoint: Option<String>| {
            let mut command = Command::new(std::env::current_exe().expect("this test"));
            command.args(["--ignored", "--exact", "crash_child"]);
            command.env("WALGATE_TEST_CRASH", format!("{} {}", pair.source.name, pair.replica.name));
            if let Some(failpoint) = failpoint {
                command.env("WALGATE_FAILPOINT", failpoint);
            }
            command.output().expect("it runs")
        };
        for pass in [1, 2, 3] {
            let output = run(Some(format!("{name}:{pass}")));
            assert!(!output.status.success(), "{name}:{pass} was not passed");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!told.contains("panicked"), "{name}:{pass}: {told}");
        }
        let output = run(None);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(
            pair.replica
                .value("SELECT count(*), count(*) FILTER (WHERE a = 'updated'), min(id), max(id) FROM t"),
            "40|39|0|39",
            "{name}"
        );
    }
}

#[test]
fn deferrable_and_exclusion_constraints() {
    let pair = Pair::new("deferrable");
    pair.both(
        "CREATE EXTENSION btree_gist; CREATE TABLE d (id int PRIMARY KEY, a int UNIQUE DEFERRABLE); \
         CREATE TABLE x (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&)); \
         CREATE TABLE k (id int PRIMARY KEY DEFERRABLE, a text)",
    );
    let mut run = pair.run();
    let (d, x, k) =
        (run.target(&pair, "d", &["id"]), run.target(&pair, "x", &["id"]), run.target(&pair, "k", &["id"]));
    run.begin()
        .insert(d, row![1, 1])
        .insert(d, row![2, 2])
        .insert(x, row![1, "[1,5)"])
        .insert(x, row![2, "[5,9)"]);
    run.insert(k, row![1, "a"]).insert(k, row![2, "b"]);
    run.deliver();
    // A swap in one statement on the source, and ranges that move over each other.
    run.begin().update(d, row![1, 2]).update(d, row![2, 1]);
    run.update(x, row![2, "[7,9)"]).update(x, row![1, "[1,7)"]).insert(x, row![3, "[9,10)"]);
    run.rekey(k, row![2, V::U], row![3, V::U])
        .update(k, row![1, "c"])
        .upsert(k, row![4, "d"])
        .upsert(k, row![1, "e"]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM d ORDER BY id"), ["1|2", "2|1"]);
    assert_eq!(pair.replica.lines("SELECT * FROM x ORDER BY id"), ["1|[1,7)", "2|[7,9)", "3|[9,10)"]);
    assert_eq!(pair.replica.lines("SELECT * FROM k ORDER BY id"), ["1|e", "3|b", "4|d"]);
}

#[test]
fn partitioned_targets_and_wide_rows() {
    let pair = Pair::new("wide");
    let columns: Vec<String> = (0..150).map(|at| format!("c{at} text")).collect();
    pair.both(&format!("CREATE TABLE w (id int PRIMARY KEY, {})", columns.join(", ")));
    pair.both(
        "CREATE TABLE p (id int, d int, a text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
    );
    let mut run = pair.run();
    let (w, p) = (run.target(&pair, "w", &["id"]), run.target(&pair, "p", &["id", "d"]));
    let mut wide = vec![V::from(1)];
    wide.extend((0..150).map(V::from));
    run.begin().insert(w, &wide).insert(p, row![1, 1, "a"]).insert(p, row![2, 11, "b"]);
    run.deliver();
    for at in [1, 64, 65, 128, 150] {
        let mut changed = vec![V::U; 151];
        changed[0] = V::from(1);
        changed[at] = V::from("changed");
        run.begin()
            .update(w, &changed)
            .rekey(p, row![1, 1, V::U], row![1, 12, V::U])
            .upsert(p, row![2, 11, "c"]);
        run.deliver();
        let count = format!("SELECT count(*) FROM w WHERE c{} = 'changed' AND c2 = '2'", at - 1);
        assert_eq!(pair.replica.value(&count), "1");
        run.begin().rekey(p, row![1, 12, V::U], row![1, 1, V::U]).update(p, row![2, 11, "d"]);
        run.deliver();
    }
    assert_eq!(
        pair.replica.lines("SELECT tableoid::regclass, * FROM p ORDER BY id"),
        ["p1|1|1|a", "p2|2|11|d"]
    );
}

#[test]
fn a_sink_that_waits_for_a_lock_ends_when_nobody_waits_for_it() {
    use walgate::sink::Worker;
    let pair = Pair::new("stop");
    pair.both(T);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (settings, identity) = (pair.settings.clone(), pair.identity.clone());
    let gate = Arc::new(tokio::sync::Mutex::new(()));
    let held = gate.clone().try_lock_owned().expect("free");
    runtime.block_on(async {
        // As the pipeline does it: opened on a blocking thread, handled on any.
        let open = move || ReplicaSession::open(settings, &identity);
        let (session, _) = tokio::task::spawn_blocking(open).await.unwrap().expect("opened");
        drop(session);
    });
    let stop = Stop::default();
    let mut run = pair.run_until(stop.clone());
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "a", "b"]).end();
    run.batch.sequence = 1;
    run.batch.progress = run.progress();
    let Run { sink, batch, .. } = run;
    pair.replica.exec("BEGIN; LOCK TABLE t");
    let worker = Worker::start("reporting", sink, stop, held, None).expect("started");
    worker.batches.blocking_send(batch).expect("taken");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(gate.try_lock().is_err(), "it waits");
    drop(worker);
    let began = std::time::Instant::now();
    while gate.try_lock().is_err() {
        assert!(began.elapsed().as_secs() < 10, "it still waits");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    pair.replica.exec("ROLLBACK");
}

/// The server of the replica crashes behind asynchronous commits: what has a receipt is there, and what is lost is lost
/// with its checkpoint.
#[test]
fn a_crash_of_the_replicas_server_keeps_what_has_a_receipt() {
    let server = cluster::Cluster::start(&[("wal_writer_delay", "10s"), ("autovacuum", "off")]);
    let mut pair = Pair::on(&server.url("postgres"), "durable");
    pair.both(T);
    let mut lost = 0;
    for round in 0..4_u64 {
        let mut run = pair.run();
        let t = run.target(&pair, "t", &["id"]);
        let id = |lsn: u64| i32::try_from(lsn / 0x100).expect("small");
        let from = run.lsn;
        run.begin();
        let first = id(run.lsn);
        run.insert(t, row![first, "a", "b"]);
        run.deliver();
        let proved = run.receipts.last().expect("one").safe_lsn();
        for _ in 0..round {
            run.begin();
            let next = id(run.lsn);
            run.insert(t, row![next, "a", "b"]).end();
            run.accept(false).expect("accepted");
        }
        let sent = run.lsn;
        server.stop(cluster::Shutdown::Immediate);
        assert_eq!(run.idle().err().map(|error| error.class()), (round > 0).then_some(Class::Transient));
        drop(run);
        server.resume();
        pair.reconnect();
        let stored = peek(&pair.settings).expect("stored").checkpoint.expect("a checkpoint");
        assert!(stored.safe_lsn >= proved && stored.commit_lsn.0 > from, "round {round}");
        assert_eq!(
            pair.replica.value("SELECT count(*), max(id) FROM t"),
            format!("{0}|{0}", id(stored.commit_lsn.0))
        );
        lost += (sent - stored.commit_lsn.0) / 0x100;
    }
    eprintln!("{lost} transactions were lost with their checkpoints, and come again");
}

#[test]
fn two_definitions_of_a_table_in_a_batch_keep_the_order_of_the_source() {
    let pair = Pair::new("definitions");
    pair.both("CREATE TABLE k (id int PRIMARY KEY, a int, b int)");
    let mut run = pair.run();
    let new = run.target(&pair, "k", &["id"]);
    pair.source.exec("ALTER TABLE k DROP b");
    let old = run.target(&pair, "k", &["id"]);
    run.begin().insert(new, row![1, 0, 0]).insert(new, row![2, 0, 0]).insert(new, row![3, 0, 0]);
    run.deliver();
    run.begin().update(old, row![1, 1]).update(new, row![1, 2, V::U]);
    run.update(new, row![2, 1, V::U]).update(old, row![2, 2]).update(new, row![2, 3, V::U]);
    run.update(old, row![3, 1]).update(new, row![3, 2, V::U]).update(old, row![3, 3]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT id, a FROM k ORDER BY id"), ["1|2", "2|3", "3|3"]);
}

#[test]
fn a_row_that_came_and_went_finds_a_foreign_one() {
    for policy in [OnConflict::Apply, OnConflict::Error] {
        let mut pair = Pair::new("came");
        pair.settings.on_conflict = policy;
        pair.both(T);
        pair.replica.exec("INSERT INTO t VALUES (1, 'local', 'l')");
        let mut run = pair.run();
        let t = run.target(&pair, "t", &["id"]);
        run.begin().insert(t, row![1, "source", "b"]).delete(t, row![1, V::U, V::U]);
        run.insert(t, row![2, "source", "b"]);
        if policy == OnConflict::Error {
            let error = run.try_deliver().expect_err("a conflict");
            assert!(error.is_definite() && error.chain().contains("insert_exists"), "{}", error.chain());
            continue;
        }
        run.deliver();
        assert_eq!(pair.replica.lines("SELECT * FROM t"), ["2|source|b"]);
        assert_eq!(
            pair.replica.value("SELECT kind, key FROM walgate.conflict"),
            "insert_exists|{\"id\":\"1\"}"
        );
    }
}

#[test]
fn a_table_that_a_kept_one_refers_to_is_emptied() {
    let pair = Pair::new("subset");
    pair.both("CREATE TABLE p (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, a text)");
    pair.replica.exec("CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)");
    let mut run = pair.run();
    let p = run.target(&pair, "p", &["id"]);
    run.begin().insert(p, row![1, "a"]).insert(p, row![2, "b"]);
    run.deliver();
    pair.replica.exec("INSERT INTO c VALUES (1, 1); SELECT nextval('p_id_seq'), nextval('p_id_seq')");
    run.begin().insert(p, row![3, "c"]).truncate(&[p], true).insert(p, row![4, "after"]);
    run.deliver();
    assert_eq!(pair.replica.lines("SELECT * FROM p"), ["4|after"]);
    assert_eq!(pair.replica.value("SELECT count(*) FROM c"), "1");
    assert_eq!(pair.replica.value("SELECT nextval('p_id_seq')"), "1");
    // Alone in its transaction as well.
    run.begin().truncate(&[p], false);
    run.deliver();
    assert_eq!(pair.replica.value("SELECT count(*) FROM p"), "0");
}

#[test]
fn tables_that_a_crash_empties_are_refused() {
    let pair = Pair::new("unlogged");
    pair.source.exec("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    pair.replica.exec(
        "CREATE UNLOGGED TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY) PARTITION BY RANGE (id); \
         CREATE UNLOGGED TABLE u1 PARTITION OF u FOR VALUES FROM (0) TO (10)",
    );
    for (name, remedy) in
        [("t", "ALTER TABLE \"public\".\"t\" SET LOGGED"), ("u", "ALTER TABLE \"public\".\"u1\" SET LOGGED")]
    {
        let mut run = pair.run();
        let t = run.target(&pair, name, &["id"]);
        run.begin().insert(t, row![1]);
        let error = run.try_deliver().expect_err("unlogged");
        assert!(error.is_definite() && error.chain().contains("UNLOGGED"), "{}", error.chain());
        assert_eq!(error.hint(), Some(remedy));
        drop(run);
        pair.replica.exec(remedy);
        let mut run = pair.run();
        let t = run.target(&pair, name, &["id"]);
        run.begin().insert(t, row![1]);
        run.deliver();
    }
}

/// A role that may make tables in the replica, and no more; gone at the end.
struct Role {
    name: String,
    database: String,
}

impl Role {
    fn new(replica: &Db) -> Role {
        let (name, database) = (format!("{}_role", replica.name), replica.name.clone());
        replica.exec(&format!("CREATE ROLE {name} LOGIN; GRANT CREATE ON DATABASE {database} TO {name}"));
        Role { name, database }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let name = &self.name;
        Db::connect(&self.database, "postgres")
            .exec(&format!("REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}"));
    }
}

#[test]
fn a_copy_that_cannot_begin_anew_says_why() {
    let mut pair = Pair::new("clear");
    pair.both("CREATE TABLE p (id int PRIMARY KEY, a text)");
    pair.replica.exec("CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p); INSERT INTO p VALUES (1, 'a'); INSERT INTO c VALUES (1, 1)");
    let role = Role::new(&pair.replica);
    pair.replica.exec(&format!("ALTER TABLE p OWNER TO {0}; ALTER TABLE c OWNER TO {0}", role.name));
    pair.settings.url.user = role.name.clone();
    let mut run = pair.run();
    let p = run.target(&pair, "p", &["id"]);
    run.begin().change(p, RowOp::Clear, true, &[], &[]);
    let error = run.try_deliver().expect_err("a row refers to it");
    assert!(error.is_definite() && error.chain().contains("c_p_fkey"), "{}", error.chain());
    assert!(error.hint().is_some_and(|hint| hint.contains("session_replication_role")), "{:?}", error.hint());
}

#[test]
fn a_table_that_changes_on_the_replica_is_looked_up_anew() {
    let pair = Pair::new("changed");
    pair.both("CREATE TABLE t (id int CONSTRAINT t_key PRIMARY KEY, a text, b int)");
    let mut run = pair.run();
    let mut t = run.target(&pair, "t", &["id"]);
    let mut id = 0;
    for (sql, is_transient) in [
        ("ALTER TABLE t DROP CONSTRAINT t_key", true),
        ("ALTER TABLE t ALTER b TYPE bytea USING NULL", true),
        ("ALTER TABLE t DROP a", false),
        ("ALTER TABLE t RENAME TO gone", false),
    ] {
        let play = |run: &mut Run, t, id| {
            run.begin().upsert(t, row![id, "a", 1]).upsert(t, row![id + 1, "a", 1]);
            run.try_deliver()
        };
        id += 2;
        play(&mut run, t, id).unwrap_or_else(|error| panic!("{sql}: {}", error.chain()));
        pair.replica.exec(sql);
        id += 2;
        let error = play(&mut run, t, id).expect_err(sql);
        assert_eq!(error.is_definite(), !is_transient, "{sql}: {}", error.chain());
        // What is missing is named with its remedy; what is only different is met by the next attempt.
        assert!(
            is_transient || error.hint().is_some_and(|hint| hint.contains(" TABLE ")),
            "{sql}: {error:?}"
        );
        drop(run);
        if sql.ends_with("DROP a") {
            pair.replica.exec("ALTER TABLE t ADD a text");
        }
        run = pair.run();
        t = run.target(&pair, "t", &["id"]);
    }
    run.begin().upsert(t, row![1, "a", 1]).upsert(t, row![2, "a", 1]);
    assert!(run.try_deliver().expect_err("it is gone").is_definite());
}

#[test]
fn what_an_administrator_made_stays_when_the_rows_are_forgotten() {
    let mut pair = Pair::new("granted");
    pair.both(T);
    drop(pair.session());
    pair.replica.exec("DELETE FROM walgate.checkpoint");
    let role = Role::new(&pair.replica);
    pair.replica.exec(&format!(
        "GRANT USAGE ON SCHEMA walgate TO {0}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walgate TO {0}",
        role.name
    ));
    pair.settings.url.user = role.name.clone();
    drop(pair.run());
    assert!(forget(&pair.settings).unwrap_or_else(|error| panic!("{}", error.chain())));
    assert_eq!(pair.replica.value("SELECT count(*) FROM walgate.checkpoint"), "0");
    assert!(!forget(&pair.settings).expect("nothing is left"));
    // And begins again.
    drop(pair.run());
}

#[test]
fn keys_of_extensions_are_found_on_the_source() {
    let pair = Pair::new("operators");
    pair.both(
        "CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE SCHEMA odd; \
         CREATE TABLE c (k citext PRIMARY KEY, a text); CREATE TABLE l (k ltree PRIMARY KEY, a text); \
         CREATE DOMAIN odd.name AS citext; CREATE TABLE d (k odd.name PRIMARY KEY, a text)",
    );
    pair.source.exec(
        "INSERT INTO c VALUES ('aB', 'citext'); INSERT INTO l VALUES ('a.b', 'ltree'); INSERT INTO d VALUES ('aB', 'domain'); \
         CREATE TABLE j (k point, a text); INSERT INTO j VALUES ('(1,2)', 'point')",
    );
    pair.replica.exec("CREATE TABLE j (k text PRIMARY KEY, a text)");
    for (name, key, value) in
        [("c", "Ab", "citext"), ("l", "a.b", "ltree"), ("d", "Ab", "domain"), ("j", "(1,2)", "point")]
    {
        let mut run = pair.run();
        let t = run.target(&pair, name, &["k"]);
        run.begin().upsert(t, row![key, V::U]).upsert(t, row!["1", "other"]);
        if name == "j" {
            // No operator compares these on the source: their text does.
            run.batch.rows.changes.pop();
        }
        run.deliver();
        let found = pair.replica.value(&format!("SELECT a FROM {name} WHERE k::text = '{key}'"));
        assert_eq!(found, value, "{name}");
    }
}

#[test]
fn time_limits_of_the_role_do_not_end_a_long_transaction() {
    let pair = Pair::new("limits");
    pair.both(T);
    let name = &pair.replica.name;
    for limit in
        ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"]
    {
        let knows = pair.replica.value(&format!("SELECT count(*) FROM pg_settings WHERE name = '{limit}'"));
        if knows == "1" {
            pair.replica.exec(&format!("ALTER DATABASE {name} SET {limit} = '300ms'"));
        }
    }
    let mut run = pair.run();
    let t = run.target(&pair, "t", &["id"]);
    run.begin().insert(t, row![1, "a", "b"]);
    run.accept(true).expect("accepted");
    std::thread::sleep(std::time::Duration::from_millis(600));
    // A lock is waited for as long as it lasts.
    pair.replica.exec("BEGIN; LOCK TABLE walgate.checkpoint IN ACCESS EXCLUSIVE MODE");
    let waiting = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            run.insert(t, row![2, "a", "b"]);
            run.try_deliver()
        });
        std::thread::sleep(std::time::Duration::from_millis(600));
        pair.replica.exec("COMMIT");
        running.join().expect("no panic")
    });
    waiting.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(pair.replica.value("SELECT count(*) FROM t"), "2");
}

/// Rows that are copied in the binary format are those that their texts say, to the ends of their types; what has no binary
/// form here takes its rows along as text.
#[test]
fn what_is_copied_in_binary_is_what_the_texts_say() {
    let pair = Pair::new("binary");
    let columns = [
        "bool",
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "numeric",
        "numeric(14,4)",
        "text",
        "varchar(12)",
        "char(6)",
        "date",
        "time",
        "timestamp",
        "timestamp(2)",
        "timestamptz",
        "uuid",
        "bytea",
        "json",
        "jsonb",
    ];
    let definition: Vec<String> = (1..).zip(columns).map(|(at, ty)| format!("c{at} {ty}")).collect();
    pair.both(&format!("CREATE TABLE b (id int PRIMARY KEY, {})", definition.join(", ")));
    // Each value that random ones would not find, in a row of its own; the last rows have no binary form.
    let edges = [
        (2, "-32768"),
        (2, "32767"),
        (3, "-2147483648"),
        (3, "2147483647"),
        (4, "-9223372036854775808"),
        (4, "9223372036854775807"),
        (5, "-0"),
        (5, "NaN"),
        (5, "1e-45"),
        (5, "3.4028235e38"),
        (6, "-Infinity"),
        (6, "5e-324"),
        (6, "1.7976931348623157e308"),
        (6, "0.1"),
        (7, "0.00000000000000000000000000000000001"),
        (7, "1e1000"),
        (7, "-0.000"),
        (7, "99999999999999999999.9999000"),
        (7, "1e-1000"),
        (8, "-1e9"),
        (9, ""),
        (9, "\u{1F600}\t\\\n"),
        (10, "  "),
        (11, " a"),
        (12, "infinity"),
        (12, "-infinity"),
        (12, "4713-01-01 BC"),
        (12, "5874897-12-31"),
        (12, "2000-02-29"),
        (13, "24:00:00"),
        (13, "00:00:00.000001"),
        (14, "infinity"),
        (14, "294276-12-31 23:59:59.999999"),
        (14, "4713-01-01 00:00:00 BC"),
        (15, "1999-12-31 23:59:59.999"),
        (16, "-infinity"),
        (16, "1999-12-31 23:59:59.999999+14"),
        (18, ""),
        (18, "\\x00ff5c"),
        (19, "{\"a\" : 1}"),
        (20, "[1.10, null]"),
        (20, "{}"),
        (7, "NaN"),
        (7, "-Infinity"),
    ];
    pair.source.exec(
        "INSERT INTO b SELECT i, i % 2 = 0, i * 7 - 1000, i * 7919, i * 7919::int8 * 1000003, i / 7.0, exp(i / 20.0), \
         (random() * 10 ^ (i % 40) - 5)::numeric, i / 13.0, md5(i::text), i::text, i::text, \
         date '1900-01-01' + i * 317, time '00:00' + i * interval '71.7 seconds', \
         timestamp '0001-01-01' + random() * interval '9000 years', timestamp '1990-01-01' + i * interval '1.2345 hours', \
         timestamptz '1969-01-01' + random() * interval '90 years', md5(i::text)::uuid, decode(md5(i::text), 'hex'), \
         json_build_object('i', i), jsonb_build_array(i, i / 3.0) FROM generate_series(1, 300) i; \
         INSERT INTO b (id) VALUES (301)",
    );
    for (id, (column, value)) in (302..).zip(edges) {
        pair.source
            .exec(&format!("INSERT INTO b (id, c{column}) VALUES ({id}, '{}')", value.replace('\'', "''")));
    }
    let mut run = pair.run();
    let b = run.target(&pair, "b", &["id"]);
    let sql = "SELECT * FROM b ORDER BY id";
    let rows = pair.source.rows(sql);
    // The two without a form of their own, in a part of their own.
    for part in [&rows[..rows.len() - 2], &rows[rows.len() - 66..]] {
        pair.replica.exec("TRUNCATE b");
        run.begin();
        for row in part {
            let cells: Vec<V> = row.iter().map(|text| text.as_deref().map_or(V::N, V::from)).collect();
            run.insert(b, &cells);
        }
        run.deliver();
        let written = pair.replica.rows(sql);
        for (found, expected) in written.iter().zip(part) {
            assert_eq!(found, expected);
        }
        assert_eq!(written.len(), part.len());
    }
    assert_eq!(pair.replica.value("SELECT count(*) FROM walgate.conflict"), "0");
}
