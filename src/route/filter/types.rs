//! The types whose values Walgate knows how to compare, and how PostgreSQL converts between them unasked.
//!
//! In: a type's OID and the catalog. Out: a [`Type`]; everything that is not in the list is
//! [`Type::Other`], of which only `IS NULL` is known. A domain is its base, with a mark, since an operator
//! sees the base but a common type may be the domain. Manual: "Type Conversion", chapter 10.

use crate::route::value::TypeCatalog;

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
    Text,
    Varchar,
    Bpchar,
    Uuid,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Json,
    Jsonb,
    /// An enum, by its OID.
    Enum(u32),
    Array(Box<Type>),
    /// Any other; of a composite not even `IS NULL` is simple.
    Other {
        is_composite: bool,
    },
}

/// Domains on arrays of domains: an end for a catalog that is a circle.
const DEPTH_MAX: usize = 64;

/// OIDs below this are PostgreSQL's own and mean the same everywhere.
const FIXED_OID_END: u32 = 10_000;

impl Type {
    /// The type of an OID, and whether it is a domain; none when the catalog does not know it.
    pub(super) fn of(oid: u32, catalog: &TypeCatalog) -> Option<(Type, bool)> {
        Self::resolve(oid, catalog, DEPTH_MAX)
    }

    fn resolve(oid: u32, catalog: &TypeCatalog, depth: usize) -> Option<(Type, bool)> {
        if oid < FIXED_OID_END {
            let name = catalog.name(oid)?;
            return Some((Self::built_in(name), false));
        }
        let row = catalog.row(oid)?;
        let deeper = depth.checked_sub(1)?;
        Some(match row.typtype {
            b'e' => (Type::Enum(oid), false),
            b'd' => (Self::resolve(row.base, catalog, deeper)?.0, true),
            b'c' => (Type::Other { is_composite: true }, false),
            _ if row.output == "array_out" && row.element != 0 => {
                match Self::resolve(row.element, catalog, deeper)? {
                    (element, false) => (Type::Array(Box::new(element)), false),
                    (_, true) => (Type::Other { is_composite: false }, false),
                }
            }
            _ => (Type::Other { is_composite: false }, false),
        })
    }

    fn built_in(name: &str) -> Type {
        match name {
            "bool" => Type::Bool,
            "int2" => Type::Int2,
            "int4" => Type::Int4,
            "int8" => Type::Int8,
            "numeric" => Type::Numeric,
            "float4" => Type::Float4,
            "float8" => Type::Float8,
            "text" => Type::Text,
            "varchar" => Type::Varchar,
            "bpchar" => Type::Bpchar,
            "uuid" => Type::Uuid,
            "bytea" => Type::Bytea,
            "date" => Type::Date,
            "time" => Type::Time,
            "timestamp" => Type::Timestamp,
            "timestamptz" => Type::Timestamptz,
            "json" => Type::Json,
            "jsonb" => Type::Jsonb,
            _ => match name.strip_prefix('_').map(Self::built_in) {
                // int2vector and its like have names without an underscore, so they are no arrays here.
                None | Some(Type::Other { .. } | Type::Array(_)) => Type::Other { is_composite: false },
                Some(element) => Type::Array(Box::new(element)),
            },
        }
    }

    /// For messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Type::Bool => "boolean",
            Type::Int2 => "smallint",
            Type::Int4 => "integer",
            Type::Int8 => "bigint",
            Type::Numeric => "numeric",
            Type::Float4 => "real",
            Type::Float8 => "double precision",
            Type::Text => "text",
            Type::Varchar => "character varying",
            Type::Bpchar => "character",
            Type::Uuid => "uuid",
            Type::Bytea => "bytea",
            Type::Date => "date",
            Type::Time => "time",
            Type::Timestamp => "timestamp",
            Type::Timestamptz => "timestamp with time zone",
            Type::Json => "json",
            Type::Jsonb => "jsonb",
            Type::Enum(_) => "an enum",
            Type::Array(_) => "an array",
            Type::Other { .. } => "another type",
        }
    }

    /// int2, int4, int8.
    pub(super) fn is_integer(&self) -> bool {
        matches!(self, Type::Int2 | Type::Int4 | Type::Int8)
    }

    /// float4, float8.
    pub(super) fn is_float(&self) -> bool {
        matches!(self, Type::Float4 | Type::Float8)
    }

    /// Place in the chain of numbers, each of which converts implicitly to all that follow it.
    pub(super) fn number_rank(&self) -> Option<u8> {
        Some(match self {
            Type::Int2 => 0,
            Type::Int4 => 1,
            Type::Int8 => 2,
            Type::Numeric => 3,
            Type::Float4 => 4,
            Type::Float8 => 5,
            _ => return None,
        })
    }

    /// Whether a literal beside it may be read as a date or time.
    pub(super) fn may_hold_moments(&self) -> bool {
        match self {
            Type::Date | Type::Time | Type::Timestamp | Type::Timestamptz | Type::Other { .. } => true,
            Type::Array(element) => element.may_hold_moments(),
            _ => false,
        }
    }

    /// text or varchar, which share their operators.
    pub(super) fn is_text(&self) -> bool {
        matches!(self, Type::Text | Type::Varchar)
    }

    /// Whether its values have a collation.
    pub(super) fn is_collatable(&self) -> bool {
        match self {
            Type::Text | Type::Varchar | Type::Bpchar => true,
            Type::Array(element) => element.is_collatable(),
            _ => false,
        }
    }

    /// The common type of CASE, COALESCE, IN and ARRAY ("UNION, CASE, and Related Constructs"); an unknown
    /// literal is `None`. `Err` where the types differ in a way that is left to the server.
    pub(super) fn common<'t>(types: impl Iterator<Item = Option<&'t Type>>) -> Result<Type, ()> {
        let mut chosen: Option<&Type> = None;
        for next in types.flatten() {
            chosen = Some(match chosen {
                None => next,
                Some(held) if held == next => held,
                Some(held) => match (held.number_rank(), next.number_rank()) {
                    // float8 is preferred, and never left; else up the chain.
                    (Some(held_rank), Some(next_rank)) => {
                        if next_rank > held_rank {
                            next
                        } else {
                            held
                        }
                    }
                    // The values are the same, whichever is taken.
                    _ if held.is_text() && next.is_text() => held,
                    _ => return Err(()),
                },
            });
        }
        Ok(chosen.cloned().unwrap_or(Type::Text))
    }
}
