//! A real containerd's CRI service behind the proxy, called as a kubelet calls it.

use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use serde_json::json;
use starlift::agent::cri::{CriCredentials, ImageService};
use starlift::containerd::runtime::v1::{AuthConfig, ImageSpec, PullImageRequest};
use starlift::registry::Login;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request};

use crate::support::agent::Agent;
use crate::support::containerd::{self, Containerd, CriPull, Release, on_each_release};
use crate::support::cri::Kubelet;
use crate::support::fixture::{self, Fixture, Layout};
use crate::support::image::ImageBuilder;
use crate::support::lazy::ON_DEMAND;
use crate::support::place::{Place, until};
use crate::support::pods::{NODE, Pod};
use crate::support::registry::{Auth, Registry};

/// How long containerd's garbage collection may take to run.
const SOON: Duration = Duration::from_secs(60);

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
    registry.push_layout("app", "v1", &converted_image(&place));
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

/// `crictl` as a node's operator uses it: the runtime is containerd, the image service the agent.
struct Crictl<'a> {
    place: &'a Place,
    endpoints: String,
}

impl Crictl<'_> {
    fn run(&self, line: &str) -> String {
        let answer = self.place.run(&format!("crictl {} {line}", self.endpoints));
        answer.trim_end().to_owned()
    }

    /// Runs a pod with one container that sleeps and has an image as a volume at `/volume`. Returns
    /// the pod and the container.
    fn run_pod(&self, image: &str, volume: &str) -> (String, String) {
        let pod = json!({
            "metadata": {"name": "pod", "namespace": "default", "uid": "pod"},
            "linux": {"security_context": {"namespace_options": {"network": NODE}}},
        });
        let container = json!({
            "metadata": {"name": "one"},
            "image": {"image": image},
            "command": ["/bin/sleep", "1000"],
            "mounts": [{"container_path": "/volume", "image": {"image": volume}, "readonly": true}],
        });
        let pod_file = self.place.write("pod.json", pod.to_string());
        let container_file = self.place.write("container.json", container.to_string());
        let (pod_file, container_file) = (pod_file.display(), container_file.display());
        let pod = self.run(&format!("runp {pod_file}"));
        let container = self.run(&format!("create {pod} {container_file} {pod_file}"));
        self.run(&format!("start {container}"));
        (pod, container)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_a_lazy_volume_by_a_local_pull() {
    an_image_is_a_lazy_volume_of_a_pod(CriPull::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_a_lazy_volume_through_the_transfer_service() {
    an_image_is_a_lazy_volume_of_a_pod(CriPull::Transfer).await;
}

/// An image as a volume (an OCI volume source), read before and after the agent was killed. Then
/// pod and images are removed.
async fn an_image_is_a_lazy_volume_of_a_pod(by: CriPull) {
    let clients = [containerd::CLIENTS, &["crictl"]].concat();
    let Some(place) = Place::with_clients(&clients, fixture::TOOLS) else {
        return;
    };
    let registry = Registry::start().await;
    registry.push_layout("app", "v1", &converted_image(&place));
    registry.push_layout(
        "volume",
        "v1",
        &converted(&place, &Fixture::get("odd").dir, "odd"),
    );
    let [image, volume] = ["app", "volume"].map(|name| format!("{}/{name}:v1", registry.host()));
    let mut agent = Agent::start_with(&place, &[ON_DEMAND]);
    let containerd = Containerd::start_with_pods(&place, &agent, &image, by);
    let crictl = Crictl {
        place: &place,
        endpoints: format!(
            "--timeout 60s --runtime-endpoint unix://{0} --image-endpoint unix://{0}",
            containerd.socket.display()
        ),
    };
    for name in [&image, &volume] {
        crictl.run(&format!("pull {name}"));
    }
    let held = containerd.ctr("-n k8s.io content ls -q");
    assert_eq!(held.lines().count(), 4, "manifests, configurations: {held}");
    let filesystem = crictl.run("imagefsinfo");
    assert!(
        filesystem.contains(agent.root.to_str().unwrap()),
        "{filesystem}"
    );

    let (pod, container) = crictl.run_pod(&image, &volume);
    let exec = |command: &str| crictl.run(&format!("exec {container} {command}"));
    assert_eq!(exec("/bin/cat /volume/etc/precise"), "precise");
    agent.daemon.kill();
    let next = Agent::start_with(&place, &[ON_DEMAND]);
    drop(std::mem::replace(&mut agent, next));
    assert_eq!(exec("/bin/cat /volume/usr/share/attributes"), "attributes");
    assert_eq!(exec("/bin/ls /volume/usr/opaque"), "large\nshown");
    let written = "touch /volume/etc/new && echo written || echo read-only";
    let mut command = place.command("crictl");
    command.args(crictl.endpoints.split(' '));
    let output = command.args(["exec", &container, "/bin/sh", "-c", written]);
    let output = String::from_utf8(output.output().unwrap().stdout).unwrap();
    assert_eq!(output, "read-only\n");

    crictl.run(&format!("rmp --force {pod}"));
    crictl.run(&format!("rmi {image} {volume}"));
    until("the layers are unmounted", SOON, || agent.lazy().is_empty());
    assert!(agent.directories().is_empty());
}

/// Converts the image with `starlift convert`, with a command on which a sandbox can run.
fn converted_image(place: &Place) -> Layout {
    let plain = place.path().join("plain");
    place.run(&format!(
        "cp -r {} {}",
        Fixture::get("app").dir.display(),
        plain.display()
    ));
    let command =
        "--clear config.entrypoint --clear config.cmd --config.cmd /bin/sleep --config.cmd 1000";
    place.run(&format!(
        "umoci config --image {}:1 {command}",
        plain.display()
    ));
    converted(place, &plain, "converted")
}

fn converted(place: &Place, source: &Path, name: &str) -> Layout {
    let target = place.path().join(name);
    place.run(&format!(
        "{} convert oci:{}:1 oci:{}:1",
        env!("CARGO_BIN_EXE_starlift"),
        source.display(),
        target.display()
    ));
    Layout(target)
}
