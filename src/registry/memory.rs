//! The caches of all registries, bounded in bytes: tokens, challenges, redirects, sizes of blobs,
//! lists of tags.
//!
//! All registries share them, so that a thousand registries use no more memory than one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use url::Url;

use super::challenge::Challenge;
use super::token::{Action, Token, TokenKey, UntilRenewal};
use crate::oci::{Digest, Repository};

/// About a thousand tokens of the largest kind, or tens of thousands of common ones.
const MAX_TOKEN_BYTES: u64 = 32 << 20;
/// If the challenge of a repository is evicted, the next request to it is challenged again.
const MAX_CHALLENGE_BYTES: u64 = 4 << 20;
/// Targets of redirects. Signed URLs have about one KiB.
const MAX_TARGET_BYTES: u64 = 16 << 20;
/// Signed URLs live for some minutes.
const TARGET_LIFETIME: Duration = Duration::from_secs(300);
/// Repositories that are read by the credentials of a pull.
const MAX_REFUSAL_BYTES: u64 = 1 << 20;
/// A right that this machine gets is used after this time.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(60);
/// Sizes of blobs that no header states.
const MAX_SIZE_BYTES: u64 = 1 << 20;
/// Lists of tags that were collected from many pages: the longest one, and some more.
const MAX_TAG_BYTES: u64 = 32 << 20;
/// Long enough for a client to ask for the next page.
const TAGS_LIFETIME: Duration = Duration::from_secs(60);
/// The bytes that an entry takes besides its texts.
const ENTRY: usize = 200;

/// A number for each endpoint, so that the answers of one are not used for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EndpointId(u64);

/// A blob at one of the endpoints.
pub(super) type Target = (EndpointId, Repository, Digest);

#[derive(Debug)]
pub(super) struct Memory {
    next: AtomicU64,
    /// Tokens by their scope. Each is fetched once, even if many requests wait for it.
    pub(super) tokens: Cache<(EndpointId, TokenKey), Token>,
    /// The latest challenge by endpoint, repository and action.
    pub(super) challenges: Cache<(EndpointId, String, Action), Challenge>,
    /// The latest targets of redirected reads of blobs.
    pub(super) targets: Cache<Target, Url>,
    /// Repositories for which a server has refused this machine's identity, and not the credentials
    /// of the pull.
    pub(super) refusals: Cache<(EndpointId, String), ()>,
    /// Verified sizes of blobs.
    pub(super) sizes: Cache<Digest, u64>,
    /// Lists of tags that took many requests, for clients that read them page by page.
    pub(super) tags: Cache<(EndpointId, Repository), Arc<Vec<String>>>,
}

impl Default for Memory {
    fn default() -> Self {
        let tokens = Cache::builder()
            .weigher(|(_, key): &(EndpointId, TokenKey), token: &Token| {
                weight(key.weight() + token.weight())
            })
            .max_capacity(MAX_TOKEN_BYTES)
            .expire_after(UntilRenewal)
            .build();
        let challenges = Cache::builder()
            .weigher(
                |(_, name, _): &(EndpointId, String, Action), challenge: &Challenge| {
                    weight(name.len() + challenge.weight())
                },
            )
            .max_capacity(MAX_CHALLENGE_BYTES)
            .build();
        let targets = Cache::builder()
            .weigher(|(_, name, digest): &Target, url: &Url| {
                weight(name.as_str().len() + digest.hex().len() + url.as_str().len())
            })
            .max_capacity(MAX_TARGET_BYTES)
            .time_to_live(TARGET_LIFETIME)
            .build();
        let refusals = Cache::builder()
            .weigher(|(_, name): &(EndpointId, String), (): &()| weight(name.len()))
            .max_capacity(MAX_REFUSAL_BYTES)
            .time_to_live(REFUSAL_LIFETIME)
            .build();
        let sizes = Cache::builder()
            .weigher(|digest: &Digest, _: &u64| weight(digest.hex().len()))
            .max_capacity(MAX_SIZE_BYTES)
            .build();
        let tags = Cache::builder()
            .weigher(
                |(_, name): &(EndpointId, Repository), tags: &Arc<Vec<String>>| {
                    let texts: usize = tags.iter().map(|tag| tag.len() + size_of::<String>()).sum();
                    weight(name.as_str().len() + texts)
                },
            )
            .max_capacity(MAX_TAG_BYTES)
            .time_to_live(TAGS_LIFETIME)
            .build();
        Self {
            next: AtomicU64::new(0),
            tokens,
            challenges,
            targets,
            refusals,
            sizes,
            tags,
        }
    }
}

impl Memory {
    pub(super) fn endpoint(&self) -> EndpointId {
        EndpointId(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

fn weight(bytes: usize) -> u32 {
    u32::try_from(bytes + ENTRY).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn redirects_of_all_registries_together_are_bounded_in_bytes() {
        let memory = Memory::default();
        let url: Url = format!("https://a.example/{}", "x".repeat(8 << 10))
            .parse()
            .unwrap();
        for number in 0..5000_u32 {
            let digest = Digest::sha256_of(&number.to_le_bytes());
            memory
                .targets
                .insert(
                    (memory.endpoint(), "a/b".parse().unwrap(), digest),
                    url.clone(),
                )
                .await;
        }
        memory.targets.run_pending_tasks().await;
        assert!(memory.targets.weighted_size() <= MAX_TARGET_BYTES);
        assert!(memory.targets.entry_count() > 0);
    }
}
