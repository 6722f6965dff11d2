//! Basic and token authentication, with a token endpoint under `/token`.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{Response, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::answer::{empty, error, json};

/// The registry's access rules.
#[derive(Debug, Clone)]
pub(crate) enum Auth {
    Basic {
        user: &'static str,
        password: &'static str,
    },
    Token(TokenAuth),
    /// Basic, with users who may each see the repositories below one path.
    Teams(Vec<Team>),
}

/// A user, and the path of the repositories that the user may see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Team {
    pub(crate) path: &'static str,
    pub(crate) user: &'static str,
    pub(crate) password: &'static str,
}

/// A registry that sends clients to a token endpoint.
#[derive(Debug, Clone)]
pub(crate) struct TokenAuth {
    /// The user to whom the endpoint gives tokens by GET and Basic; every client if absent.
    pub(crate) user: Option<(&'static str, &'static str)>,
    /// The refresh token that the endpoint accepts by POST.
    pub(crate) identity: Option<&'static str>,
    /// Seconds; `None` leaves `expires_in` out.
    pub(crate) expires_in: Option<u64>,
    /// Replaces the realm of this registry's own endpoint.
    pub(crate) realm: Option<String>,
}

impl TokenAuth {
    pub(crate) fn anonymous() -> Self {
        Self {
            user: None,
            identity: None,
            expires_in: Some(300),
            realm: None,
        }
    }

    pub(crate) fn user(name: &'static str, password: &'static str) -> Self {
        Self {
            user: Some((name, password)),
            ..Self::anonymous()
        }
    }

    pub(crate) fn identity(token: &'static str) -> Self {
        Self {
            identity: Some(token),
            ..Self::anonymous()
        }
    }
}

/// Valid tokens, with the scope of each.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    good: HashMap<String, String>,
    issued: usize,
}

impl Tokens {
    pub(super) fn expire(&mut self) {
        self.good.clear();
    }

    fn issue(&mut self, scope: &str) -> String {
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        self.good.insert(token.clone(), scope.to_owned());
        token
    }
}

/// Returns the refusal, or `None` if the request is allowed.
pub(super) fn refuse(
    auth: &Auth,
    tokens: &Tokens,
    host: &str,
    parts: &Parts,
) -> Option<Response<Bytes>> {
    let given = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let write = !matches!(parts.method.as_str(), "GET" | "HEAD");
    let repository = repository_of(parts.uri.path());
    let challenge = match auth {
        Auth::Basic { user, password } => {
            if given == basic(user, password) {
                return None;
            }
            r#"Basic realm="fake""#.to_owned()
        }
        Auth::Teams(teams) => {
            let is_known = |team: &&Team| given == basic(team.user, team.password);
            let known: Vec<_> = teams.iter().filter(is_known).collect();
            let is_own = |team: &&Team| repository.is_none_or(|name| name.starts_with(team.path));
            if known.iter().copied().any(|team| is_own(&team)) {
                return None;
            }
            if !known.is_empty() {
                return Some(error(StatusCode::FORBIDDEN, "DENIED"));
            }
            r#"Basic realm="fake""#.to_owned()
        }
        Auth::Token(settings) => {
            let action = if write { "pull,push" } else { "pull" };
            let scope = repository.map(|name| format!("repository:{name}:{action}"));
            let token = given.strip_prefix("Bearer ").unwrap_or_default();
            let held = tokens.good.get(token);
            let suffices = |held: &String| match (repository, held.rsplit_once(':')) {
                (None, _) => true,
                (Some(name), Some((subject, actions))) => {
                    subject == format!("repository:{name}") && (!write || actions.contains("push"))
                }
                (Some(_), None) => false,
            };
            if held.is_some_and(suffices) {
                return None;
            }
            let realm = settings
                .realm
                .clone()
                .unwrap_or_else(|| format!("http://{host}/token"));
            let mut challenge = format!(r#"Bearer realm="{realm}",service="fake""#);
            if let Some(scope) = scope {
                challenge += &format!(r#",scope="{scope}""#);
            }
            if !token.is_empty() {
                challenge += r#",error="invalid_token""#;
            }
            challenge
        }
    };
    let mut refusal = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    refusal
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
    Some(refusal)
}

/// Returns the answer of the token endpoint.
pub(super) fn token(
    settings: &TokenAuth,
    tokens: &mut Tokens,
    parts: &Parts,
    body: &[u8],
) -> Response<Bytes> {
    let form = if parts.method == "POST" {
        body
    } else {
        parts.uri.query().unwrap_or_default().as_bytes()
    };
    let form: HashMap<_, _> = url::form_urlencoded::parse(form).into_owned().collect();
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let known = match (settings.identity, settings.user) {
        (Some(identity), _) => {
            parts.method == "POST"
                && form
                    .get("grant_type")
                    .is_some_and(|grant| grant == "refresh_token")
                && form
                    .get("refresh_token")
                    .is_some_and(|token| token == identity)
        }
        (None, Some((user, password))) => authorization == Some(basic(user, password).as_str()),
        (None, None) => true,
    };
    if !known || form.get("service").is_none_or(|service| service != "fake") {
        return empty(StatusCode::UNAUTHORIZED);
    }
    let token = tokens.issue(form.get("scope").map_or("", String::as_str));
    let field = if parts.method == "POST" {
        "access_token"
    } else {
        "token"
    };
    let mut answer = serde_json::json!({ field: token });
    if let Some(seconds) = settings.expires_in {
        answer["expires_in"] = seconds.into();
    }
    json(StatusCode::OK, &answer)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn repository_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let end = ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
        .iter()
        .find_map(|kind| rest.rfind(kind))?;
    Some(&rest[..end])
}
