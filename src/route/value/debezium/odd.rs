//! Types that Debezium gives a form of its own: money, bit strings, points.
//!
//! Manual: "Monetary Types", "Bit String Types", "Geometric Types"; OGC 06-103r4 for well-known binary.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::ValueError;
use super::super::scalar::{is_number, quote_plain};

/// The number in `$1,234.50`. Where `lc_monetary` prints another currency, or another decimal point, it is refused.
pub(super) fn write_money(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let number: Vec<u8> = text.iter().copied().filter(|byte| !b"$,".contains(byte)).collect();
    if !is_number(&number) {
        return Err(ValueError::new("money", "is not of the form $1,234.50"));
    }
    quote_plain(out, &number);
    Ok(())
}

pub(super) fn write_bit(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    out.extend_from_slice(match text {
        b"1" => b"true",
        // A varbit(1) may be empty.
        b"0" | b"" => b"false",
        _ => return Err(ValueError::new("bit", "is neither 1 nor 0")),
    });
    Ok(())
}

/// The bytes of a bit string, whose last bit is the lowest of the first byte; without zero bytes at the end.
pub(super) fn write_bits(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let mut bytes = vec![0_u8; text.len().div_ceil(8)];
    for (byte, bits) in bytes.iter_mut().zip(text.rchunks(8)) {
        for bit in bits {
            *byte = *byte << 1
                | match bit {
                    b'0' => 0,
                    b'1' => 1,
                    _ => return Err(ValueError::new("bit string", "holds something else than 0 and 1")),
                };
        }
    }
    let length = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(length);
    quote_plain(out, STANDARD.encode(bytes).as_bytes());
    Ok(())
}

pub(super) fn write_point(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ValueError> {
    let malformed = ValueError::new("point", "is not of the form (1,2)");
    let inside = text.strip_prefix(b"(").and_then(|text| text.strip_suffix(b")")).ok_or(malformed)?;
    let (x, y) = inside
        .split_at_checked(inside.iter().position(|&byte| byte == b',').ok_or(malformed)?)
        .ok_or(malformed)?;
    let y = y.strip_prefix(b",").ok_or(malformed)?;
    // Little-endian, a point.
    let mut binary = vec![1, 1, 0, 0, 0];
    out.push(b'{');
    for (name, coordinate) in [(&b"\"x\":"[..], x), (b",\"y\":", y)] {
        let number: f64 =
            std::str::from_utf8(coordinate).ok().and_then(|text| text.parse().ok()).ok_or(malformed)?;
        binary.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(name);
        super::scalar::write_float(out, coordinate)?;
    }
    out.extend_from_slice(br#","wkb":"#);
    quote_plain(out, STANDARD.encode(binary).as_bytes());
    out.extend_from_slice(br#","srid":null}"#);
    Ok(())
}
