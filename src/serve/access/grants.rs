//! The latest answers of upstreams: which reader may pull from which repository.
//!
//! ```text
//! age of the answer   0 ────── half ────── remember ──────▶
//!                     used     used, asked again    asked first
//!                              in the background
//! ```
//! So repositories that are read all the time are never waited for, and a withdrawal holds within
//! `remember`. An upstream that does not answer takes nothing away for a while.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::flight::Flight;
use crate::oci::{Digest, Reference, Repository};
use crate::registry::{ClientLogin, Error};
use crate::store::Holder;
use crate::telemetry::metrics;
use crate::transport::Source;

use super::identity::Reader;

/// The memory for answers, in bytes: about 60,000 of them.
const GRANTS: u64 = 16 << 20;
/// The size of an answer in memory, with its key and its place in the table.
const GRANT: u32 = 256;
/// How long a refusal is used: a client whose access was just granted tries again soon.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// How long a request waits for an upstream's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions to upstreams at the same time, so that clients cannot make this server guess passwords
/// quickly.
const CHECKS_AT_ONCE: usize = 32;

/// An object that a reader who may pull from a repository can see there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    Manifest(Reference),
    Blob(Digest),
    /// None is known. The list of tags is asked for.
    Tags,
}

/// The answer about a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Granted,
    Refused,
    /// The upstream did not answer, and nothing is known from before.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Grant {
    is_granted: bool,
    /// The last time at which the upstream itself said so.
    confirmed: Instant,
    /// The last time at which it was asked.
    checked: Instant,
}

/// The next step for a remembered answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Use(Verdict),
    UseAndAsk,
    Ask,
}

type Key = (Reader, Digest);

/// The answers of all upstreams. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Grants {
    known: Cache<Key, Grant>,
    asking: Flight<Key, Verdict>,
    places: Arc<Semaphore>,
    remember: Duration,
    unreachable: Duration,
}

/// A question to an upstream.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) reader: Reader,
    pub(crate) upstream: Source,
    /// The credentials of a client, in place of the server's.
    pub(crate) login: Option<ClientLogin>,
    pub(crate) repository: Repository,
    pub(crate) proof: Proof,
}

impl Grant {
    fn step(&self, now: Instant, remember: Duration) -> Step {
        let age = now.saturating_duration_since(self.checked);
        match self.is_granted {
            true if age < remember / 2 => Step::Use(Verdict::Granted),
            true if age < remember => Step::UseAndAsk,
            false if age < REFUSED_FOR.min(remember) => Step::Use(Verdict::Refused),
            _ => Step::Ask,
        }
    }
}

impl Grants {
    pub(crate) fn new(remember: Duration, unreachable: Duration) -> Self {
        let known = Cache::builder()
            .max_capacity(GRANTS)
            .weigher(|_: &Key, _: &Grant| GRANT)
            .time_to_live(remember.max(unreachable))
            .build();
        Self {
            known,
            asking: Flight::default(),
            places: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            remember,
            unreachable,
        }
    }

    /// The answer that is used as it is, without a question.
    pub(crate) async fn remembered(&self, reader: Reader, holder: &Holder) -> Option<Verdict> {
        let known = self.known.get(&(reader, holder.id().clone())).await?;
        match known.step(Instant::now(), self.remember) {
            Step::Use(verdict) => Some(verdict),
            Step::UseAndAsk | Step::Ask => None,
        }
    }

    /// Whether the reader may pull from the repository, from memory or by a question to the
    /// upstream.
    ///
    /// Cancel safe: a running question is answered to the next caller.
    pub(crate) async fn verdict(&self, holder: &Holder, question: &Question) -> Verdict {
        let key = (question.reader, holder.id().clone());
        let known = self.known.get(&key).await;
        let step = known.map_or(Step::Ask, |known| known.step(Instant::now(), self.remember));
        match step {
            Step::Use(verdict) => verdict,
            Step::UseAndAsk => {
                drop(self.ask(key, known, question));
                Verdict::Granted
            }
            Step::Ask => {
                let answer = self.ask(key, known, question);
                let asked = timeout(PATIENCE, answer).await;
                asked.unwrap_or(self.without_answer(question.reader, known))
            }
        }
    }

    /// Records that the upstream has just served the reader something of the repository.
    pub(crate) async fn confirm(&self, reader: Reader, holder: &Holder, since: Instant) {
        let grant = Grant {
            is_granted: true,
            confirmed: since,
            checked: since,
        };
        let key = (reader, holder.id().clone());
        let is_newer = |known: Grant| known.checked >= since;
        if !self.known.get(&key).await.is_some_and(is_newer) {
            self.known.insert(key, grant).await;
        }
    }

    /// The verdict as long as the upstream does not answer.
    fn without_answer(&self, reader: Reader, known: Option<Grant>) -> Verdict {
        match (reader, known) {
            (_, Some(known)) if !known.is_granted => Verdict::Refused,
            // The link is the evidence that this server may pull.
            (Reader::Server, _) => Verdict::Granted,
            (Reader::Client(_), Some(known)) if known.confirmed.elapsed() < self.unreachable => {
                Verdict::Granted
            }
            (Reader::Client(_), _) => Verdict::Unknown,
        }
    }

    /// Asks the upstream, once for all concurrent callers. The question is already on its way when
    /// this returns.
    fn ask(
        &self,
        key: Key,
        known: Option<Grant>,
        question: &Question,
    ) -> impl Future<Output = Verdict> + use<> {
        let (this, question) = (self.clone(), question.clone());
        let reader = question.reader;
        let asked = self.asking.join(key.clone(), move || async move {
            let _place = this.places.acquire().await;
            let answer = is_allowed(&question).await;
            let now = Instant::now();
            let grant = match answer {
                Some(is_granted) => Grant {
                    is_granted,
                    confirmed: now,
                    checked: now,
                },
                None => match this.without_answer(reader, known) {
                    Verdict::Granted => Grant {
                        is_granted: true,
                        confirmed: known.map_or(now, |known| known.confirmed),
                        checked: now,
                    },
                    verdict => return verdict,
                },
            };
            count(answer);
            this.known.insert(key, grant).await;
            if grant.is_granted {
                Verdict::Granted
            } else {
                Verdict::Refused
            }
        });
        async move { asked.await.unwrap_or(Verdict::Unknown) }
    }
}

fn count(answer: Option<bool>) {
    let answer = match answer {
        Some(true) => "granted",
        Some(false) => "refused",
        None => "silent",
    };
    metrics()
        .access_checks
        .get_or_create(&[("answer", answer)])
        .inc();
}

/// Whether the upstream shows the proof to the source's credentials; `None` if it does not answer.
async fn is_allowed(question: &Question) -> Option<bool> {
    let Question {
        reader,
        upstream,
        login,
        repository,
        proof,
    } = question;
    // New tokens are fetched for a client, because old ones would hide a withdrawal.
    let source = match login {
        Some(login) => upstream.for_client(login).await,
        None => Ok(upstream.clone()),
    };
    let source = match source {
        Ok(source) => source,
        Err(Error::Denied) => return Some(false),
        Err(error) => return unanswered(question, &error),
    };
    let shown = match proof {
        Proof::Manifest(reference) => source.resolve(repository, reference).await.map(drop),
        Proof::Blob(digest) => source.blob_size(repository, digest).await.map(drop),
        Proof::Tags => Err(Error::NotFound),
    };
    let shown = match shown {
        // The object may be gone, or hidden from this reader.
        Err(Error::NotFound) => source.tags(repository, Some(1), None).await.map(drop),
        other => other,
    };
    match shown {
        Ok(()) => Some(true),
        // A repository that is gone takes nothing from this server that it was allowed to have. A
        // client may meet it because it is hidden.
        Err(Error::NotFound) => Some(*reader == Reader::Server),
        Err(Error::Unauthorized | Error::Denied) => Some(false),
        Err(error) => unanswered(question, &error),
    }
}

fn unanswered(question: &Question, error: &Error) -> Option<bool> {
    let upstream = question.upstream.name();
    tracing::info!(upstream, repository = %question.repository, %error, "access not checked");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn an_answer_is_used_renewed_and_then_asked_for_first() {
        let now = Instant::now();
        let grant = |is_granted| Grant {
            is_granted,
            confirmed: now,
            checked: now,
        };
        let step = |is_granted: bool, seconds| {
            grant(is_granted).step(now + Duration::from_secs(seconds), MINUTE)
        };
        assert_eq!(step(true, 29), Step::Use(Verdict::Granted));
        assert_eq!(step(true, 30), Step::UseAndAsk);
        assert_eq!(step(true, 60), Step::Ask);
        assert_eq!(step(false, 4), Step::Use(Verdict::Refused));
        assert_eq!(step(false, 5), Step::Ask);
    }

    #[tokio::test]
    async fn without_an_answer_a_client_keeps_its_access_for_a_while_and_a_refusal_stays() {
        let grants = Grants::new(MINUTE, MINUTE);
        let now = Instant::now();
        let grant = |is_granted| {
            Some(Grant {
                is_granted,
                confirmed: now,
                checked: now,
            })
        };
        let client = Reader::Client([0; 32]);
        for (reader, known, expected) in [
            (client, grant(true), Verdict::Granted),
            (client, None, Verdict::Unknown),
            (client, grant(false), Verdict::Refused),
            (Reader::Server, None, Verdict::Granted),
            (Reader::Server, grant(false), Verdict::Refused),
        ] {
            assert_eq!(grants.without_answer(reader, known), expected, "{reader:?}");
        }
        let hasty = Grants::new(MINUTE, Duration::ZERO);
        assert_eq!(hasty.without_answer(client, grant(true)), Verdict::Unknown);
    }
}
