//! A real containerd's CRI service behind the proxy, asked as a kubelet asks.

use prost::Message as _;
use starlift::agent::cri::{CriCredentials, ImageService};
use starlift::containerd::runtime::v1::{AuthConfig, ImageSpec, PullImageRequest};
use starlift::upstream::Login;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request};

use crate::support::containerd::{self, Containerd};
use crate::support::cri::Kubelet;
use crate::support::image::ImageBuilder;
use crate::support::place::Place;
use crate::support::registry::{Auth, Registry};

fn pull(image: &str, password: &str) -> Request<bytes::Bytes> {
    let auth = AuthConfig { username: "me".to_owned(), password: password.to_owned(), ..AuthConfig::default() };
    let pull = PullImageRequest { image: Some(ImageSpec { image: image.to_owned() }), auth: Some(auth) };
    Request::new(pull.encode_to_vec().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_through_the_proxy_and_the_login_is_known() {
    let Some(place) = Place::with(containerd::TOOLS) else { return };
    let registry = Registry::start().await;
    registry.push("app", "v1", &ImageBuilder::new(1).build());
    registry.require(Auth::Basic { user: "me", password: "secret" });
    let image = format!("{}/app:v1", registry.host());
    let containerd = Containerd::start_with_cri(&place);
    let credentials = CriCredentials::default();
    let service = ImageService::new(&containerd.socket, credentials.clone()).unwrap();
    let socket = place.path().join("proxy.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let proxy = tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let kubelet = Kubelet::new(&socket);

    let refused = kubelet.call("PullImage", pull(&image, "wrong")).await.unwrap_err();
    assert!(refused.message().contains("failed to pull and unpack image"), "{refused}");
    assert!(credentials.for_image(&image).is_none());

    let answer = kubelet.call("PullImage", pull(&image, "secret")).await.unwrap().into_inner();
    assert!(answer.windows(7).any(|window| window == b"sha256:"), "the image's id: {answer:?}");
    assert!(matches!(credentials.for_image(&image), Some(Login::Password { user, .. }) if user == "me"));
    let listed = kubelet.call("ListImages", Request::new(bytes::Bytes::new())).await.unwrap().into_inner();
    assert!(listed.windows(image.len()).any(|window| window == image.as_bytes()), "{listed:?}");
    assert!(containerd.ctr("-n k8s.io images ls -q").contains(&image));
    let unknown = kubelet.call("NotYetInvented", Request::new(bytes::Bytes::new())).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    proxy.abort();
}
