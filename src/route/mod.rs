//! Compiled rules: what becomes of a change.
//!
//! Comes in: row messages with their positions. Goes out: events in a [`batch::Batch`]. Always
//! holds: a change of a table that the router has never been told of is an error, never skipped;
//! all events of one counted message go into one batch (so into one Kafka transaction); the same
//! change gives the same events on every replay.

pub mod batch;
pub mod claim;
pub mod event;
pub mod format;
pub mod filter;
pub mod crossing;
pub mod decision;
mod images;
pub mod undecided;
pub mod message;
pub mod name;
pub mod outbox;
pub mod plan;
pub mod ranges;
pub mod row;
pub mod row_plan;
pub mod selection;
pub mod template;
pub mod value;
#[cfg(test)]
mod properties;

use std::collections::HashMap;

use crate::change::{Position, Transaction};
use crate::error::{Error, Fault, Result};
use crate::lsn::Lsn;
use crate::wal::pgoutput::{Old, Tuple};
use batch::Batch;
use event::{EventWriter, Stamp};
use images::{Images, Place};
use message::MessagePlace;
use outbox::{OutboxPlan, OutboxWriter};
use plan::TablePlan;
use row::TargetId;
use row_plan::RowPlan;

/// What is done with the changes of one table.
#[derive(Debug)]
pub enum Route {
    /// They become events.
    Events(Box<TablePlan>),
    /// They are events as they stand.
    Outbox(Box<OutboxPlan>),
    /// They become rows of a replica.
    Rows(Box<RowPlan>),
    /// The rules leave the table out.
    Off,
}

/// A row message of the stream.
#[derive(Clone, Debug)]
pub enum RowMessage<'a> {
    /// A new row.
    Insert(Tuple<'a>),
    /// A changed row, with its old one as far as it was sent.
    Update(Option<Old<'a>>, Tuple<'a>),
    /// A removed row.
    Delete(Old<'a>),
}

/// Routes the changes of one stream.
#[derive(Debug)]
pub struct Router {
    source_name: String,
    routes: HashMap<u32, Route>,
    stamp: Stamp,
    commit_lsn: Lsn,
    writer: EventWriter,
    outbox: OutboxWriter,
    outbox_seen: OutboxSeen,
}

/// What came of outbox tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxSeen {
    /// Rows inserted.
    pub rows: u64,
    /// Rows that became dead letters.
    pub dead_letters: u64,
}

impl Router {
    /// A router that knows no table yet.
    pub fn new(source_name: &str, writer: EventWriter, outbox: OutboxWriter) -> Self {
        Router {
            source_name: source_name.to_owned(),
            routes: HashMap::new(),
            stamp: Stamp::default(),
            commit_lsn: Lsn::ZERO,
            writer,
            outbox,
            outbox_seen: OutboxSeen::default(),
        }
    }

    /// What came of outbox tables since the beginning.
    pub fn outbox_seen(&self) -> OutboxSeen {
        self.outbox_seen
    }

    /// Tells it what to do with the table of this OID from now on.
    pub fn install(&mut self, oid: u32, route: Route) {
        self.routes.insert(oid, route);
    }

    /// The plan of a table whose changes become events.
    pub fn plan(&self, oid: u32) -> Option<&TablePlan> {
        match self.routes.get(&oid) {
            Some(Route::Events(plan)) => Some(plan),
            Some(Route::Rows(_) | Route::Outbox(_) | Route::Off) | None => None,
        }
    }

    /// A transaction begins.
    pub fn begin(&mut self, transaction: &Transaction) {
        self.commit_lsn = transaction.commit_lsn;
        self.stamp.renew(&self.source_name, transaction);
    }

    /// Whether a table that was copied there has the open transaction's changes in its copy.
    pub fn is_in_copy(&self, copied_at: Lsn) -> bool {
        self.commit_lsn < copied_at
    }

    /// The open transaction got an origin or a trace context.
    pub fn annotate(&mut self, transaction: &Transaction) {
        self.stamp.set_origin(transaction);
    }

    /// The stamp of the open transaction.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Routes one row change that stands at `position`, whose WAL record begins at `lsn`.
    ///
    /// # Errors
    /// Definite: a relation that was never described, columns that do not fit it, a value that its
    /// type cannot have.
    pub fn row(
        &mut self,
        batch: &mut Batch,
        oid: u32,
        position: Position,
        lsn: Lsn,
        row: &RowMessage<'_>,
    ) -> Result<()> {
        let place = Place { position, lsn };
        match self.routes.get(&oid) {
            Some(Route::Events(plan)) if self.commit_lsn >= plan.copied_at => {
                let images = Images::of(&plan.selection, row, lsn)?;
                let (writer, stamp) = (&mut self.writer, &self.stamp);
                images.route(&plan.selection, batch, place, |batch, became| {
                    writer.write_images(batch, (plan, stamp), &images, became.outcome, place)
                })
            }
            Some(Route::Outbox(plan)) if self.commit_lsn >= plan.copied_at => {
                let place = MessagePlace { lsn, number: position.ordinal };
                let to = (plan.as_ref(), &self.stamp);
                self.outbox_seen.add(self.outbox.row(batch, to, place, row)?);
                Ok(())
            }
            Some(Route::Rows(plan)) => {
                let Some(images) = plan.images(row, self.commit_lsn, lsn)? else { return Ok(()) };
                let routed = images.route(&plan.selection, batch, place, |batch, became| {
                    plan.write(batch, &images, became, place);
                    Ok(())
                });
                routed.map_err(|error| error.of_table(oid, &plan.selection.relation, Fault::Rows))
            }
            Some(Route::Events(_) | Route::Outbox(_) | Route::Off) => Ok(()),
            None => Err(unknown_relation(oid, lsn)),
        }
    }

    /// Routes the truncation of one table, for each partition of its topic. Of a table whose changes become rows, the
    /// target, if all of it goes.
    pub fn truncate(
        &mut self,
        batch: &mut Batch,
        oid: u32,
        position: Position,
        lsn: Lsn,
        partitions: i32,
    ) -> Result<Option<TargetId>> {
        match self.routes.get(&oid) {
            Some(Route::Events(plan)) if self.commit_lsn >= plan.copied_at => {
                for partition in 0..partitions {
                    let (stamp, number) = (&self.stamp, position.ordinal);
                    self.writer.write_truncate(batch, plan, stamp, lsn, number, partition)?;
                }
                Ok(None)
            }
            Some(Route::Rows(plan)) => plan.truncate(batch, position, lsn),
            Some(Route::Outbox(plan)) => {
                tracing::info!(table = plan.relation, %lsn, "an outbox table was truncated, which is no event");
                Ok(None)
            }
            Some(Route::Events(_) | Route::Off) => Ok(None),
            None => Err(unknown_relation(oid, lsn)),
        }
    }
}

impl OutboxSeen {
    fn add(&mut self, more: OutboxSeen) {
        self.rows += more.rows;
        self.dead_letters += more.dead_letters;
    }
}

fn unknown_relation(oid: u32, lsn: Lsn) -> Error {
    Error::definite(format!(
        "a change at {lsn} is of the relation with OID {oid}, which the server never described"
    ))
    .with_hint("report this with the server's version; nothing past the last whole transaction was confirmed")
}
