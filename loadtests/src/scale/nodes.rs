//! Many nodes that start one large image at once: servers, requests, bytes and money, from the
//! fitted costs and from assumptions that are all written out.

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::scale::measured::Done;
use crate::scale::model::Costs;

/// The assumptions, each with its key, its value and its sentence.
#[derive(Debug, Clone)]
pub(super) struct Assumptions(Vec<Assumption>);

#[derive(Debug, Clone)]
struct Assumption {
    key: &'static str,
    value: f64,
    text: &'static str,
}

/// The date of the prices below.
const PRICES: &str = "prices: list prices of a large provider, of an American region, as its customers knew them in 2026; \
                      nobody has looked them up for this report. Put in your own";

const DEFAULTS: &[(&str, f64, &str)] = &[
    (
        "image_gb",
        10.0,
        "size of the image's layers as they are pulled, GB (10⁹ bytes)",
    ),
    ("layers", 30.0, "layers of the image"),
    (
        "read_share",
        0.10,
        "share of the image that a node reads until it is ready",
    ),
    (
        "range_kib",
        512.0,
        "mean length of a node's range request, KiB: neighbours in one request, read-ahead",
    ),
    (
        "within_s",
        60.0,
        "all nodes have what a start reads after this time, s",
    ),
    ("whole_within_s", 600.0, "the same for the whole image, s"),
    (
        "cores",
        8.0,
        "processors of a server, each as fast as one of the measured machine",
    ),
    (
        "busy",
        0.6,
        "share of a server's processors and network that is used at most",
    ),
    (
        "gbit",
        12.5,
        "network of a server, Gbit/s, in each direction",
    ),
    (
        "cache",
        0.0,
        "1 if the servers have `store.cache` and all nodes read the same share",
    ),
    (
        "convert_cores",
        16.0,
        "processors that convert the image, all replicas together",
    ),
    (
        "read_usd",
        0.40,
        "a million GET requests to the bucket, USD",
    ),
    ("write_usd", 5.0, "a million PUT and LIST requests, USD"),
    (
        "bucket_gb_usd",
        0.0,
        "a GB from the bucket to the same region, USD",
    ),
    (
        "zone_gb_usd",
        0.02,
        "a GB between two zones, both directions together, USD",
    ),
    (
        "zone_share",
        0.67,
        "share of the servers' bytes that goes to another zone",
    ),
    (
        "registry_gb_usd",
        0.09,
        "a GB from a registry that is not in the region, USD",
    ),
    ("server_hour_usd", 0.34, "an hour of a server, USD"),
    (
        "hours",
        1.0,
        "hours for which the servers of such a start are paid",
    ),
];

/// Pieces of `store.cache`.
const CACHE_PIECE: f64 = (256_u32 << 10) as f64;

/// A way in which all nodes get the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Ranges through the servers.
    Lazily,
    /// Ranges from the bucket, by signed URLs of the servers.
    Redirected,
    /// Every byte through the servers.
    Whole,
    /// Every byte from the bucket, by signed URLs.
    WholeRedirected,
    /// Every byte from the source registry, without Starlift.
    Plain,
}

impl Way {
    pub(super) const ALL: [Self; 5] = [
        Self::Lazily,
        Self::Redirected,
        Self::Whole,
        Self::WholeRedirected,
        Self::Plain,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lazily => "lazily, through the servers",
            Self::Redirected => "lazily, `serve.redirect`",
            Self::Whole => "the whole image, through the servers",
            Self::WholeRedirected => "the whole image, `serve.redirect`",
            Self::Plain => "plain pull from a registry elsewhere",
        }
    }
}

/// The needs of some nodes in one way.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Needs {
    /// Servers by processor time, and by network.
    pub(super) by_cpu: f64,
    pub(super) by_network: f64,
    pub(super) servers: f64,
    /// GB through the servers, and from bucket or registry.
    pub(super) through_gb: f64,
    pub(super) from_gb: f64,
    pub(super) reads: f64,
    pub(super) requests_usd: f64,
    pub(super) bytes_usd: f64,
    pub(super) servers_usd: f64,
}

impl Needs {
    pub(super) fn usd(&self) -> f64 {
        self.requests_usd + self.bytes_usd + self.servers_usd
    }
}

impl Assumptions {
    /// Returns the defaults with these changes, each `KEY=VALUE`.
    pub(super) fn with(changes: &[String]) -> anyhow::Result<Self> {
        let default = |&(key, value, text): &(&'static str, f64, &'static str)| Assumption {
            key,
            value,
            text,
        };
        let mut all: Vec<_> = DEFAULTS.iter().map(default).collect();
        for change in changes {
            let (key, value) = change
                .split_once('=')
                .with_context(|| format!("{change}: not KEY=VALUE"))?;
            let Some(found) = all.iter_mut().find(|assumption| assumption.key == key) else {
                bail!("{key} is none of the assumptions")
            };
            found.value = value.parse().context(change.clone())?;
        }
        Ok(Self(all))
    }

    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let row = |assumption: &Assumption| {
            let Assumption { key, value, text } = assumption;
            vec![format!("`{key}`"), value.to_string(), (*text).to_owned()]
        };
        self.0.iter().map(row).collect()
    }

    pub(super) const fn note() -> &'static str {
        PRICES
    }

    pub(super) fn get(&self, key: &str) -> f64 {
        let found = self.0.iter().find(|assumption| assumption.key == key);
        found.map_or(f64::NAN, |assumption| assumption.value)
    }

    /// Returns the seconds of the conversion, in processor time and in wall time.
    pub(super) fn conversion(&self, costs: &Costs) -> (f64, f64) {
        let cpu = costs.convert_cpu * self.get("image_gb") * 1e9;
        (cpu, cpu / self.get("convert_cores"))
    }

    /// Returns the needs of `nodes` that start the image at once.
    pub(super) fn needs(&self, costs: &Costs, nodes: f64, way: Way) -> Needs {
        let is_lazy = matches!(way, Way::Lazily | Way::Redirected);
        let is_redirected = matches!(way, Way::Redirected | Way::WholeRedirected);
        let (image, layers) = (self.get("image_gb") * 1e9, self.get("layers"));
        let bytes = image * if is_lazy { self.get("read_share") } else { 1.0 };
        // The end of each layer, with its TOC, then the ranges; or each layer by one request. A
        // redirect has no body.
        let range = self.get("range_kib") * 1024.0;
        let through = if is_redirected { 0.0 } else { nodes * bytes };
        let mut done = Done {
            pulls: nodes,
            ..Done::default()
        };
        if is_lazy {
            (done.ranges, done.bytes) = (nodes * (layers + bytes / range), through);
        } else {
            (done.wholes, done.whole_bytes) = (nodes * layers, through);
        }
        let used = costs.of_pulls(&done);
        let within = self.get(if is_lazy {
            "within_s"
        } else {
            "whole_within_s"
        });
        let of_one = within * self.get("busy");
        let (by_cpu, by_network) = match way {
            Way::Plain => (0.0, 0.0),
            _ => (
                used.cpu / (of_one * self.get("cores")),
                through / (of_one * self.get("gbit") / 8.0 * 1e9),
            ),
        };
        let servers = match way {
            Way::Plain => 0.0,
            _ => by_cpu.max(by_network).ceil().max(1.0),
        };
        let (mut reads, mut from) = (used.reads, nodes * bytes);
        if way == Way::Lazily && self.get("cache") > 0.0 {
            // Each server fetches each piece once.
            reads = nodes * costs.pull_reads + servers * (layers + bytes / CACHE_PIECE);
            from = servers * bytes;
        }
        if way == Way::Plain {
            reads = 0.0;
        } else if is_lazy || is_redirected {
            // Each server reads each layer once a day to check what it has not hashed on the way.
            reads += servers * layers;
            from += servers * image;
        }
        let gb = |bytes: f64| bytes / 1e9;
        let through_gb = gb(through);
        let bytes_usd = match way {
            Way::Plain => gb(from) * self.get("registry_gb_usd"),
            _ => {
                gb(from) * self.get("bucket_gb_usd")
                    + through_gb * self.get("zone_share") * self.get("zone_gb_usd")
            }
        };
        Needs {
            by_cpu,
            by_network,
            servers,
            through_gb: if way == Way::Plain { 0.0 } else { through_gb },
            from_gb: gb(from),
            reads,
            requests_usd: reads * self.get("read_usd") / 1e6,
            bytes_usd,
            servers_usd: servers * self.get("server_hour_usd") * self.get("hours"),
        }
    }

    /// Returns the cost of the writes of a conversion, USD.
    pub(super) fn conversion_usd(&self, costs: &Costs) -> f64 {
        costs.convert_writes * self.get("layers") * self.get("write_usd") / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs() -> Costs {
        Costs {
            range_cpu: 1e-4,
            byte_cpu: 5e-10,
            range_reads: 1.0,
            pull_cpu: 1e-3,
            ..Costs::default()
        }
    }

    #[test]
    fn changes_are_numbers_of_known_keys() {
        let changed = Assumptions::with(&["read_share=0.25".to_owned()]).unwrap();
        assert!((changed.get("read_share") - 0.25).abs() < f64::EPSILON);
        for wrong in ["read_share", "unknown=1", "layers=many"] {
            assert!(Assumptions::with(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_of_the_bytes_needs_that_share_of_the_network() {
        let assumptions = Assumptions::with(&["whole_within_s=60".to_owned()]).unwrap();
        let lazily = assumptions.needs(&costs(), 1000.0, Way::Lazily);
        let whole = assumptions.needs(&costs(), 1000.0, Way::Whole);
        assert!((lazily.by_network / whole.by_network - 0.10).abs() < 1e-9);
        // 1,000 nodes, 1 GB each, in 60 s at 60 % of 12.5 Gbit/s.
        assert!((lazily.by_network - 17.78).abs() < 0.01, "{lazily:?}");
        assert!(lazily.servers >= lazily.by_network);
        let redirected = assumptions.needs(&costs(), 1000.0, Way::Redirected);
        assert!(redirected.servers < lazily.servers && redirected.through_gb == 0.0);
        assert!((redirected.from_gb - lazily.from_gb).abs() < 1000.0);
    }

    #[test]
    fn a_cache_saves_requests_to_the_bucket() {
        let with = Assumptions::with(&["cache=1".to_owned()]).unwrap();
        let without = Assumptions::with(&[]).unwrap();
        let reads =
            |assumptions: &Assumptions| assumptions.needs(&costs(), 10_000.0, Way::Lazily).reads;
        assert!(reads(&with) < reads(&without) / 10.0);
    }
}
