//! What we keep: converted layers, small objects, records and leases, in a folder or a bucket.
//!
//! Records are written last and are the commit point; what no record names is swept.

pub mod key;
pub mod records;

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::oci::Digest;
pub use key::{Generation, Key};
pub use records::{ImageRecord, LayerOutcome, LayerRecord};

/// The store's part of the configuration.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A folder, or `s3://BUCKET[/PREFIX]`, `gs://…`, `az://…`.
    pub location: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { location: "starlift-store".to_owned() }
    }
}

/// Why the store cannot do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{what} failed in the store")]
    Backend {
        what: String,
        #[source]
        source: object_store::Error,
    },
    #[error("the record {key} cannot be read: {reason}")]
    Record { key: String, reason: String },
    #[error("the store's configuration: {0}")]
    Config(String),
}

/// A handle on the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {}

/// An object that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub digest: Digest,
    pub size: u64,
    /// The type it is served with; `None` for layers.
    pub media_type: Option<String>,
    pub key: Key,
}

impl Store {
    /// Opens the store at `config.location` and checks that it can be written.
    pub async fn open(_config: &Config) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The object with this digest, if a record makes it visible.
    pub async fn find(&self, _digest: &Digest) -> Result<Option<Object>, Error> {
        unimplemented!()
    }

    /// The bytes of `range`, which lies within the object.
    pub async fn read(
        &self,
        _object: &Object,
        _range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        unimplemented!()
    }

    /// All bytes of a small object.
    pub async fn read_all(&self, _object: &Object) -> Result<Bytes, Error> {
        unimplemented!()
    }

    /// Keeps a small object under its own digest and makes it visible.
    pub async fn put(&self, _media_type: &str, _bytes: Bytes) -> Result<Object, Error> {
        unimplemented!()
    }

    /// Starts the upload of the layer converted from `source`. Dropping it unfinished leaves nothing visible.
    pub async fn upload_layer(&self, _generation: &Generation, _source: &Digest) -> Result<LayerUpload, Error> {
        unimplemented!()
    }

    pub async fn layer(&self, _generation: &Generation, _source: &Digest) -> Result<Option<LayerRecord>, Error> {
        unimplemented!()
    }

    /// Commits a layer: from here on its digest is found.
    pub async fn put_layer(&self, _generation: &Generation, _record: &LayerRecord) -> Result<(), Error> {
        unimplemented!()
    }

    pub async fn image(&self, _generation: &Generation, _source: &Digest) -> Result<Option<ImageRecord>, Error> {
        unimplemented!()
    }

    /// Commits the twin of an image manifest or an index. Written last.
    pub async fn put_image(&self, _generation: &Generation, _record: &ImageRecord) -> Result<(), Error> {
        unimplemented!()
    }

    /// Takes the lease on `name` for this process, renewed until dropped; `None` while another process holds it.
    pub async fn lease(&self, _name: &str) -> Result<Option<Lease>, Error> {
        unimplemented!()
    }

    /// A URL that lets anyone read the object for `lifetime`, where the backend can sign one.
    pub async fn signed_url(&self, _object: &Object, _lifetime: Duration) -> Result<Option<url::Url>, Error> {
        unimplemented!()
    }
}

/// A layer on its way into the store.
#[derive(Debug)]
pub struct LayerUpload {}

impl LayerUpload {
    /// Appends bytes; waits while too many parts are in flight.
    pub async fn write(&mut self, _bytes: Bytes) -> Result<(), Error> {
        unimplemented!()
    }

    /// Completes the upload. The layer stays invisible until its record is put.
    pub async fn finish(self) -> Result<(), Error> {
        unimplemented!()
    }

    pub async fn abort(self) {
        unimplemented!()
    }
}

/// Held while this process alone may work on something.
#[derive(Debug)]
pub struct Lease {}
