//! Arrays: the text of `array_out` in, a JSON array of the element's form out.
//!
//! `{1,NULL,"a \"b\""}`, nested by dimension. Bounds that do not begin at 1 (`[0:1]={a,b}`) are dropped: JSON
//! arrays have none. An unquoted NULL is null, a quoted one a string. One pass, nesting counted and
//! never recursed into; recursion goes with the kind, where an element is a domain on an array.
//! Manual: "Array Input and Output Syntax".

use super::quoted::Quoted;
use super::scalar::split_digits;
use super::{Kind, Style, ValueError, write_utf8};

/// PostgreSQL's own limit (`MAXDIM`).
const DIMENSIONS_MAX: usize = 6;

/// What may come next inside the outermost braces.
enum Expect {
    /// After `{`: an item, a deeper `{`, or `}`.
    First,
    /// After a delimiter: an item or a deeper `{`.
    Item,
    /// After an item or `}`: a delimiter or `}`.
    Rest,
}

pub(super) fn write(
    out: &mut Vec<u8>,
    element: &Kind,
    delimiter: u8,
    text: &[u8],
    style: &Style,
) -> Result<(), ValueError> {
    let is_text = *element == Kind::Text;
    write_array(out, is_text, delimiter, text, &mut |out, item| write_utf8(out, element, item, style))
}

/// An array whose items `write_item` writes, from their text.
pub(super) fn write_items(
    out: &mut Vec<u8>,
    delimiter: u8,
    text: &[u8],
    write_item: &mut impl FnMut(&mut Vec<u8>, &[u8]) -> Result<(), ValueError>,
) -> Result<(), ValueError> {
    write_array(out, false, delimiter, text, write_item)
}

fn write_array(
    out: &mut Vec<u8>,
    is_text: bool,
    delimiter: u8,
    text: &[u8],
    write_item: &mut impl FnMut(&mut Vec<u8>, &[u8]) -> Result<(), ValueError>,
) -> Result<(), ValueError> {
    let malformed = ValueError::new("array", "is not of the form {a,b}");
    let mut rest = skip_bounds(text).and_then(|body| body.strip_prefix(b"{")).ok_or(malformed)?;
    let mut scratch = Vec::new();
    let mut depth = 1;
    let mut expect = Expect::First;
    out.push(b'[');
    while depth > 0 {
        (expect, rest) = match (expect, rest) {
            (Expect::First | Expect::Rest, [b'}', tail @ ..]) => {
                depth -= 1;
                out.push(b']');
                (Expect::Rest, tail)
            }
            (Expect::Rest, [byte, tail @ ..]) if *byte == delimiter => {
                out.push(b',');
                (Expect::Item, tail)
            }
            (Expect::First | Expect::Item, [b'{', tail @ ..]) if depth < DIMENSIONS_MAX => {
                depth += 1;
                out.push(b'[');
                (Expect::First, tail)
            }
            (Expect::First | Expect::Item, [b'"', tail @ ..]) => {
                let (item, tail) = Quoted::split(tail).ok_or(malformed)?;
                if is_text {
                    item.write_json_string(out);
                } else {
                    write_item(out, item.text(&mut scratch))?;
                }
                (Expect::Rest, tail)
            }
            (Expect::First | Expect::Item, tail) => {
                let (item, tail) = split_bare(tail, delimiter).ok_or(malformed)?;
                if item.eq_ignore_ascii_case(b"NULL") {
                    out.extend_from_slice(b"null");
                } else {
                    write_item(out, item)?;
                }
                (Expect::Rest, tail)
            }
            (Expect::Rest, _) => return Err(malformed),
        };
    }
    if rest.is_empty() { Ok(()) } else { Err(malformed) }
}

/// Splits before the delimiter or brace that ends an unquoted item; none for what is always quoted.
fn split_bare(text: &[u8], delimiter: u8) -> Option<(&[u8], &[u8])> {
    let ends = |byte: &u8| *byte == delimiter || matches!(byte, b'{' | b'}' | b'"' | b'\\');
    let (item, rest) = text.split_at(text.iter().position(ends)?);
    let ended = rest.first().is_some_and(|byte| *byte == delimiter || *byte == b'}');
    (ended && !item.is_empty()).then_some((item, rest))
}

/// Skips `[0:1][-2:3]=`, where there is such; none when it is broken.
fn skip_bounds(text: &[u8]) -> Option<&[u8]> {
    let integer = |text| match split_digits(<[u8]>::strip_prefix(text, b"-").unwrap_or(text)) {
        ([], _) => None,
        (_, rest) => Some(rest),
    };
    let mut rest = text;
    while let Some(bound) = rest.strip_prefix(b"[") {
        let upper = integer(bound)?.strip_prefix(b":")?;
        rest = integer(upper)?.strip_prefix(b"]")?;
    }
    if rest.len() == text.len() { Some(rest) } else { rest.strip_prefix(b"=") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_broken_texts() {
        let broken = [
            "",
            "{",
            "}",
            "a",
            "{}}",
            "{},",
            "{,}",
            "{a,}",
            "{,a}",
            "{a b",
            "{a",
            "{\"a}",
            "{\"a\"b}",
            "{a\"b\"}",
            "{a\\b}",
            "{a{b}}",
            "{a}{b}",
            "[0:1]",
            "[0:1]{a,b}",
            "[0]={a}",
            "[0:]={a}",
            "[:1]={a}",
            "=[0:1]{a}",
            "{{{{{{{a}}}}}}}",
            "{{a},b",
            "{a;b}x",
        ];
        for text in broken {
            let written = write(&mut Vec::new(), &Kind::Text, b',', text.as_bytes(), &Style::default());
            assert!(written.is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_of_an_element_names_the_element() {
        let error = write(&mut Vec::new(), &Kind::Integer, b',', b"{1,x}", &Style::default()).unwrap_err();
        assert_eq!(error.to_string(), "the integer value is not a whole number");
    }
}
