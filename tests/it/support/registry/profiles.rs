//! The registry as a Starlift server: it identifies itself, has profiles and accepts observations.
//! Other registries have only the distribution API.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, header};
use starlift::profile::Stack;

use super::answer::{empty, typed};
use super::{Contents, Registry};

const API: &str = "/api/v1/profiles/";

#[derive(Debug, Default)]
pub(super) struct Profiles {
    by_stack: HashMap<String, Bytes>,
    observed: Vec<Told>,
}

/// An observation that an agent sent.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) stack: String,
    pub(crate) query: String,
    pub(crate) json: Bytes,
}

impl Registry {
    /// Turns the registry into a Starlift server.
    pub(crate) fn is_starlift(&self) {
        self.shared.state().profiles = Some(Profiles::default());
    }

    pub(crate) fn put_profile(&self, stack: &Stack, json: impl Into<Bytes>) {
        let mut state = self.shared.state();
        state
            .profiles
            .as_mut()
            .unwrap()
            .by_stack
            .insert(stack.to_string(), json.into());
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        self.shared
            .state()
            .profiles
            .as_ref()
            .unwrap()
            .observed
            .clone()
    }
}

/// Answers requests for the profile API; `None` for all others.
pub(super) fn respond(
    state: &mut Contents,
    parts: &Parts,
    body: &Bytes,
) -> Option<Response<Bytes>> {
    let stack = parts.uri.path().strip_prefix(API)?;
    let profiles = state.profiles.as_mut()?;
    Some(match parts.method.as_str() {
        "GET" => match profiles.by_stack.get(stack) {
            Some(json) => typed(StatusCode::OK, "application/json", json.clone()),
            None => empty(StatusCode::NOT_FOUND),
        },
        "POST" => {
            let (stack, query) = (
                stack.to_owned(),
                parts.uri.query().unwrap_or_default().to_owned(),
            );
            profiles.observed.push(Told {
                stack,
                query,
                json: body.clone(),
            });
            empty(StatusCode::ACCEPTED)
        }
        _ => empty(StatusCode::METHOD_NOT_ALLOWED),
    })
}

pub(super) fn sign(state: &Contents, response: &mut Response<Bytes>) {
    if state.profiles.is_some() {
        response
            .headers_mut()
            .insert(header::SERVER, HeaderValue::from_static("starlift/0.0.0"));
    }
}
