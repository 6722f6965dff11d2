//! Runs minutes of mixed load on three replicas over one S3-compatible store and on two nodes that
//! pull from them: cold and warm pulls, ranges, abusive clients, containers that read and compare
//! their files; upstreams that trickle, lie, cut and stay silent; and faults, one after the other.
//!
//! Nothing is asserted about speed. The invariants: no completed answer and no file in a container
//! has a wrong byte, nothing ends by itself, nothing panics, no container is stuck, and what is held
//! at the end is what was held at the start.

mod abuse;
mod clients;
mod containers;
mod faults;
mod findings;
mod front;
mod node;
pub(crate) mod replicas;
mod slope;
mod tally;
pub(crate) mod upstream;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::report::Report;
use crate::soak::clients::{Shared, client};
use crate::soak::containers::{Checked, Container, SharedNode};
use crate::soak::faults::{Fault, Schedule, World};
use crate::soak::findings::Findings;
use crate::soak::front::Front;
use crate::soak::node::{Disk, Network, Node};
use crate::soak::replicas::{Replica, Sample, Settings, in_bucket};
use crate::soak::tally::{Outcome, Tally};
use crate::soak::upstream::{Behaviour, Upstream};
use crate::support::image::Random;
use crate::support::s3::{self, S3};

/// The number of replicas over one bucket. The first is never killed, so that a leak shows.
const REPLICAS: usize = 3;
const PULLERS: u8 = 6;
const RANGE_CLIENTS: u8 = 4;
const ABUSERS: u8 = 8;
/// Images of which each node has a container for the whole time. The next ones come and go.
const LASTING: usize = 2;
const CHURNED: usize = 4;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// How often containers that have ended are started again.
const REVIVE_EVERY: Duration = Duration::from_secs(15);
/// The time within which all replicas must be idle after the load.
const REST_WITHIN: Duration = Duration::from_secs(180);
/// The time after the load in which timers close idle connections and the sweep deletes old leases.
const REST: Duration = Duration::from_secs(100);
/// The time within which each container must read a file right once no fault is left.
const RECOVER_WITHIN: Duration = Duration::from_secs(120);
/// The time that the tasks with containers get to end what they do.
const CHURN_ENDS_WITHIN: Duration = Duration::from_secs(400);
/// Gauges that are zero when a replica is idle.
const ZERO_AT_REST: [&str; 1] = ["starlift_conversions_running"];
/// The prefix in the bucket.
const PREFIX: &str = "soak";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The executable to soak.
    #[arg(long, default_value = "target/release/starlift")]
    starlift: PathBuf,
    /// Duration of the load in seconds.
    #[arg(long, default_value_t = 1800)]
    seconds: u64,
    /// Number of images in each upstream.
    #[arg(long, default_value_t = 40)]
    images: usize,
    /// Approximate most bytes of a layer's tar.
    #[arg(long, default_value_t = 8 << 20)]
    layer: usize,
    /// Nodes with an agent: 2, or 0 without root, containerd and `ctr-remote`
    #[arg(long, default_value_t = 2)]
    nodes: usize,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    ensure!(
        matches!(arguments.nodes, 0 | 2),
        "--nodes is 0 or 2: the faults name two nodes"
    );
    ensure!(
        arguments.images >= LASTING + CHURNED,
        "--images is under {}",
        LASTING + CHURNED
    );
    // An error means that an earlier client installed it already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(soak(arguments))
}

/// The nodes, their containers and the tasks that use them.
struct Nodes {
    all: Vec<SharedNode>,
    containers: Vec<(SharedNode, Container)>,
    churning: Vec<JoinHandle<()>>,
    dropping: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    _fronts: Vec<Front>,
}

async fn soak(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin(
        "soak",
        "Three replicas over one bucket and two nodes, everything at once",
    )?;
    let folder = tempfile::Builder::new().prefix("sls").tempdir()?;
    let s3 = S3::start().await;
    let upstreams = upstreams(arguments).await?;
    let settings = Settings {
        executable: &arguments.starlift,
        upstreams: &upstreams,
        serve: "wait = \"2s\"\nsweep_interval = \"20s\"\n",
        store: &in_bucket(&s3.endpoint, s3::BUCKET, PREFIX),
        folder: folder.path(),
    };
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        replicas.push(Replica::start(number, &settings).await?);
    }
    let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
    let begun = Instant::now();
    let tally = Arc::new(Tally::new(begun));
    let mut nodes =
        start_nodes(arguments, &addresses, &upstreams[0], &tally, folder.path()).await?;
    let mut findings = Findings::new(REPLICAS, nodes.all.len());
    findings.before = sample_all(&replicas, &nodes, begun);
    findings.gauges_before = replicas[0].gauges().await?;
    let shared = Shared::new(addresses, upstreams, tally);
    let load = start_load(&shared)?;
    {
        let mut world = World {
            replicas: &mut replicas,
            s3: &s3,
            shared: &shared,
            nodes: &nodes.all.clone(),
        };
        let length = Duration::from_secs(arguments.seconds);
        disturb(&mut world, &mut nodes, (begun, length), &mut findings).await?;
    }
    findings
        .recovered(&mut nodes.containers, RECOVER_WITHIN)
        .await;
    for task in load {
        task.abort();
    }
    findings.left = end_nodes(&mut nodes, begun, &mut findings).await?;
    findings.rested = come_to_rest(&mut replicas, begun, &mut findings).await?;
    let at_rest = replicas.iter().map(|replica| replica.sample(begun));
    findings.after.splice(0..0, at_rest);
    findings.gauges_after = replicas[0].gauges().await?;
    for replica in &replicas {
        findings.panics += replica.panics()?;
    }
    for node in &nodes.all {
        findings.panics += node.panics()?;
    }
    findings.leases = held_leases(&s3);
    findings.open_uploads = s3.open_uploads();
    describe(&mut report, arguments);
    findings.report(&mut report, &shared, &replicas);
    if !report.is_sound() {
        // The logs are worth more than a clean machine.
        report.note(format!("logs are kept in {}", folder.keep().display()));
    }
    Ok(report)
}

/// Counts the leases on layers that have not expired: those of killed replicas have, and a sweep deletes them
/// some day.
fn held_leases(s3: &S3) -> usize {
    let prefix = format!("{PREFIX}/leases/layer");
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_millis());
    let is_held = |key: &String| {
        let claim = s3.object(key)?;
        let claim: serde_json::Value = serde_json::from_slice(&claim).ok()?;
        Some(u128::from(claim["expires"].as_u64()?) > now)
    };
    let keys = s3.keys();
    let leases = keys.iter().filter(|key| key.starts_with(&prefix));
    leases.filter(|key| is_held(key).unwrap_or(true)).count()
}

fn describe(report: &mut Report, arguments: &Arguments) {
    report.note(format!(
        "{} s of load: {PULLERS} pulling clients, {RANGE_CLIENTS} asking for ranges, {ABUSERS} abusive; upstreams: {} \
         images honest, {} each trickling, lying, cutting, silent; bucket and upstreams are in the process of the load",
        arguments.seconds,
        arguments.images,
        arguments.images.div_ceil(8),
    ));
    if arguments.nodes > 0 {
        report.note(format!(
            "{} nodes, each with containerd, an agent with a cache of 24 MiB, {LASTING} containers that read their files \
             again and again while pages are dropped, and containers of {CHURNED} other images, one after the other; node \
             2 in a network namespace, its agent's root on a file system of 512 MiB",
            arguments.nodes
        ));
    }
}

async fn upstreams(arguments: &Arguments) -> anyhow::Result<Vec<Upstream>> {
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
    Ok(upstreams)
}

async fn start_nodes(
    arguments: &Arguments,
    replicas: &[SocketAddr],
    honest: &Upstream,
    tally: &Arc<Tally>,
    place: &Path,
) -> anyhow::Result<Nodes> {
    let (stop, stopped) = watch::channel(false);
    let mut nodes = Nodes {
        all: Vec::new(),
        containers: Vec::new(),
        churning: Vec::new(),
        dropping: Vec::new(),
        stop,
        _fronts: Vec::new(),
    };
    for number in 1..=arguments.nodes {
        let place = place.join(format!("node-{number}"));
        fs::create_dir(&place)?;
        let is_second = number == 2;
        let network = is_second.then(Network::new).transpose()?;
        let disk = is_second.then(|| Disk::new(&place)).transpose()?;
        let host = network
            .as_ref()
            .map_or(Ipv4Addr::LOCALHOST.into(), Network::host);
        let front = Front::start(SocketAddr::new(host, 0), replicas.to_vec()).await?;
        let of = (number, front.address.to_string());
        let node = Node::start(of, &arguments.starlift, &place, (network, disk)).await?;
        let node = Arc::new(node);
        let lasting = &honest.images[..LASTING];
        let mut ids = Vec::new();
        for image in lasting {
            let container = Container::start(&node, image).await?;
            ids.push((container.id().to_owned(), image.files.clone()));
            nodes.containers.push((Arc::clone(&node), container));
        }
        let dropping = containers::drop_pages(Arc::clone(&node), ids);
        nodes.dropping.push(tokio::spawn(dropping));
        let churned = honest.images[LASTING..LASTING + CHURNED].to_vec();
        let (node_again, tally) = (Arc::clone(&node), Arc::clone(tally));
        let churning = containers::churn(node_again, churned, tally, stopped.clone());
        nodes.churning.push(tokio::spawn(churning));
        nodes.all.push(node);
        nodes._fronts.push(front);
    }
    Ok(nodes)
}

/// Ends the containers and the nodes. Returns what is left of them.
async fn end_nodes(
    nodes: &mut Nodes,
    begun: Instant,
    findings: &mut Findings,
) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    nodes.stop.send_replace(true);
    for task in nodes.dropping.drain(..) {
        task.abort();
    }
    for task in nodes.churning.drain(..) {
        if tokio::time::timeout(CHURN_ENDS_WITHIN, task).await.is_err() {
            left.push("a start of a container does not end".to_owned());
        }
    }
    for (node, container) in &mut nodes.containers {
        findings.container(container);
        if let Err(error) = container.end(node).await {
            left.push(format!("{}: {error:#}", container.name));
        }
    }
    for node in &nodes.all {
        findings.after.push(node.sample(begun));
        let of_node = node.end().await?;
        left.extend(
            of_node
                .into_iter()
                .map(|what| format!("node {}: {what}", node.number)),
        );
    }
    Ok(left)
}

/// Starts all clients, each in a task that runs until it is aborted.
fn start_load(shared: &Arc<Shared>) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut tasks = Vec::new();
    for number in 0..PULLERS {
        let (shared, client, mut random) = (
            Arc::clone(shared),
            client(number + 1)?,
            Random::new(100 + u64::from(number)),
        );
        tasks.push(tokio::spawn(async move {
            loop {
                let since = Instant::now();
                let outcome = shared.pull(&client, &mut random).await;
                shared.tally.count("pull", since, &outcome);
                pause_after(&outcome).await;
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
                let since = Instant::now();
                let outcome = shared.ranges(&client, &mut random).await;
                shared.tally.count("ranges", since, &outcome);
                pause_after(&outcome).await;
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

/// Brings one fault after the other until the time is over; takes samples meanwhile.
async fn disturb(
    world: &mut World<'_>,
    nodes: &mut Nodes,
    (begun, length): (Instant, Duration),
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut schedule = Schedule::new(!nodes.all.is_empty());
    let mut revived = Instant::now();
    while begun.elapsed() < length {
        tokio::time::sleep(SAMPLE_EVERY).await;
        sample(world.replicas, nodes, begun, findings);
        if let Some(fault) = schedule.step(world).await? {
            findings.faults.push((begun.elapsed().as_secs_f64(), fault));
        }
        if revived.elapsed() > REVIVE_EVERY {
            revived = Instant::now();
            for (node, container) in &mut nodes.containers {
                // A node whose registry is away cannot start it; the next turn tries again.
                let _later = container.revive(node).await;
            }
        }
    }
    schedule.end(world).await
}

fn sample_all(replicas: &[Replica], nodes: &Nodes, begun: Instant) -> Vec<Option<Sample>> {
    let replicas = replicas.iter().map(|replica| replica.sample(begun));
    let agents = nodes.all.iter().map(|node| node.sample(begun));
    replicas.chain(agents).collect()
}

fn sample(replicas: &mut [Replica], nodes: &mut Nodes, begun: Instant, findings: &mut Findings) {
    let at = begun.elapsed().as_secs_f64();
    for (number, sample) in sample_all(replicas, nodes, begun).into_iter().enumerate() {
        findings.samples[number].extend(sample);
    }
    for (number, replica) in replicas.iter_mut().enumerate() {
        if replica.has_crashed() {
            findings.crash(format!("replica {}", number + 1), at);
        }
    }
    for node in &nodes.all {
        if node.has_crashed() {
            findings.crash(format!("agent or containerd of node {}", node.number), at);
        }
    }
    let mut sum = |node: usize| {
        let ours = nodes
            .containers
            .iter_mut()
            .filter(|(of, _)| of.number == node);
        let looks = ours.map(|(_, container)| container.look());
        looks.fold(Checked::default(), Checked::plus)
    };
    let sums = vec![sum(1), sum(2)];
    findings.checked.push((at, sums));
}

/// Waits until every replica is idle, then until idle connections are closed. Returns the seconds
/// until all replicas were idle, or `None` if they were not within the limit.
async fn come_to_rest(
    replicas: &mut [Replica],
    begun: Instant,
    findings: &mut Findings,
) -> anyhow::Result<Option<f64>> {
    let since = Instant::now();
    let mut rested = None;
    while since.elapsed() < REST_WITHIN {
        tokio::time::sleep(SAMPLE_EVERY).await;
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
    let until = Instant::now() + REST;
    while Instant::now() < until {
        tokio::time::sleep(SAMPLE_EVERY).await;
        for (number, replica) in replicas.iter_mut().enumerate() {
            findings.samples[number].extend(replica.sample(begun));
            if replica.has_crashed() {
                let at = begun.elapsed().as_secs_f64();
                findings.crash(format!("replica {}", number + 1), at);
            }
        }
    }
    Ok(rested)
}

/// The marks of faults in a plot.
fn marks(faults: &[(f64, Fault)]) -> Vec<(f64, String)> {
    let mark = |(at, fault): &(f64, Fault)| (*at, fault.letter().to_owned());
    faults.iter().map(mark).collect()
}
