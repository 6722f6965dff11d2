//! The audit log: who pulled, warmed or was refused which image, a line of JSON for each decision.
//!
//! ```text
//! request answered ▶ entry ▶ queue ▶ thread ▶ file, or standard output
//!                     └ repeated within a minute: no line
//!                             └ full: dropped, counted
//! ```
//! No request waits for the log, and none fails because of it.

mod entry;
mod writer;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::oneshot;

use crate::telemetry::metrics;

pub(crate) use entry::{Decision, Entry, Image};
use writer::{Message, Target};

/// Lines that wait for the disk, some 500 bytes each. One more is dropped.
const QUEUE: usize = 8192;
/// How long a repetition of the same decision is left out, and how many are remembered.
const REPEATED_WITHIN: Duration = Duration::from_secs(60);
const REMEMBERED: u64 = 100_000;

/// The log. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    lines: SyncSender<Message>,
    /// Hashes of the decisions of the last minute that are logged once.
    seen: Cache<u64, ()>,
    hasher: Arc<RandomState>,
}

impl Audit {
    /// Opens the file, or standard output for `-`, and starts the thread that writes.
    ///
    /// # Errors
    /// If the file cannot be opened, or no thread be started.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let target = Target::open(path)?;
        let (lines, waiting) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer::run(target, &waiting))?;
        let seen = Cache::builder()
            .max_capacity(REMEMBERED)
            .time_to_live(REPEATED_WITHIN)
            .build();
        Ok(Self {
            lines,
            seen,
            hasher: Arc::default(),
        })
    }

    /// Writes the line of a decision, unless it repeats one of the last minute that is logged once.
    pub(crate) fn write(&self, entry: &Entry<'_>) {
        if let Some(repeated) = entry.repeated() {
            let key = self.hasher.hash_one(repeated);
            // The common case first: it only reads.
            if self.seen.contains_key(&key) || !self.seen.entry(key).or_insert(()).is_fresh() {
                return;
            }
        }
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.lines.try_send(Message::Line(entry.line()))
        {
            count("dropped", 1);
        }
    }

    /// Opens the file again under its name, after it was renamed by a rotation.
    pub(crate) fn reopen(&self) {
        let lines = self.lines.clone();
        // The queue may be full.
        tokio::task::spawn_blocking(move || lines.send(Message::Reopen).ok());
    }

    /// Waits until the lines before this call are written.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let lines = self.lines.clone();
        tokio::task::spawn_blocking(move || lines.send(Message::Flush(done)).ok());
        let _ended = flushed.await;
    }
}

fn count(outcome: &'static str, lines: u64) {
    metrics()
        .audit_lines
        .get_or_create(&[("outcome", outcome)])
        .inc_by(lines);
}
