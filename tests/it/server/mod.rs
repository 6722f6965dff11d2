//! The server with a fake registry and a store in memory, used over HTTP like a client does.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test helper fails the test"
)]

pub(crate) mod access;
mod ahead;
mod api;
mod audit;
mod blobs;
mod broken_store;
mod browsers;
mod budgets;
mod certificates;
mod conformance;
mod crash;
mod doors;
mod exposure;
mod external_toc;
mod failures;
mod held;
mod limits;
mod links;
mod lists;
mod liveness;
mod manifests;
mod memory;
mod names;
mod oidc;
mod pages;
mod panics;
mod peaks;
mod predictions;
pub(crate) mod profiles;
mod provenance;
mod ranges;
mod recorded;
mod redirects;
mod reorder;
mod replicas;
mod retention;
mod room;
mod rot;
mod stalled;
mod tags;
mod tls;
mod traces;
mod waiting;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use starlift::convert::{self, Converter};
use starlift::learn::Profiles;
use starlift::predict::Predictor;
use starlift::registry;
use starlift::serve::{Config, Server, StartError};
use starlift::store::Store;
use starlift::transport::Upstreams;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::Registry;

/// A registry, and a server that knows it as the upstream `local`.
pub(crate) struct Stage {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    upstreams: Upstreams,
    converter: Converter,
    client: reqwest::Client,
    pub(crate) server: Running,
}

/// A server in this process; dropping it ends the server.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// The address of status, page and metrics.
    pub(crate) api: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) ended: JoinHandle<std::io::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ended.abort();
    }
}

/// A completely received answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: impl reqwest::header::AsHeaderName) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn digest(&self) -> &str {
        self.header("docker-content-digest")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Returns the code of the first error.
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// Long enough for a conversion on a busy machine. No test waits for it to pass.
pub(crate) const PATIENT: Duration = Duration::from_secs(25);

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::over(Store::in_memory(), change).await
    }

    pub(crate) async fn over(store: Store, change: impl FnOnce(&mut Config)) -> Self {
        Self::converting(store, &convert::Config::default(), change).await
    }

    pub(crate) async fn converting(
        store: Store,
        convert: &convert::Config,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let converter = Converter::new(convert, store.clone()).unwrap();
        Self::predicting(store, converter, Predictor::default(), change).await
    }

    pub(crate) async fn predicting(
        store: Store,
        converter: Converter,
        predictor: Predictor,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let registry = Registry::start().await;
        Self::between(registry, &[], (store, converter, predictor), change).await
    }

    /// The same with further upstreams, by their names.
    pub(crate) async fn beside(
        store: Store,
        others: &[(&str, &Registry)],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let converter = Converter::new(&convert::Config::default(), store.clone()).unwrap();
        let registry = Registry::start().await;
        let parts = (store, converter, Predictor::default());
        Self::between(registry, others, parts, change).await
    }

    async fn between(
        registry: Registry,
        others: &[(&str, &Registry)],
        (store, converter, predictor): (Store, Converter, Predictor),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = registry::Config {
            retries: 1,
            retry_delay: Duration::from_millis(1),
            ..Default::default()
        };
        for (name, registry) in others.iter().copied().chain([("local", &registry)]) {
            config.add(&format!("{name}={}", registry.url())).unwrap();
        }
        let upstreams = Upstreams::new(&config).unwrap();
        let server = try_start(change, &store, &upstreams, &converter, predictor).await;
        let server = server.unwrap();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self {
            registry,
            store,
            upstreams,
            converter,
            client,
            server,
        }
    }

    /// Starts another server over the same store, with the same converter.
    pub(crate) async fn another(&self, change: impl FnOnce(&mut Config)) -> Running {
        start(change, &self.store, &self.upstreams, &self.converter).await
    }

    /// Tries to start a server without upstreams, for tests in which the start fails.
    pub(crate) async fn try_another(
        change: impl FnOnce(&mut Config),
    ) -> Result<Running, StartError> {
        let upstreams = Upstreams::new(&registry::Config::default()).unwrap();
        let store = Store::in_memory();
        let converter = Converter::new(&convert::Config::default(), store.clone()).unwrap();
        try_start(change, &store, &upstreams, &converter, Predictor::default()).await
    }

    /// Pushes a small image as `local/app:v1`.
    pub(crate) fn push_app(&self) -> Image {
        let image = ImageBuilder::new(1).build();
        self.registry.push("app", "v1", &image);
        image
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[]).await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.ask(Method::HEAD, path, &[]).await
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask_at(&self.server, method, path, headers).await
    }

    pub(crate) async fn ask_at(
        &self,
        server: &Running,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.ask_address(server.address, method, path, headers)
            .await
    }

    pub(crate) async fn ask_address(
        &self,
        address: SocketAddr,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = self
            .client
            .request(method, format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer {
            status,
            headers,
            body: response.bytes().await.unwrap(),
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("http://{}{path}", self.server.address))
    }

    /// Sends a GET and a HEAD, which must agree.
    pub(crate) async fn get_and_head(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let got = self.ask(Method::GET, path, headers).await;
        let head = self.ask(Method::HEAD, path, headers).await;
        assert_eq!(head.status, got.status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        for name in [CONTENT_TYPE, CONTENT_LENGTH, ETAG] {
            assert_eq!(
                head.headers.get(&name),
                got.headers.get(&name),
                "{name} of {path}"
            );
        }
        for name in [
            "docker-content-digest",
            "accept-ranges",
            "cache-control",
            "warning",
            "vary",
        ] {
            assert_eq!(
                head.headers.get(name),
                got.headers.get(name),
                "{name} of {path}"
            );
        }
        if got.status == StatusCode::OK {
            assert_eq!(
                got.header(CONTENT_LENGTH),
                got.body.len().to_string(),
                "{path}"
            );
        }
        got
    }
}

async fn start(
    change: impl FnOnce(&mut Config),
    store: &Store,
    upstreams: &Upstreams,
    converter: &Converter,
) -> Running {
    try_start(change, store, upstreams, converter, Predictor::default())
        .await
        .unwrap()
}

async fn try_start(
    change: impl FnOnce(&mut Config),
    store: &Store,
    upstreams: &Upstreams,
    converter: &Converter,
    predictor: Predictor,
) -> Result<Running, StartError> {
    let mut config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        wait: PATIENT,
        ..Config::default()
    };
    change(&mut config);
    let (store, upstreams) = (store.clone(), upstreams.clone());
    let generation = converter.generation().clone();
    let profiles = Profiles::new(store.clone(), generation, config.profiles.merge_interval);
    let profiles = profiles.predicting(predictor);
    let server = Server::bind(&config, store, upstreams, converter.clone(), profiles).await?;
    let (address, api, shutdown) = (
        server.address(),
        server.api_address(),
        CancellationToken::new(),
    );
    let ended = tokio::spawn(server.run(shutdown.clone()));
    Ok(Running {
        address,
        api,
        shutdown,
        ended,
    })
}
