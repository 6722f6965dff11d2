//! Cached tags, and their lifetime.

use std::time::Duration;

use super::Stage;
use crate::support::image::ImageBuilder;
use crate::support::registry::Gate;

const PATH: &str = "/v2/local/app/manifests/v1";
const NEVER: Duration = Duration::ZERO;
const EVER: Duration = Duration::from_secs(3600);

async fn stage(fresh: Duration, while_revalidate: Duration, if_error: Duration) -> Stage {
    Stage::with(|config| {
        config.tag_fresh = fresh;
        config.tag_stale_while_revalidate = while_revalidate;
        config.tag_stale_if_error = if_error;
    })
    .await
}

#[tokio::test]
async fn a_fresh_tag_is_not_asked_again() {
    let stage = stage(EVER, NEVER, NEVER).await;
    stage.push_app();
    for _ in 0..5 {
        assert_eq!(stage.get(PATH).await.status, 200);
    }
    assert_eq!(stage.registry.count("HEAD", "/manifests/v1"), 1);
}

#[tokio::test]
async fn a_tag_that_moved_is_seen_when_nothing_is_remembered() {
    let stage = stage(NEVER, NEVER, NEVER).await;
    stage.push_app();
    let first = stage.get(PATH).await;
    let second = ImageBuilder::new(2).build();
    stage.registry.push("app", "v1", &second);
    let moved = stage.get(PATH).await;
    assert_ne!(moved.digest(), first.digest());
    assert_eq!(
        moved.json()["annotations"]["dev.starlift.source.digest"],
        second.digest().to_string()
    );
}

#[tokio::test]
async fn a_stale_tag_is_answered_while_the_upstream_thinks() {
    let stage = stage(NEVER, EVER, NEVER).await;
    stage.push_app();
    let first = stage.get(PATH).await;
    let gate = Gate::new();
    stage.registry.on("/manifests/v1").gate(&gate);
    assert_eq!(stage.get(PATH).await.digest(), first.digest());
    gate.reached(1).await;
    gate.open();
}

#[tokio::test]
async fn a_stale_tag_is_served_while_the_upstream_fails() {
    let stage = stage(NEVER, NEVER, EVER).await;
    stage.push_app();
    let first = stage.get(PATH).await;
    for status in [500, 503, 429] {
        stage
            .registry
            .on("/")
            .answer(status, &[("retry-after", "0")]);
        let answer = stage.get_and_head(PATH, &[]).await;
        assert_eq!(
            (answer.status, answer.digest()),
            (200, first.digest()),
            "{status}"
        );
        stage.registry.heal();
    }
    stage.registry.on("/").answer(404, &[]);
    assert_eq!(
        stage.get(PATH).await.status,
        404,
        "a deleted tag is not served from the cache"
    );
}

#[tokio::test]
async fn a_stale_tag_is_not_served_for_longer_than_configured() {
    let stage = stage(NEVER, NEVER, NEVER).await;
    stage.push_app();
    assert_eq!(stage.get(PATH).await.status, 200);
    stage.registry.on("/").answer(500, &[]);
    assert_eq!(stage.get(PATH).await.status, 502);
}
