//! Arrays: their text into elements.
//!
//! In: what `array_out` printed, with or without bounds, of any number of dimensions. Out: the elements in
//! order, and the dimensions, which count for equality. Manual: "Array Input and Output Syntax".

use std::borrow::Cow;

use super::datum::{Datum, Order};
use super::error::EvalError;
use super::types::Type;

/// An array.
#[derive(Clone, Debug, Default)]
pub(super) struct ArrayValue<'a> {
    /// Length and lower bound of each dimension; an empty array has none.
    dimensions: Vec<(usize, i64)>,
    /// Every element, the last dimension fastest; `None` is NULL.
    pub(super) elements: Vec<Option<Datum<'a>>>,
}

impl<'a> ArrayValue<'a> {
    /// Of one dimension, from 1.
    pub(super) fn list(elements: Vec<Option<Datum<'a>>>) -> Self {
        let dimensions = if elements.is_empty() { Vec::new() } else { vec![(elements.len(), 1)] };
        ArrayValue { dimensions, elements }
    }

    /// The same, without the received bytes.
    pub(super) fn into_owned(self) -> ArrayValue<'static> {
        let elements = self.elements.into_iter().map(|element| element.map(Datum::into_owned)).collect();
        ArrayValue { dimensions: self.dimensions, elements }
    }

    /// As `array_eq`: equal bounds, and equal elements, where NULL equals NULL.
    pub(super) fn equals(&self, other: &ArrayValue<'_>, order: &Order) -> Result<bool, EvalError> {
        if self.dimensions != other.dimensions {
            return Ok(false);
        }
        for pair in self.elements.iter().zip(&other.elements) {
            match pair {
                (Some(left), Some(right)) if order.compare(left, right)?.is_eq() => {}
                (None, None) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// A literal of one dimension without anything that would need thought: no bounds, no spaces outside of
/// quotes, no nested braces, no backslashes, no empty elements. None for any other: the server reads it.
pub(super) fn literal_items(text: &str) -> Option<Vec<Option<String>>> {
    let body = text.strip_prefix('{')?.strip_suffix('}')?;
    if body.is_empty() {
        return Some(Vec::new());
    }
    let mut items = Vec::new();
    let mut rest = body;
    loop {
        let item;
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"')?;
            item = Some(quoted.get(..end)?.to_owned());
            rest = quoted.get(end + 1..)?;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let word = rest.get(..end)?;
            if word.is_empty() || word.contains(['"', '{', '}']) || word.contains(char::is_whitespace) {
                return None;
            }
            item = (!word.eq_ignore_ascii_case("null")).then(|| word.to_owned());
            rest = rest.get(end..)?;
        }
        if item.as_ref().is_some_and(|item| item.contains('\\')) {
            return None;
        }
        items.push(item);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return rest.is_empty().then_some(items),
        }
    }
}

/// Reads an array as printed; none when it is not one.
pub(super) fn read<'a>(element: &Type, text: &'a [u8]) -> Result<Option<ArrayValue<'a>>, EvalError> {
    let Some((bounds, mut rest)) = split_bounds(text) else { return Ok(None) };
    let mut elements = Vec::new();
    let mut depth = 0_usize;
    let mut depth_max = 0;
    // How many members each open level has, and had when it last closed.
    let mut counts: Vec<usize> = Vec::new();
    let mut lengths: Vec<usize> = Vec::new();
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'{' => {
                if let Some(count) = counts.last_mut() {
                    *count += 1;
                }
                counts.push(0);
                depth += 1;
                depth_max = depth_max.max(depth);
                rest = after;
            }
            b'}' => {
                let Some(count) = counts.pop() else { return Ok(None) };
                depth -= 1;
                if lengths.len() <= depth {
                    lengths.resize(depth + 1, 0);
                }
                if let Some(length) = lengths.get_mut(depth) {
                    *length = count;
                }
                rest = after;
            }
            b',' => rest = after,
            _ => {
                let Some(count) = counts.last_mut() else { return Ok(None) };
                *count += 1;
                let (item, after) = match item(rest) {
                    Some(item) => item,
                    None => return Ok(None),
                };
                elements.push(match item {
                    None => None,
                    Some(Cow::Borrowed(text)) => Some(Datum::read(element, text)?),
                    Some(Cow::Owned(text)) => Some(Datum::read(element, &text)?.into_owned()),
                });
                rest = after;
            }
        }
    }
    if depth != 0 || depth_max == 0 {
        return Ok(None);
    }
    if elements.is_empty() {
        return Ok(Some(ArrayValue::default()));
    }
    let lower = |at: usize| bounds.get(at).copied().unwrap_or(1);
    let dimensions = lengths.iter().enumerate().map(|(at, &length)| (length, lower(at))).collect();
    Ok(Some(ArrayValue { dimensions, elements }))
}

/// The lower bounds of `[0:1][5:6]={...}`, and the braces.
fn split_bounds(text: &[u8]) -> Option<(Vec<i64>, &[u8])> {
    if text.first() != Some(&b'[') {
        return Some((Vec::new(), text));
    }
    let equals = memchr::memchr(b'=', text)?;
    let bounds = std::str::from_utf8(text.get(..equals)?).ok()?;
    let lower = |bound: &str| bound.split_once(':').and_then(|(lower, _)| lower.parse().ok());
    let bounds = bounds.trim_matches(['[', ']']).split("][").map(lower).collect::<Option<Vec<i64>>>()?;
    Some((bounds, text.get(equals + 1..)?))
}

/// One element as printed, and what follows it.
type Item<'a> = (Option<Cow<'a, [u8]>>, &'a [u8]);

fn item(text: &[u8]) -> Option<Item<'_>> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|byte| matches!(byte, b',' | b'}'))?;
        let (word, rest) = text.split_at_checked(end)?;
        return Some(((word != b"NULL").then_some(Cow::Borrowed(word)), rest));
    };
    let end = memchr::memchr2(b'"', b'\\', quoted)?;
    if quoted.get(end) == Some(&b'"') {
        return Some((Some(Cow::Borrowed(quoted.get(..end)?)), quoted.get(end + 1..)?));
    }
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        match quoted.get(at)? {
            b'"' => return Some((Some(Cow::Owned(out)), quoted.get(at + 1..)?)),
            b'\\' => {
                out.push(*quoted.get(at + 1)?);
                at += 2;
            }
            &byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<Option<String>> {
        let array = read(&Type::Text, text.as_bytes()).expect("texts").expect("an array");
        let text = |datum: Datum<'_>| match datum {
            Datum::Text(text) => String::from_utf8(text.into_owned()).expect("UTF-8"),
            other => panic!("{other:?}"),
        };
        array.elements.into_iter().map(|element| element.map(text)).collect()
    }

    #[test]
    fn reads_what_postgresql_prints() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts("{}"), []);
        assert_eq!(
            texts(r#"{a,NULL,"NULL","","a b","\"\\"}"#),
            [some("a"), None, some("NULL"), some(""), some("a b"), some("\"\\"),]
        );
        assert_eq!(texts("[0:1]={a,b}"), [some("a"), some("b")]);
        assert_eq!(texts("{{a,b},{c,NULL}}").len(), 4);
        assert!(read(&Type::Text, b"a,b").expect("no error").is_none());
        assert!(read(&Type::Text, b"{a").expect("no error").is_none());
    }

    #[test]
    fn bounds_count_for_equality() {
        let read =
            |text: &'static str| read(&Type::Int4, text.as_bytes()).expect("numbers").expect("an array");
        let equal = |left, right| read(left).equals(&read(right), &Order::Int).expect("comparable");
        assert!(equal("{1,2}", "{1,2}"));
        assert!(equal("{1,NULL}", "{1,NULL}"));
        assert!(!equal("{1,2}", "[0:1]={1,2}"));
        assert!(!equal("{1,2,3,4}", "{{1,2},{3,4}}"));
        assert!(equal("{{1,2},{3,4}}", "{{1,2},{3,4}}"));
        assert!(equal("{}", "{}"));
    }

    #[test]
    fn takes_only_plain_literals() {
        assert_eq!(literal_items("{}"), Some(Vec::new()));
        assert_eq!(literal_items("{a,null,\"b c\"}").map(|items| items.len()), Some(3));
        for doubtful in ["{a, b}", "{a,}", "{{a}}", "[0:1]={a,b}", "{a\\b}", "{\"a\"b}", "a", "{\"a\\\"\"}"] {
            assert_eq!(literal_items(doubtful), None, "{doubtful}");
        }
    }
}
