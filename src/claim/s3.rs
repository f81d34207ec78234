//! The claim store as a bucket of S3, or of any server that speaks its protocol.
//!
//! Always holds: an object is complete when it is seen, since S3 shows nothing of an upload before its end; its sha256
//! goes along, and a store that knows of checksums refuses what arrives differently. Objects above 8 MiB go in parts,
//! which are removed when one of them fails. Nothing is retried here. S3 API Reference: "PutObject",
//! "CreateMultipartUpload", "Checking object integrity".

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Credentials, RequestChecksumCalculation, ResponseChecksumValidation, SharedCredentialsProvider,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::Object;
use crate::config::{S3Address, S3Credentials};
use crate::error::{Error, Result};
use crate::route::claim::Claim;

/// Larger objects go in parts of this size.
const PART_BYTES: usize = 8 << 20;
/// Parts of one object on their way at a time.
const PARTS_MAX: usize = 4;
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// From a request's first byte to its answer's: a part at 140 kB/s.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Where neither the file nor the environment names one: what servers other than AWS expect.
const REGION_DEFAULT: &str = "us-east-1";

/// See the module.
#[derive(Debug)]
pub struct Bucket {
    client: Client,
    address: S3Address,
    /// Until the store says that it knows none.
    takes_checksums: AtomicBool,
}

/// What a request to S3 may end with.
trait Refusal: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static {}
impl<T: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static> Refusal for T {}

impl Bucket {
    pub(super) async fn open(address: &S3Address) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let times =
            TimeoutConfig::builder().connect_timeout(CONNECT_TIME_MAX).read_timeout(ANSWER_TIME_MAX).build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(times)
            .region(region(address).await);
        if let Some(S3Credentials { access_key_id, secret_access_key, session_token }) = &address.credentials
        {
            let (token, until) = (session_token.clone(), None);
            let pair = Credentials::new(access_key_id, secret_access_key, token, until, "replication.toml");
            loader = loader.credentials_provider(SharedCredentialsProvider::new(pair));
        }
        let mut config = aws_sdk_s3::config::Builder::from(&loader.load().await)
            .force_path_style(address.path_style)
            // Ours is a sha256 that is known already, and what is read is compared with its reference.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &address.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Bucket {
            client: Client::from_conf(config.build()),
            address: address.clone(),
            takes_checksums: AtomicBool::new(true),
        }
    }

    pub(super) async fn put(&self, claim: &Claim) -> Result<()> {
        let with_checksums = self.takes_checksums.load(Ordering::Relaxed);
        let done = self.try_put(claim, with_checksums).await;
        if with_checksums && done.as_ref().is_err_and(is_checksum_unknown) {
            tracing::warn!(
                bucket = self.address.bucket,
                "the claim store takes no sha256 checksums: they are left out"
            );
            self.takes_checksums.store(false, Ordering::Relaxed);
            return self.try_put(claim, false).await;
        }
        done
    }

    async fn try_put(&self, claim: &Claim, with_checksums: bool) -> Result<()> {
        let key = self.address.key(&claim.key);
        if claim.body.len() > PART_BYTES {
            return self.put_in_parts(claim, &key, with_checksums).await;
        }
        let request = self
            .client
            .put_object()
            .bucket(&self.address.bucket)
            .key(&key)
            .content_type(claim.content_type)
            .set_checksum_sha256(with_checksums.then(|| STANDARD.encode(claim.sha256)))
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.address.kms_key_id.clone())
            .set_tagging(self.tagging())
            .body(ByteStream::from(claim.body.clone()));
        // The checksum is signed and covers the body: hashing it once more would only cost.
        let sent = match with_checksums {
            true => request.customize().disable_payload_signing().send().await,
            false => request.send().await,
        };
        sent.map(drop).map_err(|error| self.classify("storing", &key, error))
    }

    async fn put_in_parts(&self, claim: &Claim, key: &str, with_checksums: bool) -> Result<()> {
        let bucket = &self.address.bucket;
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(bucket)
            .key(key)
            .content_type(claim.content_type)
            .set_checksum_algorithm(with_checksums.then_some(ChecksumAlgorithm::Sha256))
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.address.kms_key_id.clone())
            .set_tagging(self.tagging())
            .send()
            .await
            .map_err(|error| self.classify("beginning to store", key, error))?;
        let upload = begun
            .upload_id()
            .ok_or_else(|| Error::transient("the claim store began an upload without a name"))?;
        let stored = self.put_parts(claim, key, upload, with_checksums).await;
        if stored.is_err() {
            let abort = self.client.abort_multipart_upload().bucket(bucket).key(key).upload_id(upload);
            if let Err(error) = abort.send().await {
                let error = self.classify("removing the parts of", key, error);
                tracing::warn!(
                    "{}; a lifecycle rule of the bucket should remove incomplete uploads",
                    error.chain()
                );
            }
        }
        stored
    }

    async fn put_parts(&self, claim: &Claim, key: &str, upload: &str, with_checksums: bool) -> Result<()> {
        let starts = (0..claim.body.len()).step_by(PART_BYTES).zip(1..);
        let parts = starts.map(|(start, number)| {
            let end = claim.body.len().min(start + PART_BYTES);
            self.put_part(claim.body.slice(start..end), number, (key, upload), with_checksums)
        });
        let parts: Vec<CompletedPart> =
            futures_util::stream::iter(parts).buffered(PARTS_MAX).try_collect().await?;
        self.client
            .complete_multipart_upload()
            .bucket(&self.address.bucket)
            .key(key)
            .upload_id(upload)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .send()
            .await
            .map(drop)
            .map_err(|error| self.classify("completing", key, error))
    }

    async fn put_part(
        &self,
        body: Bytes,
        number: i32,
        (key, upload): (&str, &str),
        with_checksums: bool,
    ) -> Result<CompletedPart> {
        let checksum = with_checksums.then(|| STANDARD.encode(Sha256::digest(&body)));
        let request = self
            .client
            .upload_part()
            .bucket(&self.address.bucket)
            .key(key)
            .upload_id(upload)
            .part_number(number)
            .set_checksum_sha256(checksum.clone())
            .body(ByteStream::from(body));
        let sent = match with_checksums {
            true => request.customize().disable_payload_signing().send().await,
            false => request.send().await,
        };
        let sent = sent.map_err(|error| self.classify("storing a part of", key, error))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            // A store that ignored it would not know it at the end.
            .set_checksum_sha256(checksum.filter(|_| sent.checksum_sha256.is_some()))
            .build())
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let key = self.address.key(key);
        let found = match self.client.get_object().bucket(&self.address.bucket).key(&key).send().await {
            Ok(found) => found,
            Err(error) if error.code() == Some("NoSuchKey") => return Ok(None),
            Err(error) => return Err(self.classify("reading", &key, error)),
        };
        let body = found.body.collect().await.map_err(|error| {
            Error::transient(format!("{} broke off", self.place("reading", &key))).with_source(error)
        })?;
        Ok(Some(body.into_bytes()))
    }

    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let key = self.address.key(key);
        let deleted = self.client.delete_object().bucket(&self.address.bucket).key(&key).send().await;
        deleted.map(drop).map_err(|error| self.classify("removing", &key, error))
    }

    pub(super) async fn list(&self, directory: &str) -> Result<Vec<Object>> {
        let prefix = self.address.key(directory);
        let start = prefix.len() - directory.len();
        let mut pages = self
            .client
            .list_objects_v2()
            .bucket(&self.address.bucket)
            .prefix(&prefix)
            .into_paginator()
            .send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| match error.code() {
                Some("AccessDenied") => Error::definite(self.place("listing", &prefix))
                    .with_source(error)
                    .with_hint("give the key s3:ListBucket on the bucket; the policy is in docs/claims.md"),
                _ => self.classify("listing", &prefix, error),
            })?;
            for object in page.contents.into_iter().flatten() {
                let (Some(key), Some(modified)) = (object.key, object.last_modified) else { continue };
                let (Some(key), Ok(stored_at)) = (key.get(start..), modified.try_into()) else { continue };
                let bytes = object.size.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0);
                // Of an upload that is under way S3 lists nothing.
                found.push(Object { key: key.to_owned(), bytes, stored_at, is_unfinished: false });
            }
        }
        Ok(found)
    }

    fn encryption(&self) -> Option<ServerSideEncryption> {
        self.address.encryption.map(|encryption| ServerSideEncryption::from(encryption.name()))
    }

    /// As a query: what the header takes.
    fn tagging(&self) -> Option<String> {
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let tags =
            self.address.tags.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
        Some(tags.collect::<Vec<_>>().join("&")).filter(|tags| !tags.is_empty())
    }

    fn place(&self, doing: &str, key: &str) -> String {
        let of =
            self.address.endpoint.as_ref().map_or_else(String::new, |endpoint| format!(" of {endpoint}"));
        format!("{doing} {key} in the bucket {}{of}", self.address.bucket)
    }

    /// Refusals that only a person can mend are definite; whatever else, network and server included, passes.
    fn classify<E: Refusal>(&self, doing: &str, key: &str, error: SdkError<E>) -> Error {
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let code = error.code().unwrap_or_default().to_owned();
        let why = match (error.code(), error.message()) {
            (Some(code), Some(message)) => format!("{code}, {message}"),
            (Some(code), None) => code.to_owned(),
            // A HEAD's, or a proxy's: there is no text.
            (None, _) if status > 0 => format!("HTTP status {status}"),
            (None, _) => aws_sdk_s3::error::DisplayErrorContext(&error).to_string(),
        };
        let message = format!("{}: {why}", self.place(doing, key));
        let definite = |hint: &str| Error::definite(message.clone()).with_hint(hint);
        match (code.as_str(), status) {
            ("NoSuchBucket", _) => definite("make the bucket, or correct claim_check.store"),
            ("AccessDenied" | "AllAccessDisabled" | "AccountProblem", _) => definite(
                "give the key s3:PutObject, s3:GetObject, s3:DeleteObject and s3:AbortMultipartUpload on the bucket's objects (and kms:GenerateDataKey where it encrypts); the policy is in docs/claims.md",
            ),
            ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "NotSignedUp", _) => definite(
                "correct access_key_id and secret_access_key in [claim_check], or the AWS_ variables",
            ),
            (
                "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException",
                _,
            ) => definite("set claim_check.region to the bucket's region"),
            ("InvalidBucketName" | "KeyTooLongError" | "EntityTooLarge", _) => {
                definite("correct claim_check.store")
            }
            ("NotImplemented" | "MethodNotAllowed", _) | (_, 405 | 501) => {
                definite("name an S3 server in claim_check.endpoint; this one does not take objects that way")
            }
            ("", 403) => definite("the store refuses this key: see the policy in docs/claims.md"),
            _ => Error::transient(message)
                .with_hint("see that the claim store runs, and that claim_check.endpoint is where it is"),
        }
    }
}

/// Whether a store refuses an object for its checksum's sake.
fn is_checksum_unknown(error: &Error) -> bool {
    let text = error.to_string();
    let is_refusal =
        ["NotImplemented", "InvalidArgument", "InvalidRequest"].iter().any(|code| text.contains(code));
    is_refusal && text.to_lowercase().contains("checksum") || text.contains(": NotImplemented")
}

async fn region(address: &S3Address) -> Region {
    let of_env = || ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| std::env::var(name).ok());
    if let Some(region) = address.region.clone().or_else(of_env) {
        return Region::new(region);
    }
    let of_chain = match address.endpoint {
        // Not AWS: nobody else needs to be asked.
        Some(_) => None,
        None => aws_config::meta::region::RegionProviderChain::default_provider().region().await,
    };
    of_chain.unwrap_or(Region::from_static(REGION_DEFAULT))
}
