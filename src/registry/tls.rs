//! The TLS settings of one upstream, besides the system's authorities.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, Identity};

use super::config::{ServerIdentity, UpstreamConfig};
use super::error::Error;
use crate::telemetry::log::chain;

/// Files with certificates and keys, all PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// Authorities to trust besides the system's.
    pub(super) authorities: Vec<PathBuf>,
    /// Client certificates; the first is presented to a server that requests one.
    pub(super) identities: Vec<KeyPair>,
    /// Whether any server certificate is accepted.
    pub(super) skip_verify: bool,
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyPair {
    pub(super) certificate: PathBuf,
    /// `None` if it is in the same file.
    pub(super) key: Option<PathBuf>,
}

impl KeyPair {
    fn configured(
        certificate: &Option<PathBuf>,
        key: &Option<PathBuf>,
    ) -> Result<Option<Self>, Error> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Self {
                certificate: certificate.clone(),
                key: Some(key.clone()),
            })),
            (None, None) => Ok(None),
            _ => Err(Error::Configuration(
                "client_cert and client_key belong together".to_owned(),
            )),
        }
    }

    /// Returns the certificate of this machine; `None` if it has none.
    pub(super) fn of_machine(identity: &ServerIdentity) -> Result<Option<Self>, Error> {
        Self::configured(&identity.client_cert, &identity.client_key)
    }
}

impl Tls {
    /// Returns the settings in an upstream's configuration; `None` if it has none.
    pub(super) fn configured(upstream: &UpstreamConfig) -> Result<Option<Self>, Error> {
        let pair = KeyPair::configured(&upstream.client_cert, &upstream.client_key)?;
        let tls = Self {
            authorities: upstream.ca_file.iter().cloned().collect(),
            identities: pair.into_iter().collect(),
            skip_verify: false,
        };
        Ok((!tls.is_plain()).then_some(tls))
    }

    /// Whether these are the default settings.
    pub(super) fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Returns all files that are read.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let pairs = self
            .identities
            .iter()
            .flat_map(|pair| [&pair.certificate].into_iter().chain(&pair.key));
        self.authorities.iter().chain(pairs).map(PathBuf::as_path)
    }

    /// Reads the certificate files. Blocking.
    pub(super) fn certificates(&self) -> Result<Vec<Certificate>, Error> {
        let mut certificates = Vec::new();
        for path in &self.authorities {
            let found = Certificate::from_pem_bundle(&read(path)?)
                .map_err(|error| unusable(path, &error))?;
            if found.is_empty() {
                return Err(Error::Configuration(format!(
                    "{} holds no certificate",
                    path.display()
                )));
            }
            certificates.extend(found);
        }
        Ok(certificates)
    }

    /// Reads the first client certificate with its key. Blocking.
    pub(super) fn identity(&self) -> Result<Option<Identity>, Error> {
        let Some(KeyPair { certificate, key }) = self.identities.first() else {
            return Ok(None);
        };
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        Identity::from_pem(&pem)
            .map(Some)
            .map_err(|error| unusable(certificate, &error))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> Error {
    Error::Configuration(format!("{}: {}", path.display(), chain(error)))
}
