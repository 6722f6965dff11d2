//! HTTPS with a certificate from files, which are read again on a signal.

use std::path::Path;
use std::process::Command;

use reqwest::Certificate;
use starlift::serve::TlsConfig;

use super::{Running, Stage};
use crate::support::eventually::eventually_async;

/// A request for a server's certificate. Clients would not accept the certificate of an authority
/// from a server.
const REQUEST: &str = "[req]\ndistinguished_name = name\nx509_extensions = server\n[name]\n[server]\n\
                       basicConstraints = critical, CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";

/// Writes a self-signed certificate for 127.0.0.1.
fn write_certificate(folder: &Path, name: &str) -> TlsConfig {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let config = folder.join("request.cnf");
    std::fs::write(&config, REQUEST).unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", &format!("/CN={name}"), "-config"])
        .arg(&config)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    TlsConfig {
        cert,
        key,
        client_ca: None,
    }
}

/// Whether a client that trusts only the certificate in `pem` reaches the server over HTTP/2.
async fn is_trusted(server: &Running, pem: &[u8]) -> bool {
    let authority = Certificate::from_pem(pem).unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([authority])
        .build()
        .unwrap();
    match client
        .get(format!("https://{}/v2/", server.address))
        .send()
        .await
    {
        Ok(answer) => answer.status() == 200 && answer.version() == reqwest::Version::HTTP_2,
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_on_sighup() {
    let folder = tempfile::tempdir().unwrap();
    let tls = write_certificate(folder.path(), "first");
    let first = std::fs::read(&tls.cert).unwrap();
    let stage = Stage::new().await;
    let server = stage.another(|config| config.tls = Some(tls.clone())).await;
    assert!(is_trusted(&server, &first).await);
    write_certificate(folder.path(), "second");
    let second = std::fs::read(&tls.cert).unwrap();
    assert!(!is_trusted(&server, &second).await);
    let hangup = Command::new("kill")
        .args(["-HUP", &std::process::id().to_string()])
        .status()
        .unwrap();
    assert!(hangup.success());
    eventually_async("the new certificate is served", async || {
        is_trusted(&server, &second).await
    })
    .await;
    assert!(!is_trusted(&server, &first).await);
}

#[tokio::test]
async fn a_missing_certificate_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut tls = write_certificate(folder.path(), "first");
    tls.key = folder.path().join("nothing.pem");
    let error = Stage::try_another(|config| config.tls = Some(tls))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("cert.pem"), "{error}");
}
