//! Upstreams of every kind, each used by a real client: registries that require a password or a
//! token, OCI layouts, docker archives.

use crate::support::docker_registry::{Access, DockerRegistry, PASSWORD, USER};
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Place, status};
use crate::support::starlift::Starlift;

fn place() -> Option<Place> {
    Place::with(&[fixture::TOOLS, &["docker-registry", "htpasswd"]].concat())
}

/// Pulls `local/NAME:1` with skopeo.
fn pull(place: &Place, server: &Starlift, name: &str) {
    place.run(&format!(
        "skopeo copy --quiet --src-tls-verify=false docker://{}/local/{name}:1 dir:{}",
        server.address,
        place.dir("pulled").display()
    ));
}

fn config_with_credentials(place: &Place, registry: &DockerRegistry, password: &str) -> String {
    let config = format!(
        "[pull]\nallowed_hosts = [\"127.0.0.1\"]\n[upstream.local]\nurl = \"http://{}\"\nusername = \"{USER}\"\npassword = \"{password}\"\n",
        registry.address
    );
    place.write("starlift.toml", config).display().to_string()
}

#[test]
fn a_registry_that_wants_a_password() {
    let Some(place) = place() else { return };
    let registry = DockerRegistry::start(&place, Access::Password);
    registry.push(&place, &Fixture::get("app"), "app", false);
    let config = config_with_credentials(&place, &registry, PASSWORD);
    let server = Starlift::start(&place, &["--wait", "25s", "--config", &config]);
    server.converted("local/app", "1");
    pull(&place, &server, "app");
}

#[test]
fn a_registry_that_wants_a_token() {
    let Some(place) = place() else { return };
    let registry = DockerRegistry::start(&place, Access::Token);
    registry.push(&place, &Fixture::get("app"), "app", false);
    let config = config_with_credentials(&place, &registry, PASSWORD);
    let before = registry.token_queries().len();
    let server = Starlift::start(&place, &["--wait", "25s", "--config", &config]);
    server.converted("local/app", "1");
    pull(&place, &server, "app");
    let asked = registry.token_queries().split_off(before);
    assert!(
        asked
            .iter()
            .all(|query| query.contains("scope=repository%3Aapp%3Apull")),
        "{asked:?}"
    );
    assert_eq!(asked.len(), 1, "the token is used again: {asked:?}");
}

#[test]
fn credentials_from_the_docker_config() {
    let Some(place) = place() else { return };
    let registry = DockerRegistry::start(&place, Access::Token);
    registry.push(&place, &Fixture::get("app"), "app", false);
    let auth = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("{USER}:{PASSWORD}"),
    );
    let config = serde_json::json!({"auths": {registry.address.to_string(): {"auth": auth}}});
    place.write("docker/config.json", config.to_string());
    let docker = place.dir("docker");
    let upstream = registry.upstream("local");
    // `allowed_hosts` with the registry's name does not cover its token endpoint, which has another
    // port.
    let config = place
        .write("starlift.toml", "[pull]\nallowed_hosts = [\"127.0.0.1\"]\n")
        .display()
        .to_string();
    let flags = [
        "--wait",
        "25s",
        "--upstream",
        &upstream,
        "--config",
        &config,
    ];
    let server = Starlift::start_with(&place, &flags, |command| {
        command.env("DOCKER_CONFIG", docker);
    });
    server.converted("local/app", "1");
    pull(&place, &server, "app");
}

#[test]
fn a_wrong_password_is_not_the_clients_problem_to_solve() {
    let Some(place) = place() else { return };
    let registry = DockerRegistry::start(&place, Access::Token);
    registry.push(&place, &Fixture::get("app"), "app", false);
    let config = config_with_credentials(&place, &registry, "wrong");
    let server = Starlift::start(&place, &["--config", &config]);
    let answer = status(&[&server.url("/v2/local/app/manifests/1")]);
    assert!(["401", "403"].contains(&answer.as_str()), "{answer}");
    assert!(
        !server.daemon.log().contains("wrong"),
        "the password is not logged\n{}",
        server.daemon.log()
    );
}

#[test]
fn an_oci_layout() {
    let Some(place) = place() else { return };
    let upstream = format!("local=oci:{}", Fixture::get("odd").dir.display());
    let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
    server.converted("local/odd", "1");
    pull(&place, &server, "odd");
}

#[test]
fn a_docker_archive() {
    let Some(place) = place() else { return };
    let archive = place.path().join("app.tar");
    place.run(&format!(
        "skopeo copy --quiet {} docker-archive:{}:app:1",
        Fixture::get("app").oci(),
        archive.display()
    ));
    let upstream = format!("local=docker-archive:{}", archive.display());
    let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
    let manifest = server.converted("local/app", "1");
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    pull(&place, &server, "app");
}
