//! `check`, the claim store: can objects be stored, read and removed? By a probe, which is removed at once.

use super::report::Report;
use crate::claim::ClaimStore;
use crate::config::{ClaimCheck, ClaimStoreAddress};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::route::claim::probe;

const REMEDY: &str =
    "see that the claim store runs, and that claim_check.store and claim_check.endpoint say where it is";

/// Stores, reads and removes a probe, where a claim store is configured.
pub async fn examine(pipeline: &Pipeline, report: &Report) {
    let Some(claim_check) = &pipeline.config.claim_check else { return };
    let store = ClaimStore::open(claim_check).await;
    if let Err(error) = round(&store, claim_check, &pipeline.source_name).await {
        let key = match &claim_check.store {
            ClaimStoreAddress::S3(s3) if s3.endpoint.is_some() && !error.is_definite() => {
                "claim_check.endpoint"
            }
            _ => "claim_check.store",
        };
        report.error(key, &error, REMEDY);
    }
}

async fn round(store: &ClaimStore, claim_check: &ClaimCheck, source_name: &str) -> Result<()> {
    let claim = probe(claim_check, source_name, std::process::id());
    store.put(&claim).await?;
    let read = store.get(&claim.key).await;
    // What could not be read is removed all the same.
    let deleted = store.delete(&claim.key).await;
    if read?.as_ref() != Some(&claim.body) {
        return Err(Error::definite(format!("{} is not what was stored there", claim.uri))
            .with_hint("see whether a cache or another program stands before the claim store"));
    }
    deleted
}
