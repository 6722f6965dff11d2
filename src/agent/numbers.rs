//! Numbers that must not be taken for each other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a mounted layer, and the name of its directory. Never used twice under one root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct LayerNumber(pub u64);

/// An inode of the agent's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Inode(pub u64);

impl LayerNumber {
    /// Returns the number that a directory's name is, if it is one.
    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        let number = std::str::from_utf8(name).ok()?.parse().ok().map(Self)?;
        (number.to_string().as_bytes() == name).then_some(number)
    }
}

impl Inode {
    /// The root of a file system, which has an entry for each layer.
    pub(crate) const ROOT: Self = Self(1);
}

impl fmt::Display for LayerNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_of_a_directory_is_a_number() {
        assert_eq!(LayerNumber::from_name(b"7"), Some(LayerNumber(7)));
        for other in [
            &b"07"[..],
            b"+7",
            b"7 ",
            b"",
            b"x",
            b"\xff",
            b"18446744073709551616",
        ] {
            assert_eq!(LayerNumber::from_name(other), None, "{other:?}");
        }
    }
}
