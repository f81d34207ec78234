//! `[claim_check]`: where events that are too large for the hub are stored, and how large that is.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::file::Section;
use super::schema;

/// The claim store, and what goes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimCheck {
    /// Which one, and where.
    pub store: ClaimStoreAddress,
    /// Events, or columns, larger than this travel by claim check; in bytes.
    pub threshold_bytes: usize,
}

/// Which claim store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimStoreAddress {
    /// `file:///path`
    Directory(PathBuf),
    /// `s3://bucket/prefix`
    S3(S3Address),
}

/// A bucket of S3, or of a server that speaks its protocol.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Address {
    /// Its bucket.
    pub bucket: String,
    /// What every key begins with, without a slash at its end; may be empty.
    pub prefix: String,
    /// The server; `None`: AWS.
    pub endpoint: Option<String>,
    /// `http://host/bucket/key` in place of `http://bucket.host/key`.
    pub path_style: bool,
    /// The bucket's region; `None`: as the environment says.
    pub region: Option<String>,
    /// `None`: the usual AWS chain.
    pub credentials: Option<S3Credentials>,
    /// How the server encrypts the objects; `None`: as the bucket says.
    pub encryption: Option<Encryption>,
    /// The key for [`Encryption::Kms`]; `None`: the account's own.
    pub kms_key_id: Option<String>,
    /// Every object gets these tags.
    pub tags: Vec<(String, String)>,
}

/// A key of S3. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// Whose it is.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
    /// Of temporary keys.
    pub session_token: Option<String>,
}

/// How the server encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// `sse = "AES256"`: by the store's own key.
    Aes256,
    /// `sse = "aws:kms"`: by a key of KMS.
    Kms,
}

impl Encryption {
    /// Its name in S3's protocol.
    pub fn name(self) -> &'static str {
        match self {
            Encryption::Aes256 => "AES256",
            Encryption::Kms => "aws:kms",
        }
    }
}

impl fmt::Debug for S3Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Address")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("endpoint", &self.endpoint)
            .field("path_style", &self.path_style)
            .field("region", &self.region)
            .field("credentials", &self.credentials.as_ref().map(|_| "configured"))
            .field("encryption", &self.encryption)
            .field("kms_key_id", &self.kms_key_id)
            .field("tags", &self.tags)
            .finish()
    }
}

/// RFC 3986's unreserved characters stay; in a path the slash does, too.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

impl ClaimStoreAddress {
    /// What a reference says of the object that has this key within the store.
    pub fn uri(&self, key: &str) -> String {
        match self {
            // A key of S3 is written as it is, as every S3 client takes it; a file's URL is encoded like any URL.
            ClaimStoreAddress::S3(s3) => format!("s3://{}/{}", s3.bucket, s3.key(key)),
            ClaimStoreAddress::Directory(path) => {
                let path = path.join(key);
                format!("file://{}", utf8_percent_encode(&path.to_string_lossy(), PATH))
            }
        }
    }
}

impl S3Address {
    /// The key in the bucket of the object that has this key within the store.
    pub fn key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }
}

/// Below the 256 KB that the tightest buses take.
const THRESHOLD_BYTES_DEFAULT: u64 = 262_144;
/// An envelope with its reference has about this size: below it nothing would get smaller.
const THRESHOLD_BYTES_MIN: u64 = 1024;
/// Far above what any broker takes in one message.
const THRESHOLD_BYTES_MAX: u64 = 1 << 30;
/// S3 takes no more on an object.
const TAGS_MAX: usize = 10;

/// `None`: without the section every event travels inline.
pub(super) fn read(section: &Section<'_>) -> Option<ClaimCheck> {
    if !section.is_there() {
        return None;
    }
    section.allow(schema::CLAIM_CHECK);
    let threshold = section.integer("threshold_bytes", THRESHOLD_BYTES_MIN..=THRESHOLD_BYTES_MAX);
    let threshold = threshold.unwrap_or(THRESHOLD_BYTES_DEFAULT);
    Some(ClaimCheck {
        store: read_store(section)?,
        threshold_bytes: usize::try_from(threshold).expect("the range of the key is within Int32"),
    })
}

fn read_store(section: &Section<'_>) -> Option<ClaimStoreAddress> {
    const EXAMPLE: &str = "write store = \"s3://bucket/prefix\" or store = \"file:///path\"";
    if !section.has("store") {
        section.fault_of_missing("store", "where large events are stored", EXAMPLE);
        return None;
    }
    let text = section.string("store")?;
    if let Some(path) = text.strip_prefix("file://") {
        for key in schema::CLAIM_CHECK_S3.iter().filter(|key| section.has(key)) {
            let remedy = format!("remove {key}, or write store = \"s3://bucket/prefix\"");
            section.fault(key, "belongs to a store on S3; this one is a directory", remedy);
        }
        return match percent_decode_str(path).decode_utf8() {
            Ok(path) if path.starts_with('/') => {
                Some(ClaimStoreAddress::Directory(PathBuf::from(path.into_owned())))
            }
            _ => {
                let remedy = "write three slashes and an absolute path: file:///var/lib/walgate/claims";
                section.fault_of_value("store", "is no URL of a directory", remedy);
                None
            }
        };
    }
    let (bucket, prefix) = match text.strip_prefix("s3://") {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => ("", ""),
    };
    if bucket.is_empty() {
        section.fault_of_value("store", "is no claim store", EXAMPLE);
        return None;
    }
    let encryptions = [Encryption::Aes256, Encryption::Kms].map(|one| (one.name(), one));
    let encryption = section.choice("sse", &encryptions, &[]);
    let kms_key_id = section.string("sse_kms_key_id");
    if kms_key_id.is_some() && encryption != Some(Encryption::Kms) {
        section.fault("sse_kms_key_id", "belongs to sse = \"aws:kms\"", "remove it, or write that");
    }
    Some(ClaimStoreAddress::S3(S3Address {
        bucket: bucket.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        endpoint: read_endpoint(section),
        path_style: section.boolean("path_style").unwrap_or(false),
        region: section.string("region"),
        credentials: read_credentials(section),
        encryption,
        kms_key_id,
        tags: read_tags(section),
    }))
}

fn read_endpoint(section: &Section<'_>) -> Option<String> {
    let endpoint = section.url("endpoint")?;
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        section.fault("endpoint", "is no URL of a server", "write endpoint = \"http://s3:9000\"");
        return None;
    }
    Some(endpoint.trim_end_matches('/').to_owned())
}

fn read_credentials(section: &Section<'_>) -> Option<S3Credentials> {
    let pair = ["access_key_id", "secret_access_key"];
    let [access_key_id, secret_access_key] = pair.map(|key| section.string(key));
    let session_token = section.string("session_token");
    match (access_key_id, secret_access_key) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Some(S3Credentials { access_key_id, secret_access_key, session_token })
        }
        _ => {
            let has = |key: &str| section.has(key);
            let is_any = pair.iter().any(|key| has(key)) || has("session_token");
            if let Some(missing) = pair.iter().find(|key| is_any && !has(key)) {
                let remedy = "write both, or neither for the usual AWS chain (environment, profile, role)";
                section.fault(missing, "is missing beside the other half of the key", remedy);
            }
            None
        }
    }
}

fn read_tags(section: &Section<'_>) -> Vec<(String, String)> {
    let tags: Vec<_> = section.properties("tags").into_iter().collect();
    if tags.len() > TAGS_MAX {
        section.fault("tags", format!("are {}", tags.len()), format!("S3 takes at most {TAGS_MAX}"));
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_can_be_followed() {
        let directory = ClaimStoreAddress::Directory(PathBuf::from("/var/claim store"));
        assert_eq!(
            directory.uri("shop/public/t/shop%2F1.json"),
            "file:///var/claim%20store/shop/public/t/shop%252F1.json"
        );
        let mut s3 = S3Address {
            bucket: "b".into(),
            prefix: "p/q".into(),
            endpoint: None,
            path_style: false,
            region: None,
            credentials: Some(S3Credentials {
                access_key_id: "id".into(),
                secret_access_key: "s3cr3t".into(),
                session_token: None,
            }),
            encryption: None,
            kms_key_id: None,
            tags: Vec::new(),
        };
        assert!(!format!("{s3:?}").contains("s3cr3t"));
        assert_eq!(s3.key("x/y%2F.json"), "p/q/x/y%2F.json");
        s3.prefix.clear();
        assert_eq!(ClaimStoreAddress::S3(s3).uri("x/y%2F.json"), "s3://b/x/y%2F.json");
    }
}
