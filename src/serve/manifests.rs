//! Manifests by tag and by digest: the twin when it is ready in time, else the original.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{VARY, WARNING};
use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, timeout_at};

use crate::oci::manifest::Index;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Digest, Manifest, Platform, Reference, Tag};
use crate::store::ImageRecord;
use crate::telemetry::metrics;
use crate::upstream::Source;

use super::accept::{Accept, Choice};
use super::app::App;
use super::ask::Ask;
use super::config::{ANSWER_LIMIT, OnMiss};
use super::error::{Asked, Chain, Failure};
use super::{response, translate};

/// What a manifest request is answered with. HEAD may do without the bytes.
struct Document {
    media_type: String,
    digest: Digest,
    size: u64,
    bytes: Option<Bytes>,
}

impl From<Manifest> for Document {
    fn from(manifest: Manifest) -> Self {
        let size = manifest.size();
        Self { media_type: manifest.media_type, digest: manifest.digest, size, bytes: Some(manifest.bytes) }
    }
}

/// How the document came to be the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Twin,
    /// The original, though a twin is to be expected: a reason for the client.
    Original(&'static str),
    /// The original, which has no other twin than itself or was asked for by digest.
    PassThrough,
}

/// Answers within [`ANSWER_LIMIT`], whatever the upstream does.
pub(crate) async fn answer(app: &Arc<App>, ask: &Ask, reference: &Reference) -> Result<Response, Failure> {
    let document = async {
        match reference {
            Reference::Digest(digest) => by_digest(app, ask, digest).await,
            Reference::Tag(tag) => by_tag(app, ask, tag).await,
        }
    };
    let (document, kind) =
        timeout_at(ask.started + ANSWER_LIMIT, document).await.unwrap_or_else(|_| Err(Failure::timeout()))?;
    count(kind);
    Ok(respond(ask, reference, document, kind))
}

fn count(kind: Kind) {
    let answer = match kind {
        Kind::Twin => "twin",
        Kind::Original(_) => "original",
        Kind::PassThrough => "pass-through",
    };
    metrics().manifests.get_or_create(&[("answer", answer)]).inc();
}

fn respond(ask: &Ask, reference: &Reference, document: Document, kind: Kind) -> Response {
    let is_known = response::is_known_to_client(&ask.headers, &document.digest);
    let status = if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut response = response::of_digest(status, &document.digest);
    match reference {
        Reference::Digest(_) => response::cache(&mut response, response::IMMUTABLE),
        Reference::Tag(_) => {
            response::cache(&mut response, HeaderValue::from_static("no-cache"));
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
        }
    }
    if let Kind::Original(reason) = kind {
        response::set(response.headers_mut(), WARNING, &format!("299 starlift \"{reason}\""));
    }
    if is_known {
        return response;
    }
    response::describe(&mut response, &document.media_type, document.size);
    if let Some(bytes) = document.bytes.filter(|_| !ask.is_head) {
        *response.body_mut() = Body::from(bytes);
    }
    response
}

/// What we made, else the upstream's exact bytes. Whose original image is pulled gets a twin in the background.
async fn by_digest(app: &Arc<App>, ask: &Ask, digest: &Digest) -> Result<(Document, Kind), Failure> {
    if let Some(manifest) = stored(app, digest).await? {
        return Ok((manifest.into(), Kind::Twin));
    }
    let source = source(app, ask)?;
    if let Some(manifest) = app.originals.known(&ask.location, digest).await {
        return Ok(original_child(app, ask, &source, manifest));
    }
    if ask.is_head {
        let reference = Reference::Digest(digest.clone());
        let found = source.resolve(&ask.location.repository, &reference).await.map_err(|error| failure(&error, ask))?;
        let document = Document { media_type: found.media_type, digest: found.digest, size: found.size, bytes: None };
        return Ok((document, Kind::PassThrough));
    }
    let manifest = app.originals.get(&source, &ask.location, digest).await.map_err(|error| failure(&error, ask))?;
    Ok(original_child(app, ask, &source, manifest))
}

fn original_child(app: &Arc<App>, ask: &Ask, source: &Source, manifest: Manifest) -> (Document, Kind) {
    if !ask.is_head && manifest_kind(&manifest.media_type) == Some(ManifestKind::Image) {
        let (app, source) = (Arc::clone(app), source.clone());
        let (repository, child) = (ask.location.repository.clone(), manifest.clone());
        tokio::spawn(async move {
            // Its failure is logged by the converter and changes nothing for who pulls the original.
            let _recorded = app.converter.convert(&source, &repository, &child).await;
        });
    }
    (manifest.into(), Kind::PassThrough)
}

async fn by_tag(app: &Arc<App>, ask: &Ask, tag: &Tag) -> Result<(Document, Kind), Failure> {
    let source = source(app, ask)?;
    let ready_by = ask.started + app.config.wait;
    let patience = ready_by.max(ask.started + ANSWER_LIMIT / 2);
    let found =
        app.resolver.resolve(&source, &ask.location, tag, patience).await.map_err(|error| failure(&error, ask))?;
    match twin(app, ask, &source, &found.digest, ready_by).await? {
        Ok(manifest) => negotiate(app, ask, &source, manifest, Kind::Twin).await,
        Err(kind) => {
            if matches!(kind, Kind::Original(_)) && ask.is_mirror && app.config.on_miss == OnMiss::NotFound {
                return Err(Failure::not_found(Asked::Manifest));
            }
            if ask.is_head && Accept::from_headers(&ask.headers).choose(&found.media_type) == Choice::AsIs {
                let document =
                    Document { media_type: found.media_type, digest: found.digest, size: found.size, bytes: None };
                return Ok((document, kind));
            }
            let original = original(app, ask, &source, &found.digest).await?;
            negotiate(app, ask, &source, original, kind).await
        }
    }
}

/// The twin of the source with this digest, if it is ready by `ready_by`; else why the original must do.
async fn twin(
    app: &App,
    ask: &Ask,
    source: &Source,
    digest: &Digest,
    ready_by: Instant,
) -> Result<Result<Manifest, Kind>, Failure> {
    let record = match app.converter.lookup(digest).await {
        Ok(Some(record)) => Some(record),
        Ok(None) => {
            let original = original(app, ask, source, digest).await?;
            match converted(app, ask, source, &original, ready_by).await {
                Ok(record) => Some(record),
                Err(reason) => return Ok(Err(Kind::Original(reason))),
            }
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the record of a twin cannot be read");
            None
        }
    };
    let Some(record) = record else { return Ok(Err(Kind::Original("the twin is out of reach"))) };
    if record.twin == record.source {
        return Ok(Err(Kind::PassThrough));
    }
    Ok(stored(app, &record.twin).await?.ok_or(Kind::Original("the twin is gone")))
}

/// Waits for the conversion until `ready_by`; it goes on without us after that.
async fn converted(
    app: &App,
    ask: &Ask,
    source: &Source,
    original: &Manifest,
    ready_by: Instant,
) -> Result<ImageRecord, &'static str> {
    let since = Instant::now();
    let conversion = app.converter.convert(source, &ask.location.repository, original);
    let (outcome, answer) = match timeout_at(ready_by, conversion).await {
        Ok(Ok(record)) => ("ready", Ok(record)),
        Ok(Err(error)) => {
            tracing::warn!(error = %Chain(error.as_ref()), "no twin: the original is answered");
            ("failed", Err("conversion failed; this is the original image"))
        }
        Err(_) => ("late", Err("conversion under way; this is the original image")),
    };
    metrics().conversion_waits.get_or_create(&[("outcome", outcome)]).observe(since.elapsed().as_secs_f64());
    answer
}

/// Gives the client a document of a type it takes.
async fn negotiate(
    app: &Arc<App>,
    ask: &Ask,
    source: &Source,
    manifest: Manifest,
    kind: Kind,
) -> Result<(Document, Kind), Failure> {
    let accept = Accept::from_headers(&ask.headers);
    match accept.choose(&manifest.media_type) {
        Choice::AsIs => Ok((manifest.into(), kind)),
        // An original's bytes are its identity: only what we made is translated.
        Choice::Translate(_) if kind != Kind::Twin => Ok((manifest.into(), kind)),
        Choice::Translate(_) => Ok((translated(app, manifest).await?.into(), kind)),
        Choice::Child => {
            let Some(digest) = default_child(&manifest) else { return Ok((manifest.into(), kind)) };
            let child = match stored(app, &digest).await? {
                Some(child) => child,
                None => original(app, ask, source, &digest).await?,
            };
            let child = match accept.choose(&child.media_type) {
                Choice::Translate(_) if kind == Kind::Twin => translated(app, child).await?,
                _ => child,
            };
            Ok((child.into(), kind))
        }
    }
}

/// The child for linux/amd64, which is what docker-registry gives to clients that know no indexes.
fn default_child(index: &Manifest) -> Option<Digest> {
    let wanted = Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None };
    let index: Index = serde_json::from_slice(&index.bytes).ok()?;
    index
        .manifests
        .into_iter()
        .find(|child| child.platform.as_ref().is_some_and(|platform| wanted.matches(&platform.to_platform())))
        .map(|child| child.digest)
}

/// The same document in the other family's types, kept so that its digest can be read. As it is where that fails.
async fn translated(app: &App, manifest: Manifest) -> Result<Manifest, Failure> {
    let other = match manifest_kind(&manifest.media_type) {
        Some(ManifestKind::Image) => translate::image(&manifest),
        Some(ManifestKind::Index) => translated_index(app, &manifest).await?,
        None => None,
    };
    let Some(other) = other else { return Ok(manifest) };
    keep(app, &other).await?;
    Ok(other)
}

async fn translated_index(app: &App, manifest: &Manifest) -> Result<Option<Manifest>, Failure> {
    let Ok(index) = serde_json::from_slice::<Index>(&manifest.bytes) else { return Ok(None) };
    let mut children = Vec::new();
    for child in index.manifests {
        let Some(stored) = stored(app, &child.digest).await? else { continue };
        let Some(other) = translate::image(&stored) else { continue };
        keep(app, &other).await?;
        children.push((child.digest, other));
    }
    Ok(translate::index(manifest, |child| {
        children.iter().find(|(digest, _)| *digest == child.digest).map(|(_, other)| other.clone())
    }))
}

async fn keep(app: &App, manifest: &Manifest) -> Result<(), Failure> {
    if app.store.find(&manifest.digest).await?.is_none() {
        app.store.put(&manifest.media_type, manifest.bytes.clone()).await?;
    }
    Ok(())
}

/// A manifest of our own making.
pub(crate) async fn stored(app: &App, digest: &Digest) -> Result<Option<Manifest>, Failure> {
    let Some(object) = app.store.find(digest).await? else { return Ok(None) };
    let Some(media_type) = object.media_type.clone().filter(|name| manifest_kind(name).is_some()) else {
        return Ok(None);
    };
    let bytes = app.store.read_all(&object).await?;
    Ok(Some(Manifest { media_type, digest: digest.clone(), bytes }))
}

async fn original(app: &App, ask: &Ask, source: &Source, digest: &Digest) -> Result<Manifest, Failure> {
    app.originals.get(source, &ask.location, digest).await.map_err(|error| failure(&error, ask))
}

fn source(app: &App, ask: &Ask) -> Result<Source, Failure> {
    app.source(&ask.location.upstream).map_err(|error| failure(&error, ask))
}

fn failure(error: &crate::upstream::Error, ask: &Ask) -> Failure {
    Failure::upstream(error, Asked::Manifest, ask.is_mirror)
}
