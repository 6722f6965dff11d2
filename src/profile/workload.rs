//! The use of an image on some nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name (that of a DNS label, RFC 1035).
const MAX_BYTES: usize = 63;

/// The name of a way to run an image: lower-case letters, digits, `-`, `_` and `.`. The operator of
/// the nodes chooses it. Nothing of a container's arguments goes into it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Workload(String);

/// The text is not a workload's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("workload name is not 1 to {MAX_BYTES} lower-case letters, digits, '-', '_' and '.'")]
pub struct ParseWorkloadError;

impl Default for Workload {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl TryFrom<String> for Workload {
    type Error = ParseWorkloadError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_fine = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        let fits = (1..=MAX_BYTES).contains(&name.len()) && name.bytes().all(is_fine);
        if fits {
            Ok(Self(name))
        } else {
            Err(ParseWorkloadError)
        }
    }
}

impl FromStr for Workload {
    type Err = ParseWorkloadError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        name.to_owned().try_into()
    }
}

impl From<Workload> for String {
    fn from(workload: Workload) -> Self {
        workload.0
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        assert!(
            ["default", "web-1", "a.b_c"]
                .iter()
                .all(|name| name.parse::<Workload>().is_ok())
        );
        assert!(
            ["", "A", "a b", "a/b", &"a".repeat(64)]
                .iter()
                .all(|name| name.parse::<Workload>().is_err())
        );
    }
}
