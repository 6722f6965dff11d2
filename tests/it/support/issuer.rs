//! An issuer of tokens on loopback, with a discovery document and keys, that can be silent, broken
//! or hostile.

use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use starlift::serve::IssuerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::certificates::Authority;

/// The audience of the server under test.
pub(crate) const AUDIENCE: &str = "starlift";

/// A signing key with its name.
pub(crate) struct SigningKey {
    pub(crate) kid: String,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl SigningKey {
    /// A new key for RS256 of 2048 bits.
    pub(crate) fn rsa(kid: &str) -> Self {
        let arguments = "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048";
        let made = Command::new("openssl").args(arguments.split(' ')).output();
        let pem = made.expect("openssl is installed").stdout;
        let document = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let pair = RsaKeyPair::from_pkcs8(document.secret_pkcs8_der());
        Self::of(kid, Pair::Rsa(Box::new(pair.unwrap())))
    }

    /// A new key for ES256.
    pub(crate) fn ec(kid: &str) -> Self {
        let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random);
        Self::of(kid, Pair::Ec(pair.unwrap()))
    }

    /// A new key for `EdDSA`.
    pub(crate) fn ed(kid: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::of(
            kid,
            Pair::Ed(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()),
        )
    }

    fn of(kid: &str, pair: Pair) -> Self {
        Self {
            kid: kid.to_owned(),
            pair,
        }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ec(_) => "ES256",
            Pair::Ed(_) => "EdDSA",
        }
    }

    /// The public key as a JWK.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "n": encoded(public.n), "e": encoded(public.e)})
            }
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = (encoded(&point[1..33]), encoded(&point[33..]));
                json!({"kty": "EC", "crv": "P-256", "x": x, "y": y})
            }
            Pair::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encoded(pair.public_key())})
            }
        };
        jwk["kid"] = self.kid.as_str().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "kid": self.kid, "typ": "JWT"});
        let message = message(&header, claims);
        let (bytes, random) = (message.as_bytes(), SystemRandom::new());
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature)
                    .unwrap();
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, bytes).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(bytes).as_ref().to_vec(),
        };
        format!("{message}.{}", encoded(signature))
    }
}

/// The signed part of a token.
pub(crate) fn message(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        encoded(header.to_string()),
        encoded(claims.to_string())
    )
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// The issuer's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// 500.
    Broken,
    /// A discovery document of another issuer.
    Impostor,
    /// Keys without end.
    Huge,
    /// A thousand keys.
    Many,
    /// To another host.
    Redirecting,
}

#[derive(Debug)]
struct Shared {
    url: String,
    state: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    keys: Vec<Value>,
    mood: Mood,
    requests: usize,
    token: Option<String>,
}

/// The issuer. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Issuer {
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Issuer {
    pub(crate) async fn start(keys: &[&SigningKey]) -> Self {
        Self::start_over(keys, None).await
    }

    /// The same over HTTPS, with the certificate `server` of an authority.
    pub(crate) async fn start_tls(keys: &[&SigningKey], authority: &Authority) -> Self {
        Self::start_over(keys, Some(authority)).await
    }

    async fn start_over(keys: &[&SigningKey], authority: Option<&Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if authority.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            url: format!("{scheme}://{address}"),
            state: Mutex::new(Held {
                keys: Vec::new(),
                mood: Mood::Well,
                requests: 0,
                token: None,
            }),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(jwks))
            .with_state(Arc::clone(&shared));
        let serving = match authority {
            None => tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }),
            Some(authority) => {
                // An error means that a provider is installed already, which is fine.
                let _installed = rustls::crypto::ring::default_provider().install_default();
                let (cert, key) = (authority.path("server.cert"), authority.path("server.key"));
                let config = RustlsConfig::from_pem_file(cert, key).await.unwrap();
                let listener = listener.into_std().unwrap();
                let server = axum_server::from_tcp_rustls(listener, config).unwrap();
                tokio::spawn(async move { server.serve(router.into_make_service()).await.unwrap() })
            }
        };
        let issuer = Self { shared, serving };
        issuer.publish(keys);
        issuer
    }

    pub(crate) fn url(&self) -> &str {
        &self.shared.url
    }

    pub(crate) fn publish(&self, keys: &[&SigningKey]) {
        self.shared.state.lock().keys = keys.iter().map(|key| key.jwk()).collect();
    }

    pub(crate) fn turn(&self, mood: Mood) {
        self.shared.state.lock().mood = mood;
    }

    /// Requires a bearer token, as the API server of Kubernetes does.
    pub(crate) fn require(&self, token: &str) {
        self.shared.state.lock().token = Some(token.to_owned());
    }

    /// The number of requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.shared.state.lock().requests
    }

    /// The settings of a server that trusts this issuer.
    pub(crate) fn config(&self) -> IssuerConfig {
        let document = json!({
            "issuer": self.url(), "audience": [AUDIENCE], "prefix": "", "refresh": "100ms",
        });
        serde_json::from_value(document).unwrap()
    }

    /// Claims of a valid token for this subject.
    pub(crate) fn claims(&self, subject: &str) -> Value {
        let now = unix_now();
        json!({
            "iss": self.url(), "aud": [AUDIENCE], "sub": subject,
            "iat": now, "nbf": now, "exp": now + 600,
        })
    }
}

/// The answer of a request that is refused or spoiled; `None` if it is well.
fn spoiled(shared: &Shared, headers: &HeaderMap) -> Option<Response> {
    let mut state = shared.state.lock();
    state.requests += 1;
    let sent = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.to_str().unwrap());
    if let Some(token) = &state.token
        && sent != Some(&format!("Bearer {token}"))
    {
        return Some(StatusCode::UNAUTHORIZED.into_response());
    }
    match state.mood {
        Mood::Broken => Some(StatusCode::INTERNAL_SERVER_ERROR.into_response()),
        Mood::Redirecting => {
            let location = [(header::LOCATION, "http://127.0.0.2:9/keys")];
            Some((StatusCode::FOUND, location).into_response())
        }
        Mood::Well | Mood::Impostor | Mood::Huge | Mood::Many => None,
    }
}

async fn discovery(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if let Some(answer) = spoiled(&shared, &headers) {
        return answer;
    }
    let url = &shared.url;
    let issuer = match shared.state.lock().mood {
        Mood::Impostor => "https://other.example",
        _ => url,
    };
    let document = json!({"issuer": issuer, "jwks_uri": format!("{url}/keys")});
    axum::Json(document).into_response()
}

async fn jwks(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if let Some(answer) = spoiled(&shared, &headers) {
        return answer;
    }
    let state = shared.state.lock();
    match state.mood {
        Mood::Huge => {
            let piece = || Ok::<_, std::io::Error>(vec![b' '; 64 << 10]);
            let endless = futures::stream::repeat_with(piece);
            axum::body::Body::from_stream(endless).into_response()
        }
        Mood::Many => {
            let keys = vec![state.keys[0].clone(); 1000];
            axum::Json(json!({ "keys": keys })).into_response()
        }
        _ => axum::Json(json!({ "keys": state.keys })).into_response(),
    }
}
