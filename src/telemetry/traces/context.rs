//! The W3C trace context in headers: `traceparent: 00-TRACE-SPAN-FLAGS`.
//!
//! `tracestate` is not passed on: it is for tracing systems, of which none sits between two Starlifts.

use http::{HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The header of the trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The length of a trace context of version 00.
const LENGTH: usize = 55;

/// Reads a `traceparent` (W3C Trace Context, "traceparent Header Field Values"). `None` if it is
/// malformed. Later versions may have more fields, which are ignored.
pub(super) fn parse(text: &str) -> Option<SpanContext> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let mut fields = known.split('-');
    let version = number(fields.next()?, 2)?;
    let trace = number(fields.next()?, 32)?;
    let span = u64::try_from(number(fields.next()?, 16)?).ok()?;
    let flags = u8::try_from(number(fields.next()?, 2)?).ok()?;
    let is_end = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    if fields.next().is_some() || !is_end || trace == 0 || span == 0 {
        return None;
    }
    Some(SpanContext::new(
        TraceId::from_bytes(trace.to_be_bytes()),
        SpanId::from_bytes(span.to_be_bytes()),
        TraceFlags::new(flags) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    ))
}

/// Lower case hexadecimal digits, exactly `length` of them.
fn number(text: &str, length: usize) -> Option<u128> {
    let is_digit = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != length || !text.bytes().all(is_digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

/// Writes the `traceparent` of a span.
pub(super) fn write(context: &SpanContext) -> Option<HeaderValue> {
    let text = format!(
        "00-{}-{}-{:02x}",
        context.trace_id(),
        context.span_id(),
        context.trace_flags().to_u8()
    );
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read_and_written() {
        let context = parse(GOOD).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(write(&context).unwrap(), GOOD);
        let later = format!("cc{}-more", &GOOD[2..]);
        assert_eq!(parse(&later), Some(context));
        let quiet = parse(&GOOD.replace("-01", "-00")).unwrap();
        assert!(!quiet.is_sampled());
    }

    #[test]
    fn malformed_contexts_are_ignored() {
        let none = "0".repeat(32);
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &none),
            &GOOD.replace("00f067aa0ba902b7", &none[..16]),
            &format!("ff{}", &GOOD[2..]),
            &format!("{GOOD}-more"),
            &GOOD.replace("4bf9", "+bf9"),
            &format!("{}é", &GOOD[..54]),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
