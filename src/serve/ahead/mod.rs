//! Conversions ahead of a pull: requested by API, announced by registries, or listed in the
//! configuration.
//!
//! ```text
//! API ───────────▶ access ┐
//! notification ▶ secret ▶ events ▶ access ├▶ job ▶ resolve ▶ manifest ▶ converter, after live pulls
//! list, each interval ────┘
//! ```

mod events;
mod notifications;
mod schedule;
mod secrets;

use std::sync::Arc;

use crate::convert::{self, Reason};
use crate::oci::name::{DEFAULT_TAG, split_digest, split_tag};
use crate::oci::route::Location;
use crate::oci::{Digest, Reference, Repository};
use crate::registry;
use crate::telemetry::log;

use super::access::Admission;
use super::app::App;

pub(super) use notifications::take;
pub(super) use schedule::keep_warm;
pub use secrets::SecretError;
pub(super) use secrets::check as check_secrets;

/// The longest reference: a name has 255 characters at most, a tag 128, a digest 135.
pub(super) const MAX_REFERENCE: usize = 1 << 10;

/// A reference as people write it: `[UPSTREAM/]REPOSITORY[:TAG][@DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) location: Location,
    pub(super) reference: Reference,
}

impl Target {
    pub(super) fn parse(text: &str, is_configured: impl Fn(&str) -> bool) -> Option<Self> {
        if text.len() > MAX_REFERENCE {
            return None;
        }
        let (name, digest) = split_digest(text);
        let digest = digest.map(str::parse::<Digest>).transpose().ok()?;
        let (name, tag) = split_tag(name);
        let tag = tag.unwrap_or(DEFAULT_TAG).parse().ok()?;
        let name: Repository = name.parse().ok()?;
        let location = Location::of(&name, None, is_configured)?;
        Some(Self {
            location,
            reference: digest.map_or(Reference::Tag(tag), Reference::Digest),
        })
    }
}

/// Runs the job `id` to its end: resolves the target and converts the image.
pub(super) async fn run(
    app: Arc<App>,
    id: String,
    target: Target,
    admission: Admission,
    ticket: convert::Ticket,
) {
    let outcome = convert(&app, &id, &target, &admission, ticket).await;
    if let Err(error) = &outcome {
        let error = log::chain(error.as_ref());
        tracing::warn!(
            id,
            upstream = target.location.upstream,
            error,
            "conversion requested ahead failed"
        );
    }
    app.jobs
        .end(&id, outcome.map_err(|error| Reason::from(error.as_ref())));
}

async fn convert(
    app: &App,
    id: &str,
    target: &Target,
    admission: &Admission,
    ticket: convert::Ticket,
) -> Result<Digest, Arc<convert::Error>> {
    let Admission { source, .. } = admission;
    let repository = &target.location.repository;
    let failed = |error: registry::Error| Arc::new(convert::Error::from(error));
    let asking = app.jobs.asking().await;
    let found = source
        .resolve(repository, &target.reference)
        .await
        .map_err(failed)?;
    app.jobs.converting(id, &found.digest);
    let source_manifest = app
        .source_manifests
        .get(admission, &target.location, &found.digest)
        .await
        .map_err(failed)?;
    drop(asking);
    let record = app
        .converter
        .convert_ahead(source, repository, &source_manifest, ticket)
        .await?;
    Ok(record.converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Option<(String, String, String)> {
        let target = Target::parse(text, |name| name == "local")?;
        Some((
            target.location.upstream,
            target.location.repository.to_string(),
            target.reference.to_string(),
        ))
    }

    #[test]
    fn references_are_read_as_people_write_them() {
        let digest = Digest::sha256_of(b"").to_string();
        let cases = [
            ("nginx".to_owned(), "docker.io", "library/nginx", "latest"),
            ("ghcr.io/a/b:1".to_owned(), "ghcr.io", "a/b", "1"),
            ("local/a:2".to_owned(), "local", "a", "2"),
            (format!("local/a:2@{digest}"), "local", "a", digest.as_str()),
        ];
        for (text, upstream, repository, reference) in cases {
            let expected = (
                upstream.to_owned(),
                repository.to_owned(),
                reference.to_owned(),
            );
            assert_eq!(target(&text), Some(expected), "{text}");
        }
        for text in ["", "A", "a:", "a@b", "local:5000/a"] {
            assert_eq!(target(text), None, "{text}");
        }
    }
}
