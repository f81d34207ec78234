//! The claim store: where events that are too large for the hub are (DESIGN section 5, docs/claims.md).
//!
//! Comes in: objects, each with its key. Goes out: the proof by return that one is stored, whole and durable. Always
//! holds: an object appears under its key at once or not at all; the same key always gets the same bytes, so that
//! storing it again, by a retry or a replay, changes nothing. What stores them before their events are published is
//! [`stage`]; what reads them is [`resolve`].

mod directory;
mod forms;
mod s3;
pub mod resolve;
pub mod stage;

use bytes::Bytes;

use crate::config::{ClaimCheck, ClaimStoreAddress};
use crate::error::Result;
use crate::route::claim::Claim;
use directory::Directory;
use s3::Bucket;

/// A claim store, ready for use.
#[derive(Debug)]
pub enum ClaimStore {
    /// A directory.
    Directory(Directory),
    /// A bucket of S3.
    S3(Box<Bucket>),
}

impl ClaimStore {
    /// As configured; nothing is asked of it yet.
    pub async fn open(claim_check: &ClaimCheck) -> Self {
        match &claim_check.store {
            ClaimStoreAddress::Directory(path) => ClaimStore::Directory(Directory::new(path)),
            ClaimStoreAddress::S3(address) => ClaimStore::S3(Box::new(Bucket::open(address).await)),
        }
    }

    /// Stores an object; on return it is there, complete.
    ///
    /// # Errors
    /// Transient: the store cannot be reached, or is full or slow. Definite: it refuses.
    pub async fn put(&self, claim: &Claim) -> Result<()> {
        let done = match self {
            ClaimStore::Directory(directory) => directory.put(claim).await,
            ClaimStore::S3(bucket) => bucket.put(claim).await,
        };
        done.map_err(|error| error.context(format_args!("table {}, a claim", claim.relation)))
    }

    /// The object with this key; `None`: there is none.
    ///
    /// # Errors
    /// As [`ClaimStore::put`].
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        match self {
            ClaimStore::Directory(directory) => directory.get(key).await,
            ClaimStore::S3(bucket) => bucket.get(key).await,
        }
    }

    /// Removes the object with this key, if there is one.
    ///
    /// # Errors
    /// As [`ClaimStore::put`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self {
            ClaimStore::Directory(directory) => directory.delete(key).await,
            ClaimStore::S3(bucket) => bucket.delete(key).await,
        }
    }
}
