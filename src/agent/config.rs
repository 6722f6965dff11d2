//! The agent's part of the configuration.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::profile::Workload;

/// The agent's part of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The socket that containerd's `proxy_plugins` entry names.
    pub address: PathBuf,
    /// Where snapshots, lazy mounts and the cache lie.
    pub root: PathBuf,
    /// Most bytes of the disk that cached chunks take; the longest unused go first.
    pub cache_size: ByteSize,
    /// Memory for chunks: three quarters for those on their way from a registry, readers' first, and one for those that just
    /// came, which are served from there while the disk is full.
    pub memory: ByteSize,
    /// containerd's socket, where kubelets are to find their image service on `address` (`--image-service-endpoint`): calls
    /// are handed on, and the credentials of pods' pulls are used for lazy reads too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cri: Option<PathBuf>,
    /// How long opening a layer may take; one that takes longer is unpacked the ordinary way.
    #[serde(with = "humantime_serde")]
    pub mount_timeout: Duration,
    /// How long a read may wait for the registry before it fails with EIO; the next read asks again.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// Most bytes asked for in one request.
    pub max_request: ByteSize,
    /// Fetch the files in front of a layer's prefetch landmark as soon as it is mounted.
    pub prefetch: bool,
    /// Ask a Starlift server what containers of an image read when they start, and fetch that as soon as layers are mounted.
    pub profiles: bool,
    /// Where the registry is no Starlift server, look for a profile that refers to the image (`starlift optimize --profile`, or
    /// a copy with its referrers): up to five more requests for each image, two of them for manifests.
    pub referrers: bool,
    /// Most bytes that are fetched of one image by such a profile.
    pub profile_limit: ByteSize,
    /// How long a container's start is watched; which files it read is told to the Starlift server that gave the image. `0s`:
    /// nothing is watched or told.
    #[serde(with = "humantime_serde")]
    pub record: Duration,
    /// What images are used for here: profiles are kept apart by it.
    pub workload: Workload,
    /// Whether the rest of a layer is fetched too: `off`, `limited` (up to `background_limit`) or `full`.
    pub background: Background,
    /// Most bytes that `limited` fetches of a layer.
    pub background_limit: ByteSize,
    /// How long after its mount a layer's rest is begun with.
    #[serde(with = "humantime_serde")]
    pub background_delay: Duration,
    /// Most bytes a second that fetching in the background takes, all layers together; no limit when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background_bandwidth: Option<ByteSize>,
    /// Who keeps the mount while the agent is restarted: `auto`, `systemd`, `process` or `none`.
    pub keeper: KeeperKind,
    /// Threads that answer the kernel.
    pub threads: NonZeroUsize,
    /// An address to serve `/metrics` and the status on, besides the socket in the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// An address on which a thread of its own tells whether the agent's threads run: 200, or 503 when they are more than
    /// 20 s late. For probes of liveness; nothing listens when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<SocketAddr>,
    /// What holds for some images only; the first rule that fits an image counts.
    pub image: Vec<ImageRule>,
}

/// How much of a layer is fetched without anyone reading it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Background {
    Off,
    Limited,
    #[default]
    Full,
}

/// Who holds the FUSE descriptor besides the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeeperKind {
    /// systemd's where the unit has one, else a process.
    #[default]
    Auto,
    /// The descriptor store of the systemd unit.
    Systemd,
    /// `starlift agent keeper`, a process of its own.
    Process,
    /// Nobody: running containers lose their lazy layers with the agent.
    None,
}

/// What holds for the images whose reference fits a pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRule {
    /// The reference as containerd has it; `*` stands for any text.
    pub pattern: String,
    /// `false` unpacks the image the ordinary way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy: Option<bool>,
    /// In place of the agent's `prefetch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<bool>,
    /// In place of the agent's `background`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<Background>,
    /// In place of the agent's `workload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
}

/// What holds for one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) lazy: bool,
    pub(super) prefetch: bool,
    pub(super) background: Background,
    pub(super) workload: Workload,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: PathBuf::from("/run/starlift-agent/agent.sock"),
            root: PathBuf::from("/var/lib/starlift-agent"),
            cri: None,
            cache_size: ByteSize::gib(20),
            memory: ByteSize::mib(64),
            mount_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
            max_request: ByteSize::mib(8),
            prefetch: true,
            profiles: true,
            referrers: false,
            profile_limit: ByteSize::mib(512),
            record: Duration::from_secs(30),
            workload: Workload::default(),
            background: Background::default(),
            background_limit: ByteSize::mib(256),
            background_delay: Duration::from_secs(10),
            background_bandwidth: None,
            keeper: KeeperKind::default(),
            threads: NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN),
            listen: None,
            liveness: None,
            image: Vec::new(),
        }
    }
}

impl Config {
    /// Bytes of memory for chunks on their way.
    pub(super) fn fetch_memory(&self) -> u64 {
        self.memory.as_u64() / 4 * 3
    }

    /// What holds for the image that containerd calls `reference`.
    pub(super) fn policy(&self, reference: &str) -> Policy {
        let rule = self
            .image
            .iter()
            .find(|rule| fits(&rule.pattern, reference));
        Policy {
            lazy: rule.and_then(|rule| rule.lazy).unwrap_or(true),
            prefetch: rule.and_then(|rule| rule.prefetch).unwrap_or(self.prefetch),
            background: rule
                .and_then(|rule| rule.background)
                .unwrap_or(self.background),
            workload: rule
                .and_then(|rule| rule.workload.clone())
                .unwrap_or_else(|| self.workload.clone()),
        }
    }
}

/// Whether `text` is `pattern` with some text in place of each `*`.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut left) = text.strip_prefix(head) else {
        return false;
    };
    let (middles, tail) = rest
        .rsplit_once('*')
        .map_or((None, rest), |(middles, tail)| (Some(middles), tail));
    // Each middle part at its first place leaves the most to those behind it.
    for part in middles.into_iter().flat_map(|middles| middles.split('*')) {
        let Some(at) = left.find(part) else {
            return false;
        };
        left = &left[at + part.len()..];
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_references() {
        for (pattern, text) in [
            ("*", "any/thing:1"),
            ("docker.io/library/*", "docker.io/library/nginx:1"),
            ("*/nginx:*", "docker.io/library/nginx:1"),
            ("a*b*c", "a-b-b-c"),
            ("a**c", "abc"),
            ("exact", "exact"),
            ("ab*b", "abb"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("exact", "exacts"),
            ("a*b", "ba"),
            ("ab*b", "ab"),
            ("*x*y", "yx"),
            ("", "a"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let text = "background = 'limited'\n[[image]]\npattern = 'a/*'\nlazy = false\n[[image]]\npattern = '*'\nbackground = 'off'\nworkload = 'web'";
        let config: Config = toml::from_str(text).unwrap();
        let policy = config.policy("a/b:1");
        assert_eq!(
            (policy.lazy, policy.background),
            (false, Background::Limited)
        );
        assert_eq!(policy.workload, Workload::default());
        let policy = config.policy("b:1");
        assert_eq!(String::from(policy.workload), "web");
        assert_eq!(
            (policy.lazy, policy.prefetch, policy.background),
            (true, true, Background::Off)
        );
        assert!(
            toml::from_str::<Config>("[[image]]\nlazy = true").is_err(),
            "a rule needs its pattern"
        );
    }
}
