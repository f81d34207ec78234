//! Statements by which PostgreSQL itself evaluates a filter, or says what is wrong with it.
//!
//! In: the text of the filter and the columns it uses. Out: SQL. The values travel as text, an array for
//! each column; they become values of the column's own type by a cast to its quoted name, which applies no
//! modifier, and have the column's own collation. Manual: "Table Functions", `unnest`; "CREATE INDEX".

use crate::route::value::TypeCatalog;
use crate::wal::pgoutput::Relation;
use crate::wal::sql::{quote_ident, quote_literal, quote_qualified};

use super::facts::TableFacts;

/// A used column: its name, its type and its collation, as SQL.
#[derive(Clone, Debug)]
pub(super) struct ServerColumn {
    name: String,
    type_name: String,
    collate: String,
    /// Schemas of the type and of what it is made from, where its operators are.
    schemas: Vec<String>,
}

/// The name that no column has, since identifiers end at 63 bytes and this one is unlikely enough.
const ORDINAL: &str = "\"walgate ordinal\"";

/// Domains on arrays of domains: an end for a catalog that is a circle.
const SCHEMAS_MAX: usize = 64;

impl ServerColumn {
    /// Describes the columns at these indexes; an unknown type gives its index.
    pub(super) fn describe(
        columns: &[usize],
        relation: &Relation,
        types: &TypeCatalog,
        facts: &TableFacts,
    ) -> Result<Vec<ServerColumn>, usize> {
        let describe = |&at: &usize| {
            let column = relation.columns.get(at).ok_or(at)?;
            let name = types.name(column.type_oid).ok_or(at)?;
            let namespace = types.row(column.type_oid).map_or("pg_catalog", |row| row.namespace.as_str());
            let collate = match facts.collations.get(&column.name) {
                Some(found)
                    if (found.namespace.as_str(), found.name.as_str()) != ("pg_catalog", "default") =>
                {
                    format!(" COLLATE {}", quote_qualified(&found.namespace, &found.name))
                }
                _ => String::new(),
            };
            Ok(ServerColumn {
                schemas: schemas(column.type_oid, types),
                name: quote_ident(&column.name),
                type_name: quote_qualified(namespace, name),
                collate,
            })
        };
        columns.iter().map(describe).collect()
    }
}

/// The schemas of a type, of the element of an array, and of a domain's base.
fn schemas(type_oid: u32, types: &TypeCatalog) -> Vec<String> {
    let mut found = Vec::new();
    let mut oid = type_oid;
    while let Some(row) = types.row(oid)
        && found.len() < SCHEMAS_MAX
    {
        found.push(row.namespace.clone());
        oid = if row.base == 0 { row.element } else { row.base };
    }
    found
}

/// See [`super::Filter::search_path`].
pub(super) fn search_path(columns: &[ServerColumn]) -> String {
    let mut schemas = vec!["pg_catalog"];
    for schema in columns.iter().flat_map(|column| &column.schemas) {
        if !schemas.contains(&schema.as_str()) {
            schemas.push(schema);
        }
    }
    schemas.iter().map(|schema| quote_ident(schema)).collect::<Vec<_>>().join(", ")
}

/// See [`super::Filter::server_statement`].
pub(super) fn statement(sql: &str, relation: &Relation, columns: &[ServerColumn]) -> String {
    let table = quote_ident(&relation.name);
    let mut casts = String::new();
    let mut inputs = Vec::new();
    let mut names = Vec::new();
    for (number, column) in columns.iter().enumerate() {
        let number = number + 1;
        casts += &format!(
            "CAST(\"value {number}\" AS {}){} AS {}, ",
            column.type_name, column.collate, column.name
        );
        inputs.push(format!("pg_catalog.unnest(${number}::pg_catalog.text[])"));
        names.push(format!("\"value {number}\""));
    }
    if inputs.is_empty() {
        // A filter on no column is a constant: the number of rows still has to come from somewhere.
        inputs.push("pg_catalog.unnest($1::pg_catalog.text[])".to_owned());
        names.push("\"value 1\"".to_owned());
    }
    // The conjunction makes a condition of a bare literal, and refuses what is none.
    format!(
        "SELECT ({sql}) AND true FROM (SELECT {casts}{ORDINAL} FROM ROWS FROM ({}) WITH ORDINALITY \
         AS i ({}, {ORDINAL}) OFFSET 0) AS {table} ORDER BY {ORDINAL}",
        inputs.join(", "),
        names.join(", "),
    )
}

/// See [`super::Filter::deparse`].
pub(super) fn deparse(relation: &Relation) -> String {
    let table = quote_literal(&format!("pg_temp.{}", quote_ident(&relation.name)));
    format!(
        "SELECT pg_catalog.pg_get_expr(i.indpred, i.indrelid) FROM pg_catalog.pg_index i \
         WHERE i.indrelid = {table}::pg_catalog.regclass"
    )
}

/// See [`super::Filter::immutability_check`].
pub(super) fn immutability_check(sql: &str, relation: &Relation, columns: &[ServerColumn]) -> Vec<String> {
    let table = format!("pg_temp.{}", quote_ident(&relation.name));
    let definitions: Vec<String> = columns
        .iter()
        .map(|column| format!("{} {}{}", column.name, column.type_name, column.collate))
        .collect();
    vec![
        format!("CREATE TEMPORARY TABLE {table} ({})", definitions.join(", ")),
        format!("CREATE INDEX ON {table} ((1)) WHERE ({sql})"),
    ]
}
