//! Keys of the configuration that fight each other, and files that it names.

use bytesize::ByteSize;

use crate::doctor::Check;
use crate::failure::Failure;
use crate::provenance::SigningKey;
use crate::serve;

use super::Parts;

/// S3 accepts no more parts of one object.
const MOST_PARTS: u64 = 10_000;

const WHAT: &str = "configuration";

/// A finding: whether it applies, the text, the repair.
type Finding = (bool, String, &'static str);

pub(super) async fn check(parts: &Parts<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut bad = |told: String, mend: &str| checks.push(Check::bad(WHAT, told, mend));
    const REFUSED: &str = "the server does not start until this is corrected";
    if let Err(error) = parts.serve.check() {
        bad(error.to_string(), REFUSED);
    }
    if let Err(error) = serve::check_sources(parts.serve).await {
        bad(Failure::from_error(error).to_string(), REFUSED);
    }
    if let Some(Err(error)) = parts.convert.signing_key.as_deref().map(SigningKey::read) {
        bad(Failure::from_error(error).to_string(), REFUSED);
    }
    for (_, told, mend) in severe(parts).into_iter().filter(|(applies, ..)| *applies) {
        bad(told, mend);
    }
    for (_, told, mend) in mild(parts).into_iter().filter(|(applies, ..)| *applies) {
        checks.push(Check::fair(WHAT, told, mend));
    }
    if checks.is_empty() {
        checks.push(Check::good(WHAT, "no keys fight each other"));
    }
    checks
}

fn is_bucket(parts: &Parts<'_>) -> bool {
    parts.store.location.contains("://") && !parts.store.location.starts_with("file://")
}

/// With these, something that is configured cannot work.
fn severe(parts: &Parts<'_>) -> Vec<Finding> {
    let Parts {
        serve,
        store,
        convert,
        ..
    } = *parts;
    let largest = store.part_size.as_u64().saturating_mul(MOST_PARTS);
    let has_own_users = serve.access.htpasswd.is_some() || serve.access.token_file.is_some();
    vec![
        (
            serve.has_api_listener() && !parts.is_allow_set,
            "serve.listen is beyond loopback and pull.allow is not set: the server does not start"
                .to_owned(),
            "[pull] allow: the hosts that may be pulled from",
        ),
        (
            store.cache.is_some() && !is_bucket(parts),
            "store.cache is for buckets, and the store is a folder: the server does not start"
                .to_owned(),
            "remove [store.cache]",
        ),
        (
            store
                .retention
                .max_size
                .is_some_and(|size| size < convert.memory),
            format!(
                "store.retention.max_size is {}: hardly any layer fits",
                shown(store.retention.max_size)
            ),
            "raise it: a gigabyte is little for a store",
        ),
        (
            is_bucket(parts) && convert.max_layer_size.as_u64() > largest,
            format!(
                "a layer of convert.max_layer_size ({}) needs more than {MOST_PARTS} parts of store.part_size ({})",
                convert.max_layer_size.display().iec(),
                store.part_size.display().iec()
            ),
            "raise store.part_size, or lower convert.max_layer_size",
        ),
        (
            has_own_users
                && serve.has_api_listener()
                && serve.tls.is_none()
                && serve.trusted_proxies.is_empty(),
            "passwords and tokens of clients cross the network without TLS".to_owned(),
            "[serve.tls], or a proxy with TLS in front, named in serve.trusted_proxies",
        ),
    ]
}

fn shown(size: Option<ByteSize>) -> String {
    size.map_or_else(String::new, |size| size.display().iec().to_string())
}

/// With these, something is slower, or weaker, than it looks.
fn mild(parts: &Parts<'_>) -> Vec<Finding> {
    let Parts {
        serve,
        store,
        upstreams,
        ..
    } = *parts;
    let time = humantime::format_duration;
    vec![
        (
            serve.redirect && !is_bucket(parts),
            "serve.redirect has no effect: a folder has no signed URLs".to_owned(),
            "remove serve.redirect, or use a bucket",
        ),
        (
            serve.hosts.is_empty() && serve.has_api_listener(),
            "serve.hosts is empty: the server answers under any name, except to browsers".to_owned(),
            "serve.hosts: the names by which clients reach the server",
        ),
        (
            upstreams.read_timeout >= serve.answer_within,
            format!(
                "pull.read_timeout ({}) is not below serve.answer_within ({}): a silent mirror uses all the time",
                time(upstreams.read_timeout),
                time(serve.answer_within)
            ),
            "lower pull.read_timeout, so that the next host is asked before the client gives up",
        ),
        (
            serve.tag_stale_if_error < serve.tag_fresh + serve.tag_stale_while_revalidate,
            format!(
                "serve.tag_stale_if_error ({}) is shorter than tags are served without any error",
                time(serve.tag_stale_if_error)
            ),
            "raise it above serve.tag_fresh and serve.tag_stale_while_revalidate together",
        ),
        (
            store.retention.max_age.is_some_and(|age| age < store.retention.grace),
            "store.retention.max_age is below store.retention.grace, which wins".to_owned(),
            "raise max_age, or lower grace",
        ),
        (
            store.retention.max_size.is_none() && store.retention.max_age.is_none(),
            "neither store.retention.max_size nor max_age is set: the store only grows".to_owned(),
            "set one of them",
        ),
        (
            !serve.notifications.is_empty() && !serve.has_api_listener(),
            "serve.notifications: the server listens on loopback, where only registries of this machine reach it".to_owned(),
            "serve.listen: an address that the registries reach",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::convert;
    use crate::doctor::State;
    use crate::registry;
    use crate::store;

    /// A change of the configuration.
    type Change<'a> = &'a dyn Fn(&mut Whole);

    #[derive(Default)]
    struct Whole {
        serve: serve::Config,
        store: store::Config,
        convert: convert::Config,
        upstreams: registry::Config,
    }

    async fn found(change: impl FnOnce(&mut Whole)) -> Vec<(State, String)> {
        let mut whole = Whole::default();
        change(&mut whole);
        let parts = Parts {
            serve: &whole.serve,
            store: &whole.store,
            convert: &whole.convert,
            upstreams: &whole.upstreams,
            is_allow_set: false,
        };
        let checks = check(&parts).await;
        checks
            .into_iter()
            .map(|check| (check.state, check.told))
            .collect()
    }

    #[tokio::test]
    async fn the_defaults_fight_no_one() {
        let found = found(|_| {}).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, State::Good, "{found:?}");
    }

    #[tokio::test]
    async fn keys_that_fight_each_other_are_named() {
        let bucket = |whole: &mut Whole| whole.store.location = "s3://images".to_owned();
        let cases: [(&str, State, Change<'_>); 9] = [
            ("pull.allow is not set", State::Bad, &|whole| {
                whole.serve.listen = ([0, 0, 0, 0], 8080).into();
            }),
            ("serve.wait is over", State::Bad, &|whole| {
                whole.serve.wait = Duration::from_secs(60);
            }),
            ("store.cache is for buckets", State::Bad, &|whole| {
                whole.store.cache = Some(store::RangeCacheConfig {
                    folder: "cache".into(),
                    max_size: ByteSize::gib(1),
                });
            }),
            ("hardly any layer fits", State::Bad, &|whole| {
                whole.store.retention.max_size = Some(ByteSize::mib(1));
            }),
            ("more than 10000 parts", State::Bad, &|whole| {
                bucket(whole);
                whole.store.part_size = ByteSize::mib(5);
                whole.convert.max_layer_size = ByteSize::gib(64);
            }),
            ("private key", State::Bad, &|whole| {
                whole.convert.signing_key = Some("/nowhere/private key".into());
            }),
            ("serve.redirect has no effect", State::Fair, &|whole| {
                whole.serve.redirect = true;
            }),
            ("a silent mirror", State::Fair, &|whole| {
                whole.upstreams.read_timeout = Duration::from_secs(25);
            }),
            ("the store only grows", State::Fair, &|whole| {
                whole.store.retention.max_age = None;
            }),
        ];
        for (text, state, change) in cases {
            let found = found(|whole| change(whole)).await;
            let finding = found.iter().find(|(_, told)| told.contains(text));
            assert_eq!(
                finding.map(|(state, _)| *state),
                Some(state),
                "{text}: {found:?}"
            );
        }
    }
}
