//! Manifests by tag and by digest: the converted image if it is ready in time, else the source
//! image.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{VARY, WARNING};
use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use crate::oci::media_type::{ManifestKind, document_type, manifest_kind};
use crate::oci::{Descriptor, Digest, Manifest, Reference, Tag};
use crate::registry;
use crate::store::ImageRecord;
use crate::telemetry::metrics;
use crate::telemetry::traces::{self, in_trace};

use super::accept::{Accept, Choice};
use super::app::App;
use super::config::OnMiss;
use super::error::{ApiError, Chain, Subject};
use super::negotiate::{of_converted, of_source};
use super::reading::{
    after_upstream, failure, is_under_other_names, readable_record, source_manifest, stored,
    weighed,
};
use super::registry_request::RegistryRequest;
use super::{recorded, referrers, response};

/// How long a pull whose wait is over may look for a record that another replica wrote meanwhile.
const LAST_LOOK: Duration = Duration::from_millis(300);
/// The reason for the source image when the wait is over.
const LATE: &str = "conversion under way; this is the source image";
/// The suffix that stargz-snapshotter and `ctr-remote` append to a tag.
const TOC_SUFFIX: &str = "-esgztoc";

/// The document that answers a manifest request. HEAD needs no bytes.
struct Document {
    media_type: String,
    digest: Digest,
    size: u64,
    bytes: Option<Bytes>,
}

impl Document {
    fn without_bytes(found: Descriptor) -> Self {
        Self {
            media_type: found.media_type,
            digest: found.digest,
            size: found.size,
            bytes: None,
        }
    }
}

impl From<Manifest> for Document {
    fn from(manifest: Manifest) -> Self {
        let size = manifest.size();
        Self {
            media_type: manifest.media_type,
            digest: manifest.digest,
            size,
            bytes: Some(manifest.bytes),
        }
    }
}

/// How the document became the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Converted,
    /// The source image, although a converted one is expected. Carries the reason for the client.
    Source(&'static str),
    /// The source image, because it cannot be converted or was requested by digest.
    PassThrough,
}

/// Answers within the configured time, however slow the upstream is.
pub(crate) async fn answer(
    app: &Arc<App>,
    ask: &RegistryRequest,
    reference: &Reference,
) -> Result<Response, ApiError> {
    let document = async {
        match reference {
            Reference::Digest(digest) => by_digest(app, ask, digest).await,
            Reference::Tag(tag) => by_tag(app, ask, tag).await,
        }
    };
    let (document, kind) = timeout_at(ask.started + app.config.answer_within, document)
        .await
        .unwrap_or_else(|_| Err(ApiError::timeout()))?;
    count(kind);
    if !ask.is_head && !ask.is_browser && app.config.profiles.enabled {
        notice(app, ask, &document);
        if kind == Kind::Converted && app.converter.reorders() {
            reorder(app, ask, &document).await;
        }
    }
    if let Kind::Source(reason) = kind {
        tracing::info!(digest = %document.digest, reason, "source image served");
    }
    Ok(respond(ask, reference, document, kind))
}

/// Stores the record that lets nodes look up this image's profile, unless it exists, and reports
/// the pull to `ranges`.
fn notice(app: &Arc<App>, ask: &RegistryRequest, document: &Document) {
    let Document {
        media_type,
        digest,
        bytes: Some(bytes),
        ..
    } = document
    else {
        return;
    };
    let manifest = Manifest {
        media_type: media_type.clone(),
        digest: digest.clone(),
        bytes: bytes.clone(),
    };
    if let (Some(ranges), Some(client)) = (&app.ranges, ask.client) {
        ranges.pulled(client, &manifest);
    }
    let (shared, location) = (Arc::clone(app), ask.location.clone());
    let (admission, repository) = (ask.admission.clone(), location.repository.clone());
    let (source, finds_recorded) = (admission.source.clone(), app.config.profiles.recorded);
    let source_manifest = |digest| async move {
        let manifest = shared.source_manifests.get(&admission, &location, &digest);
        manifest.await.ok()
    };
    app.profiles.notice(
        &manifest,
        source_manifest,
        move |source_digest| async move {
            if finds_recorded {
                recorded::find(&source, &repository, &source_digest).await
            } else {
                None
            }
        },
    );
}

/// Starts a new conversion in the order in which the image's files are read, if the converter wants
/// one.
async fn reorder(app: &Arc<App>, ask: &RegistryRequest, converted: &Document) {
    let Some(bytes) = &converted.bytes else {
        return;
    };
    let Some(source_digest) = referrers::source_digest(bytes).await else {
        return;
    };
    let (shared, location) = (Arc::clone(app), ask.location.clone());
    let admission = ask.admission.clone();
    let source_manifest = async move {
        let manifests = &shared.source_manifests;
        let manifest = manifests.get(&admission, &location, &source_digest);
        manifest.await.ok()
    };
    app.converter.reorder(
        &converted.digest,
        ask.admission.source.clone(),
        ask.location.repository.clone(),
        source_manifest,
    );
}

fn count(kind: Kind) {
    let answer = match kind {
        Kind::Converted => "converted",
        Kind::Source(_) => "source",
        Kind::PassThrough => "pass-through",
    };
    metrics()
        .manifests
        .get_or_create(&[("answer", answer)])
        .inc();
}

fn respond(
    ask: &RegistryRequest,
    reference: &Reference,
    document: Document,
    kind: Kind,
) -> Response {
    let is_known = response::is_known_to_client(&ask.headers, &document.digest);
    let status = if is_known {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    };
    let mut response = response::of_digest(status, &document.digest);
    match reference {
        Reference::Digest(_) => response::cache(&mut response, response::IMMUTABLE),
        Reference::Tag(_) => {
            response::cache(&mut response, HeaderValue::from_static("no-cache"));
            response
                .headers_mut()
                .insert(VARY, HeaderValue::from_static("accept"));
        }
    }
    if let Kind::Source(reason) = kind {
        response::set(
            response.headers_mut(),
            WARNING,
            &format!("299 starlift \"{reason}\""),
        );
    }
    if is_known {
        return response;
    }
    response::describe(
        &mut response,
        document_type(&document.media_type),
        document.size,
    );
    if let Some(bytes) = document.bytes.filter(|_| !ask.is_head) {
        *response.body_mut() = Body::from(bytes);
    }
    response
}

/// Returns a stored manifest, or else the upstream's exact bytes. A pulled source image is
/// converted in the background.
async fn by_digest(
    app: &Arc<App>,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<(Document, Kind), ApiError> {
    let stored = match stored(app, ask, digest).await {
        Ok(Some(manifest)) => return Ok((manifest.into(), Kind::Converted)),
        Ok(None) => is_under_other_names(app, ask, digest).await,
        Err(failure) => Err(failure),
    };
    let found = source_by_digest(app, ask, digest).await;
    found.map_err(|failure| after_upstream(failure, stored))
}

async fn source_by_digest(
    app: &Arc<App>,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<(Document, Kind), ApiError> {
    let admission = &ask.admission;
    let known = app
        .source_manifests
        .known(admission.reader, &ask.location, digest)
        .await;
    if let Some(manifest) = known {
        return Ok(source_child(app, ask, weighed(app, manifest).await?));
    }
    if ask.is_head {
        let reference = Reference::Digest(digest.clone());
        let found = admission
            .source
            .resolve(&ask.location.repository, &reference)
            .await
            .map_err(|error| failure(&error, ask))?;
        return Ok((Document::without_bytes(found), Kind::PassThrough));
    }
    let manifest = source_manifest(app, ask, digest).await?;
    Ok(source_child(app, ask, manifest))
}

fn source_child(app: &Arc<App>, ask: &RegistryRequest, manifest: Manifest) -> (Document, Kind) {
    if !ask.is_head
        && !ask.is_browser
        && manifest_kind(&manifest.media_type) == Some(ManifestKind::Image)
    {
        let (app, source) = (Arc::clone(app), ask.admission.source.clone());
        let (repository, child) = (ask.location.repository.clone(), manifest.clone());
        let ticket = ask.account.conversion();
        let conversion = async move {
            let Ok(Ok(ticket)) = ticket.take(&app).await else {
                return;
            };
            // The converter logs a failure, which does not affect the client that pulls the source
            // image.
            let converted = app
                .converter
                .convert_with(&source, &repository, &child, ticket);
            let _recorded = converted.await;
        };
        tokio::spawn(in_trace(conversion));
    }
    (manifest.into(), Kind::PassThrough)
}

async fn by_tag(
    app: &Arc<App>,
    ask: &RegistryRequest,
    tag: &Tag,
) -> Result<(Document, Kind), ApiError> {
    let ready_by = ask.started + app.config.wait;
    let patience = ready_by.max(ask.started + app.config.answer_within / 2);
    let found = match app
        .resolver
        .resolve(&ask.admission, &ask.location, tag, patience)
        .await
    {
        Ok(found) => found,
        Err(registry::Error::NotFound) => {
            return Ok((toc_image(app, ask, tag).await?.into(), Kind::Converted));
        }
        Err(error) => return Err(failure(&error, ask)),
    };
    let (reader, since) = (ask.admission.reader, found.since);
    app.access.confirm(reader, &ask.holder, since).await;
    let found = found.descriptor;
    match ready(app, ask, &found.digest, ready_by).await? {
        Ok((record, converted)) => match of_converted(app, ask, &record, converted).await? {
            Some(manifest) => Ok((manifest.into(), Kind::Converted)),
            None => by_source(app, ask, &found, Kind::PassThrough).await,
        },
        Err(Kind::Source(_)) if ask.is_mirror && app.config.on_miss == OnMiss::NotFound => {
            Err(ApiError::not_found(Subject::Manifest))
        }
        Err(kind) => by_source(app, ask, &found, kind).await,
    }
}

async fn by_source(
    app: &App,
    ask: &RegistryRequest,
    found: &Descriptor,
    kind: Kind,
) -> Result<(Document, Kind), ApiError> {
    if ask.is_head && Accept::from_headers(&ask.headers).choose(&found.media_type) == Choice::AsIs {
        return Ok((Document::without_bytes(found.clone()), kind));
    }
    let manifest = source_manifest(app, ask, &found.digest).await?;
    Ok((of_source(app, ask, manifest).await?.into(), kind))
}

/// The image of external TOCs that stargz-snapshotter requests next to an image: `TAG-esgztoc`.
async fn toc_image(app: &App, ask: &RegistryRequest, tag: &Tag) -> Result<Manifest, ApiError> {
    let missing = || ApiError::not_found(Subject::Manifest);
    let base: Tag = tag
        .as_str()
        .strip_suffix(TOC_SUFFIX)
        .and_then(|base| base.parse().ok())
        .ok_or_else(missing)?;
    let found = app
        .resolver
        .resolve(
            &ask.admission,
            &ask.location,
            &base,
            ask.started + app.config.answer_within,
        )
        .await;
    let found = found.map_err(|error| failure(&error, ask))?.descriptor;
    let record = match app.converter.lookup(&found.digest).await {
        Ok(Some(record)) => {
            let repository = &ask.location.repository;
            let source = &ask.admission.source;
            app.converter.toc_image(source, repository, &record).await
        }
        Ok(None) => return Err(missing()),
        Err(error) => Err(error),
    };
    record
        .map_err(|error| ApiError::inside(&error))?
        .ok_or_else(missing)
}

/// The converted image of the source with this digest, if it is ready by `ready_by`, or else the
/// reason why the source image is the answer.
async fn ready(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
    ready_by: Instant,
) -> Result<Result<(ImageRecord, Manifest), Kind>, ApiError> {
    let record = match readable_record(app, ask, digest).await {
        Ok(Some(record)) => Some(record),
        Ok(None) if ask.is_browser => {
            return Ok(Err(Kind::Source("browsers start no conversions")));
        }
        Ok(None) => {
            let manifest = source_manifest(app, ask, digest).await?;
            match wait_for(app, ask, &manifest, ready_by).await {
                Ok(record) => Some(record),
                Err(reason) => match last_look(app, ask, digest, reason).await {
                    Some(record) => Some(record),
                    None => return Ok(Err(Kind::Source(reason))),
                },
            }
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "image record not read");
            None
        }
    };
    let Some(record) = record else {
        return Ok(Err(Kind::Source("the converted image is out of reach")));
    };
    if record.converted == record.source {
        return Ok(Err(Kind::PassThrough));
    }
    // A failing store is logged where it fails. The source image is still an answer.
    let converted = stored(app, ask, &record.converted)
        .await
        .unwrap_or_default();
    Ok(converted
        .map(|converted| (record, converted))
        .ok_or(Kind::Source("the converted image is out of reach")))
}

/// The record of an image that another replica has converted a moment ago: this one looks at the
/// other's leases only now and then.
async fn last_look(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
    reason: &'static str,
) -> Option<ImageRecord> {
    if reason != LATE {
        return None;
    }
    let record = timeout(LAST_LOOK, readable_record(app, ask, digest)).await;
    record.ok()?.ok()?
}

/// Waits for the conversion until `ready_by`. The conversion continues after that.
async fn wait_for(
    app: &App,
    ask: &RegistryRequest,
    source_manifest: &Manifest,
    ready_by: Instant,
) -> Result<ImageRecord, &'static str> {
    let since = Instant::now();
    let ticket = match ask.account.conversion().take(app).await {
        Ok(Ok(ticket)) => ticket,
        Ok(Err(_counted)) => {
            return Err("a budget for conversions is used up; this is the source image");
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "bytes in the store not counted");
            return Err("the converted image is out of reach");
        }
    };
    let conversion = app.converter.convert_with(
        &ask.admission.source,
        &ask.location.repository,
        source_manifest,
        ticket,
    );
    let (outcome, answer) = match timeout_at(ready_by, conversion).await {
        Ok(Ok(record)) => ("ready", Ok(record)),
        // The converter logs the reason.
        Ok(Err(_)) => ("failed", Err("conversion failed; this is the source image")),
        Err(_) => ("late", Err(LATE)),
    };
    metrics()
        .conversion_waits
        .get_or_create(&[("outcome", outcome)])
        .observe(since.elapsed(), traces::current_id());
    answer
}
