//! Challenges, tokens and credentials.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use parking_lot::Mutex;
use starlift::registry::{Config, Error, Login, Logins, Secret, UpstreamConfig};
use starlift::transport::{Source, Upstreams};

use super::{app, at, config, source, source_of, v1};
use crate::support::image::ImageBuilder;
use crate::support::registry::{Auth, Registry, TokenAuth};

async fn registry(auth: Auth) -> Registry {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    registry.push("library/other", "v1", &ImageBuilder::new(2).build());
    registry.require(auth);
    registry
}

fn with_password(registry: &Registry, password: &str) -> UpstreamConfig {
    UpstreamConfig {
        username: Some("me".to_owned()),
        password: Some(Secret::new(password)),
        ..at(registry.url())
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_again() {
    let registry = registry(Auth::Token(TokenAuth::anonymous())).await;
    let source = source(&registry);
    for _ in 0..3 {
        source.manifest(&app(), &v1()).await.unwrap();
    }
    assert_eq!(registry.count("GET", "/token"), 1);
    assert_eq!(
        registry.count("GET", "/manifests/"),
        4,
        "one refusal, three answers"
    );
    let asked = registry
        .seen()
        .into_iter()
        .find(|seen| seen.path_and_query.starts_with("/token"))
        .unwrap();
    assert_eq!(
        asked.path_and_query,
        "/token?service=fake&scope=repository%3Alibrary%2Fapp%3Apull"
    );
    source
        .manifest(&"library/other".parse().unwrap(), &v1())
        .await
        .unwrap();
    assert_eq!(registry.count("GET", "/token"), 2, "a token for each scope");
}

#[tokio::test]
async fn many_requests_at_once_share_one_token() {
    let registry = registry(Auth::Token(TokenAuth::anonymous())).await;
    let source = source(&registry);
    let (repository, reference) = (app(), v1());
    let asked = (0..20).map(|_| source.manifest(&repository, &reference));
    for answer in futures::future::join_all(asked).await {
        answer.unwrap();
    }
    assert_eq!(registry.count("GET", "/token"), 1);
}

#[tokio::test]
async fn an_expired_token_is_renewed_once() {
    let registry = registry(Auth::Token(TokenAuth::anonymous())).await;
    let source = source(&registry);
    source.manifest(&app(), &v1()).await.unwrap();
    registry.expire_tokens();
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(registry.count("GET", "/token"), 2);
}

#[tokio::test]
async fn a_token_that_is_about_to_expire_is_not_used() {
    let auth = TokenAuth {
        expires_in: Some(0),
        ..TokenAuth::anonymous()
    };
    let registry = registry(Auth::Token(auth)).await;
    let source = source(&registry);
    source.manifest(&app(), &v1()).await.unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(registry.count("GET", "/token"), 2);
    assert_eq!(registry.count("GET", "/manifests/"), 3, "no second refusal");
}

#[tokio::test]
async fn a_password_goes_to_the_token_endpoint_only() {
    let registry = registry(Auth::Token(TokenAuth::user("me", "secret"))).await;
    source_of(config(), with_password(&registry, "secret"))
        .manifest(&app(), &v1())
        .await
        .unwrap();
    for seen in registry.seen() {
        let given = seen.authorization().unwrap_or_default();
        assert_eq!(
            given.starts_with("Basic "),
            seen.path_and_query.starts_with("/token"),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn a_wrong_password_is_an_error_and_not_a_loop() {
    for auth in [
        Auth::Token(TokenAuth::user("me", "secret")),
        Auth::Basic {
            user: "me",
            password: "secret",
        },
    ] {
        let registry = registry(auth).await;
        let answer = source_of(config(), with_password(&registry, "wrong"))
            .manifest(&app(), &v1())
            .await;
        assert!(matches!(answer, Err(Error::Unauthorized)), "{answer:?}");
        assert!(registry.seen().len() <= 3, "{:?}", registry.seen());
        let answer = source(&registry).manifest(&app(), &v1()).await;
        assert!(matches!(answer, Err(Error::Unauthorized)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_password_file_is_read_without_its_newline() {
    let registry = registry(Auth::Basic {
        user: "me",
        password: "secret",
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    let upstream = UpstreamConfig {
        username: Some("me".to_owned()),
        password_file: Some(file),
        ..at(registry.url())
    };
    source_of(config(), upstream)
        .manifest(&app(), &v1())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_configured_token_is_sent_as_it_is() {
    let registry = registry(Auth::Token(TokenAuth::anonymous())).await;
    let upstream = UpstreamConfig {
        token: Some(Secret::new("mine")),
        ..at(registry.url())
    };
    let answer = source_of(config(), upstream).manifest(&app(), &v1()).await;
    assert!(matches!(answer, Err(Error::Unauthorized)), "{answer:?}");
    assert_eq!(registry.count("GET", "/token"), 0);
    assert!(
        registry
            .seen()
            .iter()
            .any(|seen| seen.authorization() == Some("Bearer mine"))
    );
}

#[tokio::test]
async fn an_identity_token_goes_by_post() {
    let registry = registry(Auth::Token(TokenAuth::identity("refresh"))).await;
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        r#"{{"auths": {{"{}": {{"auth": "bWU6", "identitytoken": "refresh"}}}}}}"#,
        registry.host()
    );
    std::fs::write(directory.path().join("config.json"), text).unwrap();
    let config = Config {
        docker_config: Some(directory.path().to_owned()),
        ..config()
    };
    source_of(config, at(registry.url()))
        .manifest(&app(), &v1())
        .await
        .unwrap();
    assert_eq!(
        (
            registry.count("POST", "/token"),
            registry.count("GET", "/token")
        ),
        (1, 0)
    );
}

#[tokio::test]
async fn a_credential_helper_is_asked() {
    let registry = registry(Auth::Basic {
        user: "me",
        password: "secret",
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("config.json"),
        r#"{"credsStore": "mine"}"#,
    )
    .unwrap();
    let helper = directory.path().join("docker-credential-mine");
    let answer = r#"{"ServerURL": "x", "Username": "me", "Secret": "secret"}"#;
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$server\" = {} ] && echo '{answer}'\n",
        registry.host()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let place = || Some(directory.path().to_owned());
    let config = Config {
        docker_config: place(),
        credential_helpers: place(),
        ..config()
    };
    source_of(config, at(registry.url()))
        .manifest(&app(), &v1())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_token_endpoint_that_may_not_be_dialled_is_refused() {
    let elsewhere = Registry::start().await;
    let realm = Some(format!("{}/token", elsewhere.url()));
    let auth = TokenAuth {
        realm,
        ..TokenAuth::user("me", "secret")
    };
    let registry = registry(Auth::Token(auth)).await;
    let answer = source_of(config(), with_password(&registry, "secret"))
        .manifest(&app(), &v1())
        .await;
    assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn a_token_endpoint_may_be_elsewhere_where_that_is_allowed() {
    let elsewhere = Registry::start().await;
    elsewhere.on("/token").times(1).answer(503, &[]);
    let realm = Some(format!("{}/token", elsewhere.url()));
    let registry = registry(Auth::Token(TokenAuth {
        realm,
        ..TokenAuth::anonymous()
    }))
    .await;
    let config = Config {
        allowed_hosts: vec![elsewhere.host().parse().unwrap()],
        retries: 0,
        ..config()
    };
    let answer = source_of(config, at(registry.url()))
        .manifest(&app(), &v1())
        .await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    assert_eq!(elsewhere.count("GET", "/token"), 1);
}

#[tokio::test]
async fn secrets_are_not_sent_to_where_a_redirect_leads() {
    let elsewhere = Registry::start().await;
    elsewhere.require(Auth::Basic {
        user: "me",
        password: "secret",
    });
    let registry = registry(Auth::Basic {
        user: "me",
        password: "secret",
    })
    .await;
    registry
        .on("/manifests/")
        .skip(1)
        .redirect(&format!("{}/v2/library/app/manifests/v1", elsewhere.url()));
    let config = Config {
        allowed_hosts: vec![elsewhere.host().parse().unwrap()],
        ..config()
    };
    let answer = source_of(config, with_password(&registry, "secret"))
        .manifest(&app(), &v1())
        .await;
    assert!(matches!(answer, Err(Error::Unauthorized)), "{answer:?}");
    assert!(
        registry
            .seen()
            .iter()
            .any(|seen| seen.authorization().is_some())
    );
    assert_eq!(
        elsewhere.seen().len(),
        1,
        "the challenge of another host is ignored"
    );
    assert_eq!(elsewhere.seen()[0].authorization(), None);
}

/// Returns the upstream `local`, and a caller with a login for its repository `library/app`.
fn with_logins(upstream: UpstreamConfig, known: &Arc<Mutex<Option<Login>>>) -> Source {
    let config = Config {
        upstream: [("local".to_owned(), upstream)].into(),
        ..config()
    };
    let known = Arc::clone(known);
    let logins = Logins::new(move |name, repository| {
        (name == "local" && *repository == app()).then(|| known.lock().clone())?
    });
    Upstreams::with_logins(&config, logins)
        .unwrap()
        .get("local")
        .unwrap()
}

fn password(password: &str) -> Login {
    Login::Password {
        user: "me".to_owned(),
        password: Secret::new(password),
    }
}

#[tokio::test]
async fn a_callers_login_is_used_only_for_its_repository() {
    for auth in [
        Auth::Basic {
            user: "me",
            password: "secret",
        },
        Auth::Token(TokenAuth::user("me", "secret")),
    ] {
        let registry = registry(auth).await;
        let source = with_logins(
            at(registry.url()),
            &Arc::new(Mutex::new(Some(password("secret")))),
        );
        source.manifest(&app(), &v1()).await.unwrap();
        let other = source
            .manifest(&"library/other".parse().unwrap(), &v1())
            .await;
        assert!(matches!(other, Err(Error::Unauthorized)), "{other:?}");
    }
    let registry = registry(Auth::Token(TokenAuth::identity("refresh"))).await;
    let known = Arc::new(Mutex::new(Some(Login::Identity(Secret::new("refresh")))));
    with_logins(at(registry.url()), &known)
        .manifest(&app(), &v1())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_caller_may_learn_a_login_later_and_another_after_that() {
    let registry = registry(Auth::Basic {
        user: "me",
        password: "one",
    })
    .await;
    let known = Arc::new(Mutex::new(None));
    let source = with_logins(at(registry.url()), &known);
    let manifest = async || source.manifest(&app(), &v1()).await;
    assert!(matches!(manifest().await, Err(Error::Unauthorized)));
    *known.lock() = Some(password("one"));
    manifest().await.unwrap();
    registry.require(Auth::Basic {
        user: "me",
        password: "two",
    });
    assert!(matches!(manifest().await, Err(Error::Unauthorized)));
    *known.lock() = Some(password("two"));
    manifest().await.unwrap();
}

#[tokio::test]
async fn configured_logins_precede_those_of_callers_and_mirrors_get_none() {
    let registry = registry(Auth::Basic {
        user: "me",
        password: "secret",
    })
    .await;
    let wrong = Arc::new(Mutex::new(Some(password("wrong"))));
    with_logins(with_password(&registry, "secret"), &wrong)
        .manifest(&app(), &v1())
        .await
        .unwrap();

    let mirror = self::registry(Auth::Basic {
        user: "me",
        password: "secret",
    })
    .await;
    let known = Arc::new(Mutex::new(Some(password("secret"))));
    let source = with_logins(
        UpstreamConfig {
            mirrors: vec![mirror.url()],
            ..at(registry.url())
        },
        &known,
    );
    source.manifest(&app(), &v1()).await.unwrap();
    assert!(
        !mirror.seen().is_empty()
            && mirror
                .seen()
                .iter()
                .all(|seen| seen.authorization().is_none())
    );
}

#[tokio::test]
async fn a_refusal_that_is_momentary_costs_one_more_token() {
    for status in [401, 403] {
        let registry = registry(Auth::Token(TokenAuth::anonymous())).await;
        registry
            .on("/manifests/")
            .skip(1)
            .times(1)
            .answer(status, &[]);
        source(&registry).manifest(&app(), &v1()).await.unwrap();
        assert_eq!(
            (
                registry.count("GET", "/token"),
                registry.count("GET", "/manifests/")
            ),
            (2, 3),
            "{status}"
        );
        registry.on("/manifests/").answer(403, &[]);
        let answer = source(&registry).manifest(&app(), &v1()).await;
        assert!(matches!(answer, Err(Error::Denied)), "{answer:?}");
        assert_eq!(
            registry.count("GET", "/manifests/"),
            5,
            "a single further request"
        );
    }
}

#[tokio::test]
async fn a_token_longer_than_any_server_takes_is_refused() {
    let registry = registry(Auth::Token(TokenAuth::anonymous())).await;
    let token = format!(r#"{{"token":"{}"}}"#, "a".repeat(40 << 10));
    registry.on("/token").reply(200, &[], token);
    let answer = source(&registry).manifest(&app(), &v1()).await;
    assert!(matches!(answer, Err(Error::TooLarge { .. })), "{answer:?}");
}
