//! Filters by oracle: random conditions over random rows, evaluated by PostgreSQL and by Walgate.
//!
//! PostgreSQL fills a table of every type that filters know, with edge values and NULLs, and says for each
//! condition and row: true, not true, or which error. What Walgate evaluates itself must say the same; what
//! it leaves to the server must give the same through [`Filter::server_statement`]; and a verdict on a row
//! of which one value was not sent must be that of the whole row. The seed is printed; `WALGATE_FILTER_SEED`
//! repeats a run, `WALGATE_FILTER_CONDITIONS` makes it longer. Needs `WALGATE_TEST_PG_URL`, a superuser's URL.

mod oracle;

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use oracle::in_own_database;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio_postgres::{Client, SimpleQueryMessage};
use walgate::route::filter::{Collation, EnumLabels, EvalError, Evaluator, Filter, TableFacts, Verdict};
use walgate::route::value::TypeCatalog;
use walgate::wal::pgoutput::{Relation, RelationColumn, ReplicaIdentity, Value};

const SESSION: &str = "-c datestyle=ISO -c intervalstyle=iso_8601 -c extra_float_digits=3 \
                       -c bytea_output=hex -c timezone=UTC -c row_security=off -c search_path=pg_catalog,public";

/// Columns: name, type, values as PostgreSQL reads them.
const COLUMNS: &[(&str, &str, &[&str])] = &[
    ("i2", "int2", &["0", "1", "-1", "7", "32767", "-32768"]),
    ("i4", "int4", &["0", "1", "-1", "2", "10", "2147483647", "-2147483648"]),
    ("j4", "int4", &["0", "1", "2", "3", "-7"]),
    ("i8", "int8", &["0", "1", "-1", "3000000000", "9223372036854775807", "-9223372036854775808"]),
    (
        "n",
        "numeric",
        &[
            "0",
            "0.00",
            "1",
            "1.0",
            "1.50",
            "-1.5",
            "0.1",
            "10",
            "99999999999999999999.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "-0.0001",
            "9223372036854775807.5",
            "1234567890123456789012345678901234567890",
        ],
    ),
    ("m", "numeric(12,2)", &["0", "1", "1.5", "-1.5", "0.10", "10"]),
    ("f4", "float4", &["0", "-0", "0.1", "1.5", "NaN", "Infinity", "3e38", "1e-45", "16777216"]),
    (
        "f8",
        "float8",
        &["0", "-0", "0.1", "1.5", "NaN", "-Infinity", "1e308", "5e-324", "9007199254740993", "2.5"],
    ),
    (
        "t",
        "text",
        &[
            "", "a", "A", "ab", "a%b", "abc", "a\\b", "äöü", "😀", "NULL", " a ", "1", "10", "1.5", "t",
            "x_y", " 7",
        ],
    ),
    ("u", "text", &["", "a", "b", "abc", "1", "EU"]),
    ("v", "varchar(20)", &["", "a", "ab", "EU", "äö"]),
    ("c", "char(4)", &["", "a", "a b", "abcd"]),
    ("k", "text COLLATE \"C\"", &["", "a", "B", "ä", "Z", "ab"]),
    ("w", "text COLLATE public.loose", &["", "a", "A", "ab"]),
    ("b", "bool", &["t", "f"]),
    ("p", "bool", &["t", "f"]),
    ("uu", "uuid", &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"]),
    (
        "dt",
        "date",
        &[
            "2026-01-01",
            "2026-11-21",
            "infinity",
            "-infinity",
            "0044-03-15 BC",
            "5874897-12-31",
            "2024-02-29",
        ],
    ),
    ("tm", "time", &["00:00", "04:55:30.5", "24:00:00", "23:59:59.999999"]),
    (
        "ts",
        "timestamp",
        &[
            "2026-01-01 00:00",
            "2026-11-21 04:55:30.123456",
            "infinity",
            "0001-12-31 23:59:59 BC",
            "294276-12-31 23:59:59.999999",
        ],
    ),
    (
        "tz",
        "timestamptz",
        &["2026-01-01 00:00+00", "2026-11-21 04:55:30.5+00", "-infinity", "12026-01-01 00:00+00"],
    ),
    ("by", "bytea", &["\\x", "\\x00", "\\x00ff", "\\xff", "\\x41"]),
    ("mood", "public.mood", &["sad", "ok", "it's", "NULL"]),
    ("ia", "int4[]", &["{}", "{1}", "{1,2}", "{1,NULL}", "[0:1]={1,2}", "{{1,2},{3,4}}"]),
    ("ta", "text[]", &["{}", "{a,b}", "{a,NULL}", "{\"NULL\",\"a b\",\"\\\"\"}", "{\"\"}"]),
    ("na", "numeric[]", &["{1.0,NaN}", "{1}", "{}"]),
    (
        "js",
        "json",
        &[
            "{\"a\": 1.0, \"a\": \"x\", \"b\": [1, {\"c\": null}]}",
            " [1, \"a\", null, {\"a\":2}] ",
            "5",
            "\"a\"",
            "null",
            "{\"a\": \"\\u00e4\\n\"}",
            "{\"b\": \"\\u0000\", \"a\": \"1\"}",
            "{\"a\": \" 12 \"}",
            "{}",
            "[]",
        ],
    ),
    (
        "jb",
        "jsonb",
        &[
            "{\"a\": 1.0, \"b\": [1, {\"c\": null}], \"n\": 7}",
            "[1, \"a\", null, {\"a\": 2}]",
            "5",
            "\"a\"",
            "null",
            "{\"a\": \"\\u00e4\\n\\\"\"}",
            "{\"a\": null, \"n\": \"x\"}",
            "{\"a\": {\"b\": \"c\", \"d\": \"}\"}}",
            "{\"n\": \"12\"}",
            "{}",
            "[]",
            "{\"a\": true, \"\": 1}",
        ],
    ),
    ("dom", "public.positive", &["1", "10"]),
    ("pt", "point", &["(1,2)"]),
    ("iv", "interval", &["1 day", "-1 mon 3 days 04:05:06.7", "0"]),
    ("nw", "inet", &["10.1.2.3", "192.168.0.0/24", "::1"]),
    ("bt", "bit(3)", &["101", "000"]),
    ("ch", "\"char\"", &["a", ""]),
    ("nm", "name", &["a", "abc"]),
    ("rg", "int4range", &["[1,10)", "empty", "(,5)"]),
    ("xm", "xml", &["<a/>"]),
    ("zt", "timetz", &["04:55:30+02", "24:00:00-08"]),
    ("mo", "money", &["1000", "-0.5"]),
    ("ma", "public.mood[]", &["{sad,ok}", "{it's,NULL}", "{}"]),
    ("dt2", "public.word", &["a", "EU"]),
    ("ci", "public.citext", &["a", "A", "b"]),
    ("cd", "public.loud", &["a", "A", "b"]),
];

const SETUP: &str = "\
    CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'it''s', 'NULL'); \
    CREATE EXTENSION citext SCHEMA public; \
    CREATE DOMAIN public.loud AS public.citext; \
    CREATE DOMAIN public.word AS varchar(10) CHECK (VALUE <> ''); \
    CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0); \
    CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
    CREATE FUNCTION public.judge(condition text, id integer) RETURNS text LANGUAGE plpgsql AS $$ \
    DECLARE result boolean; \
    BEGIN \
      EXECUTE 'SELECT (' || condition || E'\\n) AND true FROM public.zoo WHERE \"row\" = ' || id INTO result; \
      RETURN result::text; \
    EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; \
    END $$";

const ROWS: usize = 60;
const CONDITIONS: usize = 3000;

/// Conditions that once mattered, or that chance is unlikely to make.
const PINNED: &[&str] = &[
    "f4 = 0.1",
    "f4 IN (0.1, 0.2)",
    "f4 = ANY (ARRAY[0.1, 0.2])",
    "i4 = ANY (ARRAY['1', '2'])",
    "i2 = 100000",
    "i4 = '1'",
    "i4 IN (1, 2.5, 3000000000)",
    "i8 = -9223372036854775808",
    "i4 = -2147483648",
    "-i2 > 0",
    "- i4 % 3 = 1",
    "i4 - -1 = 2",
    "i4 -1 = 0",
    "i4*-1 = 1",
    "abs(i4) > 0",
    "i8 % -1 = 0",
    "i8 / -1 > 0",
    "n = 1",
    "n * 0 = 0",
    "n % 0.3 = 0",
    "n + 0.1 = 0.2",
    "f8::numeric = 1",
    "n::int8 > 0",
    "n::float8 = f8",
    "f8::int4 = 2",
    "f4::float8 = f8",
    "f8::float4 = f4",
    "t::int = 1",
    "t::numeric = 1.5",
    "t::bool",
    "b::int = 1",
    "i4::bool",
    "n::text = '1.50'",
    "b::text = 'true'",
    "c = 'a'",
    "c = 'a   '",
    "c::text = 'a'",
    "c IN ('a', 'a b')",
    "c = u",
    "v = 'a' OR v = t",
    "v IN ('a', 'EU')",
    "v || 'x' = 'ax'",
    "t || u = 'aa'",
    "t COLLATE \"C\" < 'b'",
    "k < 'b'",
    "k < u",
    "k = u",
    "w = 'A'",
    "w = u",
    "w COLLATE \"C\" = 'A'",
    "t LIKE 'a%'",
    "t LIKE '%\\%%'",
    "t LIKE 'a!%_' ESCAPE '!'",
    "t LIKE '_'",
    "t LIKE 'a\\\\b'",
    "t LIKE 'a\\b' ESCAPE ''",
    "w LIKE 'a%'",
    "length(t) = 1",
    "length(c) = 1",
    "uu = 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
    "uu < '10000000-0000-0000-0000-000000000000'",
    "uu::text = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "dt = '2026-01-01'",
    "dt >= ts",
    "ts >= dt",
    "dt::timestamp = ts",
    "ts::date = dt",
    "ts::date = '0001-12-31 BC'",
    "dt < tz",
    "tz >= '2026-01-01 01:00:00+01'",
    "tz >= '2026-01-01'",
    "ts < 'infinity'",
    "tm = '04:55:30.5'",
    "tm >= '23:59'",
    "by = '\\x00FF'",
    "by > '\\x00'",
    "mood = 'ok'",
    "mood > 'ok'",
    "mood BETWEEN 'sad' AND 'ok'",
    "mood IN ('sad', 'ok')",
    "mood = ANY ('{sad,ok}')",
    "mood = ANY (ARRAY['sad', 'ok'])",
    "mood = ANY (ARRAY['sad', 'ok']::public.mood[])",
    "mood = 'sad'::public.mood",
    "mood::text = 'ok'",
    "ia = '{1,2}'",
    "ia = ARRAY[1, 2]",
    "ia <> ARRAY[1, NULL]",
    "1 = ANY (ia)",
    "i4 = ANY (ia)",
    "i8 = ANY (ia)",
    "i4 <> ALL (ia)",
    "NULL = ANY (ia)",
    "i4 = ANY (NULL)",
    "t = ANY (ta)",
    "ta = '{a,b}'",
    "'NULL' = ANY (ta)",
    "n = ANY (na)",
    "1 = ANY (na)",
    "na = '{1}'",
    "js->'a' IS NULL",
    "js->>'a' = 'x'",
    "js->'b'->1->>'c' IS NULL",
    "js->0 IS NULL",
    "js->>-1 = '{\"a\":2}'",
    "jb->0 IS NOT NULL",
    "jb->>0 = '5'",
    "jb->-1 IS NOT NULL",
    "jb->>1 = 'a'",
    "jb->-2->>0 = 'a'",
    "jb->>'a' = '1.0'",
    "jb->'a'->>'d' = '}'",
    "jb->>'' = '1'",
    "jb->'b' IS NOT NULL AND jb->'b'->1->>'c' IS NULL",
    "(jb->>'n')::int > 5",
    "jb->>'n' = '12' OR jb->>u = 'c'",
    "jb->i4 IS NULL",
    "jb->i2 IS NULL",
    "jb->i8 IS NULL",
    "jb::text = '{}'",
    "js::text = '[]'",
    "dom = 1",
    "dom IN (1, 2)",
    "dom + 1 > 2",
    "coalesce(dom, 1) = 1",
    "pt IS NULL",
    "iv > '1 day'",
    "nw << '10.0.0.0/8'",
    "bt = B'101'",
    "bt = '101'",
    "ch = 'a'",
    "nm = 'a' OR nm < u",
    "rg @> 5",
    "xm IS NULL OR xm::text = '<a/>'",
    "zt > '04:00+00'",
    "mo > '1'::money",
    "'ok' = ANY (ma)",
    "mood = ANY (ma)",
    "ma = '{sad,ok}'",
    "dt2 = 'a'",
    "ci = 'A'",
    "ci IN ('A', 'x')",
    "cd = 'A'",
    "ci LIKE 'A%'",
    "dt2 LIKE 'E%'",
    "dt2 = t OR dt2 || 'x' = 'ax'",
    "length(dt2) = 1",
    "dt2 IN ('a', 'b')",
    "jb @> '{\"a\": 1}'",
    "jb ? 'a'",
    "jb = '{}'",
    "t ~ '^a'",
    "lower(t) = 'a' AND upper(u) = 'A'",
    "t ILIKE 'A%'",
    "t < u",
    "n / 3 > 0.3",
    "(i4, j4) = (1, 2)",
    "ia[1] = 1",
    "extract(year FROM ts) = 2026",
    "t = E'a\\\\b'",
    "t = $$a$$",
    "tz = ts",
    "f8::text = '0.1'",
    "t::date IS NULL",
    "substring(t FROM 1 FOR 1) = 'a'",
    "i4 = 1 -- the end",
    "pt IS NOT NULL AND b",
    "b IS UNKNOWN",
    "b IS NOT FALSE",
    "b = p",
    "b < p",
    "b AND NOT p OR i4 = 1",
    "NOT b = p",
    "NOT b IS NULL",
    "b IS NULL = p",
    "b IS DISTINCT FROM p",
    "i4 IS DISTINCT FROM NULL",
    "i4 IS NOT DISTINCT FROM j4",
    "n IS DISTINCT FROM 'NaN'",
    "i4 BETWEEN SYMMETRIC 2 AND 1",
    "i4 NOT BETWEEN SYMMETRIC j4 AND 1",
    "i4 NOT BETWEEN j4 AND 1",
    "'a' BETWEEN k AND u",
    "CASE WHEN i4 <> 0 THEN 1 / i4 > 0 ELSE NULL END",
    "CASE i4 WHEN 1 THEN 'a' WHEN j4 THEN t ELSE u END = 'a'",
    "CASE WHEN b THEN i2 ELSE n END = 1",
    "CASE WHEN b THEN 1 ELSE f4 END = 1.5",
    "coalesce(i4, 0.5) = 0.5",
    "coalesce(f4, 0.1) = 0.1",
    "coalesce(NULL, t, 'x') = 'x'",
    "nullif(i2, 1) IS NULL",
    "nullif(i4, 1.0) * 1.5 = 3",
    "nullif(t, 'a') = 'ab'",
    "nullif(f4, 0.1) = 0.1",
    "1 / i4 = NULL",
    "1 / i4 > 0 AND false",
    "i4 <> 0 AND 1 / i4 >= 0",
    "i4 = 0 OR 1 / i4 >= 0",
    "i4 IN (1, j4, 2)",
    "i4 NOT IN (1, NULL)",
    "i4 IN (NULL, 1 / j4)",
    "i4 IN (5, 1, 3, 2147483647, 7, -1, 9, 11, 0, 13)",
    "i8 NOT IN (5, 1, 3, 3000000000, 7, -1, 9, 11, 0, NULL)",
    "t IN ('z', 'abc', 'a', 'y', 'x', 'äöü', 'w', '1', 'v', '', NULL)",
    "n NOT IN (5, 1.0, 3, 'NaN', 7, -1.5, 9, 11, 0, 10, 12)",
    "dt IN ('2026-01-01', '2025-01-01', '2024-01-01', '2023-01-01', 'infinity', '2021-01-01', '2020-01-01', '2019-01-01', '2018-01-01')",
    "t IN ('a', 'b') AND t NOT IN ('a')",
    "zoo.i4 = 1",
    "\"i4\" = 1 /* a /* nested */ comment */",
    "(((i4)) = (1))",
    "i4 + j4 * 2 - 1 > i2",
    "i4 = 1::int8",
    "i4 = CAST('1' AS int2)",
    "dt = date '2026-11-21'",
    "t = 'it''s'",
    "f8 / 0 > 1",
    "f8 * 1e308 > 1",
    "f4 * f4 > 1",
    "f4 + i4 > 1",
    "f8 - 0.1 < n",
    "1e3 = i4",
    ".5 < n",
    "true",
    "NULL",
    "'t'",
];

/// A generator of conditions.
struct Dice(StdRng);

impl Dice {
    fn of<'v>(&mut self, choices: &[&'v str]) -> &'v str {
        choices.choose(&mut self.0).expect("choices")
    }

    fn one_in(&mut self, sides: u32) -> bool {
        self.0.random_ratio(1, sides)
    }

    /// In parentheses, most of the time.
    fn wrap(&mut self, text: String) -> String {
        if self.one_in(6) { text } else { format!("({text})") }
    }

    fn condition(&mut self, depth: u32) -> String {
        if depth == 0 || self.one_in(4) {
            return self.test();
        }
        let deeper = depth - 1;
        match self.0.random_range(0..12) {
            0..=3 => {
                let (left, right) = (self.condition(deeper), self.condition(deeper));
                let (left, right) = (self.wrap(left), self.wrap(right));
                format!("{left} {} {right}", self.of(&["AND", "OR"]))
            }
            4 | 5 => {
                let inner = self.condition(deeper);
                format!("NOT {}", self.wrap(inner))
            }
            6 => {
                let inner = self.condition(deeper);
                let test =
                    self.of(&["IS TRUE", "IS NOT TRUE", "IS FALSE", "IS NOT FALSE", "IS UNKNOWN", "IS NULL"]);
                format!("{} {test}", self.wrap(inner))
            }
            7 => {
                let (when, then, otherwise) = (self.condition(deeper), self.test(), self.test());
                format!("CASE WHEN {when} THEN {then} ELSE {otherwise} END")
            }
            8 => {
                let (left, right) = (self.condition(deeper), self.condition(deeper));
                let op = self.of(&["=", "<>", "IS DISTINCT FROM"]);
                format!("({left}) {op} ({right})")
            }
            _ => self.test(),
        }
    }

    /// Operands and operators one after the other, hardly a parenthesis: much of it is no SQL, and what is
    /// asks for PostgreSQL's precedence.
    fn chain(&mut self) -> String {
        let operands = &[
            "i4",
            "j4",
            "b",
            "p",
            "t",
            "u",
            "1",
            "0",
            "'1'",
            "'a'",
            "NULL",
            "true",
            "-1",
            "- j4",
            "i4::text",
            "NOT b",
            "- i4::int8",
            "CAST(t AS varchar)",
            "NOT b IS NULL",
            "(i4 = 1)",
            "jb",
            "n",
            "1.5",
            "'a'::text",
            "CASE WHEN b THEN 1 END",
            "jb -> 'a'",
            "f8",
            "k COLLATE \"C\"",
        ];
        let operators = &[
            "=",
            "=",
            "<>",
            "<",
            ">=",
            "!=",
            "AND",
            "AND",
            "OR",
            "OR",
            "+",
            "-",
            "*",
            "/",
            "%",
            "||",
            "->",
            "->>",
            "IS DISTINCT FROM",
            "IS NOT DISTINCT FROM",
            "LIKE",
            "NOT LIKE",
            "AND NOT",
            "OR NOT",
            "= ANY (ia) AND",
        ];
        let postfixes = &[
            "IS NULL",
            "IS TRUE",
            "IS NOT FALSE",
            "NOTNULL",
            "IN (1, 2)",
            "NOT IN (1)",
            "BETWEEN 0 AND 2",
            "NOT BETWEEN j4 AND 1",
            "LIKE '1'",
            "::text",
            "::bool",
            "= 1",
            "IS UNKNOWN",
        ];
        let spaces = &[" ", " ", " ", "  ", "", "\t", "\n", "/**/"];
        let mut text = String::new();
        for at in 0..self.0.random_range(1..6) {
            if at > 0 {
                text += self.of(spaces);
                text += self.of(operators);
                text += self.of(spaces);
            }
            text += self.of(operands);
            if self.one_in(4) {
                text += self.of(spaces);
                text += self.of(postfixes);
            }
        }
        text
    }

    fn test(&mut self) -> String {
        let comparison = ["=", "<>", "!=", "<", "<=", ">", ">="];
        let kind = self.of(&[
            "number", "number", "number", "text", "text", "c", "bool", "uuid", "moment", "bytea", "mood",
            "array", "json", "json",
        ]);
        match kind {
            "c" => format!("c {} {}", self.of(&["=", "<>"]), self.of(&["'a'", "'a '", "c", "''"])),
            "bool" => self.of(&["b", "p", "NOT b", "b = p", "b < p", "b IS NOT TRUE"]).to_owned(),
            "uuid" => {
                let op = self.of(&comparison);
                format!("uu {op} '{}'", self.of(COLUMNS[16].2))
            }
            "bytea" => {
                let op = self.of(&comparison);
                format!("by {op} '{}'", self.of(COLUMNS[21].2))
            }
            "mood" => {
                let op = self.of(&comparison);
                let label = self.of(&["'sad'", "'ok'", "'it''s'", "'NULL'", "NULL", "mood"]);
                format!("mood {op} {label}")
            }
            "moment" => {
                let (column, literals): (&str, &[&str]) =
                    *[
                        (
                            "dt",
                            &[
                                "'2026-01-01'",
                                "'infinity'",
                                "dt",
                                "ts",
                                "'2024-02-29'::date",
                                "dt::timestamp",
                            ][..],
                        ),
                        (
                            "ts",
                            &["'2026-01-01'", "'2026-11-21 04:55:30.123456'", "dt", "ts", "'-infinity'"][..],
                        ),
                        (
                            "tz",
                            &["'2026-01-01'", "'2026-11-21T05:55:30.5+01'", "'2026-01-01 00:00Z'", "tz"][..],
                        ),
                        ("tm", &["'00:00'", "'04:55:30.5'", "tm", "time '23:59:59'"][..]),
                    ]
                    .choose(&mut self.0)
                    .expect("choices");
                let op = self.of(&comparison);
                match self.0.random_range(0..4) {
                    0 => format!("{column} BETWEEN {} AND {}", self.of(literals), self.of(literals)),
                    1 => format!("{column} IN ({}, {})", self.of(literals), self.of(literals)),
                    _ => format!("{column} {op} {}", self.of(literals)),
                }
            }
            "array" => self
                .of(&[
                    "ia = '{1,2}'",
                    "ia <> ARRAY[1]",
                    "i4 = ANY (ia)",
                    "i2 > ALL (ia)",
                    "t = ANY (ta)",
                    "u <> ALL (ta)",
                    "ta = ARRAY['a', 'b']",
                    "ta <> '{a,b}'",
                    "n = ANY (na)",
                    "na = na",
                    "i4 = ANY (ARRAY[j4, 1, i2])",
                    "i4 = ANY ('{1,10,NULL}')",
                    "i8 <> ALL (ARRAY[1, 2])",
                    "t = ANY ('{a,ab,NULL}')",
                    "i4 < ANY (ARRAY[1, 2.5])",
                ])
                .to_owned(),
            "json" => {
                let document = self.of(&["js", "jb", "jb"]);
                let path =
                    self.of(&["'a'", "'b'", "'n'", "0", "-1", "1", "u", "'b'->1", "'a'->'b'", "3->'a'"]);
                let value = self.of(&["'1.0'", "'x'", "'a'", "'1'", "'7'", "'ä\n'", "NULL", "t"]);
                match self.0.random_range(0..5) {
                    0 => format!("{document}->{path} IS NULL"),
                    1 => format!("{document}->'b'->>{} IS NOT NULL", self.of(&["0", "1", "'c'", "-1"])),
                    2 => format!(
                        "({document}->>{})::int > {}",
                        self.of(&["'n'", "'a'", "0"]),
                        self.of(&["5", "i4"])
                    ),
                    3 => format!("{document}->'b'->{}->>'c' IS NULL", self.of(&["0", "1", "'c'"])),
                    _ => format!("{document}->>{} = {value}", self.of(&["'a'", "'n'", "0", "1", "-1", "u"])),
                }
            }
            "text" => self.text_test(),
            _ => self.number_test(),
        }
    }

    fn text_test(&mut self) -> String {
        let left = self.text(1);
        match self.0.random_range(0..8) {
            0 | 1 => {
                let pattern = self.of(&[
                    "'a%'", "'%b'", "'_'", "'a\\%b'", "'%a%'", "''", "'%'", "'a_'", "'__ü'", "NULL", "'A%'",
                ]);
                format!("{left} {} {pattern}", self.of(&["LIKE", "NOT LIKE"]))
            }
            2 => {
                let items: Vec<String> = (0..3).map(|_| self.text(0)).collect();
                format!("{left} {} ({})", self.of(&["IN", "NOT IN"]), items.join(", "))
            }
            3 => format!("({left}) COLLATE \"C\" {} {}", self.of(&["<", ">=", "="]), self.text(0)),
            4 => format!("k {} {}", self.of(&["<", ">=", "="]), self.text(0)),
            5 => format!("{left} IS {} {}", self.of(&["DISTINCT FROM", "NOT DISTINCT FROM"]), self.text(0)),
            6 => format!("{left} IS NULL"),
            _ => format!("{left} {} {}", self.of(&["=", "<>"]), self.text(1)),
        }
    }

    fn text(&mut self, depth: u32) -> String {
        if depth > 0 && self.one_in(3) {
            let (left, right) = (self.text(depth - 1), self.text(depth - 1));
            return match self.0.random_range(0..6) {
                0 => format!("({left} || {right})"),
                1 => format!("coalesce({left}, {right})"),
                2 => format!("nullif({left}, {right})"),
                3 => format!("CASE WHEN {} THEN {left} ELSE {right} END", self.of(&["b", "p", "i4 > 1"])),
                4 => format!("{}::text", self.of(&["i4", "b", "n", "m", "uu", "c", "jb", "js", "i8"])),
                _ => format!("({left})::varchar"),
            };
        }
        match self.0.random_range(0..5) {
            0 => format!("'{}'", self.of(&["a", "ab", "EU", "", "äöü", "1", "NULL", " a "])),
            1 => self.of(&["NULL", "u", "v"]).to_owned(),
            2 => self.of(&["v", "k", "u"]).to_owned(),
            _ => self.of(&["t", "u"]).to_owned(),
        }
    }

    fn number_test(&mut self) -> String {
        let left = self.number(2);
        match self.0.random_range(0..8) {
            0 => {
                let items: Vec<String> = (0..3).map(|_| self.number(0)).collect();
                format!("{left} {} ({})", self.of(&["IN", "NOT IN"]), items.join(", "))
            }
            1 => {
                let between = self.of(&["BETWEEN", "NOT BETWEEN", "BETWEEN SYMMETRIC"]);
                format!("{left} {between} {} AND {}", self.number(0), self.number(1))
            }
            2 => format!("{left} IS {} {}", self.of(&["DISTINCT FROM", "NOT DISTINCT FROM"]), self.number(1)),
            3 => {
                let op = self.of(&["= ANY", "<> ALL", "< ANY", ">= ALL"]);
                format!("{left} {op} (ARRAY[{}, {}])", self.number(0), self.number(0))
            }
            _ => {
                let op = self.of(&["=", "<>", "<", "<=", ">", ">=", "="]);
                format!("{left} {op} {}", self.number(2))
            }
        }
    }

    fn number(&mut self, depth: u32) -> String {
        if depth > 0 && self.one_in(2) {
            let deeper = depth - 1;
            // The left side is a column, so that nothing fails before a row is read.
            let left = self.of(&["i2", "i4", "j4", "i8", "n", "m", "f4", "f8", "dom"]).to_owned();
            let right = self.number(deeper);
            let right = if right.starts_with('-') { format!("({right})") } else { right };
            return match self.0.random_range(0..12) {
                0..=4 => {
                    let op = self.of(&["+", "-", "*", "/", "%", "+", "-", "*"]);
                    let text = format!("{left} {op} {right}");
                    self.wrap(text)
                }
                5 => format!("(-{left})"),
                6 => format!("abs({left})"),
                7 => format!("coalesce({left}, {right})"),
                8 => format!("nullif({left}, {right})"),
                9 => format!("CASE WHEN {} THEN {left} ELSE {right} END", self.of(&["b", "p", "i4 > 1"])),
                10 => {
                    let target = self
                        .of(&["int2", "int4", "int8", "numeric", "float8", "float4", "integer", "bigint"]);
                    format!("{left}::{target}")
                }
                _ => format!(
                    "CAST({} AS {})",
                    self.of(&["t", "u", "left"]).replace("left", &left),
                    self.of(&["int", "numeric"])
                ),
            };
        }
        match self.0.random_range(0..5) {
            0 => self
                .of(&[
                    "0",
                    "1",
                    "-1",
                    "2",
                    "10",
                    "0.1",
                    "1.5",
                    "-1.50",
                    "3000000000",
                    "99999999999999999999.5",
                ])
                .to_owned(),
            1 => self.of(&["'1'", "NULL", "'10'", "1.0", "1e1", "32767"]).to_owned(),
            _ => self
                .of(&["i2", "i4", "j4", "i8", "n", "m", "f4", "f8", "i4", "n", "dom", "length(t)"])
                .to_owned(),
        }
    }
}

/// What PostgreSQL says of a condition and a row.
#[derive(Clone, Debug, PartialEq)]
enum Judgement {
    Is(Option<bool>),
    Error(String),
}

#[derive(Default, Debug)]
struct Counts {
    own: usize,
    server: usize,
    invalid: usize,
    judgements: usize,
    passes: usize,
    errors: usize,
    decided_without_a_cell: usize,
}

struct Zoo {
    relation: Relation,
    types: TypeCatalog,
    enums: EnumLabels,
    facts: TableFacts,
    rows: Vec<Vec<Option<String>>>,
}

#[tokio::test]
async fn every_condition_agrees_with_the_server() {
    in_own_database("filters", SESSION, |client| async move {
        let seed = std::env::var("WALGATE_FILTER_SEED")
            .map(|seed| seed.parse().expect("WALGATE_FILTER_SEED is a number"))
            .unwrap_or_else(|_| {
                u64::from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos())
            });
        let conditions: usize = std::env::var("WALGATE_FILTER_CONDITIONS")
            .map_or(CONDITIONS, |number| number.parse().expect("WALGATE_FILTER_CONDITIONS is a number"));
        println!("WALGATE_FILTER_SEED={seed}");
        let mut dice = Dice(StdRng::seed_from_u64(seed));
        let zoo = fill(&client, &mut dice).await;
        let mut counts = Counts::default();
        let mut faults = Vec::new();
        for condition in PINNED {
            compare(&client, &zoo, condition, &mut dice, &mut counts, &mut faults).await;
        }
        for _ in 0..conditions {
            let condition = if dice.one_in(4) { dice.chain() } else { dice.condition(3) };
            compare(&client, &zoo, &condition, &mut dice, &mut counts, &mut faults).await;
        }
        println!("{counts:?}");
        let shown = faults.len().min(40);
        assert!(faults.is_empty(), "seed {seed}: {} faults:\n{}", faults.len(), faults[..shown].join("\n"));
        assert!(
            counts.own * 10 > (counts.own + counts.server) * 6,
            "too much goes to the server: {counts:?}"
        );
        assert!(counts.passes * 20 > counts.judgements, "hardly a row passes: {counts:?}");
        assert!(counts.errors > 0 && counts.decided_without_a_cell > 0, "{counts:?}");
    })
    .await;
}

async fn compare(
    client: &Client,
    zoo: &Zoo,
    condition: &str,
    dice: &mut Dice,
    counts: &mut Counts,
    faults: &mut Vec<String>,
) {
    let judgements = judge(client, condition).await;
    // What PostgreSQL does not even plan has the same error for every row.
    let refused_with = |is_such: &dyn Fn(&str) -> bool| {
        judgements.iter().all(|judgement| matches!(judgement, Judgement::Error(code) if is_such(code)))
    };
    let is_invalid = refused_with(&|code| code.starts_with("42"));
    // A constant that cannot be read is refused by PostgreSQL at once; Walgate may fail with each row.
    let is_unreadable = refused_with(&|code| code == "22P02" || code == "22007");
    let filter = match Filter::compile(condition, &zoo.relation, &zoo.types, &zoo.enums, &zoo.facts) {
        Ok(filter) => filter,
        Err(_) if is_invalid || is_unreadable => return counts.invalid += 1,
        Err(error) => return faults.push(format!("{condition}: refused: {error}")),
    };
    if is_invalid || (is_unreadable && filter.evaluator() == Evaluator::Server) {
        counts.invalid += 1;
        if filter.evaluator() == Evaluator::Own {
            faults.push(format!("{condition}: PostgreSQL refuses it with {:?}", judgements[0]));
        }
        return;
    }
    counts.judgements += judgements.len();
    if filter.evaluator() == Evaluator::Server {
        counts.server += 1;
        if let Err(fault) = compare_server(client, zoo, &filter, &judgements).await {
            faults.push(format!("{condition} ({:?}): {fault}", filter.why_server()));
        }
        return;
    }
    counts.own += 1;
    if dice.one_in(20)
        && let Err(fault) = compare_server(client, zoo, &filter, &judgements).await
    {
        faults.push(format!("{condition} (as if by the server): {fault}"));
    }
    for (row, judgement) in zoo.rows.iter().zip(&judgements) {
        let mut cells = cells(row);
        let verdict = filter.evaluate(&cells);
        counts.passes += usize::from(verdict == Ok(Verdict::Pass));
        counts.errors += usize::from(verdict.is_err());
        if !agrees(verdict, judgement) {
            let used: Vec<_> = filter.columns().iter().map(|&at| (COLUMNS[at].0, &row[at])).collect();
            faults.push(format!("{condition}: {verdict:?}, PostgreSQL {judgement:?}: {used:?}"));
            return;
        }
        // A value that was not sent is never NULL.
        let Some(&hidden) = filter.columns().choose(&mut dice.0) else { continue };
        if row[hidden].is_none() {
            continue;
        }
        cells[hidden] = Value::Unchanged;
        match (filter.evaluate(&cells), judgement) {
            (Ok(Verdict::Unknown(at)), _) if at == hidden => {}
            (Ok(blind), Judgement::Is(_)) => {
                counts.decided_without_a_cell += 1;
                if !agrees(Ok(blind), judgement) {
                    faults.push(format!(
                        "{condition}: {blind:?} without {}, is {judgement:?}",
                        COLUMNS[hidden].0
                    ));
                    return;
                }
            }
            (Err(_), Judgement::Error(_)) | (Ok(Verdict::Fail | Verdict::Pass), Judgement::Error(_)) => {}
            (blind, _) => {
                faults
                    .push(format!("{condition}: {blind:?} without {}, is {judgement:?}", COLUMNS[hidden].0));
                return;
            }
        }
    }
}

fn agrees(verdict: Result<Verdict, EvalError>, judgement: &Judgement) -> bool {
    match (verdict, judgement) {
        (Ok(Verdict::Pass), Judgement::Is(Some(true))) => true,
        (Ok(Verdict::Fail), Judgement::Is(Some(false) | None)) => true,
        (Err(error), Judgement::Error(code)) => match error {
            EvalError::DivisionByZero => code == "22012",
            EvalError::OutOfRange { .. } => code == "22003" || code == "22008",
            EvalError::InvalidText { .. } => code == "22P02",
            EvalError::NotFinite { .. } => code == "0A000",
            EvalError::JsonEscape => code == "22P05" || code == "22P02",
            _ => false,
        },
        _ => false,
    }
}

async fn compare_server(
    client: &Client,
    zoo: &Zoo,
    filter: &Filter,
    judgements: &[Judgement],
) -> Result<(), String> {
    let column = |at: usize| zoo.rows.iter().map(|row| row[at].clone()).collect::<Vec<_>>();
    let mut arrays: Vec<Vec<Option<String>>> = filter.columns().iter().map(|&at| column(at)).collect();
    if arrays.is_empty() {
        arrays.push(vec![None; zoo.rows.len()]);
    }
    let parameters: Vec<_> =
        arrays.iter().map(|array| array as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let has_error = judgements.iter().any(|judgement| matches!(judgement, Judgement::Error(_)));
    let statement = filter.server_statement();
    let search_path = format!("SET search_path = {}", filter.search_path());
    client.batch_execute(&search_path).await.expect("the search path is set");
    let outcome = client.query(&statement, &parameters).await;
    client.batch_execute("RESET search_path").await.expect("the search path is reset");
    match outcome {
        Err(error) if has_error && error.code().is_some() => Ok(()),
        Err(error) => Err(format!("{error:?}: {statement}")),
        Ok(_) if has_error => Err("the statement did not raise the error".to_owned()),
        Ok(rows) => {
            let found: Vec<_> = rows.iter().map(|row| Judgement::Is(row.get(0))).collect();
            let differing = found.iter().zip(judgements).position(|(found, judged)| found != judged);
            match differing {
                _ if found.len() != judgements.len() => Err(format!("{} rows", found.len())),
                Some(at) => Err(format!("row {at}: {:?}, not {:?}", found[at], judgements[at])),
                None => Ok(()),
            }
        }
    }
}

async fn judge(client: &Client, condition: &str) -> Vec<Judgement> {
    let sql = format!("SELECT ({condition}\n) AND true FROM public.zoo ORDER BY \"row\"");
    if let Ok(messages) = client.simple_query(&sql).await {
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => match row.get(0) {
                None => Some(Judgement::Is(None)),
                Some("t") => Some(Judgement::Is(Some(true))),
                Some("f") => Some(Judgement::Is(Some(false))),
                Some(other) => Some(Judgement::Error(format!("42804 {other}"))),
            },
            _ => None,
        };
        return messages.iter().filter_map(row).collect();
    }
    let sql = "SELECT public.judge($1, \"row\") FROM public.zoo ORDER BY \"row\"";
    let rows = client.query(sql, &[&condition]).await.expect("judge catches every error");
    let judgement = |text: Option<String>| match text.as_deref() {
        None => Judgement::Is(None),
        Some("true") => Judgement::Is(Some(true)),
        Some("false") => Judgement::Is(Some(false)),
        Some(code) => Judgement::Error(code.to_owned()),
    };
    rows.iter().map(|row| judgement(row.get(0))).collect()
}

fn cells(row: &[Option<String>]) -> Vec<Value<'_>> {
    row.iter().map(|cell| cell.as_ref().map_or(Value::Null, |text| Value::Text(text.as_bytes()))).collect()
}

async fn fill(client: &Client, dice: &mut Dice) -> Zoo {
    client.batch_execute(SETUP).await.expect("the types are made");
    let columns: Vec<String> = COLUMNS.iter().map(|(name, ty, _)| format!("{name} {ty}")).collect();
    let mut sql = format!("CREATE TABLE public.zoo (\"row\" integer, {});", columns.join(", "));
    for row in 0..ROWS {
        let values: Vec<String> = COLUMNS
            .iter()
            .map(|(_, _, values)| {
                if dice.one_in(8) {
                    "NULL".to_owned()
                } else {
                    format!("'{}'", dice.of(values).replace('\'', "''"))
                }
            })
            .collect();
        let _ = write!(sql, "INSERT INTO public.zoo VALUES ({row}, {});", values.join(", "));
    }
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}"));
    let mut zoo = Zoo {
        relation: Relation {
            oid: 0,
            namespace: "public".to_owned(),
            name: "zoo".to_owned(),
            replica_identity: ReplicaIdentity::Full,
            columns: Vec::new(),
        },
        types: TypeCatalog::builtin(),
        enums: EnumLabels::default(),
        facts: TableFacts::default(),
        rows: Vec::new(),
    };
    let sql = "SELECT attname::text, atttypid, atttypmod, attrelid FROM pg_attribute \
               WHERE attrelid = 'public.zoo'::regclass AND attnum > 1 ORDER BY attnum";
    for row in client.query(sql, &[]).await.expect("the columns are read") {
        zoo.relation.oid = row.get(3);
        zoo.relation.columns.push(RelationColumn {
            key: true,
            name: row.get(0),
            type_oid: row.get(1),
            type_modifier: row.get(2),
        });
    }
    zoo.types.extend(oracle::types(client).await);
    for row in client.query(EnumLabels::QUERY, &[]).await.expect("the labels are read") {
        zoo.enums.insert(row.get(0), row.get(1));
    }
    for row in client.query(TableFacts::QUERY, &[&zoo.relation.oid]).await.expect("the facts are read") {
        let collation = row.get::<_, Option<String>>(3).map(|name| Collation {
            namespace: row.get(2),
            name,
            is_deterministic: row.get(4),
        });
        zoo.facts.add(row.get(0), row.get(1), collation);
    }
    for message in
        client.simple_query("SELECT * FROM public.zoo ORDER BY \"row\"").await.expect("the rows are read")
    {
        let SimpleQueryMessage::Row(row) = message else { continue };
        zoo.rows.push((1..row.len()).map(|at| row.get(at).map(str::to_owned)).collect());
    }
    zoo
}

#[tokio::test]
async fn the_server_refuses_what_is_not_immutable() {
    in_own_database("immutable", SESSION, |client| async move {
        let zoo = fill(&client, &mut Dice(StdRng::seed_from_u64(1))).await;
        for (condition, is_immutable) in [
            ("i4 = 1 AND t = 'a' AND w = 'a' AND mood = 'ok' AND dom = 1 AND pt IS NULL", true),
            ("t ~ '^a'", true),
            ("true", true),
            ("i4 > length(t) -- comment", true),
            ("t::date = '2026-01-01'", false),
            ("to_char(tz, 'YYYY') = '2026'", false),
            ("dt < tz", false),
            ("no_such_function(i4)", false),
            ("i4 || t", false),
        ] {
            let filter = Filter::compile(condition, &zoo.relation, &zoo.types, &zoo.enums, &zoo.facts)
                .unwrap_or_else(|error| panic!("{condition}: {error}"));
            client.batch_execute("BEGIN").await.expect("a transaction");
            let mut outcome = Ok(());
            for statement in filter.immutability_check() {
                outcome = client.batch_execute(&statement).await;
                if outcome.is_err() {
                    break;
                }
            }
            client.batch_execute("ROLLBACK").await.expect("its end");
            assert_eq!(outcome.is_ok(), is_immutable, "{condition}: {outcome:?}");
        }
    })
    .await;
}
