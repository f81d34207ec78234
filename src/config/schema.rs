//! Every key that replication.toml has, section by section, and the guess at what a misspelt one meant.

/// Top-level sections.
pub(super) const TOP: &[&str] = &["source", "hub", "claim_check", "replica", "admin", "limits", "table"];

/// `[source]`
pub(super) const SOURCE: &[&str] = &[
    "name",
    "url",
    "slot",
    "publication",
    "snapshot",
    "snapshot_workers",
    "snapshot_range_rows",
    "failover",
    "backlog_reader",
    "slots",
    "backlog_temp_bytes_max",
    "decoding_memory_bytes_max",
    "keep_wal_bytes_max",
    "bigint",
];

/// `[hub]`
pub(super) const HUB: &[&str] = &[
    "kind",
    "brokers",
    "path",
    "topic",
    "format",
    "delivery",
    "tombstones",
    "create_topics",
    "partitions",
    "replication_factor",
    "topic_config",
    "properties",
];

/// `[hub]`, of `kind = "kafka"` only.
pub(super) const HUB_KAFKA: &[&str] =
    &["brokers", "create_topics", "partitions", "replication_factor", "topic_config", "properties"];

/// `[claim_check]`
pub(super) const CLAIM_CHECK: &[&str] = &[
    "store",
    "threshold_bytes",
    "endpoint",
    "path_style",
    "region",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "sse",
    "sse_kms_key_id",
    "tags",
];

/// `[claim_check]`, of a store on S3 only.
pub(super) const CLAIM_CHECK_S3: &[&str] = CLAIM_CHECK.split_at(2).1;

/// `[[replica]]`
pub(super) const REPLICA: &[&str] =
    &["name", "url", "create_tables", "on_conflict", "on_table_error", "on_schema_change"];

/// `[admin]`
pub(super) const ADMIN: &[&str] = &["listen"];

/// `[limits]`
pub(super) const LIMITS: &[&str] = &["memory_bytes_max", "drain_timeout"];

/// `[[table]]`
pub(super) const TABLE: &[&str] = &[
    "name",
    "mode",
    "where",
    "columns",
    "exclude",
    "replicas",
    "to",
    "key",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "partitions",
    "pushdown",
    "claim_check",
    "mask",
    "on_unknown_old",
    "cleanup",
    "outbox",
];

/// `[table.outbox]`
pub(super) const OUTBOX: &[&str] = &[
    "id",
    "aggregate_type",
    "aggregate_id",
    "type",
    "payload",
    "headers",
    "topic",
    "timestamp",
    "header_columns",
    "payload_format",
    "topic_template",
];

const SECTIONS: &[(&str, &[&str])] = &[
    ("[source]", SOURCE),
    ("[hub]", HUB),
    ("[claim_check]", CLAIM_CHECK),
    ("[[replica]]", REPLICA),
    ("[admin]", ADMIN),
    ("[limits]", LIMITS),
    ("[[table]]", TABLE),
];

/// What somebody who wrote `key` where only `known` exist most likely wants.
pub(super) fn remedy_for_unknown(key: &str, known: &[&str]) -> String {
    if let Some(near) = nearest(key, known) {
        return format!("did you mean {near}?");
    }
    let homes: Vec<&str> =
        SECTIONS.iter().filter(|(_, keys)| keys.contains(&key)).map(|(section, _)| *section).collect();
    if !homes.is_empty() {
        return format!("{key} belongs to {}", homes.join(" or "));
    }
    format!("remove it; known here are {}", known.join(", "))
}

/// The known word that `word` is a slip of: at most a third of its letters away.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = word.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|candidate| {
            (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase().replace('-', "_")), *candidate)
        })
        .filter(|(distance, candidate)| distance * 3 <= candidate.chars().count().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised() {
        assert_eq!(nearest("colums", TABLE), Some("columns"));
        assert_eq!(nearest("Key", TABLE), Some("key"));
        assert_eq!(nearest("snapshot-workers", SOURCE), Some("snapshot_workers"));
        assert_eq!(nearest("tables", TOP), Some("table"));
        assert_eq!(nearest("exactly_once", &["exactly-once"]), Some("exactly-once"));
        assert_eq!(nearest("zzz", TABLE), None);
        assert_eq!(remedy_for_unknown("brokers", SOURCE), "brokers belongs to [hub]");
        assert_eq!(remedy_for_unknown("zzz", ADMIN), "remove it; known here are listen");
    }
}
