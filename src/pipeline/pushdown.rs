//! Row filters that go into the managed publication (`pushdown = "auto"`, DESIGN section 3), so that the server leaves
//! out what Walgate would leave out.
//!
//! Comes in: tables and their compiled filters. Goes out: for each of them the filter that the publication is to have, or
//! why none. Always holds: with it or without it, the same comes out, since Walgate evaluates the filter again; and
//! neither the application nor decoding can fail by it. So only where (docs/decisions/pushdown.md):
//!
//! - every column of the filter is in the replica identity, or the application's UPDATE fails;
//! - the expression holds nothing that can fail for a value: an error would come out of decoding for ever, whatever the
//!   rule says by then, because the WAL keeps the publication of its time;
//! - its types and collations are PostgreSQL's own, as the server demands;
//! - the server does not go on with the filter of before when it is changed (fixed in 15.13, 16.9 and 17.5).
//!
//! Manual: "Logical Replication", "Row Filters".

use std::collections::BTreeMap;

use super::Pipeline;
use super::filters;
use super::tables::MatchedTable;
use crate::config::Pushdown;
use crate::error::Result;
use crate::route::filter::{EnumLabels, Filter};
use crate::route::value::TypeCatalog;
use crate::wal::client::{Client, classify};
use crate::wal::publication::{PushedFilter, server_version};

/// The first OID that PostgreSQL gives to what users make.
const FIRST_NORMAL_OID: u32 = 16384;
/// First fixed minor version of each major one: before, the changes of a transaction that ran while a publication was altered
/// leave the old definition in the decoder's cache (PostgreSQL commit 4909b38af0, "data loss in logical replication").
const FIXED: [(i32, i32); 3] = [(15, 13), (16, 9), (17, 5)];

/// Whether rules of the pipeline ask for it.
pub fn is_asked(pipeline: &Pipeline) -> bool {
    pipeline.publications.is_managed()
        && pipeline.config.tables.iter().any(|rule| rule.pushdown == Pushdown::Auto)
}

/// The filters that the publication is to have, by the OID of their table.
///
/// # Errors
/// As the connection.
pub async fn wanted(
    pipeline: &Pipeline,
    client: &mut Client,
    (types, enums): (&TypeCatalog, &EnumLabels),
    taken: &[MatchedTable],
) -> Result<BTreeMap<u32, PushedFilter>> {
    let mut wanted = BTreeMap::new();
    if !is_asked(pipeline) {
        return Ok(wanted);
    }
    let version = server_version(client).await?;
    for matched in taken.iter().filter(|matched| matched.rule.pushdown == Pushdown::Auto) {
        let Some(Ok(filter)) = filters::compiled(client, types, enums, matched).await? else { continue };
        match why_not(pipeline, version, matched, &filter) {
            Some(why) => {
                tracing::info!(table = matched.table.display_name(), why, "its filter is not pushed down");
            }
            None => drop(wanted.insert(matched.table.oid, pushed(client, &filter).await?)),
        }
    }
    Ok(wanted)
}

/// Why the filter of a table stays with Walgate; `None`: it can go into the publication of a server of this version.
pub fn why_not(pipeline: &Pipeline, version: i32, matched: &MatchedTable, filter: &Filter) -> Option<String> {
    let table = &matched.table;
    let (major, minor) = (version / 10_000, version % 10_000);
    let column = |at: &usize| table.columns.get(*at);
    if !pipeline.publications.is_managed() {
        return Some("the publication is not managed; it has the filters that its owner gives it".into());
    }
    if major < 15 {
        return Some("publications have row filters from PostgreSQL 15 on".into());
    }
    if let Some((_, fixed)) = FIXED.iter().find(|(of, fixed)| *of == major && minor < *fixed) {
        return Some(format!(
            "PostgreSQL {major}.{minor} may go on with the filter of before when it is changed; {major}.{fixed} does not"
        ));
    }
    if table.is_partitioned {
        return Some("each leaf of a partitioned table has a replica identity of its own".into());
    }
    if !table.has_usable_identity() {
        return Some("the table has no usable replica identity".into());
    }
    let mut columns = filter.columns().iter().filter_map(column);
    if let Some(identity) = table.identity_columns()
        && let Some(outside) = columns.find(|column| !identity.contains(&column.name))
    {
        return Some(format!(
            "\"{}\" is not in the replica identity, and the application's UPDATE would fail",
            outside.name
        ));
    }
    if !filter.cannot_fail() {
        return Some("more than comparisons of columns with constants, AND, OR, NOT and IS may fail for a value, and decoding would fail with it".into());
    }
    let is_own = |name: &String| {
        matched.facts.collations.get(name).is_some_and(|collation| collation.namespace != "pg_catalog")
    };
    let mut columns = filter.columns().iter().filter_map(column);
    let own = columns.find(|column| column.type_oid >= FIRST_NORMAL_OID || is_own(&column.name));
    own.map(|column| format!("the type or collation of \"{}\" is not PostgreSQL's own", column.name))
}

/// As the server writes it, which is how it can be found again.
async fn pushed(client: &mut Client, filter: &Filter) -> Result<PushedFilter> {
    let transaction = filters::begin(client, filter).await?;
    for statement in filter.immutability_check() {
        transaction.batch_execute(&statement).await.map_err(classify)?;
    }
    let row = transaction.query_one(&filter.deparse(), &[]).await.map_err(classify)?;
    let deparsed = row.get(0);
    transaction.rollback().await.map_err(classify)?;
    Ok(PushedFilter { sql: filter.sql().to_owned(), search_path: filter.search_path(), deparsed })
}
