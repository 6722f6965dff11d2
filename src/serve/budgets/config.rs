//! The budgets section of the server's configuration.

use std::num::{NonZeroU32, NonZeroUsize};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// The budgets of clients and upstreams, each in a section of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetsConfig {
    /// Of each identity: a user of this server, or the user of an upstream. Clients without a name
    /// count by their address.
    pub identity: BudgetConfig,
    /// Of each IPv4 address and each IPv6 network of 64 bits.
    pub address: BudgetConfig,
    /// Of each upstream, over all clients that read its images.
    pub upstream: BudgetConfig,
}

/// One budget for each identity (`serve.budgets.identity`), address (`serve.budgets.address`) or
/// upstream (`serve.budgets.upstream`). A key that is not set is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetConfig {
    /// The most requests a second, as an average: images, tokens and profiles. One more is answered
    /// 429 with the time after which it is admitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<NonZeroU32>,
    /// The most requests at once after a pause, if `requests` is set. Without it, the requests of
    /// ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
    /// The most requests that are being answered at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<NonZeroUsize>,
    /// The most images that are being converted, or wait for it, at the same time. A pull of one
    /// more gets the source image; a conversion by API is answered 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversions: Option<NonZeroUsize>,
    /// The most bytes of answers that are being sent at the same time. A single answer may have
    /// more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_under_way: Option<ByteSize>,
    /// The most bytes of converted layers in the store, counted for the client that they were
    /// converted for first. Then no more images are converted for it. Everything that is converted
    /// stays readable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<ByteSize>,
}

impl BudgetConfig {
    /// Whether no limit is set, so that nothing needs to be counted.
    pub(super) fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_zero_and_unknown_keys_are_refused() {
        for text in [
            "[identity]\nrequests = 0",
            "[address]\nstreams = 0",
            "[upstream]\nconversions = 0",
            "[identity]\nburst = 0",
            "[identity]\nbytes = '1MiB'",
            "[user]\nrequests = 1",
        ] {
            assert!(toml::from_str::<BudgetsConfig>(text).is_err(), "{text}");
        }
        let config: BudgetsConfig = toml::from_str("[address]\nrequests = 5").unwrap();
        assert!(config.identity.is_unlimited() && !config.address.is_unlimited());
    }
}
