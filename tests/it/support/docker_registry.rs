//! Debian's docker-registry without authentication, with a password file, or with tokens from a
//! real endpoint.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde_json::json;

use super::fixture::Fixture;
use super::place::{Daemon, Place, fetch, free_address, status};

pub(crate) const USER: &str = "alice";
pub(crate) const PASSWORD: &str = "correct-horse";

/// The registry's authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Anyone,
    Password,
    Token,
}

#[derive(Debug)]
pub(crate) struct DockerRegistry {
    pub(crate) address: SocketAddr,
    pub(crate) daemon: Daemon,
    access: Access,
    tokens: Option<TokenEndpoint>,
}

impl DockerRegistry {
    pub(crate) fn start(place: &Place, access: Access) -> Self {
        Self::start_at(place, free_address(), access, "")
    }

    /// Starts a registry at a free address that announces its events to `url`, with a bearer token.
    pub(crate) fn announcing(place: &Place, address: SocketAddr, url: &str, secret: &str) -> Self {
        let notifications = format!(
            "notifications: {{endpoints: [{{name: starlift, url: \"{url}\", timeout: 10s, threshold: 3, \
             backoff: 200ms, headers: {{Authorization: [\"Bearer {secret}\"]}}}}]}}\n"
        );
        Self::start_at(place, address, Access::Anyone, &notifications)
    }

    fn start_at(place: &Place, address: SocketAddr, access: Access, more: &str) -> Self {
        let mut tokens = None;
        let auth = match access {
            Access::Anyone => String::new(),
            Access::Password => {
                let line = place.run(&format!("htpasswd -nbB {USER} {PASSWORD}"));
                let file = place.write("htpasswd", line);
                format!(
                    "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                    file.display()
                )
            }
            Access::Token => {
                let endpoint = TokenEndpoint::start(place);
                let bundle = place.path().join("token.crt");
                let realm = format!("http://{}/token", endpoint.address);
                tokens = Some(endpoint);
                format!(
                    "auth: {{token: {{realm: \"{realm}\", service: test, issuer: test, rootcertbundle: {}}}}}\n",
                    bundle.display()
                )
            }
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n{auth}{more}",
            place.dir("registry").display()
        );
        let config = place.write("registry.yml", config);
        let mut command = Command::new("docker-registry");
        let ready = format!("http://{address}/v2/");
        let daemon = place.daemon("docker-registry", command.arg("serve").arg(config), || {
            ["200", "401"].contains(&status(&[&ready]).as_str())
        });
        Self {
            address,
            daemon,
            access,
            tokens,
        }
    }

    /// Returns the `NAME=URL` for `--upstream`.
    pub(crate) fn upstream(&self, name: &str) -> String {
        format!("{name}=http://{}", self.address)
    }

    /// Copies a fixture to `repository:1`, either unchanged or converted to Docker's media types.
    pub(crate) fn push(&self, place: &Place, image: &Fixture, repository: &str, docker: bool) {
        let format = if docker {
            "--format v2s2"
        } else {
            "--preserve-digests --all"
        };
        let creds = if self.access == Access::Anyone {
            String::new()
        } else {
            format!("--dest-creds {USER}:{PASSWORD}")
        };
        place.run(&format!(
            "skopeo copy --quiet {format} {creds} --dest-tls-verify=false {} docker://{}/{repository}:1",
            image.oci(),
            self.address
        ));
    }

    /// Returns how often the registry's log has a request with this method (`GET`) and a piece of
    /// the path.
    pub(crate) fn requests(&self, method: &str, piece: &str) -> usize {
        let log = self.daemon.log();
        log.lines()
            .filter(|line| line.contains(&format!("\"{method} ")) && line.contains(piece))
            .count()
    }

    /// Lets a user of the token endpoint see the repositories below a path, and no others.
    pub(crate) fn allow(&self, user: &'static str, password: &'static str, path: &'static str) {
        let users = &self.tokens.as_ref().unwrap().shared.users;
        users.lock().push((user, password, path));
    }

    /// Takes all access from a user of the token endpoint.
    pub(crate) fn withdraw(&self, user: &str) {
        let users = &self.tokens.as_ref().unwrap().shared.users;
        users.lock().retain(|(name, ..)| *name != user);
    }

    /// Returns the queries of token requests, in order.
    pub(crate) fn token_queries(&self) -> Vec<String> {
        self.tokens
            .as_ref()
            .map(|tokens| tokens.shared.queries.lock().clone())
            .unwrap_or_default()
    }
}

/// A token endpoint. Users with the password get valid tokens; anonymous clients get tokens that
/// grant nothing.
#[derive(Debug)]
struct TokenEndpoint {
    address: SocketAddr,
    shared: Arc<TokenKeys>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Debug)]
struct TokenKeys {
    key: std::path::PathBuf,
    certificate: String,
    queries: Mutex<Vec<String>>,
    /// Each user with the password, and the path of the repositories that the user may see.
    users: Mutex<Vec<(&'static str, &'static str, &'static str)>>,
}

impl TokenEndpoint {
    fn start(place: &Place) -> Self {
        let (key, certificate) = (
            place.path().join("token.key"),
            place.path().join("token.crt"),
        );
        place.run(&format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout {} -out {}",
            key.display(),
            certificate.display()
        ));
        let pem = std::fs::read_to_string(&certificate).unwrap();
        let certificate = pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let shared = Arc::new(TokenKeys {
            key,
            certificate,
            queries: Mutex::default(),
            users: Mutex::new(vec![(USER, PASSWORD, "")]),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/token", get(token))
            .with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            address,
            shared,
            _runtime: runtime,
        }
    }
}

async fn token(
    State(keys): State<Arc<TokenKeys>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<String, StatusCode> {
    let query = query.unwrap_or_default();
    keys.queries.lock().push(query.clone());
    let given = headers
        .get("authorization")
        .map(|value| value.to_str().unwrap_or_default().to_owned());
    let users = keys.users.lock().clone();
    let is_user = |(user, password, _): &&(&str, &str, &str)| {
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        given.as_ref().is_some_and(|given| *given == basic)
    };
    let user = users.iter().find(is_user);
    if given.is_some() && user.is_none() {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    let scopes = pairs.filter(|(key, _)| key == "scope");
    let access: Vec<_> = scopes
        .filter_map(|(_, scope)| {
            let mut parts = scope.splitn(3, ':');
            let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
            let (.., path) = user?;
            name.starts_with(path).then_some(())?;
            Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
        })
        .collect();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [keys.certificate]});
    let claims = json!({"iss": "test", "sub": "", "aud": "test", "exp": now + 300, "nbf": now - 10, "iat": now,
        "jti": "1", "access": access});
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = format!("{}.{}", part(&header), part(&claims));
    let key = keys.key.clone();
    let signed = body.clone();
    let signature = tokio::task::spawn_blocking(move || sign(&key, &signed))
        .await
        .unwrap();
    Ok(json!({"token": format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature)), "expires_in": 300}).to_string())
}

fn sign(key: &std::path::Path, text: &str) -> Vec<u8> {
    let input = key.with_extension("text");
    let input = input.with_extension(format!("{:x}", rand::random::<u64>()));
    std::fs::write(&input, text).unwrap();
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .arg(&input)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Fetches `url` and returns the body as JSON.
pub(crate) fn json_of(url: &str) -> serde_json::Value {
    serde_json::from_slice(&fetch(url).unwrap_or_else(|| panic!("{url} fails"))).unwrap()
}
