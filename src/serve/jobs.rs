//! Conversions that were requested ahead of a pull: by API, by a notification, or by the list in
//! the configuration.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock::unix_now;
use crate::convert::Reason;
use crate::oci::Digest;
use crate::oci::route::Location;

/// Jobs that ask their upstream for tags and manifests at the same time.
const ASKING_AT_ONCE: usize = 16;

/// How a conversion was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Asked {
    Api,
    Notification,
    List,
}

/// A requested conversion, as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    /// The reference as the client wrote it.
    pub(crate) reference: String,
    /// The upstream's name and the repository in it.
    pub(crate) upstream: String,
    pub(crate) repository: String,
    pub(crate) state: State,
    pub(crate) asked: Asked,
    /// Digest of the source image, once it is known.
    pub(crate) source: Option<Digest>,
    /// Digest of the converted image, once there is one, or of the source image if nothing can be
    /// converted.
    pub(crate) converted: Option<Digest>,
    /// The reason of a failure. The log has more under the job's id.
    pub(crate) error: Option<Reason>,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) ended: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Resolving,
    Converting,
    Done,
    Failed,
}

impl Job {
    /// The repository that is converted from.
    pub(crate) fn location(&self) -> Option<Location> {
        Some(Location {
            upstream: self.upstream.clone(),
            repository: self.repository.parse().ok()?,
        })
    }

    pub(crate) fn is_of(&self, upstream: &str, repository: &str) -> bool {
        self.upstream == upstream && self.repository == repository
    }
}

impl State {
    fn is_running(self) -> bool {
        matches!(self, Self::Resolving | Self::Converting)
    }
}

/// The newest jobs, as many as configured.
pub(crate) struct Jobs {
    jobs: Mutex<VecDeque<Job>>,
    capacity: usize,
    asking: Semaphore,
}

impl Jobs {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            jobs: Mutex::default(),
            capacity: capacity.max(1),
            asking: Semaphore::new(ASKING_AT_ONCE),
        }
    }

    /// Waits for the turn to ask an upstream. Cancel safe.
    pub(crate) async fn asking(&self) -> Option<SemaphorePermit<'_>> {
        self.asking.acquire().await.ok()
    }

    pub(crate) fn is_running(&self, reference: &str) -> bool {
        let jobs = self.jobs.lock();
        let mut jobs = jobs.iter();
        jobs.any(|job| job.reference == reference && job.state.is_running())
    }

    /// Returns a job for `reference` and whether it is new: a running job is joined. `None` if all
    /// remembered jobs are still running, or half of them and somebody else than the API asks:
    /// registries must not keep operators from starting conversions.
    pub(crate) fn start(
        &self,
        reference: &str,
        location: &Location,
        asked: Asked,
    ) -> Option<(Job, bool)> {
        let mut jobs = self.jobs.lock();
        if let Some(running) = jobs
            .iter()
            .find(|job| job.reference == reference && job.state.is_running())
        {
            return Some((running.clone(), false));
        }
        if asked != Asked::Api {
            let others = jobs.iter().filter(|job| job.asked != Asked::Api);
            let running = others.filter(|job| job.state.is_running()).count();
            if running >= self.capacity.div_ceil(2) {
                return None;
            }
        }
        if jobs.len() >= self.capacity {
            let oldest_done = jobs.iter().position(|job| !job.state.is_running())?;
            jobs.remove(oldest_done);
        }
        let job = Job {
            id: hex::encode(rand::random::<[u8; 8]>()),
            reference: reference.to_owned(),
            upstream: location.upstream.clone(),
            repository: location.repository.to_string(),
            state: State::Resolving,
            asked,
            source: None,
            converted: None,
            error: None,
            started: unix_now(),
            ended: None,
        };
        jobs.push_back(job.clone());
        Some((job, true))
    }

    pub(crate) fn converting(&self, id: &str, source: &Digest) {
        self.change(id, |job| {
            job.state = State::Converting;
            job.source = Some(source.clone());
        });
    }

    pub(crate) fn end(&self, id: &str, outcome: Result<Digest, Reason>) {
        self.change(id, |job| {
            job.ended = Some(unix_now());
            match outcome {
                Ok(converted) => (job.state, job.converted) = (State::Done, Some(converted)),
                Err(error) => (job.state, job.error) = (State::Failed, Some(error)),
            }
        });
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.lock().iter_mut().find(|job| job.id == id) {
            change(job);
        }
    }

    pub(crate) fn get(&self, id: &str) -> Option<Job> {
        self.jobs.lock().iter().find(|job| job.id == id).cloned()
    }

    /// All jobs, the newest first.
    pub(crate) fn list(&self) -> Vec<Job> {
        self.jobs.lock().iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location() -> Location {
        Location::of(&"a".parse().unwrap(), None, |_| false).unwrap()
    }

    #[test]
    fn a_running_job_is_joined_and_an_ended_one_started_again() {
        let jobs = Jobs::new(8);
        let (first, is_new) = jobs.start("a:1", &location(), Asked::Api).unwrap();
        assert!(is_new);
        assert_eq!(
            jobs.start("a:1", &location(), Asked::Api)
                .map(|(job, is_new)| (job.id, is_new)),
            Some((first.id.clone(), false))
        );
        jobs.end(&first.id, Err(Reason::NotFound));
        assert_eq!(
            jobs.get(&first.id).map(|job| job.state),
            Some(State::Failed)
        );
        assert!(jobs.start("a:1", &location(), Asked::Api).unwrap().1);
    }

    #[test]
    fn announced_jobs_leave_half_of_the_places_to_operators() {
        let jobs = Jobs::new(4);
        let start = |name: &str, asked| jobs.start(name, &location(), asked);
        let (first, _) = start("a:1", Asked::Notification).unwrap();
        start("a:2", Asked::List).unwrap();
        assert!(start("a:3", Asked::Notification).is_none());
        assert!(!start("a:1", Asked::Notification).unwrap().1);
        assert!(jobs.is_running("a:1") && !jobs.is_running("a:3"));
        start("a:4", Asked::Api).unwrap();
        start("a:5", Asked::Api).unwrap();
        jobs.end(&first.id, Err(Reason::NotFound));
        assert!(start("a:3", Asked::Notification).is_some());
    }

    #[test]
    fn only_ended_jobs_are_forgotten() {
        let jobs = Jobs::new(2);
        let (first, _) = jobs.start("a:1", &location(), Asked::Api).unwrap();
        jobs.start("a:2", &location(), Asked::Api).unwrap();
        assert!(jobs.start("a:3", &location(), Asked::Api).is_none());
        jobs.end(&first.id, Ok(Digest::sha256_of(b"")));
        assert!(jobs.start("a:3", &location(), Asked::Api).is_some());
        assert!(jobs.get(&first.id).is_none());
    }
}
