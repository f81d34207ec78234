//! The far side: events as a consumer has them that follows their references.
//!
//! Always: what is not there, or has another size or another sha256 than the reference says, is an error.

use std::fmt::Write;

use rdkafka::message::Message;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::store::Store;
use crate::contender::Contender;
use crate::servers::kafka_brokers;
use crate::{Result, hub};

/// An event, and what stands in it in place of objects, replaced by them.
pub struct Whole {
    /// The envelope; of a claimed event the object's.
    pub event: Value,
    /// The object of the column `photo`, where that went by itself.
    pub photo: Option<Vec<u8>>,
    /// Where it was.
    pub partition: i32,
    /// Whether anything of it was claimed.
    pub is_claimed: bool,
}

#[derive(Deserialize)]
struct Reference {
    uri: String,
    bytes: usize,
    sha256: String,
}

/// Calls `look` with each event of the contender's topic, each partition in its order; returns how many were claimed.
pub fn each(contender: &Contender, store: &Store, mut look: impl FnMut(Whole) -> Result<()>) -> Result<u64> {
    let mut claimed = 0;
    hub::each(&kafka_brokers()?, &contender.topic(), |message| {
        let event: Value = serde_json::from_slice(message.payload().unwrap_or_default())?;
        let whole = follow(event, message.partition(), store)?;
        claimed += u64::from(whole.is_claimed);
        look(whole)
    })?;
    Ok(claimed)
}

fn follow(event: Value, partition: i32, store: &Store) -> Result<Whole> {
    if !event["claim"].is_null() {
        let whole: Value = serde_json::from_slice(&object(&event["claim"], store)?)?;
        if whole["id"] != event["id"] {
            return Err(format!("event {} claims another: {}", event["id"], whole["id"]).into());
        }
        return Ok(Whole { event: whole, photo: None, partition, is_claimed: true });
    }
    let reference = &event["data"]["photo"]["$claim"];
    let photo = if reference.is_null() { None } else { Some(object(reference, store)?) };
    Ok(Whole { is_claimed: photo.is_some(), event, photo, partition })
}

fn object(reference: &Value, store: &Store) -> Result<Vec<u8>> {
    let Reference { uri, bytes, sha256 } = Reference::deserialize(reference)?;
    let body = std::fs::read(store.path(&uri)).map_err(|error| format!("{uri}: {error}"))?;
    let mut found = String::new();
    for byte in Sha256::digest(&body) {
        write!(found, "{byte:02x}")?;
    }
    if (body.len(), &found) != (bytes, &sha256) {
        return Err(format!(
            "{uri}: {} bytes with sha256 {found}, published were {bytes} with {sha256}",
            body.len()
        )
        .into());
    }
    Ok(body)
}
