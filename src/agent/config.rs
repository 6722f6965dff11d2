//! The configuration of the agent.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::profile::Workload;

/// The configuration of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The socket that containerd's `proxy_plugins` entry names.
    pub address: PathBuf,
    /// The directory of the snapshots, the lazy mounts and the content of layers.
    pub root: PathBuf,
    /// Most bytes of disk for the content of layers, as the file system counts them. The least
    /// recently used chunks are evicted first.
    pub cache_size: ByteSize,
    /// Bytes of the file system that the content of layers leaves free. With less, nothing is
    /// prefetched, and the least recently used chunks are evicted. If not set: 1 GiB, or a tenth of
    /// a file system below 10 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free: Option<ByteSize>,
    /// Memory for chunks. Three quarters are for chunks in transit from a registry, readers' first.
    /// One quarter is for chunks that could not be written: they are served from memory while the
    /// disk is full.
    pub memory: ByteSize,
    /// containerd's socket. If set, the agent also serves kubelet's image service on `address`
    /// (`--image-service-endpoint`): it forwards the calls to this socket, and uses the credentials
    /// of pods' pulls for lazy reads too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cri: Option<PathBuf>,
    /// Most time for opening a layer. A layer that takes longer is unpacked the ordinary way.
    #[serde(with = "humantime_serde")]
    pub mount_timeout: Duration,
    /// Most time that a read waits for the registry before it fails with EIO. The next read
    /// requests the bytes again.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// Most bytes in one request, unless a single chunk is larger.
    pub max_request: ByteSize,
    /// Whether the files before a layer's prefetch landmark are fetched as soon as the layer is
    /// mounted.
    pub prefetch: bool,
    /// Whether the agent asks a Starlift server for the profile of an image (the files that its
    /// containers read at their start), and prefetches those files as soon as the layers are
    /// mounted.
    pub profiles: bool,
    /// Whether the agent looks for a profile that refers to the image (`starlift optimize
    /// --profile`, or a copy with its referrers) if the registry is not a Starlift server. Costs up
    /// to five more requests for each image, two of them for manifests.
    pub referrers: bool,
    /// Most bytes that are prefetched for one image because of its profile.
    pub profile_limit: ByteSize,
    /// How long a container's start is watched. The files that it reads are reported to the
    /// Starlift server that served the image. `0s`: nothing is watched or reported.
    #[serde(with = "humantime_serde")]
    pub record: Duration,
    /// The workload of this node. Images have a separate profile for each workload.
    pub workload: Workload,
    /// Whether the rest of a layer is fetched too: `off`, `limited` (up to `background_limit`),
    /// `full`, or `burst`: all of it at once after the pull, at the machine's speed, instead of one
    /// request at a time after `background_delay`. A layer of which much is read at once is fetched
    /// at that speed with `limited` and `full` too.
    pub background: Background,
    /// Most bytes of a layer that `limited` fetches.
    pub background_limit: ByteSize,
    /// Time between the mount of a layer and the start of fetching its rest.
    #[serde(with = "humantime_serde")]
    pub background_delay: Duration,
    /// Most bytes a second for background fetching, over all layers. No limit if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background_bandwidth: Option<ByteSize>,
    /// The holder of the mount while the agent restarts: `auto`, `systemd`, `process` or `none`.
    pub keeper: KeeperKind,
    /// Threads that answer the kernel.
    pub threads: NonZeroUsize,
    /// An address that serves `/metrics` and the status, besides the socket in the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// An address on which a separate thread reports whether the agent's threads run: 200, or 503
    /// if they are more than 20 s late. For liveness probes. Nothing listens if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<SocketAddr>,
    /// How the files of new layers are shown: `auto`, `erofs` or `fuse`. `auto` is EROFS if the
    /// kernel can do it, which is tried at each start. With `erofs` the agent does not start on a
    /// kernel that cannot. Layers that are mounted keep their driver.
    pub driver: DriverKind,
    /// Whether the pull of an image fails that has no statement, signed by one of
    /// `provenance_keys`, that a Starlift server or `starlift convert` made it. Images that are
    /// pulled from elsewhere need an exception, also the one that containerd starts for each pod.
    pub require_provenance: bool,
    /// The files of the public keys (PEM; Ed25519, or ECDSA on P-256) that may sign the statements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provenance_keys: Vec<PathBuf>,
    /// Exceptions for some images. The first rule that matches an image counts.
    pub image: Vec<ImageRule>,
}

/// How much of a layer is fetched in the background.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Background {
    Off,
    Limited,
    #[default]
    Full,
    /// Fully, at once and at the machine's speed.
    Burst,
}

/// The holder of the FUSE descriptor besides the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeeperKind {
    /// The systemd store if the unit has one, else a process.
    #[default]
    Auto,
    /// The descriptor store of the systemd unit.
    Systemd,
    /// `starlift agent keeper`, a separate process.
    Process,
    /// No holder: running containers lose their lazy layers when the agent stops.
    None,
}

/// The driver of new layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverKind {
    /// EROFS if the kernel can do it.
    #[default]
    Auto,
    /// Names from a metadata image, content from the layer's data file, both read by the kernel.
    Erofs,
    /// Names and content from the agent.
    Fuse,
}

/// Settings for the images whose reference matches a pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRule {
    /// The image reference as containerd writes it. `*` stands for any text.
    pub pattern: String,
    /// `false`: the image is unpacked the ordinary way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy: Option<bool>,
    /// Replaces the agent's `prefetch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<bool>,
    /// Replaces the agent's `background`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<Background>,
    /// Replaces the agent's `workload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// Replaces the agent's `require_provenance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_provenance: Option<bool>,
}

/// The settings that apply to one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) lazy: bool,
    pub(super) prefetch: bool,
    pub(super) background: Background,
    pub(super) workload: Workload,
    pub(super) require_provenance: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: PathBuf::from("/run/starlift-agent/agent.sock"),
            root: PathBuf::from("/var/lib/starlift-agent"),
            cri: None,
            cache_size: ByteSize::gib(20),
            min_free: None,
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
            driver: DriverKind::default(),
            require_provenance: false,
            provenance_keys: Vec::new(),
            image: Vec::new(),
        }
    }
}

impl Config {
    /// Bytes of memory for chunks in transit.
    pub(super) fn fetch_memory(&self) -> u64 {
        self.memory.as_u64() / 4 * 3
    }

    /// Returns the settings for the image that containerd calls `reference`.
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
            require_provenance: rule
                .and_then(|rule| rule.require_provenance)
                .unwrap_or(self.require_provenance),
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
    // The first match of each middle part leaves the most text for the parts after it.
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
    fn a_star_matches_any_text_and_nothing_else_is_special() {
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
    fn the_first_rule_that_matches_an_image_counts() {
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
