//! Blobs, whole or in parts: converted ones from the store, all others from the upstream.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderName, HeaderValue, StatusCode};

use crate::oci::media_type::OCTET_STREAM;
use crate::oci::range::{Selection, content_range, parse, select};
use crate::oci::{Digest, Repository};
use crate::registry;
use crate::store::{self, Key, Object, Store};
use crate::telemetry::metrics;
use crate::transport::Source;

use super::app::App;
use super::error::{ApiError, Subject};
use super::multipart::{Layout, Read, Slicer};
use super::reading::{Readable, after_upstream, readable};
use super::registry_request::RegistryRequest;
use super::response;

/// Each part of a multi-range answer from the store may be a read of its own; `max_ranges` bounds
/// them.
const MAX_STORE_READS: usize = usize::MAX;

/// The longest body that is copied from the page cache on the thread that has the request: some
/// 30 microseconds.
const MAX_COPIED: u64 = 256 << 10;

/// The header in which the agent names the purpose of a request. Its ranges are not learned from,
/// because the agent reports its reads itself.
const PURPOSE: HeaderName = HeaderName::from_static("starlift-purpose");

type Bodies = BoxStream<'static, Result<Bytes, BodyError>>;

/// The reason why a body broke off.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("store read failed")]
    Store(#[from] store::Error),
    #[error("upstream read failed")]
    Upstream(#[from] registry::Error),
}

/// The origin of a blob's bytes.
#[derive(Clone)]
enum Origin {
    Store {
        store: Store,
        object: Object,
    },
    Upstream {
        source: Source,
        repository: Repository,
        digest: Digest,
        size: u64,
    },
}

impl Origin {
    fn size(&self) -> u64 {
        match self {
            Self::Store { object, .. } => object.size,
            Self::Upstream { size, .. } => *size,
        }
    }

    async fn open(&self, range: Range<u64>) -> Result<Bodies, BodyError> {
        match self {
            Self::Store { store, object } => Ok(store
                .read(object, range)
                .await?
                .map_err(BodyError::from)
                .boxed()),
            Self::Upstream {
                source,
                repository,
                digest,
                size,
            } => {
                // A whole blob is requested without a range, so that its digest is checked.
                let range = Some(range).filter(|range| *range != (0..*size));
                let body = source.blob(repository, digest, range).await?;
                if body.blob_size != *size {
                    return Err(registry::Error::Malformed(
                        "blob has another size than announced".to_owned(),
                    )
                    .into());
                }
                Ok(body.stream.map_err(BodyError::from).boxed())
            }
        }
    }
}

pub(crate) async fn answer(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let stored = match readable(app, ask, digest).await {
        Ok(Readable::Object(object)) => return from_store(app, ask, object).await,
        Ok(Readable::UnderOtherNames) => Ok(true),
        Ok(Readable::Missing) => Ok(false),
        Err(failure) => Err(failure),
    };
    let answer = Box::pin(from_upstream(app, ask, digest)).await;
    answer.map_err(|failure| after_upstream(failure, stored))
}

async fn from_store(
    app: &App,
    ask: &RegistryRequest,
    object: Object,
) -> Result<Response, ApiError> {
    let is_learned_from = is_learned_from(app, ask, &object);
    if app.config.redirect
        && !ask.is_head
        && !is_learned_from
        && let Some(url) = app
            .store
            .signed_url(&object, app.config.redirect_lifetime)
            .await?
    {
        count("redirected");
        let mut response = response::of_digest(StatusCode::TEMPORARY_REDIRECT, &object.digest);
        response::set(response.headers_mut(), LOCATION, url.as_str());
        return Ok(response);
    }
    let selection = wanted(ask, &object.digest, object.size, app.config.max_ranges);
    note(app, ask, &object, selection.as_ref());
    count("store");
    let digest = object.digest.clone();
    let origin = Origin::Store {
        store: app.store.clone(),
        object,
    };
    send(ask, &digest, &origin, selection, MAX_STORE_READS).await
}

/// Whether the bytes of the layer's ranges pass through this server, though blobs are redirected,
/// because too little is known about its image.
fn is_learned_from(app: &App, ask: &RegistryRequest, object: &Object) -> bool {
    let wants = app
        .ranges
        .as_ref()
        .is_some_and(|ranges| ranges.wants(&object.digest));
    wants && ask.headers.contains_key(RANGE) && !ask.headers.contains_key(PURPOSE)
}

/// Reports the ranges of a layer, from which the files of a start are learned.
fn note(app: &App, ask: &RegistryRequest, object: &Object, selection: Option<&Selection>) {
    if let (Some(ranges), Some(client)) = (&app.ranges, ask.client)
        && let Some(Selection::Parts(parts)) = selection
        && matches!(object.key, Key::Layer { .. })
        && !ask.headers.contains_key(PURPOSE)
    {
        ranges.read(client, &object.digest, object.size, parts);
    }
}

async fn from_upstream(
    app: &App,
    ask: &RegistryRequest,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let fail = |error: registry::Error| ApiError::upstream(&error, Subject::Blob, ask.is_mirror);
    let source = ask.admission.source.clone();
    let key = (ask.location.clone(), digest.clone());
    let repository = ask.location.repository.clone();
    count("upstream");
    let is_known = response::is_known_to_client(&ask.headers, digest);
    if !ask.is_head && !is_known && !ask.headers.contains_key(RANGE) {
        let body = source.blob(&repository, digest, None).await.map_err(fail)?;
        app.blob_sizes.insert(key, body.blob_size).await;
        return Ok(through(digest, body));
    }
    let size = match app.blob_sizes.get(&key).await {
        Some(size) => size,
        None => source.blob_size(&repository, digest).await.map_err(fail)?,
    };
    let origin = Origin::Upstream {
        source,
        repository,
        digest: digest.clone(),
        size,
    };
    let selection = wanted(ask, digest, size, app.config.max_ranges);
    let answer = send(ask, digest, &origin, selection, app.config.max_cold_reads).await;
    // The size from a HEAD request is remembered once the upstream has sent bytes.
    match &answer {
        Ok(_) if !ask.is_head => app.blob_sizes.insert(key, size).await,
        Ok(_) => {}
        Err(_) => app.blob_sizes.invalidate(&key).await,
    }
    answer
}

/// A whole blob of the upstream. Its size is in the upstream's answer, so that no earlier request
/// is needed.
fn through(digest: &Digest, body: registry::Body) -> Response {
    let mut response = decorated(StatusCode::OK, digest);
    response::describe(&mut response, OCTET_STREAM, body.blob_size);
    response
        .headers_mut()
        .insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if body.blob_size > 0 {
        *response.body_mut() = Body::from_stream(body.stream.map_err(BodyError::from));
    }
    response
}

fn count(answer: &'static str) {
    metrics().blobs.get_or_create(&[("answer", answer)]).inc();
}

async fn send(
    ask: &RegistryRequest,
    digest: &Digest,
    origin: &Origin,
    selection: Option<Selection>,
    max_reads: usize,
) -> Result<Response, ApiError> {
    if response::is_known_to_client(&ask.headers, digest) {
        return Ok(decorated(StatusCode::NOT_MODIFIED, digest));
    }
    let mut response = match selection {
        Some(Selection::Unsatisfiable) => return Err(ApiError::unsatisfiable(origin.size())),
        Some(Selection::Parts(parts)) => partial(ask, digest, origin, parts, max_reads).await?,
        None => Box::pin(whole(ask, digest, origin)).await?,
    };
    response
        .headers_mut()
        .insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

fn decorated(status: StatusCode, digest: &Digest) -> Response {
    let mut response = response::of_digest(status, digest);
    response::cache(&mut response, response::IMMUTABLE);
    response
}

/// The requested parts, or `None` for the whole blob. Ranges have a meaning only for GET.
fn wanted(
    ask: &RegistryRequest,
    digest: &Digest,
    size: u64,
    max_ranges: usize,
) -> Option<Selection> {
    if ask.is_head || !response::is_range_wanted(&ask.headers, digest) {
        return None;
    }
    let specs = parse(ask.header(RANGE)?)?;
    match select(&specs, size) {
        Selection::Parts(parts) if parts.len() > max_ranges => None,
        selection => Some(selection),
    }
}

async fn whole(
    ask: &RegistryRequest,
    digest: &Digest,
    origin: &Origin,
) -> Result<Response, ApiError> {
    let size = origin.size();
    let mut response = decorated(StatusCode::OK, digest);
    response::describe(&mut response, OCTET_STREAM, size);
    if !ask.is_head && size > 0 {
        let stream = origin
            .open(0..size)
            .await
            .map_err(|error| failure(error, ask))?;
        *response.body_mut() = Body::from_stream(stream);
    }
    Ok(response)
}

async fn partial(
    ask: &RegistryRequest,
    digest: &Digest,
    origin: &Origin,
    parts: Vec<Range<u64>>,
    max_reads: usize,
) -> Result<Response, ApiError> {
    let size = origin.size();
    let mut response = decorated(StatusCode::PARTIAL_CONTENT, digest);
    let layout = if let [part] = parts.as_slice() {
        let range = content_range(part, size);
        response::set(response.headers_mut(), CONTENT_RANGE, &range);
        Layout::single(part.clone())
    } else {
        Layout::multipart(parts, size, &boundary(), max_reads).ok_or_else(ApiError::far_parts)?
    };
    response::describe(&mut response, &layout.content_type, layout.length);
    if let Some(body) = cached(origin, &layout).await {
        *response.body_mut() = Body::from(body);
        return Ok(response);
    }
    let stream = Box::pin(read(origin.clone(), layout))
        .await
        .map_err(|error| failure(error, ask))?;
    *response.body_mut() = Body::from_stream(stream);
    Ok(response)
}

/// The body, if it is short and all its bytes are in this machine's page cache.
async fn cached(origin: &Origin, layout: &Layout) -> Option<Bytes> {
    let Origin::Store { store, object } = origin else {
        return None;
    };
    if layout.length > MAX_COPIED {
        return None;
    }
    let file = store.nearby(object).await?;
    let mut body = store.buffer(usize::try_from(layout.length).ok()?);
    layout.fill(body.as_mut_slice(), |part, offset| {
        file.read_cached(part, offset)
    })?;
    Some(body.freeze())
}

/// Only letters and digits: containers/image accepts nothing else. Long enough not to occur in a
/// blob.
fn boundary() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// Returns the body. Its first read is open when this returns, so that a failure still has a
/// status. The others follow one after the other.
async fn read(origin: Origin, layout: Layout) -> Result<Bodies, BodyError> {
    let mut reads = layout.reads.into_iter();
    let Some(first) = reads.next() else {
        return Ok(stream::empty().boxed());
    };
    let first = slice(&first, origin.open(first.range.clone()).await?);
    let origin = Arc::new(origin);
    let others = stream::iter(reads)
        .then(move |read| {
            let origin = Arc::clone(&origin);
            async move { Ok::<_, BodyError>(slice(&read, origin.open(read.range.clone()).await?)) }
        })
        .try_flatten();
    let trailer = stream::iter(
        Some(layout.trailer)
            .filter(|trailer| !trailer.is_empty())
            .map(Ok),
    );
    Ok(first.chain(others).chain(trailer).boxed())
}

fn slice(read: &Read, bytes: Bodies) -> Bodies {
    let mut slicer = Slicer::new(read);
    bytes
        .map_ok(move |bytes| stream::iter(slicer.push(bytes).into_iter().map(Ok)))
        .try_flatten()
        .boxed()
}

fn failure(error: BodyError, ask: &RegistryRequest) -> ApiError {
    match error {
        BodyError::Store(error) => error.into(),
        BodyError::Upstream(error) => ApiError::upstream(&error, Subject::Blob, ask.is_mirror),
    }
}
