//! Values: every type's form in an event, the same in copy and stream, byte for byte (CASES R9).
//!
//! In: a zoo of literals, each with the JSON that `docs/types.md` promises, written by hand. Out: the rows come
//! once by the copy, once by the stream, once as an old row; each time the value's bytes are those.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::support::Event;
use crate::support::pick::{of_table, on_file, only, started};
use crate::support::{Hub, Source, Walgate};

const TYPES: &str = r#"
    CREATE EXTENSION hstore; CREATE EXTENSION citext;
    CREATE TYPE mood AS ENUM ('sad', 'so "so"', 'it''s');
    CREATE TYPE pair AS (a int, "B c" text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN very_positive AS positive CHECK (VALUE > 10);
    CREATE DOMAIN tags AS text[];
    CREATE DOMAIN moment AS timestamptz;
    CREATE TYPE span AS RANGE (subtype = float8);
"#;

/// A type, a value as SQL, and its JSON.
type Case = (&'static str, &'static str, &'static str);

const NUMBERS: &[Case] = &[
    ("boolean", "true", "true"),
    ("boolean", "false", "false"),
    ("smallint", "-32768", "-32768"),
    ("int", "2147483647", "2147483647"),
    ("bigint", "9223372036854775807", "9223372036854775807"),
    ("bigint", "-9223372036854775808", "-9223372036854775808"),
    ("bigint[]", "'{9223372036854775807,NULL}'", "[9223372036854775807,null]"),
    ("real", "0.1", "0.1"),
    ("real", "'NaN'", "\"NaN\""),
    ("double precision", "'Infinity'", "\"Infinity\""),
    ("double precision", "'-Infinity'", "\"-Infinity\""),
    ("double precision", "1e22", "1e+22"),
    ("double precision", "'-0'", "-0"),
    ("double precision", "5e-324", "5e-324"),
    ("double precision", "0.1::float8 + 0.2", "0.30000000000000004"),
    ("numeric", "19.90", "\"19.90\""),
    ("numeric", "'NaN'", "\"NaN\""),
    ("numeric", "'Infinity'", "\"Infinity\""),
    ("numeric", "'-Infinity'", "\"-Infinity\""),
    ("numeric", "-0.00", "\"0.00\""),
    ("numeric(6,4)", "1", "\"1.0000\""),
    (
        "numeric",
        "'1234567890123456789012345678901234567890123456789012345678901234567890.123456789012345678901234567890123456789012345678901234567890'",
        "\"1234567890123456789012345678901234567890123456789012345678901234567890.123456789012345678901234567890123456789012345678901234567890\"",
    ),
    ("money", "'1000.5'", "\"$1,000.50\""),
    ("oid", "4294967295", "\"4294967295\""),
    ("positive", "1", "1"),
    ("very_positive", "11", "11"),
    ("positive[]", "'{1,2}'", "[1,2]"),
];

const TIMES: &[Case] = &[
    ("timestamptz", "'2026-11-21 04:55:30.123456+00'", "\"2026-11-21T04:55:30.123456Z\""),
    ("timestamptz", "'2026-11-21 04:55:30.5+05:30'", "\"2026-11-20T23:25:30.5Z\""),
    ("timestamptz", "'2026-11-21 04:55:30+00'", "\"2026-11-21T04:55:30Z\""),
    ("timestamptz", "'infinity'", "\"infinity\""),
    ("timestamptz", "'-infinity'", "\"-infinity\""),
    ("timestamptz", "'0044-03-15 00:00:00+00 BC'", "\"0044-03-15 00:00:00+00 BC\""),
    ("timestamptz", "'294276-12-31 23:59:59.999999+00'", "\"294276-12-31 23:59:59.999999+00\""),
    ("timestamp", "'2026-11-21 04:55:30.120'", "\"2026-11-21T04:55:30.12\""),
    ("timestamp", "'294276-12-31 23:59:59.999999'", "\"294276-12-31 23:59:59.999999\""),
    ("timestamp", "'4713-01-01 00:00:00 BC'", "\"4713-01-01 00:00:00 BC\""),
    ("timestamp", "'infinity'", "\"infinity\""),
    ("timestamp[]", "'{2026-11-21 04:55:30,infinity,NULL}'", "[\"2026-11-21T04:55:30\",\"infinity\",null]"),
    ("timestamptz[]", "'{2026-11-21 04:55:30+00}'", "[\"2026-11-21T04:55:30Z\"]"),
    ("moment", "'2026-11-21 04:55:30+00'", "\"2026-11-21T04:55:30Z\""),
    ("date", "'2026-11-21'", "\"2026-11-21\""),
    ("date", "'0044-03-15 BC'", "\"0044-03-15 BC\""),
    ("date", "'5874897-12-31'", "\"5874897-12-31\""),
    ("date", "'infinity'", "\"infinity\""),
    ("time", "'24:00'", "\"24:00:00\""),
    ("time", "'04:55:30.5'", "\"04:55:30.5\""),
    ("timetz", "'04:55:30+02'", "\"04:55:30+02\""),
    ("timetz", "'24:00:00-15:59:59'", "\"24:00:00-15:59:59\""),
    ("interval", "'0'", "\"PT0S\""),
    ("interval", "'1 year 2 months 3 days 4:05:06.7'", "\"P1Y2M3DT4H5M6.7S\""),
    ("interval", "'1 year -2 months 3 days -04:05:06.7'", "\"P10M3DT-4H-5M-6.7S\""),
    ("interval", "'-1 year -0.000001 seconds'", "\"P-1YT-0.000001S\""),
];

const TEXTS: &[Case] = &[
    ("text", "''", "\"\""),
    ("text", "NULL", "null"),
    ("text", "'null'", "\"null\""),
    ("text", "'\\N'", "\"\\\\N\""),
    (
        "text",
        "E'quote \" backslash \\\\ slash / tab \\t line\\n return\\r'",
        "\"quote \\\" backslash \\\\ slash / tab \\t line\\n return\\r\"",
    ),
    ("text", "E'\\x7f é 漢字 😀 ' || chr(8232)", "\"\u{7f} é 漢字 😀 \u{2028}\""),
    ("varchar(5)", "'abc'", "\"abc\""),
    ("char(5)", "'ab'", "\"ab   \""),
    ("name", "'a name'", "\"a name\""),
    ("citext", "'CiText'", "\"CiText\""),
    ("xml", "'<a b=\"1\">&amp;</a>'", "\"<a b=\\\"1\\\">&amp;</a>\""),
    ("mood", "'so \"so\"'", "\"so \\\"so\\\"\""),
    ("mood[]", "ARRAY['sad', 'it''s', NULL]::mood[]", "[\"sad\",\"it's\",null]"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\""),
    ("bit(4)", "B'1010'", "\"1010\""),
    ("varbit", "B''", "\"\""),
    ("inet", "'192.168.0.1/24'", "\"192.168.0.1/24\""),
    ("inet", "'::1'", "\"::1\""),
    ("cidr", "'10.0.0.0/8'", "\"10.0.0.0/8\""),
    ("macaddr", "'08:00:2b:01:02:03'", "\"08:00:2b:01:02:03\""),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'", "\"08:00:2b:01:02:03:04:05\""),
    ("tsvector", "$$'it''s':1A fat:2$$", "\"'fat':2 'it''s':1A\""),
    ("tsquery", "'fat & !rat'", "\"'fat' & !'rat'\""),
    ("pg_lsn", "'16/B374D848'", "\"16/B374D848\""),
    ("point", "'(1,2.5)'", "\"(1,2.5)\""),
    ("box[]", "'{(1,1),(0,0);(2,2),(1,1)}'", "[\"(1,1),(0,0)\",\"(2,2),(1,1)\"]"),
    ("pair", "(1, 'a \"b\"')", "\"(1,\\\"a \\\"\\\"b\\\"\\\"\\\")\""),
    ("pair", "(NULL, NULL)", "\"(,)\""),
    ("int4range", "'[1,9]'", "\"[1,10)\""),
    ("int4range", "'empty'", "\"empty\""),
    ("tsrange", "'[2026-01-01,)'", "\"[\\\"2026-01-01 00:00:00\\\",)\""),
    ("span", "'[0.5,Infinity]'", "\"[0.5,Infinity]\""),
    ("int4multirange", "'{[1,3),[5,7)}'", "\"{[1,3),[5,7)}\""),
    ("int4multirange", "'{}'", "\"{}\""),
    ("int2vector", "'1 2'", "\"1 2\""),
    ("regclass", "'pg_class'", "\"pg_class\""),
];

const NESTED: &[Case] = &[
    ("json", "'{\"a\" : 1,  \"a\":2}'", "{\"a\" : 1,  \"a\":2}"),
    ("json", "E'{\\n\"a\":\\t[1]}'", "{ \"a\":\t[1]}"),
    ("json", "'1234567890123456789012345678901234567890.10'", "1234567890123456789012345678901234567890.10"),
    ("json", "'null'", "null"),
    ("json", "'\"\\u00e9\\n\"'", "\"\\u00e9\\n\""),
    (
        "jsonb",
        "'{\"k\": 1234567890123456789012345678901234567890, \"a\": [null, {}]}'",
        "{\"a\": [null, {}], \"k\": 1234567890123456789012345678901234567890}",
    ),
    ("jsonb", "'[]'", "[]"),
    ("jsonb[]", "ARRAY['{\"a\": \"b\\\\c\"}', NULL]::jsonb[]", "[{\"a\": \"b\\\\c\"},null]"),
    ("bytea", "''", "\"\""),
    ("bytea", "'\\x00ff'", "\"AP8=\""),
    ("bytea[]", "ARRAY['\\x', '\\x00ff', NULL]::bytea[]", "[\"\",\"AP8=\",null]"),
    ("int[]", "'{}'", "[]"),
    ("int[]", "'{{1,2},{3,NULL}}'", "[[1,2],[3,null]]"),
    ("text[]", "'[0:1]={a,b}'", "[\"a\",\"b\"]"),
    (
        "text[]",
        "ARRAY[NULL, 'NULL', '', 'a,b', '\"', '\\', '{}', ' ']",
        "[null,\"NULL\",\"\",\"a,b\",\"\\\"\",\"\\\\\",\"{}\",\" \"]",
    ),
    ("float8[]", "'{1.5,NaN}'", "[1.5,\"NaN\"]"),
    ("numeric[]", "'{1.0,1.00}'", "[\"1.0\",\"1.00\"]"),
    ("boolean[]", "'{t,f}'", "[true,false]"),
    ("tags", "'{a,NULL}'", "[\"a\",null]"),
    ("hstore", "''", "{}"),
    ("hstore", "'b=>NULL, a=>\"NULL\"'", "{\"a\":\"NULL\",\"b\":null}"),
    ("hstore[]", "ARRAY['x=>1', '']::hstore[]", "[{\"x\":\"1\"},{}]"),
];

fn cases() -> Vec<Case> {
    [NUMBERS, TIMES, TEXTS, NESTED].concat()
}

/// A table with a column for each case; returns the values of one row as SQL.
fn create_zoo(source: &Source) -> String {
    source.exec(TYPES);
    // What the database would print otherwise: the pipeline's own sessions must not care.
    let name = source.name();
    source.exec(&format!(
        "ALTER DATABASE {name} SET datestyle = 'SQL, DMY'; ALTER DATABASE {name} SET intervalstyle = 'postgres_verbose';
         ALTER DATABASE {name} SET timezone = 'Asia/Kolkata'; ALTER DATABASE {name} SET bytea_output = 'escape';
         ALTER DATABASE {name} SET extra_float_digits = -5; ALTER DATABASE {name} SET lc_monetary = 'C';
         ALTER DATABASE {name} SET xmlbinary = 'hex'; ALTER DATABASE {name} SET search_path = ''"
    ));
    let columns = cases()
        .iter()
        .enumerate()
        .map(|(at, (of_type, ..))| format!(", c{at} {of_type}"))
        .collect::<String>();
    source.exec(&format!("SET lc_monetary = 'C'; CREATE TABLE zoo (id int PRIMARY KEY{columns}); ALTER TABLE zoo REPLICA IDENTITY FULL"));
    cases().iter().map(|(_, value, _)| format!(", {value}")).collect()
}

/// A row's values as the bytes that were sent, by column.
fn raw_row<'a>(event: &'a Event, field: &str) -> BTreeMap<String, &'a RawValue> {
    let fields: BTreeMap<String, &RawValue> =
        serde_json::from_str(&event.raw).expect("an event is an object");
    serde_json::from_str(fields[field].get())
        .unwrap_or_else(|error| panic!("{field}: {error}: {}", event.raw))
}

#[track_caller]
fn assert_forms(event: &Event, field: &str, bigint_as_string: bool) {
    let row = raw_row(event, field);
    assert_eq!(row.len(), cases().len() + 1);
    let mut faults = Vec::new();
    for (at, (of_type, value, expected)) in cases().into_iter().enumerate() {
        let found = row[&format!("c{at}")].get();
        let expected = match of_type {
            "bigint" if bigint_as_string => format!("\"{expected}\""),
            "bigint[]" if bigint_as_string => {
                expected.replace("9223372036854775807", "\"9223372036854775807\"")
            }
            _ => expected.to_owned(),
        };
        if found != expected {
            faults.push(format!("{of_type} {value}: {found}, expected {expected}"));
        }
    }
    assert!(faults.is_empty(), "{} {field}:\n{}", event.op(), faults.join("\n"));
    assert!(!event.raw.contains('\n'));
}

#[test]
fn case_r9_every_type_is_the_same_in_copy_stream_and_old_row() {
    let (source, hub) = on_file("zoo");
    let values = create_zoo(&source);
    source.exec(&format!("INSERT INTO zoo VALUES (1{values})"));
    let walgate = started(&source, &hub);
    source.exec(&format!("INSERT INTO zoo VALUES (2{values})"));
    source.exec("UPDATE zoo SET id = id WHERE id = 2; DELETE FROM zoo WHERE id = 1");
    walgate.run_until_caught_up();
    let events = hub.events();
    let of_op = |op| only(&events, "public.zoo", |event| event.op() == op);
    for (op, field) in
        [("read", "data"), ("insert", "data"), ("update", "data"), ("update", "before"), ("delete", "before")]
    {
        assert_forms(of_op(op), field, false);
    }
    assert_eq!(of_op("read").json["source"]["schema_id"], of_op("insert").json["source"]["schema_id"]);
}

#[test]
fn case_r9_bigint_as_string() {
    let (source, hub) = on_file("bigint");
    let values = create_zoo(&source);
    source.exec(&format!("INSERT INTO zoo VALUES (1{values})"));
    let walgate = Walgate::new(&source, &hub).source("bigint = \"string\"");
    walgate.run_until_caught_up();
    source.exec(&format!("INSERT INTO zoo VALUES (2{values}); DELETE FROM zoo WHERE id = 1"));
    walgate.run_until_caught_up();
    let events = hub.events();
    for event in of_table(&events, "public.zoo") {
        assert_forms(event, if event.op() == "delete" { "before" } else { "data" }, true);
    }
    assert_eq!(events.len(), 3);
}

#[test]
fn case_r9_every_byte_and_every_character() {
    let source = Source::new("bytes");
    let hub = Hub::kafka(&source);
    source.exec("CREATE TABLE t (id int PRIMARY KEY, b bytea, s text, a text[])");
    let insert = |id: u32| {
        format!(
            "INSERT INTO t SELECT {id}, (SELECT string_agg(set_byte('\\x00', 0, i), '' ORDER BY i) FROM generate_series(0, 255) i),
               (SELECT string_agg(chr(i), '' ORDER BY i) FROM generate_series(1, 1500) i),
               (SELECT array_agg(chr(i) ORDER BY i) FROM generate_series(1, 1500) i)"
        )
    };
    source.exec(&insert(1));
    let walgate = started(&source, &hub);
    source.exec(&insert(2));
    walgate.run_until_caught_up();
    let events = hub.events();
    let all: String = (1..=1500).filter_map(char::from_u32).collect();
    let each: Vec<String> = all.chars().map(String::from).collect();
    let bytes: Vec<u8> = (0..=255).collect();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    assert_eq!(events.len(), 2);
    for event in &events {
        assert_eq!(event.data("s").as_str(), Some(all.as_str()));
        assert_eq!(event.data("b").as_str(), Some(base64.as_str()));
        let found: Vec<&str> =
            event.data("a").as_array().expect("an array").iter().filter_map(|item| item.as_str()).collect();
        assert_eq!(found, each);
    }
    let [copied, streamed] = [raw_row(&events[0], "data"), raw_row(&events[1], "data")];
    for column in ["b", "s", "a"] {
        assert_eq!(copied[column].get(), streamed[column].get());
    }
}
