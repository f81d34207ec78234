//! The stream's tables: what becomes of a relation when it is described, and whether the publications still send what
//! the rules take.
//!
//! Comes in: relations of the stream, the catalog of now. Goes out: plans, installed; or that a table must be copied
//! first, for which the stream ends and starts again.

use std::collections::{BTreeMap, BTreeSet};

use super::Stream;
use crate::config::TableRule;
use crate::error::{Error, Fault, Result};
use crate::lsn::Lsn;
use crate::pipeline::ranges::ranges_of;
use crate::pipeline::start::{Started, blocking};
use crate::pipeline::tables::{self, MatchedTable, rule_of, rule_of_relation, taken_of};
use crate::pipeline::{parking, pushdown, shape};
use crate::route::Route;
use crate::route::filter::TableFacts;
use crate::route::outbox::OutboxPlan;
use crate::route::plan::{Op, TablePlan};
use crate::route::row_plan::RowPlan;
use crate::sink::checkpoint::TableState;
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::Client;
use crate::wal::pgoutput::Relation;
use crate::wal::publication::{Membership, Publications};
use crate::wal::slot;

impl Stream<'_> {
    /// The relation as described now; false: it is a table that must be copied first.
    pub(super) async fn install(&mut self, relation: Relation) -> Result<bool> {
        let oid = relation.oid;
        let known = catalog::tables(&self.started.client, Some(&[oid])).await?.pop();
        let pipeline = self.pipeline;
        let state = self.started.states.get(&oid);
        let Some(rule) = rule_of_relation(pipeline, &relation, known.as_ref(), state) else {
            self.pump.install(relation, Some(Route::Off));
            return Ok(true);
        };
        if state.is_some_and(|state| state.parked().is_some()) {
            self.pump.install(relation, Some(Route::Off));
            return Ok(true);
        }
        let ranges = ranges_of(&self.started.ranged, state, oid);
        let copied_at = match (state, &known) {
            _ if ranges.is_some() => Lsn::ZERO,
            (Some(state), _) => state.copied_at,
            // A leaf is described because its root is published, and its rows come as the root's; or it
            // was attached since, and they are its own: all that ever was of them is in the stream.
            (None, Some(table)) if table.is_partition && rule_of(pipeline, table).is_none() => Lsn::ZERO,
            (None, Some(table)) => return self.is_to_be_copied(table).await,
            // Dropped since: likewise; a replica never had it.
            (None, None) if self.pipeline.replica.is_some() => {
                self.pump.install(relation, Some(Route::Off));
                return Ok(true);
            }
            (None, None) => Lsn::ZERO,
        };
        if pipeline.replica.is_some() && self.has_successor(&relation, rule) {
            tracing::info!(
                table = relation.name,
                oid,
                "what is left of a table whose name another one has is not applied"
            );
            self.pump.install(relation, Some(Route::Off));
            return Ok(true);
        }
        let known_key = state.map(|state| state.key.clone()).unwrap_or_default();
        if relation.columns.iter().any(|column| self.started.types.kind(column.type_oid).is_none()) {
            self.started.types = catalog::types(&self.started.client).await?;
        }
        let facts = match (&rule.filter, &known) {
            (Some(_), Some(table)) => {
                self.started.enums = catalog::enums(&self.started.client).await?;
                catalog::facts(&self.started.client, table.oid).await?
            }
            _ => TableFacts::default(),
        };
        let primary_key = known.map_or(known_key, |table| table.primary_key);
        let started = &self.started;
        let route = match &pipeline.replica {
            None if rule.outbox.is_some() => {
                let context = started.plan_context(pipeline);
                Route::Outbox(Box::new(OutboxPlan::compile(&context, &relation, rule, copied_at)?))
            }
            None => {
                let context = started.plan_context(pipeline);
                let plan = TablePlan::compile(&context, &relation, rule, &primary_key, &facts, copied_at)?;
                Route::Events(Box::new(plan))
            }
            Some(_) => {
                let context = started.selection_context(&primary_key, &facts);
                match RowPlan::compile(context, &relation, rule, &started.targets, copied_at) {
                    Ok(plan) => Route::Rows(Box::new(match ranges {
                        Some(ranges) => plan.in_ranges(&relation, ranges),
                        None => plan,
                    })),
                    // The copy saw a later definition, which will be described before a change of it comes.
                    Err(_) if self.pump.is_in_copy(copied_at) => Route::Off,
                    Err(error) => {
                        let name = format!("{}.{}", relation.namespace, relation.name);
                        return Err(error.of_table(oid, &name, Fault::Definition));
                    }
                }
            }
        };
        self.pump.install(relation, Some(route));
        Ok(true)
    }

    /// Whether another table of the source now is what this one was on the replica.
    fn has_successor(&self, relation: &Relation, rule: &TableRule) -> bool {
        let target = rule.target_name(&relation.namespace, &relation.name);
        let mut others = self.started.tables.iter().filter(|other| other.table.oid != relation.oid);
        others.any(|other| other.rule.target_name(&other.table.schema, &other.table.name) == target)
    }

    /// A table that the rules take and that nobody has copied: always false, or an error when another
    /// start would find it no better.
    async fn is_to_be_copied(&self, table: &SourceTable) -> Result<bool> {
        let publications = &self.pipeline.publications;
        let is_member = publications.members(&self.started.client).await?.contains_key(&table.oid);
        if !is_member && !publications.is_managed() {
            return Err(has_left(table, publications));
        }
        tracing::info!(table = table.display_name(), "new table: it is copied first");
        Ok(false)
    }

    /// Partitions of the topic of each of the tables.
    pub(super) async fn partitions(&self, relations: &[u32]) -> Result<Vec<i32>> {
        let mut known = Vec::new();
        self.started.labels.refresh(&mut known);
        let mut counts = Vec::with_capacity(relations.len());
        for oid in relations {
            let Some(plan) = self.pump.plan(*oid) else {
                counts.push(0);
                continue;
            };
            let topic = known.get(plan.op(Op::Truncate).label.index()).map(|label| label.topic.clone());
            let topic = topic.expect("a plan's labels are interned");
            let topics = self.started.topics.clone().expect("only a hub's pipeline has plans of events");
            counts.push(
                blocking(move || {
                    topics.ensure(std::slice::from_ref(&topic))?;
                    topics.partitions(&topic)
                })
                .await?,
            );
        }
        Ok(counts)
    }

    /// Compares rules, publication and what was copied; true: a table has come that must be copied.
    pub(super) async fn compare_tables(&mut self) -> Result<bool> {
        let pipeline = self.pipeline;
        let members = pipeline.publications.members(&self.started.client).await?;
        let tables = tables::all(pipeline, &self.started.client).await?;
        for table in &tables {
            let state = self.started.states.get(&table.oid);
            let is_copied = state.is_some_and(TableState::is_followed);
            let is_parked = state.is_some_and(|state| state.parked().is_some());
            let is_taken = rule_of(pipeline, table).is_some();
            let membership = members.get(&table.oid);
            let is_member = membership.is_some();
            if is_taken && is_copied && !is_member {
                return Err(has_left(table, &pipeline.publications));
            }
            let is_managed = pipeline.publications.is_managed();
            if is_taken
                && is_managed
                && membership.is_some_and(|membership| *membership != Membership::of(table))
            {
                // In the wrong one its UPDATEs fail on the source, or are not seen.
                tracing::info!(
                    table = table.display_name(),
                    "its replica identity changed: it changes the publication"
                );
                return Ok(true);
            }
            if is_taken && !is_parked && state.is_some_and(|state| state.root != table.root) {
                tracing::info!(
                    table = table.display_name(),
                    "it was attached to a partitioned table, or detached: its rule may be another one"
                );
                return Ok(true);
            }
            let is_new = is_taken
                && !is_copied
                && !self.started.ranged.contains_key(&table.oid)
                && !is_parked
                && table.is_logged
                && (is_member || pipeline.publications.is_managed());
            if is_new {
                tracing::info!(table = table.display_name(), "new table: it is copied first");
                return Ok(true);
            }
        }
        if pipeline.publications.is_managed()
            && let Some(leaf) = self.detached(&tables, &members)
        {
            tracing::info!(table = leaf, "it is no leaf any more: it leaves the publication");
            return Ok(true);
        }
        if let Some(table) = self.refiltered(&tables).await? {
            tracing::info!(table, "its replica identity, or its filter in the publication, changed");
            return Ok(true);
        }
        let taken = taken_of(pipeline, tables, &[]);
        let started = &self.started;
        let changes = shape::changes(pipeline, &started.client, &taken, &started.states).await?;
        if !changes.again.is_empty() {
            // The next start finds the same, says so, and stores it.
            return Ok(true);
        }
        if !changes.states.is_empty() {
            self.started.states.extend(changes.states.iter().map(|state| (state.oid, state.clone())));
            self.pump.store(changes.states);
        }
        slot_is_kept(&self.started.client, &pipeline.slot).await?;
        match parking::is_any_due(pipeline, &self.started.client, &self.started.states).await {
            Err(error) => {
                tracing::warn!("parked tables cannot be looked at: {}", error.chain());
                Ok(false)
            }
            is_due => is_due,
        }
    }
}

impl Stream<'_> {
    /// A table whose filter in the publication is not the one of the start, or was decided by another identity.
    async fn refiltered(&self, tables: &[SourceTable]) -> Result<Option<String>> {
        let Started { client, row_filters, tables: started, .. } = &self.started;
        if row_filters.is_empty() && !pushdown::is_asked(self.pipeline) {
            return Ok(None);
        }
        let now = self.pipeline.publications.row_filters(client).await?;
        let is_other = |known: &&MatchedTable| {
            let oid = known.table.oid;
            let identity = |table: &SourceTable| table.identity_columns().map(<[String]>::to_vec);
            let table = tables.iter().find(|table| table.oid == oid);
            row_filters.get(&oid) != now.get(&oid)
                || row_filters.contains_key(&oid)
                    && table.is_some_and(|table| identity(table) != identity(&known.table))
        };
        Ok(started.iter().find(is_other).map(|known| known.table.display_name()))
    }

    /// A table that was copied as a leaf, is none any more, and is taken by no other rule, but is still published.
    fn detached(&self, tables: &[SourceTable], members: &BTreeMap<u32, Membership>) -> Option<String> {
        let taken = tables.iter().filter(|table| rule_of(self.pipeline, table).is_some());
        let taken: BTreeSet<u32> = taken.map(|table| table.oid).collect();
        let mut leaves = self.started.states.values().filter(|state| state.root.is_some());
        let detached =
            leaves.find(|state| members.contains_key(&state.oid) && !taken.contains(&state.oid))?;
        Some(format!("{}.{}", detached.schema, detached.table))
    }
}

fn has_left(table: &SourceTable, publications: &Publications) -> Error {
    Error::definite(format!(
        "table {} has left the publication {}: its changes are not sent any more",
        table.display_name(),
        publications.names().join(", ")
    ))
    .with_hint("start again to have it published and copied again (an existing publication: add it there first), or leave it out by a rule with mode = \"off\"")
}

/// A slot that was invalidated under a running walsender is noticed here at the latest.
async fn slot_is_kept(client: &Client, slot_name: &str) -> Result<()> {
    match slot::state(client, slot_name).await? {
        Some(state) if !state.is_lost() => Ok(()),
        _ => Err(Error::transient(format!("slot {slot_name} is gone or lost"))),
    }
}
