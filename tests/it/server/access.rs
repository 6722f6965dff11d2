//! Who may read what: users of the server, credentials that are passed through to the upstream, and
//! anonymous clients.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use starlift::oci::Digest;
use starlift::serve::{AccessRule, Config};
use starlift::store::Store;

use super::profiles::{path_of, stack_of};
use super::{Answer, Stage};
use crate::support::eventually::eventually_async;
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::{Auth, Registry, Team};

pub(crate) const A: Team = Team {
    path: "team-a/",
    user: "alice",
    password: "alice-secret",
};
pub(crate) const B: Team = Team {
    path: "team-b/",
    user: "bob",
    password: "bob-secret",
};

/// Returns a rule from its texts.
pub(crate) fn rule(who: &[&str], may: &[&str], images: &[&str]) -> AccessRule {
    let document = json!({"who": who, "may": may, "images": images});
    serde_json::from_value(document).unwrap()
}

pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

pub(crate) fn of_team(team: &Team) -> String {
    basic(team.user, team.password)
}

/// A rule that leaves everything in the repositories of `local` to the registry.
pub(crate) fn passes_through(config: &mut Config) {
    let may = ["pull", "profiles", "warm"];
    config.access.rule = vec![rule(&["upstream"], &may, &["local/**"])];
    config.access.remember = Duration::from_millis(200);
}

/// Two images that share their first layer.
fn images() -> (Image, Image) {
    let (a, b) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    let document = b.document();
    let mut config: Value = serde_json::from_slice(&b.blobs[0]).unwrap();
    let other: Value = serde_json::from_slice(&a.blobs[0]).unwrap();
    config["rootfs"]["diff_ids"][0] = other["rootfs"]["diff_ids"][0].clone();
    let config = bytes::Bytes::from(config.to_string());
    let mut b = b.changed(|changed| {
        changed["layers"][0] = a.document()["layers"][0].clone();
        changed["config"]["digest"] = json!(Digest::sha256_of(&config).to_string());
        changed["config"]["size"] = json!(config.len());
        assert_ne!(changed["layers"][0], document["layers"][0]);
    });
    b.blobs[0] = config;
    b.blobs[1] = a.blobs[1].clone();
    (a, b)
}

/// A registry with the private images of two teams.
struct Teams {
    stage: Stage,
    a: Image,
    b: Image,
}

impl Teams {
    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let stage = Stage::beside(Store::in_memory(), &[], change).await;
        let (a, b) = images();
        stage.registry.push("team-a/app", "v1", &a);
        stage.registry.push("team-b/app", "v1", &b);
        stage.registry.require(Auth::Teams(vec![A, B]));
        // The second layers and the configurations are in the repositories of their teams only.
        for (image, path) in [(&a, "/v2/team-b/"), (&b, "/v2/team-a/")] {
            for blob in [&image.blobs[0], &image.blobs[2]] {
                let path = format!("{path}app/blobs/{}", Digest::sha256_of(blob));
                stage.registry.on(&path).answer(404, &[]);
            }
        }
        Self { stage, a, b }
    }

    async fn as_team(&self, team: &Team, method: Method, path: &str) -> Answer {
        let authorization = of_team(team);
        self.stage
            .ask(method, path, &[("authorization", &authorization)])
            .await
    }

    /// Pulls the team's own image, and returns its manifest.
    async fn pull(&self, team: &Team, image: &Image) -> Value {
        let path = format!("/v2/local/{}app/manifests/v1", team.path);
        let answer = self.as_team(team, Method::GET, &path).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        assert_ne!(answer.digest(), image.digest().to_string());
        let manifest = answer.json();
        for path in paths(&format!("local/{}app", team.path), &answer, "") {
            assert_eq!(
                self.as_team(team, Method::GET, &path).await.status,
                200,
                "{path}"
            );
        }
        manifest
    }
}

/// The paths of everything in a pulled image, under a name.
fn paths(name: &str, manifest: &Answer, query: &str) -> Vec<String> {
    let document = manifest.json();
    let layers = document["layers"].as_array().unwrap();
    let blobs = layers.iter().chain([&document["config"]]);
    let blobs = blobs.map(|blob| {
        let digest = blob["digest"].as_str().unwrap();
        format!("/v2/{name}/blobs/{digest}{query}")
    });
    blobs
        .chain([
            format!("/v2/{name}/manifests/{}{query}", manifest.digest()),
            format!("/v2/{name}/manifests/v1{query}"),
            format!("/v2/{name}/referrers/{}{query}", manifest.digest()),
            format!("/v2/{name}/tags/list{query}"),
        ])
        .collect()
}

#[tokio::test]
async fn two_teams_read_their_own_images_by_their_own_credentials_and_nothing_else() {
    let teams = Teams::with(passes_through).await;
    teams.pull(&A, &teams.a).await;
    teams.pull(&B, &teams.b).await;
    let of_a = "/v2/local/team-a/app/manifests/v1";
    let manifest = teams.as_team(&A, Method::GET, of_a).await;
    let stack = path_of(&stack_of(&manifest.json()));
    for (name, query) in [
        ("local/team-a/app", ""),
        ("team-a/app", "?ns=local"),
        ("local/team-a/app", "?ns=docker.io"),
    ] {
        for path in paths(name, &manifest, query) {
            for method in [Method::GET, Method::HEAD] {
                let answer = teams.as_team(&B, method.clone(), &path).await;
                assert_eq!(answer.status, 403, "{method} {path}");
                let answer = teams.stage.ask(method.clone(), &path, &[]).await;
                assert_eq!(answer.status, 401, "{method} {path}");
            }
        }
    }
    // Under a name that the team may read, only the layer that is in both images.
    let document = manifest.json();
    let digest = |value: &Value| value["digest"].as_str().unwrap().to_owned();
    let blob = |digest: &str| format!("/v2/local/team-b/app/blobs/{digest}");
    let layers = document["layers"].as_array().unwrap();
    for (digest, expected) in [
        (digest(&layers[0]), 200),
        (digest(&layers[1]), 403),
        (digest(&document["config"]), 403),
    ] {
        let answer = teams.as_team(&B, Method::GET, &blob(&digest)).await;
        assert_eq!(answer.status, expected, "{digest}");
    }
    let path = format!("/v2/local/team-b/app/manifests/{}", manifest.digest());
    assert_eq!(teams.as_team(&B, Method::GET, &path).await.status, 403);
    for (name, team, expected) in [
        ("local/team-a/app", &A, 200),
        ("local/team-a/app", &B, 403),
        ("local/team-b/app", &B, 404),
        ("local/team-b/app", &A, 403),
    ] {
        let path = format!("{stack}?name={name}");
        let answer = teams.as_team(team, Method::GET, &path).await;
        assert_eq!(answer.status, expected, "{name} for {}", team.user);
    }
    assert_eq!(teams.as_team(&A, Method::GET, &stack).await.status, 403);
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/conversions"] {
        assert_eq!(teams.stage.get(path).await.status, 401, "{path}");
        assert_eq!(
            teams.as_team(&A, Method::GET, path).await.status,
            403,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_withdrawal_upstream_holds_within_the_time_that_answers_are_remembered() {
    let teams = Teams::with(passes_through).await;
    let manifest = teams.pull(&A, &teams.a).await;
    let layer = manifest["layers"][1]["digest"].as_str().unwrap();
    let layer = format!("/v2/local/team-a/app/blobs/{layer}");
    let tag = "/v2/local/team-a/app/manifests/v1";
    let status = async |path| teams.as_team(&A, Method::GET, path).await.status;
    teams.stage.registry.require(Auth::Teams(vec![B]));
    eventually_async("the layer is refused", async || status(&layer).await == 403).await;
    assert_eq!(status(tag).await, 403);
    teams.stage.registry.require(Auth::Teams(vec![A, B]));
    eventually_async("the layer is served", async || status(&layer).await == 200).await;
}

#[tokio::test]
async fn ranges_are_served_without_a_request_for_each_and_while_the_upstream_is_silent() {
    let teams = Teams::with(|config| {
        passes_through(config);
        config.access.remember = Duration::from_secs(60);
    })
    .await;
    let manifest = teams.pull(&A, &teams.a).await;
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let path = format!("/v2/local/team-a/app/blobs/{layer}");
    teams.stage.registry.forget_requests();
    for _ in 0..20 {
        let authorization = of_team(&A);
        let headers = [
            ("authorization", authorization.as_str()),
            ("range", "bytes=5-9"),
        ];
        let answer = teams.stage.ask(Method::GET, &path, &headers).await;
        assert_eq!(answer.status, 206);
    }
    assert_eq!(teams.stage.registry.seen().len(), 0);
}

#[tokio::test]
async fn an_upstream_that_fails_takes_nothing_from_those_it_has_allowed() {
    let teams = Teams::with(passes_through).await;
    let manifest = teams.pull(&A, &teams.a).await;
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let path = format!("/v2/local/team-a/app/blobs/{layer}");
    teams.stage.registry.on("/v2/").answer(503, &[]);
    teams.stage.registry.forget_requests();
    eventually_async("the upstream was asked in vain", async || {
        assert_eq!(teams.as_team(&A, Method::GET, &path).await.status, 200);
        teams.stage.registry.count("HEAD", "/v2/team-a/") > 1
    })
    .await;
    let stranger = Team {
        user: "mallory",
        ..A
    };
    let answer = teams.as_team(&stranger, Method::GET, &path).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn credentials_are_passed_to_no_upstream_but_those_of_a_rule() {
    let other = Registry::start().await;
    let stage = Stage::beside(Store::in_memory(), &[("other", &other)], passes_through).await;
    stage.push_app();
    other.push("app", "v1", &ImageBuilder::new(3).build());
    other.require(Auth::Basic {
        user: A.user,
        password: A.password,
    });
    let authorization = of_team(&A);
    let headers = [("authorization", authorization.as_str())];
    let path = "/v2/other/app/manifests/v1";
    assert_eq!(stage.ask(Method::GET, path, &headers).await.status, 403);
    assert_eq!(other.seen().len(), 0);
}

/// Logs in as clients do: the challenge, the token endpoint, and the token.
pub(crate) async fn token(
    stage: &Stage,
    path: &str,
    authorization: Option<&str>,
) -> (String, Answer) {
    let challenge = stage.get(path).await;
    assert_eq!(challenge.status, 401, "{path}");
    assert_eq!(challenge.code(), "UNAUTHORIZED");
    let text = challenge.header("www-authenticate").to_owned();
    let parameters: HashMap<_, _> = text
        .strip_prefix("Bearer ")
        .unwrap()
        .split(',')
        .map(|part| part.split_once('=').unwrap())
        .map(|(key, value)| (key, value.trim_matches('"')))
        .collect();
    let address = stage.server.address;
    assert_eq!(parameters["realm"], format!("http://{address}/token"));
    let scope = parameters.get("scope").copied().unwrap_or_default();
    let path = format!("/token?service={}&scope={scope}", parameters["service"]);
    let headers: Vec<_> = authorization
        .iter()
        .map(|value| ("authorization", *value))
        .collect();
    let answer = stage.ask(Method::GET, &path, &headers).await;
    let token = if answer.status == 200 {
        let token = answer.json()["token"].as_str().unwrap().to_owned();
        format!("Bearer {token}")
    } else {
        String::new()
    };
    (token, answer)
}

/// A server with users of its own: `carol` with a password, `ci` with a token.
pub(crate) async fn own_users() -> (Stage, tempfile::TempDir) {
    own_users_with(|_| {}).await
}

/// The same after a change of the configuration.
pub(crate) async fn own_users_with(change: impl FnOnce(&mut Config)) -> (Stage, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (passwords, tokens) = (dir.path().join("htpasswd"), dir.path().join("tokens"));
    // `carol-secret`, as `htpasswd -nbB -C 4` writes it.
    let hash = bcrypt::hash("carol-secret", 4).unwrap();
    std::fs::write(&passwords, format!("carol:{hash}\n")).unwrap();
    std::fs::write(&tokens, "ci:0123456789-0123456789\n").unwrap();
    let stage = Stage::with(|config| {
        config.access.htpasswd = Some(passwords);
        config.access.token_file = Some(tokens);
        config.access.rule = vec![
            rule(&["anyone"], &["pull"], &["local/public/*"]),
            rule(&["user:carol"], &["pull", "admin"], &["local/team/**"]),
            rule(&["user:c*"], &["pull", "warm"], &["local/ci/*"]),
            rule(&["user:carol"], &["admin"], &["**"]),
        ];
        change(config);
    })
    .await;
    for repository in ["public/app", "team/x/app", "ci/app"] {
        stage
            .registry
            .push(repository, "v1", &ImageBuilder::new(4).build());
    }
    (stage, dir)
}

#[tokio::test]
async fn users_of_the_server_log_in_by_the_token_endpoint_and_get_what_the_rules_say() {
    let (stage, _dir) = own_users().await;
    let manifest = |name: &str| format!("/v2/local/{name}/manifests/v1");
    let private = manifest("team/x/app");
    let carol = basic("carol", "carol-secret");
    let (token_of_carol, answer) = token(&stage, &private, Some(&carol)).await;
    assert_eq!(answer.json()["expires_in"], 300);
    assert_eq!(answer.header("cache-control"), "no-store");
    let (nobodys, _) = token(&stage, &private, None).await;
    let machine = "Bearer 0123456789-0123456789";
    for (authorization, name, expected) in [
        (Some(&*token_of_carol), "team/x/app", 200),
        (Some(&*carol), "team/x/app", 200),
        (Some(&*token_of_carol), "ci/app", 200),
        (Some(machine), "ci/app", 200),
        (Some(machine), "team/x/app", 403),
        (Some(machine), "public/app", 200),
        (Some(&*nobodys), "team/x/app", 401),
        (Some(&*nobodys), "public/app", 200),
        (None, "public/app", 200),
        (None, "ci/app", 401),
        (Some("Bearer 0123456789-012345678"), "public/app", 401),
        (Some("Basic !"), "public/app", 401),
        (Some("Bearer starlift.AAAA"), "public/app", 401),
    ] {
        let headers: Vec<_> = authorization
            .iter()
            .map(|value| ("authorization", *value))
            .collect();
        let answer = stage.ask(Method::GET, &manifest(name), &headers).await;
        assert_eq!(answer.status, expected, "{name} for {authorization:?}");
    }
    for (user, password) in [("carol", "carol"), ("dave", "carol-secret"), ("carol", "")] {
        let (_, answer) = token(&stage, &private, Some(&basic(user, password))).await;
        assert_eq!(answer.status, 401, "{user}");
    }
    let ping = |authorization: &str| {
        let headers = [("authorization".to_owned(), authorization.to_owned())];
        let stage = &stage;
        async move {
            let headers: Vec<_> = headers.iter().map(|(a, b)| (&**a, &**b)).collect();
            stage.ask(Method::GET, "/v2/", &headers).await.status
        }
    };
    assert_eq!(stage.get("/v2/").await.status, 401);
    assert_eq!(ping(&token_of_carol).await, 200);
    assert_eq!(ping("Bearer nonsense").await, 401);
}

#[tokio::test]
async fn the_oauth2_form_gives_the_same_tokens() {
    let (stage, _dir) = own_users().await;
    let post = async |form: &[(&str, &str)]| {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let request = stage
            .request(Method::POST, "/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    let password = [
        ("grant_type", "password"),
        ("username", "carol"),
        ("password", "carol-secret"),
    ];
    let (status, answer) = post(&password).await;
    assert_eq!(status, 200);
    let token = answer["access_token"].as_str().unwrap().to_owned();
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str())];
    let path = "/v2/local/team/x/app/manifests/v1";
    assert_eq!(stage.ask(Method::GET, path, &headers).await.status, 200);
    let refresh = [
        ("grant_type", "refresh_token"),
        ("refresh_token", token.as_str()),
    ];
    assert_eq!(post(&refresh).await.0, 200);
    for form in [
        &[
            ("grant_type", "password"),
            ("username", "carol"),
            ("password", "x"),
        ][..],
        &[("grant_type", "password"), ("username", "carol")],
        &[("grant_type", "refresh_token"), ("refresh_token", "x")],
        &[("grant_type", "other")],
        &[],
    ] {
        assert_eq!(post(form).await.0, 401, "{form:?}");
    }
    let long = "x".repeat(100_000);
    assert_eq!(post(&[("username", long.as_str())]).await.0, 413);
}

#[tokio::test]
async fn status_page_and_conversions_are_for_those_whom_a_rule_names() {
    let (stage, _dir) = own_users().await;
    let (carol, machine) = (
        basic("carol", "carol-secret"),
        "Bearer 0123456789-0123456789",
    );
    let status = async |path: &str, authorization: Option<&str>| {
        let headers: Vec<_> = authorization
            .iter()
            .map(|value| ("authorization", *value))
            .collect();
        stage.ask(Method::GET, path, &headers).await.status
    };
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/conversions"] {
        assert_eq!(status(path, None).await, 401, "{path}");
        assert_eq!(status(path, Some(machine)).await, 403, "{path}");
        assert_eq!(status(path, Some(&carol)).await, 200, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(status(path, None).await, 200, "{path}");
    }
    let warm = async |reference: &str, authorization: Option<&str>| {
        let mut request = stage
            .request(Method::POST, "/api/v1/conversions")
            .header("content-type", "application/json")
            .body(json!({ "reference": reference }).to_string());
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let response = request.send().await.unwrap();
        (
            response.status().as_u16(),
            response.json::<Value>().await.unwrap(),
        )
    };
    assert_eq!(warm("local/ci/app:v1", None).await.0, 401);
    assert_eq!(warm("local/team/x/app:v1", Some(machine)).await.0, 403);
    let (started, job) = warm("local/ci/app:v1", Some(machine)).await;
    assert_eq!(started, 202);
    let job = format!(
        "/api/v1/conversions/{}",
        job["conversion"]["id"].as_str().unwrap()
    );
    assert_eq!(status(&job, Some(machine)).await, 200);
    assert_eq!(status(&job, None).await, 401);
    assert_eq!(status("/api/v1/conversions/none", Some(machine)).await, 403);
}

#[tokio::test]
async fn a_server_beyond_loopback_without_a_rule_does_not_start_and_says_what_to_write() {
    let beyond = |config: &mut Config| {
        config.listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        config.api_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    };
    let error = Stage::try_another(beyond).await.unwrap_err().to_string();
    for part in ["[[serve.access.rule]]", "who = [\"anyone\"]", "images ="] {
        assert!(error.contains(part), "{error}");
    }
    let error = Stage::try_another(|config| {
        config.access.rule = vec![rule(&["upstream"], &["pull"], &["**"])];
    });
    let error = error.await.unwrap_err().to_string();
    assert!(error.contains("upstream"), "{error}");
    let error = Stage::try_another(|config| {
        config.access.htpasswd = Some("/nowhere/htpasswd".into());
    });
    let error = error.await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/htpasswd"), "{error}");
}

#[tokio::test]
async fn access_that_the_server_itself_has_lost_is_lost_to_its_clients() {
    let stage = Stage::with(|config| {
        config.access.remember = Duration::from_millis(200);
        config.tag_fresh = Duration::ZERO;
        config.tag_stale_while_revalidate = Duration::ZERO;
    })
    .await;
    let manifest = {
        stage.push_app();
        stage.get("/v2/local/app/manifests/v1").await
    };
    let layer = manifest.json()["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let layer = format!("/v2/local/app/blobs/{layer}");
    assert_eq!(stage.get(&layer).await.status, 200);
    stage.registry.require(Auth::Teams(vec![A]));
    eventually_async("the layer is refused", async || {
        stage.get(&layer).await.status == 403
    })
    .await;
    let by_digest = format!("/v2/local/app/manifests/{}", manifest.digest());
    assert_eq!(stage.get(&by_digest).await.status, 403);
    assert_eq!(stage.get("/v2/local/app/manifests/v1").await.status, 403);
}
