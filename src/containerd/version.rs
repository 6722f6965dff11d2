//! containerd's version.

use std::fmt;

/// The first three numbers of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// Parses the line that `containerd --version` prints: program, package, version, revision.
    pub(crate) fn of_output(line: &str) -> Option<Self> {
        line.split_whitespace().skip(1).find_map(Self::parse)
    }

    /// Parses a version such as `1.6.20~ds1`, `v2.4.2` or `2.1.0-rc.1`.
    fn parse(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let mut numbers = word.splitn(3, '.');
        let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let patch = numbers
            .next()?
            .split(|letter: char| !letter.is_ascii_digit())
            .next()?
            .parse()
            .ok()?;
        Some(Self(major, minor, patch))
    }

    /// Whether this version knows `proxy_plugins.NAME.exports`.
    pub(crate) fn has_exports(self) -> bool {
        self >= Self(1, 7, 16) || self >= Self(1, 6, 32) && self < Self(1, 7, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_containerd_and_distributions_print_them() {
        for (line, version) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                Version(1, 6, 20),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.4.2 7b8d3f1",
                Version(2, 4, 2),
            ),
            ("containerd containerd.io v2.1.0-rc.1 abc", Version(2, 1, 0)),
        ] {
            assert_eq!(Version::of_output(line), Some(version), "{line}");
        }
        assert_eq!(
            Version::of_output("containerd github.com/containerd/containerd/v2 v2.4.2+unknown"),
            Some(Version(2, 4, 2))
        );
        assert_eq!(Version::of_output("no version here"), None);
    }

    #[test]
    fn exports_are_known_to_late_releases_of_both_old_branches() {
        let known = [Version(1, 6, 32), Version(1, 7, 16), Version(2, 0, 0)];
        let unknown = [Version(1, 6, 20), Version(1, 7, 0), Version(1, 7, 15)];
        assert!(
            known.into_iter().all(Version::has_exports)
                && !unknown.into_iter().any(Version::has_exports)
        );
    }
}
