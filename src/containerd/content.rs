//! containerd's content store: its blobs, and the labels that record a blob's references and
//! origin.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::media_type::ingest_name;
use super::session::{Session, refused};
use crate::backoff::Backoff;
use crate::containerd::services::content::v1::{
    Info, InfoRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use crate::failure::Failure;
use crate::oci::{Descriptor, Digest};

/// Bytes of a blob in one message. containerd's limit is 16 MiB.
const MESSAGE_BYTES: usize = 1 << 20;
/// Pauses between attempts to write a blob that another client is writing: the first and the
/// longest.
const FIRST_PAUSE: Duration = Duration::from_millis(16);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A stream of a blob's bytes, from an offset to the end.
pub(crate) type Bytestream = BoxStream<'static, Result<Bytes, Failure>>;

/// A write in progress, which containerd locks against other clients.
struct Ingest {
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    /// The number of bytes of the blob that containerd has.
    offset: i64,
}

/// Writes a blob unless containerd has it. `read` returns the blob's bytes from an offset on, which
/// is not 0 if an earlier write was broken off. containerd checks size and digest.
pub(crate) async fn put<F>(
    session: &Session,
    blob: &Descriptor,
    read: impl FnOnce(u64) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<Bytestream, Failure>>,
{
    let refused = || refused(format!("writing {}", blob.digest));
    let Some(mut ingest) = open(session, blob).await.map_err(refused())? else {
        return Ok(());
    };
    let total = size_of(blob)?;
    if ingest.offset < total {
        let mut bytes = read(u64::try_from(ingest.offset).map_err(Failure::from_error)?).await?;
        let mut message = BytesMut::with_capacity(MESSAGE_BYTES);
        while let Some(piece) = bytes.try_next().await? {
            message.extend_from_slice(&piece);
            while message.len() >= MESSAGE_BYTES {
                ingest
                    .write(message.split_to(MESSAGE_BYTES).freeze())
                    .await
                    .map_err(refused())?;
            }
        }
        if !message.is_empty() {
            ingest.write(message.freeze()).await.map_err(refused())?;
        }
    }
    match ingest.commit(total, &blob.digest).await {
        Err(status) if status.code() != Code::AlreadyExists => Err(refused()(status)),
        _ => Ok(()),
    }
}

/// Starts a write, and waits while another client writes the same blob. Returns `None` if
/// containerd has the blob.
async fn open(session: &Session, blob: &Descriptor) -> Result<Option<Ingest>, Status> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match Ingest::open(session, blob).await {
            Ok(ingest) => return Ok(Some(ingest)),
            Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
            Err(status) if is_locked(&status) => {}
            Err(status) => return Err(status),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// Whether another client is writing the blob, by the message in containerd's
/// `content/local/locks.go`. The code is not enough, because an unreachable containerd has the same
/// one.
fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}

impl Ingest {
    async fn open(session: &Session, blob: &Descriptor) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(1);
        let request = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: ingest_name(blob),
            total: i64::try_from(blob.size).unwrap_or_default(),
            expected: blob.digest.to_string(),
            ..WriteContentRequest::default()
        };
        // The queue is empty, so that this does not block. containerd responds to the call only
        // after this first message.
        requests
            .try_send(request)
            .map_err(|error| Status::internal(error.to_string()))?;
        let responses = session
            .content()
            .write(ReceiverStream::new(queue))
            .await?
            .into_inner();
        let mut ingest = Self {
            requests,
            responses,
            offset: 0,
        };
        ingest.offset = ingest.answer().await?.offset;
        Ok(ingest)
    }

    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        self.responses
            .message()
            .await?
            .ok_or_else(|| Status::unavailable("the write ended early"))
    }

    async fn send(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        // If containerd has closed the stream, its response has the reason.
        let _ = self.requests.send(request).await;
        self.answer().await
    }

    async fn write(&mut self, data: Bytes) -> Result<(), Status> {
        let end = self.offset + i64::try_from(data.len()).unwrap_or_default();
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: self.offset,
            data: data.into(),
            ..WriteContentRequest::default()
        };
        self.offset = self.send(request).await?.offset;
        if self.offset == end {
            Ok(())
        } else {
            Err(Status::data_loss(format!(
                "{} of {end} bytes written",
                self.offset
            )))
        }
    }

    async fn commit(&mut self, total: i64, expected: &Digest) -> Result<(), Status> {
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total,
            expected: expected.to_string(),
            offset: self.offset,
            ..WriteContentRequest::default()
        };
        self.send(request).await.map(drop)
    }
}

/// Returns the labels of a blob in containerd.
pub(crate) async fn labels(
    session: &Session,
    digest: &Digest,
) -> Result<HashMap<String, String>, Failure> {
    let request = InfoRequest {
        digest: digest.to_string(),
    };
    let response = session
        .content()
        .info(request)
        .await
        .map_err(refused(format!("reading the labels of {digest}")))?;
    Ok(response
        .into_inner()
        .info
        .map(|info| info.labels)
        .unwrap_or_default())
}

/// Sets `labels` on a blob. Its other labels stay.
pub(crate) async fn label(
    session: &Session,
    digest: &Digest,
    labels: HashMap<String, String>,
) -> Result<(), Failure> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info {
        digest: digest.to_string(),
        labels,
        ..Info::default()
    };
    let request = UpdateRequest {
        info: Some(info),
        update_mask: Some(FieldMask { paths }),
    };
    session
        .content()
        .update(request)
        .await
        .map_err(refused(format!("labelling {digest}")))
        .map(drop)
}

fn size_of(blob: &Descriptor) -> Result<i64, Failure> {
    i64::try_from(blob.size).map_err(Failure::when(format!("the size of {}", blob.digest)))
}
