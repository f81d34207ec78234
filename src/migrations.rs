//! Walgate's own objects in a database: versioned SQL, embedded in the binary, in the schema `walgate`.
//!
//! Comes in: the files of `migrations/source` or `migrations/replica`, in the order of their versions. Goes out:
//! what was missing, applied in one transaction under an advisory lock, so that two at once do no harm; or the same
//! as a script. Always holds: a file whose version is in the side's history is not run again, and one that was
//! changed since is refused. A database may be a source and a replica: each side has a history of its own. (The crate
//! refinery was rejected: a handful of files needs none of it.)

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::wal::client::{Client, classify};
use crate::wal::sql::{quote_ident, quote_literal, quote_qualified};

/// What a database is to Walgate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its WAL is read.
    Source,
    /// It receives rows.
    Replica,
}

/// One file.
struct File {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

const SOURCE: &[File] = &[
    File { version: 1, name: "emit", sql: include_str!("../migrations/source/V1__emit.sql") },
    File { version: 2, name: "emit_path", sql: include_str!("../migrations/source/V2__emit_path.sql") },
];
/// A table that belongs to the service, in a schema of its own: no part of the history, and never dropped.
const OUTBOX: &str = include_str!("../migrations/source/outbox.sql");
const REPLICA: &[File] = &[
    File { version: 1, name: "replica", sql: include_str!("../migrations/replica/V1__replica.sql") },
    File { version: 2, name: "ranges", sql: include_str!("../migrations/replica/V2__ranges.sql") },
    File { version: 3, name: "parked", sql: include_str!("../migrations/replica/V3__parked.sql") },
    File {
        version: 4,
        name: "created_table",
        sql: include_str!("../migrations/replica/V4__created_table.sql"),
    },
    File { version: 5, name: "leaf", sql: include_str!("../migrations/replica/V5__leaf.sql") },
];

const LOCK: &str =
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('walgate.migration', 0))";

impl File {
    fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Side {
    fn files(self) -> &'static [File] {
        match self {
            Side::Source => SOURCE,
            Side::Replica => REPLICA,
        }
    }

    /// The table that says what was applied.
    fn history(self) -> &'static str {
        match self {
            Side::Source => "walgate.migration",
            Side::Replica => "walgate.replica_migration",
        }
    }

    fn create_history(self) -> String {
        format!(
            "CREATE SCHEMA IF NOT EXISTS walgate;\n\
             CREATE TABLE IF NOT EXISTS {} (\n  \
               version int PRIMARY KEY,\n  \
               name text NOT NULL,\n  \
               checksum text NOT NULL,\n  \
               applied_at timestamptz NOT NULL DEFAULT pg_catalog.now()\n)",
            self.history()
        )
    }
}

/// What was done, for `--json`.
#[derive(Debug, Serialize)]
pub struct Done {
    /// Files that were run now.
    pub applied: Vec<String>,
    /// Files that were there already.
    pub present: Vec<String>,
}

/// Runs what is missing.
///
/// # Errors
/// As the connection; definite when the role may not, a file was changed, or a newer version is there.
pub async fn apply(client: &mut Client, side: Side) -> Result<Done> {
    let history = side.history();
    let transaction = client.transaction().await.map_err(classify)?;
    transaction.query(LOCK, &[]).await.map_err(classify)?;
    // Asked first: CREATE SCHEMA IF NOT EXISTS needs the right to create even where it creates nothing.
    let exists = format!("SELECT pg_catalog.to_regclass('{history}') IS NOT NULL");
    let row = transaction.query_one(&exists, &[]).await.map_err(classify)?;
    if !row.get::<_, bool>(0) {
        transaction
            .batch_execute(&side.create_history())
            .await
            .map_err(|error| classify(error).context("creating the schema walgate"))?;
    }
    let applied = format!("SELECT version, checksum FROM {history}");
    let rows = transaction.query(&applied, &[]).await.map_err(classify)?;
    let applied: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let files = side.files();
    if let Some((newer, _)) =
        applied.iter().find(|(version, _)| files.iter().all(|file| file.version != *version))
    {
        return Err(Error::definite(format!(
            "the schema walgate has version {newer}, which this walgate does not know"
        ))
        .with_hint("use the newer walgate that made it"));
    }
    let note = format!("INSERT INTO {history} (version, name, checksum) VALUES ($1, $2, $3)");
    let mut done = Done { applied: vec![], present: vec![] };
    for file in files {
        let label = format!("V{}__{}", file.version, file.name);
        match applied.iter().find(|(version, _)| *version == file.version) {
            Some((_, checksum)) if *checksum == file.checksum() => done.present.push(label),
            Some(_) => {
                return Err(Error::definite(format!(
                    "{label} was applied with another text than this walgate has"
                ))
                .with_hint("use the walgate that applied it, or drop the schema walgate and migrate again"));
            }
            None => {
                let failed = |error| classify(error).context(&label);
                transaction.batch_execute(file.sql).await.map_err(failed)?;
                transaction
                    .execute(&note, &[&file.version, &file.name, &file.checksum()])
                    .await
                    .map_err(failed)?;
                done.applied.push(label);
            }
        }
    }
    transaction.commit().await.map_err(classify)?;
    Ok(done)
}

/// What makes an outbox table of this name, if there is no such table.
pub fn outbox(schema: &str, table: &str) -> String {
    OUTBOX.replace("@TABLE@", &quote_qualified(schema, table))
}

/// The same as a script that may be run again, for psql. On a replica `role`, which writes there, gets what it needs of
/// what somebody else has made.
pub fn script(side: Side, database: &str, role: &str) -> String {
    let mut text = format!(
        "-- Walgate's own objects in the database {database}.\nBEGIN;\n{LOCK};\n{};\n",
        side.create_history()
    );
    for file in side.files() {
        text.push_str(&format!(
            "\n{}\nINSERT INTO {} (version, name, checksum) VALUES ({}, {}, {}) ON CONFLICT DO NOTHING;\n",
            file.sql.trim_end(),
            side.history(),
            file.version,
            quote_literal(file.name),
            quote_literal(&file.checksum())
        ));
    }
    if side == Side::Replica {
        let role = quote_ident(role);
        text.push_str(&format!(
            "\nGRANT USAGE ON SCHEMA walgate TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walgate TO {role};\n"
        ));
    }
    text.push_str("COMMIT;\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_go_up() {
        for side in [Side::Source, Side::Replica] {
            let files = side.files();
            assert!(files.windows(2).all(|pair| matches!(pair, [a, b] if a.version < b.version)));
            assert_eq!(files.first().map(|file| file.checksum().len()), Some(64));
        }
    }

    #[test]
    fn a_replicas_script_lets_the_role_in() {
        let grants = "GRANT USAGE ON SCHEMA walgate TO \"wal gate\";\n\
            GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walgate TO \"wal gate\";\nCOMMIT;\n";
        assert!(script(Side::Replica, "shop", "wal gate").ends_with(grants));
        assert!(!script(Side::Source, "shop", "wal gate").contains("wal gate"));
    }
}
