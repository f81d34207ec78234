//! Names of tables as rules write them: `public.orders`, `public.*`, `"a.b".t` (DESIGN.md, section 3).
//!
//! In comes the `name` of a rule, out goes a [`TablePattern`] that says whether it takes a table.
//! Names are literal and case-sensitive: nothing is folded to lower case, spaces count. `*` stands for any
//! characters, also none, but never for the dot between schema and table. A part that holds a dot is
//! quoted; inside quotes a quote is doubled and, as in psql, `*` is an ordinary character. A quote opens only
//! at the start of a part, so the table `c"d` is written as it stands.
//!
//! What always holds: `TablePattern::parse(pattern.to_string()) == pattern`.

use std::fmt;

/// Which tables a rule takes: a pattern for the schema and one for the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TablePattern {
    schema: Part,
    table: Part,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Literal(String),
    /// What stands before, between and after the stars; so always two pieces or more.
    Pieces(Vec<String>),
}

/// Why a name is no table name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Only one part; it is taken for the table's name.
    #[error("the schema is missing")]
    NoSchema(String),
    /// A part with nothing in it.
    #[error("a part of the name is empty")]
    EmptyPart,
    /// Three parts or more.
    #[error("the name has {0} parts; it needs two, schema and table")]
    TooManyParts(usize),
    /// A part that opens with a quote and does not end with one.
    #[error("a quoted part is not closed, or goes on after its closing quote")]
    Quote,
    /// PostgreSQL has no such names.
    #[error("the name holds a zero character")]
    Zero,
}

impl NameError {
    /// What to write instead.
    pub fn remedy(&self) -> String {
        match self {
            NameError::NoSchema(name) => format!("write the schema too: public.{name}"),
            NameError::EmptyPart => "write schema.table, for instance public.orders or public.*".to_owned(),
            NameError::TooManyParts(_) => {
                "quote a part that holds a dot, for instance \"a.b\".t (in TOML: name = '\"a.b\".t')"
                    .to_owned()
            }
            NameError::Quote => {
                "close the quote before the dot or the end, and double a quote that belongs to the name"
                    .to_owned()
            }
            NameError::Zero => "remove the zero character".to_owned(),
        }
    }
}

impl TablePattern {
    /// Reads `schema.table`.
    ///
    /// # Errors
    /// A [`NameError`] when the text is not exactly two parts, each with something in it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.contains('\0') {
            return Err(NameError::Zero);
        }
        let mut parts = Vec::new();
        let mut rest = Some(text);
        while let Some(text) = rest {
            let (part, after) = take_part(text)?;
            parts.push(part);
            rest = after;
        }
        let count = parts.len();
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(schema), Some(table), None) => Ok(TablePattern { schema, table }),
            (Some(only), None, None) => Err(NameError::NoSchema(only.to_string())),
            _ => Err(NameError::TooManyParts(count)),
        }
    }

    /// The pattern of exactly this table.
    pub fn exact(schema: &str, table: &str) -> Self {
        TablePattern { schema: Part::Literal(schema.to_owned()), table: Part::Literal(table.to_owned()) }
    }

    /// The pattern of all tables of exactly this schema.
    pub fn all_of(schema: &str) -> Self {
        TablePattern {
            schema: Part::Literal(schema.to_owned()),
            table: Part::Pieces(vec![String::new(), String::new()]),
        }
    }

    /// Whether the pattern takes this table.
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        self.schema.matches(schema) && self.table.matches(table)
    }

    /// Whether the pattern names one table, without wildcards.
    pub fn is_exact(&self) -> bool {
        self.names().is_some()
    }

    /// Schema and table, if the pattern names one table.
    pub fn names(&self) -> Option<(&str, &str)> {
        match (&self.schema, &self.table) {
            (Part::Literal(schema), Part::Literal(table)) => Some((schema, table)),
            _ => None,
        }
    }
}

/// A table's name on a replica: `sales.orders`, or `sales.*` for the table's own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetName {
    schema: Option<String>,
    table: Option<String>,
}

impl TargetName {
    /// From a pattern whose parts are names or a star alone; `None`: a part mixes both.
    pub fn of_pattern(pattern: TablePattern) -> Option<Self> {
        let name = |part| match part {
            Part::Literal(name) => Some(Some(name)),
            Part::Pieces(pieces) => pieces.iter().all(String::is_empty).then_some(None),
        };
        Some(TargetName { schema: name(pattern.schema)?, table: name(pattern.table)? })
    }

    /// Whether every table gets the same name, perhaps in schemas of their own.
    pub fn is_of_one_table(&self) -> bool {
        self.table.is_some()
    }

    /// Schema and name on the replica of the source's table `schema.table`.
    pub fn of(&self, schema: &str, table: &str) -> (String, String) {
        let part = |own: &Option<String>, default: &str| own.clone().unwrap_or_else(|| default.to_owned());
        (part(&self.schema, schema), part(&self.table, table))
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// Takes the first part off `text`; the second value is what follows the dot, if there is one.
fn take_part(text: &str) -> Result<(Part, Option<&str>), NameError> {
    let (part, rest) = match text.strip_prefix('"') {
        Some(quoted) => {
            let (name, rest) = take_quoted(quoted)?;
            (Part::Literal(name), rest)
        }
        None => {
            let (name, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
            (Part::bare(name), rest)
        }
    };
    if part.is_empty() {
        return Err(NameError::EmptyPart);
    }
    match rest.strip_prefix('.') {
        Some(after) => Ok((part, Some(after))),
        None if rest.is_empty() => Ok((part, None)),
        None => Err(NameError::Quote),
    }
}

/// Takes a quoted name, whose opening quote is gone already.
fn take_quoted(text: &str) -> Result<(String, &str), NameError> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"').ok_or(NameError::Quote)?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Ok((name, after)),
        }
    }
}

impl Part {
    fn bare(text: &str) -> Self {
        if text.contains('*') {
            Part::Pieces(text.split('*').map(str::to_owned).collect())
        } else {
            Part::Literal(text.to_owned())
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Part::Literal(name) if name.is_empty())
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Part::Literal(literal) => literal == name,
            Part::Pieces(pieces) => pieces_match(pieces, name),
        }
    }
}

/// The first piece opens the name, the last one ends it, and the others are found between them, each as far
/// left as it goes: no other choice leaves more room to those that follow.
pub(super) fn pieces_match(pieces: &[String], name: &str) -> bool {
    let [first, between @ .., last] = pieces else { return false };
    let Some(mut rest) = name.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
    else {
        return false;
    };
    for piece in between {
        match rest.split_once(piece.as_str()) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Literal(name) if name.starts_with('"') || name.contains(['.', '*']) => {
                write!(f, "\"{}\"", name.replace('"', "\"\""))
            }
            Part::Literal(name) => f.write_str(name),
            Part::Pieces(pieces) => f.write_str(&pieces.join("*")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn takes(pattern: &str, schema: &str, table: &str) -> bool {
        TablePattern::parse(pattern).expect(pattern).matches(schema, table)
    }

    #[test]
    fn names_are_literal_and_case_sensitive() {
        assert!(takes("public.Orders", "public", "Orders"));
        assert!(!takes("public.Orders", "public", "orders"));
        assert!(!takes("public.orders", "public", "orders2"));
        assert!(takes("my schema.order items", "my schema", "order items"));
        assert!(takes("public.a'", "public", "a'"));
        assert!(takes("public.c\"d", "public", "c\"d"), "a quote inside a part is an ordinary character");
        assert!(takes("käse.größe", "käse", "größe"));
    }

    #[test]
    fn stars_stand_for_anything_but_the_dot() {
        assert!(takes("public.*", "public", "orders"));
        assert!(!takes("public.*", "public2", "orders"));
        assert!(takes("*.*", "any", "with.dot"));
        assert!(takes("public.order*", "public", "order"));
        assert!(takes("public.*_2026_*", "public", "log_2026_01"));
        assert!(!takes("public.*_2026_*", "public", "log_2025_01"));
        assert!(!takes("public.ab*ba", "public", "aba"), "the two ends may not overlap");
        assert!(takes("public.a*b*b", "public", "abb"));
        assert!(!takes("public.a*b*b", "public", "ab"));
    }

    #[test]
    fn a_part_with_a_dot_is_quoted() {
        assert!(takes("\"a.b\".t", "a.b", "t"));
        assert!(takes("\"a.b\".*", "a.b", "anything"));
        assert!(takes("public.\"say \"\"hi\"\".\"", "public", "say \"hi\"."));
        assert!(takes("public.\"a*\"", "public", "a*"));
        assert!(!takes("public.\"a*\"", "public", "ab"), "a quoted star is literal, as in psql");
        assert_eq!(TablePattern::parse("\"public\".\"orders\""), TablePattern::parse("public.orders"));
    }

    #[test]
    fn what_is_no_table_name() {
        use NameError::*;
        for (text, error) in [
            ("orders", NoSchema("orders".into())),
            ("*", NoSchema("*".into())),
            ("\"a.b\"", NoSchema("\"a.b\"".into())),
            ("", EmptyPart),
            ("public.", EmptyPart),
            (".orders", EmptyPart),
            ("public.\"\"", EmptyPart),
            ("a.b.c", TooManyParts(3)),
            ("\"a.b.t", Quote),
            ("\"a\"b.t", Quote),
            ("a.b\0", Zero),
        ] {
            assert_eq!(TablePattern::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(NoSchema("orders".into()).remedy(), "write the schema too: public.orders");
    }

    #[test]
    fn exact_names_and_schemas() {
        let exact = TablePattern::parse("public.orders").unwrap();
        assert_eq!(exact, TablePattern::exact("public", "orders"));
        assert_eq!(exact.names(), Some(("public", "orders")));
        assert!(!TablePattern::parse("pub*.orders").unwrap().is_exact());
        assert_eq!(TablePattern::all_of("a.b").to_string(), "\"a.b\".*");
    }

    /// The obvious matcher, exponential and beyond doubt.
    fn model(pattern: &[char], name: &[char]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some('*'), _) => model(&pattern[1..], name) || (!name.is_empty() && model(pattern, &name[1..])),
            (Some(p), Some(n)) => p == n && model(&pattern[1..], &name[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn every_name_can_be_written(schema in "[^\0]{1,8}", table in "[^\0]{1,8}") {
            let pattern = TablePattern::exact(&schema, &table);
            let text = pattern.to_string();
            prop_assert_eq!(TablePattern::parse(&text), Ok(pattern.clone()), "{}", text);
            prop_assert!(pattern.is_exact());
            prop_assert!(pattern.matches(&schema, &table));
        }

        #[test]
        fn what_parses_prints_back_to_itself(text in "[a\".*é ]{0,10}") {
            if let Ok(pattern) = TablePattern::parse(&text) {
                let printed = pattern.to_string();
                prop_assert_eq!(TablePattern::parse(&printed), Ok(pattern), "{}", printed);
            }
        }

        #[test]
        fn stars_match_as_the_model_does(pattern in "[ab*]{1,7}", name in "[ab]{0,8}") {
            let text = format!("s.{pattern}");
            let pattern: Vec<char> = pattern.chars().collect();
            let name_chars: Vec<char> = name.chars().collect();
            prop_assert_eq!(takes(&text, "s", &name), model(&pattern, &name_chars));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = TablePattern::parse(&text);
        }
    }
}
