//! Compares warm ranges out of a bucket: with a cache on this server's disk, with nginx as a caching
//! proxy of the same bucket; without one, with nginx passing each range on; redirects, with
//! docker-registry's.
//!
//! The bucket of the ranges is the tests' own, in this process, and counts its requests.
//! docker-registry needs more of S3 than that and has `moto_server`, which its redirects do not ask.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;

use crate::contest::{Arguments, Client, Contest, HEAD};
use crate::docker_registry;
use crate::harness::{Daemon, free_address, run};
use crate::images::Image;
use crate::plot::{Bars, Plot};
use crate::report::Report;
use crate::server::{self, Server};
use crate::support::s3::{BUCKET, Fault, S3};
use crate::wrk::{Load, Ranges};

/// Bytes of a range as lazy clients ask for them.
const RANGE: u64 = 64 << 10;
/// Connections of a load.
const CONNECTIONS: usize = 16;
/// Bytes of the ranges with which the caches are filled.
const FILL: u64 = 1 << 20;

/// The servers over the bucket, and the URLs of the same layer.
struct Servers {
    s3: S3,
    cached: Daemon,
    passing: Daemon,
    redirecting: Daemon,
    nginx: Daemon,
    registry: Daemon,
    _beside: [Daemon; 2],
    urls: Urls,
    blob_size: u64,
}

struct Urls {
    cached: String,
    passing: String,
    redirecting: String,
    proxy_cached: String,
    proxy_passing: String,
    registry: String,
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin(
        "bucket",
        "Warm ranges out of a bucket, against nginx and docker-registry",
    )?;
    report.note(format!(
        "{} rounds of {} s a load, alternating servers, medians (least–most); wrk with one thread on the same machine",
        arguments.rounds, arguments.seconds
    ));
    report.note(
        "× is our median over the peer's: requests a second, and requests for a second of the server's processor time",
    );
    let runtime = Runtime::new()?;
    let place = tempfile::tempdir()?;
    let servers = start(arguments, &runtime, place.path())?;
    report.note(format!(
        "the blob: a converted layer of {} bytes; nginx with 2 workers, a slice of 256 KiB for each cached piece; no \
         TLS, no access logs",
        servers.blob_size
    ));
    let mut contests = contests(&servers, arguments.seconds);
    let mut asked = vec![0; contests.len()];
    for _ in 0..arguments.rounds {
        for (contest, asked) in contests.iter_mut().zip(&mut asked) {
            servers.s3.fail(|_| Fault::None);
            contest
                .our_runs
                .push(contest.run(contest.ours, place.path())?);
            *asked += servers.s3.asked();
            let (_, url, daemon) = contest.theirs;
            contest
                .their_runs
                .push(contest.run((url, daemon), place.path())?);
        }
    }
    let rows = contests.iter().flat_map(Contest::rows).collect();
    report.table("Closed loop", &HEAD, rows);
    let rows = contests.iter().zip(asked).map(|(contest, asked)| {
        let requests: f64 = contest.our_runs.iter().map(|run| run.seen.requests).sum();
        vec![
            contest.name.to_owned(),
            format!("{:.3}", asked as f64 / requests),
        ]
    });
    let head = ["load", "requests to the bucket for each"];
    report.table("Starlift's requests to the bucket", &head, rows.collect());
    report.plot(Plot::Bars(Bars {
        title: "Requests a second against the peer's (whisker: best and worst round)".to_owned(),
        unit: "times the peer's",
        bars: contests.iter().map(Contest::bar).collect(),
        marks: vec![(1.0, "as the peer".to_owned())],
    }));
    Ok(report)
}

fn contests(servers: &Servers, seconds: u64) -> Vec<Contest<'_>> {
    let Servers {
        cached,
        passing,
        redirecting,
        nginx,
        registry,
        urls,
        blob_size,
        ..
    } = servers;
    let contest = |name, ours, theirs| Contest {
        name,
        load: Load {
            connections: CONNECTIONS,
            seconds,
            accept: "*/*",
            authorization: None,
            ranges: Some(Ranges {
                blob_size: *blob_size,
                length: RANGE,
                count: 1,
            }),
        },
        client: Client::Http1,
        ours,
        theirs,
        our_runs: Vec::new(),
        their_runs: Vec::new(),
    };
    vec![
        contest(
            "range of 64 KiB, cached on disk",
            (&urls.cached, cached),
            ("nginx, proxy cache", &urls.proxy_cached, nginx),
        ),
        contest(
            "range of 64 KiB, from the bucket",
            (&urls.passing, passing),
            ("nginx, proxy", &urls.proxy_passing, nginx),
        ),
        contest(
            "redirect to the bucket",
            (&urls.redirecting, redirecting),
            ("docker-registry", &urls.registry, registry),
        ),
    ]
}

fn start(arguments: &Arguments, runtime: &Runtime, place: &Path) -> anyhow::Result<Servers> {
    let image = Image::get(&arguments.image)?;
    let name = image.name.as_str();
    let (moto, storage) = moto(place)?;
    let (registry, registry_address) = docker_registry::start(place, &storage)?;
    run(&format!(
        "skopeo copy --quiet --dest-tls-verify=false {} docker://{registry_address}/{name}:1",
        image.oci()
    ))?;
    let source = place.join("source");
    fs::create_dir(&source)?;
    let (source, source_address) = docker_registry::start(&source, docker_registry::IN_A_FOLDER)?;
    run(&format!(
        "skopeo copy --quiet --dest-tls-verify=false {} docker://{source_address}/{name}:1",
        image.oci()
    ))?;
    let s3 = runtime.block_on(S3::start());
    let upstream = format!("local=http://{source_address}");
    let serve = |folder: &str, settings: &[(&str, &str)]| {
        let place = place.join(folder);
        fs::create_dir(&place)?;
        let file = place.join("starlift.toml");
        fs::write(&file, configuration(&s3.endpoint, settings))?;
        Server::start_configured_over(
            &arguments.starlift,
            &place,
            std::slice::from_ref(&upstream),
            &file,
            &format!("s3://{BUCKET}/store"),
        )
    };
    let cache = place.join("cache");
    let cache = cache.to_str().context("a folder's name is not UTF-8")?;
    let passing = serve("passing", &[])?;
    let tag = format!("http://{}/v2/local/{name}/manifests/1", passing.address);
    let (_, manifest) = server::converted(&tag)?;
    let layer = manifest["layers"][0]["digest"]
        .as_str()
        .context("no layer")?;
    let cached = serve("cached", &[("store.cache.folder", cache)])?;
    let settings = [
        ("serve.redirect", "true"),
        ("serve.profiles.starts_before_redirect", "0"),
    ];
    let redirecting = serve("redirecting", &settings)?;
    for Server { address, .. } in [&cached, &redirecting] {
        server::converted(&format!("http://{address}/v2/local/{name}/manifests/1"))?;
    }
    let blob = |server: &Server| {
        let address = server.address;
        format!("http://{address}/v2/local/{name}/blobs/{layer}")
    };
    let signed = redirect_of(&blob(&redirecting))?;
    let object = signed.split('?').next().unwrap_or(&signed);
    let (nginx, nginx_address) = nginx(place, object)?;
    let layer_of_registry = layer_of(&format!("http://{registry_address}/v2/{name}/manifests/1"))?;
    let urls = Urls {
        cached: blob(&cached),
        passing: blob(&passing),
        redirecting: blob(&redirecting),
        proxy_cached: format!("http://{nginx_address}/cached"),
        proxy_passing: format!("http://{nginx_address}/passing"),
        registry: format!("http://{registry_address}/v2/{name}/blobs/{layer_of_registry}"),
    };
    redirect_of(&urls.registry)?;
    let blob_size = fill(place, &urls)?;
    Ok(Servers {
        s3,
        cached: cached.daemon,
        passing: passing.daemon,
        redirecting: redirecting.daemon,
        nginx,
        registry,
        _beside: [moto, source],
        urls,
        blob_size,
    })
}

/// Reads the whole blob from every server, in ranges, and compares the bytes. Returns their number.
fn fill(place: &Path, urls: &Urls) -> anyhow::Result<u64> {
    let whole = place.join("blob");
    run(&format!("curl -sf -o {} {}", whole.display(), urls.passing))?;
    let whole = fs::read(whole)?;
    let size = whole.len() as u64;
    for url in [
        &urls.passing,
        &urls.proxy_passing,
        &urls.cached,
        &urls.proxy_cached,
    ] {
        for start in (0..size).step_by(usize::try_from(FILL)?) {
            let end = size.min(start + FILL);
            let range = format!("{start}-{}", end - 1);
            let output = Command::new("curl")
                .args(["-sf", "-r", &range, url])
                .output()?;
            let expected = whole.get(usize::try_from(start)?..usize::try_from(end)?);
            ensure!(
                Some(output.stdout.as_slice()) == expected,
                "{url}: wrong bytes {range}"
            );
        }
    }
    Ok(size)
}

fn configuration(endpoint: &str, settings: &[(&str, &str)]) -> String {
    let mut file = format!(
        "[store]\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\nallow_http = true\n\
         access_key_id = \"key\"\nsecret_access_key = \"secret\"\n"
    );
    for (key, value) in settings {
        let (table, key) = key.rsplit_once('.').unwrap_or_default();
        let value = match *value {
            "true" | "0" => value.to_string(),
            text => format!("\"{text}\""),
        };
        file += &format!("[{table}]\n{key} = {value}\n");
    }
    file
}

/// Returns where the answer for a blob leads.
fn redirect_of(url: &str) -> anyhow::Result<String> {
    let location = run(&format!("curl -s -o /dev/null -w %{{redirect_url}} {url}"))?;
    ensure!(!location.is_empty(), "{url} is not redirected");
    Ok(location)
}

/// Returns the digest of the first layer of the image.
fn layer_of(url: &str) -> anyhow::Result<String> {
    let manifest = run(&format!(
        "curl -sf -H Accept:{} {url}",
        server::MANIFEST_TYPE
    ))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let layer = manifest["layers"][0]["digest"].as_str();
    Ok(layer.context("no layer")?.to_owned())
}

/// Starts an S3 for docker-registry. Returns its storage configuration too.
fn moto(place: &Path) -> anyhow::Result<(Daemon, String)> {
    let address = free_address()?;
    let mut command = Command::new("moto_server");
    command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
    let ready = || run(&format!("curl -sf -X PUT http://{address}/{BUCKET}")).is_ok();
    let daemon = Daemon::start(command, &place.join("moto.log"), ready)?;
    let storage = format!(
        "s3: {{region: us-east-1, regionendpoint: \"http://{address}\", bucket: {BUCKET}, accesskey: key, secretkey: \
         secret, secure: false, v4auth: true}}"
    );
    Ok((daemon, storage))
}

/// Starts nginx over the object at this URL: `/cached` keeps pieces on disk, `/passing` does not.
fn nginx(place: &Path, object: &str) -> anyhow::Result<(Daemon, SocketAddr)> {
    let address = free_address()?;
    let config = place.join("nginx.conf");
    let root = place.display();
    let rest = object.strip_prefix("http://").context("no HTTP URL")?;
    let (host, path) = rest.split_once('/').context("no object")?;
    let headers = "proxy_set_header Connection ''; proxy_set_header Authorization key;";
    // The bucket wants a header for authorization, whatever it says. nginx workers drop root and could
    // not enter a private folder.
    fs::write(
        &config,
        format!(
            "user root;\ndaemon off;\nworker_processes 2;\npid {root}/nginx.pid;\nerror_log {root}/nginx.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n  access_log off; sendfile on; keepalive_requests 1000000000;\n  \
             client_body_temp_path {root}/nginx-body;\n  proxy_temp_path {root}/nginx-proxy;\n  \
             fastcgi_temp_path {root}/nginx-fcgi;\n  uwsgi_temp_path {root}/nginx-uwsgi;\n  \
             scgi_temp_path {root}/nginx-scgi;\n  proxy_http_version 1.1;\n  \
             proxy_cache_path {root}/nginx-cache levels=1:2 keys_zone=pieces:16m max_size=10g;\n  \
             upstream bucket {{ server {host}; keepalive 64; keepalive_requests 1000000000; }}\n  \
             server {{ listen {address};\n    \
             location = /cached {{ {headers} proxy_set_header Range $slice_range;\n      \
             slice 256k; proxy_cache pieces; proxy_cache_key $uri$slice_range; proxy_cache_valid 200 206 1d;\n      \
             proxy_pass http://bucket/{path}; }}\n    \
             location = /passing {{ {headers} proxy_pass http://bucket/{path}; }} }}\n}}\n"
        ),
    )?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(config);
    let url = format!("http://{address}/passing");
    let ready = || run(&format!("curl -sf -r 0-0 -o /dev/null {url}")).is_ok();
    Ok((
        Daemon::start(command, &place.join("nginx.out"), ready)?,
        address,
    ))
}
