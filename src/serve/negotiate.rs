//! The same image in the words a client understands: one of two families, an index or one image of it.

use crate::oci::manifest::Index;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Digest, Manifest, Platform};
use crate::store::ImageRecord;
use crate::upstream::Source;

use super::accept::{Accept, Choice};
use super::app::App;
use super::ask::Ask;
use super::error::Failure;
use super::manifests::{original, stored};
use super::translate;

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
        Choice::Child => match default_child(&manifest) {
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
        Choice::Translate(_) => translated(app, record, &manifest).await,
        Choice::Child => {
            let Some(digest) = default_child(&manifest) else { return Ok(Some(manifest)) };
            let Some(child) = stored(app, &digest).await? else {
                return original(app, ask, source, &digest).await.map(Some);
            };
            match accept.choose(&child.media_type) {
                Choice::Translate(_) => translated(app, record, &child).await,
                Choice::AsIs | Choice::Child => Ok(Some(child)),
            }
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

/// The same document in the other family's types, kept for as long as the twin so that its digest can be read.
async fn translated(app: &App, record: &ImageRecord, manifest: &Manifest) -> Result<Option<Manifest>, Failure> {
    let (other, mut needed) = match manifest_kind(&manifest.media_type) {
        Some(ManifestKind::Image) => (translate::image(manifest), Vec::new()),
        Some(ManifestKind::Index) => translated_index(app, manifest).await?,
        None => (None, Vec::new()),
    };
    let Some(other) = other else { return Ok(None) };
    needed.push(other.clone());
    for document in &needed {
        if app.store.find(&document.digest).await?.is_none() {
            app.store.put(&document.media_type, document.bytes.clone()).await?;
        }
    }
    let digests: Vec<_> = needed.into_iter().map(|document| document.digest).collect();
    app.converter.keep_with(record, &digests).await.map_err(|error| Failure::inside(&error))?;
    Ok(Some(other))
}

/// An index with its children, as far as they are ours. None without a child that has no name there.
async fn translated_index(app: &App, manifest: &Manifest) -> Result<(Option<Manifest>, Vec<Manifest>), Failure> {
    let Ok(index) = serde_json::from_slice::<Index>(&manifest.bytes) else { return Ok((None, Vec::new())) };
    let mut children = Vec::new();
    for child in index.manifests {
        let Some(stored) = stored(app, &child.digest).await? else { continue };
        let Some(other) = translate::image(&stored) else { return Ok((None, Vec::new())) };
        children.push((child.digest, other));
    }
    let other = translate::index(manifest, |child| {
        children.iter().find(|(digest, _)| *digest == child.digest).map(|(_, other)| other.clone())
    });
    Ok((other, children.into_iter().map(|(_, other)| other).collect()))
}
