//! hstore: `"a"=>"1", "b"=>NULL` in, a JSON object of strings and nulls out.
//!
//! The extension prints keys and values always quoted, NULL never, keys in its own order and each once;
//! the order is kept. Manual: "hstore".

use super::ValueError;
use super::quoted::Quoted;

pub(super) fn write(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    out.push(b'{');
    if !text.is_empty() {
        write_pairs(out, text)
            .ok_or(ValueError::new("hstore", "is not of the form \"a\"=>\"1\", \"b\"=>NULL"))?;
    }
    out.push(b'}');
    Ok(())
}

fn write_pairs(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    let mut rest = text;
    loop {
        let (key, tail) = Quoted::split(rest.strip_prefix(b"\"")?)?;
        key.write_json_string(out);
        out.push(b':');
        rest = match tail.strip_prefix(b"=>")? {
            [b'"', value @ ..] => {
                let (value, tail) = Quoted::split(value)?;
                value.write_json_string(out);
                tail
            }
            [b'N', b'U', b'L', b'L', tail @ ..] => {
                out.extend_from_slice(b"null");
                tail
            }
            _ => return None,
        };
        if rest.is_empty() {
            return Some(());
        }
        rest = rest.strip_prefix(b", ")?;
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_broken_texts() {
        let broken = [
            "a",
            "\"a\"",
            "\"a\"=>",
            "\"a\"=>1",
            "\"a\"=>NULL,",
            "\"a\"=>NULL, ",
            "\"a\"=>\"b",
            "a=>b",
            " ",
            "\"a\"=>\"1\"\"b\"=>\"2\"",
            "\"a\"=>NULLx",
            "\"a\"=>null",
            "\"a\" => \"b\"",
        ];
        for text in broken {
            assert!(write(&mut Vec::new(), text.as_bytes()).is_err(), "{text}");
        }
    }
}
