//! Which server and which database a session is with.
//!
//! Comes in: a session. Goes out: a [`Server`], by which two sessions are seen to be with the same database, whatever their
//! URLs say. Manual: `pg_control_system`.

use super::client::{Client, classify};
use crate::error::Result;

const SERVER: &str = "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text, \
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()), \
    pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('server_version_num')::int";

/// See the module.
#[derive(Clone, Debug)]
pub struct Server {
    /// The cluster's identity.
    pub system_identifier: String,
    /// The database's OID.
    pub database_oid: u32,
    /// It takes no writes.
    pub is_standby: bool,
    /// As `server_version_num`.
    pub version: i32,
}

impl Server {
    /// Asks.
    ///
    /// # Errors
    /// As the connection.
    pub async fn of(client: &Client) -> Result<Server> {
        let row = client.query_one(SERVER, &[]).await.map_err(classify)?;
        Ok(Server {
            system_identifier: row.get(0),
            database_oid: row.get(1),
            is_standby: row.get(2),
            version: row.get(3),
        })
    }

    /// Whether it is the same database of the same cluster.
    pub fn is(&self, system_identifier: &str, database_oid: u32) -> bool {
        self.system_identifier == system_identifier && self.database_oid == database_oid
    }
}
