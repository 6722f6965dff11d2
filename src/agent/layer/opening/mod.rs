//! Opens the layers of an image: each once, and those to come together with the first.
//!
//! ```text
//! Prepare of the first layer ─┬▶ its own tail ───────────────────────▶ verified ▶ tree
//!                             └▶ the tails of the layers above, a few at a time
//! Prepare of a later layer ────▶ its tail is here, or under way ──────▶ verified ▶ tree
//! ```
//! A tail needs no TOC digest. It is compared with the digest that the layer's own Prepare brings,
//! or that the image's manifest declares. Nobody else's Prepare gets a failure: the one that joins an
//! opening that failed opens its layer once more.

pub(crate) mod remote;
pub(crate) mod toc_memory;
mod unreachable;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use self::remote::{FetchedTail, NotLazy, Opened, TocDigest, TocDigests};
use self::toc_memory::TocMemory;
use self::unreachable::Unreachable;
use crate::agent::layer::fetch::Fetcher;
use crate::agent::layer::spec::LayerSpec;
use crate::oci::Digest;
use crate::telemetry::log::chain;
use crate::telemetry::traces::in_trace;
use crate::transport::Upstreams;

/// Most layers that are opened ahead at the same time, over all images. Four requests in a round
/// trip of 20 ms are several times as many as containerd prepares, and four connections are few.
const MAX_AT_ONCE: usize = 4;
/// Most layers that wait for their Prepare. A label of 4096 bytes names 57.
const MAX_WAITING: usize = 1024;
/// How long a layer that was opened ahead waits for its Prepare. A pull of lazy layers takes a
/// second or two; one that unpacks a layer in between opens the others again.
const KEPT: Duration = Duration::from_secs(60);

/// Opens layers.
#[derive(Debug)]
pub(crate) struct Openings {
    upstreams: Upstreams,
    fetcher: Fetcher,
    memory: TocMemory,
    unreachable: Unreachable,
    timeout: Duration,
    places: Arc<Semaphore>,
    ahead: Arc<Mutex<Waiting>>,
}

/// A layer of an image, as a client names both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: String,
    digest: Digest,
}

/// The layers that are opened before a client asks for them.
#[derive(Debug, Default)]
struct Waiting {
    layers: HashMap<Key, Ahead>,
    /// The number of the next one.
    next: u64,
}

/// A layer that is opened before a client asks for it.
#[derive(Debug)]
struct Ahead {
    number: u64,
    /// The TOC digest in the image's manifest, if that was asked.
    toc_digest: Option<TocDigest>,
    /// Makes an opening begin that still waits for its place.
    begin: oneshot::Sender<()>,
    tail: AbortOnDropHandle<Result<FetchedTail, NotLazy>>,
}

impl Openings {
    pub(crate) fn new(
        upstreams: Upstreams,
        fetcher: Fetcher,
        memory: TocMemory,
        timeout: Duration,
    ) -> Self {
        Self {
            upstreams,
            fetcher,
            memory,
            unreachable: Unreachable::default(),
            timeout,
            places: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            ahead: Arc::default(),
        }
    }

    /// Runs `work`, which opens a layer from the registry of `reference`, unless that registry has
    /// just made another layer time out.
    pub(crate) async fn in_time<T>(
        &self,
        reference: &str,
        work: impl Future<Output = Result<T, NotLazy>>,
    ) -> Result<T, NotLazy> {
        let (_, source) = remote::find(&self.upstreams, reference)?;
        let (host, begun) = (source.name(), Instant::now());
        let limit = self.unreachable.allowance(host, self.timeout, begun);
        let limit = limit.ok_or_else(|| NotLazy::Unreachable(host.to_owned()))?;
        let _urgency = self.fetcher.urgency();
        let found = tokio::time::timeout(limit, work)
            .await
            .map_err(|_elapsed| NotLazy::Slow(limit));
        let found = found.and_then(|found| found);
        match &found {
            Err(NotLazy::Slow(_)) => self.unreachable.failed(host, begun, Instant::now()),
            Err(NotLazy::Upstream(error)) if error.is_transient() => {
                self.unreachable.failed(host, begun, Instant::now());
            }
            _ => self.unreachable.answered(host),
        }
        found
    }

    /// Opens the layer, and begins to open those above it that `is_new` does not exclude.
    ///
    /// # Errors
    /// If the layer cannot be fetched, has no TOC, or has another TOC than its image declares.
    pub(crate) async fn open(
        &self,
        spec: &LayerSpec,
        is_new: impl Fn(&Digest) -> bool,
    ) -> Result<Opened, NotLazy> {
        let ahead = self.ahead.lock().layers.remove(&Key::of(spec));
        let labelled = spec.toc_digest.clone().map(TocDigest::Json);
        let known = ahead.as_ref().and_then(|ahead| ahead.toc_digest.clone());
        let (toc_digest, asked) = match labelled.clone().or(known) {
            Some(toc_digest) => {
                if labelled.is_some() {
                    self.begin_above(spec, None, is_new);
                }
                (toc_digest, 0)
            }
            None => {
                let digests = remote::toc_digests(&self.upstreams, spec).await?;
                self.begin_above(spec, Some(&digests), is_new);
                (remote::declared(&digests, spec)?, 1)
            }
        };
        let mut opened = self.opened(ahead, spec, toc_digest).await?;
        opened.fetched.requests += asked;
        Ok(opened)
    }

    async fn opened(
        &self,
        ahead: Option<Ahead>,
        spec: &LayerSpec,
        toc_digest: TocDigest,
    ) -> Result<Opened, NotLazy> {
        if let Some(ahead) = ahead {
            // It may have begun or ended already.
            let _begun = ahead.begin.send(());
            let opened = match ahead.tail.await {
                Ok(Ok(tail)) => tail.verified(toc_digest.clone(), &self.memory).await,
                Ok(Err(error)) => Err(error),
                Err(error) => Err(NotLazy::Internal(error.to_string())),
            };
            match opened {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    tracing::debug!(layer = %spec.digest, error = chain(&error), "layer not opened ahead")
                }
            }
        }
        let (reference, digest) = (&spec.reference, &spec.digest);
        let tail = remote::fetch(&self.upstreams, reference, digest, &self.memory).await?;
        tail.verified(toc_digest, &self.memory).await
    }

    /// Begins to open the layers above `spec`: of those in `digests` the lazy ones, if the manifest
    /// was asked.
    fn begin_above(
        &self,
        spec: &LayerSpec,
        digests: Option<&TocDigests>,
        is_new: impl Fn(&Digest) -> bool,
    ) {
        let mut begun = Vec::new();
        let mut waiting = self.ahead.lock();
        for digest in spec.layers_above.iter().filter(|digest| is_new(digest)) {
            let toc_digest = match digests.map(|digests| digests.get(digest)) {
                None => None,
                Some(Some(Some(declared))) => Some(declared.clone()),
                Some(_) => continue,
            };
            let key = Key {
                reference: spec.reference.clone(),
                digest: digest.clone(),
            };
            if waiting.layers.len() >= MAX_WAITING || waiting.layers.contains_key(&key) {
                continue;
            }
            let number = waiting.next;
            waiting.next += 1;
            let ahead = self.begin(key.clone(), number, toc_digest);
            waiting.layers.insert(key.clone(), ahead);
            begun.push((key, number));
        }
        drop(waiting);
        if !begun.is_empty() {
            let waiting = Arc::clone(&self.ahead);
            tokio::spawn(async move {
                tokio::time::sleep(KEPT).await;
                waiting.lock().forget(&begun);
            });
        }
    }

    fn begin(&self, key: Key, number: u64, toc_digest: Option<TocDigest>) -> Ahead {
        let (begin, asked) = oneshot::channel();
        let (upstreams, memory) = (self.upstreams.clone(), self.memory.clone());
        let (fetcher, places) = (self.fetcher.clone(), Arc::clone(&self.places));
        let timeout = self.timeout;
        let work = async move {
            // A client that waits for it does not wait for the others.
            let (memory, _place) = tokio::select! {
                place = places.acquire_owned() => (memory.ahead(), place.ok()),
                Ok(()) = asked => (memory, None),
            };
            let _urgency = fetcher.urgency();
            let tail = remote::fetch(&upstreams, &key.reference, &key.digest, &memory);
            let tail = tokio::time::timeout(timeout, tail).await;
            tail.map_err(|_elapsed| NotLazy::Slow(timeout))?
        };
        Ahead {
            number,
            toc_digest,
            begin,
            tail: AbortOnDropHandle::new(tokio::spawn(in_trace(work))),
        }
    }
}

impl Waiting {
    /// Drops these layers, unless others have taken their places.
    fn forget(&mut self, begun: &[(Key, u64)]) {
        for (key, number) in begun {
            if self
                .layers
                .get(key)
                .is_some_and(|ahead| ahead.number == *number)
            {
                tracing::debug!(layer = %key.digest, "layer opened ahead was not asked for");
                self.layers.remove(key);
            }
        }
    }
}

impl Key {
    fn of(spec: &LayerSpec) -> Self {
        Self {
            reference: spec.reference.clone(),
            digest: spec.digest.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(of: &str) -> Key {
        Key {
            reference: "registry.example/app:1".to_owned(),
            digest: Digest::sha256_of(of.as_bytes()),
        }
    }

    fn ahead(number: u64, alive: Arc<()>) -> Ahead {
        let work = async move {
            let _alive = alive;
            std::future::pending().await
        };
        Ahead {
            number,
            toc_digest: None,
            begin: oneshot::channel().0,
            tail: AbortOnDropHandle::new(tokio::spawn(work)),
        }
    }

    #[tokio::test]
    async fn a_layer_nobody_asks_for_is_dropped_and_its_opening_ends() {
        let (mut waiting, alive) = (Waiting::default(), Arc::new(()));
        for (of, number) in [("a", 1), ("b", 7)] {
            let layer = ahead(number, Arc::clone(&alive));
            waiting.layers.insert(key(of), layer);
        }
        // `b` was asked for and then opened ahead once more.
        waiting.forget(&[(key("a"), 1), (key("b"), 2), (key("c"), 3)]);
        let left: Vec<&Key> = waiting.layers.keys().collect();
        assert_eq!(left, [&key("b")]);
        while Arc::strong_count(&alive) > 2 {
            tokio::task::yield_now().await;
        }
    }
}
