//! Runs minutes of mixed load on three replicas over one S3-compatible store: cold and warm pulls,
//! ranges, abusive clients, upstreams that trickle, lie, cut and stay silent, a failing store,
//! killed replicas.
//!
//! Nothing is asserted about speed. The invariants: no completed answer has a wrong byte, no
//! replica ends by itself, nothing panics, and the resources held at the end are those held at the
//! start.

mod abuse;
mod clients;
mod replicas;
mod tally;
mod upstream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::plot::{Curve, Lines, Plot};
use crate::report::Report;
use crate::soak::clients::{Shared, client};
use crate::soak::replicas::{Replica, Sample, Settings};
use crate::soak::tally::Outcome;
use crate::soak::upstream::{Behaviour, Upstream};
use crate::support::image::Random;
use crate::support::s3::{self, Fault, S3};

/// The number of replicas over one bucket. The first is never killed, so that a leak shows.
const REPLICAS: usize = 3;
const PULLERS: u8 = 6;
const RANGE_CLIENTS: u8 = 4;
const ABUSERS: u8 = 8;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// The time between two kills, and (`AWAY_FOR`) the time until the killed replica restarts.
const KILL_EVERY: Duration = Duration::from_secs(25);
const AWAY_FOR: Duration = Duration::from_secs(2);
/// The store fails for a while, then works for a while, and so on.
const STORE_FAILS_FOR: Duration = Duration::from_secs(4);
const STORE_WORKS_FOR: Duration = Duration::from_secs(20);
/// The time within which all replicas must be idle after the load.
const REST_WITHIN: Duration = Duration::from_secs(180);
/// Descriptors that may be open when idle beyond those at the start: kept connections to upstreams
/// and the store.
const KEPT_DESCRIPTORS: f64 = 64.0;
/// Gauges that are zero when a replica is idle.
const ZERO_AT_REST: [&str; 1] = ["starlift_conversions_running"];

/// Returns one figure of a sample.
type Figure = fn(&Sample) -> f64;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The executable to soak.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Duration of the load in seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Number of images in each upstream.
    #[arg(long, default_value_t = 40)]
    images: usize,
    /// Approximate most bytes of a layer's tar.
    #[arg(long, default_value_t = 8 << 20)]
    layer: usize,
}

/// The replicas' samples, kills and crashes during the soak.
#[derive(Debug, Default)]
struct Seen {
    samples: Vec<Vec<Sample>>,
    /// The time since the start in seconds, and the number of the replica.
    kills: Vec<(f64, usize)>,
    crashes: Vec<String>,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    // An error means that an earlier client installed it already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(soak(arguments))
}

async fn soak(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin("soak", "Three replicas over one bucket, everything at once")?;
    let folder = tempfile::tempdir()?;
    let s3 = S3::start().await;
    let mut upstreams = Vec::new();
    for behaviour in Behaviour::ALL {
        // The honest upstream has most of the images, because the well-behaved clients pull mostly
        // from it.
        let count = if behaviour == Behaviour::Honest {
            arguments.images
        } else {
            arguments.images.div_ceil(8)
        };
        upstreams.push(Upstream::start(behaviour, count, arguments.layer).await?);
    }
    let settings = Settings {
        executable: &arguments.starlift,
        upstreams: &upstreams,
        s3: &s3.endpoint,
        bucket: s3::BUCKET,
        folder: folder.path(),
    };
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        replicas.push(Replica::start(number, &settings).await?);
    }
    let begun = Instant::now();
    let before: Vec<Sample> = replicas
        .iter()
        .filter_map(|replica| replica.sample(begun))
        .collect();
    let gauges_before = replicas[0].gauges().await?;
    let shared = Shared::new(
        replicas.iter().map(|replica| replica.address).collect(),
        upstreams,
    );
    let load = start_load(&shared)?;
    let mut seen = Seen {
        samples: vec![Vec::new(); REPLICAS],
        ..Seen::default()
    };
    disturb(
        &mut replicas,
        &s3,
        begun,
        Duration::from_secs(arguments.seconds),
        &mut seen,
    )
    .await?;
    for task in load {
        task.abort();
    }
    let rested = come_to_rest(&mut replicas, begun, &mut seen).await?;
    let after: Vec<Sample> = replicas
        .iter()
        .filter_map(|replica| replica.sample(begun))
        .collect();
    let gauges_after = replicas[0].gauges().await?;
    let panics = replicas
        .iter()
        .map(Replica::panics)
        .sum::<anyhow::Result<usize>>()?;

    report.note(format!(
        "{} s of load: {PULLERS} pulling clients, {RANGE_CLIENTS} asking for ranges, {ABUSERS} abusive; {} kills; the store \
         fails for {} of every {} s; upstreams: {} images honest, {} each trickling, lying, cutting, silent",
        arguments.seconds,
        seen.kills.len(),
        STORE_FAILS_FOR.as_secs(),
        (STORE_FAILS_FOR + STORE_WORKS_FOR).as_secs(),
        arguments.images,
        arguments.images.div_ceil(8),
    ));
    let rest = rested.map_or_else(
        || "not at rest".to_owned(),
        |seconds| format!("at rest {seconds:.0} s after the load"),
    );
    report.note(format!("{rest}; panics in the logs: {panics}"));
    report.table(
        "Requests",
        &["client", "outcome", "count"],
        shared.tally.rows(),
    );
    report.table(
        "Replicas",
        &["replica", "kills", "", "before", "peak", "at rest"],
        rows(&replicas, &before, &seen, &after),
    );
    report.table(
        "Gauges of replica 1, never killed",
        &["gauge", "before", "at rest"],
        gauges(&gauges_before, &gauges_after),
    );
    for (title, unit, value) in [
        (
            "Resident memory",
            "MiB",
            (|sample| sample.memory_mib) as Figure,
        ),
        ("Open descriptors", "descriptors", |sample| {
            sample.descriptors
        }),
    ] {
        report.plot(lines(title, unit, value, &seen));
    }
    let failures = failures(&shared, &seen, panics, rested, (&before, &after));
    failures
        .into_iter()
        .for_each(|failure| report.fail(failure));
    Ok(report)
}

/// Returns the violated invariants.
fn failures(
    shared: &Shared,
    seen: &Seen,
    panics: usize,
    rested: Option<f64>,
    (before, after): (&[Sample], &[Sample]),
) -> Vec<String> {
    let mut failures: Vec<String> = shared
        .tally
        .wrong()
        .into_iter()
        .map(|wrong| format!("wrong: {wrong}"))
        .collect();
    failures.extend(
        seen.crashes
            .iter()
            .map(|crash| format!("ended by itself: {crash}")),
    );
    if panics > 0 {
        failures.push(format!("{panics} panics in the logs"));
    }
    if shared.tally.total("converted image, verified") == 0 {
        failures.push("no image was converted".to_owned());
    }
    if rested.is_none() {
        failures.push(format!(
            "not idle {} s after the load",
            REST_WITHIN.as_secs()
        ));
    }
    for (start, end) in before.iter().zip(after) {
        if end.descriptors > start.descriptors + KEPT_DESCRIPTORS {
            failures.push(format!(
                "{} descriptors when idle, {} before",
                end.descriptors, start.descriptors
            ));
        }
    }
    failures
}

/// Starts all clients, each in a task that runs until it is aborted.
fn start_load(shared: &Arc<Shared>) -> anyhow::Result<Vec<tokio::task::JoinHandle<()>>> {
    let mut tasks = Vec::new();
    for number in 0..PULLERS {
        let (shared, client, mut random) = (
            Arc::clone(shared),
            client(number + 1)?,
            Random::new(100 + u64::from(number)),
        );
        tasks.push(tokio::spawn(async move {
            loop {
                let outcome = shared.pull(&client, &mut random).await;
                pause_after(&outcome).await;
                shared.tally.count("pull", outcome);
            }
        }));
    }
    for number in 0..RANGE_CLIENTS {
        let (shared, client, mut random) = (
            Arc::clone(shared),
            client(number + 50)?,
            Random::new(200 + u64::from(number)),
        );
        tasks.push(tokio::spawn(async move {
            loop {
                let outcome = shared.ranges(&client, &mut random).await;
                pause_after(&outcome).await;
                shared.tally.count("ranges", outcome);
            }
        }));
    }
    for number in 0..ABUSERS {
        let (shared, mut random) = (Arc::clone(shared), Random::new(300 + u64::from(number)));
        tasks.push(tokio::spawn(async move {
            loop {
                abuse::once(&shared, number + 1, &mut random).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
    }
    Ok(tasks)
}

/// Pauses a client after a refusal, as engines do.
async fn pause_after(outcome: &Outcome) {
    let pause = if matches!(outcome, Outcome::Refused(_) | Outcome::Broken) {
        500
    } else {
        20
    };
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

/// Alternates between killing replicas and breaking the store until the time is over; takes samples
/// meanwhile.
async fn disturb(
    replicas: &mut [Replica],
    s3: &S3,
    begun: Instant,
    length: Duration,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let mut random = Random::new(7);
    let (mut next_kill, mut away) = (KILL_EVERY, None);
    let mut store_turn = STORE_WORKS_FOR;
    let mut store_fails = false;
    while begun.elapsed() < length {
        tokio::time::sleep(SAMPLE_EVERY).await;
        sample(replicas, begun, seen);
        let now = begun.elapsed();
        if now >= store_turn {
            store_fails = !store_fails;
            store_turn = now
                + if store_fails {
                    STORE_FAILS_FOR
                } else {
                    STORE_WORKS_FOR
                };
            if store_fails {
                s3.fail(|asked| fault(asked.number))
            } else {
                s3.fail(|_| Fault::None)
            }
        }
        match away {
            Some((victim, until)) if now >= until && !store_fails => {
                let replica: &mut Replica = &mut replicas[victim];
                replica.restart().await?;
                away = None;
            }
            None if now >= next_kill && !store_fails => {
                let victim = 1 + random.index(REPLICAS - 1);
                replicas[victim].kill().await?;
                seen.kills.push((now.as_secs_f64(), victim));
                away = Some((victim, now + AWAY_FOR));
                next_kill = now + KILL_EVERY;
            }
            _ => {}
        }
    }
    s3.fail(|_| Fault::None);
    if let Some((victim, _)) = away {
        replicas[victim].restart().await?;
    }
    Ok(())
}

/// Makes every third request to the store fail, each time in another way.
fn fault(number: usize) -> Fault {
    match number % 12 {
        0 => Fault::SlowDown,
        3 => Fault::LoseAnswer,
        6 => Fault::CutBody(100),
        9 => Fault::Silence,
        _ => Fault::None,
    }
}

fn sample(replicas: &mut [Replica], begun: Instant, seen: &mut Seen) {
    for (number, replica) in replicas.iter_mut().enumerate() {
        seen.samples[number].extend(replica.sample(begun));
        if replica.has_crashed() {
            seen.crashes.push(format!(
                "replica {} after {:.0} s",
                number + 1,
                begun.elapsed().as_secs_f64()
            ));
        }
    }
}

/// Waits until every replica is idle, then until idle connections are closed. Returns the seconds
/// until all replicas were idle, or `None` if they were not within the limit.
async fn come_to_rest(
    replicas: &mut [Replica],
    begun: Instant,
    seen: &mut Seen,
) -> anyhow::Result<Option<f64>> {
    let since = Instant::now();
    let mut rested = None;
    while since.elapsed() < REST_WITHIN {
        tokio::time::sleep(SAMPLE_EVERY).await;
        sample(replicas, begun, seen);
        let mut at_rest = true;
        for replica in replicas.iter() {
            let gauges = replica.gauges().await?;
            at_rest &= ZERO_AT_REST
                .iter()
                .all(|name| gauges.get(*name).is_none_or(|value| *value == 0.0));
        }
        if at_rest {
            rested = Some(since.elapsed().as_secs_f64());
            break;
        }
    }
    // Timers close the idle connections to upstreams and the store.
    for _ in 0..100 {
        tokio::time::sleep(SAMPLE_EVERY).await;
        sample(replicas, begun, seen);
    }
    Ok(rested)
}

fn rows(
    replicas: &[Replica],
    before: &[Sample],
    seen: &Seen,
    after: &[Sample],
) -> Vec<Vec<String>> {
    let figures: [(&str, Figure); 3] = [
        ("resident memory, MiB", |sample| sample.memory_mib),
        ("descriptors", |sample| sample.descriptors),
        ("threads", |sample| sample.threads),
    ];
    let mut rows = Vec::new();
    for (number, replica) in replicas.iter().enumerate() {
        for (name, value) in figures {
            let peak = seen.samples[number].iter().map(value).fold(0.0, f64::max);
            let show = |sample: Option<&Sample>| {
                sample.map_or_else(|| "–".to_owned(), |sample| format!("{:.0}", value(sample)))
            };
            rows.push(vec![
                (number + 1).to_string(),
                replica.kills.to_string(),
                name.to_owned(),
                show(before.get(number)),
                format!("{peak:.0}"),
                show(after.get(number)),
            ]);
        }
    }
    rows
}

fn gauges(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<Vec<String>> {
    let show = |value: Option<&f64>| value.map_or_else(|| "–".to_owned(), f64::to_string);
    let names = after
        .keys()
        .filter(|name| !name.starts_with("starlift_agent"));
    names
        .map(|name| {
            vec![
                format!("`{name}`"),
                show(before.get(name)),
                show(after.get(name)),
            ]
        })
        .collect()
}

fn lines(title: &str, unit: &'static str, value: Figure, seen: &Seen) -> Plot {
    let curves = seen
        .samples
        .iter()
        .enumerate()
        .map(|(number, samples)| Curve {
            label: format!("replica {}", number + 1),
            points: samples
                .iter()
                .map(|sample| (sample.at, value(sample)))
                .collect(),
        });
    Plot::Lines(Lines {
        title: format!("{title} (dashed: a replica is killed)"),
        x: "seconds",
        y: unit,
        curves: curves.collect(),
        marks: seen.kills.iter().map(|(at, _)| *at).collect(),
    })
}
