//! Every endpoint of the server and every operation of the agent names the tests of the memory that
//! the largest hostile input costs it.

use std::fs;

use super::sources::{tests, top};

/// The evidence that an operation takes a bounded amount of memory.
#[derive(Clone, Copy)]
enum Bounded {
    By(&'static [&'static str]),
    /// It reads and sends a fixed number of bytes.
    Fixed,
}

use Bounded::{By, Fixed};

const MESSAGE: Bounded = By(&["the_longest_labels_and_filters_cost_their_messages"]);
const TREE: Bounded = By(&[
    "a_directory_of_the_most_names_is_listed_from_its_tree",
    "layers_with_the_largest_tocs_cost_their_weight",
]);
const JOBS: Bounded = By(&["the_longest_references_to_convert_cost_their_places"]);

const PAGES: Bounded = By(&["pages_of_very_many_files_cost_their_toc_once"]);

/// The paths of `src/serve/router.rs` and the operations below `/v2/`.
const SERVER: &[(&str, Bounded)] = &[
    ("/healthz", Fixed),
    ("/readyz", Fixed),
    ("/v2", Fixed),
    (
        "/v2/",
        By(&[
            "headers_that_never_end_cost_their_buffers",
            "the_longest_tokens_of_many_repositories_cost_their_cache",
            "redirects_of_all_registries_together_are_bounded_in_bytes",
        ]),
    ),
    (
        "Manifest",
        By(&[
            "the_largest_manifests_by_digest_cost_the_cache_and_the_budgets",
            "manifests_of_many_values_cost_little_while_they_wait",
            "an_index_of_many_large_children_costs_little",
            "an_index_of_the_most_children_costs_its_weight",
            "configurations_of_many_values_cost_their_weight",
            "layers_that_claim_a_toc_of_the_greatest_size_cost_their_weight",
            "a_layer_of_very_many_entries_costs_its_toc",
            "unread_answers_hold_a_bounded_amount_of_memory",
            "a_process_dies_at_its_limit_of_memory",
        ]),
    ),
    (
        "Blob",
        By(&["unread_answers_hold_a_bounded_amount_of_memory"]),
    ),
    (
        "Referrers",
        By(&["lists_of_the_most_referrers_cost_little_while_nobody_reads_them"]),
    ),
    (
        "Tags",
        By(&["lists_of_the_most_tags_cost_little_while_nobody_reads_them"]),
    ),
    (
        "/api/v1/profiles/{stack}",
        By(&[
            "the_largest_observations_of_many_senders_cost_their_weight",
            "the_largest_profiles_cost_little_while_nobody_reads_them",
        ]),
    ),
    (
        "/api/v1/notifications/{name}",
        By(&["the_largest_notifications_cost_their_weight"]),
    ),
    (
        "/token",
        By(&[
            "the_oauth2_form_gives_the_same_tokens",
            "headers_that_never_end_cost_their_buffers",
        ]),
    ),
    ("/metrics", JOBS),
    ("/", JOBS),
    ("/images", PAGES),
    ("/images/{image}", PAGES),
    ("/images/{image}/layers/{layer}", PAGES),
    ("/sign-in", Fixed),
    ("/api/v1/status", JOBS),
    ("/api/v1/conversions", JOBS),
    ("/api/v1/conversions/{id}", JOBS),
];

/// The calls of containerd and kubelet, the requests of the kernel, and the paths of the agent's
/// own interface.
const AGENT: &[(&str, Bounded)] = &[
    (
        "Prepare",
        By(&[
            "layers_with_the_largest_tocs_cost_their_weight",
            "the_largest_manifest_without_a_toc_digest_costs_its_bytes",
            "the_largest_profiles_of_images_cost_little",
            "the_largest_documents_that_refer_to_an_image_cost_little",
            "the_longest_tokens_cost_their_cache",
            "a_hosts_file_of_the_greatest_size_costs_little",
            "the_longest_labels_and_filters_cost_their_messages",
        ]),
    ),
    ("View", MESSAGE),
    ("Mounts", MESSAGE),
    ("Commit", MESSAGE),
    ("Remove", MESSAGE),
    ("Stat", MESSAGE),
    ("Update", MESSAGE),
    ("List", MESSAGE),
    ("Usage", MESSAGE),
    ("Cleanup", Fixed),
    (
        "PullImage",
        By(&["the_largest_frames_of_a_kubelet_cost_their_bytes"]),
    ),
    (
        "read",
        By(&[
            "reads_of_the_largest_chunks_cost_the_configured_memory",
            "with_a_full_disk_chunks_take_no_more_memory_than_configured",
        ]),
    ),
    ("lookup", TREE),
    ("getattr", TREE),
    ("readlink", TREE),
    ("readdir", TREE),
    ("readdirplus", TREE),
    ("getxattr", TREE),
    ("listxattr", TREE),
    ("open", Fixed),
    ("release", Fixed),
    ("flush", Fixed),
    ("opendir", Fixed),
    ("statfs", Fixed),
    ("ioctl", Fixed),
    ("access", Fixed),
    ("lseek", Fixed),
    ("STATUS", By(&["the_status_of_many_layers_costs_its_text"])),
    ("/metrics", Fixed),
    ("/healthz", Fixed),
];

fn source(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap()
}

/// Returns the words of a text that stand between `before` and one of `after`.
fn between<'a>(text: &'a str, before: &str, after: &[char]) -> Vec<&'a str> {
    text.split(before)
        .skip(1)
        .filter_map(|rest| rest.trim_start().split(after).find(|word| !word.is_empty()))
        .collect()
}

fn check(known: &[(&str, Bounded)], operations: &[&str]) {
    let tests = tests();
    for operation in operations {
        assert!(
            known.iter().any(|(name, _)| name == operation),
            "{}: {operation:?} has no line: add it with the tests that show its memory",
            file!()
        );
    }
    for (name, bounded) in known {
        if let By(names) = bounded {
            for test in *names {
                assert!(tests.contains(*test), "no test {test:?} for {name:?}");
            }
        }
    }
}

#[test]
fn every_endpoint_of_the_server_names_the_tests_of_its_memory() {
    let router = source("src/serve/router.rs");
    let mut operations = between(&router, ".route(", &['"']);
    operations.extend(between(&router, "Operation::", &['(', ' ']));
    assert!(operations.len() > 12, "{operations:?}");
    check(SERVER, &operations);
}

#[test]
fn every_operation_of_the_agent_names_the_tests_of_its_memory() {
    let snapshots = "proto/github.com/containerd/containerd/api/services/snapshots/v1";
    let snapshots = source(&format!("{snapshots}/snapshots.proto"));
    let (fuse, api) = (
        source("src/agent/fuse/adapter.rs"),
        source("src/agent/daemon/api.rs"),
    );
    let mut operations = between(&snapshots, "rpc ", &['(']);
    operations.extend(between(&fuse, "count(\"", &['"']));
    operations.extend(between(&api, ".route(", &['"', ',']));
    assert!(operations.len() > 25, "{operations:?}");
    check(AGENT, &operations);
}
