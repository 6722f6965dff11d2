//! The keys of Docker's `config.json`: hosts, URLs, hosts with a path (containers-auth.json), hosts
//! with wildcards (Kubernetes, "Interpretation of config.json").

use crate::oci::hub::is_docker_hub;

/// A parsed key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key<'a> {
    host: &'a str,
    /// Empty for the whole host.
    path: &'a str,
}

/// The quality of a match: the longest path counts first, then a host without wildcards, then the
/// plainest spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fit {
    path: usize,
    is_exact: bool,
    is_plain: bool,
}

/// Returns how well `key` matches a repository at `host`; `None` if it is for something else.
pub(super) fn fit(key: &str, host: &str, repository: &str) -> Option<Fit> {
    let read = read(key);
    let is_exact = read.host == host || (is_docker_hub(read.host) && is_docker_hub(host));
    let is_host = is_exact || (read.host.contains(['*', '?']) && is_like(read.host, host));
    let is_below = read.path.is_empty()
        || repository
            .strip_prefix(read.path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (is_host && is_below).then_some(Fit {
        path: read.path.len(),
        is_exact,
        is_plain: key == host,
    })
}

fn read(key: &str) -> Key<'_> {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.trim_matches('/');
    // The address of the API, as older versions of `docker login` wrote it.
    let path = ["v1", "v2"]
        .iter()
        .find_map(|api| path.strip_prefix(api))
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
        .unwrap_or(path);
    Key {
        host,
        path: path.trim_start_matches('/'),
    }
}

/// Whether `host` matches a pattern label by label, the port included: `*` is any text within a
/// label, `?` one letter.
fn is_like(pattern: &str, host: &str) -> bool {
    let (pattern, pattern_port) = split_port(pattern);
    let (host, port) = split_port(host);
    let (patterns, labels): (Vec<_>, Vec<_>) =
        (pattern.split('.').collect(), host.split('.').collect());
    let fits =
        |(pattern, label): (&&str, &&str)| is_label_like(pattern.as_bytes(), label.as_bytes());
    pattern_port == port && patterns.len() == labels.len() && patterns.iter().zip(&labels).all(fits)
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    host.rsplit_once(':')
        .map_or((host, None), |(host, port)| (host, Some(port)))
}

fn is_label_like(pattern: &[u8], label: &[u8]) -> bool {
    // The position of the last star, and the letter up to which it matches. On a mismatch the star
    // takes one more letter.
    let (mut at, mut here, mut star) = (0, 0, None);
    while here < label.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(letter) if *letter == b'?' || *letter == label[here] => {
                (at, here) = (at + 1, here + 1)
            }
            _ => {
                let Some((starred, taken)) = star else {
                    return false;
                };
                star = Some((starred, taken + 1));
                (at, here) = (starred + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(key: &str, host: &str, repository: &str) -> bool {
        fit(key, host, repository).is_some()
    }

    #[test]
    fn keys_are_hosts_in_every_spelling() {
        for key in [
            "a.example",
            "https://a.example",
            "http://a.example/v1/",
            "a.example/v2",
            "https://a.example/v2/",
        ] {
            assert!(fits(key, "a.example", "team/app"), "{key}");
            assert!(
                !fits(key, "a.example:5000", "team/app") && !fits(key, "b.example", "team/app"),
                "{key}"
            );
        }
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "registry-1.docker.io",
        ] {
            assert!(fits(key, "docker.io", "library/app"), "{key}");
        }
    }

    #[test]
    fn a_path_covers_everything_below_it() {
        for (key, is_covered) in [
            ("a.example/team", true),
            ("a.example/team/app", true),
            ("https://a.example/team/", true),
            ("a.example/v2/team", true),
            ("a.example/tea", false),
            ("a.example/team/app/x", false),
            ("a.example/other", false),
        ] {
            assert_eq!(fits(key, "a.example", "team/app"), is_covered, "{key}");
        }
    }

    #[test]
    fn wildcards_stay_within_a_label() {
        for (key, is_covered) in [
            ("*.example", true),
            ("a.*", true),
            ("*.*", true),
            ("?.example", true),
            ("a*.exa*le", true),
            ("*", false),
            ("*.example:5000", false),
            ("b*.example", false),
            ("*.example/team", true),
        ] {
            assert_eq!(fits(key, "a.example", "team/app"), is_covered, "{key}");
        }
        assert!(fits("*.example:5000", "a.example:5000", "x"));
    }

    #[test]
    fn the_longest_path_fits_best() {
        let keys = [
            "*.example",
            "https://a.example",
            "a.example",
            "*.example/team",
            "a.example/team",
            "a.example/team/app",
        ];
        let fits: Vec<_> = keys
            .iter()
            .map(|key| fit(key, "a.example", "team/app").unwrap())
            .collect();
        assert!(
            fits.is_sorted() && fits.windows(2).all(|pair| pair[0] != pair[1]),
            "{fits:?}"
        );
    }
}
