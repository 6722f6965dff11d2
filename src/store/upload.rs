//! The upload of a layer into the store.
//!
//! ```text
//! write ▶ buffer up to a part ▶ parts in flight (at most four) ▶ complete
//! ```
//! A layer smaller than one part is put in one request.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::error::Error;
use super::key::{Generation, Key};
use super::room::Reservation;
use super::{Inner, Object, Store};
use crate::oci::Digest;
use crate::telemetry::traces::child_span;

/// With 8 MiB parts this keeps 100 ms round trips at over 250 MB/s and an upload under 40 MiB of
/// memory.
const PARTS_IN_FLIGHT: usize = 4;

/// A folder accepts parts of any size, and larger ones would only cost memory.
const FOLDER_PART: u64 = 1 << 20;

/// The upload of a layer into the store. If it is dropped or aborted, nothing becomes visible.
#[derive(Debug)]
pub struct LayerUpload {
    inner: Arc<Inner>,
    key: Key,
    part_size: usize,
    buffer: Vec<Bytes>,
    buffered: usize,
    written: u64,
    room: Reservation,
    /// Started when the first part is full.
    parts: Option<Parts>,
}

/// A multipart upload and its running parts. Aborted on drop unless completed.
#[derive(Debug)]
struct Parts {
    upload: Option<Box<dyn MultipartUpload>>,
    flying: JoinSet<Result<(), object_store::Error>>,
}

impl Store {
    /// Starts the upload of the layer converted from `source`, of about `expected` bytes. If it is
    /// dropped unfinished, nothing becomes visible.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room for it.
    pub async fn upload_layer(
        &self,
        generation: &Generation,
        source: &Digest,
        expected: u64,
    ) -> Result<LayerUpload, Error> {
        let room = self.reserve(expected).await?;
        let configured = self.inner.config.part_size.as_u64();
        let part_size = if self.inner.backend.root().is_some() {
            configured.min(FOLDER_PART)
        } else {
            configured
        };
        Ok(LayerUpload {
            inner: Arc::clone(&self.inner),
            key: Key::Layer {
                generation: generation.clone(),
                source: source.clone(),
            },
            part_size: usize::try_from(part_size).unwrap_or(usize::MAX).max(1),
            buffer: Vec::new(),
            buffered: 0,
            written: 0,
            room,
            parts: None,
        })
    }
}

impl LayerUpload {
    /// Appends bytes. Waits while too many parts are in flight.
    ///
    /// After an error the upload can only be aborted or dropped.
    ///
    /// # Errors
    /// [`Error::Full`] if the layer is larger than expected and does not fit.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        self.room.cover(self.written)?;
        // Parts are cut to exactly one size because some object stores demand it.
        while self.buffered + bytes.len() >= self.part_size {
            self.buffer
                .push(bytes.split_to(self.part_size - self.buffered));
            self.send_part().await?;
        }
        if !bytes.is_empty() {
            self.buffered += bytes.len();
            self.buffer.push(bytes);
        }
        Ok(())
    }

    /// Completes the upload of the layer, whose bytes have this digest. The layer stays invisible
    /// until its record is put.
    pub async fn finish(mut self, digest: &Digest) -> Result<(), Error> {
        let store = Store {
            inner: Arc::clone(&self.inner),
        };
        if self.parts.is_none() {
            let payload = PutPayload::from_iter(std::mem::take(&mut self.buffer));
            self.inner.backend.put(&self.key, payload).await?;
            self.room.keep(self.written);
            return Ok(());
        }
        if self.buffered > 0 {
            self.send_part().await?;
        }
        let Some(parts) = &mut self.parts else {
            return Ok(());
        };
        let completed = match parts.settle(0, &self.key).await {
            Ok(()) => parts.complete(&self.key).await,
            Err(error) => Err(error),
        };
        let Err(error) = completed else {
            self.room.keep(self.written);
            return Ok(());
        };
        // The answer to a completion may be lost and its repetition refused. The stored object may
        // be this upload's or the remains of an earlier one.
        let object = Object {
            digest: digest.clone(),
            size: self.written,
            media_type: None,
            key: self.key.clone(),
        };
        if matches!(store.inspect(&object, 0).await, Ok(None)) {
            self.room.keep(self.written);
            return Ok(());
        }
        self.abort().await;
        Err(error)
    }

    /// Cancels the upload and waits until its parts are deleted.
    pub async fn abort(mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        parts.flying.shutdown().await;
        if let Some(upload) = parts.upload.take() {
            discard(upload, &self.key.to_string()).await;
        }
    }

    async fn send_part(&mut self) -> Result<(), Error> {
        let payload = PutPayload::from_iter(std::mem::take(&mut self.buffer));
        self.buffered = 0;
        let parts = match &mut self.parts {
            Some(parts) => parts,
            None => {
                let upload = self.inner.backend.multipart(&self.key).await?;
                self.parts.insert(Parts {
                    upload: Some(upload),
                    flying: JoinSet::new(),
                })
            }
        };
        parts.settle(PARTS_IN_FLIGHT - 1, &self.key).await?;
        match &mut parts.upload {
            Some(upload) => {
                let span = child_span!("store", operation = "put-part", key = %self.key);
                parts
                    .flying
                    .spawn(upload.put_part(payload).instrument(span));
                Ok(())
            }
            None => Err(Error::Upload("already ended".to_owned())),
        }
    }
}

impl Parts {
    /// Waits until at most `most` parts are in flight.
    async fn settle(&mut self, most: usize, key: &Key) -> Result<(), Error> {
        while self.flying.len() > most {
            match self.flying.join_next().await {
                Some(Ok(Ok(()))) | None => {}
                Some(Ok(Err(source))) => {
                    return Err(Error::Backend {
                        what: format!("uploading {key}"),
                        source,
                    });
                }
                Some(Err(panicked)) => return Err(Error::Upload(panicked.to_string())),
            }
        }
        Ok(())
    }

    async fn complete(&mut self, key: &Key) -> Result<(), Error> {
        let Some(upload) = &mut self.upload else {
            return Ok(());
        };
        let span = child_span!("store", operation = "complete", key = %key);
        match upload.complete().instrument(span).await {
            Ok(_) => {
                self.upload = None;
                Ok(())
            }
            Err(source) => Err(Error::Backend {
                what: format!("completing {key}"),
                source,
            }),
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.flying.abort_all();
        if let (Some(upload), Ok(runtime)) =
            (self.upload.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move { discard(upload, "a dropped upload").await });
        }
    }
}

/// Discards the parts of an upload. On failure they are left to the sweep (folder) or to the
/// bucket's lifecycle rule.
async fn discard(mut upload: Box<dyn MultipartUpload>, what: &str) {
    if let Err(error) = upload.abort().await {
        tracing::debug!(what, %error, "parts of the upload not discarded");
    }
}
