//! The endpoints of a server that listens beyond loopback: some are public, others only for
//! operators.

use std::net::{Ipv4Addr, SocketAddr};

use reqwest::Method;

use super::access::rule;
use super::{Answer, Stage};

/// Returns a stage whose server listens on all addresses.
async fn exposed(hosts: &[&str]) -> Stage {
    Stage::with(|config| {
        config.listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        config.api_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.access.rule = vec![rule(&["anyone"], &["pull", "profiles"], &["**"])];
        config.hosts = hosts.iter().map(|&host| host.to_owned()).collect();
    })
    .await
}

impl Stage {
    async fn get_api(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask_address(self.server.api, Method::GET, path, headers)
            .await
    }
}

#[tokio::test]
async fn beyond_loopback_the_api_has_a_listener_of_its_own() {
    let stage = exposed(&[]).await;
    stage.push_app();
    assert_ne!(stage.server.api, stage.server.address);
    assert!(stage.server.api.ip().is_loopback());
    assert_eq!(stage.get("/v2/local/app/manifests/v1").await.status, 200);
    let stack = format!("/api/v1/profiles/sha256:{}", "0".repeat(64));
    assert_eq!(
        stage.get(&stack).await.code(),
        "MANIFEST_UNKNOWN",
        "nodes request profiles from the listener that they pull from"
    );
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/conversions"] {
        assert_eq!(stage.get(path).await.status, 404, "{path} is not public");
        assert_eq!(
            stage.get_api(path, &[]).await.status,
            200,
            "{path} is for operators"
        );
    }
    assert_eq!(
        stage.get_api("/v2/", &[]).await.status,
        404,
        "the API listener serves no images"
    );
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            (
                stage.get(path).await.status,
                stage.get_api(path, &[]).await.status
            ),
            (200, 200)
        );
    }
    let page = String::from_utf8(stage.get_api("/", &[]).await.body.to_vec()).unwrap();
    assert!(
        !page.contains(&stage.server.api.to_string()),
        "the page names the other listener for pulls"
    );
}

#[tokio::test]
async fn a_mirrors_own_name_is_answered_until_names_are_listed() {
    let (mirror, browser) = (("host", "mirror.example:8080"), ("accept-language", "en"));
    let stage = exposed(&[]).await;
    stage.push_app();
    let path = "/v2/local/app/manifests/v1";
    assert_eq!(stage.ask(Method::GET, path, &[mirror]).await.status, 200);
    let profile = stage
        .ask(
            Method::GET,
            &format!("/api/v1/profiles/sha256:{}", "0".repeat(64)),
            &[mirror],
        )
        .await;
    assert_eq!(
        profile.code(),
        "MANIFEST_UNKNOWN",
        "nodes request profiles under the name that they pull by"
    );
    assert_eq!(
        stage
            .ask(Method::GET, path, &[mirror, browser])
            .await
            .status,
        421,
        "a web page may use this name"
    );
    assert_eq!(stage.get_api("/api/v1/status", &[mirror]).await.status, 421);
    let stage = exposed(&["other.example"]).await;
    assert_eq!(stage.ask(Method::GET, "/v2/", &[mirror]).await.status, 421);
    assert_eq!(
        stage
            .ask(Method::GET, "/v2/", &[("host", "OTHER.example:1"), browser])
            .await
            .status,
        200
    );
    assert_eq!(
        stage
            .get_api("/api/v1/status", &[("host", "other.example")])
            .await
            .status,
        200
    );
}
