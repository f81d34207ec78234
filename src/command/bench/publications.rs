//! What of the source's database is published to readers other than Walgate, which manages its own.
//!
//! In: a database with the workload's tables. Out: the names of its publications. Always: a table without a usable
//! identity is in one of inserts and truncates only, or the workload's own updates would fail.

use super::probe;
use super::server::{Server, create_publication};
use super::workload::Workload;
use crate::error::{Error, Result};
use crate::wal::client::{Client, classify};
use crate::wal::sql::quote_qualified;

/// Tables of the database, and whether their updates can be told.
const TABLES: &str = "
SELECT n.nspname::text, c.relname::text,
  c.relreplident = 'f' OR EXISTS (
    SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid
      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'walgate', 'pglogical')
ORDER BY 1, 2";
/// With row filters in publications.
const FILTERS_SINCE: i32 = 150_000;

/// A table of the workload.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether its updates and deletes can be told.
    pub has_identity: bool,
    /// What its rows must pass.
    pub filter: Option<&'static str>,
}

/// The tables and publications of a workload's database.
#[derive(Clone, Debug)]
pub struct Publications {
    /// Everything.
    pub all: Vec<String>,
    /// What passes the workload's filter; without one, as `all`. Empty: this server's publications have no filters.
    pub passing: Vec<String>,
    /// The tables, the probe's among them.
    pub tables: Vec<Table>,
}

impl Table {
    /// `schema.table`, quoted.
    pub fn quoted(&self) -> String {
        quote_qualified(&self.schema, &self.name)
    }
}

impl Publications {
    /// Makes the probe's table and the publications.
    ///
    /// # Errors
    /// What the server said.
    pub async fn make(server: &Server, client: &Client, workload: &Workload) -> Result<Publications> {
        client.batch_execute(probe::CREATE).await.map_err(classify)?;
        let rows = client.query(TABLES, &[]).await.map_err(classify)?;
        let filter = workload.filter();
        let tables: Vec<Table> = rows
            .iter()
            .map(|row| {
                let (schema, name): (String, String) = (row.get(0), row.get(1));
                let filter = filter.filter(|(table, _)| *table == name).map(|(_, condition)| condition);
                Table { schema, name, has_identity: row.get(2), filter }
            })
            .collect();
        if tables.len() < 2 {
            return Err(
                Error::definite("the workload has no table").with_hint("--schema FILE makes its tables")
            );
        }
        let mut publications = Publications { all: vec![], passing: vec![], tables };
        publications.all = publications.publish(client, "walgate_bench", false).await?;
        publications.passing = match filter {
            None => publications.all.clone(),
            Some(_) if server.version_number < FILTERS_SINCE => vec![],
            Some(_) => publications.publish(client, "walgate_bench_passing", true).await?,
        };
        Ok(publications)
    }

    async fn publish(&self, client: &Client, name: &str, is_filtered: bool) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let inserts = format!("{name}_inserts");
        for (name, has_identity, publish) in
            [(name, true, "insert, update, delete, truncate"), (inserts.as_str(), false, "insert, truncate")]
        {
            let tables = self.tables.iter().filter(|table| table.has_identity == has_identity);
            let listed: Vec<String> = tables
                .map(|table| match table.filter {
                    Some(filter) if is_filtered => format!("{} WHERE ({filter})", table.quoted()),
                    _ => table.quoted(),
                })
                .collect();
            if !listed.is_empty() {
                let statement = create_publication(name, &listed.join(", "), publish);
                client.batch_execute(&statement).await.map_err(classify)?;
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}
