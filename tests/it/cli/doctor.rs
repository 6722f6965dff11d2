//! `starlift doctor`: each failure is injected, and found with its repair.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use serde_json::Value;

use super::Desk;
use crate::support::certificates::{Authority, SERVER};
use crate::support::moto::Moto;
use crate::support::registry::{Auth, Registry};
use crate::support::s3::{BUCKET, S3};

/// The checks of a doctor, and its exit code.
struct Findings {
    code: Option<i32>,
    checks: Vec<Value>,
}

impl Findings {
    /// The state and the text of the checks of this kind, whose text holds `piece`.
    fn of(&self, what: &str, piece: &str) -> Vec<(&str, &str)> {
        let text = |check: &'_ Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let checks = self.checks.iter();
        let found =
            checks.filter(|check| check["what"] == what && text(check, "told").contains(piece));
        found
            .map(|check| {
                (
                    check["state"].as_str().unwrap(),
                    check["told"].as_str().unwrap(),
                )
            })
            .collect()
    }

    #[track_caller]
    fn assert(&self, what: &str, piece: &str, state: &str) {
        let found = self.of(what, piece);
        assert!(
            found.iter().any(|(found, _)| *found == state),
            "{state} {what} {piece:?}: {:#?}",
            self.checks
        );
        // Every finding has its repair.
        for check in &self.checks {
            assert_eq!(check["state"] == "good", check["mend"].is_null(), "{check}");
        }
        let is_bad = self.checks.iter().any(|check| check["state"] == "bad");
        assert_eq!(self.code, Some(i32::from(is_bad)));
    }
}

async fn doctor(desk: &Desk, config: &str) -> Findings {
    std::fs::write(desk.path("starlift.toml"), config).unwrap();
    let ran = desk
        .run(&["doctor", "--json", "--config", "starlift.toml"])
        .await;
    Findings {
        code: ran.code,
        checks: serde_json::from_slice(&ran.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", ran.stderr)),
    }
}

/// A configuration with nothing to dial.
const QUIET: &str = "[pull]\nallow = [\"*\"]\n";

#[tokio::test]
async fn a_healthy_server_has_no_findings() {
    let desk = Desk::new();
    let registry = Registry::start().await;
    let config = format!("{QUIET}[upstream.local]\nurl = \"{}\"\n", registry.url());
    let findings = doctor(&desk, &config).await;
    for what in [
        "store: write",
        "store: read",
        "store: list",
        "store: write if absent",
        "store: delete",
    ] {
        findings.assert(what, "", "good");
    }
    findings.assert("clock of the store", "", "good");
    findings.assert("upstream", "local", "good");
    findings.assert("configuration", "", "good");
    assert!(
        registry
            .seen()
            .iter()
            .all(|seen| seen.path_and_query == "/v2/"),
        "no request counts as a pull"
    );
    let probes = desk.path("starlift-store/probe");
    let left = std::fs::read_dir(&probes).map_or(0, Iterator::count);
    assert_eq!(left, 0, "the probes are deleted");
    let text = desk.run(&["doctor", "--config", "starlift.toml"]).await;
    assert!(
        String::from_utf8(text.stdout)
            .unwrap()
            .contains("ok    store: write")
    );
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_found() {
    let desk = Desk::new();
    // The tests may run as root, whom permissions do not stop.
    let findings = doctor(
        &desk,
        &format!("{QUIET}[store]\nlocation = \"/proc/starlift\"\n"),
    )
    .await;
    findings.assert("store", "/proc/starlift", "bad");
}

/// A proxy in front of S3 that breaks one thing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    /// It removes the conditions of writes.
    Conditions,
    /// It forbids a method.
    Method(&'static str),
    /// Its clock is an hour ahead.
    Clock,
}

async fn proxy(endpoint: String, breaks: Breaks) -> (String, tokio::task::JoinHandle<()>) {
    async fn pass(State(state): State<Arc<(String, Breaks)>>, request: Request) -> Response {
        let (endpoint, breaks) = &*state;
        let (mut parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        let method = match parts.method {
            Method::GET if query.contains("list-type") => "LIST",
            Method::POST if query.starts_with("delete") => "DELETE",
            Method::DELETE => "DELETE",
            _ => "",
        };
        if *breaks == Breaks::Method(method) {
            let mut refusal = Response::new(Body::from("<Error><Code>AccessDenied</Code></Error>"));
            *refusal.status_mut() = StatusCode::FORBIDDEN;
            return refusal;
        }
        if *breaks == Breaks::Conditions {
            parts.headers.remove("if-none-match");
            parts.headers.remove("if-match");
        }
        let url = format!("{endpoint}{}", parts.uri);
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        parts.headers.remove("host");
        let sent = reqwest::Client::new()
            .request(parts.method, url)
            .headers(parts.headers)
            .body(body);
        let answer = sent.send().await.unwrap();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        let is_head = answer.content_length() == Some(0);
        if *breaks == Breaks::Clock && response.headers().contains_key("last-modified") {
            let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
            let later = HeaderValue::from_str(&httpdate::fmt_http_date(later)).unwrap();
            response.headers_mut().insert("last-modified", later);
        }
        if is_head {
            return response;
        }
        *response.body_mut() = Body::from(answer.bytes().await.unwrap());
        response
    }
    // An error means that a provider is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new()
        .fallback(pass)
        .with_state(Arc::new((endpoint, breaks)));
    (
        address,
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }),
    )
}

fn bucket(endpoint: &str) -> String {
    format!(
        "{QUIET}[store]\nlocation = \"s3://{BUCKET}/store\"\nendpoint = \"{endpoint}\"\nregion = \"eu-central-1\"\n\
         allow_http = true\naccess_key_id = \"key\"\nsecret_access_key = \"secret\"\n"
    )
}

const STORE: [&str; 7] = [
    "store: write",
    "store: read",
    "store: list",
    "store: write if absent",
    "store: write if unchanged",
    "store: upload in parts",
    "store: delete",
];

#[tokio::test]
async fn a_bucket_of_moto_has_all_that_a_server_needs() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let desk = Desk::new();
    let findings = doctor(&desk, &bucket(&moto.endpoint)).await;
    for what in STORE {
        findings.assert(what, BUCKET, "good");
    }
    findings.assert("clock of the store", "as here", "good");
    let missing = bucket(&moto.endpoint).replace(&format!("s3://{BUCKET}"), "s3://missing");
    doctor(&desk, &missing)
        .await
        .assert("store: write", "missing", "bad");
}

#[tokio::test]
async fn what_a_bucket_lacks_is_found() {
    let s3 = S3::start().await;
    let desk = Desk::new();
    for (breaks, what, piece) in [
        (
            Breaks::Conditions,
            "store: write if absent",
            "ignores If-None-Match",
        ),
        (
            Breaks::Conditions,
            "store: write if unchanged",
            "ignores If-Match",
        ),
        (Breaks::Method("DELETE"), "store: delete", "403"),
        (Breaks::Method("LIST"), "store: list", "403"),
        (Breaks::Clock, "clock of the store", "ahead of this machine"),
    ] {
        let (endpoint, server) = proxy(s3.endpoint.clone(), breaks).await;
        let findings = doctor(&desk, &bucket(&endpoint)).await;
        server.abort();
        findings.assert(what, piece, "bad");
    }
    doctor(&desk, &bucket(&s3.endpoint))
        .await
        .assert("store: delete", "", "good");
}

#[tokio::test]
async fn upstreams_that_are_silent_refuse_or_have_another_time_are_found() {
    let desk = Desk::new();
    let registry = Registry::start().await;
    registry.require(Auth::Basic {
        user: "robot",
        password: "right",
    });
    let url = registry.url();
    let with = |user: &str| format!("{QUIET}[upstream.local]\nurl = \"{url}\"\n{user}");
    let wrong = with("username = \"robot\"\npassword = \"wrong\"\n");
    doctor(&desk, &wrong)
        .await
        .assert("upstream", "credentials", "bad");
    let right = with("username = \"robot\"\npassword = \"right\"\n");
    doctor(&desk, &right)
        .await
        .assert("upstream", "accepts the credentials", "good");
    doctor(&desk, &with(""))
        .await
        .assert("upstream", "no credentials are configured", "fair");
    registry
        .on("/v2/")
        .with_header("date", "Sat, 01 Jan 2000 00:00:00 GMT");
    doctor(&desk, &right)
        .await
        .assert("clock of an upstream", "behind this machine", "bad");
    registry.on("/v2/").answer(404, &[]);
    doctor(&desk, &right)
        .await
        .assert("upstream", "local", "bad");
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let closed = format!("{QUIET}[upstream.local]\nurl = \"http://{closed}\"\n");
    doctor(&desk, &closed)
        .await
        .assert("upstream", "unavailable", "bad");
    let layout = format!("{QUIET}[upstream.local]\nurl = \"oci:/nowhere\"\n");
    doctor(&desk, &layout)
        .await
        .assert("upstream", "/nowhere", "fair");
    // A host of pull.allow is tried like one that is configured.
    let host = url.trim_start_matches("http://");
    let allowed = format!("[pull]\nallow = [\"{host}\"]\nplain_http_loopback = true\n");
    registry.heal();
    doctor(&desk, &allowed)
        .await
        .assert("upstream", host, "fair");
}

#[tokio::test]
async fn certificates_that_expire_are_for_other_names_or_have_another_key_are_found() {
    let desk = Desk::new();
    let authority = Authority::new();
    let names = "basicConstraints = CA:FALSE\nsubjectAltName = DNS:starlift.example\nextendedKeyUsage = serverAuth\n";
    authority.issue("good", "/CN=a", names, 90);
    authority.issue("soon", "/CN=a", names, 2);
    authority.issue("expired", "/CN=a", names, -1);
    authority.issue("other", "/CN=a", SERVER, 90);
    let path = |name: &str| authority.path(name).display().to_string();
    let chain = [
        std::fs::read(authority.path("good.cert")).unwrap(),
        std::fs::read(authority.path("ca.crt")).unwrap(),
    ];
    std::fs::write(authority.path("chain.cert"), chain.concat()).unwrap();
    let foreign = Authority::new();
    foreign.issue("x", "/CN=a", SERVER, 1);
    let chain = [
        std::fs::read(authority.path("good.cert")).unwrap(),
        std::fs::read(foreign.path("ca.crt")).unwrap(),
    ];
    std::fs::write(authority.path("mixed.cert"), chain.concat()).unwrap();
    let with = |cert: &str, key: &str| {
        format!(
            "{QUIET}[serve]\nhosts = [\"starlift.example\"]\n[serve.tls]\ncert = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n",
            path(cert),
            path(key),
            path("ca.crt")
        )
    };
    for (cert, key, what, piece, state) in [
        (
            "chain.cert",
            "good.key",
            "key of the certificate",
            "belongs to it",
            "good",
        ),
        (
            "chain.cert",
            "good.key",
            "name of the certificate",
            "starlift.example",
            "good",
        ),
        (
            "chain.cert",
            "good.key",
            "chain of the certificate",
            "2 certificates",
            "good",
        ),
        (
            "chain.cert",
            "good.key",
            "authorities of clients",
            "expires",
            "fair",
        ),
        (
            "good.cert",
            "good.key",
            "certificate",
            "valid until",
            "good",
        ),
        (
            "good.cert",
            "good.key",
            "chain of the certificate",
            "without its issuer",
            "fair",
        ),
        ("soon.cert", "soon.key", "certificate", "expires", "fair"),
        (
            "expired.cert",
            "expired.key",
            "certificate",
            "expired",
            "bad",
        ),
        (
            "other.cert",
            "other.key",
            "name of the certificate",
            "not for starlift.example",
            "bad",
        ),
        (
            "good.cert",
            "soon.key",
            "key of the certificate",
            "soon.key",
            "bad",
        ),
        (
            "mixed.cert",
            "good.key",
            "chain of the certificate",
            "",
            "bad",
        ),
        (
            "missing.cert",
            "good.key",
            "certificate",
            "missing.cert",
            "bad",
        ),
        (
            "good.cert",
            "missing.key",
            "key of the certificate",
            "missing.key",
            "bad",
        ),
    ] {
        doctor(&desk, &with(cert, key))
            .await
            .assert(what, piece, state);
    }
}

#[tokio::test]
async fn secrets_of_notifications_and_keys_that_stop_the_start_are_found() {
    let desk = Desk::new();
    let source = "[[serve.notifications]]\nname = \"a\"\nupstream = \"docker.io\"\nsecret_file = \"/nowhere\"\n";
    let findings = doctor(&desk, &format!("{QUIET}{source}")).await;
    findings.assert("configuration", "/nowhere", "bad");
    let beyond = doctor(&desk, "[serve]\nlisten = \"0.0.0.0:8080\"\n").await;
    beyond.assert("configuration", "pull.allow is not set", "bad");
    let unknown = desk.path("unknown.toml");
    std::fs::write(&unknown, "[serve]\nlisen = 1\n").unwrap();
    assert!(
        desk.run(&["doctor", "--config", "unknown.toml"])
            .await
            .error()
            .contains("lisen")
    );
}

#[tokio::test]
async fn a_low_limit_of_descriptors_is_found() {
    let desk = Desk::new();
    std::fs::write(desk.path("starlift.toml"), QUIET).unwrap();
    let line = "ulimit -n 512; exec \"$0\" doctor --json --config starlift.toml";
    let mut shell = tokio::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_starlift");
    let shell = shell.args(["-c", line, program]).current_dir(desk.0.path());
    let output = shell.output().await.unwrap();
    let findings = Findings {
        code: output.status.code(),
        checks: serde_json::from_slice(&output.stdout).unwrap(),
    };
    findings.assert("descriptors", "512: 256 connections", "fair");
}
