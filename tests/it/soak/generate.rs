//! What a soak is made of: schemas, rules, rows and transactions, all drawn from one seed.
//!
//! In: dice. Out: SQL and TOML. Always: nothing here asks a server, so equal seeds give equal statements; a statement may
//! find no row or lose against another session, but it is never wrong in itself.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

/// Keys are drawn from so few that statements meet.
const KEYS: u64 = 40;
/// Large transactions use keys from here on.
const FAR: u64 = 10_000;

/// Where everything random comes from.
pub struct Dice(StdRng);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(StdRng::seed_from_u64(seed))
    }

    /// Others, which roll for themselves: for a thread of its own.
    pub fn fork(&mut self) -> Self {
        Dice::new(self.0.random())
    }

    /// From 0 up to `sides - 1`.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.0.random_range(0..sides)
    }

    pub fn one_in(&mut self, sides: u32) -> bool {
        self.0.random_ratio(1, sides)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.0).expect("there is something to pick from")
    }
}

/// A column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Int,
    Text,
    Numeric,
    Bool,
    Jsonb,
    Texts,
    Bytea,
    Uuid,
}

impl Kind {
    fn sql(self) -> &'static str {
        match self {
            Kind::Int => "int",
            Kind::Text => "text",
            Kind::Numeric => "numeric",
            Kind::Bool => "boolean",
            Kind::Jsonb => "jsonb",
            Kind::Texts => "text[]",
            Kind::Bytea => "bytea",
            Kind::Uuid => "uuid",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
    /// Often has values that are stored out of line.
    pub is_large: bool,
    /// They are not compressed.
    is_external: bool,
    is_not_null: bool,
    is_unique: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    Default,
    Full,
    /// A unique index on the column `ident`.
    Index,
}

/// A table, the rule for it, and its place on the replica.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    /// The names by which statements find rows: the primary key, if there is one.
    address: Vec<String>,
    pub has_primary_key: bool,
    pub identity: Identity,
    pub is_event_too: bool,
    pub filter: Option<String>,
    excluded: Vec<String>,
    lists_columns: bool,
    pub target: String,
    /// The replica's table is made by hand, with its columns in another order and with the source's constraints.
    is_made_by_hand: bool,
}

impl Table {
    pub fn random(dice: &mut Dice, number: usize) -> Self {
        let has_primary_key = !dice.one_in(5);
        let identity = match dice.below(5) {
            _ if !has_primary_key => Identity::Full,
            0 | 1 => Identity::Default,
            2 => Identity::Index,
            _ => Identity::Full,
        };
        let key_kinds: &[Kind] = match dice.below(5) {
            0 | 1 => &[Kind::Int],
            2 => &[Kind::Text],
            3 => dice.pick(&[&[Kind::Uuid], &[Kind::Numeric]]),
            _ => &[Kind::Int, Kind::Text],
        };
        let mut columns: Vec<Column> = Vec::new();
        for (at, kind) in key_kinds.iter().enumerate() {
            columns.push(Column { is_not_null: has_primary_key, ..column(&format!("k{at}"), *kind) });
        }
        let address = columns.iter().map(|column| column.name.clone()).collect();
        if identity == Identity::Index {
            columns.push(Column { is_not_null: true, is_unique: true, ..column("ident", Kind::Int) });
        }
        for at in 0..2 + dice.below(5) {
            let kinds =
                [Kind::Int, Kind::Text, Kind::Numeric, Kind::Bool, Kind::Jsonb, Kind::Texts, Kind::Bytea];
            let kind = dice.pick(&kinds);
            let can_be_large = matches!(kind, Kind::Text | Kind::Jsonb | Kind::Texts | Kind::Bytea);
            let is_large = can_be_large && dice.one_in(2);
            let is_external = is_large && !dice.one_in(3);
            let name = format!("{} {at}", dice.pick(&["c", "C", "größe", "it's"]));
            columns.push(Column { is_large, is_external, ..column(&name, kind) });
        }
        if dice.one_in(3) {
            columns.push(Column { is_unique: true, ..column("uq", Kind::Int) });
        }
        columns.shuffle(&mut dice.0);

        let mut table = Table {
            name: format!("{} {number}", dice.pick(&["t", "Über", "order"])),
            columns,
            address,
            has_primary_key,
            identity,
            is_event_too: dice.one_in(2),
            filter: None,
            excluded: Vec::new(),
            lists_columns: dice.one_in(2),
            target: String::new(),
            is_made_by_hand: dice.one_in(2),
        };
        table.target = match dice.below(3) {
            0 => format!("\"other\".\"to {number}\""),
            _ => format!("\"public\".\"{}\"", table.name),
        };
        if !dice.one_in(4) {
            table.filter = Some(table.condition(dice, 2));
        }
        if dice.one_in(3) {
            let others = table.columns.iter().filter(|one| !one.is_not_null && !table.is_address(&one.name));
            let others: Vec<String> = others.map(|column| column.name.clone()).collect();
            table.excluded = others.into_iter().filter(|_| dice.one_in(3)).collect();
        }
        table
    }

    pub fn quoted(&self) -> String {
        quote(&self.name)
    }

    /// The columns that the rule lets through.
    pub fn published(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| !self.excluded.contains(&column.name)).collect()
    }

    /// The statements that make it on the source.
    pub fn on_source(&self) -> String {
        let name = self.quoted();
        let mut sql = self.definition(&name, &self.columns.iter().collect::<Vec<_>>());
        for column in self.columns.iter().filter(|column| column.is_external) {
            sql += &format!(";\nALTER TABLE {name} ALTER {} SET STORAGE EXTERNAL", quote(&column.name));
        }
        sql += &match self.identity {
            Identity::Default => String::new(),
            Identity::Full => format!(";\nALTER TABLE {name} REPLICA IDENTITY FULL"),
            Identity::Index => format!(
                ";\nALTER TABLE {name} REPLICA IDENTITY USING INDEX {}",
                quote(&format!("{}_ident_key", self.name))
            ),
        };
        sql
    }

    /// The statements that make it on the replica, if that is not left to Walgate.
    pub fn on_replica(&self) -> Option<String> {
        let mut columns = self.published();
        columns.reverse();
        let sql = format!("CREATE SCHEMA IF NOT EXISTS other;\n{}", self.definition(&self.target, &columns));
        self.is_made_by_hand.then_some(sql)
    }

    fn definition(&self, name: &str, columns: &[&Column]) -> String {
        let define = |column: &&Column| {
            let not_null = if column.is_not_null { " NOT NULL" } else { "" };
            let unique = match column.is_unique {
                true => {
                    format!(" CONSTRAINT {} UNIQUE", quote(&format!("{}_{}_key", self.name, column.name)))
                }
                false => String::new(),
            };
            format!("{} {}{not_null}{unique}", quote(&column.name), column.kind.sql())
        };
        let mut parts: Vec<String> = columns.iter().map(define).collect();
        if self.has_primary_key {
            parts.push(format!("PRIMARY KEY ({})", quote_all(&self.address)));
        }
        format!("CREATE TABLE {name} ({})", parts.join(", "))
    }

    /// Its `[[table]]`.
    pub fn rule(&self) -> String {
        let mode = if self.is_event_too { "both" } else { "replicate" };
        let mut toml =
            format!("[[table]]\nname = {:?}\nmode = \"{mode}\"\n", format!("public.{}", self.name));
        if let Some(filter) = &self.filter {
            toml += &format!("where = {filter:?}\n");
        }
        if !self.excluded.is_empty() {
            let names: Vec<&String> = self.columns.iter().map(|column| &column.name).collect();
            let listed: Vec<&&String> = names.iter().filter(|name| !self.excluded.contains(name)).collect();
            toml += &match self.lists_columns {
                true => format!("columns = {listed:?}\n"),
                false => format!("exclude = {:?}\n", self.excluded),
            };
        }
        if !self.target.starts_with("\"public\"") {
            toml += &format!("to = {:?}\n", self.target.replace('"', ""));
        }
        toml
    }

    fn is_address(&self, name: &str) -> bool {
        self.address.iter().any(|one| one == name)
    }

    // ---- conditions -----------------------------------------------------------------------------------------

    /// What a rule may say: for the hub, of large columns only where their old and unchanged values are in the WAL.
    fn condition(&self, dice: &mut Dice, depth: u32) -> String {
        if depth > 0 && dice.one_in(2) {
            let (left, right) = (self.condition(dice, depth - 1), self.condition(dice, depth - 1));
            return match dice.below(5) {
                0 => format!("NOT ({left})"),
                1 | 2 => format!("({left}) AND ({right})"),
                _ => format!("({left}) OR ({right})"),
            };
        }
        let may_be_large = self.identity == Identity::Full || !self.is_event_too;
        let usable: Vec<&Column> = self.columns.iter().filter(|one| !one.is_large || may_be_large).collect();
        let column = dice.pick(&usable);
        let name = quote(&column.name);
        let number = dice.below(KEYS);
        let letter = dice.pick(&["a", "k", "w", "x", "é"]);
        let forms = match column.kind {
            Kind::Int => vec![
                format!("{name} > {number}"),
                format!("{name} % 5 <> {}", number % 5),
                format!("{name} BETWEEN {number} AND {}", number + 20),
                format!("{name} IN ({number}, {}, 3, 5, 8, 13) IS NOT TRUE", number + 1),
                format!("abs({name} - 20) < {number}"),
                format!("to_hex({name}) ~ '[0-7]$'"),
            ],
            Kind::Text => vec![
                format!("{name} IS DISTINCT FROM '{letter}'"),
                format!("{name} LIKE '{letter}%'"),
                format!("{name} NOT LIKE '%{}'", number % 10),
                format!("length({name}) > {}", number % 6),
                format!("{name} ~ '^[a-p]'"),
                format!("lower({name}) <> '{letter}1'"),
                format!("{name} COLLATE \"C\" < 'l'"),
                format!("{name} < 'l'"),
            ],
            Kind::Numeric => vec![
                format!("{name} >= {number}.5"),
                format!("{name} <> {number}"),
                format!("{name} IS NOT NULL"),
                format!("{name} / 2 < {number}"),
                format!("{name} * 2 < {number}.50"),
            ],
            Kind::Bool => vec![name.clone(), format!("{name} IS NOT TRUE"), format!("NOT {name}")],
            Kind::Jsonb => vec![
                format!("({name} ->> 'k') IS DISTINCT FROM '{letter}'"),
                format!("({name} ->> 'n')::int > {number}"),
                format!("{name} @> '{{\"k\": \"{letter}\"}}' IS NOT TRUE"),
                format!("{name} ? 'n'"),
            ],
            Kind::Texts => vec![
                format!("'{letter}' = ANY ({name})"),
                format!("('{letter}' = ANY ({name})) IS NOT TRUE"),
                format!("{name} @> ARRAY['{letter}'] IS NOT TRUE"),
                format!("{name} IS NULL"),
            ],
            Kind::Bytea => vec![
                format!("{name} <> '\\x00ff'"),
                format!("{name} IS NULL"),
                format!("length({name}) < 100"),
            ],
            Kind::Uuid => vec![
                format!("{name} > '80000000-0000-0000-0000-000000000000'"),
                format!("{name}::text ~ '[0-9a]$'"),
            ],
        };
        forms[dice.below(forms.len() as u64) as usize].clone()
    }

    /// Finds one row, or a few.
    fn place(&self, dice: &mut Dice) -> String {
        let number = dice.below(KEYS);
        self.place_of(dice, &number.to_string())
    }

    /// Finds the row of this number.
    fn place_of(&self, dice: &mut Dice, number: &str) -> String {
        let part = |name: &String| format!("{} = {}", quote(name), key(self.kind_of(name), number));
        let place = self.address.iter().map(part).collect::<Vec<_>>().join(" AND ");
        match dice.below(4) {
            0 if !self.has_primary_key => {
                format!("ctid = (SELECT ctid FROM {} WHERE {place} LIMIT 1)", self.quoted())
            }
            // Of a composite key, its rows with one part.
            1 => place.split(" AND ").next().unwrap_or_default().to_owned(),
            _ => place,
        }
    }

    /// Finds many rows.
    fn range(&self, dice: &mut Dice) -> String {
        let sides = 2 + dice.below(4);
        format!("hashtext({}::text) % {sides} = {}", quote(&self.address[0]), dice.below(sides))
    }

    fn kind_of(&self, name: &str) -> Kind {
        self.columns.iter().find(|column| column.name == name).expect("a column of this table").kind
    }

    // ---- values ---------------------------------------------------------------------------------------------

    /// A value of a column, for the row whose number is the expression `i`.
    fn value(&self, dice: &mut Dice, column: &Column, i: &str, may_be_large: bool) -> String {
        if self.is_address(&column.name) {
            return key(column.kind, i);
        }
        if column.is_unique {
            // Distinct within a statement, and free most of the time.
            return match dice.below(3) {
                0 if !column.is_not_null => "NULL".to_owned(),
                _ => format!("({i} * 3 + {})", dice.below(KEYS * 3)),
            };
        }
        if !column.is_not_null && dice.one_in(7) {
            return "NULL".to_owned();
        }
        let number = dice.below(100);
        if column.is_large && may_be_large && !dice.one_in(3) {
            return large(column, &format!("({i} + {number})"));
        }
        let text = dice.pick(&[
            "'a'",
            "'k1'",
            "'w'",
            "''",
            "'x y'",
            "'é'",
            "E'\\t\\n\\\\ \\x01'",
            "'\\N'",
            "'it''s \"q\"'",
            "'{}'",
            "'NULL'",
        ]);
        match column.kind {
            Kind::Int => format!("(({i} * 7 + {number}) % 60)"),
            Kind::Text if dice.one_in(2) => text.to_owned(),
            Kind::Text => format!("chr((97 + ({i} + {number}) % 26)::int) || {i}"),
            Kind::Numeric => match dice.below(6) {
                0 => dice.pick(&["'NaN'", "'Infinity'", "-0.00", "1e20", "1.10", "1.1"]).to_owned(),
                1 => "12345678901234567890123456789.012345678900".to_owned(),
                _ => format!("(({i} + {number}) % 50)::numeric({}, {})", 6 + number % 3, number % 4),
            },
            Kind::Bool => format!("({i} + {number}) % 2 = 0"),
            Kind::Jsonb => match dice.below(5) {
                0 => dice.pick(&["'null'", "'[]'", "'\"s\"'", "'{\"k\": null}'"]).to_owned(),
                _ => format!("jsonb_build_object('k', {text}, 'n', ({i} + {number}) % 50)"),
            },
            Kind::Texts => match dice.below(4) {
                0 => "'{}'".to_owned(),
                _ => format!("ARRAY[{text}, NULL, 'v' || {i} % 9]"),
            },
            Kind::Bytea => match dice.below(3) {
                0 => "'\\x00ff'".to_owned(),
                _ => format!("decode(md5(({i} + {number})::text), 'hex')"),
            },
            Kind::Uuid => format!("md5(({i} + {number})::text)::uuid"),
        }
    }

    fn values(&self, dice: &mut Dice, i: &str, may_be_large: bool) -> String {
        let columns = self.columns.iter();
        columns.map(|column| self.value(dice, column, i, may_be_large)).collect::<Vec<_>>().join(", ")
    }

    // ---- statements -----------------------------------------------------------------------------------------

    fn insert(&self, dice: &mut Dice, i: &str, on_conflict: &str) -> String {
        let values = self.values(dice, i, true);
        format!("INSERT INTO {} ({}) VALUES ({values}){on_conflict}", self.quoted(), self.all_columns())
    }

    fn insert_many(&self, dice: &mut Dice, from: u64, to: u64, may_be_large: bool) -> String {
        let values = self.values(dice, "i", may_be_large);
        format!(
            "INSERT INTO {} ({}) SELECT {values} FROM generate_series({from}, {to}) i ON CONFLICT DO NOTHING",
            self.quoted(),
            self.all_columns()
        )
    }

    /// Some of the columns that are not its address.
    fn update(&self, dice: &mut Dice, rows: &str) -> String {
        let others: Vec<&Column> =
            self.columns.iter().filter(|one| !self.is_address(&one.name) && !one.is_unique).collect();
        let i = dice.below(KEYS).to_string();
        let mut set: Vec<String> = Vec::new();
        for _ in 0..1 + dice.below(2) {
            let column = dice.pick(&others);
            let name = quote(&column.name);
            if !set.iter().any(|one| one.starts_with(&format!("{name} = "))) {
                set.push(format!("{name} = {}", self.value(dice, column, &i, true)));
            }
        }
        format!("UPDATE {} SET {} WHERE {rows}", self.quoted(), set.join(", "))
    }

    fn update_key(&self, dice: &mut Dice) -> String {
        let mut moved: Vec<String> = self.address.clone();
        if self.identity == Identity::Index && dice.one_in(2) {
            moved = vec!["ident".to_owned()];
        }
        if moved.len() > 1 && dice.one_in(2) {
            moved.remove(0);
        }
        let mut set: Vec<String> = Vec::new();
        for name in &moved {
            let number = dice.below(KEYS * 2).to_string();
            set.push(format!("{} = {}", quote(name), key(self.kind_of(name), &number)));
        }
        if dice.one_in(3) {
            let others: Vec<&Column> =
                self.columns.iter().filter(|one| !self.is_address(&one.name) && !one.is_unique).collect();
            let column = dice.pick(&others);
            set.push(format!("{} = {}", quote(&column.name), self.value(dice, column, "7", true)));
        }
        format!("UPDATE {} SET {} WHERE {}", self.quoted(), set.join(", "), self.place(dice))
    }

    fn upsert(&self, dice: &mut Dice) -> String {
        let i = dice.below(KEYS).to_string();
        if !self.has_primary_key {
            return self.insert(dice, &i, "");
        }
        let others: Vec<&Column> = self.columns.iter().filter(|one| !self.is_address(&one.name)).collect();
        let set: Vec<String> = others
            .iter()
            .filter(|column| !column.is_unique)
            .filter(|_| !dice.one_in(3))
            .map(|column| format!("{0} = excluded.{0}", quote(&column.name)))
            .collect();
        let then = match set.is_empty() {
            true => "DO NOTHING".to_owned(),
            false => format!("DO UPDATE SET {}", set.join(", ")),
        };
        self.insert(dice, &i, &format!(" ON CONFLICT ({}) {then}", quote_all(&self.address)))
    }

    /// Two rows exchange their unique values, by way of a third one.
    fn swap(&self, dice: &mut Dice) -> Option<String> {
        let unique: Vec<&Column> = self.columns.iter().filter(|column| column.is_unique).collect();
        if unique.is_empty() {
            return None;
        }
        let name = quote(&dice.pick(&unique).name);
        let table = self.quoted();
        let pair = format!(
            "SELECT (array_agg({name} ORDER BY {name}))[{}:] AS v FROM {table} WHERE {name} > 0",
            1 + dice.below(9)
        );
        Some(format!(
            "WITH p AS ({pair}) UPDATE {table} SET {name} = -{name} FROM p WHERE {name} IN (v[1], v[2]);
             UPDATE {table} SET {name} = -(SELECT sum({name}) - {table}.{name} FROM {table} o WHERE o.{name} < 0)
             WHERE {name} < 0 AND (SELECT count(*) FROM {table} o WHERE o.{name} < 0) = 2"
        ))
    }

    fn all_columns(&self) -> String {
        quote_all(&self.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>())
    }

    /// One thing that an application does.
    fn step(&self, dice: &mut Dice) -> String {
        let table = self.quoted();
        match dice.below(40) {
            0..=5 => {
                let i = dice.below(KEYS).to_string();
                guarded(&self.insert(dice, &i, ""))
            }
            6..=9 => {
                let from = dice.below(KEYS);
                let to = from + dice.below(12);
                self.insert_many(dice, from, to, true)
            }
            10..=13 => guarded(&self.upsert(dice)),
            14..=21 => {
                let place = self.place(dice);
                self.update(dice, &place)
            }
            22..=24 => {
                let range = self.range(dice);
                self.update(dice, &range)
            }
            25..=29 => guarded(&self.update_key(dice)),
            30..=32 => match self.swap(dice) {
                Some(swap) => guarded(&swap),
                None => guarded(&self.update_key(dice)),
            },
            33..=35 => format!("DELETE FROM {table} WHERE {}", self.place(dice)),
            36 => format!("DELETE FROM {table} WHERE {}", self.range(dice)),
            37..=38 => {
                // One row, over and over.
                let i = dice.below(KEYS).to_string();
                let place = self.place_of(dice, &i);
                let mut steps = vec![format!("DELETE FROM {table} WHERE {place}")];
                for _ in 0..1 + dice.below(2) {
                    steps.push(self.insert(dice, &i, " ON CONFLICT DO NOTHING"));
                    steps.push(self.update(dice, &place));
                    if dice.one_in(2) {
                        steps.push(format!("DELETE FROM {table} WHERE {place}"));
                    }
                }
                steps.join(";\n")
            }
            _ if dice.one_in(2) => format!("TRUNCATE {table}"),
            _ => self.update(dice, "true"),
        }
    }

    /// Some thousand rows in one transaction, most of which go again.
    fn large_step(&self, dice: &mut Dice) -> String {
        let table = self.quoted();
        // Without a key every change of a row looks through the whole table on the replica.
        let rows = if self.has_primary_key { 1000 + dice.below(4000) } else { 200 + dice.below(400) };
        let last = FAR + rows;
        let insert = self.insert_many(dice, FAR, last, false);
        let (update, range) = (self.update(dice, "true"), self.range(dice));
        let delete = match dice.below(3) {
            0 => format!("TRUNCATE {table}"),
            _ => format!("DELETE FROM {table} WHERE {range}"),
        };
        [insert, update, delete].join(";\n")
    }
}

/// A transaction over the tables.
pub fn transaction(dice: &mut Dice, tables: &[Table]) -> String {
    let all: Vec<&Table> = tables.iter().collect();
    let mut steps = vec!["BEGIN".to_owned()];
    if dice.one_in(40) {
        steps.push(dice.pick(&all).large_step(dice));
    }
    for _ in 0..1 + dice.below(5) {
        let step = dice.pick(&all).step(dice);
        if dice.one_in(6) {
            let end = dice.pick(&["ROLLBACK TO s", "RELEASE s"]);
            steps.extend(["SAVEPOINT s".to_owned(), step, dice.pick(&all).step(dice), end.to_owned()]);
        } else {
            steps.push(step);
        }
    }
    if all.len() > 1 && dice.one_in(40) {
        let names: Vec<String> = tables.iter().map(Table::quoted).collect();
        steps.push(format!("TRUNCATE {}", names.join(", ")));
    }
    steps.push(if dice.one_in(12) { "ROLLBACK".to_owned() } else { "COMMIT".to_owned() });
    steps.join(";\n")
}

/// Tables for a round.
pub fn tables(dice: &mut Dice) -> Vec<Table> {
    (0..1 + dice.below(3) as usize).map(|number| Table::random(dice, number)).collect()
}

/// What may meet a value that is taken: then nothing of it is done, and the transaction goes on.
fn guarded(statements: &str) -> String {
    format!("DO $soak$ BEGIN {statements}; EXCEPTION WHEN unique_violation THEN NULL; END $soak$")
}

fn column(name: &str, kind: Kind) -> Column {
    Column {
        name: name.to_owned(),
        kind,
        is_large: false,
        is_external: false,
        is_not_null: false,
        is_unique: false,
    }
}

/// The key of the row whose number is the expression `i`.
fn key(kind: Kind, i: &str) -> String {
    match kind {
        Kind::Int => format!("({i})::int"),
        Kind::Text => {
            format!("(CASE {i} % 8 WHEN 1 THEN E'it''s \\\\ \"' WHEN 2 THEN 'é{{,' ELSE 'k' END || {i})")
        }
        Kind::Uuid => format!("md5(({i})::text)::uuid"),
        // Equal ones of other digits, too: 1, 1.0.
        Kind::Numeric => {
            format!("(CASE {i} % 3 WHEN 0 THEN ({i} / 2)::numeric ELSE ({i} / 2)::numeric(9, 1) END)")
        }
        _ => unreachable!("no key is of this kind"),
    }
}

/// A value that goes out of line: about 7 kB, which compression hardly makes less.
fn large(column: &Column, i: &str) -> String {
    let text = match column.is_external {
        true => format!("repeat(md5(({i})::text), 220)"),
        false => format!("(SELECT string_agg(md5((x * {i})::text), '') FROM generate_series(1, 220) x)"),
    };
    match column.kind {
        Kind::Text => text,
        Kind::Jsonb => format!("jsonb_build_object('k', 'a', 'big', {text})"),
        Kind::Texts => format!("ARRAY['a', NULL, {text}]"),
        Kind::Bytea => format!("convert_to({text}, 'UTF8')"),
        _ => unreachable!("no large column is of this kind"),
    }
}

pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quote_all(names: &[String]) -> String {
    names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
}
