//! Runs predictions, a few at once, in processes with few rights and limits on memory and time.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Prediction;
use super::blobs::{Blob, MAX_PIECE, Piece, Task};
use super::fuel::End;
use super::sandbox::Limits;
use super::wire::{self, MAX_SAID, Said};
use crate::budget::Budget;
use crate::store::{self, Object, Store};

/// Predictions that run at once. Few are enough: no pull waits for one, and a request for a profile
/// only briefly.
const AT_ONCE: usize = 2;
/// Pieces that are read from the store at once for one prediction.
const READS_AT_ONCE: usize = 16;
/// Most bytes of pieces in memory on their way to predictors.
const PIECES: u64 = 2 * MAX_PIECE;
/// Most bytes that are read for one prediction: all bytes that may be inflated, if they were not
/// compressed, and the TOCs.
const MAX_READ: u64 = 2 << 30;
/// How long a process that has closed its pipes may take to exit by itself.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The argument that makes Starlift's executable a predictor.
const COMMAND: &str = "predict";
/// mimalloc's option for the memory that it reserves at first, in KiB. Its default of a GiB would
/// count against the limit.
const RESERVE: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "32768");
/// The longest reason that is accepted from a predictor.
const MAX_REASON: usize = 200;

/// A predictor of the files that containers read first.
#[derive(Debug)]
pub struct Predictor {
    isolation: Isolation,
    slots: Semaphore,
    pieces: Budget,
}

#[derive(Debug)]
enum Isolation {
    /// In a process of this executable.
    Process(PathBuf, Limits),
    /// On a thread of this process, for programs that embed the conversion: limited in steps and
    /// bytes, not isolated.
    Thread,
}

/// The cause of a failed prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The image: the prediction will fail again.
    Image,
    /// This server: the failure says nothing about the image.
    Ours,
    /// The image, or a busy machine.
    Unclear,
}

/// A failure of the predictor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictionError {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("starting the predictor failed")]
    NotStarted(#[source] io::Error),
    #[error("predictor ended with {0}")]
    Died(ExitStatus),
    #[error("prediction took too long")]
    TooLong,
    #[error("connection to the predictor broke")]
    Gone(#[source] io::Error),
    #[error("invalid message from the predictor: {0}")]
    Nonsense(String),
    #[error("reading the image failed: {0}")]
    Refused(String),
}

impl PredictionError {
    /// Returns the cause of the failure.
    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Store(_) | Self::NotStarted(_) => Blame::Ours,
            Self::TooLong => Blame::Unclear,
            Self::Died(_) | Self::Gone(_) | Self::Nonsense(_) | Self::Refused(_) => Blame::Image,
        }
    }

    /// Returns the value of the metric's label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Store(_) | Self::NotStarted(_) => "not-made",
            Self::Died(_) | Self::Gone(_) => "died",
            Self::TooLong => "too-long",
            Self::Nonsense(_) | Self::Refused(_) => "failed",
        }
    }
}

/// An image whose start is to be predicted: its description, and its blobs in the store.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) task: Task,
    /// The blob and the external TOC of each layer of the task.
    pub(super) blobs: Vec<(Option<Object>, Option<Object>)>,
    pub(super) store: Store,
}

impl Default for Predictor {
    fn default() -> Self {
        Self::on(Isolation::Thread)
    }
}

impl Predictor {
    /// Predicts in processes of `executable`, which is Starlift's own.
    pub fn in_processes(executable: impl Into<PathBuf>, limits: Limits) -> Self {
        Self::on(Isolation::Process(executable.into(), limits))
    }

    fn on(isolation: Isolation) -> Self {
        Self {
            isolation,
            slots: Semaphore::new(AT_ONCE),
            pieces: Budget::new("predictor's pieces", PIECES),
        }
    }

    pub(super) async fn predict(&self, image: Image) -> Result<Prediction, PredictionError> {
        let _slot = self
            .slots
            .acquire()
            .await
            .map_err(|error| PredictionError::NotStarted(io::Error::other(error)))?;
        match &self.isolation {
            Isolation::Process(executable, limits) => {
                self.in_process(executable, limits, &image).await
            }
            Isolation::Thread => self.on_thread(image).await,
        }
    }

    async fn on_thread(&self, image: Image) -> Result<Prediction, PredictionError> {
        let (runtime, pieces) = (Handle::current(), self.pieces.clone());
        let predicted = spawn_blocking(move || {
            let mut failed = None;
            let read = |request: &[Piece]| {
                let read = read(&image, &pieces, request.to_vec()).try_collect::<Vec<_>>();
                runtime.block_on(read).map_err(|error| {
                    failed.get_or_insert(error);
                    io::ErrorKind::Other.into()
                })
            };
            let predicted =
                super::predict(&image.task, Box::new(read)).map_err(PredictionError::Refused);
            failed.map_or(predicted, Err)
        });
        predicted
            .await
            .map_err(|error| PredictionError::Nonsense(error.to_string()))?
    }

    async fn in_process(
        &self,
        executable: &PathBuf,
        limits: &Limits,
        image: &Image,
    ) -> Result<Prediction, PredictionError> {
        let mut command = Command::new(executable);
        command
            .arg(COMMAND)
            .args(["--memory", &limits.memory.to_string()]);
        command.args(["--processor", &limits.processor.as_secs().to_string()]);
        command
            .env_clear()
            .env(RESERVE.0, RESERVE.1)
            .current_dir("/")
            .kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().map_err(PredictionError::NotStarted)?;
        let outcome = timeout(limits.time, self.dialogue(&mut child, image)).await;
        if outcome.is_err() {
            let _gone_already = child.start_kill();
        }
        match outcome {
            Err(_elapsed) => Err(PredictionError::TooLong),
            Ok(Err(PredictionError::Gone(error))) => Err(exit_error(child)
                .await
                .unwrap_or(PredictionError::Gone(error))),
            Ok(outcome) => outcome,
        }
    }

    async fn dialogue(
        &self,
        child: &mut Child,
        image: &Image,
    ) -> Result<Prediction, PredictionError> {
        let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(PredictionError::NotStarted(
                io::ErrorKind::BrokenPipe.into(),
            ));
        };
        match receive(&mut output)
            .await
            .map_err(|error| PredictionError::NotStarted(io::Error::other(error)))?
        {
            Said::Ready { is_filtered } if !is_filtered => {
                tracing::debug!("system calls of the predictor not filtered");
            }
            Said::Ready { .. } => {}
            message => return Err(PredictionError::Nonsense(format!("{message:.40?}"))),
        }
        let task = serde_json::to_vec(&image.task)
            .map_err(|error| PredictionError::Nonsense(error.to_string()))?;
        send(&mut input, &task).await?;
        let mut left = MAX_READ;
        loop {
            let request = match receive(&mut output).await? {
                Said::Read(pieces) => pieces,
                Said::Done(prediction) => return checked(prediction, image.task.layers.len()),
                Said::Failed(why) => return Err(PredictionError::Refused(shorten(&why))),
                Said::Ready { .. } => {
                    return Err(PredictionError::Nonsense("second Ready".to_owned()));
                }
            };
            for piece in &request {
                left = left.checked_sub(piece.len().max(1)).ok_or_else(|| {
                    PredictionError::Nonsense("too many bytes requested".to_owned())
                })?;
            }
            let mut pieces = std::pin::pin!(read(image, &self.pieces, request));
            while let Some(bytes) = pieces.try_next().await? {
                send(&mut input, &bytes).await?;
            }
        }
    }
}

/// Returns how a process ended that closed its pipes.
async fn exit_error(mut child: Child) -> Option<PredictionError> {
    timeout(EXIT_TIMEOUT, child.wait())
        .await
        .ok()?
        .ok()
        .map(PredictionError::Died)
}

/// Reads pieces of an image's blobs, in their order.
fn read<'a>(
    image: &'a Image,
    budget: &'a Budget,
    request: Vec<Piece>,
) -> impl futures::Stream<Item = Result<Bytes, PredictionError>> + 'a {
    let pieces = stream::iter(request).map(move |piece| async move {
        let object = object(image, piece.blob)
            .filter(|object| piece.start <= piece.end && piece.end <= object.size);
        let object = object.filter(|_| piece.len() <= MAX_PIECE);
        let object =
            object.ok_or_else(|| PredictionError::Nonsense(format!("request for {piece:?}")))?;
        let weight = budget
            .take(piece.len())
            .await
            .map_err(|full| PredictionError::Nonsense(full.to_string()))?;
        let read = image.store.read(object, piece.start..piece.end).await?;
        let read: Vec<Bytes> = read.try_collect().await?;
        Ok((read, weight))
    });
    pieces
        .buffered(READS_AT_ONCE)
        .map_ok(|(mut read, _weight)| match (read.pop(), read.is_empty()) {
            (Some(whole), true) => whole,
            (last, _) => read
                .into_iter()
                .chain(last)
                .collect::<Vec<_>>()
                .concat()
                .into(),
        })
}

fn object(image: &Image, blob: Blob) -> Option<&Object> {
    let at = |number: u32| image.blobs.get(usize::try_from(number).ok()?);
    match blob {
        Blob::Layer(number) => at(number)?.0.as_ref(),
        Blob::ExternalToc(number) => at(number)?.1.as_ref(),
    }
}

async fn receive(output: &mut ChildStdout) -> Result<Said, PredictionError> {
    let mut length = [0; 4];
    output
        .read_exact(&mut length)
        .await
        .map_err(PredictionError::Gone)?;
    let length = wire::checked(length, MAX_SAID)
        .map_err(|error| PredictionError::Nonsense(error.to_string()))?;
    let mut bytes = Vec::new();
    output
        .take(length as u64)
        .read_to_end(&mut bytes)
        .await
        .map_err(PredictionError::Gone)?;
    if bytes.len() < length {
        return Err(PredictionError::Gone(io::ErrorKind::UnexpectedEof.into()));
    }
    // A full list of files has more than a megabyte.
    let parsed = spawn_blocking(move || serde_json::from_slice(&bytes)).await;
    let parsed = parsed.map_err(|error| PredictionError::NotStarted(io::Error::other(error)))?;
    parsed.map_err(|error| PredictionError::Nonsense(shorten(&error.to_string())))
}

async fn send(input: &mut ChildStdin, bytes: &[u8]) -> Result<(), PredictionError> {
    let length =
        wire::length(bytes).map_err(|error| PredictionError::Nonsense(error.to_string()))?;
    input
        .write_all(&length)
        .await
        .map_err(PredictionError::Gone)?;
    input
        .write_all(bytes)
        .await
        .map_err(PredictionError::Gone)?;
    input.flush().await.map_err(PredictionError::Gone)
}

/// Returns a prediction if it names only layers of the image, and did not end by the clock.
fn checked(prediction: Prediction, layers: usize) -> Result<Prediction, PredictionError> {
    let is_within = |layer: u32| usize::try_from(layer).is_ok_and(|layer| layer < layers);
    if !prediction.files.iter().all(|file| is_within(file.layer)) {
        return Err(PredictionError::Nonsense(
            "layer not in the image".to_owned(),
        ));
    }
    match prediction.ended {
        Some(end) if !end.is_the_same_everywhere() => Err(PredictionError::TooLong),
        _ => Ok(prediction),
    }
}

/// Shortens and escapes a text of the predictor for logs. The predictor has parsed the image, so
/// the text is untrusted.
fn shorten(text: &str) -> String {
    text.chars()
        .take(MAX_REASON)
        .collect::<String>()
        .escape_debug()
        .to_string()
}

impl Prediction {
    /// Returns the value of the metric's label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self.ended {
            None => "made",
            Some(
                End::Steps
                | End::Made
                | End::Read
                | End::Files
                | End::Named
                | End::Time
                | End::Broken,
            ) => "cut",
        }
    }
}
