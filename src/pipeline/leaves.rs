//! Partitioned tables that a rule takes leaf by leaf (`partitions = "leaf"`, DESIGN section 3).
//!
//! Comes in: the rules and the source's catalog. Goes out: the roots of such tables, and what keeps their leaves from
//! being taken. Always holds: such a root is in no publication of the pipeline. PostgreSQL sends a change as that of the
//! topmost published ancestor, so its leaves, each a member by itself, are sent as themselves, in the same pair of
//! publications as every other table: each where its own identity allows, a new one after the same comparison and with
//! the same copy as a new table (docs/decisions/leaves.md).

use super::Pipeline;
use super::tables::{MatchedTable, Missing};
use crate::config::{Mode, Partitions, TableRule, choose, choose_of_leaf};
use crate::error::Result;
use crate::route::filter::TableFacts;
use crate::route::name::TablePattern;
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::{Client, classify};
use crate::wal::sql::{quote_ident, quote_qualified};

/// For each of the tables $1, how many leaves it has.
const LEAVES: &str = "SELECT r.oid, count(t.relid) FROM unnest($1::oid[]) r(oid) \
LEFT JOIN LATERAL pg_catalog.pg_partition_tree(r.oid::regclass) t ON t.isleaf AND t.relid::oid <> r.oid GROUP BY r.oid";
/// The tables $1 that are among the OIDs $2 with their rows: themselves, or partitioned partitions of theirs.
const SENT_AS_ONE: &str = "SELECT r.oid FROM unnest($1::oid[]) r(oid) WHERE EXISTS (SELECT \
FROM pg_catalog.pg_partition_tree(r.oid::regclass) t WHERE NOT t.isleaf AND t.relid::oid = ANY ($2))";
/// Leaves of the tables $1 whose changes are not in the WAL.
const UNSEEN: &str = "SELECT r.oid, n.nspname::text, c.relname::text, c.relkind = 'f' \
FROM unnest($1::oid[]) r(oid), LATERAL pg_catalog.pg_partition_tree(r.oid::regclass) t \
JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE t.isleaf AND (c.relkind = 'f' OR c.relkind = 'r' AND c.relpersistence <> 'p') ORDER BY 2, 3";

/// Whether a rule of the pipeline takes partitioned tables leaf by leaf.
pub fn are_taken(pipeline: &Pipeline) -> bool {
    let mut rules = pipeline.config.tables.iter();
    rules.any(|rule| is_leaf_rule(rule) && rule.speaks_of(pipeline.destination()))
}

fn is_leaf_rule(rule: &TableRule) -> bool {
    rule.partitions == Partitions::Leaf && rule.mode != Mode::Off
}

/// The partitioned tables that rules take leaf by leaf, with or without leaves.
///
/// # Errors
/// As the connection.
pub async fn roots(pipeline: &Pipeline, client: &Client) -> Result<Vec<MatchedTable>> {
    if !are_taken(pipeline) {
        return Ok(Vec::new());
    }
    let partitioned = catalog::tables(client, None).await?.into_iter().filter(|table| table.is_partitioned);
    let roots = partitioned.filter_map(|table| {
        let rule = choose(&pipeline.config.tables, pipeline.destination(), &table.schema, &table.name)?;
        let rule = Some(rule).filter(|rule| is_leaf_rule(rule))?.clone();
        Some(MatchedTable { rule, table, published: None, facts: TableFacts::default() })
    });
    Ok(roots.collect())
}

/// How many leaves each of `roots` has, in their order.
///
/// # Errors
/// As the connection.
pub async fn count(client: &Client, roots: &[MatchedTable]) -> Result<Vec<i64>> {
    let oids: Vec<u32> = roots.iter().map(|root| root.table.oid).collect();
    let rows = client.query(LEAVES, &[&oids]).await.map_err(classify)?;
    let of = |oid: u32| rows.iter().find(|row| row.get::<_, u32>(0) == oid).map_or(0, |row| row.get(1));
    Ok(oids.into_iter().map(of).collect())
}

/// Those of `roots` that an existing publication, which sends the tables `sent`, sends as one table.
///
/// # Errors
/// As the connection.
pub async fn sent_as_one(
    pipeline: &Pipeline,
    client: &Client,
    roots: &[MatchedTable],
    sent: &[u32],
) -> Result<Vec<Missing>> {
    let oids: Vec<u32> = roots.iter().map(|root| root.table.oid).collect();
    let rows = client.query(SENT_AS_ONE, &[&oids, &sent]).await.map_err(classify)?;
    let publication = pipeline.publications.names().join(", ");
    let found = roots.iter().filter(|root| rows.iter().any(|row| row.get::<_, u32>(0) == root.table.oid));
    let missing = found.map(|root| Missing {
        key_path: "source.publication".to_owned(),
        table: root.table.display_name(),
        message: format!(
            "the publication {publication} sends the partitioned table {} as one table, and {}.partitions is \"leaf\"",
            root.table.display_name(),
            root.rule.key_path
        ),
        remedy: format!(
            "ALTER PUBLICATION {} SET (publish_via_partition_root = false); or write partitions = \"root\"",
            quote_ident(&publication)
        ),
    });
    Ok(missing.collect())
}

/// Leaves of taken tables whose changes are not in the WAL: foreign and unlogged ones; `taken` and `roots` together are
/// what the rules take.
///
/// # Errors
/// As the connection.
pub async fn unseen(
    pipeline: &Pipeline,
    client: &Client,
    taken: &[MatchedTable],
    roots: &[MatchedTable],
) -> Result<Vec<Missing>> {
    let partitioned: Vec<&MatchedTable> =
        taken.iter().filter(|one| one.table.is_partitioned).chain(roots).collect();
    if partitioned.is_empty() {
        return Ok(Vec::new());
    }
    let oids: Vec<u32> = partitioned.iter().map(|one| one.table.oid).collect();
    let mut found = Vec::new();
    for row in client.query(UNSEEN, &[&oids]).await.map_err(classify)? {
        let Some(root) = partitioned.iter().find(|one| one.table.oid == row.get::<_, u32>(0)) else {
            continue;
        };
        let (schema, table): (String, String) = (row.get(1), row.get(2));
        let is_by_leaf = is_leaf_rule(&root.rule);
        if is_by_leaf && !is_wanted(pipeline, &root.table, (&schema, &table)) {
            continue;
        }
        let name = TablePattern::exact(&schema, &table).to_string();
        let (what, mend) = match row.get(3) {
            true => ("a foreign table", "detach the partition".to_owned()),
            false => ("unlogged", format!("ALTER TABLE {} SET LOGGED;", quote_qualified(&schema, &table))),
        };
        let left_out = match is_by_leaf {
            true => name.clone(),
            false => TablePattern::exact(&root.table.schema, &root.table.name).to_string(),
        };
        found.push(Missing {
            key_path: root.rule.key_path.clone(),
            message: format!("the partition {name} is {what}: its changes are not in the WAL"),
            remedy: format!("{mend} or leave {left_out} out by a rule with mode = \"off\""),
            table: name,
        });
    }
    Ok(found)
}

/// Whether no rule of its own leaves the leaf out.
fn is_wanted(pipeline: &Pipeline, root: &SourceTable, leaf: (&str, &str)) -> bool {
    let root = (root.schema.as_str(), root.name.as_str());
    choose_of_leaf(&pipeline.config.tables, pipeline.destination(), root, leaf).is_some()
}

/// Whether a name that a user typed means the table: its own, or, of a leaf, its root's.
pub fn is_named(table: &SourceTable, asked: &str) -> bool {
    let root = table.root.as_ref().map(|(schema, name)| (schema, name));
    let mut names = std::iter::once((&table.schema, &table.name)).chain(root);
    names.any(|(schema, name)| TablePattern::exact(schema, name).to_string() == asked)
}
