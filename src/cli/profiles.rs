//! Profiles that refer to an image: attached by `optimize`, shown by `inspect`.

use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use bytesize::ByteSize;
use serde::Serialize;

use super::convert::{ConversionReport, Job};
use super::table::Table;
use crate::failure::Failure;
use crate::inspect::blob::Blob;
use crate::inspect::report::ImageReport;
use crate::oci::annotations::SOURCE_DIGEST;
use crate::oci::manifest::ImageManifest;
use crate::oci::{Digest, Manifest, Reference};
use crate::profile::{Artifact, Knowledge, Profile, ProfiledFile, Source, Workload, artifact};
use crate::recording::record::{self, Line};
use crate::transport::document::parse;
use crate::transport::{Destination, Endpoint, Location};

/// Checks that `target` can hold artifacts that refer to an image.
pub(super) fn check(target: &Location) -> Result<(), Failure> {
    match target {
        Location::Archive(_) => Err(Failure::new(
            "--profile needs a registry or a layout: an archive holds only an image",
        )),
        Location::Registry(_) | Location::Layout(_) => Ok(()),
    }
}

/// Attaches to each converted image a profile of the files recorded for its source image. Returns
/// the number of attached profiles.
pub(super) async fn attach(
    job: Job<'_>,
    made: &ConversionReport,
    recorded: &[Line],
) -> Result<usize, Failure> {
    let Job {
        source,
        target,
        args,
        config,
    } = job;
    let endpoint = Endpoint::open(&config.upstreams, source, args.registry.plain_http)?;
    let created = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let mut attached = 0;
    for image in &made.images {
        let source_manifest = source_of(image);
        let files = record::of_manifest(recorded, &source_manifest);
        if files.is_empty() {
            continue;
        }
        let reference = Reference::Digest(source_manifest);
        let what = format!("reading the manifest {reference}");
        let source_manifest = endpoint
            .source
            .manifest(&endpoint.repository, &reference)
            .await
            .map_err(Failure::when(what))?;
        let mut knowledge = Knowledge::new(parse::<ImageManifest>(&source_manifest)?.config.digest);
        knowledge.record(files);
        let subject = Endpoint::open(
            &config.upstreams,
            &target.at(&image.digest),
            args.registry.plain_http,
        )?
        .manifest()
        .await?;
        let artifact = Artifact::new(
            &knowledge.profile(&Workload::default()),
            &subject.descriptor(),
            &created,
        );
        let artifact = artifact.map_err(Failure::from_error)?;
        Destination::open(&config.upstreams, target, args.registry.plain_http)?
            .attach(&artifact, &subject.digest)
            .await?;
        attached += 1;
    }
    Ok(attached)
}

/// Returns the digest of the source image's manifest, which is the image's own if nothing was
/// converted.
fn source_of(image: &ImageReport) -> Digest {
    let named = image
        .annotations
        .get(SOURCE_DIGEST)
        .and_then(|digest| digest.as_str()?.parse().ok());
    named.unwrap_or_else(|| image.digest.clone())
}

/// A profile with the sizes of its files from the layers' TOCs.
#[derive(Debug, Serialize)]
pub(super) struct ProfileReport {
    workload: Workload,
    observers: usize,
    sources: BTreeSet<Source>,
    /// The total size of the files that the image has.
    bytes: u64,
    files: Vec<FileReport>,
}

#[derive(Debug, Serialize)]
struct FileReport {
    /// `None` if the image has no such file, or its layer has no TOC.
    size: Option<u64>,
    #[serde(flatten)]
    file: ProfiledFile,
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

impl ProfileReport {
    /// Returns the profile as text with a table.
    pub(super) fn table(&self) -> String {
        let sources: Vec<_> = self.sources.iter().map(|source| source.name()).collect();
        let mut text = format!(
            "  workload {}: {} files, {}, {}",
            self.workload,
            self.files.len(),
            ByteSize::b(self.bytes),
            if sources.is_empty() {
                "nothing is known".to_owned()
            } else {
                sources.join(" and ")
            },
        );
        if self.observers > 0 {
            let plural = if self.observers == 1 { "" } else { "s" };
            text.push_str(&format!(", {} observer{plural}", self.observers));
        }
        let mut table = Table::new();
        table.row(["order", "after", "size", "layer", "source", "path"]);
        for (place, FileReport { size, file }) in self.files.iter().enumerate() {
            let sources: Vec<_> = file.sources.iter().map(|source| source.name()).collect();
            table.row([
                (place + 1).to_string().as_str(),
                &format!("{} ms", file.after.as_millis()),
                &size.map_or("none".to_owned(), |size| ByteSize::b(size).to_string()),
                &file.layer.to_string(),
                &sources.join(","),
                &file.path,
            ]);
        }
        format!("{text}\n{table}")
    }
}
