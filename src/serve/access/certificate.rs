//! The identity in a client's certificate. The TLS listener has verified the certificate before:
//! its authority, its time and its purpose.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The beginning of the names of clients with certificates. No user of `htpasswd` has a colon.
const PREFIX: &str = "cert:";
/// The longest name: twice the length of a DNS name.
const MAX_NAME: usize = 512;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// The explicit version in front of the serial number.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `UTF8String`, `PrintableString`, `IA5String`: UTF-8, or a part of it.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// 2.5.4.3
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// A client, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// The name in rules: `cert:NAME`.
    pub(super) user: Arc<str>,
    /// The end of its validity, in seconds since 1970. A connection may last longer.
    pub(super) until: u64,
}

impl ClientCertificate {
    /// Reads a verified certificate. `NAME` is its only URI (a SPIFFE ID), else the only common
    /// name of its subject, else its only DNS name. `None` if there is none, or more than one of a
    /// kind.
    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let CertificateFields {
            until,
            common_names,
            ..
        } = CertificateFields::read(certificate)?;
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let kinds = [
            parsed.valid_uri_names().map(str::to_owned).collect(),
            common_names,
            parsed.valid_dns_names().map(str::to_owned).collect(),
        ];
        let named: Vec<String> = kinds.into_iter().find(|names: &Vec<_>| !names.is_empty())?;
        let [name] = named.as_slice() else {
            return None;
        };
        let is_name = (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control);
        is_name.then(|| Self {
            user: format!("{PREFIX}{name}").into(),
            until,
        })
    }
}

/// Fields of a certificate that has not been verified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CertificateFields {
    /// The validity, in seconds since 1970.
    pub(crate) from: u64,
    pub(crate) until: u64,
    /// The names of the issuer and of the subject, as DER.
    pub(crate) issuer: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    common_names: Vec<String>,
}

impl CertificateFields {
    /// Reads a certificate; `None` if it is malformed.
    pub(crate) fn read(certificate: &[u8]) -> Option<Self> {
        let mut body = Der(certificate).inner(SEQUENCE)?.inner(SEQUENCE)?;
        if body.0.first() == Some(&VERSION) {
            body.next()?;
        }
        // The serial number and the signature's algorithm.
        body.next()?;
        body.next()?;
        let (_, issuer) = body.next()?;
        let mut validity = body.inner(SEQUENCE)?;
        let from = time(validity.next()?)?;
        let until = time(validity.next()?)?;
        let subject = body.inner(SEQUENCE)?;
        Some(Self {
            from,
            until,
            issuer: issuer.to_vec(),
            subject: subject.0.to_vec(),
            common_names: common_names(subject)?,
        })
    }
}

fn common_names(mut subject: Der<'_>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    while !subject.0.is_empty() {
        let mut attributes = subject.inner(SET)?;
        while !attributes.0.is_empty() {
            let mut attribute = attributes.inner(SEQUENCE)?;
            let kind = attribute.next()?;
            let (tag, text) = attribute.next()?;
            if kind == (OBJECT_ID, &COMMON_NAME) && TEXTS.contains(&tag) {
                names.push(std::str::from_utf8(text).ok()?.to_owned());
            }
        }
    }
    Some(names)
}

/// Seconds since 1970; 0 for a time before that, which is over.
fn time((tag, text): (u8, &[u8])) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        // RFC 5280, section 4.1.2.5.1: two digits of the years from 1950 to 2049.
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let part = |at: usize, length: usize| text.get(at..at + length);
    let (year, month, day) = (part(0, 4)?, part(4, 2)?, part(6, 2)?);
    let (hour, minute, second) = (part(8, 2)?, part(10, 2)?, part(12, 2)?);
    if text.len() != 14 {
        return None;
    }
    if year < "1970" {
        return Some(0);
    }
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let time = humantime::parse_rfc3339(&text).ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Elements of DER, one after the other.
#[derive(Debug, Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Takes an element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk::<2>()?;
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let bytes = usize::from(first & 0x7f);
            // A certificate comes in one message of TLS, which is below 16 MiB.
            if !(1..=3).contains(&bytes) {
                return None;
            }
            let (digits, after) = rest.split_at_checked(bytes)?;
            length = digits
                .iter()
                .fold(0, |sum, &digit| sum << 8 | usize::from(digit));
            rest = after;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// Takes an element with this tag, whose content is elements.
    fn inner(&mut self, wanted: u8) -> Option<Self> {
        let (tag, content) = self.next()?;
        (tag == wanted).then_some(Self(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_kinds_are_read() {
        for (tag, text, expected) in [
            (UTC_TIME, "700101000001Z", Some(1)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(0)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20501301000000Z", None),
            (UTC_TIME, "70010100000Z", None),
            (UTC_TIME, "7001010000011Z", None),
            (UTC_TIME, "700101000001", None),
            (UTC_TIME, "", None),
            (OBJECT_ID, "700101000001Z", None),
        ] {
            assert_eq!(time((tag, text.as_bytes())), expected, "{text}");
        }
    }

    #[test]
    fn lengths_beyond_the_bytes_are_no_elements() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 1],
            &[0x30, 0x80],
            &[0x30, 0x81],
            &[0x30, 0x82, 1],
            &[0x30, 0x84, 0, 0, 0, 0],
            &[0x30, 0xff],
        ] {
            assert_eq!(Der(bytes).next(), None, "{bytes:?}");
        }
        assert_eq!(Der(&[0x30, 0x81, 1, 7, 9]).next(), Some((0x30, &[7][..])));
        assert_eq!(CertificateFields::read(&[0x30, 3, 0x30, 1, 0]), None);
    }
}
