//! Pods as `crictl` runs them on today's containerd: an image as a volume, and a user namespace.

use serde_json::{Value, json};

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, CriPull};
use crate::support::crictl::Crictl;
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture, converted, sleeping_app};
use crate::support::lazy::ON_DEMAND;
use crate::support::place::Place;
use crate::support::pods::NODE;
use crate::support::registry::Registry;

/// Returns a pod's sandbox and a sleeping container of it, in the network of the node.
fn pod(image: &str) -> [Value; 2] {
    let linux = json!({"security_context": {"namespace_options": {"network": NODE}}});
    let sandbox = json!({
        "metadata": {"name": "pod", "namespace": "default", "uid": "pod"},
        "linux": linux,
    });
    let container = json!({
        "metadata": {"name": "one"},
        "image": {"image": image},
        "command": ["/bin/sleep", "1000"],
        "linux": linux,
    });
    [sandbox, container]
}

/// Checks that containerd holds as many blobs as these images have manifests and configurations.
fn assert_no_layer_is_held(containerd: &Containerd<'_>, images: usize) {
    let held = containerd.ctr("-n k8s.io content ls -q");
    assert_eq!(held.lines().count(), 2 * images, "{held}");
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
/// the pod and the images are removed.
async fn an_image_is_a_lazy_volume_of_a_pod(by: CriPull) {
    let Some(place) = Crictl::place(fixture::TOOLS) else {
        return;
    };
    let registry = Registry::start().await;
    let odd = converted(&place, &Fixture::get("odd").dir, "odd");
    registry.push_layout("app", "v1", &sleeping_app(&place));
    registry.push_layout("volume", "v1", &odd);
    let [image, volume] = ["app", "volume"].map(|name| format!("{}/{name}:v1", registry.host()));
    let mut agent = Agent::start_with(&place, &[ON_DEMAND]);
    let containerd = Containerd::start_with_pods(&place, &agent, &image, by);
    let crictl = Crictl::new(&place, &containerd);
    for name in [&image, &volume] {
        crictl.run(&format!("pull {name}"));
    }
    assert_no_layer_is_held(&containerd, 2);
    let measured = crictl.run("imagefsinfo");
    assert!(
        measured.contains(agent.root.to_str().unwrap()),
        "{measured}"
    );

    let [sandbox, mut container] = pod(&image);
    container["mounts"] =
        json!([{"container_path": "/volume", "image": {"image": volume}, "readonly": true}]);
    let pod = crictl.run_pod(&sandbox, &container);
    let shell = |line: &str| crictl.shell(&pod, line);
    assert_eq!(shell("cat /volume/etc/precise"), "precise\n");
    agent.daemon.kill();
    let next = Agent::start_with(&place, &[ON_DEMAND]);
    drop(std::mem::replace(&mut agent, next));
    assert_eq!(shell("cat /volume/usr/share/attributes"), "attributes\n");
    assert_eq!(shell("ls /volume/usr/opaque"), "large\nshown\n");
    let written = shell("echo new > /volume/etc/precise || echo read-only");
    assert_eq!(written, "read-only\n");

    crictl.run(&format!("rmp --force {}", pod.pod));
    crictl.run(&format!("rmi {image} {volume}"));
    eventually("the layers are unmounted", || agent.lazy().is_empty());
    assert!(agent.directories().is_empty());
}

/// A pod with a user namespace (`hostUsers: false`): containerd id-maps the lazy layers and copies
/// no file.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_user_namespace_starts_lazily() {
    let Some(place) = user_namespaces() else {
        return;
    };
    let registry = Registry::start().await;
    registry.push_layout("app", "v1", &sleeping_app(&place));
    let image = format!("{}/app:v1", registry.host());
    let agent = Agent::start_with(&place, &[ON_DEMAND]);
    let more = "proxy_plugins.stargz.capabilities = [\"remap-ids\"]\n";
    let containerd = Containerd::start_with_more(&place, &agent, &image, CriPull::Local, more);
    let crictl = Crictl::new(&place, &containerd);
    crictl.run(&format!("pull {image}"));

    let map = json!([{"container_id": 0, "host_id": 200_000, "length": 65_536}]);
    let mut configurations = pod(&image);
    for configuration in &mut configurations {
        configuration["linux"]["security_context"]["namespace_options"]["userns_options"] =
            json!({"mode": 0, "uids": map, "gids": map});
    }
    let pod = crictl.run_pod(&configurations[0], &configurations[1]);
    let shell = |line: &str| crictl.shell(&pod, line);
    let mapped = shell("cat /proc/self/uid_map");
    assert_eq!(
        mapped.split_whitespace().collect::<Vec<_>>(),
        ["0", "200000", "65536"]
    );
    let owners = shell("stat -c '%u %g' /bin/busybox /etc/owned");
    assert_eq!(owners, "0 0\n1234 4321\n");
    assert_eq!(shell("cat /usr/share/old/d"), "new\n");
    assert_eq!(shell("echo mine > /etc/owned && cat /etc/owned"), "mine\n");
    assert_no_layer_is_held(&containerd, 1);
    let is_copied = |directory: &std::path::PathBuf| directory.join("fs/bin/busybox").exists();
    assert!(!agent.directories().iter().any(is_copied));
    crictl.run(&format!("rmp --force {}", pod.pod));
}

/// Returns a workspace if the kernel maps the owners of lazy layers (Linux 6.12).
fn user_namespaces() -> Option<Place> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().ok());
    let version = (numbers.next()??, numbers.next()??);
    if version < (6, 12) {
        println!("skipped, Linux {release} is older than 6.12");
        return None;
    }
    Crictl::place(fixture::TOOLS)
}
