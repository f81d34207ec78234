//! Types by oracle: PostgreSQL prints a value, Walgate encodes it, and PostgreSQL says what it must be.
//!
//! Each case is a type, an SQL expression over a column `x` of it that gives the expected JSON (`to_json`
//! where DESIGN section 4 and PostgreSQL agree by definition, else built from `encode`, a cast or a
//! condition), and values. The values go through a table, so that the type's OID is that of a column.
//! Needs `WALGATE_TEST_PG_URL`, a superuser's URL; without it the tests fail. Each owns its database.

mod oracle;

use oracle::in_own_database;
use tokio_postgres::{Client, SimpleQueryMessage};
use walgate::route::value::{Kind, Style, TypeCatalog, write_value};

/// The session settings of FIELD_NOTES 2; tokio-postgres sets client_encoding itself.
const SESSION: &str = "-c datestyle=ISO -c intervalstyle=iso_8601 -c extra_float_digits=3 \
                       -c bytea_output=hex -c timezone=UTC -c row_security=off";

const ZOO: &str = r#"
    CREATE EXTENSION hstore;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "great"', 'NULL', '');
    CREATE TYPE pair AS (a integer, "B c" text);
    CREATE TYPE tempo AS RANGE (subtype = float8);
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE DOMAIN very_positive AS positive CHECK (VALUE > 10);
    CREATE DOMAIN price AS numeric(12, 2);
    CREATE DOMAIN tags AS text[];
    CREATE DOMAIN flat AS box;
    CREATE DOMAIN labels AS hstore;
"#;

/// How the expected JSON is compared.
#[derive(Clone, Copy, PartialEq)]
enum Compare {
    /// Byte for byte.
    Bytes,
    /// After parsing, where PostgreSQL puts spaces that we do not.
    Meaning,
}
use Compare::{Bytes, Meaning};

/// A type, the expected JSON as an expression over `x`, how it is compared, and values as SQL expressions.
type Case = (&'static str, &'static str, Compare, &'static [&'static str]);

const AS_JSON: &str = "to_json(x)";
const AS_TEXT: &str = "to_json(x::text)";
const AS_TEXTS: &str = "to_json(x::text[])";
const AS_STORED: &str = r"translate(x::text, E'\n\r', '  ')";
const AS_TIMESTAMP: &str = "CASE WHEN isfinite(x) AND x >= '0001-01-01' AND x < '10000-01-01' \
                            THEN to_json(x) ELSE to_json(x::text) END";
const AS_TIMESTAMPTZ: &str = "CASE WHEN isfinite(x) AND x >= '0001-01-01' AND x < '10000-01-01' \
                              THEN to_json(to_char(x, 'YYYY-MM-DD\"T\"HH24:MI:SS') || \
                              substring(x::text FROM '[.][0-9]+') || 'Z') ELSE to_json(x::text) END";
const AS_BASE64: &str = r"to_json(translate(encode(x, 'base64'), E'\n', ''))";

const TEXTS: &[&str] = &[
    "''",
    "'plain'",
    r#"E'quote " backslash \\ slash / tab \t newline \n return \r'"#,
    r"E'\b\f\x01\x1f\x7f'",
    "'äöü € 😀 \u{2028}'",
    "repeat('0123456789abcdef\"', 1000)",
    "(SELECT string_agg(chr(i), '') FROM generate_series(1, 1000) i)",
];

const NUMERICS: &[&str] = &[
    "0",
    "0.00",
    "19.90",
    "-1e-20",
    "1e130",
    "'NaN'",
    "'Infinity'",
    "'-Infinity'",
    "(repeat('9', 100) || '.' || repeat('1', 30))::numeric",
    "-0.000000000000000000000000000000000001",
];

const MOMENTS: &[&str] = &[
    "'2026-11-21 04:55:30.123456'",
    "'2026-11-21 04:55:30.5'",
    "'0001-01-01 00:00:00.1'",
    "'9999-12-31 23:59:59.999999'",
    "'10000-01-01'",
    "'294276-12-31 23:59:59.999999'",
    "'0044-03-15 12:00:00.25 BC'",
    "'4713-01-01 BC'",
    "'infinity'",
    "'-infinity'",
];

const CASES: &[Case] = &[
    ("boolean", AS_JSON, Bytes, &["true", "false"]),
    ("smallint", AS_JSON, Bytes, &["-32768", "0", "32767"]),
    ("integer", AS_JSON, Bytes, &["-2147483648", "0", "2147483647"]),
    ("bigint", AS_JSON, Bytes, &["-9223372036854775808", "0", "9223372036854775807"]),
    (
        "real",
        AS_JSON,
        Bytes,
        &[
            "0.1",
            "'-0'",
            "1e22",
            "1e-7",
            "'1.17549435e-38'",
            "3.4e38",
            "16777217",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    (
        "double precision",
        AS_JSON,
        Bytes,
        &[
            "0.1",
            "'-0'",
            "1e15",
            "1e16",
            "1e-7",
            "5e-324",
            "1.7976931348623157e308",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    ("numeric", AS_TEXT, Bytes, NUMERICS),
    ("numeric(10, 4)", AS_TEXT, Bytes, &["1", "-0.0001"]),
    ("text", AS_JSON, Bytes, TEXTS),
    ("varchar", AS_JSON, Bytes, TEXTS),
    ("char(8)", AS_JSON, Bytes, &["'a'", "''"]),
    ("name", AS_JSON, Bytes, &["'a\"b'"]),
    ("\"char\"", AS_JSON, Bytes, &["'x'", "''"]),
    (
        "json",
        AS_STORED,
        Bytes,
        &[
            "E'{\"a\" : 1,\\n \\t\"a\":\\r\\n2}\\n'",
            "'null'",
            "' \"x\" '",
            "'1234567890123456789012345678901234567890.10'",
            r#"'{"s":"line\nbreak \u00e9 \ud83d\ude00"}'"#,
            "'[]'",
            "'true'",
            "'-0.0e-5'",
            "(repeat('[', 500) || repeat(']', 500))::json",
        ],
    ),
    (
        "jsonb",
        AS_STORED,
        Bytes,
        &[
            "'{\"k\":1, \"a\":[1,null,{}], \"b\":1234567890123456789012345678901234567890.10}'",
            "'null'",
            "'\"\\n\"'",
            "'[]'",
            "'{}'",
            "'1e3'",
        ],
    ),
    (
        "bytea",
        AS_BASE64,
        Bytes,
        &[
            "''",
            r"'\x00'",
            r"'\xdeadbeef'",
            "(SELECT string_agg(set_byte('\\x00', 0, i % 256), '' ORDER BY i) FROM generate_series(0, 2000) i)",
        ],
    ),
    ("timestamp", AS_TIMESTAMP, Bytes, MOMENTS),
    ("timestamp(0)", AS_TIMESTAMP, Bytes, &["'2026-11-21 04:55:30.6'"]),
    ("timestamptz", AS_TIMESTAMPTZ, Bytes, MOMENTS),
    (
        "timestamptz",
        AS_TIMESTAMPTZ,
        Bytes,
        &["'2026-11-21 04:55:30.5+05:30'", "'1883-11-18 12:00:00.1 America/New_York'"],
    ),
    (
        "date",
        AS_JSON,
        Bytes,
        &[
            "'2026-11-21'",
            "'0001-01-01'",
            "'4713-01-01 BC'",
            "'10000-01-01'",
            "'5874897-12-31'",
            "'infinity'",
            "'-infinity'",
        ],
    ),
    ("time", AS_JSON, Bytes, &["'04:55:30'", "'00:00:00.000001'", "'24:00:00'"]),
    (
        "timetz",
        AS_JSON,
        Bytes,
        &["'04:55:30+02'", "'24:00:00-15:59:59'", "'04:55:30.5-08:30'", "'00:00:00+00'"],
    ),
    (
        "interval",
        AS_JSON,
        Bytes,
        &[
            "'0'",
            "'1 year 2 mons 3 days 04:05:06.7'",
            "'1 year -2 mons 3 days -04:05:06.7'",
            "'-1 year'",
            "'-00:00:00.000001'",
            "'1 day'",
            "'178000000 years'",
            "'1000000:00:00'",
        ],
    ),
    ("uuid", AS_JSON, Bytes, &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
    ("xml", AS_TEXT, Bytes, &["'<a b=\"c\">&amp;é</a>'"]),
    ("money", AS_TEXT, Bytes, &["1000", "-0.5"]),
    ("oid", AS_TEXT, Bytes, &["4294967295"]),
    ("pg_lsn", AS_TEXT, Bytes, &["'16/B374D848'"]),
    ("int2vector", AS_TEXT, Bytes, &["'1 2 3'", "''"]),
    ("oidvector", AS_TEXT, Bytes, &["'1 4294967295'"]),
    ("bit(5)", AS_JSON, Bytes, &["B'10101'"]),
    ("varbit", AS_JSON, Bytes, &["B''", "B'1'"]),
    ("inet", AS_JSON, Bytes, &["'192.168.0.1/24'", "'::1'"]),
    ("cidr", AS_JSON, Bytes, &["'10.0.0.0/8'"]),
    ("macaddr8", AS_JSON, Bytes, &["'08:00:2b:01:02:03:04:05'"]),
    ("tsvector", AS_JSON, Bytes, &[r#"$$'it''s' 'back\\slash':1A,2 "quoted"$$"#]),
    ("tsquery", AS_JSON, Bytes, &["'a & !b | ''it''''s'''"]),
    ("point", AS_JSON, Bytes, &["'(1,2.5)'"]),
    ("polygon", AS_JSON, Bytes, &["'((0,0),(1,1),(1,0))'"]),
    ("int4range", AS_JSON, Bytes, &["'[1,10)'", "'empty'", "'(,)'"]),
    ("tstzrange", AS_TEXT, Bytes, &["'[2026-01-01,)'"]),
    ("int4multirange", AS_JSON, Bytes, &["'{[1,3),[5,7)}'", "'{}'"]),
    ("mood", AS_JSON, Bytes, &["'sad'", "'it''s \"great\"'", "'NULL'", "''"]),
    ("pair", AS_TEXT, Bytes, &["(1, 'a \"b\"')", "(NULL, NULL)"]),
    ("tempo", AS_JSON, Bytes, &["'[0.5,Infinity]'"]),
    ("positive", AS_JSON, Bytes, &["1"]),
    ("very_positive", AS_JSON, Bytes, &["11"]),
    ("price", AS_TEXT, Bytes, &["1.5"]),
    ("tags", AS_JSON, Bytes, &["'{a,NULL,\"NULL\"}'", "'{}'"]),
    ("labels", "hstore_to_json(x::hstore)", Meaning, &["'a=>1'"]),
    ("boolean[]", AS_JSON, Bytes, &["'{t,f,NULL}'", "'{}'"]),
    (
        "integer[]",
        AS_JSON,
        Bytes,
        &["'{{1,2},{3,NULL}}'", "'[0:1]={1,2}'", "'[-2:-1][5:5]={{1},{2}}'", "'{{{{{{1}}}}}}'"],
    ),
    ("bigint[]", AS_JSON, Bytes, &["'{9223372036854775807}'"]),
    ("float8[]", AS_JSON, Bytes, &["'{1e22,NaN,-Infinity,-0}'"]),
    ("numeric[]", AS_TEXTS, Bytes, &["'{1.0,1.00,NaN,NULL}'"]),
    (
        "text[]",
        AS_JSON,
        Bytes,
        &[
            "ARRAY[NULL, 'NULL', 'null', '', ' ', 'a b', '\"', '\\', '{', '}', ',', 'é', '=', ';']",
            r#"ARRAY[E'\n', E'\r\t', E'\x01', E'\x0b\x0c', E'\\""\\']"#,
            "ARRAY[ARRAY['a', 'b c'], ARRAY[NULL, '\"']]",
            "(SELECT array_agg(chr(i)) FROM generate_series(1, 300) i)",
        ],
    ),
    ("char(3)[]", AS_JSON, Bytes, &["'{a,abc}'"]),
    ("json[]", AS_JSON, Bytes, &[r#"ARRAY['{"a": "\"\\"}', '1', 'null', NULL]::json[]"#]),
    ("jsonb[]", AS_JSON, Bytes, &[r#"ARRAY['{"a": "b\\c"}', '[1,2]']::jsonb[]"#]),
    (
        "bytea[]",
        r"(SELECT json_agg(translate(encode(b, 'base64'), E'\n', '')) FROM unnest(x) b)",
        Meaning,
        &[r"ARRAY['\x', '\x00ff', NULL]::bytea[]"],
    ),
    ("timestamp[]", AS_JSON, Bytes, &["'{2026-11-21 04:55:30.5,infinity,NULL}'"]),
    ("date[]", AS_JSON, Bytes, &["'{2026-11-21,infinity}'"]),
    ("interval[]", AS_JSON, Bytes, &["'{1 day,-1 sec}'"]),
    ("uuid[]", AS_JSON, Bytes, &["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"]),
    ("box[]", AS_JSON, Bytes, &["'{(1,1),(0,0);(2,2),(1,1)}'", "'{}'"]),
    ("flat[]", AS_JSON, Bytes, &["'{(1,1),(0,0);(2,2),(1,1)}'"]),
    ("int4range[]", AS_JSON, Bytes, &["'{\"[1,2)\",empty}'"]),
    ("mood[]", AS_JSON, Bytes, &[r#"ARRAY['sad', 'it''s "great"', 'NULL', '', NULL]::mood[]"#]),
    ("pair[]", AS_TEXTS, Bytes, &["ARRAY[(1, 'a \"b\"'), (NULL, '')]::pair[]"]),
    ("positive[]", AS_JSON, Bytes, &["'{1,2}'"]),
    ("tags[]", AS_JSON, Bytes, &[r#"ARRAY['{a,NULL,"b\"\\"}', '{}', NULL]::tags[]"#]),
    (
        "hstore",
        "hstore_to_json(x)",
        Meaning,
        &[
            "''",
            "'a=>1, b=>NULL, c=>\"NULL\"'",
            r#"hstore(ARRAY['a"', '', 'k=>', E'\n'], ARRAY['\', '', ', ', 'é'])"#,
        ],
    ),
    ("hstore[]", AS_JSON, Meaning, &[r#"ARRAY[hstore('a"', '\'), '']::hstore[]"#]),
];

#[tokio::test]
async fn case_r9_every_type_agrees_with_the_server() {
    in_own_database("types", SESSION, |client| async move {
        client.batch_execute(ZOO).await.expect("the zoo is created");
        let mut faults = Vec::new();
        let mut values_seen = 0;
        for (number, case) in CASES.iter().enumerate() {
            fill(&client, number, case).await;
        }
        let catalog = read_catalog(&client).await;
        for (number, case) in CASES.iter().enumerate() {
            values_seen += compare(&client, &catalog, number, case, &mut faults).await;
        }
        assert!(faults.is_empty(), "{} of {values_seen}:\n{}", faults.len(), faults.join("\n"));
        let values_expected: usize = CASES.iter().map(|(.., values)| values.len()).sum();
        assert_eq!(values_seen, values_expected);
    })
    .await;
}

#[tokio::test]
async fn built_in_types_are_the_servers() {
    in_own_database("builtin", SESSION, |client| async move {
        let builtin = TypeCatalog::builtin();
        let mut seen = 0;
        for row in oracle::types(&client).await {
            let (Some(name), Some(kind)) = (builtin.name(row.oid), builtin.kind(row.oid)) else { continue };
            seen += 1;
            assert_eq!(name, row.name);
            assert_eq!(matches!(kind, Kind::Array { .. }), row.output == "array_out", "{name}");
            if let Kind::Array { element, delimiter } = kind {
                assert_eq!(Some(&**element), builtin.kind(row.element), "{name}");
                assert_eq!(*delimiter, row.delimiter, "{name}");
            }
        }
        assert!(seen > 150, "only {seen} of the built-in types are on the server");
        let extended = read_catalog(&client).await;
        let rows = oracle::types(&client).await;
        let unknown: Vec<_> = rows.iter().filter(|row| extended.kind(row.oid).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    })
    .await;
}

async fn fill(client: &Client, number: usize, (type_name, _, _, values): &Case) {
    let mut sql = format!("CREATE TABLE zoo_{number} (id integer, x {type_name});");
    for (id, value) in values.iter().enumerate() {
        sql += &format!("INSERT INTO zoo_{number} VALUES ({id}, {value});");
    }
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{type_name}: {error:?}"));
}

/// Compares every value of a case; returns how many there were.
async fn compare(
    client: &Client,
    catalog: &TypeCatalog,
    number: usize,
    (type_name, expected, how, _): &Case,
    faults: &mut Vec<String>,
) -> usize {
    let oid_query = "SELECT atttypid FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname = 'x'";
    let oid: u32 = client.query_one(oid_query, &[&format!("zoo_{number}")]).await.unwrap().get(0);
    let Some(kind) = catalog.kind(oid) else {
        faults.push(format!("{type_name}: no kind for {oid}"));
        return 0;
    };
    let sql = format!("SELECT x, ({expected})::text FROM zoo_{number} ORDER BY id");
    let mut seen = 0;
    for message in client.simple_query(&sql).await.unwrap_or_else(|error| panic!("{type_name}: {error:?}")) {
        let SimpleQueryMessage::Row(row) = message else { continue };
        seen += 1;
        let (text, expected) = (row.get(0).expect("not NULL"), row.get(1).expect("not NULL"));
        let mut out = Vec::new();
        let written = write_value(&mut out, kind, text.as_bytes(), &Style::default());
        let got = String::from_utf8(out).expect("UTF-8");
        let agrees = match how {
            Bytes => got == *expected,
            Meaning => parse(&got) == parse(expected),
        };
        if written.is_err() || !agrees || got.contains(['\n', '\r']) {
            faults.push(format!("{type_name} {text}: got {got} ({written:?}), expected {expected}"));
        }
    }
    seen
}

fn parse(json: &str) -> Option<serde_json::Value> {
    Some(serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}")))
}

async fn read_catalog(client: &Client) -> TypeCatalog {
    let mut catalog = TypeCatalog::builtin();
    catalog.extend(oracle::types(client).await);
    catalog
}
