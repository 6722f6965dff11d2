//! An independent implementation of S3: `moto_server`, which handles conditional puts correctly.

use std::process::Stdio;

use super::eventually::eventually_async;
use super::s3::BUCKET;

/// A `moto_server` on its own port, with one empty bucket.
#[derive(Debug)]
pub(crate) struct Moto {
    pub(crate) endpoint: String,
    _process: tokio::process::Child,
}

impl Moto {
    /// Starts the server. `None` if it is not installed, which is a failure if `CI` is `true`.
    pub(crate) async fn start() -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let started = tokio::process::Command::new("moto_server")
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) => {
                assert_ne!(
                    std::env::var("CI").as_deref(),
                    Ok("true"),
                    "moto_server: {error}"
                );
                println!("skipped: moto_server: {error}");
                return None;
            }
        };
        let endpoint = format!("http://127.0.0.1:{port}");
        let client = {
            let _already_named = rustls::crypto::ring::default_provider().install_default();
            reqwest::Client::new()
        };
        eventually_async("the bucket is created", async || {
            let answer = client.put(format!("{endpoint}/{BUCKET}")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        Some(Self {
            endpoint,
            _process: process,
        })
    }
}
