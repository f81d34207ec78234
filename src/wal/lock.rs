//! Who runs: an advisory lock on the source, keyed by the slot's name, on a connection of its own.
//!
//! Always holds: the lock's session is used every 2 s and the server ends it after 8 s without use,
//! so a frozen process or a vanished host loses it; a holder that has had no answer for 5 s must
//! stop delivering ([`Lock::is_held`], [`Lock::lost`]), before the server can give the lock away.
//! Locks are kept on a thread of their own: a pipeline whose thread is at a huge row for seconds has not lost its lock,
//! and would lose it again at the same row in each attempt.
//! A lock cannot stop a paused process that wakes up late: each destination fences as well
//! (EXACTLY_ONCE.md, "Who runs"). Manual: "Advisory Lock Functions".

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{Client, classify, connect};
use super::url::ConnectUrl;
use crate::error::{Error, Result};

const TRY_LOCK: &str =
    "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('walgate.' || $1, 0))";
/// `idle_session_timeout` exists from PostgreSQL 14 on.
const LIMITS: &str = "SET idle_session_timeout = '8s'; SET tcp_keepalives_idle = 5; \
SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 2";
const USE_TIME: Duration = Duration::from_secs(2);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// See the module. Never ended: it goes with the process.
static KEEPER: OnceLock<Runtime> = OnceLock::new();

/// A bigint key is in pg_locks as its two halves, with objsubid 1.
const HOLDER: &str = "SELECT a.pid, a.application_name, a.client_addr::text, a.usename::text \
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
  AND (l.classid::int8 << 32) | l.objid::int8 = pg_catalog.hashtextextended('walgate.' || $1, 0)";

/// The session that holds a pipeline's lock.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Holder {
    /// Its backend on the source.
    pub pid: i32,
    /// What it calls itself; hidden from roles that may not see it.
    pub application_name: Option<String>,
    /// Where it connects from; `None`: a Unix socket, or hidden.
    pub client_address: Option<String>,
    /// Its role.
    pub user: Option<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "backend {}", self.pid)?;
        self.user.as_ref().map_or(Ok(()), |user| write!(f, " of role {user}"))?;
        self.client_address.as_ref().map_or(Ok(()), |address| write!(f, " from {address}"))
    }
}

/// Who holds the lock of `slot` now.
///
/// # Errors
/// As the connection.
pub async fn holder(client: &Client, slot: &str) -> Result<Option<Holder>> {
    let row = client.query_opt(HOLDER, &[&slot]).await.map_err(classify)?;
    Ok(row.map(|row| Holder {
        pid: row.get(0),
        application_name: row.get(1),
        client_address: row.get(2),
        user: row.get(3),
    }))
}

/// The held lock; dropping it gives it back.
#[derive(Debug)]
pub struct Lock {
    state: Arc<watch::Sender<State>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct State {
    answered_at: Instant,
    lost: Option<Arc<str>>,
}

impl Lock {
    /// Takes the lock of `slot` if nobody holds it.
    ///
    /// # Errors
    /// As the connection.
    pub async fn try_take(url: &ConnectUrl, application_name: &str, slot: &str) -> Result<Option<Lock>> {
        let taking = Lock::take(url.clone(), format!("{application_name} lock"), slot.to_owned());
        let taken = keeper()?.spawn(taking).await;
        taken.map_err(|error| Error::transient("taking the lock did not end well").with_source(error))?
    }

    /// On the keeper's thread, where what it spawns stays.
    async fn take(url: ConnectUrl, application_name: String, slot: String) -> Result<Option<Lock>> {
        let client = connect(&url, &application_name).await?;
        client.batch_execute(LIMITS).await.map_err(classify)?;
        let row = client.query_one(TRY_LOCK, &[&slot]).await.map_err(classify)?;
        if !row.get::<_, bool>(0) {
            return Ok(None);
        }
        let state = Arc::new(watch::Sender::new(State { answered_at: Instant::now(), lost: None }));
        let task = tokio::spawn(keep(client, state.clone()));
        Ok(Some(Lock { state, task }))
    }

    /// Whether it is certainly still ours.
    pub fn is_held(&self) -> bool {
        let state = self.state.borrow();
        state.lost.is_none() && state.answered_at.elapsed() < ANSWER_TIME_MAX
    }

    /// Resolves when it is not certain any more; cancel-safe.
    pub async fn lost(&self) -> Error {
        let mut states = self.state.subscribe();
        loop {
            let (lost, deadline) = {
                let state = states.borrow_and_update();
                (state.lost.clone(), state.answered_at + ANSWER_TIME_MAX)
            };
            if let Some(reason) = lost {
                return Error::transient(format!("the lock on the source was lost: {reason}"));
            }
            tokio::select! {
                changed = states.changed() => {
                    if changed.is_err() {
                        return Error::transient("the lock on the source was lost");
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    return Error::transient("the source has not answered the lock's connection for 5 s");
                }
            }
        }
    }
}

fn keeper() -> Result<&'static Handle> {
    if let Some(keeper) = KEEPER.get() {
        return Ok(keeper.handle());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("locks")
        .enable_all()
        .build()
        .map_err(|error| Error::transient("the thread of the locks cannot be started").with_source(error))?;
    if let Err(second) = KEEPER.set(runtime) {
        // Another pipeline was first. A runtime may not be dropped where others run.
        second.shutdown_background();
    }
    Ok(KEEPER.get().expect("it was set").handle())
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(client: Client, state: Arc<watch::Sender<State>>) {
    loop {
        tokio::select! {
            // A source that shuts down says so here first: the stream is closed at once, so that the
            // shutdown does not wait for it (EXACTLY_ONCE.md, "The checkpoint").
            error = client.ended() => {
                state.send_modify(|state| state.lost = Some(error.chain().into()));
                return;
            }
            () = tokio::time::sleep(USE_TIME) => {}
        }
        match tokio::time::timeout(ANSWER_TIME_MAX, client.simple_query("SELECT 1")).await {
            Ok(Ok(_)) => state.send_modify(|state| state.answered_at = Instant::now()),
            Ok(Err(error)) => {
                let reason = classify(error).chain();
                state.send_modify(|state| state.lost = Some(reason.into()));
                return;
            }
            Err(_) => {
                state.send_modify(|state| state.lost = Some("no answer for 5 s".into()));
                return;
            }
        }
    }
}
