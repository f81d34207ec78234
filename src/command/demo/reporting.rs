//! The demo's replica: a second database that gets some of the orders as rows.
//!
//! In: the pipeline of the replica, once it has caught up. Out: what `walgate verify` finds of it, told. Always: it is the
//! command's own comparison that judges, and its result is part of the demo's. (Without `--wait`: the pipeline has ended
//! only when everything was durable, and an idle one would keep the demo waiting for its next checkpoint, up to 10 s.)

use super::progress::{Progress, grouped};
use super::workload::{Committed, ORDERS};
use crate::command::verify::{self, TableReport};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::wal::client::{Client, classify};

/// The replica, and its database.
pub const REPORTING: &str = "reporting";
/// Which orders it gets. Every other update of an order moves it across.
pub const FILTER: &str = "total >= 500";
const KEYS_SHOWN: usize = 3;

/// How many orders the replica has.
///
/// # Errors
/// As the connection.
pub async fn count(replica: &Client) -> Result<u64> {
    let row = replica.query_one(&format!("SELECT count(*) FROM {ORDERS}"), &[]).await.map_err(classify)?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// `walgate verify` of the orders.
///
/// # Errors
/// As the connections.
pub async fn verify(pipeline: &Pipeline) -> Result<TableReport> {
    let asked = verify::Arguments { tables: vec![], replica: None, wait: false, json: true };
    let mut reports = verify::compare(pipeline, &asked).await?;
    reports.pop().ok_or_else(|| Error::definite("the demo's replica gets no table"))
}

/// What was found; true: the replica is what the rule says.
pub fn tell(progress: &Progress, found: &TableReport, committed: &Committed) -> bool {
    let TableReport { rows_source, rows_replica, differing, .. } = found;
    let is_equal = differing.is_empty();
    let verdict = match differing.len() {
        0 => "equal (walgate verify)".to_owned(),
        count => format!(
            "DIFFERENT ({}); the source has {} such rows",
            grouped(count as u64),
            grouped(*rows_source)
        ),
    };
    progress.say(format!(
        "  {:<24} {:>8} rows  {verdict}; orders WHERE {FILTER}: updates moved {} in and {} out",
        format!("{REPORTING}: orders"),
        grouped(*rows_replica),
        grouped(committed.entered),
        grouped(committed.left)
    ));
    for one in differing.iter().take(KEYS_SHOWN) {
        progress.say(format!("      {one:?}"));
    }
    is_equal
}
