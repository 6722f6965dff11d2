//! The same image in a form that the client accepts: one of two families of types, and an index or
//! one image of it.

use serde::Deserialize;

use crate::aside::aside;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Digest, Manifest, Platform, translate};
use crate::store::ImageRecord;

use super::accept::{Accept, Choice};
use super::app::App;
use super::error::ApiError;
use super::reading::{source_manifest, stored};
use super::registry_request::RegistryRequest;

/// The most nested indexes. No known image nests them deeper than two.
const MAX_INDEXES: usize = 4;

/// The source image in a form that the client accepts. Its bytes are its identity, so an index may
/// only be replaced by one of its images.
pub(crate) async fn of_source(
    app: &App,
    ask: &RegistryRequest,
    manifest: Manifest,
) -> Result<Manifest, ApiError> {
    let accept = Accept::from_headers(&ask.headers);
    let mut manifest = manifest;
    for _ in 0..MAX_INDEXES {
        if accept.choose(&manifest.media_type) != Choice::Child {
            break;
        }
        let Some(digest) = child(&manifest).await else {
            break;
        };
        manifest = source_manifest(app, ask, &digest).await?;
    }
    Ok(manifest)
}

/// The converted image in a form that the client accepts, or `None` if there is none in the types
/// that it knows.
pub(crate) async fn of_converted(
    app: &App,
    ask: &RegistryRequest,
    record: &ImageRecord,
    manifest: Manifest,
) -> Result<Option<Manifest>, ApiError> {
    let accept = Accept::from_headers(&ask.headers);
    let mut manifest = manifest;
    for _ in 0..=MAX_INDEXES {
        match accept.choose(&manifest.media_type) {
            Choice::AsIs => break,
            Choice::Translate(_) if manifest.digest == record.converted => {
                return match &record.translated {
                    Some(translated) => stored(app, ask, &translated.digest).await,
                    None => Ok(None),
                };
            }
            // The same bytes that its conversion stored as the translation.
            Choice::Translate(_) => {
                return Ok(aside(manifest.bytes.len(), move || translate::image(&manifest)).await);
            }
            Choice::Child => {
                let Some(digest) = child(&manifest).await else {
                    break;
                };
                let Some(next) = stored(app, ask, &digest).await? else {
                    let next = source_manifest(app, ask, &digest).await?;
                    return of_source(app, ask, next).await.map(Some);
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

/// The only fields of an index that matter here. The rest may be megabytes, which must not become a
/// tree in memory.
#[derive(Deserialize)]
struct Children {
    manifests: Option<Vec<Child>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Child {
    media_type: Option<String>,
    digest: Option<String>,
    platform: Option<ChildPlatform>,
}

#[derive(Deserialize)]
struct ChildPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl ChildPlatform {
    fn to_platform(&self) -> Platform {
        Platform {
            os: self.os.clone().unwrap_or_default(),
            architecture: self.architecture.clone().unwrap_or_default(),
            variant: self.variant.clone(),
        }
    }
}

/// The child for linux/amd64, which docker-registry also sends to clients that do not know indexes.
fn default_child(index: &Manifest) -> Option<Digest> {
    let wanted = Platform {
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        variant: None,
    };
    let index: Children = serde_json::from_slice(&index.bytes).ok()?;
    let children = index.manifests.unwrap_or_default();
    let is_wanted = |child: &&Child| {
        child
            .platform
            .as_ref()
            .is_some_and(|platform| wanted.matches(&platform.to_platform()))
    };
    let is_nested = |child: &&Child| {
        let kind = child.media_type.as_deref().and_then(manifest_kind);
        child.platform.is_none() && kind == Some(ManifestKind::Index)
    };
    let child = children
        .iter()
        .find(is_wanted)
        .or_else(|| children.iter().find(is_nested))?;
    child.digest.as_ref()?.parse().ok()
}
