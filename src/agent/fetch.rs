//! Gets chunks from a registry, each of them once.
//!
//! ```text
//! chunks ▶ those held or on their way fall out ▶ runs of neighbours ▶ one request a run ▶ decode (verifies) ▶ cache
//! ```
//! A run goes on when who asked for it leaves: what was fetched is kept.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use estargz::{Chunk, Digest};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;

use super::cache::Cache;
use crate::oci;
use crate::telemetry::metrics;
use crate::upstream::{self, Purpose, Source};

/// Bytes between two chunks that are fetched along rather than asked around: about what a round trip costs.
pub(super) const MAX_GAP: u64 = 64 << 10;

/// A blob in a registry.
#[derive(Debug, Clone)]
pub struct Blob {
    pub source: Source,
    pub repository: oci::Repository,
    pub digest: oci::Digest,
    pub size: u64,
}

/// Why a chunk could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    #[error("the registry did not give it: {0}")]
    Upstream(#[from] upstream::Error),
    #[error("the registry gave other bytes: {0}")]
    Wrong(#[source] Arc<estargz::chunk::ChunkError>),
    #[error("the registry's answer ended too early")]
    Short,
    #[error("the fetch was given up")]
    Aborted,
}

/// Who wants a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Something reads it.
    Read,
    /// It stands in front of the landmark.
    Prefetch,
    /// Containers read it when they start, its profile says.
    Profile,
    Background,
}

/// What was fetched of a layer.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    bytes: [AtomicU64; 4],
    errors: AtomicU64,
}

/// A chunk on its way.
pub type Landing = Shared<BoxFuture<'static, Result<Bytes, FetchError>>>;

/// Fetches for all layers; clones share the table of what is on its way.
#[derive(Debug, Clone)]
pub struct Fetcher {
    cache: Arc<Cache>,
    landings: Arc<Mutex<HashMap<Digest, Landing>>>,
    /// Runs that something waits for.
    urgent: Arc<AtomicUsize>,
    max_run: u64,
}

/// A chunk's content, or where it will come from.
#[derive(Debug)]
pub enum Wanted {
    Held,
    Landing(Landing),
}

impl FetchError {
    /// Whether the same request may well succeed in a while: the registry is away, or busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Upstream(error) => error.is_transient(),
            Self::Short | Self::Aborted => true,
            Self::Wrong(_) => false,
        }
    }
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Prefetch => "prefetch",
            Self::Profile => "profile",
            Self::Background => "background",
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Self::Read => Purpose::Read,
            Self::Prefetch | Self::Profile => Purpose::Prefetch,
            Self::Background => Purpose::Background,
        }
    }
}

impl Traffic {
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn bytes(&self, reason: Reason) -> u64 {
        self.bytes[reason as usize].load(Ordering::Relaxed)
    }

    /// Chunks that could not be had.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Counts what opening the layer took.
    pub fn add(&self, requests: u64, bytes: u64, reason: Reason) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.count(bytes, reason);
    }

    fn count(&self, bytes: u64, reason: Reason) {
        self.bytes[reason as usize].fetch_add(bytes, Ordering::Relaxed);
        metrics::metrics().agent_fetched_bytes.get_or_create(&[("reason", reason.as_str())]).inc_by(bytes);
    }
}

impl Fetcher {
    /// `max_run` is the most bytes of one request, a larger chunk's aside.
    pub fn new(cache: Arc<Cache>, max_run: u64) -> Self {
        Self { cache, landings: Arc::default(), urgent: Arc::default(), max_run: max_run.max(1) }
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn max_run(&self) -> u64 {
        self.max_run
    }

    /// Whether something waits for bytes right now.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed) > 0
    }

    /// Sends for the chunks of `blob` that are not held, and says of each wanted one where it is. Does not wait.
    ///
    /// Holes are not to be among them. Call it inside a runtime.
    pub fn fetch(&self, blob: &Arc<Blob>, chunks: &[Chunk], reason: Reason, traffic: &Arc<Traffic>) -> Vec<Wanted> {
        let mut claims = Vec::new();
        let wanted = chunks.iter().map(|chunk| self.claim(chunk, &mut claims)).collect();
        for run in runs(claims, self.max_run) {
            let flight = Flight {
                blob: Arc::clone(blob),
                cache: Arc::clone(&self.cache),
                traffic: Arc::clone(traffic),
                reason,
                _urgency: (reason == Reason::Read).then(|| Urgency::new(&self.urgent)),
            };
            tokio::spawn(flight.run(run));
        }
        wanted
    }

    fn claim(&self, chunk: &Chunk, claims: &mut Vec<Claim>) -> Wanted {
        let Some(digest) = chunk.digest else { return Wanted::Held };
        let mut landings = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(landing) = landings.get(&digest) {
            return Wanted::Landing(landing.clone());
        }
        // Asked under the lock: a chunk is in the cache before it leaves the table.
        if self.cache.holds(&digest) {
            return Wanted::Held;
        }
        let (done, outcome) = oneshot::channel();
        let landing = outcome.map(|outcome| outcome.unwrap_or(Err(FetchError::Aborted))).boxed().shared();
        landings.insert(digest, landing.clone());
        claims.push(Claim { chunk: chunk.clone(), digest, done: Some(done), landings: Arc::clone(&self.landings) });
        Wanted::Landing(landing)
    }
}

/// A chunk that this process fetches, for all who want it.
#[derive(Debug)]
struct Claim {
    chunk: Chunk,
    digest: Digest,
    done: Option<oneshot::Sender<Result<Bytes, FetchError>>>,
    landings: Arc<Mutex<HashMap<Digest, Landing>>>,
}

impl Claim {
    fn settle(mut self, outcome: Result<Bytes, FetchError>) {
        self.leave();
        if let Some(done) = self.done.take() {
            // Nobody may be waiting any more, which is no failure.
            let _unheard = done.send(outcome);
        }
    }

    fn leave(&self) {
        self.landings.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.leave();
        }
    }
}

/// Neighbours in the blob, fetched with one request.
#[derive(Debug)]
struct Run {
    range: Range<u64>,
    claims: Vec<Claim>,
}

/// Puts neighbours together, up to `max` bytes of the blob.
fn runs(mut claims: Vec<Claim>, max: u64) -> Vec<Run> {
    claims.sort_by_key(|claim| (claim.chunk.range.start, claim.chunk.range.end));
    let mut runs: Vec<Run> = Vec::new();
    for claim in claims {
        let Range { start, end } = claim.chunk.range;
        match runs.last_mut() {
            Some(run) if start <= run.range.end.saturating_add(MAX_GAP) && end - run.range.start.min(end) <= max => {
                run.range.end = run.range.end.max(end);
                run.claims.push(claim);
            }
            _ => runs.push(Run { range: start..end, claims: vec![claim] }),
        }
    }
    runs
}

/// Counts as urgent while it lives.
#[derive(Debug)]
struct Urgency(Arc<AtomicUsize>);

impl Urgency {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request under way.
#[derive(Debug)]
struct Flight {
    blob: Arc<Blob>,
    cache: Arc<Cache>,
    traffic: Arc<Traffic>,
    reason: Reason,
    _urgency: Option<Urgency>,
}

impl Flight {
    async fn run(self, run: Run) {
        let mut claims = run.claims.into_iter();
        if let Err(error) = self.land(run.range, &mut claims).await {
            let lost: Vec<Claim> = claims.collect();
            self.traffic.errors.fetch_add(lost.len() as u64, Ordering::Relaxed);
            tracing::warn!(layer = %self.blob.digest, repository = %self.blob.repository, chunks = lost.len(), %error, "chunks could not be fetched");
            lost.into_iter().for_each(|claim| claim.settle(Err(error.clone())));
        }
    }

    /// Takes claims out of `claims` as their chunks land; those left when it fails were not had.
    async fn land(&self, range: Range<u64>, claims: &mut std::vec::IntoIter<Claim>) -> Result<(), FetchError> {
        self.traffic.requests.fetch_add(1, Ordering::Relaxed);
        let Blob { source, repository, digest, .. } = &*self.blob;
        let mut body = source.blob_for(repository, digest, range.clone(), self.reason.purpose()).await?;
        let mut window = Window { start: body.range.start, bytes: BytesMut::new() };
        while let Some(next) = claims.as_slice().first() {
            let wanted = next.chunk.range.clone();
            let member = loop {
                if let Some(member) = window.take(&wanted) {
                    break member;
                }
                let piece = body.stream.next().await.ok_or(FetchError::Short)??;
                self.traffic.count(piece.len() as u64, self.reason);
                window.bytes.extend_from_slice(&piece);
            };
            let Some(claim) = claims.next() else { break };
            let outcome = self.decode(&claim, member).await;
            if let Err(error) = &outcome {
                self.traffic.errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(layer = %self.blob.digest, repository = %self.blob.repository, chunk = %claim.digest, %error, "a chunk is refused");
            }
            claim.settle(outcome);
        }
        Ok(())
    }

    /// The content, kept as well.
    async fn decode(&self, claim: &Claim, member: Bytes) -> Result<Bytes, FetchError> {
        let (cache, chunk, digest) = (Arc::clone(&self.cache), claim.chunk.clone(), claim.digest);
        let decoded = tokio::task::spawn_blocking(move || {
            let content = chunk.decode(&member).map(Bytes::from)?;
            cache.put(digest, &content);
            Ok(content)
        });
        match decoded.await {
            Ok(outcome) => outcome.map_err(|error| FetchError::Wrong(Arc::new(error))),
            Err(_panicked) => Err(FetchError::Aborted),
        }
    }
}

/// Bytes of the blob on their way to the chunks; what lies before the next chunk is dropped.
#[derive(Debug)]
struct Window {
    start: u64,
    bytes: BytesMut,
}

impl Window {
    /// The bytes at `range`, once they are there; bytes before it are let go.
    fn take(&mut self, range: &Range<u64>) -> Option<Bytes> {
        let before = range.start.saturating_sub(self.start).min(self.bytes.len() as u64);
        drop(self.bytes.split_to(usize::try_from(before).ok()?));
        self.start += before;
        let length = usize::try_from(range.end - range.start).ok()?;
        let is_there = self.start == range.start && self.bytes.len() >= length;
        // Copied: another chunk may lie in the same bytes.
        is_there.then(|| Bytes::copy_from_slice(&self.bytes[..length]))
    }
}

#[cfg(test)]
mod tests {
    use estargz::codec::Codec;

    use super::*;

    fn claims(ranges: &[Range<u64>]) -> Vec<Claim> {
        let claim = |range: &Range<u64>| {
            let digest = Digest::of(format!("{range:?}").as_bytes());
            let chunk = Chunk {
                range: range.clone(),
                inner_offset: 0,
                file_offset: 0,
                size: 1,
                digest: Some(digest),
                codec: Codec::Gzip,
            };
            Claim { chunk, digest, done: None, landings: Arc::default() }
        };
        ranges.iter().map(claim).collect()
    }

    /// The first and last byte's neighbour of each run.
    fn requests(claimed: &[Range<u64>], max: u64) -> Vec<(u64, u64)> {
        runs(claims(claimed), max).into_iter().map(|run| (run.range.start, run.range.end)).collect()
    }

    #[test]
    fn neighbours_are_asked_for_together() {
        assert_eq!(requests(&[20..30, 0..10, 10..20], 100), [(0, 30)]);
        let near = [0..10, 10 + MAX_GAP..20 + MAX_GAP];
        assert_eq!(requests(&near, 1 << 20), [(0, 20 + MAX_GAP)]);
        let far = [0..10, 11 + MAX_GAP..20 + MAX_GAP];
        assert_eq!(requests(&far, 1 << 20), [(0, 10), (11 + MAX_GAP, 20 + MAX_GAP)]);
        assert_eq!(requests(&[0..60, 60..100, 100..200], 100), [(0, 100), (100, 200)]);
        assert_eq!(requests(&[0..500, 500..510], 100), [(0, 500), (500, 510)], "one chunk may be larger");
        assert_eq!(requests(&[0..50, 0..50, 0..50], 100), [(0, 50)], "chunks may share a member");
    }

    #[test]
    fn a_window_gives_members_as_they_come() {
        let mut window = Window { start: 100, bytes: BytesMut::new() };
        assert_eq!(window.take(&(102..105)), None);
        window.bytes.extend_from_slice(b"abcde");
        assert_eq!(window.take(&(102..105)).unwrap(), "cde");
        assert_eq!(window.take(&(103..105)).unwrap(), "de", "the same bytes again");
        assert_eq!(window.take(&(110..112)), None);
        window.bytes.extend_from_slice(b"fghijklm");
        assert_eq!(window.take(&(110..112)).unwrap(), "kl");
    }
}
