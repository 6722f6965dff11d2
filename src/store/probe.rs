//! Tries everything that a server does with its store, with two small objects that are deleted
//! again.

use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::PutMode;

use super::backend::Backend;
use super::config::Config;
use super::error::Error;
use super::key::Key;

/// The top of the keys of probes.
const PROBES: &str = "probe";
/// The content of the objects, and that of their replacement.
const CONTENT: &[u8] = b"starlift";
const OTHER: &[u8] = b"starlift, replaced";

/// An operation that a server needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Write,
    Read,
    List,
    /// Write an object only if there is none (`If-None-Match: *`), for leases.
    WriteIfAbsent,
    /// Replace an object only if it is unchanged (`If-Match`), for leases.
    WriteIfUnchanged,
    /// Begin and cancel an upload in parts.
    Parts,
    Delete,
}

/// The reason why an operation does not do what a server needs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("{0}")]
    Refused(String),
    /// The store answers, and ignores the condition or the content.
    #[error("{0}")]
    Wrong(&'static str),
}

/// The outcomes of all operations that were tried.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    pub(crate) outcomes: Vec<(Operation, Result<(), ProbeError>)>,
    /// The time at which the store says that an object was written, and when it was sent and
    /// confirmed by this machine's clock.
    pub(crate) written: Option<(SystemTime, SystemTime, SystemTime)>,
}

/// Opens the store that the configuration names and tries it.
///
/// # Errors
/// If the location is not usable at all. Failures of single operations are in the probe.
pub(crate) async fn probe(config: &Config) -> Result<Probe, Error> {
    let backend = super::backend_of(config)?;
    let name = format!("doctor-{:016x}", rand::random::<u64>());
    let keys = [
        Key::Probe(name.clone()),
        Key::Probe(format!("{name}-if")),
        Key::Probe(format!("{name}-parts")),
    ];
    let mut probe = Probe::default();
    probe.run(&backend, &keys).await;
    Ok(probe)
}

impl Probe {
    async fn run(&mut self, backend: &Backend, [plain, conditional, parts]: &[Key; 3]) {
        let sent = SystemTime::now();
        let written = backend.put(plain, Bytes::from_static(CONTENT)).await;
        let confirmed = SystemTime::now();
        let is_written = written.is_ok();
        self.note(Operation::Write, written.map_err(ProbeError::from));
        if !is_written {
            // Everything else would only repeat the failure.
            return;
        }
        if let Ok(Some(meta)) = backend.head(plain).await {
            self.written = Some((meta.modified, sent, confirmed));
        }
        self.note(Operation::Read, read(backend, plain).await);
        self.note(Operation::List, list(backend, plain).await);
        self.note(
            Operation::WriteIfAbsent,
            write_if_absent(backend, conditional).await,
        );
        // A folder has locks in place of conditional replacements.
        if backend.root().is_none() {
            let replaced = write_if_unchanged(backend, conditional).await;
            self.note(Operation::WriteIfUnchanged, replaced);
        }
        self.note(Operation::Parts, cancel_parts(backend, parts).await);
        self.note(Operation::Delete, delete(backend, plain).await);
        // Its failure is known already.
        let _rest = backend.delete(conditional).await;
    }

    fn note(&mut self, operation: Operation, outcome: Result<(), ProbeError>) {
        self.outcomes.push((operation, outcome));
    }
}

async fn read(backend: &Backend, key: &Key) -> Result<(), ProbeError> {
    match backend.get(key).await? {
        Some(found) if found.bytes == CONTENT => Ok(()),
        Some(_) => Err(ProbeError::Wrong(
            "an object has another content than was written",
        )),
        None => Err(ProbeError::Wrong(
            "an object that was just written is not found",
        )),
    }
}

async fn list(backend: &Backend, key: &Key) -> Result<(), ProbeError> {
    let mut listed = backend.list(PROBES);
    while let Some(one) = listed.next().await {
        if one?.key == *key {
            return Ok(());
        }
    }
    Err(ProbeError::Wrong(
        "an object that was just written is not listed",
    ))
}

async fn write_if_absent(backend: &Backend, key: &Key) -> Result<(), ProbeError> {
    let write = || backend.put_if(key, Bytes::from_static(CONTENT), PutMode::Create);
    write().await.map_err(refused)?;
    match write().await {
        Err(error) if is_condition(&error) => Ok(()),
        Err(error) => Err(refused(error)),
        Ok(_) => Err(ProbeError::Wrong(
            "the store ignores If-None-Match: it replaced an object that was not to be replaced",
        )),
    }
}

async fn write_if_unchanged(backend: &Backend, key: &Key) -> Result<(), ProbeError> {
    let Some(found) = backend.get(key).await? else {
        return Err(ProbeError::Wrong(
            "an object that was just written is not found",
        ));
    };
    let version = found.version;
    let write = || {
        let mode = PutMode::Update(version.clone());
        backend.put_if(key, Bytes::from_static(OTHER), mode)
    };
    write().await.map_err(refused)?;
    match write().await {
        Err(error) if is_condition(&error) => Ok(()),
        Err(error) => Err(refused(error)),
        Ok(_) => Err(ProbeError::Wrong(
            "the store ignores If-Match: it replaced an object that had changed",
        )),
    }
}

async fn cancel_parts(backend: &Backend, key: &Key) -> Result<(), ProbeError> {
    let mut upload = backend.multipart(key).await?;
    upload.abort().await.map_err(refused)
}

async fn delete(backend: &Backend, key: &Key) -> Result<(), ProbeError> {
    backend.delete(key).await?;
    match backend.head(key).await? {
        None => Ok(()),
        Some(_) => Err(ProbeError::Wrong("a deleted object is still there")),
    }
}

fn is_condition(error: &object_store::Error) -> bool {
    matches!(
        error,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }
    )
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function for map_err"
)]
fn refused(error: object_store::Error) -> ProbeError {
    ProbeError::Refused(error.to_string())
}
