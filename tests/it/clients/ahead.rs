//! A registry that announces pushes: what skopeo pushes is converted before anybody pulls it.

use serde_json::Value;

use crate::support::docker_registry::DockerRegistry;
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Place, fetch, free_address, status};
use crate::support::starlift::Starlift;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn what_is_pushed_to_docker_registry_is_converted_before_the_first_pull() {
    let Some(place) = Place::with(&[fixture::TOOLS, &["docker-registry"]].concat()) else {
        return;
    };
    let address = free_address();
    let secret = place.write("secret", SECRET);
    let config = format!(
        "[upstream.local]\nurl = \"http://{address}\"\n[pull]\nallowed_hosts = [\"127.0.0.1\"]\n\
         [[serve.notifications]]\nname = \"registry\"\nupstream = \"local\"\nsecret_file = \"{}\"\n",
        secret.display()
    );
    let config = place.write("starlift.toml", config).display().to_string();
    // No pull waits: an image that was not converted ahead is the source image.
    let server = Starlift::start(&place, &["--wait", "0s", "--config", &config]);
    let notifications = server.url("/api/v1/notifications/registry");
    assert_eq!(status(&["-X", "POST", "-d", "{}", &notifications]), "401");
    let registry = DockerRegistry::announcing(&place, address, &notifications, SECRET);
    let image = Fixture::get("app");
    registry.push(&place, &image, "team/app", false);
    let mut jobs = Value::Null;
    eventually("the pushed tag is converted", || {
        let list = fetch(&server.url("/api/v1/conversions")).unwrap_or_default();
        jobs = serde_json::from_slice(&list).unwrap_or_default();
        let jobs = jobs["conversions"].as_array();
        jobs.is_some_and(|jobs| {
            jobs.iter().any(|job| {
                let name = job["reference"].as_str().unwrap_or_default();
                name.starts_with("local/team/app:1@") && job["state"] == "done"
            })
        })
    });
    let jobs = jobs["conversions"].as_array().unwrap();
    assert_eq!(
        jobs.len(),
        1,
        "layers, and manifests without a tag, are ignored: {jobs:?}"
    );
    let manifest = fetch(&server.url("/v2/local/team/app/manifests/1")).unwrap();
    let manifest = String::from_utf8(manifest).unwrap();
    assert!(
        manifest.contains("dev.starlift.source.digest"),
        "{manifest}"
    );
}
