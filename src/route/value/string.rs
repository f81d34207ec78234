//! JSON strings: UTF-8 text in, quoted and escaped, on one line.
//!
//! Escaped is what RFC 8259 section 7 demands and nothing else: the quote, the backslash and the
//! control characters below U+0020. Runs without any of them are copied whole.

use super::ValueError;

/// Appends `text` as a JSON string, quotes included.
///
/// # Errors
/// When it is not valid UTF-8; nothing is appended then.
pub fn write_string(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let text = std::str::from_utf8(text).map_err(|_| ValueError::not_utf8("text"))?;
    write_str(out, text);
    Ok(())
}

/// Appends `text` as a JSON string, quotes included.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    quote(out, text.as_bytes());
}

/// Appends UTF-8 as a JSON string, quotes included.
pub(super) fn quote(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}

/// Appends UTF-8 as the inside of a JSON string. Pieces cut before ASCII may be escaped one by one.
pub(super) fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let (plain, tail) = rest.split_at(plain_len(rest));
        out.extend_from_slice(plain);
        let Some((&special, tail)) = tail.split_first() else { return };
        match ESCAPES[usize::from(special)] {
            HEX => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let digit = |nibble: u8| DIGITS[usize::from(nibble & 0xF)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(special >> 4), digit(special)]);
            }
            letter => out.extend_from_slice(&[b'\\', letter]),
        }
        rest = tail;
    }
}

/// The length of the longest prefix in which nothing needs an escape.
fn plain_len(text: &[u8]) -> usize {
    let is_special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    // Whole chunks without a branch per byte, which the compiler turns into vector instructions.
    let (chunks, _) = text.as_chunks::<16>();
    let clean = chunks.iter().take_while(|chunk| !chunk.iter().fold(false, |any, &b| any | is_special(b)));
    let start = clean.count() * 16;
    let (_, tail) = text.split_at(start);
    start + tail.iter().position(|&b| ESCAPES[usize::from(b)] != 0).unwrap_or(tail.len())
}

/// Marks bytes that are written as `\u00XX`.
const HEX: u8 = b'u';

/// For each byte the letter after the backslash, [`HEX`], or 0 when it stands for itself.
static ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = HEX;
        control += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0A] = b'n';
    table[0x0C] = b'f';
    table[0x0D] = b'r';
    table[0x22] = b'"';
    table[0x5C] = b'\\';
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_what_json_demands_and_nothing_else() {
        let mut out = Vec::new();
        write_str(&mut out, "a\"b\\c\n\r\t\u{8}\u{c}\u{0}\u{1}\u{1f}\u{7f}é\u{2028}😀/");
        let expected = "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0000\\u0001\\u001f\u{7f}é\u{2028}😀/\"";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn finds_a_special_byte_at_every_place() {
        for len in 0..70 {
            for place in 0..len {
                let mut text = vec![b'x'; len];
                text[place] = b'"';
                assert_eq!(plain_len(&text), place, "of {len}");
            }
            assert_eq!(plain_len(&vec![b'x'; len]), len);
        }
    }

    #[test]
    fn refuses_other_encodings_and_appends_nothing() {
        let mut out = b"before".to_vec();
        let error = write_string(&mut out, b"caf\xe9").unwrap_err();
        assert_eq!(error.to_string(), "the text value is not valid UTF-8");
        assert_eq!(out, b"before");
    }

    proptest! {
        #[test]
        fn serde_json_reads_the_text_back(text in r#"([ -~]|\PC|["\\\x00-\x1f]){0,200}"#) {
            let mut out = Vec::new();
            write_string(&mut out, text.as_bytes()).unwrap();
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
