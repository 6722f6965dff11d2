//! Clients that are known by their certificates: real ones, made by openssl, over real TLS.

use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Certificate;
use serde_json::Value;
use starlift::serve::{Config, TlsConfig};

use super::access::rule;
use super::profiles::{FILES, path_of, seen, stack_of};
use super::{Running, Stage};
use crate::support::certificates::{Authority, CLIENT, SERVER};
use crate::support::eventually::eventually_async;
use crate::support::image::ImageBuilder;
use crate::support::place::Place;

const TAG: &str = "/v2/local/app/manifests/v1";

/// A server with TLS whose rules are about `cert:node-1`, and its authority.
pub(crate) struct Guarded {
    /// The upstream of the server.
    _stage: Stage,
    pub(crate) server: Running,
    pub(crate) authority: Authority,
}

/// `cert:node-1` may pull and profile `local/app`, and is an administrator; `carol` may pull
/// `local/other`.
fn rules(config: &mut Config, htpasswd: std::path::PathBuf) {
    config.access.htpasswd = Some(htpasswd);
    config.access.rule = vec![
        rule(&["user:cert:node-1"], &["pull", "profiles"], &["local/app"]),
        rule(&["user:cert:node-1"], &["admin"], &["**"]),
        rule(
            &["user:cert:node-2"],
            &["pull", "profiles"],
            &["local/other"],
        ),
        rule(&["user:cert:node-3"], &["profiles"], &["local/app"]),
        rule(&["user:carol"], &["pull"], &["local/other"]),
    ];
}

impl Guarded {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with more settings.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let authority = Authority::new();
        authority.issue("server", "/CN=server", SERVER, 2);
        for name in ["node-1", "node-2", "node-3"] {
            authority.issue(name, &format!("/CN={name}"), CLIENT, 2);
        }
        let hash = bcrypt::hash("carol-secret", 4).unwrap();
        let htpasswd = authority.path("htpasswd");
        std::fs::write(&htpasswd, format!("carol:{hash}\n")).unwrap();
        let stage = Stage::new().await;
        stage.push_app();
        stage
            .registry
            .push("other", "v1", &ImageBuilder::new(2).build());
        let tls = TlsConfig {
            cert: authority.path("server.cert"),
            key: authority.path("server.key"),
            client_ca: Some(authority.path("ca.crt")),
        };
        let server = stage.another(|config| {
            config.tls = Some(tls);
            rules(config, htpasswd);
            change(config);
        });
        let server = server.await;
        Self {
            _stage: stage,
            server,
            authority,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.address)
    }

    /// A client with the certificate of this name.
    pub(crate) fn client(&self, certificate: Option<&str>) -> reqwest::Client {
        self.client_with(certificate.map(|name| self.authority.pem(name)))
    }

    fn client_with(&self, pem: Option<Vec<u8>>) -> reqwest::Client {
        let authority = std::fs::read(self.authority.path("server.ca"))
            .unwrap_or_else(|_| std::fs::read(self.authority.path("ca.crt")).unwrap());
        let authority = Certificate::from_pem(&authority).unwrap();
        let mut builder = reqwest::Client::builder().tls_certs_only([authority]);
        if let Some(pem) = pem {
            builder = builder.identity(reqwest::Identity::from_pem(&pem).unwrap());
        }
        builder.build().unwrap()
    }

    /// The status of a request; `None` if there is no connection.
    async fn status(&self, client: &reqwest::Client, path: &str) -> Option<u16> {
        let answer = client.get(self.url(path)).send().await.ok()?;
        Some(answer.status().as_u16())
    }

    /// Runs curl with the certificate of this name.
    async fn curl(&self, name: &str, path: &str) -> Output {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
            .arg(self.authority.path("ca.crt"))
            .arg("--cert")
            .arg(self.authority.path(&format!("{name}.cert")))
            .arg("--key")
            .arg(self.authority.path(&format!("{name}.key")))
            .arg(self.url(path));
        let output = tokio::task::spawn_blocking(move || command.output());
        output.await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_certificate_is_a_user_that_rules_name_and_others_come_without() {
    let guarded = Guarded::start().await;
    let (one, two, none) = (
        guarded.client(Some("node-1")),
        guarded.client(Some("node-2")),
        guarded.client(None),
    );
    let other = "/v2/local/other/manifests/v1";
    for (client, path, expected) in [
        (&one, TAG, 200),
        (&two, TAG, 401),
        (&none, TAG, 401),
        (&one, other, 401),
        (&two, other, 200),
        (&one, "/api/v1/status", 200),
        (&two, "/api/v1/status", 401),
        (&none, "/api/v1/status", 401),
        (&none, "/healthz", 200),
    ] {
        let status = guarded.status(client, path).await;
        assert_eq!(status, Some(expected), "{path}");
    }
    // Credentials of the request count before the certificate of its connection.
    let carol = |client: &reqwest::Client, path: &str| {
        let password = format!("Basic {}", STANDARD.encode("carol:carol-secret"));
        let request = client
            .get(guarded.url(path))
            .header("authorization", password);
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(carol(&one, other).await, 200);
    assert_eq!(carol(&none, other).await, 200);
    assert_eq!(carol(&one, TAG).await, 403);
}

#[tokio::test]
async fn the_token_endpoint_gives_a_certificates_client_a_token_of_its_name() {
    let guarded = Guarded::start().await;
    let client = guarded.client(Some("node-1"));
    // Without a challenge here, clients that have a password too would never send it.
    let ping = client.get(guarded.url("/v2/")).send().await.unwrap();
    assert_eq!(ping.status(), 401);
    let challenge = ping.headers()["www-authenticate"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(challenge.contains(&guarded.url("/token")), "{challenge}");
    let answer = client.get(guarded.url("/token")).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let token = format!("Bearer {}", answer["token"].as_str().unwrap());
    // The token needs no certificate.
    let request = guarded.client(None).get(guarded.url(TAG));
    let pulled = request.header("authorization", token).send().await.unwrap();
    assert_eq!(pulled.status(), 200);
}

#[tokio::test]
async fn a_name_is_the_only_uri_else_the_common_name_else_the_only_dns_name() {
    let guarded = Guarded::start().await;
    let alternative = |names: &str| format!("{CLIENT}subjectAltName = {names}\n");
    let cases = [
        ("/CN=other", alternative("URI:node-1"), 200),
        ("/CN=other", alternative("URI:node-1,DNS:a.example"), 200),
        ("/CN=node-1", alternative("URI:spiffe://example/x"), 401),
        ("/CN=node-1", alternative("URI:node-1,URI:node-1"), 401),
        ("/CN=node-1", alternative("DNS:other.example"), 200),
        ("/CN=node-1/CN=other", CLIENT.to_owned(), 401),
        ("/O=node-1", alternative("DNS:node-1"), 200),
        ("/O=node-1", alternative("DNS:node-1,DNS:node-4"), 401),
        ("/O=node-1", CLIENT.to_owned(), 401),
        // A certificate without a purpose is for every purpose.
        (
            "/CN=node-1",
            "basicConstraints = CA:FALSE\n".to_owned(),
            200,
        ),
    ];
    for (subject, extensions, expected) in cases {
        guarded.authority.issue("client", subject, &extensions, 2);
        let client = guarded.client(Some("client"));
        let status = guarded.status(&client, TAG).await;
        assert_eq!(status, Some(expected), "{subject} {extensions}");
    }
}

#[tokio::test]
async fn expired_foreign_and_misused_certificates_end_the_handshake() {
    let guarded = Guarded::start().await;
    guarded.authority.issue("expired", "/CN=node-1", CLIENT, -1);
    guarded.authority.issue("misused", "/CN=node-1", SERVER, 2);
    let foreign = Authority::new();
    foreign.issue("node-1", "/CN=node-1", CLIENT, 2);
    let own = |name: &str| guarded.authority.pem(name);
    for (pem, reason) in [
        (own("expired"), "expired"),
        (own("misused"), "another purpose"),
        (foreign.pem("node-1"), "another authority"),
    ] {
        let client = guarded.client_with(Some(pem));
        for path in [TAG, "/healthz"] {
            assert_eq!(guarded.status(&client, path).await, None, "{reason}");
        }
    }
    let fine = guarded.client(Some("node-1"));
    assert_eq!(guarded.status(&fine, TAG).await, Some(200));
}

#[tokio::test]
async fn clients_of_an_authority_that_is_gone_are_disconnected_on_sighup() {
    let guarded = Guarded::start().await;
    let client = guarded.client(Some("node-1"));
    assert_eq!(guarded.status(&client, TAG).await, Some(200));
    std::fs::copy(
        guarded.authority.path("ca.crt"),
        guarded.authority.path("server.ca"),
    )
    .unwrap();
    guarded.authority.renew();
    let hangup = Command::new("kill")
        .args(["-HUP", &std::process::id().to_string()])
        .status();
    assert!(hangup.unwrap().success());
    // The client has an open connection, which was made when its certificate counted.
    eventually_async("the client is refused", async || {
        guarded.status(&client, TAG).await.is_none()
    })
    .await;
    guarded.authority.issue("node-1", "/CN=node-1", CLIENT, 2);
    let client = guarded.client(Some("node-1"));
    assert_eq!(guarded.status(&client, TAG).await, Some(200));
}

#[tokio::test]
async fn an_authority_that_cannot_be_read_stops_the_start() {
    let authority = Authority::new();
    authority.issue("server", "/CN=server", SERVER, 2);
    for content in [None, Some(""), Some("nothing")] {
        let file = authority.path("clients.crt");
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let tls = TlsConfig {
            cert: authority.path("server.cert"),
            key: authority.path("server.key"),
            client_ca: Some(file),
        };
        let error = Stage::try_another(|config| config.tls = Some(tls)).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("serve.tls.client_ca") && error.contains("clients.crt"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn curl_and_skopeo_pull_by_their_certificates() {
    let Some(place) = Place::with(&["curl", "skopeo"]) else {
        return;
    };
    let guarded = Guarded::start().await;
    let fetched = guarded.curl("node-1", TAG).await;
    assert_eq!(fetched.stdout, b"200", "{fetched:?}");
    guarded.authority.issue("expired", "/CN=node-1", CLIENT, -1);
    let refused = guarded.curl("expired", TAG).await;
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("alert"), "{said}");
    let inspect = |name: &str| {
        let directory = place.dir(&format!("certs-{name}"));
        for (from, to) in [
            ("ca.crt", "ca.crt"),
            (&format!("{name}.cert"), "client.cert"),
            (&format!("{name}.key"), "client.key"),
        ] {
            std::fs::copy(guarded.authority.path(from), directory.join(to)).unwrap();
        }
        let mut command = place.command("skopeo");
        command
            .arg("inspect")
            .arg("--cert-dir")
            .arg(directory)
            .arg(format!("docker://{}/local/app:v1", guarded.server.address));
        let output = tokio::task::spawn_blocking(move || command.output());
        async { output.await.unwrap().unwrap() }
    };
    let inspected = inspect("node-1").await;
    assert!(inspected.status.success(), "{inspected:?}");
    assert!(!inspect("node-2").await.status.success());
}

#[tokio::test]
async fn an_observation_counts_only_from_a_sender_who_may_pull_the_image() {
    let guarded = Guarded::start().await;
    let one = guarded.client(Some("node-1"));
    let manifest = one.get(guarded.url(TAG)).send().await.unwrap();
    let stack = stack_of(&manifest.json().await.unwrap());
    let path = format!("{}?name=local/app", path_of(&stack));
    let send = async |client: &reqwest::Client| {
        let request = client
            .post(guarded.url(&path))
            .header("content-type", "application/json")
            .body(seen(&FILES).to_string());
        request.send().await.unwrap().status().as_u16()
    };
    let none = guarded.client(None);
    assert_eq!(send(&none).await, 401);
    for stranger in ["node-2", "node-3"] {
        let stranger = guarded.client(Some(stranger));
        assert_eq!(send(&stranger).await, 401, "{stranger:?}");
    }
    assert_eq!(send(&one).await, 202);
    // Another image's name gives no right to this one.
    let two = guarded.client(Some("node-2"));
    let pulled = guarded.status(&two, "/v2/local/other/manifests/v1").await;
    assert_eq!(pulled, Some(200));
    let path = format!("{}?name=local/other", path_of(&stack));
    let answer = two.get(guarded.url(&path)).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    // To read a profile takes only the right to profiles.
    let three = guarded.client(Some("node-3"));
    let path = format!("{}?name=local/app", path_of(&stack));
    let read = async || guarded.status(&three, &path).await == Some(200);
    eventually_async("the profile is read", read).await;
}
