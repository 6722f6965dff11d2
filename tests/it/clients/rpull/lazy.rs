//! Lazy pulls with the reference's snapshotter and with Starlift's: only the layers that a
//! snapshotter refuses are fetched.

use super::{STARLIFT, outcomes, place_with_images, pull};
use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::fixture::{Fixture, Layout};
use crate::support::place::Place;
use crate::support::stargz::Stargz;

enum Snapshotter {
    Reference(Stargz),
    Ours(Agent),
}

impl Snapshotter {
    fn plugin(&self) -> String {
        match self {
            Self::Reference(stargz) => stargz.plugin(),
            Self::Ours(agent) => agent.plugin("stargz"),
        }
    }

    fn log(&self) -> String {
        match self {
            Self::Reference(stargz) => stargz.daemon.log(),
            Self::Ours(agent) => agent.daemon.log(),
        }
    }
}

fn reference(place: &Place) -> Snapshotter {
    Snapshotter::Reference(Stargz::start(place))
}

fn ours(place: &Place) -> Snapshotter {
    Snapshotter::Ours(Agent::start(place))
}

/// Starts a registry with the converted image of `app`, and a plain layer on top if requested.
fn pushed(place: &Place, with_plain_layer: bool) -> (DockerRegistry, String, Layout) {
    let registry = DockerRegistry::start(place, Access::Anyone);
    let converted = place.path().join("converted");
    place.run(&format!(
        "{STARLIFT} convert {} oci:{}:1",
        Fixture::get("app").oci(),
        converted.display()
    ));
    if with_plain_layer {
        let file = place.write("added", "added\n");
        place.run(&format!(
            "umoci insert --image {}:1 {} /etc/added",
            converted.display(),
            file.display()
        ));
    }
    let fixture = Fixture { dir: converted };
    registry.push(place, &fixture, "image", false);
    let name = format!("{}/image:1", registry.address);
    (registry, name, fixture.layout())
}

fn a_container_runs(
    containerd: Release,
    snapshotter: fn(&Place) -> Snapshotter,
    with_plain_layer: bool,
    expected: &[&str],
    script: &str,
    said: &str,
) {
    let Some(place) = place_with_images(containerd, &["go", "fusermount"]) else {
        return;
    };
    let (_registry, image, layout) = pushed(&place, with_plain_layer);
    let snapshotter = snapshotter(&place);
    let containerd = Containerd::start_with(&place, &snapshotter.plugin());
    let pulled = pull(&place, &containerd, &image);
    assert_eq!(outcomes(&pulled), expected, "{}", snapshotter.log());
    let held = containerd.ctr("content ls -q");
    for (layer, outcome) in layout.manifest("1")["layers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(expected)
    {
        let digest = layer["digest"].as_str().unwrap();
        assert_eq!(held.contains(digest), *outcome == "unpacked", "{digest}");
    }
    // A pull without an image record would lose everything.
    containerd.collect_garbage();
    let id = place.container_id("lazy");
    assert_eq!(
        containerd.ctr(&format!(
            "run --rm --snapshotter stargz {image} {id} {script}"
        )),
        said
    );
    assert_eq!(
        outcomes(&pull(&place, &containerd, &image)),
        vec!["present"; expected.len()]
    );
}

fn an_estargz_image_is_lazy_and_outlives_the_lease(
    containerd: Release,
    snapshotter: fn(&Place) -> Snapshotter,
) {
    a_container_runs(
        containerd,
        snapshotter,
        false,
        &["lazy"; 3],
        "/bin/cat /var/lib/state/run",
        "run\n",
    );
}

fn a_plain_layer_on_top_is_all_that_is_fetched(
    containerd: Release,
    snapshotter: fn(&Place) -> Snapshotter,
) {
    let expected = ["lazy", "lazy", "lazy", "unpacked"];
    a_container_runs(
        containerd,
        snapshotter,
        true,
        &expected,
        "/bin/cat /var/lib/state/run /etc/added",
        "run\nadded\n",
    );
}

#[test]
fn an_estargz_image_is_lazy_with_the_reference() {
    an_estargz_image_is_lazy_and_outlives_the_lease(Release::V1_6, reference);
}

on_each_release!(
    an_estargz_image_is_lazy_with_our_agent,
    only_a_plain_layer_is_fetched_with_our_agent,
);

fn an_estargz_image_is_lazy_with_our_agent(containerd: Release) {
    an_estargz_image_is_lazy_and_outlives_the_lease(containerd, ours);
}

#[test]
fn only_a_plain_layer_is_fetched_with_the_reference() {
    a_plain_layer_on_top_is_all_that_is_fetched(Release::V1_6, reference);
}

fn only_a_plain_layer_is_fetched_with_our_agent(containerd: Release) {
    a_plain_layer_on_top_is_all_that_is_fetched(containerd, ours);
}
