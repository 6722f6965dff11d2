//! One issuer: its keys, fetched when they are needed and kept for a while.
//!
//! ```text
//! age of the keys   0 ────── refresh ────────────── unreachable ──────▶
//!                   used     fetched again,         fetched first,
//!                            used if that fails     503 if that fails
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::config::IssuerConfig;
use super::fetch::{FetchError, Fetcher, from_file};
use super::jwt::{Claims, Flaw, Unverified};
use super::keys::Keys;
use crate::clock::unix_now;
use crate::telemetry::log::chain;

/// The shortest time between two fetches because of tokens with unknown keys, which anybody can
/// send.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(10);
/// How long a silent issuer is not asked again.
const SILENCE_PAUSE: Duration = Duration::from_secs(10);
/// How often a file of keys is checked for changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The issuer's keys are not known, so that nothing can be said about its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unavailable;

#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) config: IssuerConfig,
    origin: Origin,
    held: Mutex<Held>,
    /// Held while keys are fetched, so that one fetch serves all.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
enum Origin {
    Url(Box<Fetcher>),
    File(Mutex<Option<SystemTime>>),
}

#[derive(Debug, Default)]
struct Held {
    keys: Arc<Keys>,
    /// The time of the keys; `None` if there never were any.
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

impl Issuer {
    /// Reads the files. Keys are fetched when they are needed. Blocking.
    pub(super) fn open(config: &IssuerConfig) -> Result<Self, FetchError> {
        let mut held = Held::default();
        let origin = match &config.jwks_file {
            Some(file) => {
                let seen = modified(file);
                held.keys = Arc::new(from_file(file)?);
                let now = Some(Instant::now());
                (held.fetched, held.tried) = (now, now);
                Origin::File(Mutex::new(seen))
            }
            None => Origin::Url(Box::new(Fetcher::new(config)?)),
        };
        Ok(Self {
            config: config.clone(),
            origin,
            held: Mutex::new(held),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    /// Verifies a token of this issuer.
    pub(super) async fn verify(
        &self,
        token: &Unverified<'_>,
    ) -> Result<Result<Claims, Flaw>, Unavailable> {
        let kid = token.kid.as_deref();
        let keys = match &self.origin {
            Origin::File(seen) => self.keys_in_file(seen),
            Origin::Url(fetcher) => self.keys_at_url(fetcher, kid).await?,
        };
        if !keys.has(kid) {
            return Ok(Err(Flaw::UnknownKey));
        }
        Ok(token.verify(&keys, &self.config.audience, unix_now()))
    }

    fn keys_in_file(&self, seen: &Mutex<Option<SystemTime>>) -> Arc<Keys> {
        let mut held = self.held.lock();
        let is_due = held.tried.is_none_or(|tried| tried.elapsed() >= LOOK_EVERY);
        if let Some(file) = &self.config.jwks_file
            && is_due
        {
            held.tried = Some(Instant::now());
            let now = modified(file);
            if now != *seen.lock() {
                match from_file(file) {
                    Ok(keys) => {
                        held.keys = Arc::new(keys);
                        *seen.lock() = now;
                        tracing::info!(file = %file.display(), "keys of an issuer read again");
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = chain(&error),
                            "keys of an issuer stay as they were"
                        );
                    }
                }
            }
        }
        Arc::clone(&held.keys)
    }

    async fn keys_at_url(
        &self,
        fetcher: &Fetcher,
        kid: Option<&str>,
    ) -> Result<Arc<Keys>, Unavailable> {
        if self.is_due(kid) {
            let _turn = self.fetching.lock().await;
            // The one before may have fetched them.
            if self.is_due(kid) {
                self.fetch(fetcher).await;
            }
        }
        let held = self.held.lock();
        let age = held.fetched.ok_or(Unavailable)?.elapsed();
        if age >= self.config.unreachable {
            return Err(Unavailable);
        }
        // An issuer that has not answered since may have the key.
        let is_silent = held.tried > held.fetched;
        if !held.keys.has(kid) && is_silent {
            return Err(Unavailable);
        }
        Ok(Arc::clone(&held.keys))
    }

    /// Whether keys have to be fetched before a token with this key is judged.
    fn is_due(&self, kid: Option<&str>) -> bool {
        let held = self.held.lock();
        let Some(fetched) = held.fetched else {
            return is_past(held.tried, SILENCE_PAUSE.min(self.config.refresh));
        };
        let is_old = fetched.elapsed() >= self.config.refresh;
        let pause = if held.keys.has(kid) {
            SILENCE_PAUSE
        } else {
            UNKNOWN_KEY_PAUSE
        };
        let is_wanted = is_old || !held.keys.has(kid);
        is_wanted && is_past(held.tried, pause.min(self.config.refresh))
    }

    async fn fetch(&self, fetcher: &Fetcher) {
        let begun = Instant::now();
        let fetched = fetcher.keys().await;
        let mut held = self.held.lock();
        let issuer = &self.config.issuer;
        match fetched {
            Ok(keys) => {
                if *held.keys != keys {
                    tracing::info!(issuer, "keys of an issuer fetched");
                }
                held.keys = Arc::new(keys);
                (held.fetched, held.tried) = (Some(begun), Some(begun));
            }
            Err(error) => {
                held.tried = Some(Instant::now());
                tracing::warn!(
                    issuer,
                    error = chain(&error),
                    "keys of an issuer not fetched"
                );
            }
        }
    }
}

fn is_past(since: Option<Instant>, pause: Duration) -> bool {
    since.is_none_or(|since| since.elapsed() >= pause)
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).ok()?.modified().ok()
}
