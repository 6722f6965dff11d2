//! The identity of a machine at Starlift servers: a token from a file, and a certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use starlift::registry::{Config, Error, Login, Logins, Secret, ServerIdentity};
use starlift::serve::TlsConfig;
use starlift::transport::{Source, Upstreams};

use super::{config, v1};
use crate::server::access::rule;
use crate::server::{Running, Stage};
use crate::support::certificates::{Authority, CLIENT, SERVER};
use crate::support::eventually::eventually_async;
use crate::support::image::ImageBuilder;
use crate::support::issuer::{Issuer, SigningKey};
use crate::support::registry::{Auth, Registry, TokenAuth};

const AGENT: &str = "system:serviceaccount:starlift:agent";

/// A server where the agent may pull `local/app` and `carol` may pull `local/other`.
async fn server(issuer: &Issuer, htpasswd: PathBuf) -> Stage {
    let hash = bcrypt::hash("carol-secret", 4).unwrap();
    std::fs::write(&htpasswd, format!("carol:{hash}\n")).unwrap();
    let stage = Stage::with(|config| {
        config.access.issuer = vec![issuer.config()];
        config.access.htpasswd = Some(htpasswd);
        config.access.remember = Duration::from_millis(100);
        config.access.rule = vec![
            rule(&[&format!("user:{AGENT}")], &["pull"], &["local/app"]),
            rule(&["user:carol"], &["pull"], &["local/other"]),
        ];
    })
    .await;
    stage.push_app();
    stage
        .registry
        .push("other", "v1", &ImageBuilder::new(2).build());
    stage
}

/// The settings of a machine that knows the servers on loopback.
fn machine(servers: &str, identity: ServerIdentity) -> Config {
    let identity = ServerIdentity {
        servers: vec![servers.parse().unwrap()],
        ..identity
    };
    Config {
        plain_http_loopback: true,
        certs_interval: Duration::ZERO,
        retries: 0,
        identity,
        ..config()
    }
}

fn token_in(file: &Path) -> ServerIdentity {
    ServerIdentity {
        token_file: Some(file.to_owned()),
        ..ServerIdentity::default()
    }
}

fn of(upstreams: &Upstreams, server: &Running) -> Source {
    upstreams.get(&server.address.to_string()).unwrap()
}

async fn pull(source: &Source, name: &str) -> Result<(), Error> {
    let pulled = source.manifest(&name.parse().unwrap(), &v1()).await;
    pulled.map(drop)
}

#[tokio::test]
async fn a_machines_token_is_read_again_when_a_server_refuses_it() {
    let (key, next) = (SigningKey::ec("a"), SigningKey::ec("b"));
    let issuer = Issuer::start(&[&key]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let stage = server(&issuer, folder.path().join("htpasswd")).await;
    std::fs::write(&file, key.sign(&issuer.claims(AGENT))).unwrap();
    let upstreams = Upstreams::new(&machine("127.0.0.1", token_in(&file))).unwrap();
    let source = of(&upstreams, &stage.server);
    pull(&source, "local/app").await.unwrap();
    let refused = pull(&source, "local/other").await;
    assert!(matches!(refused, Err(Error::Unauthorized)), "{refused:?}");
    // A kubelet writes another token before the old one expires.
    issuer.publish(&[&next]);
    eventually_async("the old token is refused", async || {
        pull(&source, "local/app").await.is_err()
    })
    .await;
    std::fs::write(&file, format!("{}\n", next.sign(&issuer.claims(AGENT)))).unwrap();
    pull(&source, "local/app").await.unwrap();
}

#[tokio::test]
async fn a_machines_identity_goes_to_listed_servers_only() {
    let key = SigningKey::ec("a");
    let issuer = Issuer::start(&[&key]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, key.sign(&issuer.claims(AGENT))).unwrap();
    let registry = Registry::start().await;
    registry.require(Auth::Token(TokenAuth::user("me", "it")));
    for (servers, expected) in [("other.test", 0), ("127.0.0.1", 1)] {
        let upstreams = Upstreams::new(&machine(servers, token_in(&file))).unwrap();
        let source = upstreams.get(&registry.host()).unwrap();
        assert!(pull(&source, "library/app").await.is_err());
        let seen = registry.seen();
        let sent = seen.iter().filter_map(|seen| seen.authorization());
        let bearers = sent.filter(|sent| sent.starts_with("Bearer ")).count();
        assert_eq!(bearers.min(1), expected, "{servers}");
    }
}

#[tokio::test]
async fn the_identity_and_the_credentials_of_a_pull_stand_in_for_each_other() {
    let (key, other) = (SigningKey::ec("a"), SigningKey::ec("b"));
    let issuer = Issuer::start(&[&key]).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, htpasswd) = (folder.path().join("token"), folder.path().join("htpasswd"));
    let stage = server(&issuer, htpasswd.clone()).await;
    std::fs::write(&file, key.sign(&issuer.claims(AGENT))).unwrap();
    let login = |password: &str| Login::Password {
        user: "carol".to_owned(),
        password: Secret::new(password),
    };
    let with = |password: &str| {
        let logins = Logins::for_host(stage.server.address.to_string(), login(password));
        Upstreams::with_logins(&machine("127.0.0.1", token_in(&file)), logins).unwrap()
    };
    let both = of(&with("carol-secret"), &stage.server);
    for name in ["local/app", "local/other", "local/app", "local/other"] {
        pull(&both, name).await.unwrap();
    }
    // The secret of the pull has expired: the machine's own right remains.
    let expired = of(&with("carol-secret-of-yesterday"), &stage.server);
    pull(&expired, "local/app").await.unwrap();
    let refused = pull(&expired, "local/other").await;
    assert!(matches!(refused, Err(Error::Unauthorized)), "{refused:?}");
    // The machine's own right is gone: that of the pull remains, for its image.
    issuer.publish(&[&other]);
    eventually_async("the identity is refused", async || {
        pull(&expired, "local/app").await.is_err()
    })
    .await;
    pull(&both, "local/other").await.unwrap();
    // Without its file as well.
    std::fs::remove_file(&file).unwrap();
    pull(&of(&with("carol-secret"), &stage.server), "local/other")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_machines_certificate_is_shown_to_listed_servers_and_read_again_when_it_changes() {
    let authority = Authority::new();
    authority.issue("server", "/CN=server", SERVER, 2);
    for name in ["node-1", "node-2"] {
        authority.issue(name, &format!("/CN={name}"), CLIENT, 2);
    }
    let stage = Stage::new().await;
    stage.push_app();
    let tls = TlsConfig {
        cert: authority.path("server.cert"),
        key: authority.path("server.key"),
        client_ca: Some(authority.path("ca.crt")),
    };
    let server = stage.another(|config| {
        config.tls = Some(tls);
        config.access.rule = vec![rule(&["user:cert:node-1"], &["pull"], &["local/app"])];
    });
    let server = server.await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder
        .path()
        .join("certs.d")
        .join(server.address.to_string());
    std::fs::create_dir_all(&hosts).unwrap();
    std::fs::copy(authority.path("ca.crt"), hosts.join("ca.crt")).unwrap();
    let own = |extension: &str| folder.path().join(format!("own.{extension}"));
    let become_machine = |name: &str| {
        for extension in ["cert", "key"] {
            // Another file, as tools that renew certificates write it.
            let new = own("new");
            std::fs::copy(authority.path(&format!("{name}.{extension}")), &new).unwrap();
            std::fs::rename(new, own(extension)).unwrap();
        }
    };
    become_machine("node-2");
    let identity = ServerIdentity {
        client_cert: Some(own("cert")),
        client_key: Some(own("key")),
        ..ServerIdentity::default()
    };
    let with = |servers: &str| {
        let config = Config {
            certs_dir: Some(folder.path().join("certs.d")),
            plain_http_loopback: false,
            ..machine(servers, identity.clone())
        };
        of(&Upstreams::new(&config).unwrap(), &server)
    };
    let listed = with("127.0.0.1");
    let refused = pull(&listed, "local/app").await;
    assert!(
        matches!(refused, Err(Error::Denied | Error::Unauthorized)),
        "{refused:?}"
    );
    become_machine("node-1");
    pull(&listed, "local/app").await.unwrap();
    assert!(pull(&with("other.test"), "local/app").await.is_err());
}
