//! Modification times: as tar keeps them, and as a TOC writes them.

use super::number;

/// Seconds and nanoseconds since 1970; `nanos` counts forward from `seconds`, before 1970 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

/// 0000-01-01 and 9999-12-31T23:59:59, the ends of what RFC 3339 can say.
const FIRST_SECOND: i64 = -62_167_219_200;
const LAST_SECOND: i64 = 253_402_300_799;

const NANOS_PER_SECOND: u32 = 1_000_000_000;

impl Time {
    /// A pax time: decimal seconds, with an optional fraction and sign.
    pub(super) fn from_pax(text: &[u8]) -> Option<Self> {
        let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
            Some(dot) => (&text[..dot], &text[dot + 1..]),
            None => (text, &[][..]),
        };
        let seconds = number::decimal(whole)?;
        let nanos = nanos(fraction)?;
        if nanos > 0 && text.first() == Some(&b'-') {
            return Some(Self {
                seconds: seconds.checked_sub(1)?,
                nanos: NANOS_PER_SECOND - nanos,
            });
        }
        Some(Self { seconds, nanos })
    }

    /// The same time as a pax record's value.
    pub(super) fn pax(self) -> String {
        if self.nanos == 0 {
            return self.seconds.to_string();
        }
        if self.seconds >= 0 {
            return format!("{}.{:09}", self.seconds, self.nanos);
        }
        let whole = self.seconds.saturating_add(1).unsigned_abs();
        format!("-{whole}.{:09}", NANOS_PER_SECOND - self.nanos)
    }

    /// RFC 3339 in UTC, rounded to the second as Go rounds; empty within the first second of 1970, where the
    /// reference writes no time. Years that RFC 3339 cannot write become the nearest it can.
    pub fn rfc3339(self) -> String {
        if self.seconds == 0 {
            return String::new();
        }
        let rounded = self
            .seconds
            .saturating_add(i64::from(self.nanos >= NANOS_PER_SECOND / 2));
        let seconds = rounded.clamp(FIRST_SECOND, LAST_SECOND);
        let (year, month, day) = civil(seconds.div_euclid(86_400));
        let clock = seconds.rem_euclid(86_400);
        let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// The first nine digits of a fraction.
fn nanos(fraction: &[u8]) -> Option<u32> {
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction
        .iter()
        .copied()
        .chain(std::iter::repeat(b'0'))
        .take(9);
    Some(digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years that begin in March put the leap day last; 146097 days are 400 years, 719468 the days from 0000-03-01.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pax: &str) -> String {
        Time::from_pax(pax.as_bytes()).unwrap().rfc3339()
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        assert_eq!(text("1609459200"), "2021-01-01T00:00:00Z");
        assert_eq!(text("1709164800"), "2024-02-29T00:00:00Z");
        assert_eq!(text("1609459200.5"), "2021-01-01T00:00:01Z");
        assert_eq!(text("1609459200.4999999999"), "2021-01-01T00:00:00Z");
        assert_eq!(text("0"), "");
        assert_eq!(text("0.9"), "");
        assert_eq!(text("-0.5"), "1970-01-01T00:00:00Z");
        assert_eq!(text("-315619199.5"), "1960-01-01T00:00:01Z");
        assert_eq!(text("-1"), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn pax_times_survive() {
        for pax in ["7", "7.25", "-7", "-7.25", "-0.5", "0"] {
            let time = Time::from_pax(pax.as_bytes()).unwrap();
            assert_eq!(Time::from_pax(time.pax().as_bytes()), Some(time), "{pax}");
        }
    }

    #[test]
    fn times_beyond_the_calendar_are_its_ends() {
        assert_eq!(text("9223372036854775807"), "9999-12-31T23:59:59Z");
        assert_eq!(text("-9223372036854775808"), "0000-01-01T00:00:00Z");
        assert_eq!(Time::from_pax(b"1.2x"), None);
        assert_eq!(Time::from_pax(b""), None);
    }
}
