//! `WWW-Authenticate` (RFC 9110, section 11.6.1; distribution's token specification), as registries
//! write it in practice.
//!
//! Parsing never fails: the readable parts of a header are used, the rest is skipped. Commas may be
//! missing or doubled, values may lack quotes, and other schemes may appear anywhere.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use super::token::{Action, TokenKey};
use crate::registry::error::Error;

/// The most bytes of a header that are read. A scope that names many repositories takes some KiB.
const MAX_HEADER: usize = 16 << 10;
/// Schemes that are recognised by their names. Any other word is a scheme if it begins a header or
/// if parameters follow it.
const SCHEMES: [&str; 6] = ["basic", "bearer", "digest", "negotiate", "ntlm", "kerberos"];

/// The authentication that a registry requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// One challenge, parsed but not interpreted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Written {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Returns the best of the challenges in a 401: a token is preferred to a password.
    pub(in crate::registry) fn from_headers(headers: &HeaderMap) -> Result<Self, Error> {
        let written = headers.get_all(WWW_AUTHENTICATE).iter().flat_map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            parse(&text)
        });
        let mut best = None;
        for challenge in written.filter_map(|written| written.to_challenge()) {
            match challenge {
                bearer @ Self::Bearer { .. } => return Ok(bearer),
                Self::Basic => best = Some(Self::Basic),
            }
        }
        best.ok_or(Error::Unauthorized)
    }

    /// Returns the cache key of a token that satisfies the challenge.
    pub(crate) fn token_key(&self, repository: &str, action: Action) -> TokenKey {
        match self {
            Self::Basic => TokenKey::default(),
            Self::Bearer {
                realm,
                service,
                scope,
            } => TokenKey {
                realm: realm.clone(),
                service: service.clone(),
                scope: scope.clone().unwrap_or_else(|| action.scope(repository)),
                repository: repository.to_owned(),
            },
        }
    }

    /// Returns the bytes that its texts take in memory.
    pub(in crate::registry) fn weight(&self) -> usize {
        match self {
            Self::Basic => 0,
            Self::Bearer {
                realm,
                service,
                scope,
            } => {
                let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                realm.len() + optional(service) + optional(scope)
            }
        }
    }
}

impl Written {
    fn to_challenge(&self) -> Option<Challenge> {
        if self.scheme.eq_ignore_ascii_case("bearer") {
            return Some(Challenge::Bearer {
                realm: self.parameter("realm")?,
                service: self.parameter("service"),
                scope: self.parameter("scope"),
            });
        }
        self.scheme
            .eq_ignore_ascii_case("basic")
            .then_some(Challenge::Basic)
    }

    fn parameter(&self, wanted: &str) -> Option<String> {
        let mut found = self
            .parameters
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found
            .next()
            .map(|(_, value)| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    }
}

/// Returns the challenges of one header.
fn parse(text: &str) -> Vec<Written> {
    let mut rest = cut(text, MAX_HEADER);
    let mut found: Vec<Written> = Vec::new();
    loop {
        rest = rest.trim_start_matches(|letter: char| !is_word(letter));
        let (word, behind) = split_word(rest);
        if word.is_empty() {
            return found;
        }
        let next = behind.trim_start();
        if let Some(value) = next.strip_prefix('=')
            && let Some(current) = found.last_mut()
        {
            let (value, behind) = split_value(value.trim_start());
            current.parameters.push((word.to_owned(), value));
            rest = behind;
            continue;
        }
        rest = behind;
        if found.is_empty() || is_scheme(word) || is_parameter(next) {
            found.push(Written {
                scheme: word.to_owned(),
                parameters: Vec::new(),
            });
        } else if behind_comma(text, word, behind)
            && let Some((name, value)) = found
                .last_mut()
                .and_then(|current| current.parameters.last_mut())
            && name.eq_ignore_ascii_case("scope")
        {
            // A scope without quotes: `repository:a:pull,push`.
            value.push(',');
            value.push_str(word);
        }
    }
}

fn is_scheme(word: &str) -> bool {
    SCHEMES
        .iter()
        .any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// Whether `text` begins with `name=`.
fn is_parameter(text: &str) -> bool {
    let (name, behind) = split_word(text);
    !name.is_empty() && behind.trim_start().starts_with('=')
}

/// Whether a comma directly precedes `word` in `text`. `behind` is the text after `word`.
fn behind_comma(text: &str, word: &str, behind: &str) -> bool {
    let end = cut(text, MAX_HEADER)
        .len()
        .saturating_sub(behind.len() + word.len());
    text.get(..end).is_some_and(|before| before.ends_with(','))
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_graphic() && !matches!(letter, ',' | '=' | '"' | ';')
}

fn split_word(text: &str) -> (&str, &str) {
    let end = text.find(|letter| !is_word(letter)).unwrap_or(text.len());
    text.split_at(end)
}

/// Splits off a quoted text, or the text up to a comma, semicolon or space.
fn split_value(text: &str) -> (String, &str) {
    if let Some(inner) = text.strip_prefix('"')
        && let Some(quoted) = split_quoted(inner)
    {
        return quoted;
    }
    if let Some(inner) = text.strip_prefix('\'')
        && let Some((value, behind)) = inner.split_once('\'')
    {
        return (value.to_owned(), behind);
    }
    let text = text.strip_prefix('"').unwrap_or(text);
    let end = text
        .find(|letter: char| letter == ',' || letter == ';' || letter.is_whitespace())
        .unwrap_or(text.len());
    let (value, behind) = text.split_at(end);
    (value.trim_end_matches('"').to_owned(), behind)
}

/// Splits the text at the closing quote; `None` if there is none.
fn split_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    None
}

/// Returns at most `length` bytes of a text.
fn cut(text: &str, length: usize) -> &str {
    text.get(..text.floor_char_boundary(length))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn challenge(values: &[&str]) -> Result<Challenge, Error> {
        let value = |value: &&str| {
            (
                WWW_AUTHENTICATE,
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            )
        };
        Challenge::from_headers(&values.iter().map(value).collect())
    }

    fn bearer(service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: owned(service),
            scope: owned(scope),
        }
    }

    #[test]
    fn a_bearer_challenge_is_preferred_in_any_position() {
        let bearer = bearer(Some("registry"), Some("repository:a/b:pull,push"));
        let text = r#"bearer Realm="https://auth.example/token",service=registry,scope="repository:a/b:pull,push""#;
        assert_eq!(challenge(&[r#"Basic realm="x""#, text]).unwrap(), bearer);
        let joined = r#"Basic realm="x", Bearer realm="https://auth.example/token", service="registry", scope="repository:a/b:pull,push""#;
        assert_eq!(challenge(&[joined]).unwrap(), bearer);
    }

    #[test]
    fn unknown_challenges_are_left_out() {
        assert_eq!(
            challenge(&["Negotiate", r#"BASIC realm="x""#]).unwrap(),
            Challenge::Basic
        );
        for values in [
            &[][..],
            &["Bearer"],
            &["Bearer service=x"],
            &["Digest realm=\"x\""],
            &["\"", ",,,"],
            &["="],
        ] {
            assert!(
                matches!(challenge(values), Err(Error::Unauthorized)),
                "{values:?}"
            );
        }
    }

    #[test]
    fn basic_challenges_are_accepted_in_every_form() {
        for text in [
            "Basic",
            "basic realm=/",
            "Basic realm=Artifactory Realm",
            "Basic realm=Reducated",
            "Basic realm=\"never closed",
            "Basic,",
            "Negotiate abc==, Basic realm=x",
            "\u{feff}Basic realm=\"x\"",
            ", ,Basic realm=\"x\",",
            "X-Custom a=b Basic realm=x",
        ] {
            assert_eq!(challenge(&[text]).unwrap(), Challenge::Basic, "{text}");
        }
    }

    #[test]
    fn bearer_challenges_are_accepted_in_every_form() {
        const REALM: &str = "https://auth.example/token";
        for (text, service, scope) in [
            (
                format!(r#"Bearer realm="{REALM}",service=gcr.io"#),
                Some("gcr.io"),
                None,
            ),
            (
                format!(r#"Bearer realm="{REALM}" service="r" scope="a" error="invalid_token""#),
                Some("r"),
                Some("a"),
            ),
            (format!("Bearer realm={REALM},service=r"), Some("r"), None),
            (format!("Bearer realm='{REALM}'"), None, None),
            (
                format!("BEARER REALM = \"{REALM}\" , , SERVICE = r ,"),
                Some("r"),
                None,
            ),
            (
                format!("Bearer realm={REALM},scope=repository:a:pull,push,service=r"),
                Some("r"),
                Some("repository:a:pull,push"),
            ),
            (format!("Negotiate, Bearer realm=\"{REALM}\""), None, None),
            (
                format!("Foo x=y, Bearer realm=\"{REALM}\", Basic realm=\"z\""),
                None,
                None,
            ),
            (
                format!("Basic realm=My Registry, Bearer realm=\"{REALM}\""),
                None,
                None,
            ),
            (
                format!("Bearer realm=\"{REALM}\", realm=\"https://other/\", service=\"\""),
                None,
                None,
            ),
            (
                format!("\u{feff}Bearer realm=\"{REALM}\", service=\"r"),
                Some("r"),
                None,
            ),
        ] {
            assert_eq!(
                challenge(&[&text]).unwrap(),
                bearer(service, scope),
                "{text}"
            );
        }
    }

    #[test]
    fn the_default_scope_is_used_if_the_registry_names_none() {
        let key = challenge(&[r#"Bearer realm="https://a/t""#])
            .unwrap()
            .token_key("a/b", Action::Push);
        assert_eq!(key.scope, "repository:a/b:pull,push");
    }

    proptest! {
        #[test]
        fn other_headers_do_not_hide_a_valid_challenge(before in prop::collection::vec("[ -~\u{a0}-\u{ff}]{0,60}", 0..4)) {
            let good = r#"Bearer realm="https://auth.example/token",service="registry""#;
            let mut values: Vec<&str> = before.iter().map(String::as_str).filter(|text| !text.to_lowercase().contains("bearer")).collect();
            values.push(good);
            prop_assert_eq!(challenge(&values).unwrap(), bearer(Some("registry"), None));
        }

        #[test]
        fn other_schemes_in_the_same_header_do_not_hide_a_challenge(name in "[A-Za-z]{1,12}", value in "[a-z0-9]{0,12}") {
            prop_assume!(!name.eq_ignore_ascii_case("bearer"));
            let text = format!(r#"{name} {value}="x", Bearer realm="https://auth.example/token""#);
            prop_assert_eq!(challenge(&[&text]).unwrap(), bearer(None, None));
        }

        #[test]
        fn the_parser_accepts_any_text(text in any::<String>()) {
            for written in parse(&text) {
                prop_assert!(written.scheme.len() <= text.len());
            }
        }
    }
}
