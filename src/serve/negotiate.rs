//! The same image in the words a client understands: one of two families, an index or one image of it.

use crate::aside::aside;
use crate::oci::manifest::Index;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Descriptor, Digest, Manifest, Platform, translate};
use crate::store::ImageRecord;
use crate::upstream::Source;

use super::accept::{Accept, Choice};
use super::app::App;
use super::ask::Ask;
use super::error::Failure;
use super::manifests::{original, stored};

/// Indexes in indexes: nobody was seen to nest them deeper than two.
const MAX_INDEXES: usize = 4;

/// The original in a form that the client takes: its bytes are its identity, so that an index may give way to one of
/// its images and nothing else changes.
pub(crate) async fn of_original(
    app: &App,
    ask: &Ask,
    source: &Source,
    manifest: Manifest,
) -> Result<Manifest, Failure> {
    let accept = Accept::from_headers(&ask.headers);
    let mut manifest = manifest;
    for _ in 0..MAX_INDEXES {
        if accept.choose(&manifest.media_type) != Choice::Child {
            break;
        }
        let Some(digest) = child(&manifest).await else { break };
        manifest = original(app, ask, source, &digest).await?;
    }
    Ok(manifest)
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
    let mut manifest = manifest;
    for _ in 0..=MAX_INDEXES {
        match accept.choose(&manifest.media_type) {
            Choice::AsIs => break,
            Choice::Translate(_) if manifest.digest == record.twin => {
                return match &record.translated {
                    Some(translated) => stored(app, &translated.digest).await,
                    None => Ok(None),
                };
            }
            // The very bytes that its conversion stored beside it.
            Choice::Translate(_) => {
                return Ok(aside(manifest.bytes.len(), move || translate::image(&manifest)).await);
            }
            Choice::Child => {
                let Some(digest) = child(&manifest).await else { break };
                let Some(next) = stored(app, &digest).await? else {
                    let next = original(app, ask, source, &digest).await?;
                    return of_original(app, ask, source, next).await.map(Some);
                };
                manifest = next;
            }
        }
    }
    Ok(Some(manifest))
}

async fn child(index: &Manifest) -> Option<Digest> {
    let own = index.clone();
    aside(index.bytes.len(), move || default_child(&own)).await
}

/// The child for linux/amd64, which is what docker-registry gives to clients that know no indexes.
fn default_child(index: &Manifest) -> Option<Digest> {
    let wanted = Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None };
    let index: Index = serde_json::from_slice(&index.bytes).ok()?;
    let is_wanted = |child: &&Descriptor| match &child.platform {
        Some(platform) => wanted.matches(&platform.to_platform()),
        None => false,
    };
    let is_nested =
        |child: &&Descriptor| child.platform.is_none() && manifest_kind(&child.media_type) == Some(ManifestKind::Index);
    let children = &index.manifests;
    children.iter().find(is_wanted).or_else(|| children.iter().find(is_nested)).map(|child| child.digest.clone())
}
