//! From the lock to a pipeline that may deliver: fence, read, compare, make what is missing.
//!
//! The order is the argument (EXACTLY_ONCE.md): the lock before the hub, so that nobody is fenced
//! who has a right to run; the hub's fence before its checkpoint is read; the checkpoint "snapshot
//! pending" before the slot is made; the publications before the slot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::filters;
use super::guard::{self, Start};
use super::leaves;
use super::parking::{self, Parking};
use super::pushdown;
use super::ranges::{self, RangedTables};
use super::shape;
use super::status::State;
use super::tables::{self, Missing};
pub use super::tables::{MatchedTable, rule_of};
use super::{Pipeline, Wish, drain_wished};
use crate::ack::Ledger;
use crate::config::{OnSchemaChange, Replica, SnapshotMode, TableRule};
use crate::error::{Error, Fault, Result};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::route::batch::{Labels, Progress};
use crate::route::filter::{EnumLabels, TableFacts};
use crate::route::plan::PlanContext;
use crate::route::ranges::Ranges;
use crate::route::row::Targets;
use crate::route::row_plan::RowPlan;
use crate::route::selection::SelectionContext;
use crate::route::value::TypeCatalog;
use crate::sink::checkpoint::{Checkpoint, Identity, Phase, TableState};
use crate::sink::destination::{Beside, OpenDestination};
use crate::sink::hub::HubTopics;
use crate::sink::replica::{Copier, Made, Makes, Wanted};
use crate::sink::{SinkLimits, Worker};
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::{Client, classify, connect};
use crate::wal::connection::ReplicationConnection;
use crate::wal::lock::Lock;
use crate::wal::publication::{Membership, PushedFilter};
use crate::wal::slot;
use crate::wal::sql::quote_qualified;

/// Between two attempts of a standby to take the lock.
const STANDBY_TIME: Duration = Duration::from_secs(1);
/// Options that decide which messages are sent, and so about ordinals: the same for both readers,
/// from the first version on (EXACTLY_ONCE.md, "Positions").
pub const STREAM_OPTIONS: &[(&str, &str)] = &[("proto_version", "1"), ("messages", "true")];

/// A pipeline that may deliver.
pub struct Started {
    /// An ordinary connection to the source.
    pub client: Client,
    /// The sink's thread.
    pub worker: Worker,
    /// The hub's topics; `None`: the destination is a replica.
    pub topics: Option<Arc<HubTopics>>,
    /// What copies into the replica; `None`: the destination is a hub.
    pub copier: Option<Arc<Copier>>,
    /// Labels shared with the sink.
    pub labels: Arc<Labels>,
    /// Tables of the replica, shared with the sink.
    pub targets: Arc<Targets>,
    /// Where the destination stands.
    pub checkpoint: Checkpoint,
    /// The fingerprint of options under which the checkpoint was stored.
    pub stored_options: String,
    /// What was handed to the sink and is not durable.
    pub ledger: Ledger,
    /// The source's types.
    pub types: TypeCatalog,
    /// The labels of its enums.
    pub enums: EnumLabels,
    /// The tables that the rules take and the publications send.
    pub tables: Vec<MatchedTable>,
    /// States of all tables whose copy has begun.
    pub states: BTreeMap<u32, TableState>,
    /// Tables that are copied in ranges, and are not done.
    pub ranged: RangedTables,
    /// Tables whose topic already holds rows of an earlier attempt or pipeline.
    pub copied_before: BTreeSet<u32>,
    /// The row filters of managed publications, as the server writes them.
    pub row_filters: BTreeMap<u32, String>,
}

impl Started {
    /// What plans are made from.
    pub fn plan_context<'a>(&'a self, pipeline: &'a Pipeline) -> PlanContext<'a> {
        PlanContext {
            source_name: &pipeline.source_name,
            types: &self.types,
            enums: &self.enums,
            labels: &self.labels,
            topic: &pipeline.config.hub.topic,
            events: &pipeline.events,
        }
    }

    /// What rows are selected with.
    pub fn selection_context<'a>(
        &'a self,
        primary_key: &'a [String],
        facts: &'a TableFacts,
    ) -> SelectionContext<'a> {
        SelectionContext { types: &self.types, enums: &self.enums, primary_key, facts }
    }

    /// Where the stream must have come to for the next range of some table to be copied: past the snapshot of the last one,
    /// so that of no table more than two ranges are told apart, and the rest of the stream never waits for more than one.
    /// `None`: there is no next one.
    pub fn range_due_at(&self) -> Option<Lsn> {
        let ranges = self.states.values().filter_map(|state| state.ranges.as_ref());
        (!self.ranged.is_empty()).then(|| ranges.map(Ranges::copied_at).max().unwrap_or(Lsn::ZERO))
    }

    /// What the destination holds.
    pub fn progress(&self) -> Progress {
        self.checkpoint.progress()
    }
}

/// Takes the lock, waiting as a standby while another process holds it; `None`: asked to end.
///
/// # Errors
/// As the connection.
pub async fn take_lock(pipeline: &Pipeline, wish: &watch::Receiver<Wish>) -> Result<Option<Lock>> {
    let mut wish = wish.clone();
    loop {
        if let Some(lock) =
            Lock::try_take(&pipeline.url, &pipeline.application_name(), &pipeline.slot).await?
        {
            return Ok(Some(lock));
        }
        pipeline.status.enter(State::Standby);
        tokio::select! {
            () = drain_wished(&mut wish) => return Ok(None),
            () = tokio::time::sleep(STANDBY_TIME) => {}
        }
    }
}

/// See the module. Parks the tables of `parking`, and empties it once that is stored.
///
/// # Errors
/// Definite with a remedy whenever source and destination do not belong together.
pub async fn start(pipeline: &Pipeline, parking: &mut Vec<Parking>) -> Result<Started> {
    // The sink of the last attempt may still be busy with a broker that does not answer.
    let gate = pipeline.sink_gate.clone().lock_owned().await;
    let mut client = connect(&pipeline.url, &pipeline.application_name()).await?;
    // What only a person can mend is found before a slot is made that would retain WAL meanwhile.
    let types = catalog::types(&client).await?;
    let enums = catalog::enums(&client).await?;
    let mut taken = tables::taken(pipeline, &client).await?;
    let missing = tables::missing(pipeline, &client, &taken).await?;
    let otherwise = tables::published_otherwise(pipeline, &client, &taken).await?;
    taken.retain(|matched| pipeline.publications.is_managed() || matched.published.is_some());
    let roots = leaves::roots(pipeline, &client).await?;
    if let Some(unseen) = leaves::unseen(pipeline, &client, &taken, &roots).await?.into_iter().next() {
        return Err(unseen.into());
    }
    if pipeline.replica.is_none() {
        fit(pipeline, &mut client, (&types, &enums), &taken).await?;
    }
    let pushed = pushdown::wanted(pipeline, &mut client, (&types, &enums), &taken).await?;

    let (identity, wal_flush_lsn, _) = identify(pipeline, &client, None).await?;
    let (address, name, source) = (pipeline.address()?, pipeline.name(), identity.clone());
    let opened = blocking(move || OpenDestination::open(&address, &name, &source)).await;
    let (mut destination, stored) = opened?;
    let history = match &stored.checkpoint {
        Some(checkpoint) if checkpoint.identity.timeline != identity.timeline => {
            identify(pipeline, &client, Some(checkpoint)).await?.2
        }
        _ => None,
    };

    let slot_state = slot::state(&client, &pipeline.slot).await?;
    let decision = guard::decide(stored.checkpoint, slot_state.as_ref(), &identity, wal_flush_lsn)?;
    if let (Start::Resume(checkpoint), Some(history)) = (&decision, history) {
        guard::timeline_switch(checkpoint, identity.timeline, &history)?;
    }

    let mut states = stored.tables;
    // To be stored with the checkpoint, before anything streams.
    let (mut to_follow, to_park) = parking.iter().cloned().partition::<Vec<_>, _>(|one| {
        one.fault == Fault::Definition && pipeline.replica.as_ref().is_some_and(is_following)
    });
    let mut changed = parking::gone(&taken, &states, parking);
    changed.extend(parking::states(pipeline, &client, &taken, &states, &to_park).await?);
    states.extend(changed.iter().map(|state| (state.oid, state.clone())));
    taken.retain(|matched| states.get(&matched.table.oid).and_then(TableState::parked).is_none());
    pipeline.status.update(|status| status.parked_tables = parking::shown(states.values()));
    if pipeline.replica.is_some() {
        let fitted = fit(pipeline, &mut client, (&types, &enums), &taken).await;
        fitted.map_err(|error| of_known_tables(pipeline, error, &taken, &states))?;
    }
    // A table that was copied and dropped since: what is left of it in the stream is still delivered.
    let (gone, missing): (Vec<_>, Vec<_>) = missing.into_iter().partition(|missing| {
        states.values().any(|state| missing.table == format!("{}.{}", state.schema, state.table))
    });
    for gone in gone {
        tracing::warn!(table = gone.table, "{}", gone.message);
    }
    refuse(missing.into_iter().chain(otherwise).collect())?;
    let targets = Arc::new(Targets::default());
    if let Some(replica) = &pipeline.replica {
        let is_copied = pipeline.config.source.snapshot == SnapshotMode::Initial;
        let mut wanted =
            wanted(&mut client, (replica, is_copied), (&types, &enums), &targets, &taken, &states).await?;
        let makes = Makes { tables: replica.create_tables, columns: is_following(replica) };
        let mut made;
        (destination, made) = prepare(destination, &wanted, makes).await?;
        if !made.gone.is_empty() {
            // Somebody dropped them there. That they are to be copied is stored first: a crash would leave them empty.
            let emptied = states.values().filter(|state| made.gone.contains(&state.oid));
            let emptied: Vec<TableState> = emptied.map(TableState::undone).collect();
            if let Start::Resume(checkpoint) = &decision {
                destination = store(destination, checkpoint.clone(), emptied.clone()).await?;
            }
            states.extend(emptied.into_iter().map(|state| (state.oid, state)));
            wanted.iter_mut().for_each(|one| one.is_copied = false);
            let columns = made.columns;
            (destination, made) = prepare(destination, &wanted, makes).await?;
            made.columns.extend(columns);
        }
        // What nothing was to be added to cannot be followed.
        to_follow.retain(|one| !made.columns.contains(&one.oid) && !made.tables.contains(&one.oid));
        let more = parking::states(pipeline, &client, &taken, &states, &to_follow).await?;
        states.extend(more.iter().map(|state| (state.oid, state.clone())));
        taken.retain(|matched| states.get(&matched.table.oid).and_then(TableState::parked).is_none());
        pipeline.status.update(|status| status.parked_tables = parking::shown(states.values()));
        changed.extend(more);
    }

    let stored_options = match &decision {
        Start::Resume(checkpoint) => checkpoint.identity.options.clone(),
        Start::Fresh | Start::Again => identity.options.clone(),
    };
    let checkpoint = match decision {
        Start::Resume(checkpoint) => {
            publications_exist(pipeline, &client).await?;
            let lost = lost_tables(pipeline, &client, &states).await?;
            states.extend(lost.iter().map(|state| (state.oid, state.clone())));
            let unseen = shape::changes(pipeline, &client, &taken, &states).await?;
            for (table, why) in unseen.again {
                tracing::warn!(table, "{why}, which is not in the WAL: it is copied again");
            }
            states.extend(unseen.states.iter().map(|state| (state.oid, state.clone())));
            changed.extend(lost.into_iter().chain(unseen.states));
            changed.extend(ranges::settle(&mut states, checkpoint.safe_lsn, wal_flush_lsn));
            if !changed.is_empty() {
                destination = store(destination, checkpoint.clone(), changed).await?;
            }
            synchronize(pipeline, &mut client, &pushed).await?;
            Checkpoint { identity, ..checkpoint }
        }
        Start::Fresh | Start::Again => {
            let pending = Checkpoint::pending(identity);
            destination = store(destination, pending.clone(), changed).await?;
            failpoint::hit("start.after-pending");
            slot::remove(&client, &pipeline.slot).await?;
            synchronize(pipeline, &mut client, &pushed).await?;
            let consistent_point = create_slot(pipeline, &client).await?;
            failpoint::hit("start.after-slot");
            let made = Checkpoint { phase: Phase::Snapshot, safe_lsn: consistent_point, ..pending };
            destination = store(destination, made.clone(), vec![]).await?;
            made
        }
    };
    let row_filters = pipeline.publications.row_filters(&client).await?;
    // Stored: an error that comes now is another one.
    parking.clear();
    let mut tables = tables::sent(pipeline, &client).await?;
    if pipeline.replica.is_some() {
        // One that was made since has no table on the replica yet: the next comparison finds it.
        tables.retain(|matched| taken.iter().any(|one| one.table.oid == matched.table.oid));
    }
    for matched in &tables {
        crate::engine::metrics::events(&pipeline.slot, &matched.table.display_name(), 0);
    }
    let labels = Arc::new(Labels::default());
    let topics_of = match pipeline.replica {
        None => tables::topics_of(pipeline, (&types, &enums), &labels, &tables).into_result()?,
        Some(_) => Vec::new(),
    };
    let mut copied_before: BTreeSet<u32> =
        states.values().filter(|state| !state.done).map(|state| state.oid).collect();
    if pipeline.config.source.snapshot == SnapshotMode::Never {
        let new: Vec<TableState> = tables
            .iter()
            .filter(|matched| !states.contains_key(&matched.table.oid))
            .map(|matched| state_of(pipeline, matched, Lsn::ZERO, true, 0))
            .collect();
        destination = store(destination, checkpoint.clone(), new.clone()).await?;
        states.extend(new.into_iter().map(|state| (state.oid, state)));
    } else {
        // Rows of an earlier pipeline, of an earlier table of that name, or of a copy whose "begun" was
        // not stored yet: they end before the new generation begins.
        let unknown: Vec<&(u32, String)> =
            topics_of.iter().filter(|(oid, _)| !states.contains_key(oid)).collect();
        let names: Vec<String> =
            unknown.iter().map(|(_, topic)| topic.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        let (opened, found) =
            blocking(move || destination.has_events(&names).map(|found| (destination, found))).await?;
        destination = opened;
        copied_before.extend(unknown.iter().filter(|(_, topic)| found.contains(topic)).map(|(oid, _)| *oid));
    }

    let context = ranges::Context { types: &types, enums: &enums, targets: &targets };
    let (destination, ranged) =
        ranges::find(pipeline, &client, destination, &tables, context, &mut states).await?;

    let (sink_name, started_from) = (pipeline.slot.clone(), checkpoint.clone());
    let (labels_of_sink, targets_of_sink) = (labels.clone(), targets.clone());
    let topic_names: Vec<String> = topics_of.into_iter().map(|(_, topic)| topic).collect();
    let limits = SinkLimits::of(pipeline.config.limits.memory_bytes_max);
    let claims = pipeline.claim_settings();
    let (worker, topics, copier) = blocking(move || {
        let shared = (&labels_of_sink, &targets_of_sink);
        let (worker, beside) = destination.start(&sink_name, started_from, shared, (limits, claims), gate)?;
        match beside {
            Beside::Hub(topics) => {
                topics.ensure(&topic_names)?;
                Ok((worker, Some(topics), None))
            }
            Beside::Replica(copier) => Ok((worker, None, Some(copier))),
        }
    })
    .await?;
    let ledger = Ledger::new(checkpoint.safe_lsn);
    pipeline.status.update(|status| status.confirmed_lsn = checkpoint.safe_lsn);
    Ok(Started {
        client,
        worker,
        topics,
        copier,
        labels,
        targets,
        checkpoint,
        stored_options,
        ledger,
        types,
        enums,
        tables,
        states,
        ranged,
        copied_before,
        row_filters,
    })
}

async fn prepare(
    mut destination: OpenDestination,
    wanted: &[Wanted],
    makes: Makes,
) -> Result<(OpenDestination, Made)> {
    let wanted = wanted.to_vec();
    blocking(move || destination.prepare(&wanted, makes).map(|made| (destination, made))).await
}

fn is_following(replica: &Replica) -> bool {
    replica.on_schema_change == OnSchemaChange::Follow
}

/// Do the rules fit their tables, and may their filters be filters?
async fn fit(
    pipeline: &Pipeline,
    client: &mut Client,
    (types, enums): (&TypeCatalog, &EnumLabels),
    taken: &[MatchedTable],
) -> Result<()> {
    tables::fit(pipeline, (types, enums), taken)?;
    filters::refuse(client, types, enums, taken).await
}

/// A rule that does not fit a table is the configuration's fault. Unless it fitted it once: then the table has changed.
fn of_known_tables(
    pipeline: &Pipeline,
    error: Error,
    taken: &[MatchedTable],
    states: &BTreeMap<u32, TableState>,
) -> Error {
    let is_known = |matched: &&MatchedTable| {
        let selection = selection_of(pipeline, &matched.rule, &matched.table);
        states.get(&matched.table.oid).is_some_and(|state| state.selection == selection)
    };
    let known: Vec<u32> = taken.iter().filter(is_known).map(|matched| matched.table.oid).collect();
    error.refine(|table| {
        if known.contains(&table.oid) {
            table.fault = Fault::Unfollowable;
        }
    })
}

/// The replica's tables as they should be.
async fn wanted(
    client: &mut Client,
    (replica, is_copied): (&Replica, bool),
    (types, enums): (&TypeCatalog, &EnumLabels),
    targets: &Targets,
    tables: &[MatchedTable],
    states: &BTreeMap<u32, TableState>,
) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for matched in tables {
        let table = &matched.as_sent();
        let context =
            SelectionContext { types, enums, primary_key: &table.primary_key, facts: &matched.facts };
        let plan = RowPlan::compile(context, &table.relation(), &matched.rule, targets, Lsn::ZERO)?;
        let mut known = Vec::new();
        targets.refresh(&mut known);
        let target = known.get(plan.target.index()).expect("a plan's target is interned").clone();
        let defined = match replica.create_tables || is_following(replica) {
            true => catalog::definitions(client, table.oid).await?,
            false => Vec::new(),
        };
        let of = |name: &String| defined.iter().find(|column| column.name == *name).cloned();
        let columns = target.columns.iter().filter_map(|column| of(&column.name)).collect();
        let state = states.get(&table.oid);
        let is_known = state.is_some_and(|state| went_into(state, &target.schema, &target.name));
        let is_copied_whole = state.is_some_and(|state| state.done);
        wanted.push(Wanted {
            target,
            columns,
            is_new: !is_known && is_copied,
            is_copied: is_known && is_copied_whole,
        });
    }
    Ok(wanted)
}

/// All faults at once.
fn refuse(faults: Vec<Missing>) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    Err(tables::all_of(faults.into_iter().map(Error::from).collect()))
}

/// What a rule selects of a table, as far as it decides about what is at the destination.
pub fn selection_of(pipeline: &Pipeline, rule: &TableRule, table: &SourceTable) -> Option<String> {
    if pipeline.replica.is_none() {
        // Rows that were published as rows are not published as events, and the other way round.
        return rule.outbox.as_ref().map(|_| "outbox".to_owned()).or_else(|| rule.filter.clone());
    }
    let (schema, name) = rule.target_name(&table.schema, &table.name);
    let (columns, key, filter) = (&rule.columns, &rule.key, &rule.filter);
    Some(format!("{}\n{columns:?}\n{key:?}\n{filter:?}", quote_qualified(&schema, &name)))
}

/// Whether a table's copy went into this table of the replica.
pub fn went_into(state: &TableState, schema: &str, name: &str) -> bool {
    let known = state.selection.as_ref().and_then(|selection| selection.lines().next());
    known == Some(quote_qualified(schema, name).as_str())
}

/// The state of a table's copy.
pub fn state_of(
    pipeline: &Pipeline,
    matched: &MatchedTable,
    copied_at: Lsn,
    done: bool,
    rows: u64,
) -> TableState {
    let MatchedTable { table, rule, .. } = matched;
    TableState {
        selection: selection_of(pipeline, rule, table),
        root: table.root.clone(),
        oid: table.oid,
        schema: table.schema.clone(),
        table: table.name.clone(),
        key: table.primary_key.clone(),
        copied_at,
        done,
        rows,
        ranges: None,
        parked: None,
        shape: None,
    }
}

/// Runs what blocks on a thread that may.
///
/// # Errors
/// As `work`.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::definite("a blocking step did not end well").with_source(error)))
}

async fn store(
    mut destination: OpenDestination,
    checkpoint: Checkpoint,
    tables: Vec<TableState>,
) -> Result<OpenDestination> {
    blocking(move || destination.store(&checkpoint, &tables).map(|()| destination)).await
}

/// Who the source is, by IDENTIFY_SYSTEM, which needs no right beyond REPLICATION: its identity, its flushed
/// end of WAL and, where the checkpoint is of another timeline, the timelines' history.
///
/// # Errors
/// As the connection.
pub async fn identify(
    pipeline: &Pipeline,
    client: &Client,
    checkpoint: Option<&Checkpoint>,
) -> Result<(Identity, Lsn, Option<String>)> {
    let mut replication = ReplicationConnection::connect(&pipeline.url, &pipeline.application_name()).await?;
    let unreadable = || Error::transient("the source's answer to IDENTIFY_SYSTEM cannot be read");
    let rows = replication.query("IDENTIFY_SYSTEM").await?;
    let row = rows.first().ok_or_else(unreadable)?;
    let field = |at: usize| row.get(at).cloned().flatten().ok_or_else(unreadable);
    let timeline: u32 = field(1)?.parse().map_err(|_| unreadable())?;
    let wal_flush_lsn: Lsn = field(2)?.parse().map_err(|_| unreadable())?;
    let database = client
        .query_one(
            "SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(classify)?;
    let identity = Identity {
        system_identifier: field(0)?,
        timeline,
        database_oid: database.get(0),
        slot: pipeline.slot.clone(),
        options: options_fingerprint(&pipeline.publications.option()),
    };
    let history = match checkpoint {
        Some(checkpoint) if checkpoint.identity.timeline != timeline => {
            let rows = replication.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
            Some(rows.first().and_then(|row| row.get(1).cloned().flatten()).ok_or_else(unreadable)?)
        }
        _ => None,
    };
    replication.close().await;
    Ok((identity, wal_flush_lsn, history))
}

/// A fingerprint of everything that decides which messages are sent.
fn options_fingerprint(publication_names: &str) -> String {
    let mut hash = Sha256::new();
    for (name, value) in STREAM_OPTIONS.iter().chain(&[("publication_names", publication_names)]) {
        hash.update(format!("{name}={value}\n"));
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

async fn publications_exist(pipeline: &Pipeline, client: &Client) -> Result<()> {
    let existing = pipeline.publications.existing(client).await?;
    match pipeline.publications.names().iter().find(|name| !existing.contains(name)) {
        None => Ok(()),
        Some(missing) => Err(Error::definite(format!(
            "publication {missing} does not exist any more: changes may be missing"
        ))
        .with_hint("remove the pipeline with `walgate drop`, then start anew with a copy")),
    }
}

/// Tables that were copied and have left the rules or the publication since: what changed meanwhile
/// is not in the stream, so should they come back, they are copied again. So are those of which the rules select
/// something else now: another filter, and on a replica another name, other columns, another key. With them those that
/// only became, or are no longer, a leaf of a partitioned table.
async fn lost_tables(
    pipeline: &Pipeline,
    client: &Client,
    states: &BTreeMap<u32, TableState>,
) -> Result<Vec<TableState>> {
    let members = pipeline.publications.members(client).await?;
    let tables = tables::all(pipeline, client).await?;
    let is_taken =
        |oid: u32| tables.iter().any(|table| table.oid == oid && rule_of(pipeline, table).is_some());
    // Its updates were not sent while it had no usable identity; now that it has one, they are missing.
    let is_followed = |oid: u32| {
        let table = tables.iter().find(|table| table.oid == oid);
        let is_whole_now = table.is_some_and(|table| Membership::of(table) == Membership::Whole);
        let was_inserts_only = members.get(&oid) == Some(&Membership::InsertsOnly);
        // Of an outbox table nothing but its inserts counts, and those were sent.
        let is_outbox =
            table.and_then(|table| rule_of(pipeline, table)).is_some_and(|rule| rule.outbox.is_some());
        members.contains_key(&oid) && is_taken(oid) && (is_outbox || !(is_whole_now && was_inserts_only))
    };
    let is_selected_alike = |state: &TableState| {
        let table = tables.iter().find(|table| table.oid == state.oid);
        let selected = table.and_then(|table| Some((rule_of(pipeline, table)?, table)));
        selected.is_none_or(|(rule, table)| selection_of(pipeline, rule, table) == state.selection)
    };
    let lost: Vec<TableState> = states
        .values()
        .filter(|state| {
            (state.done || state.ranges.is_some()) && !(is_followed(state.oid) && is_selected_alike(state))
        })
        .map(TableState::undone)
        .collect();
    for state in &lost {
        tracing::warn!(
            table = format!("{}.{}", state.schema, state.table),
            "left the rules or the publication, or they select something else of it: it is copied again"
        );
    }
    let moved =
        states.values().filter(|state| lost.iter().all(|one| one.oid != state.oid)).filter_map(|state| {
            let table = tables.iter().find(|table| table.oid == state.oid && table.root != state.root)?;
            rule_of(pipeline, table)?;
            Some(TableState { root: table.root.clone(), ..state.clone() })
        });
    let moved: Vec<TableState> = moved.collect();
    Ok(lost.into_iter().chain(moved).collect())
}

/// Makes managed publications hold what the rules take.
async fn synchronize(
    pipeline: &Pipeline,
    client: &mut Client,
    filters: &BTreeMap<u32, PushedFilter>,
) -> Result<()> {
    let tables = tables::all(pipeline, client).await?;
    let taken: Vec<&SourceTable> =
        tables.iter().filter(|table| table.is_logged && rule_of(pipeline, table).is_some()).collect();
    for table in taken.iter().filter(|table| !table.has_usable_identity()) {
        tracing::warn!(
            table = table.display_name(),
            "has no usable replica identity: its updates and deletes are not seen"
        );
    }
    pipeline.publications.synchronize(client, &taken, filters).await
}

/// Makes the slot; says for whom it waits.
async fn create_slot(pipeline: &Pipeline, client: &Client) -> Result<Lsn> {
    let url = pipeline.url.clone();
    let application_name = pipeline.application_name();
    let watching = async move {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if let Ok(watcher) = connect(&url, &application_name).await
                && let Ok(writers) = slot::writers(&watcher).await
            {
                tracing::warn!(?writers, "making the slot waits for running transactions");
            }
        }
    };
    tokio::select! {
        created = slot::create(client, &pipeline.slot) => created,
        () = watching => unreachable!("watching never ends"),
    }
}
