//! Clients that are known by tokens of an issuer: OpenID Connect, and the service accounts of
//! Kubernetes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::Method;
use ring::hmac;
use serde_json::{Value, json};
use starlift::serve::{Config, IssuerConfig};

use super::access::rule;
use super::{Answer, Stage};
use crate::support::certificates::{Authority, SERVER};
use crate::support::eventually::eventually_async;
use crate::support::image::ImageBuilder;
use crate::support::issuer::{Issuer, Mood, SigningKey, message, unix_now};

const TAG: &str = "/v2/local/app/manifests/v1";
/// The subject of a service account's token.
const AGENT: &str = "system:serviceaccount:starlift:agent";

/// A server that trusts issuers, whose rules let the service account `agent` pull `local/app`.
async fn trusting(issuers: Vec<IssuerConfig>, change: impl FnOnce(&mut Config)) -> Stage {
    let stage = Stage::with(|config| {
        config.access.issuer = issuers;
        config.access.remember = Duration::from_millis(100);
        let agents = ["user:system:serviceaccount:starlift:*"];
        config.access.rule = vec![rule(&agents, &["pull", "profiles"], &["local/app"])];
        change(config);
    })
    .await;
    stage.push_app();
    stage
        .registry
        .push("other", "v1", &ImageBuilder::new(2).build());
    stage
}

async fn pull(stage: &Stage, path: &str, authorization: &str) -> Answer {
    let headers = [("authorization", authorization)];
    stage.ask(Method::GET, path, &headers).await
}

async fn bearer(stage: &Stage, token: &str) -> u16 {
    pull(stage, TAG, &format!("Bearer {token}")).await.status
}

#[tokio::test]
async fn a_service_account_pulls_by_its_token_with_keys_of_every_kind() {
    let keys = [
        SigningKey::rsa("r"),
        SigningKey::ec("c"),
        SigningKey::ed("d"),
    ];
    let issuer = Issuer::start(&keys.each_ref()).await;
    let stage = trusting(vec![issuer.config()], |_| {}).await;
    for key in &keys {
        let token = key.sign(&issuer.claims(AGENT));
        assert_eq!(bearer(&stage, &token).await, 200, "{}", key.algorithm());
        let other = pull(
            &stage,
            "/v2/local/other/manifests/v1",
            &format!("Bearer {token}"),
        )
        .await;
        assert_eq!(other.status, 403);
        let stranger = key.sign(&issuer.claims("system:serviceaccount:default:default"));
        assert_eq!(bearer(&stage, &stranger).await, 403);
    }
    assert_eq!(stage.get(TAG).await.status, 401);
}

#[tokio::test]
async fn a_login_with_a_token_as_its_password_lasts_no_longer_than_the_token() {
    let key = SigningKey::ec("a");
    let issuer = Issuer::start(&[&key]).await;
    let stage = trusting(vec![issuer.config()], |_| {}).await;
    let mut claims = issuer.claims(AGENT);
    claims["exp"] = json!(unix_now() + 60);
    let token = key.sign(&claims);
    let login = |user: &str, password: &str| {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    };
    // As clients do that know only passwords: docker login -u oidc -p TOKEN.
    let answer = pull(&stage, "/token?service=starlift", &login("oidc", &token)).await;
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    // The clocks may differ by 30 s.
    let expires = answer["expires_in"].as_u64().unwrap();
    assert!((1..=90).contains(&expires), "{answer}");
    let own = answer["token"].as_str().unwrap();
    assert_eq!(bearer(&stage, own).await, 200);
    assert_eq!(pull(&stage, TAG, &login("oidc", &token)).await.status, 200);
    for (user, password) in [("oidc", "secret"), ("other", token.as_str()), ("oidc", "")] {
        let path = "/token?service=starlift";
        assert_eq!(
            pull(&stage, path, &login(user, password)).await.status,
            401,
            "{user}"
        );
    }
    // A token of the endpoint buys no longer one.
    let again = pull(&stage, "/token?service=starlift", &format!("Bearer {own}")).await;
    assert!(again.json()["expires_in"].as_u64().unwrap() <= expires);
}

#[tokio::test]
async fn expired_misdirected_and_forged_tokens_are_refused() {
    let (key, other) = (SigningKey::rsa("a"), SigningKey::rsa("a"));
    let issuer = Issuer::start(&[&key]).await;
    let stage = trusting(vec![issuer.config()], |_| {}).await;
    let now = unix_now();
    let with = |name: &str, value: Value| {
        let mut claims = issuer.claims(AGENT);
        claims[name] = value;
        claims
    };
    assert_eq!(bearer(&stage, &key.sign(&issuer.claims(AGENT))).await, 200);
    for (name, value) in [
        ("exp", json!(now - 31)),
        ("exp", Value::Null),
        ("exp", json!("9999999999")),
        ("nbf", json!(now + 90)),
        ("nbf", json!("0")),
        ("aud", json!(["other"])),
        ("aud", json!("starlift2")),
        ("aud", Value::Null),
        ("iss", json!("https://other.example")),
        ("iss", json!(format!("{}/", issuer.url()))),
        ("sub", Value::Null),
        ("sub", json!("")),
    ] {
        let token = key.sign(&with(name, value.clone()));
        assert_eq!(bearer(&stage, &token).await, 401, "{name} {value}");
    }
    assert_eq!(
        bearer(&stage, &other.sign(&issuer.claims(AGENT))).await,
        401,
        "another key"
    );
    let claims = issuer.claims(AGENT);
    let public = key.jwk()["n"].as_str().unwrap().to_owned();
    for alg in ["none", "None", "HS256", "HS512", "PS256", "ES256", "EdDSA"] {
        let unsigned = message(&json!({"alg": alg, "kid": "a"}), &claims);
        let modulus = URL_SAFE_NO_PAD.decode(&public).unwrap();
        for secret in [public.as_bytes(), modulus.as_slice(), b""] {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&secret, unsigned.as_bytes()));
            assert_eq!(
                bearer(&stage, &format!("{unsigned}.{tag}")).await,
                401,
                "{alg}"
            );
        }
        assert_eq!(bearer(&stage, &format!("{unsigned}.")).await, 401, "{alg}");
    }
    let long = key.sign(&with("more", json!("x".repeat(17 << 10))));
    assert_eq!(bearer(&stage, &long).await, 401, "too long");
}

#[tokio::test]
async fn a_new_key_counts_at_once_and_a_withdrawn_one_no_longer() {
    let (old, new) = (SigningKey::ec("old"), SigningKey::ec("new"));
    let issuer = Issuer::start(&[&old]).await;
    let stage = trusting(vec![issuer.config()], |_| {}).await;
    let of = |key: &SigningKey| key.sign(&issuer.claims(AGENT));
    let (by_old, by_new) = (of(&old), of(&new));
    assert_eq!(bearer(&stage, &by_old).await, 200);
    assert_eq!(bearer(&stage, &by_new).await, 401);
    issuer.publish(&[&new]);
    eventually_async("the new key counts", async || {
        bearer(&stage, &by_new).await == 200
    })
    .await;
    eventually_async("the old one does not", async || {
        bearer(&stage, &by_old).await == 401
    })
    .await;
}

#[tokio::test]
async fn tokens_with_unknown_keys_cause_one_request_in_an_interval() {
    let (key, unknown) = (SigningKey::ec("a"), SigningKey::ec("b"));
    let issuer = Issuer::start(&[&key]).await;
    let mut config = issuer.config();
    config.refresh = Duration::from_secs(300);
    let stage = trusting(vec![config], |_| {}).await;
    assert_eq!(bearer(&stage, &key.sign(&issuer.claims(AGENT))).await, 200);
    let before = issuer.requests();
    assert_eq!(before, 2, "the discovery document and the keys");
    let strangers = (0..20).map(|number| {
        let token = unknown.sign(&issuer.claims(&format!("stranger-{number}")));
        let stage = &stage;
        async move { bearer(stage, &token).await }
    });
    let refused = futures::future::join_all(strangers).await;
    assert_eq!(refused, [401; 20]);
    assert_eq!(
        issuer.requests(),
        before,
        "the keys were fetched a moment ago"
    );
}

#[tokio::test]
async fn known_keys_go_on_while_the_issuer_is_away_for_the_configured_time() {
    let (key, unknown) = (SigningKey::ec("a"), SigningKey::ec("b"));
    let issuer = Issuer::start(&[&key]).await;
    let token = |subject: &str| key.sign(&issuer.claims(subject));
    let patient = trusting(vec![issuer.config()], |_| {}).await;
    let mut config = issuer.config();
    config.unreachable = Duration::from_millis(200);
    let strict = trusting(vec![config], |_| {}).await;
    for stage in [&patient, &strict] {
        assert_eq!(bearer(stage, &token(AGENT)).await, 200);
    }
    issuer.turn(Mood::Broken);
    eventually_async("the strict server judges no tokens", async || {
        bearer(&strict, &token(AGENT)).await == 503
    })
    .await;
    let before = issuer.requests();
    eventually_async("the patient server has asked in vain", async || {
        assert_eq!(bearer(&patient, &token(AGENT)).await, 200);
        issuer.requests() > before
    })
    .await;
    let stranger = unknown.sign(&issuer.claims(AGENT));
    let answer = pull(&patient, TAG, &format!("Bearer {stranger}")).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    issuer.turn(Mood::Well);
    eventually_async("the strict server judges tokens again", async || {
        bearer(&strict, &token(AGENT)).await == 200
    })
    .await;
    eventually_async("the stranger is refused", async || {
        bearer(&patient, &stranger).await == 401
    })
    .await;
}

#[tokio::test]
async fn hostile_issuers_give_no_keys_and_cost_little() {
    let key = SigningKey::ec("a");
    let issuer = Issuer::start(&[&key]).await;
    let stage = trusting(vec![issuer.config()], |_| {}).await;
    let token = key.sign(&issuer.claims(AGENT));
    for mood in [
        Mood::Broken,
        Mood::Impostor,
        Mood::Huge,
        Mood::Many,
        Mood::Redirecting,
    ] {
        issuer.turn(mood);
        let before = issuer.requests();
        eventually_async("the issuer was asked", async || {
            assert_eq!(bearer(&stage, &token).await, 503, "{mood:?}");
            issuer.requests() > before
        })
        .await;
    }
    issuer.turn(Mood::Well);
    eventually_async("the keys are there", async || {
        bearer(&stage, &token).await == 200
    })
    .await;
}

#[tokio::test]
async fn keys_come_from_a_file_where_no_issuer_is_reached() {
    let (key, next) = (SigningKey::rsa("a"), SigningKey::rsa("b"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let write = |key: &SigningKey| {
        std::fs::write(&file, json!({"keys": [key.jwk()]}).to_string()).unwrap();
    };
    write(&key);
    let config = || IssuerConfig {
        issuer: "https://kubernetes.default.svc".to_owned(),
        jwks_file: Some(file.clone()),
        ..serde_json::from_value(json!({"issuer": "", "audience": ["starlift"], "prefix": ""}))
            .unwrap()
    };
    let stage = trusting(vec![config()], |_| {}).await;
    let claims = json!({
        "iss": "https://kubernetes.default.svc", "aud": ["starlift"], "sub": AGENT,
        "exp": unix_now() + 600,
    });
    assert_eq!(bearer(&stage, &key.sign(&claims)).await, 200);
    assert_eq!(bearer(&stage, &next.sign(&claims)).await, 401);
    std::fs::write(&file, "spoiled").unwrap();
    let error = Stage::try_another(|server| server.access.issuer = vec![config()]).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("kubernetes.default.svc"), "{error}");
}

#[tokio::test]
async fn keys_are_fetched_over_https_from_a_host_of_the_configured_authority() {
    let key = SigningKey::ec("a");
    let (authority, other) = (Authority::new(), Authority::new());
    authority.issue("server", "/CN=server", SERVER, 2);
    let issuer = Issuer::start_tls(&[&key], &authority).await;
    let token = key.sign(&issuer.claims(AGENT));
    for (ca_file, expected) in [
        (Some(authority.path("ca.crt")), 200),
        (Some(other.path("ca.crt")), 503),
        (None, 503),
    ] {
        let mut config = issuer.config();
        config.ca_file = ca_file;
        let stage = trusting(vec![config], |_| {}).await;
        assert_eq!(bearer(&stage, &token).await, expected);
    }
}

#[tokio::test]
async fn the_servers_own_token_is_read_at_each_request_for_keys() {
    let key = SigningKey::ec("a");
    let issuer = Issuer::start(&[&key]).await;
    issuer.require("second");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let mut config = issuer.config();
    config.token_file = Some(file.clone());
    config.jwks_url = Some(format!("{}/keys", issuer.url()));
    let stage = trusting(vec![config], |_| {}).await;
    let token = key.sign(&issuer.claims(AGENT));
    assert_eq!(bearer(&stage, &token).await, 503);
    std::fs::write(&file, "second\n").unwrap();
    eventually_async("the keys are there", async || {
        bearer(&stage, &token).await == 200
    })
    .await;
}

#[tokio::test]
async fn two_issuers_are_two_prefixes_and_their_tokens_go_to_no_upstream() {
    let (key, other) = (SigningKey::ec("a"), SigningKey::ec("a"));
    let (one, two) = (Issuer::start(&[&key]).await, Issuer::start(&[&other]).await);
    let mut second = two.config();
    second.prefix = "two:".to_owned();
    let stage = trusting(vec![one.config(), second.clone()], |config| {
        config
            .access
            .rule
            .push(rule(&["upstream"], &["pull"], &["local/**"]));
    })
    .await;
    assert_eq!(bearer(&stage, &key.sign(&one.claims(AGENT))).await, 200);
    assert_eq!(bearer(&stage, &other.sign(&two.claims(AGENT))).await, 403);
    stage.registry.forget_requests();
    // A token that says the name of the other issuer.
    assert_eq!(bearer(&stage, &other.sign(&one.claims(AGENT))).await, 401);
    assert_eq!(stage.registry.seen().len(), 0);
    for (change, part) in [
        (
            Box::new(|config: &mut IssuerConfig| config.prefix = String::new())
                as Box<dyn Fn(&mut IssuerConfig)>,
            "prefix",
        ),
        (Box::new(|config| config.audience = Vec::new()), "audience"),
        (
            Box::new(|config| config.issuer = "http://a.example".to_owned()),
            "https",
        ),
        (
            Box::new(|config| config.refresh = Duration::ZERO),
            "refresh",
        ),
        (
            Box::new(|config| config.unreachable = Duration::ZERO),
            "unreachable",
        ),
    ] {
        let mut changed = second.clone();
        change(&mut changed);
        let issuers = vec![one.config(), changed];
        let error = Stage::try_another(|config| config.access.issuer = issuers).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
