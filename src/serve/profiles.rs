//! The profiles that nodes fetch before a start, and the observations that they send after one.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;

use crate::learn::{ProfileDocument, Refused};
use crate::oci::Reference;
use crate::oci::digest::ParseDigestError;
use crate::oci::error::ErrorCode;
use crate::oci::route::Location;
use crate::profile::{
    MAX_OBSERVATION_BYTES, MAX_PROFILE_BYTES, MEDIA_TYPE, ParseWorkloadError, Stack, Workload,
};
use crate::store::Holder;
use crate::telemetry::metrics;

use super::access::{Action, Proof};
use super::account::Account;
use super::api::is_json;
use super::app::App;
use super::caller::Caller;
use super::documents::Documents;
use super::error::{ApiError, refused};
use super::registry_request::{Sender, admit, locate};
use super::{client_address, request_body, response};

/// `GET /api/v1/profiles/{stack}?workload=NAME&name=REPOSITORY&ns=REGISTRY`
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path(stack): Path<String>,
    caller: Caller,
) -> Response {
    let (answer, response) = match read(&app, &stack, &caller, &[Action::Profiles]).await {
        Ok((stack, workload)) => profile(&app, &caller.headers, &stack, &workload).await,
        Err(failure) => Err(failure),
    }
    .unwrap_or_else(|failure| {
        let answer = if failure.is_not_found() {
            "unknown"
        } else {
            "failed"
        };
        (answer, failure.into_response())
    });
    metrics()
        .profiles
        .get_or_create(&[("answer", answer)])
        .inc();
    response
}

/// `POST /api/v1/profiles/{stack}?workload=NAME&name=REPOSITORY&ns=REGISTRY`
pub(crate) async fn take(
    State(app): State<Arc<App>>,
    Path(stack): Path<String>,
    caller: Caller,
    request: Request,
) -> Response {
    // An observation changes the starts of others, so it takes the right to pull as well.
    let taken = match read(&app, &stack, &caller, &[Action::Pull, Action::Profiles]).await {
        Ok((stack, workload)) => observe(&app, &stack, &workload, request).await,
        Err(failure) => Err(failure),
    };
    let outcome = match &taken {
        Ok(_) => "taken",
        Err(failure) if failure.is_busy() => "busy",
        Err(_) => "refused",
    };
    metrics()
        .observations
        .get_or_create(&[("source", "agents"), ("outcome", outcome)])
        .inc();
    match taken {
        Ok(unknown) => response::json(StatusCode::ACCEPTED, &json!({ "unknown_files": unknown })),
        Err(failure) => failure.into_response(),
    }
}

async fn read(
    app: &App,
    stack: &str,
    caller: &Caller,
    actions: &[Action],
) -> Result<(Stack, Workload), ApiError> {
    if !app.config.profiles.enabled {
        return Err(refused(
            StatusCode::NOT_FOUND,
            "this server keeps no profiles",
        ));
    }
    let bad = |reason: String| refused(StatusCode::BAD_REQUEST, reason);
    let stack = stack
        .parse()
        .map_err(|error: ParseDigestError| bad(format!("the stack: {error}")))?;
    let query: HashMap<_, _> =
        url::form_urlencoded::parse(caller.uri.query().unwrap_or_default().as_bytes()).collect();
    let workload = match query.get("workload") {
        Some(name) => name
            .parse()
            .map_err(|error: ParseWorkloadError| bad(error.to_string()))?,
        None => Workload::default(),
    };
    let name = match query.get("name") {
        Some(name) => Some(
            name.parse()
                .map_err(|_no_name| bad("the name: no repository".to_owned()))?,
        ),
        None => None,
    };
    let sender = Sender {
        name: name.as_ref(),
        ..Sender::of(caller)
    };
    match &name {
        Some(name) => {
            let namespace = query.get("ns").map(AsRef::as_ref);
            let location = locate(app, name, namespace).ok_or_else(unknown)?;
            for action in actions {
                check_name(app, &stack, &sender, *action, &location).await?;
            }
        }
        // Without a name, the image may be any.
        None => {
            let identity = app
                .access
                .identify(sender.headers, sender.certificate)
                .await;
            let account = Account::current();
            account.asks_for_profiles();
            let admitted = identity.and_then(|known| {
                account.identified(&known);
                let mut each = actions.iter();
                each.try_for_each(|action| app.access.admit_to_all(&known, *action))
            });
            admitted.map_err(|refusal| sender.refused(app, &refusal))?;
        }
    }
    Ok((stack, workload))
}

/// Checks that the sender may read the image with these layers under the name.
async fn check_name(
    app: &App,
    stack: &Stack,
    sender: &Sender<'_>,
    action: Action,
    location: &Location,
) -> Result<(), ApiError> {
    let source = app.profiles.source_of(stack).await;
    let source = source.map_err(|error| ApiError::inside(&error))?;
    let proof = async {
        let image = source.clone().map(Reference::Digest);
        Ok(image.map_or(Proof::Tags, Proof::Manifest))
    };
    let admission = admit(app, sender, action, location, proof).await?;
    let source = source.ok_or_else(unknown)?;
    let holder = Holder::repository(&location.upstream, &location.repository);
    let is_readable = app.store.is_linked(&holder, &source).await?
        && app
            .access
            .may_still_read(&admission, &holder, location, &source)
            .await;
    is_readable.then_some(()).ok_or_else(unknown)
}

async fn profile(
    app: &App,
    headers: &HeaderMap,
    stack: &Stack,
    workload: &Workload,
) -> Result<(&'static str, Response), ApiError> {
    let known = app.profiles.knowledge(stack).await;
    let known = known.map_err(|error| ApiError::inside(&error))?;
    let known = known.ok_or_else(unknown)?;
    let mut weight = app.documents.take(MAX_PROFILE_BYTES as u64).await?;
    let document = app.profiles.document(known, workload.clone()).await;
    let ProfileDocument {
        json,
        digest,
        is_empty,
    } = document.map_err(|error| ApiError::inside(&error))?;
    weight.shrink_to(json.len() as u64);
    let is_known = response::is_known_to_client(headers, &digest);
    let mut response = response::of_digest(
        if is_known {
            StatusCode::NOT_MODIFIED
        } else {
            StatusCode::OK
        },
        &digest,
    );
    response::cache(&mut response, HeaderValue::from_static("no-cache"));
    if !is_known {
        response::describe(&mut response, MEDIA_TYPE, json.len() as u64);
        *response.body_mut() = Body::from(Documents::bind(json, weight));
    }
    Ok((if is_empty { "empty" } else { "given" }, response))
}

async fn observe(
    app: &App,
    stack: &Stack,
    workload: &Workload,
    request: Request,
) -> Result<usize, ApiError> {
    if !is_json(request.headers()) {
        return Err(refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body is application/json",
        ));
    }
    let _permit = app
        .senders
        .try_acquire()
        .map_err(|_all_taken| ApiError::busy())?;
    let address = client_address::address(&app.config, request.headers(), request.extensions());
    let address = address.ok_or_else(ApiError::internal)?;
    let (parts, body) = request.into_parts();
    let document = request_body::read(app, &parts.headers, body, MAX_OBSERVATION_BYTES).await?;
    app.profiles
        .observe(stack, workload, address, document.bytes.to_vec())
        .await
        .map_err(|refusal| match refusal {
            Refused::UnknownStack => unknown(),
            Refused::Busy => ApiError::busy(),
            Refused::Failed(error) => ApiError::inside(&error),
            bad => refused(StatusCode::BAD_REQUEST, bad.to_string()),
        })
}

fn unknown() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        ErrorCode::ManifestUnknown,
        "no image here has these layers",
    )
}
