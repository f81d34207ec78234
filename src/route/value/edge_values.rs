//! The edge values of CASES R9, each with the JSON that `docs/types.md` promises for it.
//!
//! The texts are what PostgreSQL 15 prints; that it does is checked by `tests/types_oracle.rs`.

use super::*;

fn json_of(kind: &Kind, text: &str, style: &Style) -> Result<String, ValueError> {
    let mut out = Vec::new();
    write_value(&mut out, kind, text.as_bytes(), style)?;
    let json = String::from_utf8(out).expect("the output is UTF-8");
    serde_json::from_str::<&serde_json::value::RawValue>(&json).expect("the output is JSON");
    assert!(!json.contains(['\n', '\r']), "{json}");
    Ok(json)
}

#[track_caller]
fn check(kind: &Kind, cases: &[(&str, &str)]) {
    for (text, json) in cases {
        assert_eq!(json_of(kind, text, &Style::default()).as_deref(), Ok(*json), "{kind:?} {text}");
    }
}

fn array_of(element: Kind) -> Kind {
    Kind::Array { element: Box::new(element), delimiter: b',' }
}

#[test]
fn case_r9_booleans_and_numbers() {
    check(&Kind::Bool, &[("t", "true"), ("f", "false")]);
    check(&Kind::Integer, &[("0", "0"), ("-32768", "-32768"), ("2147483647", "2147483647")]);
    check(
        &Kind::Bigint,
        &[("-9223372036854775808", "-9223372036854775808"), ("9223372036854775807", "9223372036854775807")],
    );
    check(
        &Kind::Float,
        &[
            ("0.1", "0.1"),
            ("-0", "-0"),
            ("1e+22", "1e+22"),
            ("1.17549435e-38", "1.17549435e-38"),
            ("1e-07", "1e-07"),
            ("1.7976931348623157e+308", "1.7976931348623157e+308"),
            ("NaN", "\"NaN\""),
            ("Infinity", "\"Infinity\""),
            ("-Infinity", "\"-Infinity\""),
        ],
    );
}

#[test]
fn case_r9_numeric_keeps_every_digit() {
    let long = format!("-{}.{}", "9".repeat(100), "01".repeat(15));
    let quoted = format!("\"{long}\"");
    check(
        &Kind::Numeric,
        &[
            ("19.90", "\"19.90\""),
            ("0.00", "\"0.00\""),
            (&long, &quoted),
            ("NaN", "\"NaN\""),
            ("Infinity", "\"Infinity\""),
            ("-Infinity", "\"-Infinity\""),
        ],
    );
}

#[test]
fn bigint_as_string_goes_into_arrays_and_nowhere_else() {
    let style = Style { bigint_as_string: true };
    let json = |kind: &Kind, text| json_of(kind, text, &style).unwrap();
    assert_eq!(json(&Kind::Bigint, "-9223372036854775808"), "\"-9223372036854775808\"");
    assert_eq!(json(&array_of(Kind::Bigint), "{1,NULL,2}"), "[\"1\",null,\"2\"]");
    assert_eq!(json(&Kind::Integer, "1"), "1");
    assert!(json_of(&Kind::Bigint, "x", &style).is_err());
}

#[test]
fn case_r9_timestamps() {
    check(
        &Kind::Timestamptz,
        &[
            ("2026-11-21 04:55:30.123456+00", "\"2026-11-21T04:55:30.123456Z\""),
            ("0001-01-01 00:00:00+00", "\"0001-01-01T00:00:00Z\""),
            ("9999-12-31 23:59:59.9+00", "\"9999-12-31T23:59:59.9Z\""),
            ("10000-01-01 00:00:00+00", "\"10000-01-01 00:00:00+00\""),
            ("294276-12-31 23:59:59.999999+00", "\"294276-12-31 23:59:59.999999+00\""),
            ("0044-03-15 00:00:00+00 BC", "\"0044-03-15 00:00:00+00 BC\""),
            ("infinity", "\"infinity\""),
            ("-infinity", "\"-infinity\""),
        ],
    );
    check(
        &Kind::Timestamp,
        &[
            ("2026-11-21 04:55:30", "\"2026-11-21T04:55:30\""),
            ("10000-01-01 00:00:00.5", "\"10000-01-01 00:00:00.5\""),
            ("4714-11-24 00:00:00 BC", "\"4714-11-24 00:00:00 BC\""),
            ("infinity", "\"infinity\""),
        ],
    );
}

#[test]
fn case_r9_dates_times_and_intervals() {
    check(
        &Kind::Date,
        &[
            ("2026-11-21", "\"2026-11-21\""),
            ("5874897-12-31", "\"5874897-12-31\""),
            ("4714-11-24 BC", "\"4714-11-24 BC\""),
            ("-infinity", "\"-infinity\""),
        ],
    );
    check(&Kind::Time, &[("04:55:30.123456", "\"04:55:30.123456\""), ("24:00:00", "\"24:00:00\"")]);
    check(
        &Kind::Timetz,
        &[
            ("04:05:06.5+02", "\"04:05:06.5+02\""),
            ("24:00:00-15:59:59", "\"24:00:00-15:59:59\""),
            ("04:05:06+00", "\"04:05:06+00\""),
        ],
    );
    check(
        &Kind::Interval,
        &[
            ("P10M3DT-4H-5M-6.7S", "\"P10M3DT-4H-5M-6.7S\""),
            ("PT0S", "\"PT0S\""),
            ("PT-0.000001S", "\"PT-0.000001S\""),
            ("P-1Y", "\"P-1Y\""),
            ("P1D", "\"P1D\""),
            ("infinity", "\"infinity\""),
        ],
    );
}

#[test]
fn case_r9_arrays() {
    let text = array_of(Kind::Text);
    check(
        &text,
        &[
            ("{}", "[]"),
            (
                r#"{"NULL","null",NULL,"","a b","\"","\\",é,"{x}","a,b"}"#,
                r#"["NULL","null",null,"","a b","\"","\\","é","{x}","a,b"]"#,
            ),
            ("[0:1]={a,b}", r#"["a","b"]"#),
            ("[-2:-1][5:5]={{a},{b}}", r#"[["a"],["b"]]"#),
            ("{{{a,b}},{{c,NULL}}}", r#"[[["a","b"]],[["c",null]]]"#),
            ("{{{{{{a}}}}}}", r#"[[[[[["a"]]]]]]"#),
            ("{\"a\nb\",\u{1}}", r#"["a\nb","\u0001"]"#),
            ("{sad,ok}", r#"["sad","ok"]"#),
        ],
    );
    check(&array_of(Kind::Integer), &[("{{1,2},{3,NULL}}", "[[1,2],[3,null]]")]);
    check(&array_of(Kind::Bool), &[("{t,f,NULL}", "[true,false,null]")]);
    check(&array_of(Kind::Float), &[("{1.5,NaN}", "[1.5,\"NaN\"]")]);
    check(&array_of(Kind::Numeric), &[("{1.0,1.00}", "[\"1.0\",\"1.00\"]")]);
    check(&array_of(Kind::Bytea), &[(r#"{"\\x00ff","\\x"}"#, r#"["AP8=",""]"#)]);
    check(
        &array_of(Kind::Json),
        &[("{\"{\\\"a\\\": \\\"\\\\\\\"\\\"}\",1,\"null\",NULL}", r#"[{"a": "\""},1,null,null]"#)],
    );
    check(
        &array_of(Kind::Timestamptz),
        &[(r#"{"2026-11-21 04:55:30+00",infinity}"#, r#"["2026-11-21T04:55:30Z","infinity"]"#)],
    );
    check(&array_of(Kind::Hstore), &[(r#"{"\"a\"=>\"1\"",""}"#, r#"[{"a":"1"},{}]"#)]);
    check(&array_of(array_of(Kind::Integer)), &[(r#"{"{1,2}","{}",NULL}"#, "[[1,2],[],null]")]);
    let boxes = Kind::Array { element: Box::new(Kind::Text), delimiter: b';' };
    check(&boxes, &[("{(1,1),(0,0);(2,2),(1,1)}", r#"["(1,1),(0,0)","(2,2),(1,1)"]"#)]);
}

#[test]
fn case_r9_json_keeps_digits_keys_and_spaces_on_one_line() {
    check(
        &Kind::Json,
        &[
            (
                r#"{"n": 1234567890123456789012345678901234567890.10}"#,
                r#"{"n": 1234567890123456789012345678901234567890.10}"#,
            ),
            (r#"{"a":1,  "a":2}"#, r#"{"a":1,  "a":2}"#),
            ("{\r\n\t\"a\" :\n\"x\\ny\"}\n", "{  \t\"a\" : \"x\\ny\"} "),
            ("null", "null"),
            (" true ", " true "),
            ("-1.5e3", "-1.5e3"),
            ("\"\"", "\"\""),
            ("[]", "[]"),
        ],
    );
}

#[test]
fn case_r9_hstore() {
    check(
        &Kind::Hstore,
        &[
            (r#""a"=>"1", "b"=>NULL"#, r#"{"a":"1","b":null}"#),
            ("", "{}"),
            (
                r#"""=>"", "a\"b"=>"c\\d", "n"=>"NULL", "k, "=>"=>""#,
                r#"{"":"","a\"b":"c\\d","n":"NULL","k, ":"=>"}"#,
            ),
            ("\"é\"=>\"x\ny\"", r#"{"é":"x\ny"}"#),
        ],
    );
}

#[test]
fn case_r9_bytea_of_every_byte() {
    let hex: String = (0..=255u8).map(|byte| format!("{byte:02x}")).collect();
    let json = json_of(&Kind::Bytea, &format!("\\x{hex}"), &Style::default()).unwrap();
    assert!(json.starts_with("\"AAECAwQFBgcICQoLDA0ODx") && json.ends_with("+fr7/P3+/w==\""), "{json}");
    check(&Kind::Bytea, &[("\\x", "\"\""), ("\\xDEadBEef", "\"3q2+7w==\"")]);
}

#[test]
fn case_r9_everything_else_is_postgresqls_text() {
    for text in [
        "",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "[1,10)",
        "{[1,3),[5,7)}",
        "1010",
        "192.168.0.0/24",
        "08:00:2b:01:02:03:04:05",
        "'a' 'it''s':1A",
        "<a b=\"c\">&amp;</a>",
        "(1,\"a b\",)",
        "$1,000.00",
        "trailing spaces   ",
    ] {
        let json = json_of(&Kind::Text, text, &Style::default()).unwrap();
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}

#[test]
fn nothing_is_appended_on_an_error() {
    let broken: [(Kind, &[u8]); 6] = [
        (Kind::Text, b"caf\xe9"),
        (Kind::Json, b"\"\xff\""),
        (Kind::Bytea, b"\\x00112"),
        (Kind::Hstore, b"\"a\"=>\"1\", "),
        (array_of(Kind::Integer), b"{1,2,x}"),
        (array_of(Kind::Text), b"{a,\xc3}"),
    ];
    for (kind, text) in broken {
        let mut out = b"{\"v\":".to_vec();
        let error = write_value(&mut out, &kind, text, &Style::default()).unwrap_err();
        assert_eq!(out, b"{\"v\":", "{kind:?}");
        let error = Error::from(error);
        assert!(error.is_definite() && error.hint().is_some(), "{error}");
    }
}
