//! The profiles that refer to an image, with the sizes of their files.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::blob::Blob;
use crate::failure::Failure;
use crate::oci::manifest::ImageManifest;
use crate::oci::{Digest, Manifest};
use crate::profile::{Profile, ProfiledFile, Source, Workload, artifact};
use crate::transport::Endpoint;
use crate::transport::document::parse;

/// The profiles of one image.
#[derive(Debug, Serialize)]
pub(crate) struct ImageProfiles {
    pub(crate) image: Digest,
    pub(crate) profiles: Vec<ProfileReport>,
}

/// A profile with the sizes of its files from the layers' TOCs.
#[derive(Debug, Serialize)]
pub(crate) struct ProfileReport {
    pub(crate) workload: Workload,
    pub(crate) observers: usize,
    pub(crate) sources: BTreeSet<Source>,
    /// The total size of the files that the image has.
    pub(crate) bytes: u64,
    pub(crate) files: Vec<FileReport>,
}

/// A file of a profile.
#[derive(Debug, Serialize)]
pub(crate) struct FileReport {
    /// `None` if the image has no such file, or its layer has no TOC.
    pub(crate) size: Option<u64>,
    #[serde(flatten)]
    pub(crate) file: ProfiledFile,
}

/// Returns the profiles of an image from its registry or layout.
pub(super) async fn of_image(
    endpoint: &Endpoint,
    image: &Manifest,
) -> Result<Vec<ProfileReport>, Failure> {
    let Endpoint {
        source, repository, ..
    } = endpoint;
    let what = format!("listing the referrers of {}", image.digest);
    let referrers = source
        .referrers(repository, &image.digest)
        .await
        .map_err(Failure::when(what))?;
    let mut sizes = Sizes {
        endpoint,
        image: parse(image)?,
        layers: HashMap::new(),
    };
    let mut reports = Vec::new();
    for referrer in artifact::newest(&referrers) {
        let what = format!("the profile {}", referrer.digest);
        let document = source
            .document(repository, &referrer.digest, artifact::document_of)
            .await;
        let bytes = document.map_err(Failure::when(what.as_str()))?;
        let bytes =
            bytes.ok_or_else(|| Failure::new(format!("no profile in {}", referrer.digest)))?;
        let profile = Profile::parse(&bytes).map_err(Failure::when(what))?;
        reports.push(sizes.report(profile).await?);
    }
    Ok(reports)
}

/// The sizes of an image's files. A layer's TOC is read when the first of its files is looked up.
struct Sizes<'a> {
    endpoint: &'a Endpoint,
    image: ImageManifest,
    layers: HashMap<u32, Option<estargz::Toc>>,
}

impl Sizes<'_> {
    async fn report(&mut self, profile: Profile) -> Result<ProfileReport, Failure> {
        let Profile {
            workload,
            observers,
            files,
            ..
        } = profile;
        let mut reports = Vec::with_capacity(files.len());
        for file in files {
            let toc = self.toc(file.layer).await?;
            let size = toc
                .and_then(|toc| toc.lookup(&file.path))
                .map(|node| node.size());
            reports.push(FileReport { size, file });
        }
        let sources = reports
            .iter()
            .flat_map(|report| report.file.sources.iter().copied())
            .collect();
        let bytes = reports.iter().filter_map(|report| report.size).sum();
        Ok(ProfileReport {
            workload,
            observers,
            sources,
            bytes,
            files: reports,
        })
    }

    async fn toc(&mut self, number: u32) -> Result<Option<&estargz::Toc>, Failure> {
        if !self.layers.contains_key(&number) {
            let toc = self.read(number).await?;
            self.layers.insert(number, toc);
        }
        Ok(self.layers.get(&number).and_then(Option::as_ref))
    }

    /// Reads the TOC of a layer. Does not compare it with the manifest's digest, which is the task
    /// of `verify`.
    async fn read(&self, number: u32) -> Result<Option<estargz::Toc>, Failure> {
        let layer = usize::try_from(number)
            .ok()
            .and_then(|number| self.image.layers.get(number));
        let Some(layer) = layer else { return Ok(None) };
        let blob = Blob::Remote {
            endpoint: self.endpoint,
            layer,
        };
        let Some(toc) = blob.index().await?.toc else {
            return Ok(None);
        };
        let digest = toc.digest();
        toc.verify(&digest).map(Some).map_err(Failure::from_error)
    }
}
