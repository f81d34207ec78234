//! The demo's large row: one event that travels by claim check, and what `walgate tail --resolve` makes of it.
//!
//! In: the demo's configuration, in its folder. Out: the event with everything in it, told. Always: the command is run as
//! anybody would run it, by this same program; that it fetched the right bytes is judged by the comparison of the tables.

use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::process::Command;

use super::progress::{Progress, grouped, pretty};
use super::workload::MEDIA;
use crate::command::throwaway::{Cluster, output_of};
use crate::error::{Error, Result};

const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The claim store: a directory beside the hub's.
pub fn store_of(cluster: &Cluster) -> String {
    let path = cluster.folder().join("claims");
    format!("file://{}", utf8_percent_encode(&path.to_string_lossy(), PATH))
}

/// Leaves the configuration where [`show`] finds it.
///
/// # Errors
/// When it cannot be written.
pub fn write_configuration(cluster: &Cluster, text: &str) -> Result<()> {
    let path = configuration_of(cluster);
    std::fs::write(&path, text)
        .map_err(|error| Error::definite(format!("{} cannot be written", path.display())).with_source(error))
}

fn configuration_of(cluster: &Cluster) -> PathBuf {
    cluster.folder().join("replication.toml")
}

/// Resolves the event and shows it; true: it is whole.
///
/// # Errors
/// What the command said.
pub async fn show(progress: &Progress, cluster: &Cluster) -> Result<bool> {
    let program = std::env::current_exe()
        .map_err(|error| Error::definite("walgate's own program cannot be found").with_source(error))?;
    let mut tail = Command::new(program);
    tail.arg("--config").arg(configuration_of(cluster));
    tail.args(["tail", &format!("shop.{MEDIA}"), "--from-beginning", "--count", "1", "--resolve"]);
    tail.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let printed = output_of("walgate tail --resolve", tail).await?;
    let event = printed.trim_end();
    progress.say(format!(
        "walgate tail --resolve of it: {} bytes, fetched from the claim store, size and sha256 compared\n{}",
        grouped(event.len() as u64),
        pretty(event)
    ));
    Ok(event.contains("\"claim\":null") && event.len() > 2 << 20)
}
