//! LIKE with a constant pattern.
//!
//! In: the pattern and its escape character. Out: a list of parts, and whether a text matches them. The
//! matcher goes back to the last `%` only, so it takes at most length times pattern steps and no stack.
//! A pattern that ends with its escape character is an error in PostgreSQL only for some texts: it goes to
//! the server. Manual: "LIKE".

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// This byte.
    Byte(u8),
    /// `_`: one character.
    AnyChar,
    /// `%`: any number of characters.
    AnyChars,
}

impl Pattern {
    /// Compiles a pattern; without an escape character none escapes. None when the last character is one.
    pub(super) fn compile(text: &str, escape: Option<char>) -> Option<Pattern> {
        let mut parts = Vec::with_capacity(text.len());
        let mut chars = text.chars();
        let mut buffer = [0; 4];
        while let Some(character) = chars.next() {
            let literal = match character {
                _ if Some(character) == escape => chars.next()?,
                '_' => {
                    parts.push(Part::AnyChar);
                    continue;
                }
                '%' => {
                    if parts.last() != Some(&Part::AnyChars) {
                        parts.push(Part::AnyChars);
                    }
                    continue;
                }
                _ => character,
            };
            parts.extend(literal.encode_utf8(&mut buffer).bytes().map(Part::Byte));
        }
        Some(Pattern(parts))
    }

    /// Whether all of `text`, which is UTF-8, matches.
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        let (mut part_at, mut text_at) = (0, 0);
        // Behind the last `%`, and where its match ends for now.
        let mut resume: Option<(usize, usize)> = None;
        loop {
            match (self.0.get(part_at), text.get(text_at)) {
                (None, None) => return true,
                (Some(Part::AnyChars), _) => {
                    part_at += 1;
                    resume = Some((part_at, text_at));
                    continue;
                }
                (Some(Part::AnyChar), Some(_)) => {
                    (part_at, text_at) = (part_at + 1, next_char(text, text_at));
                    continue;
                }
                (Some(Part::Byte(expected)), Some(found)) if expected == found => {
                    (part_at, text_at) = (part_at + 1, text_at + 1);
                    continue;
                }
                _ => {}
            }
            match resume {
                Some((after, matched_to)) if matched_to < text.len() => {
                    let matched_to = next_char(text, matched_to);
                    resume = Some((after, matched_to));
                    (part_at, text_at) = (after, matched_to);
                }
                _ => return false,
            }
        }
    }
}

/// Where the character after the one at `at` begins.
fn next_char(text: &[u8], at: usize) -> usize {
    let rest = text.get(at + 1..).unwrap_or_default();
    at + 1 + rest.iter().take_while(|&&byte| byte & 0xc0 == 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(text: &str, pattern: &str) -> bool {
        Pattern::compile(pattern, Some('\\')).expect("a pattern").matches(text.as_bytes())
    }

    #[test]
    fn matches_as_postgresql_does() {
        for (text, pattern) in [
            ("", ""),
            ("", "%"),
            ("abc", "abc"),
            ("abc", "a%"),
            ("abc", "%c"),
            ("abc", "_b_"),
            ("äöü", "___"),
            ("a%c", r"a\%c"),
            ("abcbc", "a%bc"),
            ("aXbXc", "a%X_"),
            ("ab", "%%b"),
            ("ä", "%_"),
        ] {
            assert!(like(text, pattern), "{text} {pattern}");
        }
        for (text, pattern) in [
            ("abc", ""),
            ("", "_"),
            ("abc", "ab"),
            ("abc", "abcd"),
            ("abc", r"a\%c"),
            ("äö", "_"),
            ("abcb", "a%bc"),
        ] {
            assert!(!like(text, pattern), "{text} {pattern}");
        }
        assert!(Pattern::compile(r"a\", Some('\\')).is_none());
        assert!(Pattern::compile(r"a\", None).expect("no escape").matches(br"a\"));
        assert!(Pattern::compile("a!%", Some('!')).expect("an escape").matches(b"a%"));
    }

    #[test]
    fn many_wildcards_end_soon() {
        let pattern = Pattern::compile(&"%a".repeat(1000), None).expect("a pattern");
        assert!(!pattern.matches("a".repeat(999).as_bytes()));
    }
}
