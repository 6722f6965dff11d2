//! Tokens from a registry's token endpoint, kept until shortly before they expire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use super::Authorization;
use super::login::{Login, bearer_header};
use crate::registry::answer::Answer;
use crate::registry::error::{Error, excerpt};
use crate::registry::http::{Fetch, Http, refuse_downgrade};
use crate::registry::memory::{EndpointId, Memory};
use crate::registry::token::{Token, TokenKey};

/// The longest token. Tokens of private registries with many claims have 10 or 20 KiB, and servers
/// accept no longer headers.
const MAX_TOKEN: usize = 32 << 10;
/// The longest answer: a token, often under two names, and a refresh token.
const MAX_TOKEN_ANSWER: u64 = 128 << 10;
/// The lifetime of a token without `expires_in` (distribution, "Token Authentication
/// Specification").
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Returns the token for `key` of one endpoint, from the cache or from its realm.
pub(super) async fn get_token(
    (memory, id): (&Memory, EndpointId),
    key: TokenKey,
    http: &Http,
    registry: &Url,
    login: impl Future<Output = Result<Login, Error>>,
) -> Result<Authorization, Error> {
    let is_fresh = AtomicBool::new(false);
    let fetched = async {
        is_fresh.store(true, Ordering::Relaxed);
        fetch(&key, http, registry, login).await
    };
    let token = memory.tokens.try_get_with((id, key.clone()), fetched).await;
    let token = token.map_err(|error: Arc<Error>| (*error).clone())?;
    Ok(Authorization {
        header: token.header,
        is_fresh: is_fresh.into_inner(),
        is_token: true,
    })
}

async fn fetch(
    key: &TokenKey,
    http: &Http,
    registry: &Url,
    login: impl Future<Output = Result<Login, Error>>,
) -> Result<Token, Error> {
    let realm = registry
        .join(&key.realm)
        .map_err(|_error| no_realm(&key.realm))?;
    refuse_downgrade(registry, &realm)?;
    let login = login.await?;
    let answer = match &login {
        Login::Identity(identity) => post(key, realm, http, identity.expose()).await?,
        Login::Anonymous | Login::Password { .. } => get(key, realm, http, &login).await?,
    };
    if answer.status() != StatusCode::OK {
        return Err(match answer.refusal() {
            Error::Malformed(_) | Error::NotFound => Error::Unauthorized,
            error => error,
        });
    }
    let body = answer.limited_body(MAX_TOKEN_ANSWER).await?;
    parse(&body)
}

fn no_realm(realm: &str) -> Error {
    Error::Malformed(format!("token endpoint {:?} is not a URL", excerpt(realm)))
}

async fn get(key: &TokenKey, mut url: Url, http: &Http, login: &Login) -> Result<Answer, Error> {
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &key.service {
            query.append_pair("service", service);
        }
        if !key.scope.is_empty() {
            query.append_pair("scope", &key.scope);
        }
        if let Login::Password { user, .. } = login {
            query.append_pair("account", user);
        }
    }
    let secrets = login
        .basic()?
        .map(|header| (AUTHORIZATION, header))
        .into_iter()
        .collect();
    let fetch = Fetch {
        method: Method::GET,
        url,
        headers: HeaderMap::new(),
        secrets,
    };
    http.fetch(&fetch).await
}

/// Requests a token in the OAuth2 form, which accepts the refresh token that Docker calls an
/// identity token.
async fn post(key: &TokenKey, url: Url, http: &Http, identity: &str) -> Result<Answer, Error> {
    let type_header = (
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    http.send(
        Method::POST,
        url,
        HeaderMap::from_iter([type_header]),
        form(key, identity).into(),
    )
    .await
}

fn form(key: &TokenKey, identity: &str) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "starlift")
        .append_pair("scope", &key.scope)
        .append_pair("refresh_token", identity);
    if let Some(service) = &key.service {
        form.append_pair("service", service);
    }
    form.finish()
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// A number, or a text that contains one, as some endpoints send it.
    expires_in: Option<serde_json::Value>,
}

/// Returns the seconds; `None` if they cannot be read.
fn seconds(value: &serde_json::Value) -> Option<u64> {
    let whole = |number: f64| {
        Duration::try_from_secs_f64(number)
            .ok()
            .map(|time| time.as_secs())
    };
    value
        .as_u64()
        .or_else(|| value.as_f64().and_then(whole))
        .or_else(|| value.as_str()?.trim().parse().ok())
}

fn parse(body: &[u8]) -> Result<Token, Error> {
    let nonsense = || Error::Malformed("no token in the answer of the token endpoint".to_owned());
    // The cause is dropped on purpose, because it can quote the token.
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_error| nonsense())?;
    let given = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty());
    let given = given.ok_or_else(nonsense)?;
    if given.len() > MAX_TOKEN {
        return Err(Error::TooLarge {
            limit: MAX_TOKEN as u64,
        });
    }
    let header = bearer_header(&given)?;
    let lifetime = answer
        .expires_in
        .as_ref()
        .and_then(seconds)
        .map_or(DEFAULT_LIFETIME, Duration::from_secs)
        .min(MAX_LIFETIME);
    Ok(Token { header, lifetime })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use moka::Expiry as _;

    use super::*;
    use crate::registry::token::UntilRenewal;

    fn kept_for(body: &str) -> Duration {
        let token = parse(body.as_bytes()).unwrap();
        UntilRenewal
            .expire_after_create(&TokenKey::default(), &token, Instant::now())
            .unwrap()
    }

    #[test]
    fn tokens_are_renewed_before_they_expire() {
        assert_eq!(
            kept_for(r#"{"token": "x", "expires_in": 300}"#),
            Duration::from_secs(270)
        );
        assert_eq!(
            kept_for(r#"{"access_token": "x"}"#),
            Duration::from_secs(48)
        );
        assert_eq!(
            kept_for(r#"{"token": "", "access_token": "x", "expires_in": 0}"#),
            Duration::ZERO
        );
        assert!(
            kept_for(&format!(r#"{{"token": "x", "expires_in": {}}}"#, u64::MAX)) < MAX_LIFETIME
        );
    }

    #[test]
    fn a_token_longer_than_servers_accept_is_refused() {
        let answer =
            |length: usize| parse(format!(r#"{{"token": "{}"}}"#, "a".repeat(length)).as_bytes());
        assert!(answer(MAX_TOKEN).is_ok());
        assert!(matches!(answer(MAX_TOKEN + 1), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn an_answer_without_a_usable_token_is_an_error_that_quotes_nothing() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"token": 7}"#,
            r#"{"token": "secret\nX: y"}"#,
        ] {
            let error = parse(body.as_bytes())
                .map(|token| token.lifetime)
                .unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
