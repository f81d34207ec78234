//! Properties of the encoder: what PostgreSQL would print for a generated value reads back as that value.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

use super::*;

/// An array as PostgreSQL has it: rectangular, of one depth.
#[derive(Clone, Debug)]
enum Tree {
    Item(Option<String>),
    Items(Vec<Tree>),
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => r#"([a-z ]|["\\{},;=>\[\]:]|[é😀\n\t\x01]){0,12}"#,
        1 => "(?i)null",
        1 => "\\PC{0,8}",
    ]
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let item = option::weighted(0.8, any_text()).prop_map(Tree::Item).boxed();
    vec(1usize..4, 1..5).prop_flat_map(move |lengths| {
        lengths.iter().fold(item.clone(), |inner, &length| vec(inner, length).prop_map(Tree::Items).boxed())
    })
}

impl Tree {
    /// As `array_out` prints it (`arrayfuncs.c`).
    fn print(&self, delimiter: char) -> String {
        match self {
            Tree::Item(None) => "NULL".to_owned(),
            Tree::Item(Some(text)) => {
                let is_special = |c: char| "\"\\{} \t\n\r\u{b}\u{c}".contains(c) || c == delimiter;
                if text.is_empty() || text.eq_ignore_ascii_case("NULL") || text.contains(is_special) {
                    quote(text)
                } else {
                    text.clone()
                }
            }
            Tree::Items(items) => {
                let items: Vec<_> = items.iter().map(|item| item.print(delimiter)).collect();
                format!("{{{}}}", items.join(&delimiter.to_string()))
            }
        }
    }

    fn value(&self) -> Value {
        match self {
            Tree::Item(text) => text.clone().map_or(Value::Null, Value::String),
            Tree::Items(items) => items.iter().map(Tree::value).collect(),
        }
    }
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn encode(kind: &Kind, text: &str) -> Result<Vec<u8>, ValueError> {
    let mut out = Vec::new();
    write_value(&mut out, kind, text.as_bytes(), &Style::default()).map(|()| out)
}

fn every_kind() -> Vec<Kind> {
    let scalars = vec![
        Kind::Bool,
        Kind::Integer,
        Kind::Bigint,
        Kind::Float,
        Kind::Numeric,
        Kind::Json,
        Kind::Bytea,
        Kind::Timestamp,
        Kind::Timestamptz,
        Kind::Date,
        Kind::Time,
        Kind::Timetz,
        Kind::Interval,
        Kind::Hstore,
        Kind::Text,
    ];
    let arrays = scalars.iter().map(|kind| Kind::Array { element: Box::new(kind.clone()), delimiter: b',' });
    let nested: Vec<_> =
        arrays.clone().map(|array| Kind::Array { element: Box::new(array), delimiter: b';' }).collect();
    arrays.chain(nested).chain(scalars.clone()).collect()
}

/// Json is embedded as PostgreSQL has checked it: only of that is the output known to be JSON.
fn embeds_json(kind: &Kind) -> bool {
    match kind {
        Kind::Array { element, .. } => embeds_json(element),
        kind => *kind == Kind::Json,
    }
}

proptest! {
    #[test]
    fn arrays_read_back(tree in any_tree(), has_semicolon: bool, has_bounds: bool) {
        let delimiter = if has_semicolon { ';' } else { ',' };
        let kind = Kind::Array { element: Box::new(Kind::Text), delimiter: u8::try_from(delimiter).unwrap() };
        let bounds = if has_bounds { "[0:7][-3:-1]=" } else { "" };
        let out = encode(&kind, &format!("{bounds}{}", tree.print(delimiter))).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), tree.value());
    }

    #[test]
    fn arrays_of_domains_on_arrays_read_back(trees in vec(any_tree(), 1..4)) {
        let inner = Kind::Array { element: Box::new(Kind::Text), delimiter: b',' };
        let kind = Kind::Array { element: Box::new(inner), delimiter: b',' };
        let items = trees.iter().map(|tree| Tree::Item(Some(tree.print(',')))).collect();
        let out = encode(&kind, &Tree::Items(items).print(',')).unwrap();
        let expected: Value = trees.iter().map(Tree::value).collect();
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
    }

    #[test]
    fn arrays_of_json_read_back(texts in vec(any_text(), 1..6)) {
        let kind = Kind::Array { element: Box::new(Kind::Json), delimiter: b',' };
        let jsons = texts.iter().map(|text| serde_json::json!({ text.as_str(): [text, 1] }));
        let items = jsons.clone().map(|json| Tree::Item(Some(json.to_string()))).collect();
        let out = encode(&kind, &Tree::Items(items).print(',')).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), jsons.collect::<Value>());
    }

    #[test]
    fn hstores_read_back(pairs in btree_map(any_text(), option::of(any_text()), 0..6)) {
        let printed: Vec<_> = pairs
            .iter()
            .map(|(key, value)| {
                format!("{}=>{}", quote(key), value.as_deref().map_or("NULL".to_owned(), quote))
            })
            .collect();
        let out = encode(&Kind::Hstore, &printed.join(", ")).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), serde_json::json!(pairs));
    }

    #[test]
    fn numbers_read_back(int: i64, float: f64) {
        prop_assert_eq!(serde_json::from_slice::<i64>(&encode(&Kind::Bigint, &int.to_string()).unwrap()).unwrap(), int);
        let text = format!("{float:e}");
        if float.is_finite() {
            let read: f64 = String::from_utf8(encode(&Kind::Float, &text).unwrap()).unwrap().parse().unwrap();
            prop_assert_eq!(read, float);
        }
    }

    #[test]
    fn random_text_is_refused_or_one_json_value_on_one_line(
        text in r#"([{}\[\]"\\,;=>:PTZ+. -]|[0-9]|[a-z]|NULL|BC|\\x|[\n\r\x00é]){0,40}"#,
    ) {
        for kind in every_kind() {
            if let Ok(out) = encode(&kind, &text) {
                prop_assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
                prop_assert!(embeds_json(&kind) || serde_json::from_slice::<&RawValue>(&out).is_ok(), "{kind:?}");
            }
        }
    }

    #[test]
    fn random_bytes_never_panic_and_leave_nothing_behind(bytes in vec(any::<u8>(), 0..64)) {
        for kind in every_kind() {
            let mut out = b"before".to_vec();
            let written = write_value(&mut out, &kind, &bytes, &Style { bigint_as_string: true });
            prop_assert!(out.starts_with(b"before"));
            prop_assert_eq!(written.is_err(), out.len() == b"before".len());
            prop_assert!(std::str::from_utf8(&out).is_ok());
        }
    }
}
