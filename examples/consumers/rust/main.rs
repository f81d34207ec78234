//! Consumes Walgate's events: resolves claim checks, verifies them, and takes each event once.
//!
//!     cargo run --example consumer -- kafka:9092 shop.public.media media postgres://localhost/media
//!
//! Arguments: brokers, topic, group, a PostgreSQL database for the ids and the effect, and perhaps `--until-end`. Credentials and
//! region are found as AWS tools find them; AWS_ENDPOINT_URL_S3 names another S3 server. What is explained in
//! docs/consuming.md is not explained here.

use std::collections::HashSet;
use std::error::Error;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_s3::Client as S3;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_postgres::{NoTls, Transaction};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS seen (id text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS received (position bigserial PRIMARY KEY, type text, aggregate_id text, event text NOT NULL)";
const SEE: &str = "INSERT INTO seen (id) VALUES ($1) ON CONFLICT DO NOTHING";
const RECEIVE: &str = "INSERT INTO received (type, aggregate_id, event) VALUES ($1, $2, $3)";
/// Messages for which there is one transaction.
const BATCH: usize = 100;
/// Everything but the unreserved characters of RFC 3986.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [brokers, topic, group, database, rest @ ..] = arguments.as_slice() else {
        return Err("arguments: brokers, topic, group, database's URL [--until-end]".into());
    };
    let is_until_end = rest.iter().any(|one| one == "--until-end");
    let (taken, repeated) = consume(brokers, topic, group, database, is_until_end).await?;
    println!("{taken} new, {repeated} repeated");
    Ok(())
}

/// Returns, at the end of the topic, how many events were new and how many were not.
async fn consume(
    brokers: &str,
    topic: &str,
    group: &str,
    database: &str,
    is_until_end: bool,
) -> Result<(u64, u64)> {
    let s3 = s3().await;
    let (mut database, connection) = tokio_postgres::connect(database, NoTls).await?;
    tokio::spawn(connection);
    database.batch_execute(SCHEMA).await?;
    let kafka: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        // What an aborted transaction left is not an event.
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        // Offsets follow the database.
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()?;
    kafka.subscribe(&[topic])?;
    let (mut taken, mut repeated) = (0, 0);
    let mut ends = HashSet::new();
    loop {
        let transaction = database.transaction().await?;
        let mut is_any = false;
        for _ in 0..BATCH {
            // Anything that fails ends the program: the transaction is rolled back, and its events come again.
            match kafka.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    is_any = true;
                    ends.remove(&message.partition());
                    match take(&transaction, message.payload(), &s3).await? {
                        true => taken += 1,
                        false => repeated += 1,
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.insert(partition)),
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        transaction.commit().await?;
        if is_any {
            kafka.commit_consumer_state(CommitMode::Sync)?;
        }
        if is_until_end && !ends.is_empty() && ends.len() == kafka.assignment()?.count() {
            return Ok((taken, repeated));
        }
    }
}

/// True: the event was new.
async fn take(database: &Transaction<'_>, value: Option<&[u8]>, s3: &S3) -> Result<bool> {
    // A tombstone: its delete came before it.
    let Some(value) = value else { return Ok(false) };
    let event: Value = serde_json::from_slice(value)?;
    if database.execute(SEE, &[&text(&event, "id")?]).await? == 0 {
        return Ok(false);
    }
    apply(database, &resolve(event, s3).await?).await?;
    Ok(true)
}

/// The effect. Yours goes here: in the same transaction as the id.
async fn apply(database: &Transaction<'_>, event: &Value) -> Result<()> {
    let aggregate_id = event["aggregate_id"].as_str();
    database.execute(RECEIVE, &[&text(event, "type")?, &aggregate_id, &event.to_string()]).await?;
    Ok(())
}

/// The event as it would be without claim checks.
async fn resolve(mut event: Value, s3: &S3) -> Result<Value> {
    if !event["claim"].is_null() {
        event = serde_json::from_slice(&fetch(&event["claim"], s3).await?)?;
    }
    let id = utf8_percent_encode(text(&event, "id")?, PART).to_string();
    for (part, mark) in [("data", ""), ("before", ".before")] {
        for (column, value) in event.get_mut(part).and_then(Value::as_object_mut).into_iter().flatten() {
            let name = match column.as_str() {
                "json" => "%6Ason".to_owned(),
                name => utf8_percent_encode(name, PART).to_string().replace('.', "%2E"),
            };
            if is_reference(value, &format!("/{id}{mark}.{name}")) {
                *value = inline(&value["$claim"], s3).await?;
            }
        }
    }
    Ok(event)
}

/// A json column of your own may look like a reference: its uri would not end with this event and this column.
fn is_reference(value: &Value, end: &str) -> bool {
    let is_alone = value.as_object().is_some_and(|value| value.len() == 1);
    let Some(uri) = value["$claim"]["uri"].as_str().filter(|_| is_alone) else { return false };
    match uri.strip_prefix("file://") {
        Some(path) => percent_decode_str(path).decode_utf8_lossy().ends_with(end),
        None => uri.ends_with(end),
    }
}

/// A column's object as its value would stand in the event.
async fn inline(claim: &Value, s3: &S3) -> Result<Value> {
    let body = fetch(claim, s3).await?;
    Ok(match text(claim, "content_type")? {
        "application/json" => serde_json::from_slice(&body)?,
        "application/octet-stream" => STANDARD.encode(body).into(),
        _ => String::from_utf8(body)?.into(),
    })
}

/// The object behind a reference; whatever is not exactly what was published is an error.
async fn fetch(claim: &Value, s3: &S3) -> Result<Vec<u8>> {
    let uri = text(claim, "uri")?;
    let body = match uri.strip_prefix("s3://").and_then(|place| place.split_once('/')) {
        // The key stands as it is: %2F is part of it.
        Some((bucket, key)) => {
            let object = s3.get_object().bucket(bucket).key(key).send().await?;
            object.body.collect().await?.to_vec()
        }
        None => {
            let path = percent_decode_str(uri.trim_start_matches("file://")).decode_utf8()?;
            std::fs::read(path.as_ref())?
        }
    };
    let sha256: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    if claim["bytes"] != body.len() || claim["sha256"] != sha256 {
        return Err(format!("{uri} is not what was published").into());
    }
    Ok(body)
}

fn text<'v>(value: &'v Value, field: &str) -> Result<&'v str> {
    value[field].as_str().ok_or_else(|| format!("there is no {field}").into())
}

async fn s3() -> S3 {
    // With the SDK's default features this is aws_config::load_defaults alone; Walgate's build has another TLS.
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
    let is_elsewhere = std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
    S3::from_conf(aws_sdk_s3::config::Builder::from(&config).force_path_style(is_elsewhere).build())
}
