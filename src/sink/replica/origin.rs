//! The replication origin of what a pipeline applies: by it other readers of the replica's WAL know the rows that are not
//! its own, and so end a loop (`origin = none` of a subscription, `source.origin` of an event).
//!
//! Comes in: a session whose predecessor was ended. Goes out: the same with its origin set, so that every commit of it
//! carries the name; or without, where the role or the server does not let us, for nothing of exactly-once hangs on it. The
//! progress that PostgreSQL could keep with an origin is not used: the checkpoint's row is ours. Always holds: an origin is
//! the pipeline's in one database, since their names are those of the whole cluster. One session can have an origin at a
//! time, so each lane of a copy has one of its own; it stays until the pipeline is dropped, for without it nobody could
//! name the origin of rows that were copied. Manual: "Replication Progress Tracking".

use std::time::Duration;

use crate::error::{Error, Result};
use crate::wal::client::{Client, classify};
use crate::wal::sql::quote_ident;
use crate::wal::sqlstate::{INSUFFICIENT_PRIVILEGE, OBJECT_IN_USE, sqlstate_of};

/// $1: the pipeline. $2: what of it. Its origin's name; whether there is one; whether the role may use it, and may drop it.
const FIND: &str = "\
WITH named AS (SELECT 'walgate_' || $1::text || '_' || d.oid || $2::text AS name FROM pg_catalog.pg_database d \
  WHERE d.datname = pg_catalog.current_database()) \
SELECT n.name, EXISTS (SELECT FROM pg_catalog.pg_replication_origin o WHERE o.roname = n.name), \
  (SELECT coalesce(bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')), false) FROM pg_catalog.pg_proc p \
   WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace \
   AND p.proname IN ('pg_replication_origin_create', 'pg_replication_origin_session_setup')), \
  (SELECT coalesce(bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')), false) FROM pg_catalog.pg_proc p \
   WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.proname = 'pg_replication_origin_drop'), \
  CURRENT_USER::text FROM named n";
const CREATE: &str = "SELECT pg_catalog.pg_replication_origin_create($1)";
const SET_UP: &str = "SELECT pg_catalog.pg_replication_origin_session_setup($1)";
/// $1: a pipeline's origin. It, and those of its lanes.
const OF_PIPELINE: &str = "SELECT roname FROM pg_catalog.pg_replication_origin \
    WHERE roname = $1 OR pg_catalog.starts_with(roname, $1 || '/copy')";
const DROP: &str = "SELECT pg_catalog.pg_replication_origin_drop($1)";
/// A predecessor that could not be ended (another role's) lets go of it as soon as it finds itself fenced.
const BUSY_TRIES: u32 = 10;
const BUSY_TIME: Duration = Duration::from_millis(200);

/// A pipeline's origin, as it was found.
#[derive(Clone, Debug)]
pub struct Origin {
    name: String,
    exists: bool,
    may_use: bool,
    may_drop: bool,
    role: String,
}

impl Origin {
    /// Looks for it.
    ///
    /// # Errors
    /// As the connection.
    pub async fn find(client: &Client, pipeline: &str) -> Result<Origin> {
        Origin::find_part(client, pipeline, "").await
    }

    /// Looks for that of a lane.
    pub(super) async fn find_of_lane(client: &Client, pipeline: &str, lane: usize) -> Result<Origin> {
        Origin::find_part(client, pipeline, &format!("/copy{lane}")).await
    }

    async fn find_part(client: &Client, pipeline: &str, part: &str) -> Result<Origin> {
        let row = client.query_one(FIND, &[&pipeline, &part]).await.map_err(classify)?;
        Ok(Origin {
            name: row.get(0),
            exists: row.get(1),
            may_use: row.get(2),
            may_drop: row.get(3),
            role: row.get(4),
        })
    }

    /// What lets the role use it; `None`: it may.
    pub fn missing_grant(&self) -> Option<String> {
        (!self.may_use).then(|| {
            format!(
                "on the replica, as an administrator: GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_session_setup(text), pg_replication_origin_drop(text) TO {};",
                quote_ident(&self.role)
            )
        })
    }

    /// Makes it where it is not there, and sets it for the session; what keeps us from that is told, and no error.
    ///
    /// # Errors
    /// As the connection.
    pub(super) async fn set_up(&self, client: &Client, replica: &str) -> Result<()> {
        if !self.may_use {
            tracing::info!(
                replica,
                "rows are applied without a replication origin, which the role may not set"
            );
            return Ok(());
        }
        let Err(error) = self.use_it(client).await else { return Ok(()) };
        if sqlstate_of(&error).is_none() || client.is_closed() {
            return Err(error);
        }
        tracing::warn!(
            replica,
            origin = self.name,
            "rows are applied without a replication origin: {}{}",
            error.chain(),
            error.hint().map_or_else(String::new, |hint| format!(" (remedy: {hint})"))
        );
        Ok(())
    }

    async fn use_it(&self, client: &Client) -> Result<()> {
        if !self.exists {
            client.execute(CREATE, &[&self.name]).await.map_err(classify)?;
        }
        let mut tries = 0;
        loop {
            let Err(error) = client.execute(SET_UP, &[&self.name]).await else { return Ok(()) };
            let error = classify(error);
            tries += 1;
            if sqlstate_of(&error) != Some(OBJECT_IN_USE) || tries == BUSY_TRIES {
                return Err(error);
            }
            tokio::time::sleep(BUSY_TIME).await;
        }
    }

    /// Drops it and those of its lanes; what cannot be dropped stays, and the statement is told.
    ///
    /// # Errors
    /// As the connection.
    pub(super) async fn drop(&self, client: &Client) -> Result<()> {
        for row in client.query(OF_PIPELINE, &[&self.name]).await.map_err(classify)? {
            let name: &str = row.get(0);
            let dropped = match self.may_drop {
                true => client.execute(DROP, &[&name]).await.map(drop).map_err(classify),
                false => {
                    Err(Error::definite(format!("role {} may not ({INSUFFICIENT_PRIVILEGE})", self.role)))
                }
            };
            if let Err(error) = dropped {
                tracing::warn!(
                    origin = name,
                    "the replication origin stays: {} (remedy: as an administrator, SELECT pg_replication_origin_drop('{}');)",
                    error.chain(),
                    name.replace('\'', "''")
                );
            }
        }
        Ok(())
    }
}
