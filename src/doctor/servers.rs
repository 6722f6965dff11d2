//! The hosts from which images come: whether they answer, let this machine in, and agree about the
//! time.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::future::join_all;

use super::check::Check;
use crate::failure::Failure;
use crate::registry::{Builder, Config, Entry, Error, NamedHost};

const SERVERS: &str = "servers";
const CREDENTIALS: &str = "credentials";
const CLOCK: &str = "clock";
const HOSTS: &str = "hosts.toml";

/// Time for one host, with its token endpoint.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Most hosts that are asked. A node has a handful.
const MAX_HOSTS: usize = 64;
/// Clocks that differ by more than this have trouble: it is the tolerance of distribution's tokens
/// (distribution, `registry/auth/token`, `Leeway`).
const MAX_SKEW: Duration = Duration::from_secs(60);

/// A host after it was asked.
struct Asked {
    registry: String,
    name: String,
    is_mirror: bool,
    outcome: Result<Entry, Error>,
    /// How far this machine's clock is ahead of the host's, in seconds.
    ahead: Option<i64>,
}

/// Checks the hosts that the configuration and the directories of hosts name. `containerd` has the
/// directories that containerd reads, if its configuration names any.
pub(super) async fn check(config: &Config, containerd: Option<&str>) -> Vec<Check> {
    let mut checks: Vec<Check> = containerd
        .and_then(|dirs| same_directories(dirs, config.certs_dir.as_deref()))
        .into_iter()
        .collect();
    let (hosts, bad) = match named(config).await {
        Ok(found) => found,
        Err(failure) => {
            let mend = "the agent does not start with these settings either";
            checks.push(Check::bad(SERVERS, failure.to_string(), mend));
            return checks;
        }
    };
    checks.extend(bad);
    if hosts.is_empty() {
        let finding =
            "none is named: images that are eStargz in their registry are lazy, no others";
        checks.push(Check::good(SERVERS, finding));
        return checks;
    }
    let asked = join_all(hosts.iter().take(MAX_HOSTS).map(ask)).await;
    checks.extend(judge(&asked));
    checks.extend(clock(&asked));
    checks
}

/// Returns the hosts, and the checks of the files that cannot be used.
async fn named(config: &Config) -> Result<(Vec<NamedHost>, Vec<Check>), Failure> {
    let builder = Builder::new(config, None).map_err(Failure::from_error)?;
    let found = tokio::task::spawn_blocking(move || builder.named_hosts()).await;
    let found = found.map_err(Failure::when("hosts not read"))?;
    let (mut hosts, mut bad) = (Vec::new(), Vec::new());
    for host in found {
        match host {
            Ok(host) => hosts.push(host),
            Err(problem) => {
                let finding = format!("{}: {}", problem.registry, problem.reason);
                let mend =
                    "correct the file; until then neither containerd nor the agent uses its hosts";
                bad.push(Check::bad(HOSTS, finding, mend));
            }
        }
    }
    Ok((hosts, bad))
}

async fn ask(host: &NamedHost) -> Asked {
    let reached = tokio::time::timeout(ANSWER_LIMIT, host.reach()).await;
    let (date, outcome) = match reached {
        Ok(reached) => (reached.date, reached.outcome),
        Err(_elapsed) => {
            let limit = humantime::format_duration(ANSWER_LIMIT);
            let late = Error::Unavailable(format!("no answer within {limit}"));
            (None, Err(late))
        }
    };
    Asked {
        registry: host.registry.clone(),
        name: host.name(),
        is_mirror: host.is_mirror,
        outcome,
        ahead: date.map(|date| seconds_ahead(SystemTime::now(), date)),
    }
}

/// Returns a check of the hosts that answer, and one for each that does not, or refuses this
/// machine.
fn judge(asked: &[Asked]) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut fine = Vec::new();
    for host in asked {
        let shown = format!("{} for {}", host.name, host.registry);
        match host.outcome.as_ref().map(|entry| entry_text(*entry)) {
            Ok(None) | Err(Error::Unauthorized | Error::Denied) => {
                let finding = format!("{shown} refuses this machine");
                checks.push(refused(finding, host));
            }
            Ok(Some(entry)) => fine.push(format!("{shown} ({entry})")),
            Err(Error::Configuration(reason)) => {
                let mend = "correct the file or the setting that has the credentials";
                checks.push(Check::bad(CREDENTIALS, format!("{shown}: {reason}"), mend));
            }
            Err(error) => checks.push(unreachable(asked, host, format!("{shown}: {error}"))),
        }
    }
    if !fine.is_empty() {
        checks.insert(0, Check::good(SERVERS, fine.join(", ")));
    }
    checks
}

/// How a host lets this machine in; `None` if it does not.
fn entry_text(entry: Entry) -> Option<&'static str> {
    match entry {
        Entry::Open => Some("without credentials"),
        Entry::Anonymous => Some("anonymously"),
        Entry::Login => Some("with this machine's credentials"),
        Entry::Closed => None,
    }
}

fn refused(finding: String, host: &Asked) -> Check {
    let name = &host.name;
    let mend = if host.is_mirror {
        format!(
            "the node's identity ([pull.identity] for {name}, with client or header in hosts.toml for containerd), or `docker login {name}` as root"
        )
    } else {
        format!(
            "`docker login {name}` as root, [upstream.{:?}], or agent.cri with the pods' imagePullSecrets",
            host.registry
        )
    };
    Check::bad(CREDENTIALS, finding, mend)
}

/// Returns the check of a host that does not answer. The registry itself may be out of reach if a
/// mirror of it is not.
fn unreachable(asked: &[Asked], host: &Asked, finding: String) -> Check {
    let has_other = asked
        .iter()
        .any(|other| other.registry == host.registry && other.is_mirror && other.outcome.is_ok());
    if !host.is_mirror && has_other {
        let mend = "pulls need it only if the hosts before it fail";
        return Check::fair(SERVERS, finding, mend);
    }
    let mend = "containerd and the agent go past it: images are pulled elsewhere, and not lazily. Check its address, port, certificate and the route from this node";
    Check::bad(SERVERS, finding, mend)
}

/// Returns the check of this machine's clock, by the host that differs most.
fn clock(asked: &[Asked]) -> Option<Check> {
    let differences = asked
        .iter()
        .filter_map(|host| Some((&host.name, host.ahead?)));
    let (name, ahead) = differences.max_by_key(|(_, ahead)| ahead.abs())?;
    if ahead.unsigned_abs() <= MAX_SKEW.as_secs() {
        return Some(Check::good(CLOCK, format!("{} s from {name}", ahead.abs())));
    }
    let by = humantime::format_duration(Duration::from_secs(ahead.unsigned_abs()));
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let mend = "tokens and certificates are refused or expire early: synchronise the clock of this node, or of that host (chrony, systemd-timesyncd)";
    Some(Check::bad(CLOCK, format!("{by} {side} {name}"), mend))
}

/// Returns how many seconds `now` is after `date`; negative if it is before.
fn seconds_ahead(now: SystemTime, date: SystemTime) -> i64 {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match now.duration_since(date) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

/// Checks that the agent reads the directories of hosts that containerd reads. Otherwise the reads
/// of a lazy image go to other hosts than its pull.
fn same_directories(containerd: &str, agent: Option<&Path>) -> Option<Check> {
    let theirs: Vec<PathBuf> = std::env::split_paths(containerd)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    let own: Vec<PathBuf> = agent
        .map(|paths| std::env::split_paths(paths).collect())
        .unwrap_or_default();
    let first = theirs.iter().find(|path| !own.contains(path))?;
    let finding = format!(
        "containerd reads {}, and the agent with this configuration does not",
        first.display()
    );
    let mend = format!("pull.certs_dir = {containerd:?} in the agent's configuration");
    Some(Check::fair(HOSTS, finding, mend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn asked(registry: &str, is_mirror: bool, outcome: Result<Entry, Error>) -> Asked {
        Asked {
            registry: registry.to_owned(),
            name: if is_mirror { "mirror" } else { "own" }.to_owned(),
            is_mirror,
            outcome,
            ahead: Some(0),
        }
    }

    fn states(asked: &[Asked]) -> Vec<(&'static str, State)> {
        let checks = judge(asked);
        checks
            .iter()
            .map(|check| (check.what, check.state))
            .collect()
    }

    #[test]
    fn the_registry_itself_may_be_out_of_reach_of_a_node_with_a_mirror() {
        let dead = || Err(Error::Unavailable("refused".to_owned()));
        let both = [asked("a", true, Ok(Entry::Open)), asked("a", false, dead())];
        assert_eq!(
            states(&both),
            [(SERVERS, State::Good), (SERVERS, State::Fair)]
        );
        let other = [asked("b", true, Ok(Entry::Open)), asked("a", false, dead())];
        assert_eq!(
            states(&other),
            [(SERVERS, State::Good), (SERVERS, State::Bad)]
        );
        assert_eq!(states(&[asked("a", true, dead())]), [(SERVERS, State::Bad)]);
    }

    #[test]
    fn a_refusal_is_a_matter_of_credentials() {
        for outcome in [
            Err(Error::Unauthorized),
            Err(Error::Denied),
            Ok(Entry::Closed),
        ] {
            let checks = judge(&[asked("ghcr.io", false, outcome)]);
            assert_eq!((checks[0].what, checks[0].state), (CREDENTIALS, State::Bad));
            let mend = checks[0].mend.as_ref().unwrap();
            assert!(mend.contains("[upstream.\"ghcr.io\"]"), "{mend}");
        }
    }

    #[test]
    fn clocks_may_differ_by_a_minute() {
        let state = |seconds: i64| {
            let host = Asked {
                ahead: Some(seconds),
                ..asked("a", true, Ok(Entry::Open))
            };
            let check = clock(&[asked("a", true, Ok(Entry::Open)), host]).unwrap();
            (check.state, check.told)
        };
        assert_eq!(state(60).0, State::Good);
        assert_eq!(state(-60).0, State::Good);
        assert_eq!(state(7200), (State::Bad, "2h ahead of mirror".to_owned()));
        assert_eq!(state(-61), (State::Bad, "1m 1s behind mirror".to_owned()));
    }

    #[test]
    fn other_directories_than_containerds_are_reported() {
        let own = Path::new("/etc/containerd/certs.d:/etc/docker/certs.d");
        assert_eq!(same_directories("/etc/containerd/certs.d", Some(own)), None);
        assert_eq!(same_directories("", Some(own)), None);
        let check = same_directories("/srv/certs.d", Some(own)).unwrap();
        assert_eq!(check.state, State::Fair);
    }
}
