//! The same image in the words a client understands: one of two families, an index or one image of it.

use crate::oci::manifest::Index;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Digest, Manifest, Platform};
use crate::upstream::Source;

use super::accept::{Accept, Choice};
use super::app::App;
use super::ask::Ask;
use super::error::Failure;
use super::manifests::{original, stored};
use super::translate;

/// Gives the client a document of a type it takes.
///
/// Only a twin is translated: an original's bytes are its identity.
pub(crate) async fn negotiate(
    app: &App,
    ask: &Ask,
    source: &Source,
    manifest: Manifest,
    is_twin: bool,
) -> Result<Manifest, Failure> {
    let accept = Accept::from_headers(&ask.headers);
    match accept.choose(&manifest.media_type) {
        Choice::Translate(_) if is_twin => translated(app, manifest).await,
        Choice::AsIs | Choice::Translate(_) => Ok(manifest),
        Choice::Child => {
            let Some(digest) = default_child(&manifest) else { return Ok(manifest) };
            let child = match stored(app, &digest).await? {
                Some(child) => child,
                None => original(app, ask, source, &digest).await?,
            };
            match accept.choose(&child.media_type) {
                Choice::Translate(_) if is_twin => translated(app, child).await,
                Choice::AsIs | Choice::Translate(_) | Choice::Child => Ok(child),
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
