//! `WWW-Authenticate` (RFC 9110, section 11.6.1; distribution's token specification).

use http_auth::ChallengeRef;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use super::Action;
use super::token::TokenKey;
use crate::upstream::error::Error;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The best of the challenges in a 401: a token is preferred to a password.
    pub(in crate::upstream) fn from_headers(headers: &HeaderMap) -> Result<Self, Error> {
        let mut best = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let text = value.to_str().unwrap_or_default();
            // A header in a form of its own does not spoil the others.
            for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
                match Self::understand(&challenge) {
                    Some(bearer @ Self::Bearer { .. }) => return Ok(bearer),
                    Some(Self::Basic) => best = Some(Self::Basic),
                    None => {}
                }
            }
        }
        best.ok_or(Error::Unauthorized)
    }

    fn understand(challenge: &ChallengeRef<'_>) -> Option<Self> {
        let parameter = |wanted: &str| {
            let mut found = challenge.params.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.next().map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
        };
        if challenge.scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Bearer {
                realm: parameter("realm")?,
                service: parameter("service"),
                scope: parameter("scope"),
            });
        }
        challenge.scheme.eq_ignore_ascii_case("basic").then_some(Self::Basic)
    }

    /// What a token that satisfies the challenge is kept under.
    pub(super) fn token_key(&self, repository: &str, action: Action) -> TokenKey {
        match self {
            Self::Basic => TokenKey::default(),
            Self::Bearer { realm, service, scope } => TokenKey {
                realm: realm.clone(),
                service: service.clone(),
                scope: scope.clone().unwrap_or_else(|| action.scope(repository)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&'static str]) -> Result<Challenge, Error> {
        let headers = values.iter().map(|value| (WWW_AUTHENTICATE, value.parse().unwrap()));
        Challenge::from_headers(&headers.collect())
    }

    #[test]
    fn a_bearer_challenge_wins_wherever_it_stands() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        let text = r#"bearer Realm="https://auth.example/token",service=registry,scope="repository:a/b:pull,push""#;
        assert_eq!(challenge(&[r#"Basic realm="x""#, text]).unwrap(), bearer);
        let joined = r#"Basic realm="x", Bearer realm="https://auth.example/token", service="registry", scope="repository:a/b:pull,push""#;
        assert_eq!(challenge(&[joined]).unwrap(), bearer);
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        assert_eq!(challenge(&["Negotiate", r#"BASIC realm="x""#]).unwrap(), Challenge::Basic);
        for values in [&[][..], &["Bearer"], &["Bearer service=x"], &["Digest realm=\"x\""], &["\"", ",,,"]] {
            assert!(matches!(challenge(values), Err(Error::Unauthorized)), "{values:?}");
        }
    }

    #[test]
    fn the_scope_is_ours_where_the_registry_names_none() {
        let key = challenge(&[r#"Bearer realm="https://a/t""#]).unwrap().token_key("a/b", Action::Push);
        assert_eq!(key.scope, "repository:a/b:pull,push");
    }
}
