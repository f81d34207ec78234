//! `->` and `->>` on the text of json and jsonb.
//!
//! In: a document as PostgreSQL printed it, so valid JSON; jsonb in its normal form, json as it was stored.
//! Out: the part's text, borrowed. json keeps spaces, digits and the last of equal keys, and refuses
//! escapes that are no text anywhere in the document, as PostgreSQL's parser does; jsonb has none of these.
//! No recursion: depth is a counter. Manual: "JSON Functions and Operators".

use std::borrow::Cow;

use super::error::EvalError;

const FORM: EvalError = EvalError::Form { type_name: "json" };

/// The value of a key of an object; none when there is no such key, or no object.
pub(super) fn field<'a>(
    document: &'a [u8],
    key: &[u8],
    is_binary: bool,
) -> Result<Option<&'a [u8]>, EvalError> {
    let mut found = None;
    let mut members = Members::of(document, b'{', is_binary)?;
    while let Some((name, value)) = members.next()? {
        if unescape(name)?.as_ref() == key {
            found = Some(value);
            if is_binary {
                break;
            }
        }
    }
    Ok(found)
}

/// The element of an array, from the end where `index` is negative; none when there is no such element, or
/// no array. A scalar jsonb is an array of itself to PostgreSQL.
pub(super) fn element(document: &[u8], index: i64, is_binary: bool) -> Result<Option<&[u8]>, EvalError> {
    let trimmed = trim(document);
    if is_binary && !matches!(trimmed.first(), Some(b'{' | b'[')) {
        return Ok(matches!(index, 0 | -1).then_some(trimmed));
    }
    let index = if index < 0 {
        let mut members = Members::of(document, b'[', is_binary)?;
        let mut count: i64 = 0;
        while members.next()?.is_some() {
            count += 1;
        }
        index + count
    } else {
        index
    };
    let mut members = Members::of(document, b'[', is_binary)?;
    let mut at = 0;
    while let Some((_, value)) = members.next()? {
        if at == index {
            return Ok(Some(value));
        }
        at += 1;
    }
    Ok(None)
}

/// What `->>` makes of a part: a string without quotes and escapes, nothing of `null`, else its text.
pub(super) fn as_text(part: &[u8]) -> Result<Option<Cow<'_, [u8]>>, EvalError> {
    match part.first() {
        Some(b'"') => unescape(part).map(Some),
        _ if part == b"null" => Ok(None),
        _ => Ok(Some(Cow::Borrowed(part))),
    }
}

/// A key with its quotes, and a value.
type Member<'a> = (&'a [u8], &'a [u8]);

/// The members of one container, in order.
struct Members<'a> {
    text: &'a [u8],
    at: usize,
    is_object: bool,
    is_done: bool,
}

impl<'a> Members<'a> {
    /// Of a document that begins with `open`; of any other document none.
    fn of(text: &'a [u8], open: u8, is_binary: bool) -> Result<Self, EvalError> {
        if !is_binary {
            check_escapes(text)?;
        }
        let text = trim(text);
        let is_it = text.first() == Some(&open);
        Ok(Members { text, at: 1, is_object: open == b'{', is_done: !is_it })
    }

    /// The next member: its key with quotes (of an array nothing), and its value.
    fn next(&mut self) -> Result<Option<Member<'a>>, EvalError> {
        if self.is_done {
            return Ok(None);
        }
        self.skip_space();
        match self.text.get(self.at) {
            Some(b'}' | b']') => {
                self.is_done = true;
                return Ok(None);
            }
            Some(b',') => self.at += 1,
            Some(_) => {}
            None => return Err(FORM),
        }
        let mut name = &[][..];
        if self.is_object {
            name = self.value()?;
            self.skip_space();
            if self.text.get(self.at) != Some(&b':') {
                return Err(FORM);
            }
            self.at += 1;
        }
        Ok(Some((name, self.value()?)))
    }

    /// The value that begins here, and moves behind it.
    fn value(&mut self) -> Result<&'a [u8], EvalError> {
        self.skip_space();
        let from = self.at;
        let mut depth = 0_usize;
        loop {
            match self.text.get(self.at).ok_or(FORM)? {
                b'"' => self.at = string_end(self.text, self.at)?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1).ok_or(FORM)?;
                    self.at += 1;
                }
                byte if depth == 0 && !is_scalar_byte(*byte) => return Err(FORM),
                byte if depth == 0 || is_scalar_byte(*byte) => {
                    let rest = self.text.get(self.at..).unwrap_or_default();
                    self.at += rest.iter().take_while(|&&byte| is_scalar_byte(byte)).count();
                }
                _ => self.at += 1,
            }
            if depth == 0 {
                return self.text.get(from..self.at).ok_or(FORM);
            }
        }
    }

    fn skip_space(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|byte| is_space(**byte)).count();
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// A byte of a number, `true`, `false` or `null`.
fn is_scalar_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

fn trim(text: &[u8]) -> &[u8] {
    let from = text.iter().position(|&byte| !is_space(byte)).unwrap_or(text.len());
    let to = text.iter().rposition(|&byte| !is_space(byte)).map_or(from, |at| at + 1);
    text.get(from..to).unwrap_or_default()
}

/// Behind the closing quote of the string that begins at `at`.
fn string_end(text: &[u8], at: usize) -> Result<usize, EvalError> {
    let mut at = at + 1;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        at += memchr::memchr2(b'"', b'\\', rest).ok_or(FORM)?;
        if text.get(at) == Some(&b'"') {
            return Ok(at + 1);
        }
        at += 2;
    }
}

/// The text of a string literal, quotes included.
fn unescape(literal: &[u8]) -> Result<Cow<'_, [u8]>, EvalError> {
    let body = literal.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).ok_or(FORM)?;
    if memchr::memchr(b'\\', body).is_none() {
        return Ok(Cow::Borrowed(body));
    }
    let mut out = Vec::with_capacity(body.len());
    let mut at = 0;
    while let Some(&byte) = body.get(at) {
        if byte != b'\\' {
            out.push(byte);
            at += 1;
            continue;
        }
        let escaped = *body.get(at + 1).ok_or(FORM)?;
        at += 2;
        out.push(match escaped {
            b'"' | b'\\' | b'/' => escaped,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = hex(body, at)?;
                at += 4;
                if (0xd800..0xdc00).contains(&code) {
                    let low = hex(body, at + 2)?;
                    at += 6;
                    code = 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff);
                }
                let character = char::from_u32(code).ok_or(EvalError::JsonEscape)?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            _ => return Err(FORM),
        });
    }
    Ok(Cow::Owned(out))
}

fn hex(text: &[u8], at: usize) -> Result<u32, EvalError> {
    let digits = text.get(at..at + 4).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or(FORM)?;
    u32::from_str_radix(digits, 16).map_err(|_| FORM)
}

/// Refuses `\u0000` and surrogates without a partner, wherever they stand.
fn check_escapes(text: &[u8]) -> Result<(), EvalError> {
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        at += found;
        if text.get(at + 1) != Some(&b'u') {
            at += 2;
            continue;
        }
        let code = hex(text, at + 2)?;
        at += 6;
        match code {
            0 | 0xdc00..=0xdfff => return Err(EvalError::JsonEscape),
            0xd800..=0xdbff => {
                let has_low =
                    text.get(at..at + 2) == Some(br"\u") && (0xdc00..=0xdfff).contains(&hex(text, at + 2)?);
                if !has_low {
                    return Err(EvalError::JsonEscape);
                }
                at += 6;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(document: &str, key: &str, is_binary: bool) -> Option<String> {
        let part = field(document.as_bytes(), key.as_bytes(), is_binary).expect("a document")?;
        Some(String::from_utf8(part.to_vec()).expect("UTF-8"))
    }

    #[test]
    fn json_keeps_its_text_and_the_last_key() {
        let document = " {\"a\" : 1.0 , \"b\":{\"a\":[2, \"}\"]}, \"\\u0061\": [ 1 ] } ";
        assert_eq!(get(document, "a", false).as_deref(), Some("[ 1 ]"));
        assert_eq!(get(document, "b", false).as_deref(), Some("{\"a\":[2, \"}\"]}"));
        assert_eq!(get(document, "c", false), None);
        assert_eq!(get("[1]", "a", false), None);
        assert_eq!(field(br#"{"a":1,"b":"\u0000"}"#, b"a", false), Err(EvalError::JsonEscape));
        assert_eq!(field(br#"{"a":1,"b":"\ud83d"}"#, b"a", false), Err(EvalError::JsonEscape));
    }

    #[test]
    fn elements_count_from_either_end() {
        let at = |index| element(b"[1, [2, 3], \"x\", null]", index, true).expect("a document");
        assert_eq!(at(1), Some(&b"[2, 3]"[..]));
        assert_eq!(at(-1), Some(&b"null"[..]));
        assert_eq!((at(4), at(-5)), (None, None));
        assert_eq!(element(b"[]", 0, true), Ok(None));
        assert_eq!(element(b"5", 0, true), Ok(Some(&b"5"[..])));
        assert_eq!(element(b"5", 0, false), Ok(None));
    }

    #[test]
    fn text_of_strings_has_no_escapes() {
        let text = |part: &'static str| as_text(part.as_bytes()).expect("a part").map(Cow::into_owned);
        assert_eq!(text(r#""a\"\\\n\u00e4\ud83d\ude00""#), Some("a\"\\\nä😀".as_bytes().to_vec()));
        assert_eq!(text("null"), None);
        assert_eq!(text("\"null\""), Some(b"null".to_vec()));
    }
}
