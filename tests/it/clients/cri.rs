//! A real containerd's CRI service behind the proxy, called as a kubelet calls it.

use prost::Message as _;
use starlift::agent::{CriCredentials, ImageService};
use starlift::containerd::runtime::v1::{AuthConfig, ImageSpec, PullImageRequest};
use starlift::registry::Login;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request};

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, CriPull, Release, on_each_release};
use crate::support::cri::Kubelet;
use crate::support::fixture::{self, sleeping_app};
use crate::support::image::ImageBuilder;
use crate::support::pods::Pod;
use crate::support::registry::{Auth, Registry};

fn pull(image: &str, password: &str) -> Request<bytes::Bytes> {
    let auth = AuthConfig {
        username: "me".to_owned(),
        password: password.to_owned(),
        ..AuthConfig::default()
    };
    let pull = PullImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
        }),
        auth: Some(auth),
    };
    Request::new(pull.encode_to_vec().into())
}

on_each_release!(async containerd_pulls_through_the_proxy_and_the_login_is_known);

async fn containerd_pulls_through_the_proxy_and_the_login_is_known(containerd: Release) {
    let Some(place) = containerd.place(&[]) else {
        return;
    };
    let registry = Registry::start().await;
    registry.push("app", "v1", &ImageBuilder::new(1).build());
    registry.require(Auth::Basic {
        user: "me",
        password: "secret",
    });
    let image = format!("{}/app:v1", registry.host());
    let containerd = Containerd::start_with_cri(&place);
    let credentials = CriCredentials::default();
    let service = ImageService::new(&containerd.socket, credentials.clone()).unwrap();
    let socket = place.path().join("proxy.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let proxy = tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let kubelet = Kubelet::new(&socket);

    let refused = kubelet
        .call("PullImage", pull(&image, "wrong"))
        .await
        .unwrap_err();
    assert!(
        refused
            .message()
            .contains("failed to pull and unpack image"),
        "{refused}"
    );
    assert!(credentials.for_image(&image).is_none());

    let answer = kubelet
        .call("PullImage", pull(&image, "secret"))
        .await
        .unwrap()
        .into_inner();
    assert!(
        answer.windows(7).any(|window| window == b"sha256:"),
        "the image's id: {answer:?}"
    );
    assert!(
        matches!(credentials.for_image(&image), Some(Login::Password { user, .. }) if user == "me")
    );
    let listed = kubelet
        .call("ListImages", Request::new(bytes::Bytes::new()))
        .await
        .unwrap()
        .into_inner();
    assert!(
        listed
            .windows(image.len())
            .any(|window| window == image.as_bytes()),
        "{listed:?}"
    );
    assert!(containerd.ctr("-n k8s.io images ls -q").contains(&image));
    let unknown = kubelet
        .call("NotYetInvented", Request::new(bytes::Bytes::new()))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    proxy.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_lazily_on_1_6() {
    a_pod_starts_lazily_from_a_private_registry(Release::V1_6, CriPull::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_lazily_on_2_4_by_a_local_pull() {
    a_pod_starts_lazily_from_a_private_registry(Release::V2_4, CriPull::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_lazily_on_2_4_through_the_transfer_service() {
    a_pod_starts_lazily_from_a_private_registry(Release::V2_4, CriPull::Transfer).await;
}

/// A pod of a private image: pulled by a kubelet's request, mounted lazily, read with the login of
/// the pull.
async fn a_pod_starts_lazily_from_a_private_registry(containerd: Release, by: CriPull) {
    let Some(place) = containerd.place(fixture::TOOLS) else {
        return;
    };
    let registry = Registry::start().await;
    registry.push_layout("app", "v1", &sleeping_app(&place));
    registry.require(Auth::Basic {
        user: "me",
        password: "secret",
    });
    let image = format!("{}/app:v1", registry.host());
    let cri = place.path().join("ctd.sock").display().to_string();
    let settings = [("BACKGROUND", "off"), ("CRI", cri.as_str())];
    let mut agent = Agent::start_with(&place, &settings);
    let containerd = Containerd::start_with_pods(&place, &agent, &image, by);

    // The kubelet's image service is the agent's socket, its runtime containerd's.
    Kubelet::new(&agent.socket)
        .call("PullImage", pull(&image, "secret"))
        .await
        .unwrap();
    let is_transfer = containerd.daemon.log().contains("cri transfer service");
    assert_eq!(is_transfer, by == CriPull::Transfer);
    let held = containerd.ctr("-n k8s.io content ls -q");
    let layers = agent.lazy().len();
    assert!(
        layers > 0 && held.lines().count() == 2,
        "manifest and configuration, no layer: {held}\n{}",
        agent.status()
    );

    let kubelet = Kubelet::new(&containerd.socket);
    let pod = Pod::start(&kubelet, "lazy", &image, &["/bin/sleep", "1000"])
        .await
        .unwrap();
    assert_eq!(
        pod.exec(&["/bin/cat", "/usr/share/old/d"]).await.unwrap(),
        "new\n"
    );
    agent.daemon.kill();
    let next = Agent::start_with(&place, &settings);
    drop(std::mem::replace(&mut agent, next));
    // Files that were never read, through another agent, which has the login too.
    let large = pod
        .exec(&["/bin/sh", "-c", "find / -xdev -type f | xargs cat | wc -c"])
        .await
        .unwrap();
    assert!(large.trim().parse::<u64>().unwrap() > 100_000, "{large}");
    assert_eq!(agent.status()["layers"][0]["errors"], 0);
    pod.remove().await.unwrap();
    assert_eq!(agent.lazy().len(), layers);
}
