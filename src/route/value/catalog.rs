//! The catalog of types: from a type's OID to the [`Kind`] that says how its text becomes JSON.
//!
//! In: rows of `pg_type` ([`TypeCatalog::QUERY`]), in any order and as often as wanted; the built-in
//! types are known without a server, by their fixed OIDs. Out: a kind and a name per OID. A domain has
//! its base's kind, through any number of domains; an array is known by its output function, so that
//! int2vector and oidvector, which print no braces, are text. An OID that is not known, or rests on one
//! that is not, has no kind: the type is younger than the catalog, which must be read again.
//! Manual: "pg_type", "Domain Types", "Arrays".

use std::collections::HashMap;

use super::builtin::BUILTIN;

/// How the text form of a PostgreSQL type becomes JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// bool: `true`, `false`.
    Bool,
    /// int2, int4: a number.
    Integer,
    /// int8: a number, or a string where [`super::Style::bigint_as_string`] says so.
    Bigint,
    /// float4, float8: a number; NaN and the infinities as strings.
    Float,
    /// numeric: a string with every digit.
    Numeric,
    /// json, jsonb: embedded as they stand.
    Json,
    /// bytea: a string in base64.
    Bytea,
    /// timestamp: `2026-11-21T04:55:30.123456`.
    Timestamp,
    /// timestamptz: RFC 3339 in UTC.
    Timestamptz,
    /// date: `2026-11-21`.
    Date,
    /// time: `04:55:30.123456`.
    Time,
    /// timetz: `04:55:30.123456+02`.
    Timetz,
    /// interval: an ISO 8601 duration.
    Interval,
    /// hstore: an object of strings and nulls.
    Hstore,
    /// A true array: a JSON array of the element's form.
    Array {
        /// The element's kind.
        element: Box<Kind>,
        /// What stands between elements: `,`, or `;` for box.
        delimiter: u8,
    },
    /// Everything else: a string, PostgreSQL's text.
    Text,
}

impl Kind {
    /// The kind's name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Integer => "integer",
            Kind::Bigint => "bigint",
            Kind::Float => "float",
            Kind::Numeric => "numeric",
            Kind::Json => "json",
            Kind::Bytea => "bytea",
            Kind::Timestamp => "timestamp",
            Kind::Timestamptz => "timestamptz",
            Kind::Date => "date",
            Kind::Time => "time",
            Kind::Timetz => "timetz",
            Kind::Interval => "interval",
            Kind::Hstore => "hstore",
            Kind::Array { .. } => "array",
            Kind::Text => "text",
        }
    }
}

/// One row of [`TypeCatalog::QUERY`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeRow {
    /// `pg_type.oid`.
    pub oid: u32,
    /// `typname`, such as `int4` or `_int4`.
    pub name: String,
    /// The name of its schema.
    pub namespace: String,
    /// `typtype`: `b` base, `c` composite, `d` domain, `e` enum, `m` multirange, `p` pseudo, `r` range.
    pub typtype: u8,
    /// `typcategory`.
    pub category: u8,
    /// `typelem`: the element's OID; also set for types that are no true arrays.
    pub element: u32,
    /// `typbasetype`: what a domain is made from, else 0.
    pub base: u32,
    /// `typdelim`: what `array_out` puts between elements of this type.
    pub delimiter: u8,
    /// `typlen`, in bytes; -1 is variable.
    pub length: i16,
    /// The name of the output function; `array_out` marks true arrays.
    pub output: String,
}

/// What is known about types: the built-in ones, and those read from a server.
#[derive(Clone, Debug)]
pub struct TypeCatalog {
    rows: HashMap<u32, TypeRow>,
    names: HashMap<u32, String>,
    kinds: HashMap<u32, Kind>,
}

/// OIDs below this are given by hand in PostgreSQL's source and never change ("System Catalog Initial Data").
const FIXED_OID_END: u32 = 10_000;

/// Domains on arrays of domains: deeper than anybody goes, and an end for a catalog that is a circle.
const DEPTH_MAX: usize = 64;

impl TypeCatalog {
    /// Reads every type of a database, one [`TypeRow`] a row, its fields in order. As tokio-postgres
    /// gives them: `u32, String, String, i8, i8, u32, u32, i8, i16, String`.
    pub const QUERY: &str = "\
        SELECT t.oid, t.typname::pg_catalog.text, n.nspname::pg_catalog.text, t.typtype, t.typcategory, \
               t.typelem, t.typbasetype, t.typdelim, t.typlen, p.proname::pg_catalog.text \
        FROM pg_catalog.pg_type AS t \
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
        JOIN pg_catalog.pg_proc AS p ON p.oid OPERATOR(pg_catalog.=) t.typoutput";

    /// The built-in scalar types, ranges and multiranges, and their arrays; no server is needed.
    pub fn builtin() -> Self {
        let mut catalog = TypeCatalog { rows: HashMap::new(), names: HashMap::new(), kinds: HashMap::new() };
        for (oid, name, array_oid, kind) in BUILTIN {
            catalog.names.insert(*oid, (*name).to_owned());
            catalog.kinds.insert(*oid, kind.clone());
            if *array_oid != 0 {
                let delimiter = if *name == "box" { b';' } else { b',' };
                catalog.names.insert(*array_oid, format!("_{name}"));
                catalog.kinds.insert(*array_oid, Kind::Array { element: Box::new(kind.clone()), delimiter });
            }
        }
        catalog
    }

    /// Adds types, or replaces those of equal OID, then finds the kind of all of them again.
    pub fn extend(&mut self, rows: impl IntoIterator<Item = TypeRow>) {
        for row in rows {
            self.names.insert(row.oid, row.name.clone());
            self.rows.insert(row.oid, row);
        }
        let found: Vec<_> = self.rows.keys().map(|&oid| (oid, self.resolve(oid, DEPTH_MAX))).collect();
        for (oid, kind) in found {
            match kind {
                Some(kind) => self.kinds.insert(oid, kind),
                None => self.kinds.remove(&oid),
            };
        }
    }

    /// The kind of a type; none when it, or a type that it rests on, has not been read.
    pub fn kind(&self, oid: u32) -> Option<&Kind> {
        self.kinds.get(&oid)
    }

    /// The type that a domain rests on, through any number of domains; of another type, the type itself.
    pub fn base(&self, oid: u32) -> u32 {
        let mut base = oid;
        for _ in 0..DEPTH_MAX {
            match self.rows.get(&base) {
                Some(row) if row.typtype == b'd' => base = row.base,
                _ => break,
            }
        }
        base
    }

    /// The type's name without its schema, such as `int4` or `_int4`.
    pub fn name(&self, oid: u32) -> Option<&str> {
        self.names.get(&oid).map(String::as_str)
    }

    /// The type's schema and name; none when it has not been read.
    pub fn qualified_name(&self, oid: u32) -> Option<(String, String)> {
        match self.rows.get(&oid) {
            Some(row) => Some((row.namespace.clone(), row.name.clone())),
            None => Some(("pg_catalog".to_owned(), self.names.get(&oid)?.clone())),
        }
    }

    /// The row of a type that a server told of.
    pub fn row(&self, oid: u32) -> Option<&TypeRow> {
        self.rows.get(&oid)
    }

    fn resolve(&self, oid: u32, depth: usize) -> Option<Kind> {
        if oid < FIXED_OID_END
            && let Some(kind) = self.kinds.get(&oid)
        {
            return Some(kind.clone());
        }
        let row = self.rows.get(&oid)?;
        let deeper = depth.checked_sub(1)?;
        if row.typtype == b'd' {
            // A domain has its base's output function too, so this comes before the arrays.
            self.resolve(row.base, deeper)
        } else if row.output == "array_out" && row.element != 0 {
            let element = Box::new(self.resolve(row.element, deeper)?);
            // `array_out` takes the delimiter of the element.
            let delimiter = self.rows.get(&row.element).map_or(row.delimiter, |of| of.delimiter);
            Some(Kind::Array { element, delimiter })
        } else if row.name == "hstore" && row.output == "hstore_out" {
            Some(Kind::Hstore)
        } else {
            Some(Kind::Text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, name: &str, output: &str) -> TypeRow {
        TypeRow {
            oid,
            name: name.to_owned(),
            namespace: "public".to_owned(),
            typtype: b'b',
            category: b'U',
            element: 0,
            base: 0,
            delimiter: b',',
            length: -1,
            output: output.to_owned(),
        }
    }

    fn domain(oid: u32, of: u32) -> TypeRow {
        TypeRow { typtype: b'd', base: of, ..base(oid, "a_domain", "array_out") }
    }

    fn array(oid: u32, of: u32) -> TypeRow {
        TypeRow { element: of, ..base(oid, "an_array", "array_out") }
    }

    fn array_of(element: Kind, delimiter: u8) -> Kind {
        Kind::Array { element: Box::new(element), delimiter }
    }

    #[test]
    fn built_in_types_need_no_server() {
        let catalog = TypeCatalog::builtin();
        assert_eq!(catalog.kind(20), Some(&Kind::Bigint));
        assert_eq!(catalog.kind(1016), Some(&array_of(Kind::Bigint, b',')));
        assert_eq!(catalog.kind(1020), Some(&array_of(Kind::Text, b';')));
        assert_eq!(catalog.kind(22), Some(&Kind::Text), "int2vector prints no braces");
        assert_eq!(catalog.kind(1013), Some(&array_of(Kind::Text, b',')), "oidvector[]");
        assert_eq!(catalog.name(1016), Some("_int8"));
        assert_eq!((catalog.kind(16_400), catalog.name(16_400)), (None, None));
    }

    #[test]
    fn domains_take_their_base_at_any_depth_and_in_any_order() {
        let mut catalog = TypeCatalog::builtin();
        // 105 is a domain on an array of a domain on a domain on numeric.
        catalog.extend([
            domain(20_105, 20_104),
            array(20_104, 20_103),
            domain(20_103, 20_102),
            domain(20_102, 1700),
        ]);
        assert_eq!(catalog.kind(20_103), Some(&Kind::Numeric));
        assert_eq!(catalog.kind(20_105), Some(&array_of(Kind::Numeric, b',')));
        catalog.extend([array(20_106, 20_105)]);
        assert_eq!(catalog.kind(20_106), Some(&array_of(array_of(Kind::Numeric, b','), b',')));
    }

    #[test]
    fn what_rests_on_an_unknown_type_is_unknown_until_that_is_read() {
        let mut catalog = TypeCatalog::builtin();
        catalog.extend([array(20_201, 20_200)]);
        assert_eq!(catalog.kind(20_201), None);
        catalog.extend([TypeRow { delimiter: b';', ..base(20_200, "mood", "enum_out") }]);
        assert_eq!(catalog.kind(20_201), Some(&array_of(Kind::Text, b';')));
    }

    #[test]
    fn a_circle_of_domains_is_unknown_and_ends() {
        let mut catalog = TypeCatalog::builtin();
        catalog.extend([domain(20_301, 20_302), domain(20_302, 20_301)]);
        assert_eq!(catalog.kind(20_301), None);
    }

    #[test]
    fn hstore_is_known_by_name_and_output() {
        let mut catalog = TypeCatalog::builtin();
        catalog.extend([base(20_400, "hstore", "hstore_out"), base(20_401, "hstore", "enum_out")]);
        assert_eq!(catalog.kind(20_400), Some(&Kind::Hstore));
        assert_eq!(catalog.kind(20_401), Some(&Kind::Text));
    }

    #[test]
    fn a_server_cannot_take_a_built_in_kind_away() {
        let mut catalog = TypeCatalog::builtin();
        catalog.extend([base(20, "int8", "int8out")]);
        assert_eq!(catalog.kind(20), Some(&Kind::Bigint));
    }
}
