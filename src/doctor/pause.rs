//! The snapshotters for which containerd has unpacked the pause image.
//!
//! containerd labels an image's configuration with each of them. The labels of the other blobs lead
//! from the image to its configuration.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::containerd::services::content::v1::InfoRequest;
use crate::containerd::services::images::v1::GetImageRequest;
use crate::containerd::session::Session;
use crate::failure::Failure;

/// The namespace of kubelets' images.
const NAMESPACE: &str = "k8s.io";
const CONTENT: &str = "containerd.io/gc.ref.content";
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// Most blobs to look at. A pause image has a dozen: manifests of all platforms and their layers.
const MAX_BLOBS: usize = 200;
const LIMIT: Duration = Duration::from_secs(5);

/// Returns the snapshotters for which `image` is unpacked.
///
/// # Errors
/// If containerd does not answer, or does not have the image.
pub(crate) async fn unpacked_for(address: &Path, image: &str) -> Result<Vec<String>, Failure> {
    let walk = async {
        let session = Session::open(address, NAMESPACE).await?;
        let answer = session
            .images()
            .get(GetImageRequest {
                name: image.to_owned(),
            })
            .await;
        let found = answer
            .map_err(Failure::when("containerd does not have the pause image"))?
            .into_inner()
            .image;
        let mut left: Vec<String> = found
            .and_then(|image| image.target)
            .map(|target| target.digest)
            .into_iter()
            .collect();
        let (mut seen, mut snapshotters) = (BTreeSet::new(), BTreeSet::new());
        while let Some(digest) = left.pop() {
            if seen.len() == MAX_BLOBS || !seen.insert(digest.clone()) {
                continue;
            }
            // Blobs of other platforms were never fetched.
            let Ok(answer) = session.content().info(InfoRequest { digest }).await else {
                continue;
            };
            for (key, value) in answer.into_inner().info.unwrap_or_default().labels {
                if let Some(snapshotter) = key.strip_prefix(SNAPSHOT) {
                    snapshotters.insert(snapshotter.to_owned());
                } else if key.starts_with(CONTENT) {
                    left.push(value);
                }
            }
        }
        Ok(snapshotters.into_iter().collect())
    };
    match tokio::time::timeout(LIMIT, walk).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(Failure::when("containerd does not answer")(elapsed)),
    }
}
