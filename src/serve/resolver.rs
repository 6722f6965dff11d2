//! Resolves tags to descriptors and caches the answers for a short time.
//!
//! Fresh answers come from memory. Slightly older ones do too, while the upstream is asked in the
//! background. If the upstream fails, the last answer is used for a limited time.

use std::time::Duration;

use moka::future::Cache;
use tokio::time::{Instant, timeout_at};

use crate::flight::{Flight, Forgotten};
use crate::oci::route::Location;
use crate::oci::{Descriptor, Reference, Tag};
use crate::registry::Error;
use crate::telemetry::metrics;
use crate::transport::Source;

use super::access::{Admission, Reader};
use super::config::Config;

/// The number of cached tags, of a few hundred bytes each.
const MAX_TAGS: u64 = 50_000;

type Key = (Reader, Location, Tag);

/// A tag's digest, and when the upstream named it.
#[derive(Clone)]
pub(crate) struct ResolvedTag {
    pub(crate) descriptor: Descriptor,
    pub(crate) since: Instant,
}

pub(crate) struct Resolver {
    known: Cache<Key, ResolvedTag>,
    asking: Flight<Key, Result<ResolvedTag, Error>>,
    fresh: Duration,
    while_revalidate: Duration,
    if_error: Duration,
}

impl Resolver {
    pub(crate) fn new(config: &Config, forgotten: Forgotten) -> Self {
        let revalidated = config.tag_fresh + config.tag_stale_while_revalidate;
        Self {
            known: Cache::builder()
                .max_capacity(MAX_TAGS)
                .time_to_live(revalidated.max(config.tag_stale_if_error))
                .build(),
            asking: Flight::while_awaited(forgotten),
            fresh: config.tag_fresh,
            while_revalidate: revalidated,
            if_error: config.tag_stale_if_error,
        }
    }

    /// The descriptor that `tag` names. A cached answer is used if the upstream fails or stays
    /// silent until `patience`.
    ///
    /// Cancel safe: a running request continues for a while, and its answer is cached.
    pub(crate) async fn resolve(
        &self,
        admission: &Admission,
        location: &Location,
        tag: &Tag,
        patience: Instant,
    ) -> Result<ResolvedTag, Error> {
        let source = &admission.source;
        let key = (admission.reader, location.clone(), tag.clone());
        let Some(known) = self.known.get(&key).await else {
            count("asked");
            return self.ask(source, key).await;
        };
        let age = known.since.elapsed();
        if age < self.fresh {
            count("fresh");
            return Ok(known);
        }
        let answer = self.ask(source, key);
        if age < self.while_revalidate {
            count("stale");
            return Ok(known);
        }
        match timeout_at(patience, answer).await {
            Ok(Err(error)) if !is_transient(&error) => Err(error),
            Ok(Ok(resolved)) => {
                count("asked");
                Ok(resolved)
            }
            failed if age < self.if_error => {
                count("stale-if-error");
                let reason = failed
                    .ok()
                    .and_then(Result::err)
                    .map_or("silence".to_owned(), |error| error.to_string());
                tracing::warn!(upstream = location.upstream, %tag, reason, "the last known digest stands in");
                Ok(known)
            }
            Ok(Err(error)) => Err(error),
            Err(_silence) => Err(Error::Unavailable("no answer in time".to_owned())),
        }
    }

    /// Asks the upstream, once for all concurrent callers. The request is already running when this
    /// returns.
    fn ask(
        &self,
        source: &Source,
        key: Key,
    ) -> impl Future<Output = Result<ResolvedTag, Error>> + use<> {
        let (source, known) = (source.clone(), self.known.clone());
        let answer = self.asking.join(key.clone(), move || async move {
            let (_, location, tag) = &key;
            let answer = source
                .resolve(&location.repository, &Reference::Tag(tag.clone()))
                .await;
            match answer {
                Ok(descriptor) => {
                    let since = Instant::now();
                    let resolved = ResolvedTag { descriptor, since };
                    known.insert(key, resolved.clone()).await;
                    Ok(resolved)
                }
                Err(error) => {
                    if !is_transient(&error) {
                        known.invalidate(&key).await;
                    }
                    Err(error)
                }
            }
        });
        async move {
            answer
                .await
                .unwrap_or_else(|| Err(Error::Unavailable("request cancelled".to_owned())))
        }
    }
}

/// Whether the upstream may give another answer soon.
fn is_transient(error: &Error) -> bool {
    !matches!(
        error,
        Error::NotFound
            | Error::Unauthorized
            | Error::Denied
            | Error::UnknownUpstream(_)
            | Error::Refused(_)
    )
}

fn count(answer: &'static str) {
    metrics()
        .tags_resolved
        .get_or_create(&[("answer", answer)])
        .inc();
}
