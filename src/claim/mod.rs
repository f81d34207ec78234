//! The claim store: where events that are too large for the hub are (DESIGN section 5, docs/claims.md).
//!
//! Comes in: objects, each with its key. Goes out: the proof by return that one is stored, whole and durable. Always
//! holds: an object appears under its key at once or not at all; the same key always gets the same bytes, so that
//! storing it again, by a retry or a replay, changes nothing. What stores them before their events are published is
//! [`stage`]; what reads them is [`resolve`]; whose they are is told by [`place`], and whether they are as published by
//! [`inspect`].

mod directory;
mod forms;
mod s3;
pub mod place;
pub mod resolve;
pub mod inspect;
pub mod stage;

use std::time::SystemTime;

use bytes::Bytes;

use crate::config::{ClaimCheck, ClaimStoreAddress};
use crate::error::Result;
use crate::route::claim::Claim;
use directory::Directory;
use s3::Bucket;

/// An object that is there.
#[derive(Clone, Debug)]
pub struct Object {
    /// Within the store.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last stored, by the store's clock.
    pub stored_at: SystemTime,
    /// What a crash has left of one, or is being written now.
    pub is_unfinished: bool,
}

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

    /// The objects whose keys begin with `directory`, which ends with a slash.
    ///
    /// # Errors
    /// As [`ClaimStore::put`].
    pub async fn list(&self, directory: &str) -> Result<Vec<Object>> {
        match self {
            ClaimStore::Directory(store) => store.list(directory).await,
            ClaimStore::S3(bucket) => bucket.list(directory).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{ClaimStoreAddress, S3Address};

    /// The address that a URL names.
    pub(super) fn store_at(url: &str) -> ClaimStoreAddress {
        if let Some(path) = url.strip_prefix("file://") {
            return ClaimStoreAddress::Directory(path.into());
        }
        let (bucket, prefix) = url.strip_prefix("s3://").expect("a store").split_once('/').expect("a prefix");
        ClaimStoreAddress::S3(S3Address {
            bucket: bucket.into(),
            prefix: prefix.into(),
            endpoint: None,
            path_style: false,
            region: None,
            credentials: None,
            encryption: None,
            kms_key_id: None,
            tags: Vec::new(),
        })
    }
}
