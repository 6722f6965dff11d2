//! Real clients with credentials follow the server's redirects to signed URLs of the bucket, which
//! get no credentials: like S3, the bucket refuses requests with both.

use base64::Engine as _;

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::fixture::{self, Fixture, Layout};
use crate::support::place::{Place, fetch};
use crate::support::s3::{BUCKET, S3};
use crate::support::starlift::Starlift;

const USER: &str = "team";
const PASSWORD: &str = "password-of-the-team";
/// `PASSWORD` as `htpasswd -nbB -C 4` writes it.
const HASH: &str = "$2y$04$//Tik2Xsn3YGM5eKNXzSV.p0avFEV./WNHDDTGPnrhLnXbOvMU09W";

/// Starts a server whose image `local/image:1` only one user may pull, over a bucket with another
/// host name.
fn start(place: &Place, bucket: &S3) -> Starlift {
    let users = place.write("htpasswd", format!("{USER}:{HASH}\n"));
    let config = format!(
        "[upstream.local]\nurl = 'oci:{}'\n\
         [serve]\nredirect = true\nwait = '25s'\n\
         [serve.access]\nhtpasswd = '{}'\n\
         [[serve.access.rule]]\nwho = ['user:{USER}']\nmay = ['pull']\nimages = ['local/**']\n\
         [[serve.access.rule]]\nwho = ['anyone']\nmay = ['admin']\nimages = ['**']\n\
         [store]\nendpoint = '{}'\nregion = 'us-east-1'\nallow_http = true\n\
         access_key_id = 'key'\nsecret_access_key = 'secret'\n",
        Fixture::get("app").dir.display(),
        users.display(),
        bucket.endpoint.replace("127.0.0.1", "localhost"),
    );
    let config = place.write("starlift.toml", config);
    let store = format!("s3://{BUCKET}/fleet");
    let arguments = ["--config", config.to_str().unwrap(), "--store", &store];
    Starlift::start(place, &arguments)
}

/// Returns how many blob requests the server has answered with a redirect.
fn redirected(server: &Starlift) -> usize {
    const METRIC: &str = "starlift_blobs_total{answer=\"redirected\"} ";
    let metrics = String::from_utf8(fetch(&server.url("/metrics")).unwrap()).unwrap();
    let count = metrics.lines().find_map(|line| line.strip_prefix(METRIC));
    count.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_and_crane_follow_to_the_bucket() {
    let Some(place) = Place::with_clients(&["crane"], fixture::TOOLS) else {
        return;
    };
    let bucket = S3::start().await;
    let server = start(&place, &bucket);
    let image = format!("{}/local/image:1", server.address);
    let target = place.path().join("copy");
    place.run(&format!(
        "skopeo copy --quiet --src-tls-verify=false --src-creds {USER}:{PASSWORD} docker://{image} oci:{}:1",
        target.display()
    ));
    let layers = Layout(target).manifest("1")["layers"]
        .as_array()
        .unwrap()
        .len();
    let by_skopeo = redirected(&server);
    assert!(by_skopeo > layers, "{by_skopeo}: layers and configuration");
    let host = server.address;
    place.run(&format!(
        "crane --insecure auth login {host} -u {USER} -p {PASSWORD}"
    ));
    let archive = place.path().join("files.tar");
    place.run(&format!(
        "crane --insecure export {image} {}",
        archive.display()
    ));
    assert!(archive.metadata().unwrap().len() > 0);
    assert!(redirected(&server) >= by_skopeo + layers);
}

on_each_release!(async containerd_follows_to_the_bucket);

async fn containerd_follows_to_the_bucket(release: Release) {
    let Some(place) = release.place(fixture::TOOLS) else {
        return;
    };
    let bucket = S3::start().await;
    let server = start(&place, &bucket);
    let containerd = Containerd::start(&place);
    let image = format!("{}/local/image:1", server.address);
    containerd.ctr(&format!(
        "images pull --plain-http --user {USER}:{PASSWORD} {image}"
    ));
    let manifest = containerd.manifest(&image);
    let layers = manifest["layers"].as_array().unwrap();
    assert!(redirected(&server) >= layers.len());
    for layer in layers {
        // containerd has compared the digest.
        containerd.ctr(&format!(
            "content get {}",
            layer["digest"].as_str().unwrap()
        ));
    }
}

on_each_release!(async lazy_reads_follow_to_the_bucket);

async fn lazy_reads_follow_to_the_bucket(release: Release) {
    let Some(place) = release.place(&[fixture::TOOLS, &["ctr-remote"]].concat()) else {
        return;
    };
    let bucket = S3::start().await;
    let server = start(&place, &bucket);
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    place.write(
        "home/.docker/config.json",
        format!(
            r#"{{"auths": {{"{}": {{"auth": "{login}"}}}}}}"#,
            server.address
        ),
    );
    // Each read is a request, and none of the ranges are learned from.
    let agent = Agent::start_with(&place, &[("BACKGROUND", "off"), ("PROFILES", "false")]);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    let image = format!("{}/local/image:1", server.address);
    containerd.pull_lazily(&format!("--user {USER}:{PASSWORD} {image}"));
    let before = redirected(&server);
    assert!(before > 0, "the tails of the layers come from the bucket");
    containerd.ctr(&format!(
        "run --rm --snapshotter stargz {image} {} /bin/ls -l /",
        place.container_id("lazy")
    ));
    assert_eq!(agent.metric("starlift_agent_read_errors_total"), Some(0));
    assert!(!agent.lazy().is_empty(), "{}", agent.status());
}
