//! The token endpoint and the challenges that lead to it (distribution's "Token Authentication
//! Specification" and "OAuth2 Token Authentication"), so that every client logs in as it does
//! anywhere.
//!
//! A Basic challenge would be simpler. With it, Docker pulls nothing without a password.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode, Uri};
use serde_json::json;

use crate::clock::unix_now;
use crate::registry::Secret;

use super::access::{Credentials, Known, Refusal};
use super::account::Account;
use super::app::App;
use super::caller::{self, Caller};
use super::error::ApiError;
use super::{request_body, response};

/// The path of the endpoint.
const PATH: &str = "/token";
/// The service in challenges. Clients send it back.
const SERVICE: &str = "starlift";
/// The longest form: a user, a password of any sensible length, and scopes.
const MAX_FORM: usize = 64 << 10;

/// The challenge for a request. `repository` is the name that the client used, `is_bad` whether it
/// sent credentials that do not count.
pub(crate) fn challenge(
    app: &App,
    headers: &HeaderMap,
    uri: &Uri,
    repository: Option<&str>,
    is_bad: bool,
) -> String {
    let realm = realm(app, headers, uri);
    let mut text = format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\"");
    if let Some(repository) = repository {
        text += &format!(",scope=\"repository:{repository}:pull\"");
    }
    if is_bad {
        text += ",error=\"invalid_token\"";
    }
    text
}

/// The URL of the token endpoint under the name by which the client reaches this server.
fn realm(app: &App, headers: &HeaderMap, uri: &Uri) -> String {
    if let Some(realm) = &app.config.access.realm {
        return realm.clone();
    }
    let scheme = if app.config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    // The name has no character that ends a quoted text.
    let host = caller::named_host(headers, uri);
    let host = host.map_or_else(|| app.config.listen.to_string(), str::to_owned);
    format!("{scheme}://{host}{PATH}")
}

/// `GET /token?service=…&scope=…`, with Basic or without.
pub(crate) async fn give(State(app): State<Arc<App>>, caller: Caller) -> Response {
    let known = app
        .access
        .known(&caller.headers, caller.certificate.as_ref());
    answer(&app, known.await, "token", &caller.headers, &caller.uri).await
}

/// `POST /token` with a form: the password of a user, or an earlier token as the refresh token.
pub(crate) async fn give_by_form(State(app): State<Arc<App>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match request_body::read(&app, &parts.headers, body, MAX_FORM).await {
        Ok(body) => body,
        Err(failure) => return failure.into_response(),
    };
    let form: HashMap<_, _> = url::form_urlencoded::parse(&body.bytes)
        .into_owned()
        .collect();
    let field = |name: &str| form.get(name).map(String::as_str);
    let credentials = match (field("grant_type"), field("username"), field("password")) {
        (Some("password"), Some(user), Some(password)) => Some(Credentials::Password {
            user: user.to_owned(),
            password: Secret::new(password),
        }),
        (Some("refresh_token"), ..) => {
            field("refresh_token").map(|token| Credentials::Bearer(Secret::new(token)))
        }
        _ => None,
    };
    let known = match credentials {
        Some(credentials) => app.access.judge(credentials).await,
        None if parts.headers.contains_key(AUTHORIZATION) => {
            app.access.known(&parts.headers, None).await
        }
        None => Err(Refusal::BadCredentials),
    };
    answer(&app, known, "access_token", &parts.headers, &parts.uri).await
}

async fn answer(
    app: &App,
    known: Result<Known, Refusal>,
    field: &str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Response {
    let token = match known {
        Ok(known) => {
            Account::current().identified(&known.identity);
            app.access.token(&known).await
        }
        Err(refusal) => Err(refusal),
    };
    let refused = |refusal| ApiError::access(refusal, challenge(app, headers, uri, None, true));
    let (token, lifetime) = match token {
        Ok(token) => token,
        Err(refusal) => return refused(&refusal).into_response(),
    };
    let issued = humantime::format_rfc3339_seconds(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_now()),
    );
    let mut document = json!({
        "expires_in": lifetime.as_secs(),
        "issued_at": issued.to_string(),
    });
    document[field] = token.into();
    let mut response = response::json(StatusCode::OK, &document);
    response::cache(&mut response, http::HeaderValue::from_static("no-store"));
    response
}
