//! `POST /api/v1/notifications/NAME`: a registry announces pushes, whose images are converted
//! before the first pull.
//!
//! The answer is 202 if every event was understood, also if nothing came of it: docker-registry
//! repeats a refused notification until it is accepted, and delivers nothing else meanwhile. It is
//! 503 or 429 while there is no room, so that the sender repeats it later.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde_json::json;

use crate::oci::hub::{canonical_host, full_path};
use crate::oci::route::Location;
use crate::oci::{Reference, Repository};
use crate::serve::access::{Action, Admission, Identity, Proof, Reader};
use crate::serve::account::{Account, Announcement};
use crate::serve::ahead_config::NotificationConfig;
use crate::serve::app::App;
use crate::serve::error::{ApiError, refused};
use crate::serve::jobs::Asked;
use crate::serve::{request_body, response};
use crate::telemetry::metrics;

use super::events::{self, Announced, Pushed};
use super::{Target, run, secrets};

/// The longest notification: zot's has the manifest in it.
const MAX_BODY: usize = 1 << 20;
/// The beginning of the names of sources in rules. No user of `htpasswd` has a colon.
const PREFIX: &str = "source:";

/// The events of a notification by their outcome.
#[derive(Debug, Default, serde::Serialize)]
struct Outcomes {
    started: usize,
    /// The conversion runs already.
    running: usize,
    /// No rule lets the source convert the image.
    refused: usize,
    /// They are about something else.
    ignored: usize,
    malformed: usize,
}

pub(in crate::serve) async fn take(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let taken = taken(&app, &name, request).await;
    taken.unwrap_or_else(ApiError::into_response)
}

async fn taken(app: &Arc<App>, name: &str, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let account = Account::current();
    let sources = &app.config.notifications;
    // An unknown name and a wrong secret have the same answer.
    let source = match sources.iter().find(|source| source.name == name) {
        Some(source) if secrets::are_shown(source, &parts.headers).await => source,
        _ => {
            count("unauthenticated", 1);
            let answer = "this source is unknown, or its secret is wrong or missing";
            return Err(refused(StatusCode::UNAUTHORIZED, answer).because("bad-credentials"));
        }
    };
    let identity = Identity::User(format!("{PREFIX}{name}"));
    account.identified(&identity);
    let announced = {
        let body = request_body::read(app, &parts.headers, body, MAX_BODY).await?;
        events::read(&parts.headers, &body.bytes)
            .map_err(|unreadable| refused(StatusCode::BAD_REQUEST, unreadable.to_string()))?
    };
    let outcomes = started(app, source, &identity, announced).await?;
    Ok(response::json(
        StatusCode::ACCEPTED,
        &json!({ "events": outcomes }),
    ))
}

/// Starts a job for each pushed image.
async fn started(
    app: &Arc<App>,
    source: &NotificationConfig,
    identity: &Identity,
    announced: Announced,
) -> Result<Outcomes, ApiError> {
    let account = Account::current();
    count("ignored", announced.others);
    count("malformed", announced.malformed);
    let mut outcomes = Outcomes {
        ignored: announced.others,
        malformed: announced.malformed,
        ..Outcomes::default()
    };
    let name = app.upstreams.name_of(canonical_host(&source.upstream));
    let upstream = app.source(name).map_err(|error| ApiError::inside(&error))?;
    let admission = Admission {
        reader: Reader::Server,
        source: upstream,
    };
    account
        .admit(app, identity, &admission, name)
        .map_err(|not_now| ApiError::not_now(&not_now, false))?;
    let admission = Admission {
        source: account.on_behalf(&app.budgets, admission.source),
        ..admission
    };
    for pushed in announced.pushed {
        let outcome = match target(name, source, pushed) {
            Some((reference, target)) => {
                start(app, &account, identity, &admission, &reference, target).await?
            }
            None => "ignored",
        };
        count(outcome, 1);
        match outcome {
            "started" => outcomes.started += 1,
            "running" => outcomes.running += 1,
            "refused" => outcomes.refused += 1,
            _ => outcomes.ignored += 1,
        }
    }
    Ok(outcomes)
}

/// The image to convert and its name: the pushed digest, because the tag may move on, and then a
/// job for the newer image must not be joined to this one.
fn target(upstream: &str, source: &NotificationConfig, pushed: Pushed) -> Option<(String, Target)> {
    let Pushed {
        repository,
        tag,
        digest,
    } = pushed;
    if tag.is_none() && !source.untagged {
        return None;
    }
    let repository: Repository = full_path(upstream, repository.as_str()).parse().ok()?;
    let mut name = format!("{upstream}/{repository}");
    if let Some(tag) = &tag {
        name += &format!(":{tag}");
    }
    if let Some(digest) = &digest {
        name += &format!("@{digest}");
    }
    let reference = digest.map(Reference::Digest).or(tag.map(Reference::Tag))?;
    let location = Location {
        upstream: upstream.to_owned(),
        repository,
    };
    let target = Target {
        location,
        reference,
    };
    Some((name, target))
}

/// Starts a job, unless one runs or the rules refuse it.
async fn start(
    app: &Arc<App>,
    account: &Account,
    identity: &Identity,
    admission: &Admission,
    reference: &str,
    target: Target,
) -> Result<&'static str, ApiError> {
    let upstream = admission.source.clone();
    let proof = async { Ok(Proof::Tags) };
    let admitted = app
        .access
        .admit(identity, Action::Warm, &target.location, upstream, proof);
    let announcement = Announcement {
        identity,
        location: &target.location,
        reference: &target.reference,
    };
    if admitted.await.is_err() {
        account.announced(app, &announcement, Some("denied"));
        return Ok("refused");
    }
    if app.jobs.is_running(reference) {
        return Ok("running");
    }
    let ticket = account.conversion().take(app).await?;
    let ticket = ticket.map_err(|over| full(ApiError::over_budget(&over, false)))?;
    let job = app
        .jobs
        .start(reference, &target.location, Asked::Notification);
    let (job, is_new) = job.ok_or_else(|| full(ApiError::busy()))?;
    if !is_new {
        return Ok("running");
    }
    account.announced(app, &announcement, None);
    tokio::spawn(run(
        Arc::clone(app),
        job.id,
        target,
        admission.clone(),
        ticket,
    ));
    Ok("started")
}

fn full(error: ApiError) -> ApiError {
    count("full", 1);
    error
}

fn count(outcome: &'static str, events: usize) {
    if events > 0 {
        metrics()
            .notification_events
            .get_or_create(&[("outcome", outcome)])
            .inc_by(events as u64);
    }
}
