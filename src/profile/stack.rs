//! The name by which a node knows an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::oci::Digest;
use crate::oci::digest::ParseDigestError;

/// The digest of an image's list of layers. A node receives the layers, but neither the manifest
/// nor the configuration.
///
/// SHA-256 of the layers' digests, from the bottom to the top, a line feed behind each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stack(pub Digest);

impl Stack {
    /// The digest of `layers`, from the bottom to the top.
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a Digest>) -> Self {
        let text: String = layers
            .into_iter()
            .map(|layer| format!("{layer}\n"))
            .collect();
        Self(Digest::sha256_of(text.as_bytes()))
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Stack {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_layers_counts() {
        let (one, two) = (Digest::sha256_of(b"1"), Digest::sha256_of(b"2"));
        assert_ne!(Stack::of([&one, &two]), Stack::of([&two, &one]));
        assert_eq!(
            Stack::of([&one]).0,
            Digest::sha256_of(format!("{one}\n").as_bytes())
        );
    }
}
