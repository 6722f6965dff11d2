//! The proxy in front of the CRI image service, between a client and a server that both see every
//! byte.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use starlift::agent::{CriCredentials, ImageService};
use starlift::containerd::runtime::v1::{AuthConfig, ImageSpec, PullImageRequest};
use starlift::registry::{Config, Error, Login, UpstreamConfig};
use starlift::transport::{Source, Upstreams};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use crate::support::cri::{Kubelet, Raw};
use crate::support::image::ImageBuilder;
use crate::support::registry::{Auth, Registry};

/// containerd's reaction to a request.
type Answer =
    dyn Fn(Request<Bytes>) -> BoxFuture<'static, Result<Response<Bytes>, Status>> + Send + Sync;

/// containerd's side: records the paths and answers with a given function.
#[derive(Clone)]
struct Cri {
    paths: Arc<Mutex<Vec<String>>>,
    answer: Arc<Answer>,
}

impl NamedService for Cri {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for Cri {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.paths.lock().push(request.uri().path().to_owned());
        let answer = Arc::clone(&self.answer);
        let service = tower::service_fn(move |request| answer(request));
        let mut server = tonic::server::Grpc::new(Raw).max_decoding_message_size(64 << 20);
        Box::pin(async move { Ok(server.unary(service, request).await) })
    }
}

/// A kubelet, the proxy, and the path of containerd's socket.
struct Stage {
    kubelet: Kubelet,
    credentials: CriCredentials,
    containerd: PathBuf,
    servers: Vec<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (proxy, containerd) = (
            directory.path().join("proxy.sock"),
            directory.path().join("containerd.sock"),
        );
        let credentials = CriCredentials::default();
        let service = ImageService::new(&containerd, credentials.clone()).unwrap();
        let servers = vec![serve(&proxy, service)];
        Self {
            kubelet: Kubelet::new(&proxy),
            credentials,
            containerd,
            servers,
            _directory: directory,
        }
    }

    /// Starts a containerd that answers with `answer`.
    fn with<F>(answer: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static) -> (Self, Cri)
    where
        F: Future<Output = Result<Response<Bytes>, Status>> + Send + 'static,
    {
        let mut stage = Self::new();
        let answer: Arc<Answer> = Arc::new(move |request| Box::pin(answer(request)));
        let cri = Cri {
            paths: Arc::default(),
            answer,
        };
        stage.start(cri.clone());
        (stage, cri)
    }

    fn start(&mut self, cri: Cri) {
        self.servers.push(serve(&self.containerd, cri));
    }

    async fn pull(&self, image: &str, auth: AuthConfig) -> Result<Response<Bytes>, Status> {
        let image = Some(ImageSpec {
            image: image.to_owned(),
        });
        let request = PullImageRequest {
            image,
            auth: Some(auth),
        }
        .encode_to_vec();
        self.kubelet
            .call("PullImage", Request::new(request.into()))
            .await
    }

    fn knows(&self, image: &str) -> Option<String> {
        match self.credentials.for_image(image)? {
            Login::Password { user, .. } => Some(user),
            Login::Anonymous | Login::Identity(_) => None,
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

fn serve<S>(socket: &Path, service: S) -> JoinHandle<()>
where
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future: Send,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    tokio::spawn(async move { server.await.unwrap() })
}

fn user(name: &str) -> AuthConfig {
    AuthConfig {
        username: name.to_owned(),
        password: "secret".to_owned(),
        ..AuthConfig::default()
    }
}

#[tokio::test]
async fn calls_and_answers_are_forwarded_unchanged() {
    let (stage, cri) = Stage::with(async |request: Request<Bytes>| {
        assert_eq!(request.metadata().get("x-kubelet").unwrap(), "yes");
        assert_eq!(
            request
                .metadata()
                .get_bin("x-blob-bin")
                .unwrap()
                .to_bytes()
                .unwrap(),
            &b"\0\xff"[..]
        );
        let mut answer = Response::new(request.into_inner());
        answer
            .metadata_mut()
            .insert("x-containerd", "1.6".parse().unwrap());
        Ok(answer)
    });
    // Field 2 is a login. Fields 3 and 99 are unknown to the proxy. All of them must arrive.
    let pull = PullImageRequest {
        image: Some(ImageSpec {
            image: "app:1".to_owned(),
        }),
        auth: Some(user("me")),
    };
    let unknown = b"\x1a\x03abc\x9a\x06\x02\x08\x01";
    let pull = [pull.encode_to_vec().as_slice(), unknown].concat();
    let long = vec![7; 6 << 20];
    for (method, message) in [
        ("PullImage", pull),
        ("ListImages", long),
        ("NotYetInvented", b"\xff\xff".to_vec()),
    ] {
        let message = Bytes::from(message);
        let mut request = Request::new(message.clone());
        request
            .metadata_mut()
            .insert("x-kubelet", "yes".parse().unwrap());
        request.metadata_mut().insert_bin(
            "x-blob-bin",
            tonic::metadata::MetadataValue::from_bytes(b"\0\xff"),
        );
        let answer = stage.kubelet.call(method, request).await.unwrap();
        assert_eq!(answer.metadata().get("x-containerd").unwrap(), "1.6");
        assert!(answer.into_inner() == message, "{method}");
        let path = cri.paths.lock().pop();
        assert_eq!(path, Some(format!("/runtime.v1.ImageService/{method}")));
    }
    assert_eq!(stage.knows("app:1").as_deref(), Some("me"));
}

#[tokio::test]
async fn refusals_are_forwarded_and_withdraw_the_login() {
    let (stage, _cri) = Stage::with(async |request: Request<Bytes>| {
        let pull = PullImageRequest::decode(request.into_inner()).unwrap();
        match pull.auth.unwrap().username.as_str() {
            "good" => Ok(Response::new(Bytes::new())),
            _ => Err(Status::with_details(
                Code::NotFound,
                "pull access denied",
                Bytes::from_static(b"details"),
            )),
        }
    });
    let refused = async |auth| stage.pull("ghcr.io/a/b:1", auth).await.unwrap_err();
    let status = refused(user("bad")).await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "pull access denied")
    );
    assert_eq!(status.details(), b"details");
    assert_eq!(stage.knows("ghcr.io/a/b:1"), None);

    stage.pull("ghcr.io/a/b:1", user("good")).await.unwrap();
    refused(user("bad")).await;
    refused(AuthConfig::default()).await;
    assert_eq!(
        stage.knows("ghcr.io/a/b:2").as_deref(),
        Some("good"),
        "running containers may need it"
    );
}

/// Returns the registry as the agent reads from it, with the logins that kubelets sent.
fn source(registry: &Registry, credentials: &CriCredentials) -> Source {
    let upstream = UpstreamConfig {
        url: registry.url(),
        ..UpstreamConfig::default()
    };
    let config = Config {
        upstream: [(registry.host(), upstream)].into(),
        docker_config: Some("/nonexistent".into()),
        retry_delay: Duration::from_millis(1),
        ..Config::default()
    };
    Upstreams::with_logins(&config, credentials.logins())
        .unwrap()
        .get(&registry.host())
        .unwrap()
}

#[tokio::test]
async fn the_agent_logs_in_during_the_pull_and_afterwards() {
    let registry = Registry::start().await;
    registry.push("app", "v1", &ImageBuilder::new(1).build());
    registry.push("other", "v1", &ImageBuilder::new(2).build());
    registry.require(Auth::Basic {
        user: "me",
        password: "secret",
    });
    let mut stage = Stage::new();
    let source = source(&registry, &stage.credentials);
    let mounting = source.clone();
    let answer: Arc<Answer> = Arc::new(move |_request| {
        let source = mounting.clone();
        Box::pin(async move {
            let manifest = source
                .manifest(&"app".parse().unwrap(), &"v1".parse().unwrap())
                .await;
            let manifest =
                manifest.map_err(|error| Status::permission_denied(error.to_string()))?;
            Ok(Response::new(manifest.bytes))
        })
    });
    stage.start(Cri {
        paths: Arc::default(),
        answer,
    });
    let image = format!("{}/app:v1", registry.host());

    let read = async |repository: &str| {
        source
            .manifest(&repository.parse().unwrap(), &"v1".parse().unwrap())
            .await
    };
    assert!(matches!(read("app").await, Err(Error::Unauthorized)));
    let refused = stage.pull(&image, user("stranger")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    stage.pull(&image, user("me")).await.unwrap();
    read("app").await.unwrap();
    assert!(
        matches!(read("other").await, Err(Error::Unauthorized)),
        "the login was for one repository"
    );
}

#[tokio::test]
async fn an_absent_containerd_is_an_error_and_is_dialled_again() {
    let mut stage = Stage::new();
    let gone = stage.pull("app:1", user("me")).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable);
    assert!(
        gone.message().contains("CRI service does not answer"),
        "{gone}"
    );
    assert_eq!(stage.knows("app:1"), None);
    let answer: Arc<Answer> =
        Arc::new(|request| Box::pin(async { Ok(Response::new(request.into_inner())) }));
    stage.start(Cri {
        paths: Arc::default(),
        answer,
    });
    stage.pull("app:1", user("me")).await.unwrap();
    assert_eq!(stage.knows("app:1").as_deref(), Some("me"));
}
