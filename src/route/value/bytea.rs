//! bytea: PostgreSQL's hex form in (`\x00ff`), a base64 string out.
//!
//! Block by block over the stack, so that a large value needs no second buffer. The older escape form
//! cannot come, since the session sets `bytea_output = hex`. Manual: "bytea Hex Format"; RFC 4648 section 4.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use faster_hex::hex_decode;

use super::ValueError;

const MALFORMED: ValueError = ValueError::new("bytea", "is not in the hex format");

/// Bytes encoded at a time; a multiple of three, so that only the last block is padded.
const BLOCK_BYTES: usize = 1536;

pub(super) fn write(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let digits = digits(text)?;
    out.reserve((digits.len() / 2).div_ceil(3) * 4 + 2);
    out.push(b'"');
    let mut bytes = [0; BLOCK_BYTES];
    for block in digits.chunks(2 * BLOCK_BYTES) {
        let (bytes, _) = bytes.split_at_mut(block.len() / 2);
        hex_decode(block, bytes).map_err(|_| MALFORMED)?;
        let start = out.len();
        out.resize(start + bytes.len().div_ceil(3) * 4, 0);
        let (_, space) = out.split_at_mut(start);
        STANDARD.encode_slice(bytes, space).expect("four characters were made for every three bytes");
    }
    out.push(b'"');
    Ok(())
}

/// Appends the bytes themselves.
pub(super) fn decode(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let digits = digits(text)?;
    let start = out.len();
    out.resize(start + digits.len() / 2, 0);
    let (_, space) = out.split_at_mut(start);
    hex_decode(digits, space).map_err(|_| MALFORMED)?;
    Ok(())
}

/// Behind the prefix: two for each byte.
fn digits(text: &[u8]) -> Result<&[u8], ValueError> {
    text.strip_prefix(b"\\x").filter(|digits| digits.len() % 2 == 0).ok_or(MALFORMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_around_a_block_decodes_to_the_same_bytes() {
        for len in (0..9).chain(BLOCK_BYTES - 4..BLOCK_BYTES + 4).chain([3 * BLOCK_BYTES + 1]) {
            let bytes: Vec<u8> = (0..=255).cycle().take(len).collect();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut out = Vec::new();
            write(&mut out, format!("\\x{hex}").as_bytes()).unwrap();
            let base64: String = serde_json::from_slice(&out).unwrap();
            let mut decoded = Vec::new();
            decode(&mut decoded, format!("\\x{hex}").as_bytes()).unwrap();
            assert_eq!(decoded, bytes);
            assert_eq!(STANDARD.decode(base64).unwrap(), bytes, "{len} bytes");
        }
    }

    #[test]
    fn refuses_other_forms() {
        for text in ["", "x00", "\\", "\\x0", "\\xzz", "\\x00 ", "\\000", "abc", "\\x0g"] {
            assert!(write(&mut Vec::new(), text.as_bytes()).is_err(), "{text}");
            assert!(decode(&mut Vec::new(), text.as_bytes()).is_err(), "{text}");
        }
    }
}
