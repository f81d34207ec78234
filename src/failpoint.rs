//! Named places at which a test lets the process die, as kill -9 would.
//!
//! `WALGATE_FAILPOINT=name` aborts at the first pass of that place, `name:n` at the n-th. Without
//! the variable a pass costs one load of a static. The names are listed in
//! `docs/decisions/exactly-once.md`, crash point by crash point.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Armed {
    name: String,
    left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Every name that [`hit`] is called with.
pub const NAMES: &[&str] = &[
    "start.after-pending",
    "start.after-slot",
    "snapshot.after-slot",
    "snapshot.after-begun",
    "snapshot.in-table",
    "snapshot.after-table",
    "snapshot.after-all",
    "stream.after-start",
    "stream.in-transaction",
    "stream.before-status",
    "stream.after-status",
    "backlog.in-chunk",
    "backlog.after-chunk",
    "backlog.before-stream",
    "claim.after-put",
    "cleanup.before-delete",
    "cleanup.after-delete",
    "file.after-append",
    "file.after-checkpoint",
    "kafka.after-produce",
    "kafka.before-commit",
    "kafka.after-commit",
    "kafka.before-checkpoint",
    "replica.before-commit",
    "replica.after-commit",
    "replica.before-confirm",
    "replica.after-confirm",
    "replica.copy.before-commit",
    "replica.copy.after-commit",
];

/// Dies here if the environment says so.
pub fn hit(name: &'static str) {
    debug_assert!(NAMES.contains(&name), "{name} is not listed");
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("WALGATE_FAILPOINT").ok()?;
        let (name, left) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Armed { name: name.to_owned(), left: AtomicU64::new(left.parse().unwrap_or(1)) })
    });
    let Some(armed) = armed else { return };
    if armed.name == name && armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        // As abrupt as a crash: no destructor, no flush, no farewell to any server.
        std::process::abort();
    }
}
