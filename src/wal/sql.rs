//! Quoting for the places where a name cannot be a parameter. Manual: "Lexical Structure".

/// A quoted identifier.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted `schema.name`.
pub fn quote_qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// A quoted string literal, with `standard_conforming_strings = on`.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_what_would_end_the_name() {
        assert_eq!(quote_qualified("a\"b", "c.d"), "\"a\"\"b\".\"c.d\"");
        assert_eq!(quote_literal("it's \\"), "'it''s \\'");
    }
}
