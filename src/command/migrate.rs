//! `walgate migrate`: Walgate's own objects on source and replicas, in the schema `walgate`.
//!
//! Comes in: the configuration. Goes out: what was missing, applied ([`crate::migrations`]); or, with `--print`,
//! the same as a script, with what only an administrator may do behind it as comments.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;

use super::Failure;
use super::check::create_publication;
use crate::config::{Config, TableRule};
use crate::error::Error;
use crate::migrations::{self, Done, Side};
use crate::pipeline::{Pipeline, replica_url, tables};
use crate::route::name::TablePattern;
use crate::wal::client::{classify, connect};
use crate::wal::sql::quote_ident;
use crate::wal::url::ConnectUrl;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Print the SQL instead of running it.
    pub print: bool,
    /// An outbox table of this name too.
    pub outbox: Option<String>,
    /// Machine output.
    pub json: bool,
}

/// The name of the outbox table where none is given.
pub const OUTBOX: &str = "public.outbox";

/// Applies or prints.
///
/// # Errors
/// As the connection; definite when the role may not, or a file was changed; usage for `--outbox`.
pub async fn run(config: Config, asked: Asked) -> Result<(), Failure> {
    let outbox = asked.outbox.as_deref().map(outbox_name).transpose()?;
    let pipeline = Pipeline::of_hub(std::sync::Arc::new(config), false)?;
    if asked.print {
        let text = script(&pipeline, outbox.as_ref()).await;
        let text = if asked.json { serde_json::json!({ "sql": text }).to_string() } else { text };
        // A reader that has gone away does not want the rest.
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
        return Ok(());
    }
    let source = apply(&pipeline.url, Side::Source).await?;
    let outbox = match outbox {
        Some((schema, table)) => Some(create_outbox(&pipeline, &schema, &table).await?),
        None => None,
    };
    let mut everything = Everything { source, outbox, replicas: BTreeMap::new() };
    for (name, url) in replicas(&pipeline.config)? {
        let done = apply(&url, Side::Replica).await;
        let done = done.map_err(|error| error.context(format_args!("replica {name}")))?;
        everything.replicas.insert(name, done);
    }
    if asked.json {
        println!("{}", serde_json::to_string(&everything).expect("plain data"));
        return Ok(());
    }
    tell("", &everything.source);
    if let Some(Outbox { table, is_new }) = &everything.outbox {
        match is_new {
            true => {
                println!("created the outbox table {table}; its rule: name = {table:?}, mode = \"outbox\"")
            }
            false => println!("the outbox table {table} is there already"),
        }
    }
    for (name, done) in &everything.replicas {
        tell(&format!(" on the replica {name}"), done);
    }
    Ok(())
}

/// What was done, for `--json`.
#[derive(Serialize)]
struct Everything {
    #[serde(flatten)]
    source: Done,
    #[serde(skip_serializing_if = "Option::is_none")]
    outbox: Option<Outbox>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    replicas: BTreeMap<String, Done>,
}

/// The outbox table, for `--json`.
#[derive(Serialize)]
struct Outbox {
    table: String,
    is_new: bool,
}

/// Schema and table of `--outbox NAME`.
fn outbox_name(text: &str) -> Result<(String, String), Failure> {
    let named = TablePattern::parse(text).map_err(|error| (error.to_string(), error.remedy()));
    let named = named.and_then(|pattern| match pattern.names() {
        Some(("walgate", _)) => Err((
            "the schema walgate goes with `walgate drop`, and is never published".to_owned(),
            "choose another schema: public.outbox".to_owned(),
        )),
        Some((schema, table)) => Ok((schema.to_owned(), table.to_owned())),
        None => Err(("the name is a pattern".to_owned(), "name one table: public.outbox".to_owned())),
    });
    named.map_err(|(wrong, remedy)| Failure::Usage(format!("--outbox {text}: {wrong}\n  remedy: {remedy}")))
}

async fn create_outbox(pipeline: &Pipeline, schema: &str, table: &str) -> Result<Outbox, Error> {
    const EXISTS: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
        ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2)";
    let client = connect(&pipeline.url, "walgate migrate").await?;
    let name = TablePattern::exact(schema, table).to_string();
    let failed = |error| {
        classify(error).context(format_args!("the outbox table {name}")).with_hint(
            "give the SQL of `walgate migrate --print --outbox` to an administrator of the database",
        )
    };
    let is_new = !client.query_one(EXISTS, &[&schema, &table]).await.map_err(failed)?.get::<_, bool>(0);
    client.batch_execute(&migrations::outbox(schema, table)).await.map_err(failed)?;
    Ok(Outbox { table: name.clone(), is_new })
}

async fn apply(url: &ConnectUrl, side: Side) -> Result<Done, Error> {
    let mut client = connect(url, "walgate migrate").await?;
    migrations::apply(&mut client, side).await.map_err(|error| {
        if error.hint().is_some() {
            return error;
        }
        error.with_hint("give the SQL of `walgate migrate --print` to an administrator of the database")
    })
}

fn tell(place: &str, done: &Done) {
    for name in &done.applied {
        println!("applied {name}{place}");
    }
    println!(
        "the schema walgate{place} is up to date ({} applied, {} there already)",
        done.applied.len(),
        done.present.len()
    );
}

/// Names and URLs of the replicas.
fn replicas(config: &Config) -> Result<Vec<(String, ConnectUrl)>, Error> {
    config.replicas.iter().map(|replica| Ok((replica.name.clone(), replica_url(replica)?))).collect()
}

/// The same as a script that may be run again, for psql.
async fn script(pipeline: &Pipeline, outbox: Option<&(String, String)>) -> String {
    let mut text = migrations::script(Side::Source, &pipeline.url.database, &pipeline.url.user);
    text.push('\n');
    if let Some((schema, table)) = outbox {
        text.push_str(&migrations::outbox(schema, table));
        text.push('\n');
    }
    for line in administrator(pipeline).await.lines() {
        text.push_str(format!("-- {line}").trim_end());
        text.push('\n');
    }
    for (name, url) in replicas(&pipeline.config).unwrap_or_default() {
        text.push_str(&format!("\n-- On the replica {name}, in the database {}:\n", url.database));
        text.push_str(&migrations::script(Side::Replica, &url.database, &url.user));
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
        let all = tables::all(pipeline, &client).await.ok()?;
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
