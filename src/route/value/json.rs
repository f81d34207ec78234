//! json and jsonb: embedded as they stand, key order, doubled keys, spaces and digits included.
//!
//! PostgreSQL has parsed the text when it was stored, so only its two ends are looked at here, not its
//! grammar again. A json text (jsonb prints none) may hold line breaks between its parts; inside its
//! strings they are always escaped. They become spaces, which mean the same, so that one event is one
//! line. Manual: "JSON Types".

use memchr::memchr2;

use super::ValueError;
use super::scalar::is_number;

pub(super) fn write(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    if !has_ends_of_json(text) {
        return Err(ValueError::new("json", "does not begin and end as JSON does"));
    }
    let is_line_break = |byte: u8| byte == b'\n' || byte == b'\r';
    if memchr2(b'\n', b'\r', text).is_none() {
        out.extend_from_slice(text);
    } else {
        out.extend(text.iter().map(|&byte| if is_line_break(byte) { b' ' } else { byte }));
    }
    Ok(())
}

fn has_ends_of_json(text: &[u8]) -> bool {
    match text.trim_ascii() {
        [b'{', .., b'}'] | [b'[', .., b']'] | [b'"', .., b'"'] => true,
        b"true" | b"false" | b"null" => true,
        scalar => is_number(scalar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_be_json() {
        for text in ["", " ", "{", "\"", "nul", "{]", "[1}", "'a'", "01", "{}x"] {
            assert!(write(&mut Vec::new(), text.as_bytes()).is_err(), "{text}");
        }
    }
}
