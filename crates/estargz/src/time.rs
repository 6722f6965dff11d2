//! Modification times: as a pax header has them, and as a TOC has them.

use crate::tar::number;

/// A time since 1970-01-01T00:00:00Z. Nanoseconds count forward from the second, before 1970 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds after that second, fewer than 1,000,000,000.
    pub nanoseconds: u32,
}

/// 0000-01-01 and 9999-12-31T23:59:59, the first and the last time of RFC 3339.
const FIRST_SECOND: i64 = -62_167_219_200;
const LAST_SECOND: i64 = 253_402_300_799;

const NANOS_PER_SECOND: u32 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

impl Time {
    /// Parses a pax time: decimal seconds, with an optional fraction and sign.
    pub(crate) fn from_pax(text: &[u8]) -> Option<Self> {
        let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
            Some(dot) => (&text[..dot], &text[dot + 1..]),
            None => (text, &[][..]),
        };
        let seconds = number::decimal(whole)?;
        let nanoseconds = nanoseconds(fraction)?;
        if nanoseconds > 0 && text.first() == Some(&b'-') {
            return Some(Self {
                seconds: seconds.checked_sub(1)?,
                nanoseconds: NANOS_PER_SECOND - nanoseconds,
            });
        }
        Some(Self {
            seconds,
            nanoseconds,
        })
    }

    /// Formats the time as the value of a pax record.
    pub(crate) fn pax(self) -> String {
        if self.nanoseconds == 0 {
            return self.seconds.to_string();
        }
        if self.seconds >= 0 {
            return format!("{}.{:09}", self.seconds, self.nanoseconds);
        }
        let whole = self.seconds.saturating_add(1).unsigned_abs();
        format!("-{whole}.{:09}", NANOS_PER_SECOND - self.nanoseconds)
    }

    /// Parses the time of a TOC, RFC 3339 as Go writes it. Text that is not a time, such as the
    /// empty text, is 1970, as in the reference.
    pub(crate) fn from_rfc3339(text: &str) -> Self {
        parse_rfc3339(text).unwrap_or_default()
    }

    /// Formats the time as RFC 3339 in UTC, rounded to the second as Go rounds. Within the first
    /// second of 1970 the text is empty, because the reference writes no time there. Years outside
    /// RFC 3339 become the nearest valid one.
    pub fn rfc3339(self) -> String {
        if self.seconds == 0 {
            return String::new();
        }
        let rounded = self
            .seconds
            .saturating_add(i64::from(self.nanoseconds >= NANOS_PER_SECOND / 2));
        let seconds = rounded.clamp(FIRST_SECOND, LAST_SECOND);
        let (year, month, day) = civil(seconds.div_euclid(SECONDS_PER_DAY));
        let clock = seconds.rem_euclid(SECONDS_PER_DAY);
        let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

fn parse_rfc3339(text: &str) -> Option<Time> {
    let (date, time) = text.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let zone_at = time.find(['Z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let [hour, minute, second] = numbers(clock, ':')?;
    let valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    let days = days_since_1970(year, month, day);
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - zone_seconds(zone)?;
    Some(Time {
        seconds,
        nanoseconds: nanoseconds(fraction.as_bytes())?,
    })
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator).map(digits);
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

fn digits(text: &str) -> Option<i64> {
    (text.len() <= 4 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())?
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    Some(sign * (digits(hours)? * 3600 + digits(minutes)? * 60))
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar: years begin in March, 400 of them have
/// 146,097 days.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The first nine digits of a fraction.
fn nanoseconds(fraction: &[u8]) -> Option<u32> {
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
    // Years that begin in March put the leap day last; 146097 days are 400 years, 719468 the days
    // from 0000-03-01.
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

    #[test]
    fn rfc3339_times_are_parsed() {
        assert_eq!(Time::from_rfc3339("1970-01-01T00:00:00Z"), Time::default());
        assert_eq!(
            Time::from_rfc3339("2020-09-13T12:26:40Z"),
            Time {
                seconds: 1_600_000_000,
                nanoseconds: 0
            }
        );
        assert_eq!(
            Time::from_rfc3339("2020-09-13T14:26:40.25+02:00"),
            Time {
                seconds: 1_600_000_000,
                nanoseconds: 250_000_000
            }
        );
        assert_eq!(Time::from_rfc3339("1969-12-31T23:59:59Z").seconds, -1);
        assert_eq!(
            Time::from_rfc3339("2000-02-29T00:00:00Z").seconds,
            951_782_400
        );
        assert_eq!(
            Time::from_rfc3339("0001-01-01T00:00:00Z").seconds,
            -62_135_596_800
        );
    }

    #[test]
    fn text_that_is_not_a_time_is_1970() {
        for text in [
            "",
            "yesterday",
            "2020-13-01T00:00:00Z",
            "2020-01-01T00:00:00",
            "99999-01-01T00:00:00Z",
            "é",
        ] {
            assert_eq!(Time::from_rfc3339(text), Time::default(), "{text}");
        }
    }
}
