//! Everything that belongs to a converted image: its manifests and blobs, and where each is read
//! from.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use super::document::{is_index, parse};
use super::endpoint::Endpoint;
use crate::failure::Failure;
use crate::oci::annotations::REFERENCE_TYPE;
use crate::oci::manifest::{DescriptorPlatform, ImageManifest, Index};
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::oci::{Descriptor, Digest, Manifest, Platform, Reference, translate};
use crate::registry;
use crate::store::{Object, Store};

/// The deepest nesting of indexes within the named one. Deeper than two was never seen.
const MAX_NESTED: usize = 4;
/// Manifests below one index: the images with the most platforms have some thirty, and an
/// attestation for each.
const MAX_CHILDREN: usize = 4096;
/// A document of unknown size is not read beyond this.
const MAX_UNSIZED: u64 = 8 << 20;

/// A blob's bytes as a stream to a destination.
pub(super) type Bytes = BoxStream<'static, Result<bytes::Bytes, Failure>>;

/// A converted image with all its manifests and blobs.
#[derive(Debug)]
pub(crate) struct ImageBundle {
    pub(crate) root: Manifest,
    /// Children first, without the root.
    pub(crate) children: Vec<Manifest>,
    /// Each listed once.
    pub(crate) blobs: Vec<Descriptor>,
    /// Children of its indexes that the source does not hold, or whose configurations it lacks.
    pub(crate) missing: Vec<Digest>,
}

/// A reader of a converted image's objects: converted ones from the store, unchanged ones from the
/// source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageReader<'a> {
    /// The store with the converted objects, if there are any.
    pub(crate) store: Option<&'a Store>,
    pub(crate) endpoint: &'a Endpoint,
}

impl ImageReader<'_> {
    async fn find(&self, digest: &Digest) -> Result<Option<(&Store, Object)>, Failure> {
        let Some(store) = self.store else {
            return Ok(None);
        };
        let found = store.find(digest).await.map_err(Failure::from_error)?;
        Ok(found.map(|object| (store, object)))
    }

    /// Returns the manifest with this digest, from the store or the source.
    pub(crate) async fn manifest(
        &self,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Manifest, Failure> {
        let found = self.find_manifest(digest, media_type).await?;
        found.ok_or_else(|| Failure::new(format!("manifest {digest} not found in the source")))
    }

    /// Returns the same; `None` if it does not exist.
    async fn find_manifest(
        &self,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Option<Manifest>, Failure> {
        let context = format!("reading the manifest {digest}");
        if let Some((store, object)) = self.find(digest).await? {
            let bytes = store
                .read_all(&object)
                .await
                .map_err(Failure::when(context))?;
            let media_type = object.media_type.unwrap_or_else(|| media_type.to_owned());
            return Ok(Some(Manifest {
                media_type,
                digest: digest.clone(),
                bytes,
            }));
        }
        let reference = Reference::Digest(digest.clone());
        let Endpoint {
            source, repository, ..
        } = self.endpoint;
        match source.manifest(repository, &reference).await {
            Err(registry::Error::NotFound) => Ok(None),
            found => found.map(Some).map_err(Failure::when(context)),
        }
    }

    /// Returns the size of an object; `None` if it does not exist.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, Failure> {
        if let Some((_, object)) = self.find(digest).await? {
            return Ok(Some(object.size));
        }
        let Endpoint {
            source, repository, ..
        } = self.endpoint;
        match source.blob_size(repository, digest).await {
            Err(registry::Error::NotFound) => Ok(None),
            size => size
                .map(Some)
                .map_err(Failure::when(format!("reading {digest}"))),
        }
    }

    /// Returns the blob's descriptor with its true size, which is looked up if the descriptor does
    /// not state it.
    pub(super) async fn sized(&self, blob: &Descriptor) -> Result<Descriptor, Failure> {
        let size = match blob.known_size() {
            Some(size) => size,
            None => self.size(&blob.digest).await?.unwrap_or_default(),
        };
        Ok(Descriptor::plain(
            blob.media_type.clone(),
            blob.digest.clone(),
            size,
        ))
    }

    /// Whether the configuration of an image exists. Sparse copies hold manifests without anything
    /// that these name.
    async fn holds_config(&self, manifest: &Manifest) -> Result<bool, Failure> {
        match serde_json::from_slice::<ImageManifest>(&manifest.bytes) {
            Ok(image) if is_image(manifest) && image.config.urls.is_empty() => {
                Ok(self.size(&image.config.digest).await?.is_some())
            }
            _ => Ok(true),
        }
    }

    /// Returns all bytes of a small blob.
    pub(crate) async fn bytes(&self, blob: &Descriptor) -> Result<Vec<u8>, Failure> {
        let limit = blob.known_size().unwrap_or(MAX_UNSIZED);
        let mut stream = self.blob(blob).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.try_next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(Failure::new(format!(
                    "{} is longer than its descriptor says",
                    blob.digest
                )));
            }
        }
        Ok(bytes)
    }

    /// Returns the blob's file, if it is in a scratch store, which is deleted with this process.
    pub(super) async fn scratch_file(&self, blob: &Descriptor) -> Result<Option<PathBuf>, Failure> {
        Ok(self
            .find(&blob.digest)
            .await?
            .and_then(|(store, object)| store.scratch_file(&object)))
    }

    /// Returns the bytes of a blob, as a stream.
    pub(crate) async fn blob(&self, blob: &Descriptor) -> Result<Bytes, Failure> {
        let context = format!("reading {}", blob.digest);
        if let Some((store, object)) = self.find(&blob.digest).await? {
            let stream = store
                .read(&object, 0..object.size)
                .await
                .map_err(Failure::when(context))?;
            return Ok(stream.map_err(Failure::from_error).boxed());
        }
        let Endpoint {
            source, repository, ..
        } = self.endpoint;
        let body = source
            .blob(repository, &blob.digest, None)
            .await
            .map_err(Failure::when(context))?;
        Ok(body.stream.map_err(Failure::from_error).boxed())
    }
}

impl ImageBundle {
    /// Collects everything that belongs to `root`. An index may hold indexes, artifacts and other
    /// blobs, and may lack children.
    pub(crate) async fn pack(reader: ImageReader<'_>, root: Manifest) -> Result<Self, Failure> {
        let mut packing = Packing {
            reader,
            children: Vec::new(),
            blobs: Vec::new(),
            missing: Vec::new(),
            seen: HashSet::new(),
        };
        if is_index(&root) {
            packing.add_children(&root, 0).await?;
        }
        let Packing {
            children,
            blobs,
            missing,
            ..
        } = packing;
        Self {
            root,
            children,
            blobs,
            missing,
        }
        .counted()
    }

    /// Returns the bundle of a single image or artifact.
    pub(crate) fn of_image(root: Manifest) -> Result<Self, Failure> {
        Self {
            root,
            children: Vec::new(),
            blobs: Vec::new(),
            missing: Vec::new(),
        }
        .counted()
    }

    /// Returns the image manifests of the bundle.
    pub(crate) fn images(&self) -> Vec<&Manifest> {
        self.children
            .iter()
            .chain([&self.root])
            .filter(|manifest| is_image(manifest))
            .collect()
    }

    /// Keeps only the images for one of `platforms`. The result is a single image if one is left.
    /// Bundles of one image stay as they are.
    pub(crate) fn select(self, platforms: &[Platform]) -> Result<Self, Failure> {
        if !is_index(&self.root) {
            return Ok(self);
        }
        let mut index: Index = parse(&self.root)?;
        let offered = self.offered(&index, None);
        let named = |(child, platform): &(Descriptor, Option<Platform>)| {
            let fits = |platform: &Platform| platforms.iter().any(|asked| asked.matches(platform));
            platform.as_ref().is_some_and(fits).then(|| child.clone())
        };
        let mut chosen: Vec<_> = offered.iter().filter_map(named).collect();
        if chosen.is_empty() {
            // As in containerd, an image without a platform may be for every platform.
            chosen.extend(
                offered
                    .into_iter()
                    .filter(|(_, platform)| platform.is_none())
                    .map(|(child, _)| child),
            );
        }
        let is_chosen =
            |manifest: &Manifest| chosen.iter().any(|child| child.digest == manifest.digest);
        let mut children: Vec<_> = self.children.into_iter().filter(is_chosen).collect();
        match (children.len(), children.pop()) {
            (1, Some(root)) => Self::of_image(root),
            (_, Some(last)) => {
                children.push(last);
                index.manifests = chosen.into();
                let bytes = serde_json::to_vec(&index).map_err(Failure::from_error)?;
                let root = Manifest::new(self.root.media_type, bytes.into());
                Self {
                    root,
                    children,
                    blobs: Vec::new(),
                    missing: Vec::new(),
                }
                .counted()
            }
            (_, None) => {
                let asked = platforms
                    .iter()
                    .map(Platform::to_string)
                    .collect::<Vec<_>>()
                    .join(", ");
                Err(Failure::new(format!("image has nothing for {asked}")))
            }
        }
    }

    /// Returns the images of the bundle below `index`, each with its platform: its own, or that of
    /// its index.
    fn offered(
        &self,
        index: &Index,
        platform: Option<&Platform>,
    ) -> Vec<(Descriptor, Option<Platform>)> {
        let mut offered = Vec::new();
        for child in index.manifests.iter().filter(|child| !is_beside(child)) {
            let platform = child
                .platform
                .as_ref()
                .map(DescriptorPlatform::to_platform)
                .or(platform.cloned());
            let Some(manifest) = self
                .children
                .iter()
                .find(|manifest| manifest.digest == child.digest)
            else {
                continue;
            };
            if is_image(manifest) {
                offered.push((child.clone(), platform));
            } else if let Ok(nested) = parse::<Index>(manifest) {
                offered.extend(self.offered(&nested, platform.as_ref()));
            }
        }
        offered
    }

    /// Removes missing children from their indexes.
    pub(crate) fn without_missing(self) -> Result<Self, Failure> {
        if self.missing.is_empty() {
            return Ok(self);
        }
        let missing: HashSet<_> = self.missing.iter().cloned().collect();
        let mut kept = self.rewritten(|manifest, replacements| {
            if !is_index(manifest) {
                return Ok(None);
            }
            let mut index: Index = parse(manifest)?;
            let before = index.manifests.len();
            index
                .manifests
                .retain(|child| !missing.contains(&child.digest));
            let is_repointed =
                translate::repoint(&mut index, |digest| replacements.get(digest).cloned());
            if index.manifests.len() == before && !is_repointed {
                return Ok(None);
            }
            let bytes = serde_json::to_vec(&index).map_err(Failure::from_error)?;
            Ok(Some(Manifest::new(
                manifest.media_type.clone(),
                bytes.into(),
            )))
        })?;
        kept.missing.clear();
        Ok(kept)
    }

    /// Returns the bundle with OCI media types. Nothing else changes, and types without an OCI name
    /// stay.
    pub(crate) fn translated_to_oci(self) -> Result<Self, Failure> {
        self.rewritten(|manifest, replacements| {
            Ok(translate::to_oci(manifest, |digest| {
                replacements.get(digest).cloned()
            }))
        })
    }

    /// Replaces documents with the results of `rewrite`, which gets each document and the
    /// replacements of the documents that it names.
    fn rewritten(
        self,
        rewrite: impl Fn(&Manifest, &HashMap<Digest, Descriptor>) -> Result<Option<Manifest>, Failure>,
    ) -> Result<Self, Failure> {
        let mut replacements = HashMap::new();
        let mut children = Vec::new();
        for child in self.children {
            let replacement = rewrite(&child, &replacements)?;
            replacements.extend(
                replacement
                    .as_ref()
                    .map(|new| (child.digest.clone(), new.descriptor())),
            );
            children.push(replacement.unwrap_or(child));
        }
        let root = rewrite(&self.root, &replacements)?.unwrap_or(self.root);
        Ok(Self {
            root,
            children,
            ..self
        })
    }

    /// Adds the blobs of all images to the list, each once.
    fn counted(mut self) -> Result<Self, Failure> {
        let mut blobs = std::mem::take(&mut self.blobs);
        let mut seen: HashSet<_> = blobs.iter().map(|blob| blob.digest.clone()).collect();
        for manifest in self.images() {
            let image: ImageManifest = match parse(manifest) {
                Ok(image) => image,
                // An invalid child does not fail the index.
                Err(_) if manifest.digest != self.root.digest => continue,
                Err(error) => return Err(error),
            };
            let parts = image.layers.into_iter().chain([image.config]);
            // Clients fetch a blob that has URLs from there; registries do not hold it.
            blobs.extend(
                parts.filter(|blob| blob.urls.is_empty() && seen.insert(blob.digest.clone())),
            );
        }
        self.blobs = blobs;
        Ok(self)
    }
}

/// A bundle that is being built.
struct Packing<'a> {
    reader: ImageReader<'a>,
    children: Vec<Manifest>,
    blobs: Vec<Descriptor>,
    missing: Vec<Digest>,
    seen: HashSet<Digest>,
}

impl Packing<'_> {
    /// Adds the children of an index that is nested in `depth` others.
    fn add_children<'b>(
        &'b mut self,
        index: &'b Manifest,
        depth: usize,
    ) -> BoxFuture<'b, Result<(), Failure>> {
        let added = async move {
            if depth > MAX_NESTED {
                return Err(Failure::new(format!(
                    "indexes are nested more than {MAX_NESTED} deep"
                )));
            }
            for child in parse::<Index>(index)?.manifests {
                if !self.seen.insert(child.digest.clone()) {
                    continue;
                }
                if self.seen.len() > MAX_CHILDREN {
                    return Err(Failure::new(format!(
                        "index holds more than {MAX_CHILDREN} manifests"
                    )));
                }
                self.add(child, depth).await?;
            }
            Ok(())
        };
        added.boxed()
    }

    async fn add(&mut self, child: Descriptor, depth: usize) -> Result<(), Failure> {
        match self
            .reader
            .find_manifest(&child.digest, &child.media_type)
            .await?
        {
            Some(manifest) if is_index(&manifest) => {
                self.add_children(&manifest, depth + 1).await?;
                self.children.push(manifest);
            }
            Some(manifest) if self.reader.holds_config(&manifest).await? => {
                self.children.push(manifest)
            }
            Some(_) => self.missing.push(child.digest),
            // An index may name any object.
            None if manifest_kind(&child.media_type).is_none()
                && self.reader.size(&child.digest).await?.is_some() =>
            {
                self.blobs.push(child);
            }
            None => self.missing.push(child.digest),
        }
        Ok(())
    }
}

fn is_image(manifest: &Manifest) -> bool {
    manifest_kind(&manifest.media_type) == Some(ManifestKind::Image)
}

/// Whether a child of an index describes another child or is an artifact, so that it cannot run.
fn is_beside(child: &Descriptor) -> bool {
    child.annotations.contains_key(REFERENCE_TYPE) || child.rest.contains_key("artifactType")
}
