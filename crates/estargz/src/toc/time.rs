//! Times in a TOC: RFC 3339, as Go writes them.

use super::tree::Time;

const SECONDS_PER_DAY: i64 = 86_400;

/// The time `text` says; the empty text and what is no time are 1970, as the reference takes them.
pub(crate) fn parse(text: &str) -> Time {
    try_parse(text).unwrap_or_default()
}

fn try_parse(text: &str) -> Option<Time> {
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
        nanoseconds: nanoseconds(fraction)?,
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

fn nanoseconds(fraction: &str) -> Option<u32> {
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{fraction:0<9.9}").parse().ok()
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    Some(sign * (digits(hours)? * 3600 + digits(minutes)? * 60))
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar: years begin in March, 400 of them have 146,097 days.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(parse("1970-01-01T00:00:00Z"), Time::default());
        assert_eq!(
            parse("2020-09-13T12:26:40Z"),
            Time {
                seconds: 1_600_000_000,
                nanoseconds: 0
            }
        );
        assert_eq!(
            parse("2020-09-13T14:26:40.25+02:00"),
            Time {
                seconds: 1_600_000_000,
                nanoseconds: 250_000_000
            }
        );
        assert_eq!(parse("1969-12-31T23:59:59Z").seconds, -1);
        assert_eq!(parse("2000-02-29T00:00:00Z").seconds, 951_782_400);
        assert_eq!(parse("0001-01-01T00:00:00Z").seconds, -62_135_596_800);
    }

    #[test]
    fn what_is_no_time_is_1970() {
        for text in [
            "",
            "yesterday",
            "2020-13-01T00:00:00Z",
            "2020-01-01T00:00:00",
            "99999-01-01T00:00:00Z",
            "é",
        ] {
            assert_eq!(parse(text), Time::default(), "{text}");
        }
    }
}
