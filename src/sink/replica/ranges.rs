//! Tables that are copied in ranges of their key, on the side of the replica: whether a table takes that, and rows of some
//! keys that go.
//!
//! Comes in: a target and the column by which it is cut. Goes out: what stands against it, or a DELETE. The argument: while
//! ranges are copied, what the replica has of the table is of several moments. Of one moment no two rows have the same
//! unique value, of several they may: a value that moved from a row in a finished range to one in the next is there twice
//! until the stream has come so far. So every unique index must have the column, whose ranges keep such rows apart, and
//! foreign keys must not be checked. Keys are compared as the source compares them, whatever the column is here.

use tokio_postgres::types::ToSql;

use super::apply::{Applier, Trouble, refused_clear};
use super::session::ReplicaSession;
use crate::error::Result;
use crate::route::batch::Batch;
use crate::route::ranges::KeyKind;
use crate::route::row::{RowChange, RowOp, Target};
use crate::sink::Stop;
use crate::wal::client::{Client, classify};

/// $1, $2: the table. $3: the column. $4: whether foreign keys are off for the session. Goes out: a unique index without
/// the column or an exclusion constraint, and whether foreign keys stand against it.
const OBSTACLES: &str = "\
SELECT (SELECT i.indexrelid::pg_catalog.regclass::text FROM pg_catalog.pg_index i \
        WHERE (i.indrelid = c.oid OR i.indrelid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p)) \
          AND (i.indisexclusion OR i.indisunique AND NOT EXISTS ( \
               SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid AND a.attname = $3 \
               AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))) LIMIT 1), \
       NOT $4 AND EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.contype = 'f' \
               AND (f.conrelid = c.oid OR f.confrelid = c.oid)) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE n.nspname = $1 AND c.relname = $2";

const INTEGERS: [&str; 3] = ["\"pg_catalog\".\"int2\"", "\"pg_catalog\".\"int4\"", "\"pg_catalog\".\"int8\""];

impl ReplicaSession {
    /// Why the table cannot be copied in ranges of `column`; `None`: it can.
    ///
    /// # Errors
    /// As the connection.
    pub fn obstacle(&mut self, target: &Target, column: &str) -> Result<Option<String>> {
        let ReplicaSession { link, has_replica_role, .. } = self;
        let found = link.run(&Stop::default(), async |client| {
            client
                .query_opt(OBSTACLES, &[&target.schema, &target.name, &column, &*has_replica_role])
                .await
                .map_err(classify)
        })?;
        let Some(found) = found else { return Ok(Some("the replica does not have it".to_owned())) };
        let (index, has_foreign_keys): (Option<String>, bool) = (found.get(0), found.get(1));
        let of_index = index.map(|index| format!("{index} on the replica is unique without \"{column}\""));
        Ok(of_index
            .or_else(|| has_foreign_keys.then(|| "foreign keys of the replica are checked".to_owned())))
    }
}

impl Applier {
    /// Removes the rows of a [`RowOp::ClearRange`].
    pub(super) async fn clear_range(
        &mut self,
        client: &Client,
        batch: &Batch,
        change: &RowChange,
    ) -> Result<(), Trouble> {
        let RowOp::ClearRange { column, kind, after, up_to } = &change.op else { return Ok(()) };
        let table = self.table(change.target.index());
        let column = table.columns.get(*column).expect("an index of the target's columns");
        let sql_type = kind.sql_type();
        // Another collation of the replica's column would be another order.
        let collate = if *kind == KeyKind::Text { " COLLATE pg_catalog.\"C\"" } else { "" };
        let key = match *kind == KeyKind::Integer && INTEGERS.contains(&column.cast.as_str()) {
            // A cast would hide it from its index; integers of all sizes compare with each other.
            true => column.name.clone(),
            false => format!("{}::{sql_type}", column.name),
        };
        let (mut conditions, mut bounds) = (Vec::new(), Vec::new());
        for (operator, bound) in [(">", after), ("<=", up_to)] {
            if let Some(bound) = bound {
                bounds.push(String::from_utf8_lossy(batch.part(bound)).into_owned());
                let number = bounds.len();
                conditions.push(format!("{key} {operator} ${number}::text::{sql_type}{collate}"));
            }
        }
        let sql = format!("DELETE FROM {} WHERE {}", table.name, conditions.join(" AND "));
        let parameters: Vec<&(dyn ToSql + Sync)> = bounds.iter().map(|bound| bound as _).collect();
        match client.execute(&sql, &parameters).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Trouble::Failed(refused_clear(&table, &self.replica, error))),
        }
    }
}
