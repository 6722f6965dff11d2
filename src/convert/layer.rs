//! The conversion of one layer, in one streaming pass.
//!
//! ```text
//!  async task     blocking thread                               async task
//!  body ─pieces▶ SourceReader ▶ Inflate ▶ estargz::write ▶ StoreWriter ─pieces▶ LayerUpload
//! ```
//! Both channels are short, so the slowest part sets the pace. Each part ends when a neighbour
//! does: a store that fails closes the second channel, an upstream that fails leaves the first
//! without its end mark. Nothing is visible before the caller stores the record.

use std::sync::Arc;

use bytes::Bytes;
use estargz::footer::Form;
use estargz::pool::Pool;
use estargz::write::{self, Compression, Options, Written};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::budget::{OUTPUT_PIECES, SOURCE_PIECES};
use super::channel_io::{Piece, SourceReader, StoreWriter};
use super::error::Error;
use super::pace::{Pace, Pacer};
use super::priority;
use super::status::LayerProgress;
use crate::layers::digest::from_format;
use crate::layers::inflate::Inflate;
use crate::oci::{Digest, Repository, media_type};
use crate::registry;
use crate::rewrite::reason::printable;
use crate::store::records::{ConvertedLayer, Limit};
use crate::store::{Generation, LayerOutcome, LayerUpload, Store};
use crate::telemetry::log;
use crate::transport::Source;

/// The inputs of a layer's conversion.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) source: Source,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
    pub(super) store: Store,
    pub(super) generation: Generation,
    pub(super) options: Options,
    /// The files to put at the front; empty to keep the order of the source.
    pub(super) prioritized: Vec<Vec<u8>>,
    /// Convert the layer even if it is eStargz already.
    pub(super) renew: bool,
    /// Convert the layer whatever its content, because it is not lazily readable as its annotations
    /// claim.
    pub(super) is_claimed: bool,
    pub(super) pool: Arc<Pool>,
    pub(super) max_layer_size: u64,
    pub(super) pace: Pace,
    pub(super) progress: Arc<LayerProgress>,
}

/// The outcome of the blocking thread.
enum PassOutcome {
    Blob(Box<Written>),
    /// The layer has the expected digest, and stays unchanged for this reason.
    Unfit(String, Option<Limit>),
}

impl Job {
    /// Converts the layer into the store, without its record.
    ///
    /// After an error another attempt may succeed. A fault of the layer itself is an outcome, known
    /// only once all of its bytes were hashed. `is_contended` returns whether other conversions
    /// wait for the layer's slot. Cancel safe: a dropped conversion leaves nothing visible.
    pub(super) async fn run(
        self,
        is_contended: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<LayerOutcome, Error> {
        self.progress.reset();
        let mut pacer = Pacer::new(self.pace, is_contended);
        let body = pacer
            .wait(self.source.blob(&self.repository, &self.digest, None))
            .await??;
        if body.blob_size > self.max_layer_size {
            // The manifest, whose bytes were hashed, names a smaller size. One of the two is wrong,
            // and it may be this upstream.
            return Err(registry::Error::TooLarge {
                limit: self.max_layer_size,
            }
            .into());
        }
        let mut upload = self
            .store
            .upload_layer(&self.generation, &self.digest, body.blob_size)
            .await?;
        match self.convert(body.stream, &mut upload, &mut pacer).await {
            Ok(PassOutcome::Blob(written)) => {
                upload.finish(&from_format(written.blob_digest)).await?;
                self.outcome(*written).await
            }
            Ok(PassOutcome::Unfit(reason, limit)) => {
                upload.abort().await;
                Ok(LayerOutcome::PassedThrough { reason, limit })
            }
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    async fn convert(
        &self,
        body: BoxStream<'static, Result<Bytes, registry::Error>>,
        upload: &mut LayerUpload,
        pacer: &mut Pacer<'_>,
    ) -> Result<PassOutcome, Error> {
        let (source_sender, source_receiver) = mpsc::channel(SOURCE_PIECES);
        let (output_sender, output_receiver) = mpsc::channel(OUTPUT_PIECES);
        let source = SourceReader::new(source_receiver, Arc::clone(&self.progress));
        let (options, pool) = (self.options.clone(), Arc::clone(&self.pool));
        let (output, prioritized) = (StoreWriter::new(output_sender), self.prioritized.clone());
        let (renew, is_claimed) = (self.renew, self.is_claimed);
        let keeps = move |form: Form| !(is_claimed || renew && form == Form::Estargz);
        let thread = tokio::task::spawn_blocking(move || {
            make(source, output, &options, &pool, &prioritized, keeps)
        });
        let fetch = self.fetch(body, source_sender, pacer);
        let (fetched, stored) = tokio::join!(fetch, store(output_receiver, upload));
        let made = thread.await.map_err(|_panicked| Error::BrokenOff);
        stored?;
        fetched?;
        made?.map_err(Error::Write)
    }

    /// Sends the body's pieces to the blocking thread. The end mark follows only when the
    /// upstream's bytes have the expected digest.
    async fn fetch(
        &self,
        mut body: BoxStream<'static, Result<Bytes, registry::Error>>,
        pieces: mpsc::Sender<Piece>,
        pacer: &mut Pacer<'_>,
    ) -> Result<(), Error> {
        while let Some(bytes) = pacer.wait(body.next()).await? {
            let bytes = bytes?;
            pacer.came(bytes.len());
            // If the thread stopped receiving, its own error is returned instead.
            if pieces.send(Piece::Bytes(bytes)).await.is_err() {
                return Ok(());
            }
        }
        self.progress.fetched();
        let _unheard = pieces.send(Piece::End).await;
        Ok(())
    }

    async fn outcome(&self, written: Written) -> Result<LayerOutcome, Error> {
        let external_toc = match written.external_toc {
            Some(toc) => Some(
                self.store
                    .put(media_type::OCI_LAYER_GZIP, toc.into())
                    .await?
                    .digest,
            ),
            None => None,
        };
        let compression = match self.options.compression {
            Compression::Gzip(_) => "gzip",
            Compression::Zstd(_) => "zstd",
        };
        Ok(LayerOutcome::Converted(ConvertedLayer {
            digest: from_format(written.blob_digest),
            size: written.blob_size,
            diff_id: from_format(written.diff_id),
            uncompressed_size: written.uncompressed_size,
            source_diff_id: from_format(written.source_diff_id),
            source_size: written.source_size,
            toc_digest: from_format(written.toc_digest),
            compression: compression.to_owned(),
            external_toc,
            zstd_manifest_position: written.zstd_manifest_position,
            zstd_manifest_checksum: written.zstd_manifest_checksum.map(from_format),
        }))
    }
}

/// Returns the outcome for a layer whose size in the manifest is over the limit.
pub(super) fn over_size(limit: u64) -> LayerOutcome {
    let reason = format!("over the limit of {limit} bytes");
    LayerOutcome::PassedThrough {
        reason,
        limit: Some(Limit::LayerSize(limit)),
    }
}

async fn store(mut pieces: mpsc::Receiver<Bytes>, upload: &mut LayerUpload) -> Result<(), Error> {
    while let Some(bytes) = pieces.recv().await {
        upload.write(bytes).await?;
    }
    Ok(())
}

/// Converts the layer on a blocking thread.
///
/// Every layer is read to its end before it is called unfit. Only then is it known to be the
/// requested layer, and not other bytes whose faults would be recorded for good.
fn make(
    mut source: SourceReader,
    mut output: StoreWriter,
    options: &Options,
    pool: &Pool,
    prioritized: &[Vec<u8>],
    keeps: impl Fn(Form) -> bool,
) -> Result<PassOutcome, write::Error> {
    let written = write_layer(&mut source, &mut output, options, pool, prioritized);
    let made = match written {
        Ok(written) => PassOutcome::Blob(Box::new(written)),
        Err(
            error @ (write::Error::Source(_)
            | write::Error::Tar(_)
            | write::Error::Limit { .. }
            | write::Error::Path { .. }
            | write::Error::SparseExternal),
        ) => PassOutcome::Unfit(printable(&log::chain(&error)), outgrown(&error, options)),
        Err(error) => return Err(error),
    };
    source.drain().map_err(write::Error::Source)?;
    if let Some(footer) = source.footer().filter(|footer| keeps(footer.form())) {
        return Ok(PassOutcome::Unfit(
            format!("lazily readable already ({:?})", footer.form()),
            None,
        ));
    }
    Ok(made)
}

/// Returns the configured limit that the layer exceeds, if that is the error.
fn outgrown(error: &write::Error, options: &Options) -> Option<Limit> {
    let unpacked = options.limits.max_source_bytes;
    matches!(error, write::Error::Limit { limit, .. } if *limit == unpacked)
        .then_some(Limit::UnpackedSize(unpacked))
}

fn write_layer(
    source: &mut SourceReader,
    output: &mut StoreWriter,
    options: &Options,
    pool: &Pool,
    prioritized: &[Vec<u8>],
) -> Result<Written, write::Error> {
    let tar = Inflate::new(source).map_err(write::Error::Source)?;
    let written = if prioritized.is_empty() {
        write::write(tar, &mut *output, options, pool)?
    } else {
        priority::write_prioritized(tar, &mut *output, options, pool, prioritized)?.written
    };
    std::io::Write::flush(output).map_err(write::Error::Output)?;
    Ok(written)
}
