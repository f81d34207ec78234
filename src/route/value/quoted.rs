//! The double-quoted pieces of array and hstore texts: `"a \"b\" \\ c"`.
//!
//! In: text that begins after an opening quote. Out: the piece up to its closing quote, which may
//! still hold backslashes, each making the character after it stand for itself, and what follows.
//! Manual: "Array Input and Output Syntax"; `hstore_io.c` quotes the same way.

use memchr::{memchr, memchr2};

use super::string::escape;

/// The inside of a quoted piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quoted<'a> {
    inside: &'a [u8],
    has_escapes: bool,
}

impl<'a> Quoted<'a> {
    /// Splits text that begins just after an opening quote; none when no quote closes it.
    pub(super) fn split(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let mut at = 0;
        let mut has_escapes = false;
        loop {
            let found = at + memchr2(b'"', b'\\', text.get(at..)?)?;
            let (inside, rest) = text.split_at_checked(found)?;
            match rest {
                [b'"', after @ ..] => return Some((Quoted { inside, has_escapes }, after)),
                _ => {
                    has_escapes = true;
                    at = found + 2;
                }
            }
        }
    }

    /// Appends it as a JSON string, straight from the one escaping into the other.
    pub(super) fn write_json_string(self, out: &mut Vec<u8>) {
        out.push(b'"');
        self.pieces(|piece| escape(out, piece));
        out.push(b'"');
    }

    /// The text it stands for; `scratch` is used when it holds backslashes.
    pub(super) fn text<'b>(self, scratch: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if !self.has_escapes {
            return self.inside;
        }
        scratch.clear();
        self.pieces(|piece| scratch.extend_from_slice(piece));
        scratch
    }

    /// Calls `take` with the pieces between escaping backslashes, in order.
    fn pieces(self, mut take: impl FnMut(&[u8])) {
        let mut rest = self.inside;
        // The character after a backslash begins the next piece, and is not looked at again.
        let mut skip = 0;
        while let Some(found) = rest.get(skip..).and_then(|tail| memchr(b'\\', tail)) {
            let (piece, tail) = rest.split_at(skip + found);
            take(piece);
            rest = tail.get(1..).unwrap_or_default();
            skip = 1;
        }
        take(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(quoted: &str) -> Option<(String, String, String)> {
        let (piece, rest) = Quoted::split(quoted.as_bytes())?;
        let mut json = Vec::new();
        piece.write_json_string(&mut json);
        let mut scratch = Vec::new();
        let text = String::from_utf8(piece.text(&mut scratch).to_vec()).unwrap();
        Some((text, String::from_utf8(json).unwrap(), String::from_utf8(rest.to_vec()).unwrap()))
    }

    #[test]
    fn a_backslash_makes_the_next_character_stand_for_itself() {
        let cases = [
            (r#"a b",x"#, "a b", r#""a b""#, ",x"),
            (r#"""#, "", r#""""#, ""),
            (r#"\"\\"}"#, "\"\\", r#""\"\\""#, "}"),
            (r#"\\\\n""#, r"\\n", r#""\\\\n""#, ""),
            (r#"\é\x""#, "éx", r#""éx""#, ""),
        ];
        for (quoted, text, json, rest) in cases {
            assert_eq!(text_of(quoted), Some((text.into(), json.into(), rest.into())), "{quoted}");
        }
    }

    #[test]
    fn an_open_piece_is_none() {
        for open in ["", "a", r#"\""#, r"\", r#"a\\\""#] {
            assert!(text_of(open).is_none(), "{open}");
        }
    }
}
