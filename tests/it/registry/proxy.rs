//! Forward proxies: plain requests, tunnels, and requests that bypass the proxy.

use std::sync::Arc;

use parking_lot::Mutex;
use starlift::registry::{Config, Error};
use starlift::transport::Upstreams;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::tls::Authority;
use super::{app, at, config, source_of, v1};
use crate::support::image::ImageBuilder;
use crate::support::registry::Registry;

const NAME: &str = "registry.corp.test:5000";

/// A proxy that connects every request to one host and ignores the requested name.
struct Proxy {
    url: String,
    /// The first line of each request.
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn to(registry: &Registry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://me:hush@{}", listener.local_addr().unwrap());
        let (asked, host) = (Arc::<Mutex<Vec<String>>>::default(), registry.host());
        let log = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, host.clone(), Arc::clone(&log)));
            }
        });
        Self { url, asked, task }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers CONNECT. Forwards all other requests unchanged, which servers accept.
async fn forward(client: TcpStream, host: String, log: Arc<Mutex<Vec<String>>>) {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await.unwrap() == 0 {
            return;
        }
    }
    let knows_us = head
        .to_ascii_lowercase()
        .contains("proxy-authorization: basic bwu6ahvzaa==");
    log.lock()
        .push(format!("{} {knows_us}", head.lines().next().unwrap()));
    let mut server = TcpStream::connect(host).await.unwrap();
    if head.starts_with("CONNECT") {
        client
            .write_all(b"HTTP/1.1 200 Established\r\n\r\n")
            .await
            .unwrap();
    } else {
        server.write_all(head.as_bytes()).await.unwrap();
    }
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut bytes = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if to_client.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { _ = up => {}, () = down => {} }
}

fn by(proxy: &Proxy) -> Config {
    let url = || proxy.url.parse().ok();
    Config {
        http_proxy: url(),
        https_proxy: url(),
        ..config()
    }
}

#[tokio::test]
async fn a_registry_that_only_the_proxy_knows_is_asked_through_it() {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    let proxy = Proxy::to(&registry).await;
    source_of(by(&proxy), at(format!("http://{NAME}")))
        .manifest(&app(), &v1())
        .await
        .unwrap();
    assert_eq!(
        proxy.asked(),
        [format!(
            "GET http://{NAME}/v2/library/app/manifests/v1 HTTP/1.1 true"
        )]
    );
}

#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    let authority = Authority::new();
    let registry = authority.registry(false).await;
    let proxy = Proxy::to(&registry).await;
    let certs = tempfile::tempdir().unwrap();
    let directory = certs.path().join("registry.corp.test_5000_");
    std::fs::create_dir(&directory).unwrap();
    // The certificate of the test is for an address, not for the name.
    std::fs::write(
        directory.join("hosts.toml"),
        format!("server = 'https://{NAME}'\nskip_verify = true\n"),
    )
    .unwrap();
    let config = Config {
        certs_dir: Some(certs.path().to_owned()),
        ..by(&proxy)
    };
    let source = Upstreams::new(&config).unwrap().get(NAME).unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(proxy.asked(), [format!("CONNECT {NAME} HTTP/1.1 true")]);
}

#[tokio::test]
async fn an_unconfigured_name_is_the_proxys_to_resolve_and_a_private_address_stays_refused() {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    let proxy = Proxy::to(&registry).await;
    let source = source_of(by(&proxy), at("http://registry.corp.test".to_owned()));
    registry
        .on("/manifests/")
        .times(1)
        .redirect("http://mirror.test/v2/library/app/manifests/v1");
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(proxy.asked().len(), 2);
    registry
        .on("/manifests/")
        .redirect("http://10.0.0.1/v2/library/app/manifests/v1");
    let answer = source.manifest(&app(), &v1()).await;
    assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
}

#[tokio::test]
async fn loopback_hosts_and_exceptions_are_asked_directly() {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    let proxy = Proxy::to(&registry).await;
    source_of(by(&proxy), at(registry.url()))
        .manifest(&app(), &v1())
        .await
        .unwrap();
    let config = Config {
        no_proxy: "corp.test".to_owned(),
        retries: 0,
        ..by(&proxy)
    };
    assert!(
        source_of(config, at(format!("http://{NAME}")))
            .manifest(&app(), &v1())
            .await
            .is_err()
    );
    assert!(proxy.asked().is_empty());
}
