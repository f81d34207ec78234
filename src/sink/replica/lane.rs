//! Lanes: connections that copy tables into a replica, several at a time, beside the session that owns the record.
//!
//! Comes in: pieces of COPY's format, as the source sends them. Goes out: committed rows. One backend that parses and
//! inserts is what limits a copy, so several do. The record stays the session's, and the copy is exact all the same:
//!
//! 1. Before a lane begins, the session has stored durably that the table's copy has begun, and has removed what an
//!    earlier attempt left. So whatever rows of lanes are there when something dies, the next attempt removes them.
//! 2. The session stores that it is done when the last lane has committed, by a commit that waits for the disk. WAL is
//!    flushed in its order: the rows, whose commits did not wait, are durable before anybody can read "done".
//! 3. Who takes over takes an epoch, which changes the record's row. The last thing that a lane does before its commit is
//!    to lock that row as it is under our epoch. Either it has the lock first: then the successor waits for the commit,
//!    and finds the rows, and that the copy had only begun. Or it finds another epoch, and commits nothing. No session
//!    must be ended for that; that the successor ends them, by their name, only spares it the wait for a frozen one.
//!
//! The format is COPY's binary one where every column has the same type on both sides, one of `binary.rs`; else text. Binary takes two thirds of the processor time.
//!
//! Manual: "COPY", "Row-Level Locks", "Asynchronous Commit".

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::CopyInSink;

use super::ReplicaSettings;
use super::apply::{BEGIN, is_about_data, is_about_definitions};
use super::origin::Origin;
use super::record::Ownership;
use super::session::{session_name, set_up};
use super::statements::{Kind, Mask};
use super::table::Table;
use crate::error::{Error, Fault, Result};
use crate::failpoint;
use crate::route::row::{Target, TargetId, Targets};
use crate::wal::client::{Client, classify, connect};
use crate::wal::sqlstate::sqlstate_of;

/// Opens lanes to a replica.
pub struct Copier {
    settings: ReplicaSettings,
    ownership: Ownership,
    targets: Arc<Targets>,
}

impl Copier {
    pub(super) fn new(settings: ReplicaSettings, ownership: Ownership, targets: Arc<Targets>) -> Self {
        Copier { settings, ownership, targets }
    }

    /// Connects a lane; those that are open at a time have different numbers.
    ///
    /// # Errors
    /// As the connection.
    pub async fn open(&self, number: usize) -> Result<Lane> {
        let opened = self.connect(number).await;
        opened.map_err(|error| error.context(format_args!("replica {}", self.settings.name)))
    }

    async fn connect(&self, number: usize) -> Result<Lane> {
        let settings = &self.settings;
        let client = connect(&settings.url, &session_name(&settings.application_name)).await?;
        let has_replica_role = set_up(&client).await?;
        let origin = Origin::find_of_lane(&client, &settings.pipeline, number).await?;
        // The session has said what the role may not.
        if origin.missing_grant().is_none() {
            origin.set_up(&client, &settings.name).await?;
        }
        Ok(Lane {
            client,
            replica: settings.name.clone(),
            ownership: self.ownership.clone(),
            targets: self.targets.clone(),
            known: Vec::new(),
            has_replica_role,
        })
    }
}

/// See the module. After an error it is not used again.
pub struct Lane {
    client: Client,
    replica: String,
    ownership: Ownership,
    targets: Arc<Targets>,
    known: Vec<Arc<Target>>,
    has_replica_role: bool,
}

impl Lane {
    /// Begins a transaction of rows of this table.
    ///
    /// # Errors
    /// Definite when the table there does not fit, with the SQL that mends it.
    pub async fn begin(&mut self, target: TargetId) -> Result<Arrival<'_>> {
        self.targets.refresh(&mut self.known);
        let target = self.known.get(target.index()).expect("a target is interned before it is used").clone();
        let table = self.look_up(target).await?;
        self.client.batch_execute(BEGIN).await.map_err(classify)?;
        let format = format_of(&table);
        let copy = format!("{} (FORMAT {format})", table.statement(Kind::Copy, &Mask::new()).sql);
        match self.client.copy_in(&copy).await {
            Ok(rows) => Ok(Arrival { lane: self, table, format, rows: Box::pin(rows) }),
            Err(error) => Err(self.judge(&table, error).await),
        }
    }

    async fn look_up(&self, target: Arc<Target>) -> Result<Table> {
        let table = Table::look_up(&self.client, target.clone(), self.has_replica_role).await;
        table.map_err(|error| target.blamed(error, Fault::Definition))
    }

    /// What an answer to a copy says. Where it speaks of definitions: what does not fit now, or nothing, if the table was
    /// changed since it was looked up, so that the next attempt goes by what it is.
    async fn judge(&self, table: &Table, error: tokio_postgres::Error) -> Error {
        let error = classify(error);
        let code = sqlstate_of(&error).unwrap_or_default();
        if is_about_data(code) {
            return refused_copy(table, &self.replica, error);
        }
        if is_about_definitions(code) && self.client.batch_execute("ROLLBACK").await.is_ok() {
            match self.look_up(table.target.clone()).await {
                Err(found) => return found,
                Ok(now) if now != *table => {
                    return Error::transient(format!(
                        "the table {} was changed on the replica {}",
                        table.name, self.replica
                    ))
                    .with_source(error);
                }
                Ok(_) => {}
            }
        }
        let copying =
            format!("copying {} into {} on the replica {}", table.target.relation, table.name, self.replica);
        table.target.blamed(error.context(copying), Fault::Rows)
    }
}

/// Rows on their way into a table. Dropped, nothing of them stays.
pub struct Arrival<'l> {
    lane: &'l Lane,
    table: Table,
    format: &'static str,
    rows: Pin<Box<CopyInSink<Bytes>>>,
}

impl Arrival<'_> {
    /// COPY's name of the format in which rows are taken.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The names of the columns that a row has, in their order: those that the replica computes are not among them.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.table
            .inserted()
            .filter_map(|(at, _)| self.table.target.columns.get(at))
            .map(|column| column.name.as_str())
    }

    /// Sends some bytes of rows, once the replica has taken most of those before.
    ///
    /// # Errors
    /// Definite, with the table: the replica refuses a row. Transient: the connection broke.
    pub async fn send(&mut self, piece: Bytes) -> Result<()> {
        match self.rows.feed(piece).await {
            Ok(()) => Ok(()),
            // The server has given up: the end says why.
            Err(_) => self.finish().await,
        }
    }

    /// Commits them, if the pipeline is still ours.
    ///
    /// # Errors
    /// As [`Arrival::send`]; fenced when another process has taken over.
    pub async fn commit(mut self) -> Result<()> {
        self.finish().await?;
        let Lane { client, ownership, .. } = self.lane;
        ownership.hold(client).await?;
        failpoint::hit("replica.copy.before-commit");
        // What a DEFERRABLE constraint refuses is refused here.
        if let Err(error) = client.batch_execute("COMMIT").await {
            return Err(self.lane.judge(&self.table, error).await);
        }
        failpoint::hit("replica.copy.after-commit");
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        match self.rows.as_mut().finish().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.lane.judge(&self.table, error).await),
        }
    }
}

fn format_of(table: &Table) -> &'static str {
    if table.forms.is_some() { "binary" } else { "text" }
}

/// A row of the initial copy that the replica does not take.
fn refused_copy(table: &Table, replica: &str, error: Error) -> Error {
    let hint = match sqlstate_of(&error) {
        Some("23505" | "23P01") => {
            format!("the table has rows that do not come from the source: TRUNCATE {}", table.name)
        }
        Some("23503") => format!(
            "rows of other tables come when they come: drop that foreign key of {}, or GRANT SET ON PARAMETER session_replication_role TO the replica's role (PostgreSQL 15)",
            table.name
        ),
        Some("23514") => format!("drop the check of {}, or filter such rows out in the rule", table.name),
        _ => format!("make the columns of {} like those of {}", table.name, table.target.relation),
    };
    let refused = Error::definite(format!(
        "copying {} into {} on the replica {replica}: a row is refused",
        table.target.relation, table.name
    ))
    .with_source(error)
    .with_hint(hint);
    table.target.blamed(refused, Fault::Rows)
}
