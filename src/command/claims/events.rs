//! Every event that the hub still has.
//!
//! Comes in: the hub, and perhaps names of topics. Goes out: values, each once, in no order. Always holds: without names
//! all topics are read, whoever they belong to. Where events went under an earlier `hub.topic`, or by the topic column of
//! an outbox table, no rule tells any more; a topic that was left out would make the objects of its events look as if
//! nobody needed them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::config::{HubKind, KafkaHub};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::sink::file::committed_lengths;
use crate::sink::kafka::{self, Reader, checkpoint_topic};

type Take<'t> = dyn FnMut(&[u8]) -> Result<()> + 't;

/// Hands every value to `take`. Blocks.
///
/// # Errors
/// A topic that was named is not there; the hub cannot be read; the error of `take`.
pub fn read(pipeline: &Pipeline, named: &[String], mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let take: &mut Take<'_> = &mut take;
    match &pipeline.config.hub.kind {
        HubKind::Kafka(hub) => read_kafka(hub, &checkpoint_topic(&pipeline.name())?, named, take),
        HubKind::File(hub) => read_files(&hub.path, named, take),
    }
}

fn read_kafka(hub: &KafkaHub, checkpoint_topic: &str, named: &[String], take: &mut Take<'_>) -> Result<()> {
    let mut topics: BTreeMap<String, i32> = Reader::open(hub)?.topics()?;
    topics.remove(checkpoint_topic);
    for (topic, partitions) in chosen(topics, named)? {
        kafka::scan(hub, &topic, partitions, take).map_err(|error| match named {
            [] if error.is_definite() && error.hint().is_some() => {
                let hint = format!(
                    "{}; or name the topics that this source's events are in, now and formerly, with --topic",
                    error.hint().unwrap_or_default()
                );
                error.with_hint(hint)
            }
            _ => error,
        })?;
    }
    Ok(())
}

fn read_files(path: &Path, named: &[String], take: &mut Take<'_>) -> Result<()> {
    for (topic, length) in chosen(committed_lengths(path)?, named)? {
        let path = path.join(format!("{topic}.jsonl"));
        let failed = |error: std::io::Error| {
            Error::transient(format!("{} cannot be read", path.display())).with_source(error)
        };
        let file = File::open(&path).map_err(failed)?;
        let mut lines = BufReader::with_capacity(1 << 16, file.take(length));
        let (mut line, mut read) = (Vec::new(), 0);
        while read < length {
            line.clear();
            let bytes = lines.read_until(b'\n', &mut line).map_err(failed)?;
            if bytes == 0 {
                return Err(Error::definite(format!(
                    "{} has {read} bytes, its checkpoint says {length}: events were removed",
                    path.display()
                ))
                .with_hint("restore the file, or begin anew: `walgate drop`, and an empty directory"));
            }
            read += u64::try_from(bytes).expect("a line's length");
            take(line.strip_suffix(b"\n").unwrap_or(&line))?;
        }
    }
    Ok(())
}

fn chosen<T>(mut topics: BTreeMap<String, T>, named: &[String]) -> Result<BTreeMap<String, T>> {
    if let Some(missing) = named.iter().find(|name| !topics.contains_key(*name)) {
        return Err(Error::definite(format!("there is no topic {missing}"))
            .with_hint("correct --topic; without it all topics are read"));
    }
    topics.retain(|topic, _| named.is_empty() || named.contains(topic));
    Ok(topics)
}
