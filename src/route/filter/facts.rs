//! What a filter must know of the catalog and the relation message does not say: collations, generated
//! columns, and the labels of enums in their order.
//!
//! Manual: "Collation Support", "Generated Columns", "Enumerated Types", "pg_attribute", "pg_enum".

use std::collections::HashMap;
use std::sync::Arc;

/// What the catalog says of one table's columns. By default nothing is known: text then goes to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableFacts {
    /// Names of its generated columns, which the server does not send.
    pub generated: Vec<String>,
    /// The collation of each column that has one, by the column's name.
    pub collations: HashMap<String, Collation>,
}

/// A column's collation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collation {
    /// Its schema.
    pub namespace: String,
    /// Its name; `default` is the database's.
    pub name: String,
    /// Whether equal means equal bytes.
    pub is_deterministic: bool,
}

impl TableFacts {
    /// Reads the facts of the table with the OID $1, a row for each column that matters: `String` name,
    /// `bool` generated, `Option<String>` and `Option<String>` schema and name of the collation,
    /// `Option<bool>` deterministic.
    pub const QUERY: &str = "\
        SELECT a.attname::pg_catalog.text, a.attgenerated OPERATOR(pg_catalog.<>) '', \
               n.nspname::pg_catalog.text, c.collname::pg_catalog.text, c.collisdeterministic \
        FROM pg_catalog.pg_attribute AS a \
        LEFT JOIN pg_catalog.pg_collation AS c ON c.oid OPERATOR(pg_catalog.=) a.attcollation \
        LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.collnamespace \
        WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
          AND (c.oid IS NOT NULL OR a.attgenerated OPERATOR(pg_catalog.<>) '')";

    /// Adds one row of [`TableFacts::QUERY`].
    pub fn add(&mut self, column: String, is_generated: bool, collation: Option<Collation>) {
        if is_generated {
            self.generated.push(column.clone());
        }
        if let Some(collation) = collation {
            self.collations.insert(column, collation);
        }
    }
}

/// The labels of each enum type, in their order.
#[derive(Clone, Debug, Default)]
pub struct EnumLabels(HashMap<u32, Arc<[String]>>);

impl EnumLabels {
    /// Reads the labels of every enum, a row for each: `u32` the type's OID, `Vec<String>` the labels.
    pub const QUERY: &str = "\
        SELECT e.enumtypid, pg_catalog.array_agg(e.enumlabel::pg_catalog.text ORDER BY e.enumsortorder) \
        FROM pg_catalog.pg_enum AS e GROUP BY e.enumtypid";

    /// Adds an enum, or replaces its labels.
    pub fn insert(&mut self, oid: u32, labels: Vec<String>) {
        self.0.insert(oid, labels.into());
    }

    /// The labels of the type with this OID.
    pub fn labels(&self, oid: u32) -> Option<&Arc<[String]>> {
        self.0.get(&oid)
    }
}
