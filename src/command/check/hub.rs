//! `check`, the hub's side: can it be reached, written, and does it take what would be sent?
//!
//! Of a directory, by a probe file that is removed at once. Of Kafka, by metadata, settings and a
//! CreateTopics that only validates; whether transactions work is asked with the id `<pipeline>.check`, and
//! only while the pipeline has never run. DESIGN sections 3 and 4, FIELD_NOTES 6.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::report::{Report, Severity};
use super::source::SourceView;
use super::tables::rule_name;
use crate::config::{HubKind, KafkaHub};
use crate::error::Result;
use crate::pipeline::Pipeline;
use crate::pipeline::start::blocking;
use crate::sink::checkpoint::Stored;
use crate::sink::hub::peek;
use crate::sink::kafka::{Preflight, checkpoint_topic};
use crate::wal::client::classify;

/// Kafka's default of `max.message.bytes`: below it, ordinary rows with a text column may not pass.
const MESSAGE_BYTES_DEFAULT: u64 = 1_048_588;

/// Room for a message's key, headers and framing beside its value.
const HEADER_BYTES: u64 = 2048;

/// The hub, as it was found.
pub struct HubView {
    /// What is stored about the pipeline.
    pub stored: Stored,
    kafka: Option<Preflight>,
}

/// Everything about the hub that does not depend on tables; `None`: it cannot be used.
pub async fn examine(pipeline: &Pipeline, report: &Report) -> Option<HubView> {
    let kafka = match &pipeline.config.hub.kind {
        HubKind::File(file) => {
            let path = file.path.clone();
            let report = report.clone();
            blocking(move || Ok(directory(&path, &report))).await.ok()?.then_some(())?;
            None
        }
        HubKind::Kafka(kafka) => {
            let hub = kafka.clone();
            match blocking(move || Preflight::open(&hub)).await {
                Ok(preflight) => Some(preflight),
                Err(error) => {
                    let remedy = "see that the brokers run, that hub.brokers names them as they can be reached from here, and that security.protocol and sasl.* in [hub.properties] are what they expect";
                    report.error("hub.brokers", &error, remedy);
                    return None;
                }
            }
        }
    };
    let (hub, name) = (pipeline.config.hub.clone(), pipeline.name());
    match blocking(move || peek(&hub, &name)).await {
        Ok(stored) => Some(HubView { stored, kafka }),
        Err(error) => {
            report.error("hub", &error.context("reading the checkpoint"), "");
            None
        }
    }
}

/// Can it be made, written, locked? What is missing of the path is not made: its nearest parent tells.
fn directory(path: &Path, report: &Report) -> bool {
    const KEY: &str = "hub.path";
    let mut existing: PathBuf =
        if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() };
    while !existing.exists() {
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent.to_owned(),
            _ => existing = PathBuf::from("."),
        }
    }
    let shown = existing.display();
    if !existing.is_dir() {
        report.fault(KEY, format!("{shown} is no directory"), "name a directory in hub.path");
        return false;
    }
    let probe = existing.join(format!(".walgate-check-{}", std::process::id()));
    let written = std::fs::write(&probe, "probe\n");
    // What could not be written need not be there.
    let _ = std::fs::remove_file(&probe);
    if let Err(error) = written {
        let remedy = "give the user that runs walgate the right to write there, or name another directory";
        report.fault(KEY, format!("{shown} cannot be written: {error}"), remedy);
        return false;
    }
    if path.is_dir()
        && let Ok(handle) = std::fs::File::open(path)
        && let Err(std::fs::TryLockError::WouldBlock) = handle.try_lock()
    {
        report.note(KEY, format!("{} is in use by another process: a running pipeline", path.display()), "");
    }
    true
}

/// What depends on the tables: topics, and space for the copy.
pub async fn topics(pipeline: &Pipeline, view: HubView, source: &SourceView, report: &Report) {
    let done = match (&pipeline.config.hub.kind, view.kafka) {
        (HubKind::Kafka(hub), Some(preflight)) => {
            let (hub, name, report) = (hub.clone(), pipeline.name(), report.clone());
            let threshold_bytes = pipeline.config.claim_check.as_ref().map(|claims| claims.threshold_bytes);
            let wanted: BTreeSet<String> = source.topics.iter().map(|(_, topic)| topic.clone()).collect();
            let toasted: BTreeMap<String, String> = source
                .topics
                .iter()
                .filter(|(oid, _)| source.toasted.contains(oid))
                .filter_map(|(oid, topic)| {
                    let matched = source.tables.iter().find(|one| one.table.oid == *oid)?;
                    Some((topic.clone(), rule_name(&matched.table)))
                })
                .collect();
            let tombstones = pipeline.config.hub.tombstones;
            let tables = (wanted, toasted);
            blocking(move || {
                let compacted = kafka_topics((&hub, threshold_bytes), &name, &preflight, &tables, &report)?;
                if tombstones {
                    uncompacted(&tables.0, &compacted, &report);
                }
                Ok(())
            })
            .await
        }
        (HubKind::File(file), _) => space(&file.path, &view.stored, source, report).await,
        (HubKind::Kafka(_), None) => Ok(()),
    };
    if let Err(error) = done {
        report.error("hub", &error, "");
    }
}

fn kafka_topics(
    (hub, threshold_bytes): (&KafkaHub, Option<usize>),
    name: &str,
    preflight: &Preflight,
    (wanted, toasted): &(BTreeSet<String>, BTreeMap<String, String>),
    report: &Report,
) -> Result<BTreeSet<String>> {
    let (existing, missing): (Vec<String>, Vec<String>) =
        wanted.iter().cloned().partition(|topic| preflight.topics.contains_key(topic));
    if hub.create_topics {
        for (topic, error) in preflight.would_refuse(&missing)? {
            let remedy = format!("create topic {topic} yourself, or correct hub.topic_config");
            report.error("hub.create_topics", &error, &remedy);
        }
    } else if !missing.is_empty() {
        report.fault(
            "hub.create_topics",
            format!("these topics do not exist, and create_topics = false: {}", missing.join(", ")),
            "create them, or set hub.create_topics = true",
        );
    }
    let checkpoints = checkpoint_topic(name)?;
    checkpoint(preflight, &checkpoints, report)?;

    let settings = preflight.settings(&existing)?;
    let is_compacted = |topic: &&String| {
        let policy = match settings.get(*topic) {
            Some(settings) => settings.get("cleanup.policy"),
            None => hub.topic_config.get("cleanup.policy").filter(|_| missing.contains(topic)),
        };
        policy.is_some_and(|policy| policy.contains("compact"))
    };
    let compacted: BTreeSet<String> = wanted.iter().filter(is_compacted).cloned().collect();
    for (topic, table) in toasted {
        if compacted.contains(topic) {
            report.add_about(
                Severity::Warning,
                "hub.topic",
                std::slice::from_ref(table),
                format!("topic {topic} is compacted: it may lose the only copy of a large value of {table} that later updates leave unchanged"),
                "ALTER TABLE ... REPLICA IDENTITY FULL; or a topic that is not compacted",
            );
        }
    }
    let parse = |value: &String| value.parse::<u64>().ok();
    let mut limits: Vec<(u64, String)> = settings
        .iter()
        .filter_map(|(topic, settings)| {
            Some((parse(settings.get("max.message.bytes")?)?, format!("topic {topic}")))
        })
        .collect();
    if !missing.is_empty() {
        let of_new = match hub.topic_config.get("max.message.bytes").and_then(parse) {
            Some(bytes) => Some((bytes, "hub.topic_config".to_owned())),
            None => preflight.message_bytes_max()?.map(|bytes| (bytes, "the broker".to_owned())),
        };
        limits.extend(of_new);
    }
    let smallest = limits.into_iter().min();
    if let Some(threshold_bytes) = threshold_bytes {
        if let Some((bytes, whose)) = smallest {
            above_threshold(threshold_bytes, bytes, &whose, report);
        }
    } else if let Some((bytes, whose)) = smallest {
        let message = format!(
            "an event may have at most {bytes} bytes ({whose}, max.message.bytes): a larger one stops the pipeline"
        );
        let remedy = "add a [claim_check] section, or raise max.message.bytes of the topic (message.max.bytes of the broker), or exclude large columns";
        if bytes < MESSAGE_BYTES_DEFAULT {
            report.warning("hub.topic", message, remedy);
        } else {
            report.note("hub.topic", message, remedy);
        }
    }
    // A pipeline that has run has shown it; and its checkpoint is written by transactions in any case.
    if !preflight.topics.contains_key(&checkpoints)
        && let Err(error) = preflight.takes_transactions(name)
    {
        let remedy = "see that the transaction coordinator runs (transaction.state.log.replication.factor and .min.isr), and that the user may Write and Describe the transactional id";
        if error.is_definite() && !error.chain().contains("uthoriz") {
            report.error("hub.delivery", &error, remedy);
        } else {
            report.warning("hub.delivery", error.chain(), error.hint().unwrap_or(remedy));
        }
    }
    Ok(compacted)
}

/// Topics in which a tombstone is an event like any other.
fn uncompacted(wanted: &BTreeSet<String>, compacted: &BTreeSet<String>, report: &Report) {
    let plain: Vec<&str> = wanted.difference(compacted).map(String::as_str).collect();
    if !plain.is_empty() {
        let (number, first) = (plain.len(), plain.iter().take(3).copied().collect::<Vec<_>>().join(", "));
        report.note(
            "hub.tombstones",
            format!("{number} topics are not compacted, so their tombstones remove nothing: {first}"),
            "set cleanup.policy=compact for them; tables with large values then need REPLICA IDENTITY FULL, or a compacted topic may lose the only copy of one",
        );
    }
}

/// What is not claimed has to fit, with its key and headers.
fn above_threshold(threshold_bytes: usize, bytes: u64, whose: &str, report: &Report) {
    let threshold_bytes = u64::try_from(threshold_bytes).unwrap_or(u64::MAX);
    let needed = threshold_bytes.saturating_add(HEADER_BYTES);
    if needed > bytes {
        let at_most = bytes.saturating_sub(HEADER_BYTES);
        report.fault(
            "claim_check.threshold_bytes",
            format!("events of up to {threshold_bytes} bytes travel inline, and an event may have at most {bytes} ({whose}, max.message.bytes)"),
            format!("set threshold_bytes = {at_most} or less, or raise max.message.bytes to {needed}"),
        );
    }
}

fn checkpoint(preflight: &Preflight, topic: &str, report: &Report) -> Result<()> {
    let Some(partitions) = preflight.topics.get(topic) else { return Ok(()) };
    if *partitions != 1 {
        report.fault(
            "source.name",
            format!("topic {topic} has {partitions} partitions, a checkpoint topic has one"),
            "choose another source.name or source.slot",
        );
    }
    let settings = preflight.settings(&[topic.to_owned()])?;
    let policy = settings.get(topic).and_then(|settings| settings.get("cleanup.policy"));
    if let Some(policy) = policy.filter(|policy| *policy != "compact") {
        report.fault(
            "source.name",
            format!("topic {topic} has cleanup.policy = {policy}: an idle checkpoint would be deleted"),
            format!("kafka-configs --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact"),
        );
    }
    Ok(())
}

/// Is there room for the rows that are to be copied?
async fn space(path: &Path, stored: &Stored, source: &SourceView, report: &Report) -> Result<()> {
    const SIZE: &str = "SELECT COALESCE(sum(pg_catalog.pg_table_size(COALESCE(p.relid::oid, r.oid))), 0)::int8 \
        FROM unnest($1::oid[]) r(oid) LEFT JOIN LATERAL pg_catalog.pg_partition_tree(r.oid::regclass) p ON true";
    let is_copied = |oid: u32| stored.tables.get(&oid).is_some_and(|state| state.done);
    let new: Vec<u32> =
        source.tables.iter().map(|one| one.table.oid).filter(|oid| !is_copied(*oid)).collect();
    let row = source.client.query_one(SIZE, &[&new]).await.map_err(classify)?;
    let needed = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    let Some(free) = free_bytes(path).await else { return Ok(()) };
    if free < needed {
        report.warning(
            "hub.path",
            format!("{free} bytes are free there, and the tables to be copied have {needed}"),
            "free some space, or name a directory on a larger disk",
        );
    }
    Ok(())
}

/// By `df`, which asks the system what the standard library cannot; unknown where there is none.
async fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let output = tokio::process::Command::new("df").arg("-Pk").arg(existing).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kilobytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}
