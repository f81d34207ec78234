//! Whether the objects that an event claims are there, and are as they were published: for `walgate claims check`.
//!
//! Comes in: an event's value, as the hub has it. Goes out: a finding for each object that it claims, directly or inside
//! of the object that is the whole event. Always holds: nothing is changed; a store that does not answer is an error, not
//! a finding. One object is in memory at a time.

use super::resolve::{Envelope, Reference, splice};
use super::{ClaimStore, forms};
use crate::config::ClaimStoreAddress;
use crate::error::Result;

/// One object, looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The event that claims it.
    pub event: String,
    /// As it claims it.
    pub uri: String,
    /// How it is.
    pub verdict: Verdict,
}

/// How an object is.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it was published.
    Good,
    /// There is none.
    Missing,
    /// It has another size or sha256: which.
    Altered(String),
    /// In another store than the one that is configured: it cannot be looked at.
    Elsewhere,
}

/// Looks at all that an event claims; what is no event claims nothing.
///
/// # Errors
/// What the store says.
pub async fn inspect(store: &ClaimStore, address: &ClaimStoreAddress, value: &[u8]) -> Result<Vec<Finding>> {
    let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(value) else {
        return inspect_form(store, address, value).await;
    };
    let mut findings = Vec::new();
    let Some(reference) = &envelope.claim else {
        columns(store, address, &envelope, &mut findings).await?;
        return Ok(findings);
    };
    let key = envelope.key();
    if address.uri(&key) != reference.uri {
        findings.push(finding(&envelope.id, &reference.uri, Verdict::Elsewhere));
        return Ok(findings);
    }
    let body = store.get(&key).await?;
    findings.push(finding(&envelope.id, &reference.uri, verdict(body.as_deref(), reference)));
    if let Some(whole) = body.as_deref().and_then(|body| serde_json::from_slice::<Envelope<'_>>(body).ok()) {
        columns(store, address, &whole, &mut findings).await?;
    }
    Ok(findings)
}

async fn columns(
    store: &ClaimStore,
    address: &ClaimStoreAddress,
    envelope: &Envelope<'_>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    for column in envelope.claimed_columns(address) {
        let body = store.get(&column.key).await?;
        let verdict = verdict(body.as_deref(), &column.reference);
        findings.push(finding(&envelope.id, &column.reference.uri, verdict));
    }
    Ok(())
}

/// An event of another form than our envelope.
async fn inspect_form(store: &ClaimStore, address: &ClaimStoreAddress, value: &[u8]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut value = value.to_vec();
    // The data of a CloudEvent may have columns that are elsewhere: seen once they are in their place.
    for _ in 0..2 {
        let Some(found) = forms::find(address, &value) else { break };
        let elsewhere = found.elsewhere.as_ref().map(|uri| finding(&found.event, uri, Verdict::Elsewhere));
        findings.extend(elsewhere);
        let mut pieces = Vec::new();
        for part in &found.parts {
            let body = store.get(&part.key).await?;
            let verdict = verdict(body.as_deref(), &part.reference);
            if let (Verdict::Good, Some(body)) = (&verdict, &body) {
                pieces.push((part.at.clone(), part.inline(body)));
            }
            findings.push(finding(&found.event, &part.reference.uri, verdict));
        }
        if pieces.is_empty() || pieces.len() < found.parts.len() {
            break;
        }
        value = splice(&value, pieces);
    }
    Ok(findings)
}

fn verdict(body: Option<&[u8]>, reference: &Reference<'_>) -> Verdict {
    match body.map(|body| reference.compare(body)) {
        None => Verdict::Missing,
        Some(Ok(())) => Verdict::Good,
        Some(Err(what)) => Verdict::Altered(what),
    }
}

fn finding(event: &str, uri: &str, verdict: Verdict) -> Finding {
    Finding { event: event.to_owned(), uri: uri.to_owned(), verdict }
}
