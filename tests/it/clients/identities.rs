//! Real clients that show themselves by a certificate, or by a token of an issuer as a password.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::certificates::{Authority, CLIENT, SERVER};
use crate::support::containerd::{Containerd, Release, on_each_release};
use crate::support::fixture::{self, Fixture};
use crate::support::issuer::{SigningKey, unix_now};
use crate::support::place::{Daemon, Place, free_address, status};
use crate::support::starlift::Starlift;

/// The upstream of the images, as clients name it.
const NAME: &str = "registry.example.test";
const ISSUER: &str = "https://kubernetes.default.svc";
const AGENT: &str = "system:serviceaccount:starlift:agent";

fn succeeds(place: &Place, line: &str) -> bool {
    let mut words = line.split_whitespace();
    let mut command = place.command(words.next().unwrap());
    command.args(words).output().unwrap().status.success()
}

/// The configuration of a server with an image, and of who may pull it.
fn config(place: &Place, who: &str, more: &str) -> PathBuf {
    let text = format!(
        "[upstream.'{NAME}']\nurl = 'oci:{}'\n[[serve.access.rule]]\nwho = ['user:{who}']\n\
         may = ['pull']\nimages = ['{NAME}/**']\n{more}",
        Fixture::get("app").dir.display()
    );
    place.write("starlift.toml", text)
}

/// A server with TLS that asks for certificates.
fn start_with_tls(place: &Place, authority: &Authority) -> (Daemon, String) {
    authority.issue("server", "/CN=server", SERVER, 2);
    let file = |name: &str| authority.path(name).display().to_string();
    let (certificate, key, ca) = (file("server.cert"), file("server.key"), file("ca.crt"));
    let tls = format!("[serve.tls]\ncert = '{certificate}'\nkey = '{key}'\nclient_ca = '{ca}'\n");
    let address = free_address().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
    command
        .args(["serve", "--listen", &address, "--wait", "25s", "--store"])
        .arg(place.path().join("store"))
        .arg("--config")
        .arg(config(place, "cert:node-1", &tls));
    let ready = format!("https://{address}/readyz");
    let is_ready = || status(&["--cacert", &ca, &ready]) == "200";
    (place.daemon("starlift", &mut command, is_ready), address)
}

on_each_release!(containerd_pulls_by_the_certificate_of_its_hosts_file);

fn containerd_pulls_by_the_certificate_of_its_hosts_file(release: Release) {
    let Some(place) = release.place(fixture::TOOLS) else {
        return;
    };
    let authority = Authority::new();
    let (server, address) = start_with_tls(&place, &authority);
    authority.issue("node-1", "/CN=node-1", CLIENT, 2);
    authority.issue("node-2", "/CN=node-2", CLIENT, 2);
    authority.issue("expired", "/CN=node-1", CLIENT, -1);
    let containerd = Containerd::start(&place);
    let pulls = |name: &str| {
        let file = |name: &str| authority.path(name).display().to_string();
        let (certificate, key) = (file(&format!("{name}.cert")), file(&format!("{name}.key")));
        let hosts = format!(
            "server = \"https://{NAME}\"\n[host.\"https://{address}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\nca = \"{}\"\n\
             client = [[\"{certificate}\", \"{key}\"]]\n",
            file("ca.crt")
        );
        place.write(&format!("hosts/{NAME}/hosts.toml"), hosts);
        let line = format!(
            "ctr -a {} images pull --hosts-dir {} {NAME}/app:1",
            containerd.socket.display(),
            place.dir("hosts").display()
        );
        succeeds(&place, &line)
    };
    assert!(!pulls("node-2"), "no rule names it");
    assert!(!pulls("expired"));
    assert!(
        server.log().contains("client certificate refused"),
        "{}",
        server.log()
    );
    assert!(pulls("node-1"));
}

fn write_keys(file: &Path, key: &SigningKey) {
    std::fs::write(file, json!({"keys": [key.jwk()]}).to_string()).unwrap();
}

#[test]
fn skopeo_and_crane_log_in_with_a_token_as_the_password() {
    let Some(place) = Place::with_clients(&["crane"], fixture::TOOLS) else {
        return;
    };
    let key = SigningKey::rsa("a");
    let keys = place.path().join("keys.json");
    write_keys(&keys, &key);
    let issuer = format!(
        "[[serve.access.issuer]]\nissuer = '{ISSUER}'\naudience = ['starlift']\nprefix = ''\n\
         jwks_file = '{}'\n",
        keys.display()
    );
    let config = config(&place, AGENT, &issuer);
    let server = Starlift::start(
        &place,
        &["--wait", "25s", "--config", config.to_str().unwrap()],
    );
    let token = |subject: &str| {
        let exp = unix_now() + 600;
        key.sign(&json!({"iss": ISSUER, "aud": "starlift", "sub": subject, "exp": exp}))
    };
    let (own, other) = (token(AGENT), token("system:serviceaccount:default:default"));
    let image = format!("{}/{NAME}/app:1", server.address);
    let inspect = |token: &str| {
        let line =
            format!("skopeo inspect --tls-verify=false --creds oidc:{token} docker://{image}");
        succeeds(&place, &line)
    };
    assert!(inspect(&own));
    assert!(!inspect(&other));
    assert!(!inspect(&own[..own.len() - 8]));
    let export = |token: &str| {
        let host = server.address;
        let login = format!("crane --insecure auth login {host} -u oidc -p {token}");
        assert!(succeeds(&place, &login));
        succeeds(
            &place,
            &format!("crane --insecure export {image} /dev/null"),
        )
    };
    assert!(export(&own));
    assert!(!export(&other));
}
