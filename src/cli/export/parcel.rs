//! Everything that belongs to a twin: its manifests and blobs, and where each is read from.

use std::collections::HashSet;
use std::path::PathBuf;

use futures::{StreamExt as _, TryStreamExt as _};

use super::{Bytes, Destination};
use crate::cli::endpoint::Endpoint;
use crate::cli::failure::Failure;
use crate::cli::progress::Bar;
use crate::oci::manifest::{DescriptorPlatform, ImageManifest, Index};
use crate::oci::media_type::{ManifestKind, is_docker, manifest_kind};
use crate::oci::{Descriptor, Digest, Manifest, Platform, Reference, translate};
use crate::store::{Object, Store};

/// A twin and all it is made of.
#[derive(Debug)]
pub(in crate::cli) struct Parcel {
    pub(in crate::cli) root: Manifest,
    /// Children first, without the root.
    pub(in crate::cli) children: Vec<Manifest>,
    /// Each once.
    pub(in crate::cli) blobs: Vec<Descriptor>,
}

/// Reads objects of a twin: from the store what was converted, from the source what passed through.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Shelf<'a> {
    /// What was converted here, if anything was.
    pub(in crate::cli) store: Option<&'a Store>,
    pub(in crate::cli) endpoint: &'a Endpoint,
}

impl Shelf<'_> {
    async fn find(&self, digest: &Digest) -> Result<Option<(&Store, Object)>, Failure> {
        let Some(store) = self.store else { return Ok(None) };
        let found = store.find(digest).await.map_err(Failure::from_error)?;
        Ok(found.map(|object| (store, object)))
    }

    /// The manifest with this digest, be it ours or an original.
    pub(in crate::cli) async fn manifest(&self, digest: &Digest, media_type: &str) -> Result<Manifest, Failure> {
        let what = format!("reading the manifest {digest}");
        if let Some((store, object)) = self.find(digest).await? {
            let bytes = store.read_all(&object).await.map_err(Failure::when(what))?;
            let media_type = object.media_type.unwrap_or_else(|| media_type.to_owned());
            return Ok(Manifest { media_type, digest: digest.clone(), bytes });
        }
        let reference = Reference::Digest(digest.clone());
        let Endpoint { source, repository, .. } = self.endpoint;
        source.manifest(repository, &reference).await.map_err(Failure::when(what))
    }

    /// All bytes of a small blob.
    pub(in crate::cli) async fn bytes(&self, blob: &Descriptor) -> Result<Vec<u8>, Failure> {
        let mut stream = self.blob(blob).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.try_next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > blob.size {
                return Err(Failure::new(format!("{} is longer than its descriptor says", blob.digest)));
            }
        }
        Ok(bytes)
    }

    /// The blob's file, if it lies in a store that goes with this process.
    async fn scratch_file(&self, blob: &Descriptor) -> Result<Option<PathBuf>, Failure> {
        Ok(self.find(&blob.digest).await?.and_then(|(store, object)| store.scratch_file(&object)))
    }

    /// The bytes of a blob, as a stream.
    pub(in crate::cli) async fn blob(&self, blob: &Descriptor) -> Result<Bytes, Failure> {
        let what = format!("reading {}", blob.digest);
        if let Some((store, object)) = self.find(&blob.digest).await? {
            let stream = store.read(&object, 0..object.size).await.map_err(Failure::when(what))?;
            return Ok(stream.map_err(Failure::from_error).boxed());
        }
        let Endpoint { source, repository, .. } = self.endpoint;
        let body = source.blob(repository, &blob.digest, None).await.map_err(Failure::when(what))?;
        Ok(body.stream.map_err(Failure::from_error).boxed())
    }
}

impl Parcel {
    /// Finds out what belongs to `root`.
    pub(in crate::cli) async fn pack(shelf: Shelf<'_>, root: Manifest) -> Result<Self, Failure> {
        let mut children = Vec::new();
        if is_index(&root) {
            let index: Index = parse(&root)?;
            for child in index.manifests {
                children.push(shelf.manifest(&child.digest, &child.media_type).await?);
            }
        }
        Self { root, children, blobs: Vec::new() }.counted()
    }

    /// The image manifests of the parcel.
    pub(in crate::cli) fn images(&self) -> &[Manifest] {
        if is_index(&self.root) { &self.children } else { std::slice::from_ref(&self.root) }
    }

    /// Keeps only what is for one of `platforms`: a single image if one is left. Parcels of one image stay as they are.
    pub(in crate::cli) fn select(self, platforms: &[Platform]) -> Result<Self, Failure> {
        if !is_index(&self.root) {
            return Ok(self);
        }
        let mut index: Index = parse(&self.root)?;
        index.manifests.retain(|child| is_for(child, platforms));
        let kept: Vec<_> = index.manifests.iter().map(|child| child.digest.clone()).collect();
        let mut children: Vec<_> = self.children.into_iter().filter(|child| kept.contains(&child.digest)).collect();
        match (children.len(), children.pop()) {
            (1, Some(root)) => Self { root, children, blobs: Vec::new() }.counted(),
            (_, Some(last)) => {
                children.push(last);
                let bytes = serde_json::to_vec(&index).map_err(Failure::from_error)?;
                let root = Manifest::new(self.root.media_type, bytes.into());
                Self { root, children, blobs: Vec::new() }.counted()
            }
            (_, None) => {
                let asked = platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ");
                Err(Failure::new(format!("the image has nothing for {asked}")))
            }
        }
    }

    /// The same in OCI's words: only types change. What has no name there stays as it is.
    pub(in crate::cli) fn translated_to_oci(self) -> Self {
        let children: Vec<_> = self.children.iter().map(to_oci).collect();
        let root = if is_docker(&self.root.media_type) && is_index(&self.root) {
            let twin_of = |child: &Descriptor| {
                let at = self.children.iter().position(|original| original.digest == child.digest)?;
                children.get(at).map(Manifest::descriptor)
            };
            translate::index(&self.root, twin_of).unwrap_or(self.root)
        } else {
            to_oci(&self.root)
        };
        Self { root, children, blobs: self.blobs }
    }

    /// Lists the blobs of all images, each once.
    fn counted(mut self) -> Result<Self, Failure> {
        let mut seen = HashSet::new();
        let mut blobs = Vec::new();
        for manifest in self.images() {
            let image: ImageManifest = parse(manifest)?;
            let parts = image.layers.into_iter().chain([image.config]);
            // What has URLs is fetched from them by whoever needs it; registries do not hold it.
            blobs.extend(parts.filter(|blob| blob.urls.is_empty() && seen.insert(blob.digest.clone())));
        }
        self.blobs = blobs;
        Ok(self)
    }

    /// Carries everything to `destination`, the root last.
    pub(in crate::cli) async fn deliver(
        &self,
        shelf: Shelf<'_>,
        mut destination: Destination,
        bar: &Bar,
    ) -> Result<(), Failure> {
        for blob in &self.blobs {
            if destination.has(blob).await {
                continue;
            }
            let file = shelf.scratch_file(blob).await?;
            if file.is_some_and(|file| destination.link(blob, &file)) {
                bar.advance(usize::try_from(blob.size).unwrap_or(usize::MAX));
            } else {
                let counted = bar.clone();
                let bytes = shelf.blob(blob).await?.inspect_ok(move |piece| counted.advance(piece.len())).boxed();
                destination.put_blob(blob, bytes).await?;
            }
        }
        for child in &self.children {
            destination.put_child(child).await?;
        }
        destination.commit(&self.root).await
    }
}

pub(in crate::cli) fn is_index(manifest: &Manifest) -> bool {
    manifest_kind(&manifest.media_type) == Some(ManifestKind::Index)
}

fn is_for(child: &Descriptor, platforms: &[Platform]) -> bool {
    let platform = child.platform.as_ref().map(DescriptorPlatform::to_platform);
    platform.is_some_and(|theirs| platforms.iter().any(|asked| asked.matches(&theirs)))
}

fn to_oci(manifest: &Manifest) -> Manifest {
    let translated = is_docker(&manifest.media_type).then(|| translate::image(manifest)).flatten();
    translated.unwrap_or_else(|| manifest.clone())
}

pub(in crate::cli) fn parse<T: serde::de::DeserializeOwned>(manifest: &Manifest) -> Result<T, Failure> {
    let what = format!("the manifest {} ({}) cannot be understood", manifest.digest, manifest.media_type);
    serde_json::from_slice(&manifest.bytes).map_err(Failure::when(what))
}
