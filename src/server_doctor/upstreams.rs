//! The upstreams: whether they answer, accept the credentials and have the same time. No request
//! counts as a pull.

use std::path::Path;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;

use crate::doctor::Check;
use crate::failure::Failure;
use crate::registry::{Config, Entry, Error, Reached};
use crate::transport::Upstreams;

use super::clock;

/// Upstreams that are asked at the same time.
const AT_ONCE: usize = 8;
/// How long one upstream may take.
const WITHIN: Duration = Duration::from_secs(30);

const WHAT: &str = "upstream";

pub(super) async fn check(config: &Config) -> Vec<Check> {
    // One try tells enough, and a silent host is not asked four times.
    let config = Config {
        retries: 0,
        ..config.clone()
    };
    let upstreams = match Upstreams::new(&config) {
        Ok(upstreams) => upstreams,
        Err(error) => {
            let mend = "the server does not start: correct [pull] and [upstream.NAME]";
            return vec![Check::bad(
                WHAT,
                Failure::from_error(error).to_string(),
                mend,
            )];
        }
    };
    let named = config.upstream.iter();
    let named = named.map(|(name, upstream)| (name.clone(), Some(upstream.url.clone())));
    let allowed = config.allow.iter().filter_map(|pattern| {
        let host = pattern.as_host()?;
        (!upstreams.is_configured(host)).then(|| (host.to_owned(), None))
    });
    let all: Vec<_> = named.chain(allowed).collect();
    if all.is_empty() {
        let told = "none is configured, and pull.allow names no single host: nothing to try";
        return vec![Check::good(WHAT, told)];
    }
    let asked = all.into_iter().map(|(name, url)| {
        let upstreams = &upstreams;
        async move {
            match url.as_deref().and_then(path_of) {
                Some(path) => vec![local(&name, path)],
                None => remote(upstreams, &name).await,
            }
        }
    });
    let asked = futures::stream::iter(asked).buffered(AT_ONCE);
    asked
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// The path of a layout or an archive.
fn path_of(url: &str) -> Option<&str> {
    url.strip_prefix("oci:")
        .or_else(|| url.strip_prefix("docker-archive:"))
}

fn local(name: &str, path: &str) -> Check {
    match Path::new(path).symlink_metadata() {
        Ok(_) => Check::good(WHAT, format!("{name}: {path} is there")),
        Err(error) => Check::fair(
            WHAT,
            format!("{name}: {path}: {error}"),
            "its images are unknown until the path exists",
        ),
    }
}

async fn remote(upstreams: &Upstreams, name: &str) -> Vec<Check> {
    let asked = async {
        let earliest = SystemTime::now();
        let answers = upstreams.get(name)?.reach().await?;
        Ok::<_, Error>((earliest, answers))
    };
    let asked = tokio::time::timeout(WITHIN, Box::pin(asked)).await;
    let (earliest, answers) = match asked {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => return vec![failed(name, &error)],
        Err(_elapsed) => {
            let silent = Error::Unavailable("no answer in time".to_owned());
            return vec![failed(name, &silent)];
        }
    };
    let latest = SystemTime::now();
    let mut checks = Vec::new();
    for (host, Reached { date, outcome }) in answers {
        let named = if host == name {
            host
        } else {
            format!("{name} at {host}")
        };
        checks.push(match outcome {
            Ok(entry) => entered(&named, entry),
            Err(error) => failed(&named, &error),
        });
        let skew = |date| clock::skew("clock of an upstream", &named, date, (earliest, latest));
        checks.extend(date.map(skew));
    }
    checks
}

fn entered(name: &str, entry: Entry) -> Check {
    let told = match entry {
        Entry::Open => "answers, and asks for no credentials",
        Entry::Anonymous => "answers, and takes anyone; no credentials are configured for it",
        Entry::Login => "answers, and accepts the credentials",
        Entry::Closed => {
            let told = format!(
                "{name}: answers, wants credentials, and no credentials are configured for it"
            );
            let mend = "only clients with credentials of their own can pull from it: set username and password_file of \
                 [upstream.NAME] for the others";
            return Check::fair(WHAT, told, mend);
        }
    };
    Check::good(WHAT, format!("{name}: {told}"))
}

fn failed(name: &str, error: &Error) -> Check {
    let mend = match error {
        Error::Unauthorized | Error::Denied => {
            "the credentials are refused: correct username and password_file (or token) of [upstream.NAME], or \
             Docker's config.json; a password that was changed, a robot account that expired"
        }
        Error::TooManyRequests { .. } => {
            "the quota is used up: wait, or configure credentials with a larger one"
        }
        Error::Unavailable(_) => {
            "check name, port, network, proxy (pull.https_proxy) and the authority of its certificate (ca_file)"
        }
        Error::Refused(_) | Error::UnknownUpstream(_) => {
            "the rules of [pull] forbid the address: allowed_hosts names hosts with private addresses"
        }
        Error::NotFound | Error::Malformed(_) => {
            "the host answers, but not as a registry (/v2/): check url of [upstream.NAME]"
        }
        _ => "check url of [upstream.NAME]",
    };
    Check::bad(
        WHAT,
        format!("{name}: {}", Failure::from_error(error)),
        mend,
    )
}
