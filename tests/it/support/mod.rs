//! What the integration tests stand on: sources, hubs, the binary, and what a consumer makes of the events.
//!
//! Everything here blocks: a test reads as a story, top to bottom. Sessions with PostgreSQL live on one
//! background runtime, so the helpers work inside an async test too.

// A helper is here for the tests to come as well.
#![allow(dead_code)]

pub mod servers;
pub mod source;
pub mod cluster;
pub mod hub;
pub mod kafka;
pub mod event;
pub mod walgate;
pub mod fold;
pub mod rows;
pub mod http;
pub mod s3;
pub mod pick;
pub mod workload;
pub mod broker;

pub use broker::Broker;
pub use cluster::{Cluster, Shutdown};
pub use event::Event;
pub use fold::Fold;
pub use hub::Hub;
pub use s3::S3;
pub use source::{Session, Source};
pub use walgate::Walgate;
pub use workload::{Workload, without_repetitions};

use std::time::{Duration, Instant};

/// How long a test waits for what should come at once: generous, since two cores serve everything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls `condition` until it gives a value, and panics with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Polls `condition` until it holds, and panics with `what` after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, PATIENCE, || condition().then_some(()));
}

/// A name nobody else uses, on a shared server: a test's own database, slots, topics.
///
/// At most 40 characters of a-z, 0-9 and _, so that `<name>_hub` fits into a slot's 63.
pub fn unique_name(test: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let plain: String = test
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .take(24)
        .collect();
    format!("t_{plain}_{:x}_{count}", std::process::id())
}
