//! Budgets of identities, addresses and upstreams: each one that is used up refuses with the time
//! of the next attempt, and touches nobody else.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use bytesize::ByteSize;
use reqwest::Method;
use serde_json::{Value, json};
use starlift::convert;
use starlift::oci::Digest;
use starlift::registry;
use starlift::serve::{BudgetConfig, Config};
use starlift::store::{self, Store};
use starlift::transport::Upstreams;
use tempfile::TempDir;

use super::access::rule;
use super::{Answer, Stage};
use crate::support::eventually::{eventually_async, eventually_some};
use crate::support::image::ImageBuilder;
use crate::support::registry::{Gate, Registry};

/// Two users of the server and its operator, by their tokens.
const A: &str = "Bearer token-of-a-0123456789";
const B: &str = "Bearer token-of-b-0123456789";
const OPERATOR: &str = "Bearer token-of-operator-0123456789";

/// Writes the tokens, and lets both users pull and warm everything.
fn users(config: &mut Config) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    let lines = ["a", "b", "operator"].map(|name| format!("{name}:token-of-{name}-0123456789\n"));
    std::fs::write(&tokens, lines.concat()).unwrap();
    config.access.token_file = Some(tokens);
    let may = ["pull", "profiles", "warm"];
    config.access.rule = vec![
        rule(&["user:*"], &may, &["**"]),
        rule(&["user:operator"], &["admin"], &["**"]),
    ];
    dir
}

/// A server whose users have this budget.
async fn of_identities(budget: BudgetConfig) -> (Stage, TempDir) {
    over(Store::in_memory(), budget).await
}

async fn over(store: Store, budget: BudgetConfig) -> (Stage, TempDir) {
    let mut dir = None;
    let stage = Stage::over(store, |config| {
        dir = Some(users(config));
        config.budgets.identity = budget;
    })
    .await;
    (stage, dir.unwrap())
}

/// A server behind a proxy, which names the addresses of clients, whose addresses have this budget.
async fn of_addresses(budget: BudgetConfig) -> Stage {
    Stage::with(|config| {
        config.client_header = Some("x-forwarded-for".to_owned());
        config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        config.budgets.address = budget;
    })
    .await
}

fn a_second(requests: u32, burst: u32) -> BudgetConfig {
    BudgetConfig {
        requests: NonZeroU32::new(requests),
        burst: NonZeroU32::new(burst),
        ..BudgetConfig::default()
    }
}

async fn get_as(stage: &Stage, user: &str, path: &str) -> Answer {
    stage
        .ask(Method::GET, path, &[("authorization", user)])
        .await
}

async fn get_from(stage: &Stage, address: &str, path: &str) -> Answer {
    let headers = [("x-forwarded-for", address)];
    stage.ask(Method::GET, path, &headers).await
}

/// Asks until the budget is used up, and returns the refusal.
async fn refused(ask: impl AsyncFn() -> Answer) -> Answer {
    for _ in 0..1000 {
        let answer = ask().await;
        if answer.status != 200 {
            return answer;
        }
    }
    panic!("the budget is never used up");
}

fn assert_refused(answer: &Answer, retry_after: &str) {
    let seen = (
        answer.status,
        answer.code(),
        answer.header("retry-after").to_owned(),
    );
    let expected = (429, "TOOMANYREQUESTS".to_owned(), retry_after.to_owned());
    assert_eq!(seen, expected, "{:?}", answer.body);
}

async fn warm(stage: &Stage, user: &str, reference: &str) -> reqwest::Response {
    let request = stage
        .request(Method::POST, "/api/v1/conversions")
        .header("content-type", "application/json")
        .header("authorization", user)
        .body(json!({ "reference": reference }).to_string());
    request.send().await.unwrap()
}

fn push(stage: &Stage, repository: &str, seed: u64) {
    let image = ImageBuilder::new(seed).layers(1).build();
    stage.registry.push(repository, "v1", &image);
}

fn manifest(repository: &str) -> String {
    format!("/v2/local/{repository}/manifests/v1")
}

#[tokio::test]
async fn requests_over_the_rate_are_admitted_after_the_time_that_the_answer_names() {
    let stage = of_addresses(a_second(1, 3)).await;
    let path = format!("/v2/local/app/blobs/{}", stage.registry.put_blob("blob"));
    let answer = refused(async || get_from(&stage, "10.0.0.1", &path).await).await;
    assert_refused(&answer, "1");
    let same_network = ["2001:db8::1", "2001:db8::ffff"];
    refused(async || get_from(&stage, same_network[0], &path).await).await;
    for (address, status) in [
        ("10.0.0.2", 200),
        (same_network[1], 429),
        ("2001:db8:0:1::1", 200),
    ] {
        let answer = get_from(&stage, address, &path).await;
        assert_eq!(answer.status, status, "{address}");
    }
    assert_eq!(stage.get("/healthz").await.status, 200);
    // The time is that of the promise.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get_from(&stage, "10.0.0.1", &path).await.status, 200);
}

#[tokio::test]
async fn a_mirrors_client_is_sent_to_its_next_host() {
    let stage = of_addresses(a_second(1, 1)).await;
    let digest = stage.registry.put_blob("blob");
    let path = format!("/v2/app/blobs/{digest}?ns=local");
    let answer = refused(async || get_from(&stage, "10.0.0.1", &path).await).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.code(), "TOOMANYREQUESTS");
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn an_identity_has_its_rate_at_every_address_and_leaves_others_theirs() {
    let (stage, _dir) = of_identities(a_second(1, 2)).await;
    let path = format!("/v2/local/app/blobs/{}", stage.registry.put_blob("blob"));
    let answer = refused(async || get_as(&stage, A, &path).await).await;
    assert_refused(&answer, "1");
    assert_eq!(get_as(&stage, B, &path).await.status, 200);
    // Wrong credentials use nothing of anybody's budget.
    for _ in 0..5 {
        assert_eq!(get_as(&stage, "Bearer token-of-b", &path).await.status, 401);
    }
    assert_eq!(get_as(&stage, B, &path).await.status, 200);
}

#[tokio::test]
async fn no_more_requests_of_an_identity_are_answered_at_once_than_configured() {
    let (stage, _dir) = of_identities(BudgetConfig {
        streams: NonZeroUsize::new(1),
        ..BudgetConfig::default()
    })
    .await;
    let path = format!("/v2/local/app/blobs/{}", stage.registry.put_blob("blob"));
    let gate = Gate::new();
    stage.registry.on("/blobs/").times(1).gate(&gate);
    let request = stage.request(Method::GET, &path);
    let first = tokio::spawn(request.header("authorization", A).send());
    gate.reached(1).await;
    assert_refused(&get_as(&stage, A, &path).await, "1");
    assert_eq!(get_as(&stage, B, &path).await.status, 200);
    let status = get_as(&stage, OPERATOR, "/api/v1/status").await.json();
    let line = json!({"name": "user:a", "streams": 1, "conversions": 0, "bytes_under_way": 0});
    assert_eq!(status["budgets"]["identity"], json!([line]));
    gate.open();
    let answer = first.await.unwrap().unwrap();
    assert_eq!(answer.bytes().await.unwrap(), "blob");
    eventually_async("the stream is given back", async || {
        get_as(&stage, A, &path).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn an_upstream_has_its_budget_over_all_clients() {
    let other = Registry::start().await;
    let stage = Stage::beside(Store::in_memory(), &[("other", &other)], |config| {
        config.budgets.upstream = a_second(1, 2);
    })
    .await;
    let (one, two) = (stage.registry.put_blob("one"), other.put_blob("two"));
    let path = format!("/v2/local/app/blobs/{one}");
    assert_refused(&refused(async || stage.get(&path).await).await, "1");
    let path = format!("/v2/other/app/blobs/{two}");
    assert_eq!(stage.get(&path).await.status, 200);
}

#[tokio::test]
async fn no_more_bytes_are_under_way_to_an_identity_than_configured_but_for_a_single_answer() {
    const LENGTH: usize = 300_000;
    let (stage, _dir) = of_identities(BudgetConfig {
        bytes_under_way: Some(ByteSize::kib(1)),
        ..BudgetConfig::default()
    })
    .await;
    let path = format!(
        "/v2/local/app/blobs/{}",
        stage.registry.put_blob(vec![7; LENGTH])
    );
    let gate = Gate::new();
    let held = stage.registry.on("/blobs/").method("GET").times(1);
    held.gate_after(&gate, 1000);
    let request = stage.request(Method::GET, &path);
    let first = request.header("authorization", A).send().await.unwrap();
    assert_eq!(first.status(), 200);
    assert_refused(&get_as(&stage, A, &path).await, "1");
    assert_eq!(get_as(&stage, B, &path).await.status, 200);
    gate.open();
    assert_eq!(first.bytes().await.unwrap().len(), LENGTH);
    eventually_async("the bytes are given back", async || {
        get_as(&stage, A, &path).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn an_identity_with_its_conversions_under_way_gets_source_images_and_may_warm_no_more() {
    let (stage, _dir) = of_identities(BudgetConfig {
        conversions: NonZeroUsize::new(1),
        ..BudgetConfig::default()
    })
    .await;
    push(&stage, "one", 1);
    push(&stage, "two", 2);
    let gate = Gate::new();
    stage.registry.on("/one/blobs/").method("GET").gate(&gate);
    assert_eq!(warm(&stage, A, "local/one:v1").await.status(), 202);
    gate.reached(1).await;
    let pulled = get_as(&stage, A, &manifest("two")).await;
    assert_eq!(pulled.status, 200);
    assert!(
        pulled.header("warning").contains("budget"),
        "{:?}",
        pulled.headers
    );
    let refused = warm(&stage, A, "local/two:v1").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["errors"][0]["code"], "TOOMANYREQUESTS");
    let others = get_as(&stage, B, &manifest("two")).await;
    assert_eq!(others.header("warning"), "");
    gate.open();
    eventually_async("the conversion is given back", async || {
        warm(&stage, A, "local/one:v1").await.status() == 202
    })
    .await;
}

#[tokio::test]
async fn the_bytes_stored_for_an_identity_are_limited_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = store::Config {
        location: dir.path().to_str().unwrap().to_owned(),
        ..store::Config::default()
    };
    let budget = BudgetConfig {
        stored: Some(ByteSize::b(1)),
        ..BudgetConfig::default()
    };
    let store = Store::open(&config).await.unwrap();
    let (stage, _users) = over(store, budget.clone()).await;
    for (repository, seed) in [("one", 1), ("two", 2), ("three", 3)] {
        push(&stage, repository, seed);
    }
    let first = get_as(&stage, A, &manifest("one")).await;
    assert_eq!(first.header("warning"), "", "nothing was stored before");
    let second = get_as(&stage, A, &manifest("two")).await;
    assert!(
        second.header("warning").contains("budget"),
        "{:?}",
        second.headers
    );
    let refused = warm(&stage, A, "local/two:v1").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "60");
    let again = get_as(&stage, A, &manifest("one")).await;
    assert_eq!(again.digest(), first.digest(), "existing content is served");
    assert_eq!(
        get_as(&stage, B, &manifest("two")).await.header("warning"),
        ""
    );
    let shared = get_as(&stage, A, &manifest("two")).await;
    assert_eq!(shared.header("warning"), "", "converted for somebody else");
    drop(stage);
    let (stage, _users) = over(Store::open(&config).await.unwrap(), budget).await;
    push(&stage, "three", 3);
    let third = get_as(&stage, A, &manifest("three")).await;
    assert!(
        third.header("warning").contains("budget"),
        "{:?}",
        third.headers
    );
}

#[tokio::test]
async fn a_busy_identity_at_the_same_address_leaves_places_to_the_next() {
    let mut dir = None;
    let stage = Stage::with(|config| {
        dir = Some(users(config));
        config.max_requests = 8;
        config.client_share = 100;
    })
    .await;
    let digest = stage.registry.put_blob("blob");
    let path = format!("/v2/local/app/blobs/{digest}");
    let gate = Gate::new();
    stage.registry.on("/blobs/").times(6).gate(&gate);
    let held: Vec<_> = (0..6)
        .map(|_| {
            let request = stage.request(Method::GET, &path);
            tokio::spawn(request.header("authorization", A).send())
        })
        .collect();
    gate.reached(6).await;
    let busy = get_as(&stage, A, &path).await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, "1"));
    assert_eq!(get_as(&stage, B, &path).await.status, 200);
    gate.open();
    for request in held {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn an_identity_with_many_conversions_delays_another_with_one_by_one_of_them() {
    let mut dir = None;
    let config = convert::Config {
        images_at_once: NonZeroUsize::MIN,
        ..convert::Config::default()
    };
    let stage = Stage::converting(Store::in_memory(), &config, |config| {
        dir = Some(users(config));
    })
    .await;
    for number in 0..8 {
        push(&stage, &format!("busy{number}"), number);
    }
    push(&stage, "modest", 99);
    let gate = Gate::new();
    stage.registry.on("/blobs/").method("GET").gate(&gate);
    for number in 0..8 {
        assert_eq!(
            warm(&stage, A, &format!("local/busy{number}:v1"))
                .await
                .status(),
            202
        );
    }
    gate.reached(1).await;
    let is_waiting = async |number: usize| {
        let status = get_as(&stage, OPERATOR, "/api/v1/status").await.json();
        status["conversions"].as_array().unwrap().len() == number
    };
    eventually_async("the conversions wait", async || is_waiting(8).await).await;
    assert_eq!(warm(&stage, B, "local/modest:v1").await.status(), 202);
    eventually_async("the last one waits too", async || is_waiting(9).await).await;
    gate.open();
    let order = eventually_some("all are converted", async || {
        let seen = stage.registry.seen();
        let mut order: Vec<String> = Vec::new();
        for request in seen
            .iter()
            .filter(|seen| seen.path_and_query.contains("/blobs/"))
        {
            let name = request.path_and_query.split('/').nth(2).unwrap().to_owned();
            if !order.contains(&name) {
                order.push(name);
            }
        }
        (order.len() == 9).then_some(order)
    })
    .await;
    let place = order.iter().position(|name| name == "modest").unwrap();
    assert!(place <= 2, "{order:?}");
}

#[tokio::test]
async fn this_programs_own_client_waits_as_long_as_a_budget_says() {
    let stage = of_addresses(a_second(1, 1)).await;
    let digests: Vec<Digest> = ["1", "22", "333"]
        .map(|bytes| stage.registry.put_blob(bytes))
        .to_vec();
    let mut config = registry::Config::default();
    config
        .add(&format!("front=http://{}", stage.server.address))
        .unwrap();
    let source = Upstreams::new(&config).unwrap().get("front").unwrap();
    let repository = "local/app".parse().unwrap();
    for (digest, size) in digests.iter().zip(1..) {
        assert_eq!(source.blob_size(&repository, digest).await.unwrap(), size);
    }
    let refusals = starlift::telemetry::metrics().budget_refusals.clone();
    let labels = [("of", "address"), ("budget", "requests")];
    assert!(refusals.get_or_create(&labels).get() >= 2);
}
