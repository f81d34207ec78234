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

/// Row filters of the given publications, as the server writes them. From PostgreSQL 15 on.
const ROW_FILTERS: &str = "SELECT r.prrelid, pg_catalog.pg_get_expr(r.prqual, r.prrelid) FROM pg_catalog.pg_publication p \
JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = ANY ($1) AND r.prqual IS NOT NULL";

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

/// A row filter that a managed publication is to have for a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedFilter {
    /// The expression as the user wrote it.
    pub sql: String,
    /// What its names are looked up in.
    pub search_path: String,
    /// The expression as the server writes it.
    pub deparsed: String,
}

/// The server's `server_version_num`.
///
/// # Errors
/// As the connection.
pub async fn server_version(client: &Client) -> Result<i32> {
    const VERSION: &str = "SELECT pg_catalog.current_setting('server_version_num')::int";
    Ok(client.query_one(VERSION, &[]).await.map_err(classify)?.get(0))
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
        let query = if server_version(client).await? >= 150_000 { PUBLISHED } else { PUBLISHED_14 };
        let rows = client.query(query, &[name]).await.map_err(classify)?;
        Ok(rows
            .iter()
            .map(|row| PublishedTable { oid: row.get(0), columns: row.get(1), row_filter: row.get(2) })
            .collect())
    }

    /// The row filters that managed publications have now, as the server writes them, by the OID of their table.
    ///
    /// # Errors
    /// As the connection.
    pub async fn row_filters(&self, client: &Client) -> Result<BTreeMap<u32, String>> {
        if !self.is_managed || server_version(client).await? < 150_000 {
            return Ok(BTreeMap::new());
        }
        let rows = client.query(ROW_FILTERS, &[&self.names]).await.map_err(classify)?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Makes managed publications hold exactly `tables`, each in the one that its identity allows, with exactly `filters`,
    /// in one transaction. Existing ones are left alone.
    ///
    /// # Errors
    /// Definite when the role may not.
    pub async fn synchronize(
        &self,
        client: &mut Client,
        tables: &[&SourceTable],
        filters: &BTreeMap<u32, PushedFilter>,
    ) -> Result<()> {
        let [whole, inserts] = self.names.as_slice() else { return Ok(()) };
        if !self.is_managed {
            return Ok(());
        }
        let row_filters = self.row_filters(client).await?;
        let mut transaction = client.transaction().await.map_err(classify)?;
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
        // One with another filter is taken out and put in again.
        let is_kept = |oid: &u32| row_filters.get(oid) == filters.get(oid).map(|filter| &filter.deparsed);
        let (members, refiltered): (BTreeSet<_>, BTreeSet<_>) =
            members.into_iter().partition(|(_, oid)| is_kept(oid));
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
        for (name, oid) in members.difference(&wanted).chain(&refiltered) {
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
                    !filters.contains_key(&table.oid)
                        && wanted.contains(&member)
                        && !members.contains(&member)
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
        for table in tables {
            let Some(filter) = filters.get(&table.oid) else { continue };
            if wanted.contains(&(whole.clone(), table.oid)) && !members.contains(&(whole.clone(), table.oid))
            {
                add_filtered(&mut transaction, whole, table, filter).await?;
            }
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

/// Adds a table with its filter; without it where the server refuses it, since Walgate evaluates it all the same.
async fn add_filtered(
    transaction: &mut tokio_postgres::Transaction<'_>,
    publication: &str,
    table: &SourceTable,
    filter: &PushedFilter,
) -> Result<()> {
    let statement =
        format!("ALTER PUBLICATION {} ADD TABLE ONLY {}", quote_ident(publication), table.sql_name());
    let filtered = format!("{statement} WHERE ({}\n)", filter.sql);
    tracing::info!(statement = filtered, "publication");
    let point = transaction.savepoint("filtered").await.map_err(classify)?;
    point
        .batch_execute(&format!("SET LOCAL search_path = {}", filter.search_path))
        .await
        .map_err(classify)?;
    let Err(error) = point.batch_execute(&filtered).await else {
        return point.commit().await.map_err(classify);
    };
    if error.as_db_error().is_none() {
        return Err(classify(error));
    }
    point.rollback().await.map_err(classify)?;
    let refused = classify(error).chain();
    tracing::warn!(table = table.display_name(), refused, "its filter is not pushed down");
    transaction.batch_execute(&statement).await.map_err(|error| classify(error).context(&statement))
}
