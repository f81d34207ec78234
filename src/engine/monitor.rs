//! Looks at the slot from outside, whatever the pipeline is doing: WAL that the source retains
//! because of Walgate is always visible (DESIGN, invariant 7), also in a copy and in back-off.
//!
//! Comes in: the source's answer, every two seconds, on a connection of its own. Goes out: figures in
//! the pipeline's status. An unreachable source changes nothing: the last figures stay.

use std::time::Duration;

use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::wal::client::{Client, connect};
use crate::wal::slot;

/// Between two looks: one row of a view in memory each.
const LOOK_TIME: Duration = Duration::from_secs(2);
/// Before trying to connect again; the pipeline itself says what is wrong.
const RECONNECT_TIME: Duration = Duration::from_secs(5);
/// Until the slot is there, one looks more often: so that the first figures come at once.
const NO_SLOT_TIME: Duration = Duration::from_millis(200);

/// Never ends.
pub async fn run(pipeline: Pipeline) {
    loop {
        let application_name = format!("{} monitor", pipeline.application_name());
        if let Ok(client) = connect(&pipeline.url, &application_name).await {
            while let Ok(is_there) = look(&pipeline, &client).await {
                tokio::time::sleep(if is_there { LOOK_TIME } else { NO_SLOT_TIME }).await;
            }
        }
        tokio::time::sleep(RECONNECT_TIME).await;
    }
}

/// True: the slot is there.
async fn look(pipeline: &Pipeline, client: &Client) -> Result<bool> {
    let end = slot::source_end(client).await?;
    let slot = slot::state(client, &pipeline.slot).await?;
    pipeline.status.update(|status| {
        status.source_lsn = status.source_lsn.max(end);
        if let Some(slot) = &slot {
            status.retained_wal_bytes =
                slot.retained_wal_bytes.and_then(|b| u64::try_from(b).ok()).unwrap_or(0);
            status.confirmed_lsn = status.confirmed_lsn.max(slot.confirmed_flush_lsn.unwrap_or_default());
        }
    });
    Ok(slot.is_some())
}
