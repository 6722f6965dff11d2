//! Every door of the server, for identities by certificates and by tokens of an issuer: one that a
//! rule names for the image, and a stranger of the same kind.

use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use super::access::rule;
use super::certificates::Guarded;
use super::profiles::{FILES, path_of, seen, stack_of};
use crate::support::issuer::{Issuer, SigningKey};

const TAG: &str = "/v2/local/app/manifests/v1";
const OTHER_TAG: &str = "/v2/local/other/manifests/v1";

/// An identity: a client, and its bearer token.
struct Identity {
    client: Client,
    token: Option<String>,
}

impl Identity {
    fn request(&self, server: &Guarded, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, server.url(path));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn get(&self, server: &Guarded, path: &str) -> u16 {
        let request = self.request(server, Method::GET, path);
        request.send().await.unwrap().status().as_u16()
    }

    async fn post(&self, server: &Guarded, path: &str, body: &Value) -> u16 {
        let request = self.request(server, Method::POST, path);
        let request = request.header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        answer.status().as_u16()
    }
}

/// The paths of all objects of an image under a name.
fn objects(name: &str, digest: &str, manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    let blobs = layers.iter().chain([&manifest["config"]]);
    let blobs = blobs.map(|blob| format!("/v2/{name}/blobs/{}", blob["digest"].as_str().unwrap()));
    let manifest = format!("/v2/{name}/manifests/{digest}");
    blobs.chain([manifest]).collect()
}

#[tokio::test]
async fn certificates_and_tokens_open_doors_to_the_images_of_their_rules_only() {
    let key = SigningKey::ec("a");
    let issuer = Issuer::start(&[&key]).await;
    let settings = issuer.config();
    let server = Guarded::start_with(|config| {
        config.access.issuer = vec![settings];
        // No administrator.
        config.access.rule = vec![
            rule(
                &["user:cert:node-1", "user:own"],
                &["pull", "profiles"],
                &["local/app"],
            ),
            rule(
                &["user:cert:node-2", "user:else"],
                &["pull", "profiles"],
                &["local/other"],
            ),
        ];
    })
    .await;
    let by_certificate = |name: &str| Identity {
        client: server.client(Some(name)),
        token: None,
    };
    let by_token = |subject: &str| Identity {
        client: server.client(None),
        token: Some(key.sign(&issuer.claims(subject))),
    };
    for (own, stranger, refused) in [
        (by_certificate("node-1"), by_certificate("node-2"), 401),
        (by_token("own"), by_token("else"), 403),
    ] {
        assert_eq!(stranger.get(&server, OTHER_TAG).await, 200);
        let pulled = own.request(&server, Method::GET, TAG).send().await.unwrap();
        assert_eq!(pulled.status(), 200);
        let digest = pulled.headers()["docker-content-digest"]
            .to_str()
            .unwrap()
            .to_owned();
        let manifest: Value = pulled.json().await.unwrap();
        let paths = objects("local/app", &digest, &manifest);
        let others = ["referrers", "tags"].map(|kind| match kind {
            "tags" => "/v2/local/app/tags/list".to_owned(),
            _ => format!("/v2/local/app/referrers/{digest}"),
        });
        for path in paths.iter().chain(&others).map(String::as_str).chain([TAG]) {
            assert_eq!(own.get(&server, path).await, 200, "{path}");
            assert_eq!(stranger.get(&server, path).await, refused, "{path}");
        }
        for (identity, expected) in [(&own, 206), (&stranger, refused)] {
            let request = identity.request(&server, Method::GET, &paths[0]);
            let answer = request.header("range", "bytes=3-9").send().await.unwrap();
            assert_eq!(answer.status().as_u16(), expected);
        }
        for path in objects("local/other", &digest, &manifest) {
            assert_eq!(stranger.get(&server, &path).await, 403, "{path}");
        }
        let by_layers = path_of(&stack_of(&manifest));
        let by_name = format!("{by_layers}?name=local/app");
        let observation = seen(&FILES);
        assert_eq!(own.get(&server, &by_name).await, 200);
        assert_eq!(own.post(&server, &by_name, &observation).await, 202);
        assert_eq!(stranger.get(&server, &by_name).await, refused);
        assert_eq!(
            stranger.post(&server, &by_name, &observation).await,
            refused
        );
        for identity in [&own, &stranger] {
            assert_eq!(identity.get(&server, &by_layers).await, refused);
            assert_eq!(
                identity.post(&server, &by_layers, &observation).await,
                refused
            );
            for path in ["/", "/metrics", "/api/v1/status", "/api/v1/conversions"] {
                assert_eq!(identity.get(&server, path).await, refused, "{path}");
            }
            let wanted = json!({"reference": "local/app:v1"});
            let started = identity.post(&server, "/api/v1/conversions", &wanted).await;
            assert_eq!(started, refused);
        }
    }
}
