//! Numbers of tar headers: octal text, or base 256 if the top bit of the first byte is set.

/// Parses a numeric field. `None` if it has neither form or does not fit.
pub(super) fn parse(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

/// Two's complement, big endian, with the marker bit left out.
fn base256(field: &[u8]) -> Option<i64> {
    let negative = field.first()? & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (index, byte) in field.iter().enumerate() {
        let byte = match (index, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = (value << 8) | i128::from(byte);
        if i64::try_from(value).is_err() {
            return None;
        }
    }
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_filler = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(start) = field.iter().position(|byte| !is_filler(byte)) else {
        return Some(0);
    };
    let digits = field[start..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let digits = digits.trim_ascii_end();
    let text = std::str::from_utf8(digits).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    i64::from_str_radix(text, 8).ok()
}

/// Decimal digits with an optional sign, as in pax records.
pub(crate) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_with_every_kind_of_filler() {
        assert_eq!(parse(b"0000644\0"), Some(0o644));
        assert_eq!(parse(b"   644 \0"), Some(0o644));
        assert_eq!(parse(b"\0\0\0\0"), Some(0));
        assert_eq!(parse(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(parse(b"12x\0"), None);
        assert_eq!(parse(b"8\0"), None);
        assert_eq!(parse(b"-1\0"), None);
    }

    #[test]
    fn base256_of_both_signs() {
        assert_eq!(parse(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(parse(&[0xff; 12]), Some(-1));
        assert_eq!(
            parse(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            None
        );
        assert_eq!(
            parse(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0]),
            Some(-512)
        );
    }
}
