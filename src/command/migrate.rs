//! `walgate migrate`: Walgate's own objects on the source, in the schema `walgate`.
//!
//! Comes in: the embedded files of `migrations/source`, in the order of their versions. Goes out: what was
//! missing, applied in one transaction under an advisory lock, so that two at once do no harm; or, with
//! `--print`, the same as a script, with what only an administrator may do behind it as comments. Always
//! holds: a file whose version is in `walgate.migration` is not run again, and one that was changed since
//! is refused. (The crate refinery was rejected: a handful of files needs none of it.)

use std::io::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Failure;
use super::check::create_publication;
use crate::config::{Config, TableRule};
use crate::error::{Error, Result};
use crate::pipeline::{Pipeline, tables};
use crate::wal::client::{Client, classify, connect};
use crate::wal::sql::{quote_ident, quote_literal};

/// The files, by version.
const FILES: &[File] =
    &[File { version: 1, name: "emit", sql: include_str!("../../migrations/source/V1__emit.sql") }];

const LOCK: &str =
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('walgate.migration', 0))";
const HISTORY: &str = "\
CREATE SCHEMA IF NOT EXISTS walgate;
CREATE TABLE IF NOT EXISTS walgate.migration (
  version int PRIMARY KEY,
  name text NOT NULL,
  checksum text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT pg_catalog.now()
)";
const HISTORY_EXISTS: &str = "SELECT pg_catalog.to_regclass('walgate.migration') IS NOT NULL";
const APPLIED: &str = "SELECT version, checksum FROM walgate.migration";
const NOTE: &str = "INSERT INTO walgate.migration (version, name, checksum) VALUES ($1, $2, $3)";

/// One file.
struct File {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

impl File {
    fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What was done, for `--json`.
#[derive(Serialize)]
struct Done {
    applied: Vec<String>,
    present: Vec<String>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Print the SQL instead of running it.
    pub print: bool,
    /// The outbox table too.
    pub outbox: bool,
    /// Machine output.
    pub json: bool,
}

/// Applies or prints.
///
/// # Errors
/// As the connection; definite when the role may not, or a file was changed; usage for `--outbox`.
pub async fn run(config: Config, asked: Asked) -> Result<(), Failure> {
    if asked.outbox {
        return Err(Failure::Usage(
            "--outbox belongs to a later version: outbox tables are not available in this one\n  remedy: publish with SELECT walgate.emit(aggregate_type, aggregate_id, type, payload), which needs no table".into(),
        ));
    }
    let pipeline = Pipeline::of_hub(std::sync::Arc::new(config), false)?;
    if asked.print {
        let text = script(&pipeline).await;
        let text = if asked.json { serde_json::json!({ "sql": text }).to_string() } else { text };
        // A reader that has gone away does not want the rest.
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
        return Ok(());
    }
    let mut client = connect(&pipeline.url, "walgate migrate").await?;
    let done = apply(&mut client).await.map_err(|error| {
        if error.hint().is_some() {
            return error;
        }
        error.with_hint("give the SQL of `walgate migrate --print` to an administrator of the database")
    })?;
    if asked.json {
        println!("{}", serde_json::to_string(&done).expect("plain data"));
    } else {
        for name in &done.applied {
            println!("applied {name}");
        }
        println!(
            "the schema walgate is up to date ({} applied, {} there already)",
            done.applied.len(),
            done.present.len()
        );
    }
    Ok(())
}

async fn apply(client: &mut Client) -> Result<Done> {
    let transaction = client.transaction().await.map_err(classify)?;
    transaction.query(LOCK, &[]).await.map_err(classify)?;
    // Asked first: CREATE SCHEMA IF NOT EXISTS needs the right to create even where it creates nothing.
    let row = transaction.query_one(HISTORY_EXISTS, &[]).await.map_err(classify)?;
    if !row.get::<_, bool>(0) {
        transaction
            .batch_execute(HISTORY)
            .await
            .map_err(|error| classify(error).context("creating the schema walgate"))?;
    }
    let rows = transaction.query(APPLIED, &[]).await.map_err(classify)?;
    let applied: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    if let Some((newer, _)) =
        applied.iter().find(|(version, _)| FILES.iter().all(|file| file.version != *version))
    {
        return Err(Error::definite(format!(
            "the schema walgate has version {newer}, which this walgate does not know"
        ))
        .with_hint("use the newer walgate that made it"));
    }
    let mut done = Done { applied: vec![], present: vec![] };
    for file in FILES {
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
                    .execute(NOTE, &[&file.version, &file.name, &file.checksum()])
                    .await
                    .map_err(failed)?;
                done.applied.push(label);
            }
        }
    }
    transaction.commit().await.map_err(classify)?;
    Ok(done)
}

/// The same as a script that may be run again, for psql.
async fn script(pipeline: &Pipeline) -> String {
    let mut text = format!(
        "-- Walgate's own objects in the database {}.\nBEGIN;\n{LOCK};\n{HISTORY};\n",
        pipeline.url.database
    );
    for file in FILES {
        text.push_str(&format!(
            "\n{}\nINSERT INTO walgate.migration (version, name, checksum) VALUES ({}, {}, {}) ON CONFLICT DO NOTHING;\n",
            file.sql.trim_end(),
            file.version,
            quote_literal(file.name),
            quote_literal(&file.checksum())
        ));
    }
    text.push_str("COMMIT;\n\n");
    for line in administrator(pipeline).await.lines() {
        text.push_str(format!("-- {line}").trim_end());
        text.push('\n');
    }
    text
}

/// What only an administrator may do: the role, the publication, the slot.
async fn administrator(pipeline: &Pipeline) -> String {
    let role = quote_ident(&pipeline.url.user);
    let config = &pipeline.config;
    let mut schemas: Vec<String> =
        config.tables.iter().filter_map(|rule: &TableRule| Some(rule.name.names()?.0.to_owned())).collect();
    // Best effort: without the database, its tables are not known and the statements show their form.
    let mut publication = format!(
        "CREATE PUBLICATION {} FOR TABLE ... WITH (publish_via_partition_root = true);",
        quote_ident(&config.source.slot)
    );
    let mut selects = vec![format!("GRANT SELECT ON ... TO {role};")];
    let found = async {
        let client = connect(&pipeline.url, "walgate migrate").await.ok()?;
        let all = crate::wal::catalog::tables(&client, None).await.ok()?;
        Some(tables::taken_of(pipeline, all, &[]))
    };
    if let Ok(Some(taken)) = tokio::time::timeout(std::time::Duration::from_secs(5), found).await {
        publication = create_publication(&config.source.slot, &taken);
        schemas.extend(taken.iter().map(|one| one.table.schema.clone()));
        selects =
            taken.iter().map(|one| format!("GRANT SELECT ON {} TO {role};", one.table.sql_name())).collect();
    }
    schemas.sort();
    schemas.dedup();
    let usages: Vec<String> = schemas
        .iter()
        .map(|schema| format!("GRANT USAGE ON SCHEMA {} TO {role};", quote_ident(schema)))
        .collect();
    format!(
        "What follows only an administrator may do; take what is missing.\n\
         \n\
         The server: wal_level, and room for two slots (the second one while tables are copied).\n\
         ALTER SYSTEM SET wal_level = 'logical';  -- and restart the server\n\
         \n\
         A role with the least rights: it reads the tables and the WAL, and changes nothing.\n\
         CREATE ROLE {role} LOGIN REPLICATION PASSWORD '...';\n\
         GRANT CONNECT ON DATABASE {database} TO {role};\n\
         {usages}\n{selects}\n\
         \n\
         Its publication; name it in the file: source.publication = \"{slot}\".\n\
         {publication}\n\
         \n\
         The slot {slot}_hub is made by `walgate run`, for which REPLICATION is enough.\n\
         With source.publication = \"managed\" the role owns the tables and has\n\
         GRANT CREATE ON DATABASE {database} TO {role};\n",
        database = quote_ident(&pipeline.url.database),
        usages = usages.join("\n"),
        selects = selects.join("\n"),
        slot = config.source.slot,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_go_up() {
        assert!(FILES.windows(2).all(|pair| matches!(pair, [a, b] if a.version < b.version)));
        assert_eq!(FILES.first().map(|file| file.checksum().len()), Some(64));
    }
}
