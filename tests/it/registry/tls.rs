//! TLS: private authorities, client certificates, and no fallback to plain HTTP.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use starlift::registry::{Error, UpstreamConfig};

use super::{app, at, config, source_of, v1};
use crate::support::image::ImageBuilder;
use crate::support::registry::Registry;

/// An authority that issues a certificate for 127.0.0.1 and one for a client.
pub(super) struct Authority(tempfile::TempDir);

impl Authority {
    pub(super) fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.run("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=ours -days 2 -keyout ca.key -out ca.pem");
        std::fs::write(authority.path("names"), "subjectAltName=IP:127.0.0.1").unwrap();
        for name in ["server", "client"] {
            authority.run(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            authority.run(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
            ));
        }
        authority
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.0)
            .output();
        let output = output.expect("openssl is installed");
        assert!(
            output.status.success(),
            "{arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    pub(super) async fn registry(&self, asks_for_certificates: bool) -> Registry {
        // An error means that a provider is installed already, which is fine.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let verifier = if asks_for_certificates {
            let mut roots = RootCertStore::empty();
            roots.add(certificate(&self.path("ca.pem"))).unwrap();
            WebPkiClientVerifier::builder(Arc::new(roots))
                .build()
                .unwrap()
        } else {
            WebPkiClientVerifier::no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        let chain = vec![certificate(&self.path("server.pem"))];
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        let registry = Registry::start_tls(config).await;
        registry.push("library/app", "v1", &ImageBuilder::new(1).build());
        registry
    }
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

#[tokio::test]
async fn an_authority_is_trusted_where_it_is_configured() {
    let authority = Authority::new();
    let registry = authority.registry(false).await;
    let trusting = UpstreamConfig {
        ca_file: Some(authority.path("ca.pem")),
        ..at(registry.url())
    };
    source_of(config(), trusting)
        .manifest(&app(), &v1())
        .await
        .unwrap();
    let answer = source_of(config(), at(registry.url()))
        .manifest(&app(), &v1())
        .await;
    assert!(
        matches!(&answer, Err(Error::Unavailable(why)) if why.contains("certificate")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_configured() {
    let authority = Authority::new();
    let registry = authority.registry(true).await;
    let ca_file = || Some(authority.path("ca.pem"));
    let known = UpstreamConfig {
        ca_file: ca_file(),
        client_cert: Some(authority.path("client.pem")),
        client_key: Some(authority.path("client.key")),
        ..at(registry.url())
    };
    source_of(config(), known)
        .manifest(&app(), &v1())
        .await
        .unwrap();
    let unknown = UpstreamConfig {
        ca_file: ca_file(),
        ..at(registry.url())
    };
    let answer = source_of(config(), unknown).manifest(&app(), &v1()).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn a_redirect_out_of_tls_is_refused() {
    let authority = Authority::new();
    let registry = authority.registry(false).await;
    let plain = Registry::start().await;
    registry
        .on("/manifests/")
        .redirect(&format!("{}/v2/library/app/manifests/v1", plain.url()));
    let upstream = UpstreamConfig {
        ca_file: Some(authority.path("ca.pem")),
        ..at(registry.url())
    };
    let config = starlift::registry::Config {
        allow_private: true,
        ..config()
    };
    let answer = source_of(config, upstream).manifest(&app(), &v1()).await;
    assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn a_client_certificate_is_not_shown_where_a_redirect_leads() {
    let authority = Authority::new();
    let (registry, other) = (
        authority.registry(true).await,
        authority.registry(true).await,
    );
    registry
        .on("/manifests/")
        .redirect(&format!("{}/v2/library/app/manifests/v1", other.url()));
    let upstream = UpstreamConfig {
        ca_file: Some(authority.path("ca.pem")),
        client_cert: Some(authority.path("client.pem")),
        client_key: Some(authority.path("client.key")),
        ..at(registry.url())
    };
    let config = starlift::registry::Config {
        allow_private: true,
        ..config()
    };
    let answer = source_of(config, upstream).manifest(&app(), &v1()).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    assert!(!registry.seen().is_empty() && other.seen().is_empty());
}

#[tokio::test]
async fn leave_to_skip_verification_ends_where_a_redirect_leads() {
    let authority = Authority::new();
    let (registry, other) = (
        authority.registry(false).await,
        authority.registry(false).await,
    );
    let certs = tempfile::tempdir().unwrap();
    let directory = certs.path().join(registry.host().replace(':', "_") + "_");
    std::fs::create_dir(&directory).unwrap();
    let text = format!("server = '{}'\nskip_verify = true\n", registry.url());
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    let config = starlift::registry::Config {
        certs_dir: Some(certs.path().to_owned()),
        allow_private: true,
        ..config()
    };
    let source = starlift::transport::Upstreams::new(&config)
        .unwrap()
        .get(&registry.host())
        .unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    registry
        .on("/manifests/")
        .redirect(&format!("{}/v2/library/app/manifests/v1", other.url()));
    let answer = source.manifest(&app(), &v1()).await;
    assert!(
        matches!(&answer, Err(Error::Unavailable(why)) if why.contains("certificate")),
        "{answer:?}"
    );
    assert!(other.seen().is_empty());
}
