//! Publications: which tables' changes the slot sends.
//!
//! A managed pair, since publishing UPDATE or DELETE of a table without a usable identity makes the
//! application's own statements fail: `<name>` for tables with one, `<name>_inserts` (`publish =
//! 'insert, truncate'`) for the others. Both are made before the slot and never dropped while it
//! lives: decoding WAL older than a publication fails for ever (FIELD_NOTES 2). Manual: "CREATE
//! PUBLICATION", pg_publication_tables.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::SourceTable;
use super::client::{Client, classify};
use super::sql::{quote_ident, quote_literal};
use crate::config::Publication;
use crate::error::{Error, Result};

const EXISTING: &str = "SELECT pubname::text FROM pg_catalog.pg_publication WHERE pubname = ANY ($1)";

/// Members of the given publications, each root of a partitioned table as itself.
const MEMBERS: &str = "SELECT p.pubname::text, r.prrelid FROM pg_catalog.pg_publication p \
JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = ANY ($1)";

/// What an existing publication publishes, FOR ALL TABLES and IN SCHEMA resolved. Column lists and
/// row filters exist from PostgreSQL 15 on.
const PUBLISHED: &str = "SELECT c.oid, t.attnames::text[], t.rowfilter FROM pg_catalog.pg_publication_tables t \
JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = $1";
const PUBLISHED_14: &str = "SELECT c.oid, NULL::text[], NULL::text FROM pg_catalog.pg_publication_tables t \
JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = $1";

/// The publications of one slot, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publications {
    names: Vec<String>,
    is_managed: bool,
}

/// What the managed publications send of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Everything.
    Whole,
    /// Inserts and truncates: it has no usable identity.
    InsertsOnly,
}

impl Membership {
    /// What a table should have.
    pub fn of(table: &SourceTable) -> Self {
        if table.has_usable_identity() { Membership::Whole } else { Membership::InsertsOnly }
    }
}

/// A table as a publication sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// Its OID.
    pub oid: u32,
    /// The publication's column list, if it has one.
    pub columns: Option<Vec<String>>,
    /// The publication's row filter, if it has one: an SQL expression.
    pub row_filter: Option<String>,
}

impl Publications {
    /// Those of the slot `slot`, which share its name when they are managed.
    pub fn new(publication: &Publication, slot: &str) -> Self {
        match publication {
            Publication::Managed => {
                Publications { names: vec![slot.to_owned(), format!("{slot}_inserts")], is_managed: true }
            }
            Publication::Existing(name) => Publications { names: vec![name.clone()], is_managed: false },
        }
    }

    /// Their names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether Walgate makes and changes them.
    pub fn is_managed(&self) -> bool {
        self.is_managed
    }

    /// The value of the option `publication_names`: a list of quoted identifiers.
    pub fn option(&self) -> String {
        self.names.iter().map(|name| quote_ident(name)).collect::<Vec<_>>().join(",")
    }

    /// Those that exist.
    ///
    /// # Errors
    /// As the connection.
    pub async fn existing(&self, client: &Client) -> Result<Vec<String>> {
        let rows = client.query(EXISTING, &[&self.names]).await.map_err(classify)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// OIDs of the tables that they hold now, and what they send of each.
    ///
    /// # Errors
    /// As the connection; definite when an existing publication that was named is not there.
    pub async fn members(&self, client: &Client) -> Result<BTreeMap<u32, Membership>> {
        if self.is_managed {
            let rows = client.query(MEMBERS, &[&self.names]).await.map_err(classify)?;
            let is_whole = |row: &tokio_postgres::Row| self.names.first() == Some(&row.get::<_, String>(0));
            let membership = |row| if is_whole(row) { Membership::Whole } else { Membership::InsertsOnly };
            return Ok(rows.iter().map(|row| (row.get(1), membership(row))).collect());
        }
        Ok(self.published(client).await?.into_iter().map(|table| (table.oid, Membership::Whole)).collect())
    }

    /// What an existing publication sends, with its lists and filters.
    ///
    /// # Errors
    /// As the connection; definite when it is not there.
    pub async fn published(&self, client: &Client) -> Result<Vec<PublishedTable>> {
        let [name] = self.names.as_slice() else { return Ok(Vec::new()) };
        if self.existing(client).await?.is_empty() {
            return Err(Error::definite(format!("publication \"{name}\" does not exist")).with_hint(format!(
                "CREATE PUBLICATION {} FOR TABLE ... WITH (publish_via_partition_root = true); or set source.publication = \"managed\"",
                quote_ident(name)
            )));
        }
        let version: i32 = client
            .query_one("SELECT pg_catalog.current_setting('server_version_num')::int", &[])
            .await
            .map_err(classify)?
            .get(0);
        let query = if version >= 150_000 { PUBLISHED } else { PUBLISHED_14 };
        let rows = client.query(query, &[name]).await.map_err(classify)?;
        Ok(rows
            .iter()
            .map(|row| PublishedTable { oid: row.get(0), columns: row.get(1), row_filter: row.get(2) })
            .collect())
    }

    /// Makes managed publications hold exactly `tables`, each in the one that its identity allows,
    /// in one transaction. Existing ones are left alone.
    ///
    /// # Errors
    /// Definite when the role may not.
    pub async fn synchronize(&self, client: &mut Client, tables: &[&SourceTable]) -> Result<()> {
        let [whole, inserts] = self.names.as_slice() else { return Ok(()) };
        if !self.is_managed {
            return Ok(());
        }
        let transaction = client.transaction().await.map_err(classify)?;
        let existing: Vec<String> = transaction
            .query(EXISTING, &[&self.names])
            .await
            .map_err(classify)?
            .iter()
            .map(|row| row.get(0))
            .collect();
        let members: BTreeSet<(String, u32)> = transaction
            .query(MEMBERS, &[&self.names])
            .await
            .map_err(classify)?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let mut statements = Vec::new();
        for (name, operations) in [(whole, "insert, update, delete, truncate"), (inserts, "insert, truncate")]
        {
            if !existing.contains(name) {
                statements.push(format!(
                    "CREATE PUBLICATION {} WITH (publish = {}, publish_via_partition_root = true)",
                    quote_ident(name),
                    quote_literal(operations)
                ));
            }
        }
        let wanted: BTreeSet<(String, u32)> = tables
            .iter()
            .map(|table| (if table.has_usable_identity() { whole } else { inserts }.clone(), table.oid))
            .collect();
        // Out of the one before into the other: never in a publication that makes its UPDATE fail.
        for (name, oid) in members.difference(&wanted) {
            let gone = transaction
                .query_opt("SELECT $1::oid::pg_catalog.regclass::text", &[oid])
                .await
                .map_err(classify)?;
            if let Some(row) = gone {
                let table: String = row.get(0);
                statements.push(format!("ALTER PUBLICATION {} DROP TABLE {table}", quote_ident(name)));
            }
        }
        for name in [whole, inserts] {
            let new: Vec<String> = tables
                .iter()
                .filter(|table| {
                    let member = (name.clone(), table.oid);
                    wanted.contains(&member) && !members.contains(&member)
                })
                // ONLY: children of classic inheritance would come along, with identities of their own.
                .map(|table| format!("ONLY {}", table.sql_name()))
                .collect();
            if !new.is_empty() {
                statements.push(format!(
                    "ALTER PUBLICATION {} ADD TABLE {}",
                    quote_ident(name),
                    new.join(", ")
                ));
            }
        }
        for statement in &statements {
            tracing::info!(statement, "publication");
            transaction.batch_execute(statement).await.map_err(|error| {
                classify(error).context(statement).with_hint(
                    "run it as the owner of the database and tables, or create a publication and name it in source.publication",
                )
            })?;
        }
        transaction.commit().await.map_err(classify)
    }

    /// Removes managed publications; returns the names of those that were there.
    ///
    /// # Errors
    /// Definite when the role may not.
    pub async fn remove(&self, client: &Client) -> Result<Vec<String>> {
        if !self.is_managed {
            return Ok(Vec::new());
        }
        let existing = self.existing(client).await?;
        for name in &existing {
            let statement = format!("DROP PUBLICATION IF EXISTS {}", quote_ident(name));
            client.batch_execute(&statement).await.map_err(|error| {
                classify(error).context(&statement).with_hint("run it as the publication's owner")
            })?;
        }
        Ok(existing)
    }
}
