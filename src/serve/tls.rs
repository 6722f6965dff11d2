//! The TLS of the server: its certificate, and the authorities of its clients' certificates. The
//! files are read again when they have changed.
//!
//! A client need not show a certificate. One that does not count ends the handshake.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::Signal;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::telemetry::limit::LineLimit;
use crate::telemetry::log::chain;
use crate::tls_provider;

use super::access::ClientCertificate;
use super::config::TlsConfig;
use super::linger::Lingering;

/// How often the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Log lines about certificates, which clients can cause at any rate.
static LINES: LineLimit = LineLimit::new();

/// Why a file of the TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot use the certificate {} and its key", cert.display())]
    Certificate {
        cert: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("serve.tls.client_ca: {} has no usable certificates of authorities", file.display())]
    ClientAuthorities {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The TLS settings, and the files that they come from. Clones share the settings.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    files: TlsConfig,
    pub(super) config: RustlsConfig,
    pub(super) authorities: Arc<Authorities>,
}

/// The authorities of clients, as connections see them.
#[derive(Debug, Default)]
pub(super) struct Authorities(Mutex<CancellationToken>);

impl Authorities {
    /// Cancelled when the authorities have changed. Taken before the handshake.
    pub(super) fn changed(&self) -> CancellationToken {
        self.0.lock().clone()
    }

    fn change(&self) {
        std::mem::take(&mut *self.0.lock()).cancel();
    }
}

impl Tls {
    pub(super) async fn open(files: &TlsConfig) -> Result<Self, TlsError> {
        let config = RustlsConfig::from_config(read(files).await?);
        Ok(Self {
            files: files.clone(),
            config,
            authorities: Arc::default(),
        })
    }

    /// Reads the files again on SIGHUP, and when they have changed. Unusable files change nothing.
    pub(super) async fn renew(self, mut hangups: Signal) {
        let mut ticks = interval(CHECK_INTERVAL);
        // The first tick is immediate, and the files have just been read.
        ticks.tick().await;
        let mut seen = modified(&self.files).await;
        let mut authorities = content(self.files.client_ca.as_deref()).await;
        loop {
            let is_asked = tokio::select! {
                _ = hangups.recv() => true,
                _ = ticks.tick() => false,
            };
            let now = modified(&self.files).await;
            if !is_asked && now == seen {
                continue;
            }
            seen = now;
            let found = content(self.files.client_ca.as_deref()).await;
            let cert = self.files.cert.display();
            match read(&self.files).await {
                Ok(config) => {
                    self.config.reload_from_config(config);
                    tracing::info!(%cert, "the certificate is read again");
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the certificate stays as it was");
                    continue;
                }
            }
            if found != authorities {
                authorities = found;
                // Nobody stays connected by an authority that is gone.
                self.authorities.change();
            }
        }
    }
}

async fn read(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let files = files.clone();
    let unusable = |source| TlsError::Certificate {
        cert: files.cert.clone(),
        source,
    };
    let read = {
        let files = files.clone();
        tokio::task::spawn_blocking(move || build(&files))
    };
    read.await
        .map_err(|error| unusable(io::Error::other(error)))?
}

/// Blocking.
fn build(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    tls_provider::install();
    let unusable = |source: io::Error| TlsError::Certificate {
        cert: files.cert.clone(),
        source,
    };
    let builder = ServerConfig::builder();
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let unusable = |source| TlsError::ClientAuthorities {
                file: file.clone(),
                source,
            };
            let roots = Arc::new(authorities(file).map_err(unusable)?);
            let verifier = WebPkiClientVerifier::builder(roots).allow_unauthenticated();
            let verifier = verifier
                .build()
                .map_err(|error| unusable(io::Error::other(error)))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certificates(&files.cert).map_err(unusable)?;
    let key = PrivateKeyDer::from_pem_file(&files.key);
    let key = key.map_err(|error| unusable(io::Error::other(error)))?;
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unusable(io::Error::other(error)))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file).map_err(io::Error::other)?;
    certificates
        .map(|one| one.map_err(io::Error::other))
        .collect()
}

fn authorities(file: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(io::Error::other)?;
    }
    Ok(roots)
}

async fn modified(files: &TlsConfig) -> [Option<SystemTime>; 3] {
    let time = async |path: Option<&Path>| {
        tokio::fs::metadata(path?)
            .await
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    [
        time(Some(&files.cert)).await,
        time(Some(&files.key)).await,
        time(files.client_ca.as_deref()).await,
    ]
}

async fn content(file: Option<&Path>) -> Option<Vec<u8>> {
    tokio::fs::read(file?).await.ok()
}

/// The client's certificate, if it has shown one whose name can be used.
pub(super) fn client(connection: &ServerConnection, peer: SocketAddr) -> Option<ClientCertificate> {
    let shown = connection.peer_certificates()?.first()?;
    let certificate = ClientCertificate::read(shown);
    if certificate.is_none()
        && let Some(dropped) = LINES.pass()
    {
        tracing::warn!(%peer, dropped, "client certificate without one usable name");
    }
    certificate
}

/// Shakes hands with a client.
///
/// A client that is refused gets the time to read the reason: its request may be on the way already,
/// and a connection that is closed then is reset.
///
/// # Errors
/// If the client is refused, or the handshake takes longer than `limit`.
pub(super) async fn accept<S>(
    config: &RustlsConfig,
    stream: S,
    limit: Duration,
) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(config.get_inner());
    match timeout(limit, acceptor.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, stream))) => {
            let _gone = Lingering::new(stream).shutdown().await;
            Err(error)
        }
        Err(elapsed) => Err(elapsed.into()),
    }
}

/// Logs that a handshake has failed because of the client's certificate.
pub(super) fn note_refused(error: &io::Error, peer: SocketAddr) {
    let cause = error.get_ref().and_then(|error| error.downcast_ref());
    if let Some(rustls::Error::InvalidCertificate(reason)) = cause
        && let Some(dropped) = LINES.pass()
    {
        tracing::warn!(%peer, %reason, dropped, "client certificate refused");
    }
}
