//! Rules against tables: which tables a pipeline takes, and under which topics.
//!
//! Comes in: the rules and the source's catalog. Goes out: matched tables, and everything about them
//! that a rule has wrong, each with its remedy. Start takes the first fault, `check` shows them all;
//! both ask here, so they never disagree (DESIGN section 3).

use std::collections::BTreeMap;

use super::{Pipeline, leaves};
use crate::config::{Mode, Partitions, TableRule, choose, choose_of_leaf};
use crate::error::{Error, Fault, Result};
use crate::lsn::Lsn;
use crate::route::batch::Labels;
use crate::route::filter::{EnumLabels, TableFacts};
use crate::route::name::TablePattern;
use crate::route::outbox::OutboxPlan;
use crate::route::plan::{PlanContext, TablePlan};
use crate::route::row::Targets;
use crate::route::row_plan::RowPlan;
use crate::route::selection::SelectionContext;
use crate::route::template::TopicNames;
use crate::route::value::TypeCatalog;
use crate::sink::checkpoint::TableState;
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::{Client, classify};
use crate::wal::pgoutput::Relation;
use crate::wal::publication::PublishedTable;
use crate::wal::sql::{quote_ident, quote_qualified};

/// What a name stands for, whatever it is: kind, persistence, whether it is a partition, and of what.
const RELATION: &str = "SELECT c.relkind::text, c.relpersistence::text, c.relispartition, \
(SELECT pn.nspname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
 JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid LIMIT 1), \
(SELECT p.relname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
 WHERE i.inhrelid = c.oid LIMIT 1) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE n.nspname = $1 AND c.relname = $2";

/// Whether one of the OIDs $2 is a partition of $1.
const LEAF_IS_SENT: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_partition_tree($1::oid::regclass) t \
WHERE t.relid::oid <> $1 AND t.relid::oid = ANY ($2))";

/// A table that the rules take, and the rule.
#[derive(Clone, Debug)]
pub struct MatchedTable {
    /// The table.
    pub table: SourceTable,
    /// Its rule.
    pub rule: TableRule,
    /// What an existing publication lets through.
    pub published: Option<PublishedTable>,
    /// What its filter must know of it; empty where it has none.
    pub facts: TableFacts,
}

/// An exact rule without a table that it could take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The rule's key path.
    pub key_path: String,
    /// The table, as the rule names it.
    pub table: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl MatchedTable {
    /// The table as far as an existing publication sends it.
    pub fn as_sent(&self) -> SourceTable {
        let mut table = self.table.clone();
        self.retain_sent(&mut table);
        table
    }

    /// Leaves to `table` the columns that an existing publication sends.
    pub fn retain_sent(&self, table: &mut SourceTable) {
        if let Some(columns) = self.published.as_ref().and_then(|published| published.columns.as_ref()) {
            table.columns.retain(|column| columns.contains(&column.name));
        }
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Error::definite(format!("{}: {}", missing.key_path, missing.message)).with_hint(missing.remedy)
    }
}

/// The topic of each table, and what is wrong with some.
#[derive(Debug, Default)]
pub struct Topics {
    /// OID and topic.
    pub topics: Vec<(u32, String)>,
    /// Rules that do not fit their table, topics that collide: OID of the table and the error.
    pub errors: Vec<(u32, Error)>,
}

impl Topics {
    /// The topics, if nothing is wrong.
    ///
    /// # Errors
    /// All of them, as one.
    pub fn into_result(self) -> Result<Vec<(u32, String)>> {
        if self.errors.is_empty() {
            return Ok(self.topics);
        }
        Err(all_of(self.errors.into_iter().map(|(_, error)| error).collect()))
    }
}

/// One error of several, each with its remedy.
pub fn all_of(mut faults: Vec<Error>) -> Error {
    if faults.len() == 1 {
        return faults.pop().expect("there is one");
    }
    let texts: Vec<String> = faults
        .iter()
        .map(|fault| match fault.hint() {
            Some(hint) => format!("{} ({hint})", fault.chain()),
            None => fault.chain(),
        })
        .collect();
    Error::definite(format!("{} faults: {}", texts.len(), texts.join("; ")))
        .with_hint("mend each of them as it says in brackets")
        .with_parts(faults)
}

/// The tables of the source that a rule can take, each as one: with the leaves of partitioned tables where a rule
/// takes those.
///
/// # Errors
/// As the connection.
pub async fn all(pipeline: &Pipeline, client: &Client) -> Result<Vec<SourceTable>> {
    match leaves::are_taken(pipeline) {
        true => catalog::tables_and_leaves(client).await,
        false => catalog::tables(client, None).await,
    }
}

/// The rule that takes a table for the pipeline's destination, if one does: of a partition, that of its root, if it says
/// `partitions = "leaf"`, or one with the leaf's name.
pub fn rule_of<'p>(pipeline: &'p Pipeline, table: &SourceTable) -> Option<&'p TableRule> {
    let rule = match &table.root {
        Some(root) => of_leaf(pipeline, root, (&table.schema, &table.name)),
        None => choose(&pipeline.config.tables, pipeline.destination(), &table.schema, &table.name),
    };
    rule.filter(|rule| !(table.is_partitioned && rule.partitions == Partitions::Leaf))
}

fn of_leaf<'p>(
    pipeline: &'p Pipeline,
    (root_schema, root): &(String, String),
    leaf: (&str, &str),
) -> Option<&'p TableRule> {
    choose_of_leaf(&pipeline.config.tables, pipeline.destination(), (root_schema, root), leaf)
}

/// The rule that takes a relation of the stream under the name that it has there. `known`: the table now; `state`: what is
/// stored of it. A leaf that was detached or dropped since is still its root's for as long as the publications send it.
pub fn rule_of_relation<'p>(
    pipeline: &'p Pipeline,
    relation: &Relation,
    known: Option<&SourceTable>,
    state: Option<&TableState>,
) -> Option<&'p TableRule> {
    let (schema, name) = (relation.namespace.as_str(), relation.name.as_str());
    // With its root it may have been detached from another one, which alone is named by a rule.
    let roots = [known.and_then(|table| table.root.as_ref()), state.and_then(|state| state.root.as_ref())];
    let by_root = roots.into_iter().flatten().find_map(|root| of_leaf(pipeline, root, (schema, name)));
    let rule = by_root.or_else(|| choose(&pipeline.config.tables, pipeline.destination(), schema, name));
    // What is left in the stream of a time when it was taken as one.
    rule.filter(|rule| {
        !(known.is_some_and(|table| table.is_partitioned) && rule.partitions == Partitions::Leaf)
    })
}

/// The tables that the rules take, whether or not a publication sends them yet.
///
/// # Errors
/// As the connection; definite when an existing publication is not there.
pub async fn taken(pipeline: &Pipeline, client: &Client) -> Result<Vec<MatchedTable>> {
    let published = match pipeline.publications.is_managed() {
        true => Vec::new(),
        false => pipeline.publications.published(client).await?,
    };
    let mut taken = taken_of(pipeline, all(pipeline, client).await?, &published);
    read_facts(client, &mut taken).await?;
    Ok(taken)
}

/// Reads what the filters of `taken` must know of their tables.
///
/// # Errors
/// As the connection.
pub async fn read_facts(client: &Client, taken: &mut [MatchedTable]) -> Result<()> {
    for matched in taken.iter_mut().filter(|matched| matched.rule.filter.is_some()) {
        matched.facts = catalog::facts(client, matched.table.oid).await?;
    }
    Ok(())
}

/// The same, of what was read already.
pub fn taken_of(
    pipeline: &Pipeline,
    tables: Vec<SourceTable>,
    published: &[PublishedTable],
) -> Vec<MatchedTable> {
    let logged = tables.into_iter().filter(|table| table.is_logged);
    let taken = logged.filter_map(|table| {
        let rule = rule_of(pipeline, &table)?.clone();
        let published = published.iter().find(|one| one.oid == table.oid).cloned();
        Some(MatchedTable { rule, table, published, facts: TableFacts::default() })
    });
    taken.collect()
}

/// The tables that the rules take and the publications send.
///
/// # Errors
/// As the connection; definite when an existing publication is not there.
pub async fn sent(pipeline: &Pipeline, client: &Client) -> Result<Vec<MatchedTable>> {
    let members = pipeline.publications.members(client).await?;
    let mut taken = taken(pipeline, client).await?;
    taken.retain(|matched| members.contains_key(&matched.table.oid));
    Ok(taken)
}

/// The exact rules that take none of `present`, and why. Of an existing publication, only what it
/// sends is present. A rule that takes a partitioned table leaf by leaf may wait for its first leaf.
///
/// # Errors
/// As the connection.
pub async fn missing(pipeline: &Pipeline, client: &Client, present: &[MatchedTable]) -> Result<Vec<Missing>> {
    let is_managed = pipeline.publications.is_managed();
    let is_present = |rule: &TableRule| {
        present.iter().any(|one| one.rule.name == rule.name && (is_managed || one.published.is_some()))
    };
    let mut missing = Vec::new();
    let roots = leaves::roots(pipeline, client).await?;
    let has_leaves = leaves::count(client, &roots).await?;
    let waits = |rule: &TableRule| {
        let mut roots = roots.iter().zip(&has_leaves);
        roots.any(|(root, leaves)| root.rule.name == rule.name && (is_managed || *leaves == 0))
    };
    let takes = |rule: &&TableRule| rule.mode != Mode::Off && rule.speaks_of(pipeline.destination());
    for rule in pipeline.config.tables.iter().filter(takes).filter(|rule| !is_present(rule) && !waits(rule)) {
        if let Some((schema, table)) = rule.name.names() {
            let (message, remedy) = why(pipeline, client, schema, table).await?;
            missing.push(Missing {
                key_path: rule.key_path.clone(),
                table: rule.name.to_string(),
                message,
                remedy,
            });
        }
    }
    Ok(missing)
}

/// Partitioned tables that an existing publication sends leaf by leaf, which would be tables that no rule names, or as one
/// where the rules take the leaves.
///
/// # Errors
/// As the connection.
pub async fn published_otherwise(
    pipeline: &Pipeline,
    client: &Client,
    taken: &[MatchedTable],
) -> Result<Vec<Missing>> {
    let mut found = Vec::new();
    if pipeline.publications.is_managed() {
        return Ok(found);
    }
    let sent: Vec<u32> = pipeline.publications.published(client).await?.iter().map(|one| one.oid).collect();
    let roots = leaves::roots(pipeline, client).await?;
    found.extend(leaves::sent_as_one(pipeline, client, &roots, &sent).await?);
    for matched in taken.iter().filter(|one| one.table.is_partitioned && one.published.is_none()) {
        let row = client.query_one(LEAF_IS_SENT, &[&matched.table.oid, &sent]).await.map_err(classify)?;
        if row.get(0) {
            let publication = pipeline.publications.names().join(", ");
            found.push(Missing {
                key_path: "source.publication".to_owned(),
                table: matched.table.display_name(),
                message: format!(
                    "the publication {publication} sends the partitioned table {} leaf by leaf",
                    matched.table.display_name()
                ),
                remedy: format!(
                    "ALTER PUBLICATION {} SET (publish_via_partition_root = true); or write partitions = \"leaf\"",
                    quote_ident(&publication)
                ),
            });
        }
    }
    Ok(found)
}

async fn why(pipeline: &Pipeline, client: &Client, schema: &str, table: &str) -> Result<(String, String)> {
    const LEAVE_OUT: &str = "remove the rule, or write mode = \"off\"";
    let name = TablePattern::exact(schema, table);
    let Some(row) = client.query_opt(RELATION, &[&schema, &table]).await.map_err(classify)? else {
        return Ok((format!("table {name} does not exist"), similar(client, schema, table).await?));
    };
    let (kind, persistence, is_partition): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
    let what = match (kind.as_str(), persistence.as_str()) {
        ("v", _) => "a view",
        ("m", _) => "a materialized view",
        ("f", _) => "a foreign table",
        ("r" | "p", "t") => "a temporary table",
        ("r" | "p", "u") => {
            return Ok((
                format!("table {name} is unlogged: its changes are not in the WAL"),
                format!("ALTER TABLE {} SET LOGGED; or {LEAVE_OUT}", quote_qualified(schema, table)),
            ));
        }
        ("r" | "p", _) if is_partition => {
            let root = match (row.get::<_, Option<String>>(3), row.get::<_, Option<String>>(4)) {
                (Some(schema), Some(table)) => TablePattern::exact(&schema, &table).to_string(),
                _ => "its root".to_owned(),
            };
            return Ok((
                format!("table {name} is a partition of {root}: its changes are sent as those of its root"),
                format!("name the root: {root}; partitions = \"leaf\" in its rule takes each leaf by itself"),
            ));
        }
        ("r" | "p", _) if !pipeline.publications.is_managed() => {
            let publication = pipeline.publications.names().join(", ");
            return Ok((
                format!(
                    "table {name} is not in the publication {publication}: there is no published table of this name"
                ),
                format!(
                    "ALTER PUBLICATION {} ADD TABLE {};",
                    quote_ident(&publication),
                    quote_qualified(schema, table)
                ),
            ));
        }
        ("r" | "p", _) => {
            return Ok((
                format!("table {name} cannot be published"),
                format!("tables of the system and of Walgate itself have no events: {LEAVE_OUT}"),
            ));
        }
        _ => "no table",
    };
    Ok((format!("{name} is {what}: its changes are not in the WAL"), LEAVE_OUT.to_owned()))
}

/// The remedy for a name that nothing has: the nearest one that something has.
async fn similar(client: &Client, schema: &str, table: &str) -> Result<String> {
    let wanted = TablePattern::exact(schema, table).to_string();
    let nearest = catalog::tables(client, None)
        .await?
        .iter()
        .map(|table| TablePattern::exact(&table.schema, &table.name).to_string())
        .map(|name| (strsim::damerau_levenshtein(&name.to_lowercase(), &wanted.to_lowercase()), name))
        .min();
    Ok(match nearest {
        Some((distance, name)) if distance <= 2 => {
            format!("did you mean {name}? names are case-sensitive; or create the table")
        }
        _ => "correct the name, which is case-sensitive, or create the table".to_owned(),
    })
}

/// Whether each rule fits its table, and no two tables have one name at the destination.
///
/// # Errors
/// Definite, all that is wrong at once.
pub fn fit(
    pipeline: &Pipeline,
    (types, enums): (&TypeCatalog, &EnumLabels),
    tables: &[MatchedTable],
) -> Result<()> {
    if pipeline.replica.is_none() {
        return topics_of(pipeline, (types, enums), &Labels::default(), tables).into_result().map(|_| ());
    }
    let targets = Targets::default();
    let mut faults = Vec::new();
    let mut taken: BTreeMap<(String, String), String> = BTreeMap::new();
    for MatchedTable { table, rule, facts, .. } in tables {
        let context = SelectionContext { types, enums, primary_key: &table.primary_key, facts };
        if let Err(error) = RowPlan::compile(context, &table.relation(), rule, &targets, Lsn::ZERO) {
            faults.push(error.of_table(table.oid, &table.display_name(), Fault::Rows));
        }
        let target = rule.target_name(&table.schema, &table.name);
        if let Some(other) = taken.insert(target.clone(), table.display_name()) {
            let name = TablePattern::exact(&target.0, &target.1);
            faults.push(
                Error::definite(format!(
                    "tables {other} and {} would both be {name} on the replica",
                    table.display_name()
                ))
                .with_hint(format!("give one of them another name: {}.to", rule.key_path)),
            );
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(all_of(faults)) }
}

/// Each table's topic, its rule compiled; two names that Kafka would take for one are refused.
pub fn topics_of(
    pipeline: &Pipeline,
    (types, enums): (&TypeCatalog, &EnumLabels),
    labels: &Labels,
    tables: &[MatchedTable],
) -> Topics {
    let template = &pipeline.config.hub.topic;
    let context = PlanContext {
        source_name: &pipeline.source_name,
        types,
        enums,
        labels,
        topic: template,
        events: &pipeline.events,
    };
    let mut taken: BTreeMap<String, (Vec<String>, String)> = BTreeMap::new();
    let mut found = Topics::default();
    for matched in tables {
        let table = &matched.table;
        if matched.rule.outbox.is_some() {
            // Each row says where it goes.
            if let Err(error) = OutboxPlan::compile(&context, &table.relation(), &matched.rule, Lsn::ZERO) {
                found.errors.push((table.oid, error));
            }
            continue;
        }
        // Compiled for its errors: a rule that does not fit its table is found before anything starts.
        let plan = TablePlan::compile(
            &context,
            &table.relation(),
            &matched.rule,
            &table.primary_key,
            &matched.facts,
            Lsn::ZERO,
        );
        if let Err(error) = plan {
            found.errors.push((table.oid, error));
            continue;
        }
        let names = TopicNames {
            source: &pipeline.source_name,
            schema: &table.schema,
            table: &table.name,
            aggregate_type: matched.rule.aggregate_type.as_deref().unwrap_or(&table.name),
        };
        let topic = match template.render(&names) {
            Ok(topic) => topic,
            Err(error) => {
                found
                    .errors
                    .push((table.oid, Error::definite(error.to_string()).with_hint("shorten hub.topic")));
                continue;
            }
        };
        let values = template.values(&names);
        let known =
            taken.entry(topic.collision_key()).or_insert_with(|| (values.clone(), table.display_name()));
        if known.0 != values {
            let error = Error::definite(format!(
                "tables {} and {} would share the topic {}, which Kafka's naming rules make of both",
                known.1,
                table.display_name(),
                topic.legal
            ))
            .with_hint("choose another hub.topic, or an aggregate_type that tells them apart with topic = \"{source}.{aggregate_type}\"");
            found.errors.push((table.oid, error));
            continue;
        }
        found.topics.push((table.oid, topic.legal));
    }
    found
}
