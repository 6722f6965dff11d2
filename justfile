# Daily commands. `just` lists them; docs/DEVELOPMENT.md explains them.
# Each recipe only calls cargo or a script of this repository, so the commands also work without `just`.

set positional-arguments

target := env_var_or_default("CARGO_TARGET_DIR", "target")
# The tests that start agents mount file systems, which only root may do.
rootless := if `id -u` == "0" { "not (binary(it) and test(/^clients::/))" } else { "not (binary(it) and test(/^(clients|agent)::/) - test(/^agent::cri_proxy::/))" }
as_root := if `id -u` == "0" { "" } else { "sudo" }

# List the recipes
default:
    @just --list --unsorted

# Format, lints and documentation, as .ci/test checks them; no tests
check:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps --document-private-items

# Tests without real clients, and without root those that need no root: `just test`, `just test ranges --no-capture`
test *FILTER: _nextest
    cargo nextest run --locked --workspace -E {{ quote(rootless) }} "$@"

# Tests with real clients, as root: the tools that .ci/run installs; a test whose tool is absent is skipped
test-real *FILTER: _nextest
    cargo nextest run --locked -p starlift --test it -E 'test(/^clients::/)' "$@"

# Every check of .ci/test, in its order
ci:
    .ci/test

# Generate docs/CONFIGURATION.md and docs/METRICS.md again from the source, then the API documentation
docs: _nextest
    UPDATE_DOCS=1 cargo nextest run --locked -p starlift --test it -E 'test(the_reference_matches_the_source) or test(the_metrics_reference_is_fresh)'
    cargo doc --locked --workspace --no-deps --document-private-items

# Accept the writer's new bytes: writes the digests of the golden blobs into their test
bless:
    #!/usr/bin/env bash
    set -euo pipefail
    golden=crates/estargz/tests/write/golden.rs
    test=the_bytes_are_those_of_this_generation
    if output="$(cargo test --locked -p estargz --test write "$test" 2>&1)"; then
        echo "$test passes: nothing to do"
        exit 0
    fi
    digests="$(grep -m1 '^ *left: \[' <<<"$output" | grep -o 'sha256:[0-9a-f]*' || true)"
    if [ "$(wc -l <<<"$digests")" != "$(grep -c 'sha256:' "$golden")" ]; then
        echo "$output" >&2
        exit 1
    fi
    awk -v list="$(tr '\n' ' ' <<<"$digests")" '
        BEGIN { split(list, digest, " ") }
        match($0, /sha256:[0-9a-f]+/) { $0 = substr($0, 1, RSTART - 1) digest[++n] substr($0, RSTART + RLENGTH) }
        { print }
    ' "$golden" >"$golden.new"
    mv "$golden.new" "$golden"
    git --no-pager diff --stat -- "$golden"
    echo "Changed bytes are a new generation: raise FORMAT_GENERATION in src/convert/config.rs and note it in CHANGELOG.md."

# A load test: `just bench convert --rounds 3`; loadtests/README.md lists the scenarios and what each one needs
bench SCENARIO *ARGS:
    cargo build --locked --release
    cargo run --locked --release -p loadtests -- "$@"

# `starlift serve` from this source, on 127.0.0.1:8080 with its store in ./starlift-store
run-server *ARGS:
    cargo run --locked -- serve "$@"

# `starlift agent` from this source, as root: needs /dev/fuse
run-agent *ARGS:
    cargo build --locked
    {{ as_root }} {{ quote(target / "debug/starlift") }} agent "$@"

# A flame graph of one command in target/flame.svg: `just flame convert oci:in:1 oci:out:1`. Needs perf, and inferno or the FlameGraph scripts
flame *COMMAND:
    #!/usr/bin/env bash
    set -euo pipefail
    command -v perf >/dev/null || { echo "perf is missing: apt-get install linux-perf" >&2; exit 1; }
    cargo build --locked --profile profiling
    data={{ quote(target / "perf.data") }}
    svg={{ quote(target / "flame.svg") }}
    status=0
    # Ctrl-C ends the command, not this script.
    trap : INT
    perf record -F 997 --call-graph dwarf,16384 -o "$data" -- {{ quote(target / "profiling/starlift") }} "$@" || status=$?
    [ "$status" = 0 ] || echo "the command ended with status $status; the samples up to then are shown" >&2
    if command -v inferno-flamegraph >/dev/null; then
        perf script --no-inline -i "$data" | inferno-collapse-perf | inferno-flamegraph >"$svg"
    elif command -v flamegraph.pl >/dev/null; then
        perf script --no-inline -i "$data" | stackcollapse-perf.pl | flamegraph.pl >"$svg"
    else
        echo "no flame graph: cargo install --locked inferno; the text report instead" >&2
        exec perf report --no-inline -i "$data" --stdio --no-children --percent-limit 1
    fi
    echo "$svg"

# nextest runs the tests; .ci/test installs it in the same way
_nextest:
    @cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest
