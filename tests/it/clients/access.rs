//! Real clients of two teams pull through one server, each by its own credentials for the registry,
//! which the server passes on. Both images have a layer in common.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::crictl::Crictl;
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::dockerd::{self, Dockerd};
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Place, status};
use crate::support::starlift::Starlift;

const TOOLS: &[&str] = &["docker-registry"];
/// The registry's name in images.
const NAME: &str = "registry.example.test";
const A: (&str, &str, &str) = ("anna", "anna-secret", "team-a/");
const B: (&str, &str, &str) = ("bert", "bert-secret", "team-b/");

/// A registry with a token endpoint, and a server that passes credentials on to it.
struct Teams {
    server: Starlift,
    registry: DockerRegistry,
}

impl Teams {
    fn start(place: &Place) -> Self {
        let registry = DockerRegistry::start(place, Access::Token);
        let app = Fixture::get("app");
        registry.push(place, &app, "team-a/app", false);
        registry.push(place, &with_another_layer(place, &app), "team-b/app", false);
        for (user, password, path) in [A, B] {
            registry.allow(user, password, path);
        }
        let config = format!(
            "[serve.access]\nremember = '1s'\n\
             [[serve.access.rule]]\nwho = ['upstream']\nmay = ['pull', 'profiles']\nimages = ['{NAME}/**']\n\
             [pull]\nallowed_hosts = ['127.0.0.1']\n\
             [upstream.'{NAME}']\nurl = 'http://{}'\n",
            registry.address
        );
        let config = place.write("starlift.toml", config);
        let arguments = ["--wait", "25s", "--config", config.to_str().unwrap()];
        let server = Starlift::start(place, &arguments);
        Self { server, registry }
    }

    /// Returns the name of a team's image for clients.
    fn image(&self, (.., path): (&str, &str, &str)) -> String {
        format!("{}/{NAME}/{path}app:1", self.server.address)
    }
}

/// Returns an image with the layers of another one, and one more.
fn with_another_layer(place: &Place, image: &Fixture) -> Fixture {
    let dir = place.path().join("derived");
    place.run(&format!("cp -r {} {}", image.dir.display(), dir.display()));
    let file = place.write("secret-of-team-b", "b");
    place.run(&format!(
        "umoci insert --image {}:1 {} /secret-of-team-b",
        dir.display(),
        file.display()
    ));
    Fixture { dir }
}

/// Whether a command succeeds.
fn succeeds(place: &Place, line: &str) -> bool {
    let mut words = line.split_whitespace();
    let mut command = place.command(words.next().unwrap());
    command.args(words).output().unwrap().status.success()
}

#[test]
fn skopeo_and_crane_read_their_own_teams_images_until_access_is_withdrawn() {
    let Some(place) = Place::with_clients(&["crane"], &[fixture::TOOLS, TOOLS].concat()) else {
        return;
    };
    let teams = Teams::start(&place);
    let copy = |(user, password, _): (&str, &str, &str), image: &str| {
        let target: PathBuf = place
            .path()
            .join(format!("copy-{:x}", rand::random::<u64>()));
        let line = format!(
            "skopeo copy --quiet --src-tls-verify=false --src-creds {user}:{password} docker://{image} oci:{}:1",
            target.display()
        );
        succeeds(&place, &line)
    };
    let crane = |(user, password, _): (&str, &str, &str), image: &str| {
        let host = teams.server.address;
        let login = format!("crane --insecure auth login {host} -u {user} -p {password}");
        assert!(succeeds(&place, &login), "{user}");
        succeeds(&place, &format!("crane --insecure manifest {image}"))
            && succeeds(
                &place,
                &format!("crane --insecure export {image} {}", "/dev/null"),
            )
    };
    for (team, image, expected) in [(A, A, true), (B, B, true), (A, B, false), (B, A, false)] {
        let name = teams.image(image);
        assert_eq!(copy(team, &name), expected, "skopeo, {} and {name}", team.0);
        assert_eq!(crane(team, &name), expected, "crane, {} and {name}", team.0);
    }
    let url = teams
        .server
        .url(&format!("/v2/{NAME}/team-a/app/manifests/1"));
    assert_eq!(status(&[&url]), "401");
    let digest = place.run(&format!(
        "skopeo inspect --tls-verify=false --creds {}:{} --format {{{{.Digest}}}} docker://{}",
        A.0,
        A.1,
        teams.image(A)
    ));
    let by_digest = format!(
        "{}@{}",
        teams.image(A).trim_end_matches(":1"),
        digest.trim()
    );
    assert!(copy(A, &by_digest) && !copy(B, &by_digest));
    teams.registry.withdraw(A.0);
    eventually("the withdrawal holds", || !copy(A, &by_digest));
    assert!(copy(B, &teams.image(B)));
}

#[test]
fn the_docker_engine_logs_in_and_reads_its_own_teams_images() {
    let tools = [fixture::TOOLS, TOOLS, dockerd::TOOLS].concat();
    let Some(place) = Place::with(&tools) else {
        return;
    };
    let teams = Teams::start(&place);
    let dockerd = Dockerd::start(&place, &[]);
    assert!(!dockerd.succeeds(&format!("pull -q {}", teams.image(B))));
    dockerd.docker(&format!(
        "login -u {} -p {} {}",
        B.0, B.1, teams.server.address
    ));
    dockerd.docker(&format!("pull -q {}", teams.image(B)));
    assert!(!dockerd.succeeds(&format!("pull -q {}", teams.image(A))));
}

on_each_release!(containerd_sends_the_credentials_of_a_pull);

fn containerd_sends_the_credentials_of_a_pull(release: Release) {
    let Some(place) = release.place(&[fixture::TOOLS, TOOLS].concat()) else {
        return;
    };
    let teams = Teams::start(&place);
    let containerd = Containerd::start(&place);
    let pull = |(user, password, _): (&str, &str, &str), image: &str| {
        format!(
            "ctr -a {} images pull --plain-http --user {user}:{password} {image}",
            containerd.socket.display()
        )
    };
    assert!(succeeds(&place, &pull(B, &teams.image(B))));
    assert!(!succeeds(&place, &pull(B, &teams.image(A))));

    // As a mirror, the node's own credentials.
    let basic = STANDARD.encode(format!("{}:{}", A.0, A.1));
    let hosts = format!(
        "server = \"https://{NAME}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\".header]\nAuthorization = [\"Basic {basic}\"]\n",
        teams.server.address, teams.server.address
    );
    place.write(&format!("hosts/{NAME}/hosts.toml"), hosts);
    let mirrored = |path: &str| {
        format!(
            "ctr -a {} images pull --hosts-dir {} {NAME}/{path}app:1",
            containerd.socket.display(),
            place.dir("hosts").display()
        )
    };
    assert!(succeeds(&place, &mirrored(A.2)));
    assert!(!succeeds(&place, &mirrored(B.2)));
}

#[test]
fn the_credentials_of_a_cri_pull_reach_the_server() {
    let Some(place) = Crictl::place(&[fixture::TOOLS, TOOLS].concat()) else {
        return;
    };
    let teams = Teams::start(&place);
    let containerd = Containerd::start_with_cri(&place);
    let pull = |(user, password, _): (&str, &str, &str), image: &str| {
        format!(
            "crictl --image-endpoint unix://{} pull --creds {user}:{password} {image}",
            containerd.socket.display()
        )
    };
    assert!(succeeds(&place, &pull(A, &teams.image(A))));
    assert!(!succeeds(&place, &pull(A, &teams.image(B))));
}
