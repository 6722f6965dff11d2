//! Checks that every limit of the configuration reference names the test that shows it.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{document, tests};

/// The evidence that a key works as its sentence says.
enum Shown {
    /// The name of the test.
    By(&'static str),
    /// The key is not a limit, though its value is a number, a size or a duration. The text says
    /// why.
    NoLimit(&'static str),
}

use Shown::{By, NoLimit};

/// Limits without a default, which look like other keys in the reference.
const UNSET: [&str; 14] = [
    "serve.access.issuer.refresh",
    "serve.access.issuer.unreachable",
    "serve.budgets.identity.requests",
    "serve.budgets.identity.burst",
    "serve.budgets.identity.streams",
    "serve.budgets.identity.conversions",
    "serve.budgets.identity.bytes_under_way",
    "serve.budgets.identity.stored",
    "store.cache.max_size",
    "store.retention.max_size",
    "agent.background_bandwidth",
    "agent.min_free",
    "convert.threads",
    "convert.level",
];

const LIMITS: &[(&str, Shown)] = &[
    (
        "serve.wait",
        By("the_source_image_is_served_during_the_conversion_and_the_converted_image_after"),
    ),
    (
        "serve.answer_within",
        By("a_silent_upstream_costs_a_bounded_time"),
    ),
    (
        "serve.redirect_lifetime",
        By("a_signed_url_is_good_for_as_long_as_configured"),
    ),
    (
        "serve.tag_fresh",
        By("a_tag_that_moved_is_seen_when_nothing_is_remembered"),
    ),
    (
        "serve.tag_stale_while_revalidate",
        By("a_stale_tag_is_answered_while_the_upstream_thinks"),
    ),
    (
        "serve.tag_stale_if_error",
        By("a_stale_tag_is_not_served_for_longer_than_configured"),
    ),
    (
        "serve.manifest_cache",
        By("source_manifests_that_do_not_fit_the_cache_are_fetched_again"),
    ),
    (
        "serve.max_ranges",
        By("more_ranges_than_allowed_give_the_whole"),
    ),
    (
        "serve.max_cold_reads",
        By("many_parts_of_a_cold_blob_cost_few_upstream_requests"),
    ),
    (
        "serve.max_requests",
        By("one_request_too_many_is_503_with_a_retry_after"),
    ),
    (
        "serve.max_connections",
        By("idle_connections_are_closed_for_new_ones"),
    ),
    (
        "serve.client_share",
        By("one_client_has_its_share_of_places_and_others_have_theirs"),
    ),
    (
        "serve.max_header_size",
        By("headers_over_the_limit_are_refused"),
    ),
    (
        "serve.header_timeout",
        By("a_client_that_never_ends_its_headers_is_disconnected"),
    ),
    (
        "serve.write_timeout",
        By("a_client_that_stops_reading_is_disconnected"),
    ),
    ("serve.sweep_interval", NoLimit("an interval")),
    (
        "serve.shutdown_grace",
        By("an_answer_that_never_ends_is_cut_after_the_grace"),
    ),
    ("serve.max_jobs", By("only_ended_jobs_are_forgotten")),
    ("serve.warm.interval", NoLimit("an interval")),
    (
        "serve.access.remember",
        By("a_withdrawal_upstream_holds_within_the_time_that_answers_are_remembered"),
    ),
    (
        "serve.access.unreachable",
        By("without_an_answer_a_client_keeps_its_access_for_a_while_and_a_refusal_stays"),
    ),
    (
        "serve.access.login_lifetime",
        By("expired_changed_and_foreign_tokens_are_worth_nothing"),
    ),
    (
        "serve.access.issuer.refresh",
        By("a_new_key_counts_at_once_and_a_withdrawn_one_no_longer"),
    ),
    (
        "serve.access.issuer.unreachable",
        By("known_keys_go_on_while_the_issuer_is_away_for_the_configured_time"),
    ),
    (
        "serve.budgets.identity.requests",
        By("requests_over_the_rate_are_admitted_after_the_time_that_the_answer_names"),
    ),
    (
        "serve.budgets.identity.burst",
        By("a_burst_is_admitted_and_then_the_rate"),
    ),
    (
        "serve.budgets.identity.streams",
        By("no_more_requests_of_an_identity_are_answered_at_once_than_configured"),
    ),
    (
        "serve.budgets.identity.conversions",
        By("an_identity_with_its_conversions_under_way_gets_source_images_and_may_warm_no_more"),
    ),
    (
        "serve.budgets.identity.bytes_under_way",
        By("no_more_bytes_are_under_way_to_an_identity_than_configured_but_for_a_single_answer"),
    ),
    (
        "serve.budgets.identity.stored",
        By("the_bytes_stored_for_an_identity_are_limited_also_after_a_restart"),
    ),
    ("serve.profiles.merge_interval", NoLimit("an interval")),
    (
        "serve.profiles.max_senders",
        By("a_slow_sender_delays_only_other_senders_and_not_for_long"),
    ),
    (
        "serve.profiles.starts_before_redirect",
        By("ranges_are_redirected_once_the_image_is_known"),
    ),
    ("store.part_size", By("parts_in_flight_are_bounded")),
    (
        "store.lease_ttl",
        By("a_lease_that_has_run_out_is_taken_over_once"),
    ),
    (
        "store.retention.max_age",
        By("an_image_unused_for_too_long_is_deleted_with_its_own_objects"),
    ),
    (
        "store.retention.max_size",
        By("a_store_at_its_size_takes_no_more_and_images_pass_through"),
    ),
    ("store.cache.max_size", By("the_files_stay_within_the_size")),
    (
        "store.retention.grace",
        By("bytes_without_a_record_are_deleted_after_the_grace"),
    ),
    ("store.scrub.interval", NoLimit("an interval")),
    (
        "store.scrub.rate",
        By("a_scrub_reads_no_faster_than_its_rate"),
    ),
    ("convert.level", NoLimit("a choice")),
    (
        "convert.chunk_size",
        By("no_chunk_is_larger_than_configured"),
    ),
    ("convert.min_chunk_size", NoLimit("a choice")),
    ("convert.memory", By("little_memory_means_fewer_layers")),
    ("convert.threads", NoLimit("a choice")),
    (
        "convert.layers_at_once",
        By("no_more_layers_are_converted_at_once_than_configured"),
    ),
    (
        "convert.images_at_once",
        By("no_more_images_are_converted_at_once_than_configured"),
    ),
    (
        "convert.max_layer_size",
        By("a_layer_over_the_size_limit_stays"),
    ),
    ("convert.max_unpacked_size", By("a_bomb_passes_through")),
    ("convert.least_rate", By("a_silent_upstream_is_given_up")),
    (
        "convert.slow_after",
        By("a_silent_upstream_is_given_up_sooner_while_others_wait"),
    ),
    (
        "convert.layer_within",
        By("a_body_at_the_least_rate_goes_on_to_its_deadline"),
    ),
    (
        "convert.lease_wait",
        By("a_lease_that_is_never_released_is_waited_for_as_long_as_configured"),
    ),
    ("agent.cache_size", By("the_cache_stays_within_its_limit")),
    ("agent.min_free", By("the_disk_keeps_its_free_space")),
    (
        "agent.memory",
        By("with_a_full_disk_chunks_take_no_more_memory_than_configured"),
    ),
    (
        "agent.mount_timeout",
        By("a_layer_that_cannot_be_opened_is_unpacked"),
    ),
    (
        "agent.read_timeout",
        By("a_silent_registry_is_an_error_in_time_and_is_read_again_later"),
    ),
    (
        "agent.max_request",
        By("no_request_asks_for_more_than_configured"),
    ),
    (
        "agent.profile_limit",
        By("a_profile_fetches_no_more_than_its_limit"),
    ),
    ("agent.record", NoLimit("a duration of recording")),
    (
        "agent.background_limit",
        By("limited_background_fetching_stops_at_its_limit"),
    ),
    ("agent.background_delay", NoLimit("a delay")),
    (
        "agent.background_bandwidth",
        By("background_fetching_keeps_its_bandwidth_over_all_layers"),
    ),
    ("agent.threads", NoLimit("a choice")),
    (
        "pull.certs_interval",
        By("a_change_takes_effect_while_a_source_is_used"),
    ),
    (
        "pull.connect_timeout",
        By("a_silent_or_absent_upstream_is_unavailable"),
    ),
    (
        "pull.read_timeout",
        By("a_silent_or_absent_upstream_is_unavailable"),
    ),
    ("pull.retries", By("trying_again_comes_to_an_end")),
    ("pull.retry_delay", NoLimit("a pause")),
    (
        "traces.ratio",
        By("a_client_that_wishes_for_every_trace_gets_the_configured_part"),
    ),
    (
        "traces.queue",
        By("a_collector_that_hangs_holds_up_nothing_and_spans_over_the_queue_are_dropped"),
    ),
];

/// Returns the keys of the reference whose values are numbers, sizes or durations.
fn keys(reference: &str) -> Vec<String> {
    let (mut keys, mut section) = (Vec::new(), String::new());
    for line in reference.lines() {
        if let Some(name) = line
            .strip_prefix("## `[")
            .and_then(|rest| rest.strip_suffix("]`"))
        {
            name.clone_into(&mut section);
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, key, default, ..] = cells.as_slice() else {
            continue;
        };
        let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`')) else {
            continue;
        };
        let name = format!("{section}.{key}");
        let value = default.trim_matches(['`', '"']);
        let is_measured =
            value.starts_with(|first: char| first.is_ascii_digit()) && !value.contains(':');
        if is_measured || UNSET.contains(&name.as_str()) {
            keys.push(name);
        }
    }
    keys
}

#[test]
fn every_limit_names_the_test_that_shows_it() {
    let tests = tests();
    let limits: BTreeMap<_, _> = LIMITS.iter().map(|(key, shown)| (*key, shown)).collect();
    assert_eq!(limits.len(), LIMITS.len(), "duplicate key in LIMITS");
    let keys = keys(&document("CONFIGURATION.md"));
    assert!(keys.len() > 45, "{keys:?}");
    let known: BTreeSet<_> = keys.iter().map(String::as_str).collect();
    let file = file!();
    for key in &keys {
        match limits.get(key.as_str()) {
            Some(By(test)) => {
                assert!(
                    tests.contains(*test),
                    "{file}: `{key}` names the test {test:?}, which does not exist"
                )
            }
            Some(NoLimit(reason)) => assert!(!reason.is_empty()),
            None => panic!(
                "`{key}` has no line in LIMITS of {file}: add it with the name of the test that shows that it holds, or \
                 NoLimit with the reason why it is none"
            ),
        }
    }
    let gone: Vec<_> = limits.keys().filter(|key| !known.contains(*key)).collect();
    assert!(
        gone.is_empty(),
        "{file}: no longer in the reference: {gone:?}"
    );
}
