//! The rows of a source's table, in the form that events should have (DESIGN section 4, `docs/types.md`).
//!
//! In: a table, read by SQL that has nothing to do with Walgate. Out: per row its aggregate id and its columns,
//! each as [`canonical`] JSON; an event's value goes through [`canonical_event`] to be compared with it.
//! Always: a value whose event form is not the documented one stays as it is, and so compares as different.

use base64::Engine;
use serde_json::{Map, Value};

use super::Source;

/// A row, by column name.
pub type Row = Map<String, Value>;

/// A table's columns that events carry, and its key.
#[derive(Clone, Debug)]
pub struct Shape {
    pub columns: Vec<Column>,
    /// The identity index's columns, else the primary key's, in the table's order; empty without any.
    pub key: Vec<String>,
}

/// A column, and what decides about its form.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// The type's name; of an array, of its elements; of a domain, of what it is based on.
    pub type_name: String,
    pub is_array: bool,
}

impl Shape {
    /// Reads a table's shape; `table` is as SQL would name it.
    #[track_caller]
    pub fn of(source: &Source, table: &str) -> Self {
        let literal = table.replace('\'', "''");
        // Before PostgreSQL 18 generated columns are not in the stream.
        let columns = source.query(&format!(
            "SELECT a.attname, coalesce(e.typname, b.typname), e.oid IS NOT NULL
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
             LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
             WHERE a.attrelid = '{literal}'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             ORDER BY a.attnum"
        ));
        let key = source.query(&format!(
            "SELECT a.attname FROM (
               SELECT indrelid, indkey FROM pg_index
               WHERE indrelid = '{literal}'::regclass AND (indisreplident OR indisprimary)
               ORDER BY indisreplident DESC LIMIT 1) i
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) ORDER BY a.attnum"
        ));
        let text = |value: &Option<String>| value.clone().expect("the catalog has no NULL here");
        let column = |row: &Vec<Option<String>>| Column {
            name: text(&row[0]),
            type_name: text(&row[1]),
            is_array: text(&row[2]) == "t",
        };
        Self {
            columns: columns.iter().map(column).collect(),
            key: key.iter().map(|row| text(&row[0])).collect(),
        }
    }

    /// Reads the rows: the aggregate id that each should have, and its columns.
    #[track_caller]
    pub fn rows(&self, source: &Source, table: &str) -> Vec<(Option<String>, Row)> {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let expression = |column: &Column| {
            let name = quoted(&column.name);
            match (column.is_array, column.type_name.as_str()) {
                // The nesting by the server's own JSON, the elements as the text that it prints.
                (true, _) => format!("array_to_json({name}::text[])::text"),
                (false, "hstore") => format!("hstore_to_json({name})::text"),
                // As its output function prints it: a cast prints a boolean and a char(n) otherwise.
                (false, _) => name,
            }
        };
        let columns = self.columns.iter().map(expression);
        let key = self.key.iter().map(|name| quoted(name));
        let list = columns.chain(key).collect::<Vec<_>>().join(", ");
        let rows = source.query(&format!("SELECT {list} FROM {table}"));
        rows.iter()
            .map(|texts| {
                let (values, key) = texts.split_at(self.columns.len());
                let row = self.columns.iter().zip(values);
                let row = row.map(|(column, text)| (column.name.clone(), column.expected(text.as_deref())));
                (aggregate_id(key), row.collect())
            })
            .collect()
    }

    /// An event's row in canonical form.
    pub fn canonical_event(&self, row: &Row) -> Row {
        row.iter()
            .map(|(name, value)| match self.columns.iter().find(|column| column.name == *name) {
                Some(column) => (name.clone(), column.canonical(value)),
                None => (name.clone(), value.clone()),
            })
            .collect()
    }
}

impl Column {
    /// The event form of what the server prints.
    fn expected(&self, text: Option<&str>) -> Value {
        let Some(text) = text else { return Value::Null };
        if self.is_array {
            let nested: Value = serde_json::from_str(text).expect("the server prints JSON");
            return map_leaves(&nested, &|leaf| {
                leaf.as_str().map_or(Value::Null, |text| self.expected_leaf(text))
            });
        }
        self.expected_leaf(text)
    }

    fn expected_leaf(&self, text: &str) -> Value {
        match self.type_name.as_str() {
            "bool" => Value::Bool(text.starts_with('t')),
            "int2" | "int4" | "int8" => text.parse::<i64>().expect("the server prints an integer").into(),
            "float4" | "float8" if text.contains(['N', 'y']) => text.into(),
            "float4" | "float8" => text.parse::<f64>().expect("the server prints a number").into(),
            "json" | "jsonb" | "hstore" => serde_json::from_str(text).expect("the server prints JSON"),
            "bytea" => hex_bytes(text).into(),
            "timestamptz" => iso_time(text, true).into(),
            "timestamp" => iso_time(text, false).into(),
            _ => text.into(),
        }
    }

    /// An event's value, without what the documented form leaves open (`0.10` and `0.1` seconds, `1e3` and `1000`).
    fn canonical(&self, value: &Value) -> Value {
        if self.is_array {
            map_leaves(value, &|leaf| self.canonical_leaf(leaf))
        } else {
            self.canonical_leaf(value)
        }
    }

    fn canonical_leaf(&self, value: &Value) -> Value {
        match (self.type_name.as_str(), value) {
            ("float4" | "float8", Value::Number(number)) => number.as_f64().into(),
            ("bytea", Value::String(text)) => base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_or_else(|error| format!("not base64: {error}: {text}").into(), Value::from),
            ("timestamptz" | "timestamp", Value::String(text)) => short_fraction(text).into(),
            _ => value.clone(),
        }
    }
}

/// The key's text, or a JSON array of several.
fn aggregate_id(key: &[Option<String>]) -> Option<String> {
    let texts: Vec<&str> = key.iter().map(|text| text.as_deref().expect("a key is not NULL")).collect();
    match texts.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        several => Some(serde_json::to_string(several).expect("texts are JSON")),
    }
}

fn map_leaves(value: &Value, form: &dyn Fn(&Value) -> Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| map_leaves(item, form)).collect(),
        Value::Null => Value::Null,
        leaf => form(leaf),
    }
}

fn hex_bytes(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("\\x").expect("bytea_output is hex");
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("hex is ASCII");
        u8::from_str_radix(pair, 16).expect("the server prints hex")
    };
    digits.as_bytes().chunks(2).map(byte).collect()
}

/// ISO 8601 of a time in UTC as the server prints it; infinities, BC and years over 9999 stay as they are.
fn iso_time(text: &str, has_zone: bool) -> String {
    let is_usual = text.as_bytes().get(4) == Some(&b'-') && !text.ends_with("BC");
    if !is_usual {
        return text.to_owned();
    }
    let text = text.replacen(' ', "T", 1);
    if has_zone { text.replacen("+00", "Z", 1) } else { text }
}

/// A time without the zeros at the end of its fraction, as the server prints it.
fn short_fraction(text: &str) -> String {
    let (time, zone) = text.strip_suffix('Z').map_or((text, ""), |time| (time, "Z"));
    if !time.contains('.') {
        return text.to_owned();
    }
    format!("{}{zone}", time.trim_end_matches('0').trim_end_matches('.'))
}
