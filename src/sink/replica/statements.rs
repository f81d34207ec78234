//! SQL texts, for a table and what its rows have: one for each kind of statement.
//!
//! Comes in: a [`Table`], and which columns did not change. Goes out: a text, and which cells are its parameters, in
//! their order. Always holds: cells travel as text and are cast in SQL to the column's own type, whose name alone has
//! no length: an assignment that would cut a value is an error, as it is in COPY. `unnest` stands without its schema
//! because only so it takes several arrays. Manual: "INSERT", "UPDATE", "Value Storage".

use super::table::{Column, Table};

/// Which columns did not change: a bit for each. Empty: none.
pub(super) type Mask = smallvec::SmallVec<[u64; 2]>;

/// Whether the mask says "unchanged".
pub(super) fn is_unchanged(mask: &Mask, at: usize) -> bool {
    mask.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
}

/// A kind of statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Arrays of keys.
    DeleteSet,
    /// Arrays of keys and changed columns.
    UpdateSet,
    /// Arrays of all columns.
    InsertSet,
    /// Arrays of all columns.
    UpsertSet,
    /// Arrays of keys; gives the numbers (from 1) of those that have no row.
    Missing,
    /// `COPY ... FROM STDIN`.
    Copy,
    /// The same in the binary format.
    CopyBinary,
    /// All cells of a row; none inserted: its key is there.
    InsertRow,
    /// All cells of a row, whether or not it is there.
    UpsertRow,
    /// The key, then changed columns.
    UpdateRow,
    /// The old key, then the changed columns and the new key: unless another row has that.
    RekeyRow,
    /// The key.
    DeleteRow,
    /// The key; gives the row as JSON.
    SelectRow,
    /// The whole old row, then the changed columns: one of equal rows.
    UpdateOne,
    /// The whole old row: one of equal rows.
    DeleteOne,
}

/// Whose cell a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Of what identifies the row.
    Old(usize),
    /// Of the row to be.
    New(usize),
}

/// A statement's text and parameters.
#[derive(Debug)]
pub(super) struct Text {
    pub sql: String,
    pub parameters: Vec<Of>,
}

impl Table {
    /// The statement of this kind for rows in which `mask` did not change.
    pub fn statement(&self, kind: Kind, mask: &Mask) -> Text {
        let mut writer = Writer { table: self, parameters: Vec::new() };
        let sql = writer.write(kind, mask);
        Text { sql, parameters: writer.parameters }
    }

    /// The columns that an INSERT and COPY write.
    pub fn inserted(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.columns.iter().enumerate().filter(|(_, column)| !column.is_generated)
    }

    fn column(&self, at: usize) -> &Column {
        self.columns.get(at).expect("a key names columns of its table")
    }

    fn key(&self) -> &[usize] {
        &self.target.key
    }

    fn inserted_names(&self) -> String {
        list(self.inserted().map(|(_, column)| column.name.clone()), ", ")
    }

    fn key_names(&self) -> String {
        list(self.key().iter().map(|at| self.column(*at).name.clone()), ", ")
    }

    /// A row that is there gets the values of the one that should be.
    fn on_conflict(&self) -> String {
        let none = Mask::new();
        let columns = self.changed(&none).map(|at| &self.column(at).name);
        let settings = list(columns.map(|name| format!("{name} = excluded.{name}")), ", ");
        match settings.is_empty() {
            true => format!("ON CONFLICT ({}) DO NOTHING", self.key_names()),
            false => format!("ON CONFLICT ({}) DO UPDATE SET {settings}", self.key_names()),
        }
    }

    /// What an UPDATE of a row with an unchanged key sets.
    fn changed<'t>(&'t self, mask: &'t Mask) -> impl Iterator<Item = usize> + 't {
        self.inserted()
            .filter(|(at, column)| {
                !column.is_identity_always && !self.key().contains(at) && !is_unchanged(mask, *at)
            })
            .map(|(at, _)| at)
    }
}

fn list(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}

struct Writer<'t> {
    table: &'t Table,
    parameters: Vec<Of>,
}

impl Writer<'_> {
    /// Enters a parameter; its number.
    fn enter(&mut self, of: Of) -> usize {
        match self.parameters.iter().position(|known| *known == of) {
            Some(at) => at + 1,
            None => {
                self.parameters.push(of);
                self.parameters.len()
            }
        }
    }

    /// A cell as a value of its column's type: of a single row, or of the arrays' row `u`.
    fn row_value(&mut self, of: Of) -> String {
        let (Of::Old(at) | Of::New(at)) = of;
        format!("${}::text::{}", self.enter(of), self.table.column(at).cast)
    }

    fn set_value(&mut self, of: Of) -> String {
        let (Of::Old(at) | Of::New(at)) = of;
        format!("u.c{}::{}", self.enter(of), self.table.column(at).cast)
    }

    /// `unnest` of the parameters entered so far.
    fn arrays(&self) -> String {
        let (arrays, names) = self.arrays_and_names();
        format!("unnest({arrays}) AS u ({names})")
    }

    fn arrays_and_names(&self) -> (String, String) {
        let numbers = 1..=self.parameters.len();
        let arrays = list(numbers.clone().map(|number| format!("${number}::text[]")), ", ");
        (arrays, list(numbers.map(|number| format!("c{number}")), ", "))
    }

    fn is_key_of_set(&mut self) -> String {
        let table = self.table;
        let parts: Vec<String> = table
            .key()
            .iter()
            .map(|at| {
                let column = table.column(*at);
                format!("t.{} {} {}", column.name, column.equals, self.set_value(Of::Old(*at)))
            })
            .collect();
        parts.join(" AND ")
    }

    fn is_key_of_row(&mut self, row: &str, of: fn(usize) -> Of) -> String {
        let table = self.table;
        let parts: Vec<String> = table
            .key()
            .iter()
            .map(|at| {
                let column = table.column(*at);
                format!("{row}.{} {} {}", column.name, column.equals, self.row_value(of(*at)))
            })
            .collect();
        parts.join(" AND ")
    }

    /// The whole row, as text: of any type, and exactly. Before that what an index finds, for values with equal texts are
    /// equal, and a look through the whole table for each row is slow.
    fn is_whole_row(&mut self) -> String {
        let table = self.table;
        let mut parts = Vec::new();
        for (at, column) in table.inserted().filter(|(_, column)| column.is_findable) {
            let value = self.row_value(Of::Old(at));
            parts.push(format!("t.{} {} {value}", column.name, column.equals));
        }
        for (at, column) in table.inserted() {
            let value = self.row_value(Of::Old(at));
            parts.push(format!(
                "t.{}::text COLLATE \"C\" IS NOT DISTINCT FROM {value}::text COLLATE \"C\"",
                column.name
            ));
        }
        if parts.is_empty() { "true".to_owned() } else { parts.join(" AND ") }
    }

    fn settings(&mut self, columns: &[usize], value: fn(&mut Self, Of) -> String) -> String {
        let table = self.table;
        let parts: Vec<String> = columns
            .iter()
            .map(|at| format!("{} = {}", table.column(*at).name, value(self, Of::New(*at))))
            .collect();
        parts.join(", ")
    }

    fn write(&mut self, kind: Kind, mask: &Mask) -> String {
        let table = self.table;
        let name = &table.name;
        match kind {
            Kind::DeleteSet => self.delete_set(),
            Kind::UpdateSet => {
                let is_key = self.is_key_of_set();
                let changed: Vec<usize> = table.changed(mask).collect();
                let settings = self.settings(&changed, Self::set_value);
                match changed.is_empty() {
                    // Nothing to set: whether the rows are there is all there is to know.
                    true => format!("SELECT FROM {name} AS t, {} WHERE {is_key}", self.arrays()),
                    false => {
                        format!("UPDATE {name} AS t SET {settings} FROM {} WHERE {is_key}", self.arrays())
                    }
                }
            }
            Kind::InsertSet | Kind::UpsertSet => {
                let values: Vec<String> =
                    table.inserted().map(|(at, _)| self.set_value(Of::New(at))).collect();
                let insert = format!(
                    "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
                    table.inserted_names(),
                    values.join(", "),
                    self.arrays()
                );
                if kind == Kind::InsertSet {
                    return insert;
                }
                format!("{insert} {}", table.on_conflict())
            }
            Kind::UpsertRow => {
                let values: Vec<String> =
                    table.inserted().map(|(at, _)| self.row_value(Of::New(at))).collect();
                format!(
                    "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) {}",
                    table.inserted_names(),
                    values.join(", "),
                    table.on_conflict()
                )
            }
            Kind::Missing => {
                let is_key = self.is_key_of_set();
                let (arrays, names) = self.arrays_and_names();
                format!(
                    "SELECT u.number FROM unnest({arrays}) WITH ORDINALITY AS u ({names}, number) \
                     WHERE NOT EXISTS (SELECT FROM {name} AS t WHERE {is_key})"
                )
            }
            Kind::Copy => format!("COPY {name} ({}) FROM STDIN", table.inserted_names()),
            Kind::CopyBinary => {
                format!("COPY {name} ({}) FROM STDIN (FORMAT binary)", table.inserted_names())
            }
            Kind::InsertRow => self.insert_row(),
            Kind::UpdateRow => {
                let is_key = self.is_key_of_row("t", Of::Old);
                let changed: Vec<usize> = table.changed(mask).collect();
                match changed.is_empty() {
                    true => format!("SELECT FROM {name} AS t WHERE {is_key}"),
                    false => {
                        let settings = self.settings(&changed, Self::row_value);
                        format!("UPDATE {name} AS t SET {settings} WHERE {is_key}")
                    }
                }
            }
            Kind::RekeyRow => {
                let mut columns: Vec<usize> = table.key().to_vec();
                columns.extend(table.changed(mask));
                let settings = self.settings(&columns, Self::row_value);
                let (is_old, is_new) = (self.is_key_of_row("t", Of::Old), self.is_key_of_row("x", Of::New));
                let is_same = self.is_key_of_row("x", Of::Old);
                format!(
                    "UPDATE {name} AS t SET {settings} WHERE {is_old} \
                     AND NOT EXISTS (SELECT FROM {name} AS x WHERE {is_new} AND NOT ({is_same}))"
                )
            }
            Kind::DeleteRow => format!("DELETE FROM {name} AS t WHERE {}", self.is_key_of_row("t", Of::Old)),
            Kind::SelectRow => format!(
                "SELECT pg_catalog.row_to_json(t)::text FROM {name} AS t WHERE {} LIMIT 1",
                self.is_key_of_row("t", Of::Old)
            ),
            Kind::UpdateOne => {
                let columns: Vec<usize> = table.changed(mask).collect();
                let settings = self.settings(&columns, Self::row_value);
                let one = self.one();
                match columns.is_empty() {
                    true => format!("SELECT FROM {name} AS t, {one}"),
                    false => format!("UPDATE {name} AS t SET {settings} FROM {one}"),
                }
            }
            Kind::DeleteOne => format!("DELETE FROM {name} AS t USING {}", self.one()),
        }
    }

    /// By a single column without a join, which would make a copy of each row of the arrays for what is never asked of it.
    fn delete_set(&mut self) -> String {
        let table = self.table;
        if let [at] = table.key()
            && let column = table.column(*at)
            && column.is_element
        {
            let array = format!("${}::text[]::{}[]", self.enter(Of::Old(*at)), column.cast);
            return format!(
                "DELETE FROM {} AS t WHERE t.{} {} ANY ({array})",
                table.name, column.name, column.equals
            );
        }
        let is_key = self.is_key_of_set();
        format!("DELETE FROM {} AS t USING {} WHERE {is_key}", table.name, self.arrays())
    }

    /// One of the rows that are equal to the old one. A ctid is unique within a partition only.
    fn one(&mut self) -> String {
        let is_row = self.is_whole_row();
        format!(
            "(SELECT t.tableoid AS partition, t.ctid AS place FROM {} AS t WHERE {is_row} LIMIT 1) AS u \
             WHERE t.ctid = u.place AND t.tableoid = u.partition",
            self.table.name
        )
    }

    fn insert_row(&mut self) -> String {
        let table = self.table;
        let values: Vec<String> = table.inserted().map(|(at, _)| self.row_value(Of::New(at))).collect();
        if values.is_empty() {
            return format!("INSERT INTO {} DEFAULT VALUES", table.name);
        }
        let insert =
            format!("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE", table.name, table.inserted_names());
        let values = values.join(", ");
        if table.has_arbiter {
            return format!("{insert} VALUES ({values}) ON CONFLICT ({}) DO NOTHING", table.key_names());
        }
        if table.key().is_empty() {
            return format!("{insert} VALUES ({values})");
        }
        let is_key = self.is_key_of_row("t", Of::New);
        format!("{insert} SELECT {values} WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {is_key})", table.name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::route::row::{Target, TargetColumn};

    fn table() -> Table {
        let columns = ["id", "a\"b", "always"];
        let target = Target {
            oid: 1,
            relation: "public.t".into(),
            schema: "public".into(),
            name: "t".into(),
            columns: columns
                .map(|name| TargetColumn { name: name.into(), type_oid: 0, type_name: Default::default() })
                .to_vec(),
            key: vec![0],
            is_filtered: false,
        };
        let column = |name: &str, is_identity_always| Column {
            name: crate::wal::sql::quote_ident(name),
            cast: "\"pg_catalog\".\"bpchar\"".into(),
            type_oid: 1042,
            equals: "=".into(),
            is_generated: false,
            is_identity_always,
            is_findable: name == "id",
            is_element: name == "id",
        };
        Table {
            target: Arc::new(target),
            name: "\"public\".\"t\"".into(),
            columns: columns.map(|name| column(name, name == "always")).into(),
            is_ordered: false,
            has_row_triggers: false,
            has_arbiter: true,
            is_replaceable: false,
            forms: None,
        }
    }

    #[test]
    fn parameters_are_those_that_a_statement_needs() {
        let text = table().statement(Kind::UpdateSet, &Mask::new());
        assert_eq!(
            text.sql,
            "UPDATE \"public\".\"t\" AS t SET \"a\"\"b\" = u.c2::\"pg_catalog\".\"bpchar\" \
             FROM unnest($1::text[], $2::text[]) AS u (c1, c2) \
             WHERE t.\"id\" = u.c1::\"pg_catalog\".\"bpchar\""
        );
        assert_eq!(text.parameters, [Of::Old(0), Of::New(1)]);
        let nothing = table().statement(Kind::UpdateSet, &Mask::from_slice(&[0b110]));
        assert!(nothing.sql.starts_with("SELECT FROM"), "{}", nothing.sql);
        assert_eq!(nothing.parameters, [Of::Old(0)]);
        let delete = table().statement(Kind::DeleteSet, &Mask::new());
        assert_eq!(
            delete.sql,
            "DELETE FROM \"public\".\"t\" AS t WHERE t.\"id\" = ANY ($1::text[]::\"pg_catalog\".\"bpchar\"[])"
        );
        let mut array = table();
        array.columns[0].is_element = false;
        assert!(
            array.statement(Kind::DeleteSet, &Mask::new()).sql.contains("USING unnest($1::text[]) AS u (c1)")
        );
        let delete = table().statement(Kind::DeleteOne, &Mask::new());
        assert!(
            delete
                .sql
                .contains("WHERE t.\"id\" = $1::text::\"pg_catalog\".\"bpchar\" AND t.\"id\"::text COLLATE")
        );
        let upsert = table().statement(Kind::UpsertRow, &Mask::new());
        assert!(upsert.sql.ends_with("ON CONFLICT (\"id\") DO UPDATE SET \"a\"\"b\" = excluded.\"a\"\"b\""));
        assert_eq!(upsert.parameters, [Of::New(0), Of::New(1), Of::New(2)]);
    }
}
