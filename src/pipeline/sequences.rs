//! The sequences of a replica's tables: before the stream begins, and whenever `walgate sync-sequences` is typed.
//!
//! Comes in: a replica's pipeline, a margin. Goes out: for every sequence that a replicated column of the source draws
//! from, what became of the replica's. When the copies are done and before the stream begins is the place that needs no
//! argument: every value in the copied rows was drawn before, so what is read now is past it; and since it is done at
//! every start, it does not matter where an earlier one ended. Nothing of exactly-once hangs on it: what fails here is a
//! warning, and never stops the pipeline.

use serde::Serialize;

use super::tables::{self, MatchedTable};
use super::{Pipeline, replica_url};
use crate::error::{Error, Result};
use crate::sink::replica::{Brought, ReplicaSequence};
use crate::wal::client::{Client, classify, connect};
use crate::wal::sequence::SourceSequence;
use crate::wal::sql::quote_ident;
use crate::wal::sqlstate::sqlstate_of;

/// Somebody who alters a sequence holds it for as long as his transaction lasts; the stream does not wait for him.
const SETTINGS: &str = "SET lock_timeout = '5s'";

/// One sequence of the source, and what became of the replica's.
#[derive(Clone, Debug, Serialize)]
pub struct Synced {
    /// The replica's name.
    pub replica: String,
    /// The table on the source.
    pub table: String,
    /// Its column.
    pub column: String,
    /// The source's sequence.
    pub source: String,
    /// Its value, where it could be read.
    pub source_value: Option<i64>,
    /// The replica's sequence, if there is one.
    pub sequence: Option<String>,
    /// The value that it was given.
    pub value: Option<i64>,
    /// What became of it.
    pub state: SyncState,
    /// Why it was refused or cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to do about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// See [`Synced`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncState {
    /// It was moved.
    Moved,
    /// It was moved to its end, which the margin reaches past.
    Cut,
    /// It is there already.
    Ahead,
    /// The replica has no such sequence.
    Absent,
    /// It could not be read or set.
    Refused,
}

/// The same at the start of a pipeline: logged, and never an error.
pub async fn sync_at_start(pipeline: &Pipeline) {
    let synced = match sync(pipeline, None).await {
        Ok(synced) => synced,
        Err(error) => {
            tracing::warn!(
                pipeline = pipeline.slot,
                "the replica's sequences were not brought forward: {}; `walgate sync-sequences` does it later",
                error.chain()
            );
            return;
        }
    };
    for one in &synced {
        let (sequence, message) = (one.sequence.as_ref().unwrap_or(&one.source), &one.message);
        let (Some(message), Some(remedy)) = (message, &one.remedy) else { continue };
        let done = if one.state == SyncState::Cut { "at its end" } else { "not brought forward" };
        tracing::warn!(pipeline = pipeline.slot, sequence, "sequence {done}: {message} (remedy: {remedy})");
    }
    let moved = synced.iter().filter(|one| matches!(one.state, SyncState::Moved | SyncState::Cut)).count();
    if moved > 0 {
        tracing::info!(
            pipeline = pipeline.slot,
            sequences = moved,
            "sequences brought forward on the replica"
        );
    }
}

/// Brings the replica's sequences to `margin` increments past the source's; without one, 1000 or the sequence's cache.
///
/// # Errors
/// As the connections.
pub async fn sync(pipeline: &Pipeline, margin: Option<u64>) -> Result<Vec<Synced>> {
    let Some(replica) = &pipeline.replica else { return Ok(Vec::new()) };
    let application_name = format!("{} sequences", pipeline.application_name());
    let failed = |error: Error| error.context(format_args!("replica {}", replica.name));
    let source = connect(&pipeline.url, &application_name).await?;
    let there = connect(&replica_url(replica)?, &application_name).await.map_err(failed)?;
    for client in [&source, &there] {
        client.batch_execute(SETTINGS).await.map_err(classify)?;
    }
    let taken = tables::taken(pipeline, &source).await?;
    let mut synced: Vec<Synced> = Vec::new();
    for (matched, sequence) in drawn_from(&source, &taken).await? {
        let (schema, table) = matched.rule.target_name(&matched.table.schema, &matched.table.name);
        let place = (schema.as_str(), table.as_str(), sequence.column.as_str());
        let found = ReplicaSequence::of_column(&there, place, &sequence).await.map_err(failed)?;
        let of_replica = found.as_ref().map(ReplicaSequence::display_name);
        let name = sequence.display_name();
        // Several columns may draw from one.
        if synced.iter().any(|one| one.source == name && one.sequence == of_replica) {
            continue;
        }
        let mut one = Synced {
            replica: replica.name.clone(),
            table: matched.table.display_name(),
            column: sequence.column.clone(),
            source: name,
            source_value: None,
            sequence: of_replica,
            value: None,
            state: SyncState::Absent,
            message: None,
            remedy: None,
        };
        if let Some(found) = found {
            one.bring_forward((&source, &sequence), (&there, &found), margin, &pipeline.url.user).await?;
        }
        synced.push(one);
    }
    Ok(synced)
}

impl Synced {
    async fn bring_forward(
        &mut self,
        (source, sequence): (&Client, &SourceSequence),
        (there, found): (&Client, &ReplicaSequence),
        margin: Option<u64>,
        role: &str,
    ) -> Result<()> {
        let brought = match read(source, sequence, role).await? {
            Ok(state) => {
                self.source_value = Some(state.last_value);
                found.bring_forward(there, state, margin).await?
            }
            Err(refused) => refused,
        };
        (self.state, self.value) = match &brought {
            Brought::Forward(value) => (SyncState::Moved, Some(*value)),
            Brought::ToItsEnd(value) => (SyncState::Cut, Some(*value)),
            Brought::Ahead => (SyncState::Ahead, None),
            Brought::Refused(..) => (SyncState::Refused, None),
        };
        (self.message, self.remedy) = match brought {
            Brought::Refused(message, remedy) => (Some(message), Some(remedy)),
            Brought::ToItsEnd(value) => (
                Some(format!("the margin reaches past its last value {value}, and nothing is left of it")),
                Some("give it another end on both sides (ALTER SEQUENCE ... MAXVALUE, or MINVALUE where it runs down)".into()),
            ),
            Brought::Forward(_) | Brought::Ahead => (None, None),
        };
        Ok(())
    }
}

/// The sequences that replicated columns draw from, each with its table.
///
/// # Errors
/// As the connection.
pub async fn drawn_from<'t>(
    source: &Client,
    tables: &'t [MatchedTable],
) -> Result<Vec<(&'t MatchedTable, SourceSequence)>> {
    let oids: Vec<u32> = tables.iter().map(|matched| matched.table.oid).collect();
    let sequences = SourceSequence::of_tables(source, &oids).await?;
    let with_table = |sequence: SourceSequence| {
        let matched = tables.iter().find(|matched| matched.table.oid == sequence.table_oid)?;
        goes(matched, &sequence.column).then_some((matched, sequence))
    };
    Ok(sequences.into_iter().filter_map(with_table).collect())
}

/// Whether the column is replicated: a replica's own column keeps its own sequence.
fn goes(matched: &MatchedTable, column: &String) -> bool {
    let MatchedTable { table, rule, .. } = matched;
    let is_key = match &rule.key {
        Some(names) => names.contains(column),
        None => table.primary_key.contains(column) || table.identity_key.contains(column),
    };
    let is_sent = matched.as_sent().columns.iter().any(|sent| sent.name == *column);
    is_sent && (is_key || rule.columns.takes(column))
}

/// Where the source's sequence stands, or why that cannot be said.
async fn read(
    source: &Client,
    sequence: &SourceSequence,
    role: &str,
) -> Result<Result<crate::wal::sequence::SequenceState, Brought>> {
    if !sequence.may_read {
        return Ok(Err(Brought::Refused(
            format!("role {role} may not read the source's {}", sequence.display_name()),
            grant_on_source(sequence, role),
        )));
    }
    match sequence.state(source).await {
        Ok(state) => Ok(Ok(state)),
        Err(error) if sqlstate_of(&error).is_some() => Ok(Err(Brought::Refused(
            format!("the source's {}: {}", sequence.display_name(), error.chain()),
            "see the server's message, then `walgate sync-sequences`".into(),
        ))),
        Err(error) => Err(error),
    }
}

/// What lets the role read where the source's sequence stands.
pub fn grant_on_source(sequence: &SourceSequence, role: &str) -> String {
    format!(
        "on the source: GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON SEQUENCE {} TO {role};",
        quote_ident(&sequence.schema),
        sequence.sql_name(),
        role = quote_ident(role)
    )
}
