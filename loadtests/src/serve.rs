//! Compares warm reads: blobs, whole and in ranges, with nginx serving the same file; manifests
//! with docker-registry; ranges under access rules, budgets and an audit log with the same server
//! without them.
//!
//! All servers share the machine with wrk, so throughput depends on the processor time that wrk
//! leaves. A server's own processor time for each request shows its cost.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use crate::contest::{Arguments, Client, Contest, HEAD};
use crate::docker_registry;
use crate::guarded::Guarded;
use crate::harness::{Daemon, free_address, run};
use crate::images::Image;
use crate::plot::{Bars, Plot};
use crate::report::Report;
use crate::server::{self, MANIFEST_TYPE, Server};
use crate::wrk::{Load, Ranges};

/// The peer of the server with rules.
const OPEN: &str = "itself without rules";

/// The servers, which all hold the same layer and manifest.
#[derive(Debug)]
struct Servers {
    starlift: Daemon,
    guarded: Guarded,
    nginx: Daemon,
    registry: Daemon,
    urls: Urls,
    blob_size: u64,
}

#[derive(Debug)]
struct Urls {
    our_blob: String,
    their_blob: String,
    their_blob_http2: String,
    our_tag: String,
    our_digest: String,
    their_tag: String,
    their_digest: String,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin("serve", "Warm reads, against nginx and docker-registry")?;
    report.note(format!(
        "{} rounds of {} s a load, alternating servers, medians (least–most); wrk with one thread, h2load for \
         HTTP/2, on the same machine",
        arguments.rounds, arguments.seconds
    ));
    report.note(
        "× is our median over the peer's: requests a second, and requests for a second of the server's processor time",
    );
    let place = tempfile::tempdir()?;
    let servers = start(arguments, place.path())?;
    report.note(format!(
        "the blob: a converted layer of {} bytes; nginx 2 workers, sendfile; no TLS, no access logs",
        servers.blob_size
    ));
    let before = (servers.starlift.peak_memory()?, servers.starlift.memory()?);
    servers.starlift.forget_peak()?;
    let mut contests = contests(&servers, arguments.seconds);
    for _ in 0..arguments.rounds {
        for contest in &mut contests {
            contest.round(place.path())?;
        }
    }
    let rows = contests.iter().flat_map(Contest::rows).collect();
    report.table("Closed loop", &HEAD, rows);
    for peer in ["nginx", "docker-registry", OPEN] {
        report.plot(Plot::Bars(Bars {
            title: format!("Requests a second against {peer}'s (whisker: best and worst round)"),
            unit: "times the peer's",
            bars: contests
                .iter()
                .filter(|contest| contest.theirs.0 == peer)
                .map(Contest::bar)
                .collect(),
            marks: vec![(1.0, "as the peer".to_owned())],
        }));
    }
    report.note(
        "the rows against itself without rules: a user by password or by a token, budgets of every kind and an audit \
         log; per CPU × is the cost of the checks, 0.95 or more is right",
    );
    report.note(format!(
        "starlift's resident memory: {:.0} MiB at most while it converted the image, {:.0} MiB before the loads, {:.0} \
         MiB at most under them",
        before.0,
        before.1,
        servers.starlift.peak_memory()?
    ));
    Ok(report)
}

/// The length of a range as lazy clients ask for them, and their number in a request.
const SMALL: Option<(u64, usize)> = Some((64 << 10, 1));

fn contests(servers: &Servers, seconds: u64) -> Vec<Contest<'_>> {
    let Servers {
        starlift,
        guarded,
        nginx,
        registry,
        urls,
        blob_size,
    } = servers;
    let blob = |name, connections, ranges: Option<(u64, usize)>| Contest {
        name,
        load: Load {
            connections,
            seconds,
            accept: "*/*",
            authorization: None,
            ranges: ranges.map(|(length, count)| Ranges {
                blob_size: *blob_size,
                length,
                count,
            }),
        },
        client: Client::Http1,
        ours: (&urls.our_blob, starlift),
        theirs: ("nginx", &urls.their_blob, nginx),
        our_runs: Vec::new(),
        their_runs: Vec::new(),
    };
    let http2 = |name, connections, streams| Contest {
        client: Client::Http2 { streams },
        theirs: ("nginx", &urls.their_blob_http2, nginx),
        ..blob(name, connections, SMALL)
    };
    let checked = |name, authorization: &str| {
        let mut contest = blob(name, 16, SMALL);
        contest.load.authorization = Some(authorization.to_owned());
        contest.ours = (&guarded.blob, &guarded.daemon);
        contest.theirs = (OPEN, &urls.our_blob, starlift);
        contest
    };
    let manifest = |name, connections, ours, theirs| Contest {
        name,
        load: Load {
            connections,
            seconds,
            accept: MANIFEST_TYPE,
            authorization: None,
            ranges: None,
        },
        client: Client::Http1,
        ours: (ours, starlift),
        theirs: ("docker-registry", theirs, registry),
        our_runs: Vec::new(),
        their_runs: Vec::new(),
    };
    vec![
        blob("blob, whole, 4 connections", 4, None),
        blob("range of 64 KiB, 1 connection", 1, SMALL),
        blob("range of 64 KiB, 16 connections", 16, SMALL),
        blob("range of 64 KiB, 256 connections", 256, SMALL),
        http2("HTTP/2, range of 64 KiB, 1 connection, 1 stream", 1, 1),
        http2("HTTP/2, range of 64 KiB, 1 connection, 16 streams", 1, 16),
        http2(
            "HTTP/2, range of 64 KiB, 16 connections, 16 streams",
            16,
            16,
        ),
        blob("range of 4 MiB, 4 connections", 4, Some((4 << 20, 1))),
        blob(
            "8 ranges of 16 KiB, 16 connections",
            16,
            Some((16 << 10, 8)),
        ),
        checked(
            "range of 64 KiB, 16 connections, rules by password",
            &guarded.by_password,
        ),
        checked(
            "range of 64 KiB, 16 connections, rules by token",
            &guarded.by_token,
        ),
        manifest(
            "manifest by tag, 16 connections",
            16,
            urls.our_tag.as_str(),
            urls.their_tag.as_str(),
        ),
        manifest(
            "manifest by digest, 16 connections",
            16,
            &urls.our_digest,
            &urls.their_digest,
        ),
        manifest(
            "manifest by digest, 1 connection",
            1,
            &urls.our_digest,
            &urls.their_digest,
        ),
    ]
}

fn start(arguments: &Arguments, place: &Path) -> anyhow::Result<Servers> {
    let image = Image::get(&arguments.image)?;
    let (registry, registry_address) = docker_registry::start(place, docker_registry::IN_A_FOLDER)?;
    let name = image.name.as_str();
    let source = image.oci();
    run(&format!(
        "skopeo copy --quiet --dest-tls-verify=false {source} docker://{registry_address}/{name}:1"
    ))?;

    let upstream = format!("local=http://{registry_address}");
    let Server {
        daemon: starlift,
        address,
    } = Server::start(&arguments.starlift, place, std::slice::from_ref(&upstream))?;
    let our_tag = format!("http://{address}/v2/local/{name}/manifests/1");
    let (digest, manifest) = server::converted(&our_tag)?;
    let layer = manifest["layers"][0]["digest"]
        .as_str()
        .context("no layer")?;
    let our_blob = format!("http://{address}/v2/local/{name}/blobs/{layer}");
    let file = place.join("blob");
    run(&format!("curl -sf -o {} {our_blob}", file.display()))?;
    let sum = format!("sha256:{}", hex::encode(Sha256::digest(fs::read(&file)?)));
    ensure!(sum == layer, "{our_blob} gave {sum}");
    // The registry holds the converted image's manifest too, so that both servers answer with the
    // same bytes.
    let converted = format!("{address}/local/{name}:1");
    let tls = "--src-tls-verify=false --dest-tls-verify=false";
    run(&format!(
        "skopeo copy --quiet --preserve-digests {tls} docker://{converted} docker://{registry_address}/converted:1"
    ))?;
    let (nginx, nginx_address, http2_address) = nginx(place)?;
    let their_blob = format!("http://{nginx_address}/blob");
    same_answers(&our_blob, &their_blob)?;
    let guarded = Guarded::start(
        &arguments.starlift,
        &place.join("guarded"),
        upstream,
        name,
        layer,
    )?;
    let urls = Urls {
        our_digest: format!("http://{address}/v2/local/{name}/manifests/{digest}"),
        their_tag: format!("http://{registry_address}/v2/converted/manifests/1"),
        their_digest: format!("http://{registry_address}/v2/converted/manifests/{digest}"),
        our_blob,
        their_blob,
        their_blob_http2: format!("http://{http2_address}/blob"),
        our_tag,
    };
    same_manifests(&urls)?;
    let blob_size = fs::metadata(file)?.len();
    Ok(Servers {
        starlift,
        guarded,
        nginx,
        registry,
        urls,
        blob_size,
    })
}

/// Checks that both servers return the same bytes, whole and in ranges.
fn same_answers(ours: &str, theirs: &str) -> anyhow::Result<()> {
    for range in ["0-", "100-65635", "-1000"] {
        let ask = |url: &str| -> anyhow::Result<String> {
            let output = Command::new("curl")
                .args(["-sf", "-r", range, url])
                .output()?;
            ensure!(output.status.success(), "{url}: {:?}", output.status);
            Ok(hex::encode(Sha256::digest(output.stdout)))
        };
        ensure!(
            ask(ours)? == ask(theirs)?,
            "servers disagree on the bytes {range}"
        );
    }
    Ok(())
}

fn same_manifests(urls: &Urls) -> anyhow::Result<()> {
    let ask = |url: &String| run(&format!("curl -sf -H Accept:{MANIFEST_TYPE} {url}"));
    let first = ask(&urls.our_digest)?;
    for url in [&urls.our_tag, &urls.their_tag, &urls.their_digest] {
        ensure!(ask(url)? == first, "{url} returns another manifest");
    }
    Ok(())
}

/// Starts nginx, which serves the file `blob` at the first address over HTTP/1 and at the second over
/// HTTP/2.
fn nginx(place: &Path) -> anyhow::Result<(Daemon, SocketAddr, SocketAddr)> {
    let (address, http2) = (free_address()?, free_address()?);
    let config = place.join("nginx.conf");
    let root = place.display();
    // nginx workers drop root and could not enter a private folder.
    fs::write(
        &config,
        format!(
            "user root;\ndaemon off;\nworker_processes 2;\npid {root}/nginx.pid;\nerror_log {root}/nginx.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n  access_log off; sendfile on; keepalive_requests 1000000000;\n  \
             default_type application/octet-stream;\n  client_body_temp_path {root}/nginx-body;\n  \
             proxy_temp_path {root}/nginx-proxy; fastcgi_temp_path {root}/nginx-fcgi;\n  \
             uwsgi_temp_path {root}/nginx-uwsgi; scgi_temp_path {root}/nginx-scgi;\n  \
             http2_max_requests 1000000000;\n  \
             server {{ listen {address}; location = /blob {{ alias {root}/blob; }} }}\n  \
             server {{ listen {http2} http2; location = /blob {{ alias {root}/blob; }} }}\n}}\n"
        ),
    )?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(config);
    let url = format!("http://{address}/blob");
    let ready = || run(&format!("curl -sfI {url}")).is_ok();
    Ok((
        Daemon::start(command, &place.join("nginx.out"), ready)?,
        address,
        http2,
    ))
}
