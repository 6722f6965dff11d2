//! The same image in the words a client understands: one of two families, an index or one image of it.

use crate::aside::aside;
use crate::oci::manifest::Index;
use crate::oci::{Digest, Manifest, Platform, translate};
use crate::store::ImageRecord;
use crate::upstream::Source;

use super::accept::{Accept, Choice};
use super::app::App;
use super::ask::Ask;
use super::error::Failure;
use super::manifests::{original, stored};

/// The original in a form that the client takes: its bytes are its identity, so that an index may give way to one of
/// its images and nothing else changes.
pub(crate) async fn of_original(
    app: &App,
    ask: &Ask,
    source: &Source,
    manifest: Manifest,
) -> Result<Manifest, Failure> {
    match Accept::from_headers(&ask.headers).choose(&manifest.media_type) {
        Choice::AsIs | Choice::Translate(_) => Ok(manifest),
        Choice::Child => match child(&manifest).await {
            Some(digest) => original(app, ask, source, &digest).await,
            None => Ok(manifest),
        },
    }
}

/// The twin in a form that the client takes; `None` when there is none in the types it knows.
pub(crate) async fn of_twin(
    app: &App,
    ask: &Ask,
    source: &Source,
    record: &ImageRecord,
    manifest: Manifest,
) -> Result<Option<Manifest>, Failure> {
    let accept = Accept::from_headers(&ask.headers);
    match accept.choose(&manifest.media_type) {
        Choice::AsIs => Ok(Some(manifest)),
        Choice::Translate(_) => match &record.translated {
            Some(translated) => stored(app, &translated.digest).await,
            None => Ok(None),
        },
        Choice::Child => {
            let Some(digest) = child(&manifest).await else { return Ok(Some(manifest)) };
            let Some(child) = stored(app, &digest).await? else {
                return original(app, ask, source, &digest).await.map(Some);
            };
            match accept.choose(&child.media_type) {
                // The very bytes that its conversion stored beside it.
                Choice::Translate(_) => Ok(aside(child.bytes.len(), move || translate::image(&child)).await),
                Choice::AsIs | Choice::Child => Ok(Some(child)),
            }
        }
    }
}

async fn child(index: &Manifest) -> Option<Digest> {
    let own = index.clone();
    aside(index.bytes.len(), move || default_child(&own)).await
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
