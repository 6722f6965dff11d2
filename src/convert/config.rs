//! What the operator may choose, and what of it the bytes depend on.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use estargz::write::{Compression, Limits, MAX_CHUNK_SIZE, Options, TocPlacement};

use super::error::Error;
use super::priority::Priorities;
use crate::oci::Platform;
use crate::store::Generation;

/// Raised whenever the writer's bytes change for the same options: older twins are then made anew.
const FORMAT_GENERATION: u32 = 1;

/// How much of the digest of priorities tells one generation from another.
const PRIORITIES_DIGITS: usize = 32;

/// How hard to compress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// No larger than what the reference converter writes.
    #[default]
    Default,
    /// Faster, for a few percent of size.
    Fast,
}

/// What a converted layer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    #[default]
    Estargz,
    /// The TOC lies beside the layer, in the image `TAG-esgztoc`; diff-ids stay as they are.
    EstargzExternalToc,
    Zstdchunked,
}

/// Where our own entries stand in the layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Behind the unchanged source tar.
    #[default]
    SourceFirst,
    /// Inside the archive, as the reference converter writes it.
    Classic,
}

/// The conversion's part of the configuration.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `default` writes no more bytes than the reference converter, `fast` trades a few percent of size for speed.
    pub setting: Setting,
    /// Compression level in place of the setting's: 1 to 12 for gzip, 1 to 19 for zstd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// `estargz`, `estargz-external-toc` or `zstdchunked`.
    pub format: Format,
    /// `source-first` keeps the source tar unchanged in front, `classic` is the reference converter's order.
    pub layout: Layout,
    /// Most bytes of a file in one separately fetched chunk.
    pub chunk_size: ByteSize,
    /// Files smaller than this share a compressed member; 0 gives every file its own.
    pub min_chunk_size: ByteSize,
    /// The platforms of a multi-platform image that are converted without anyone having pulled them.
    pub platforms: Vec<Platform>,
    /// Convert every platform of a multi-platform image.
    pub all_platforms: bool,
    /// Memory that all running conversions share, their TOCs aside.
    pub memory: ByteSize,
    /// Compressing threads; all the machine has when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
    /// Layers converted at once; less when `memory` is too small for so many.
    pub layers_at_once: NonZeroUsize,
    /// Images converted at once; more of them wait.
    pub images_at_once: NonZeroUsize,
    /// A layer larger than this, as the upstream holds it, passes through until the limit is raised.
    pub max_layer_size: ByteSize,
    /// A layer that inflates to more than this passes through: the bound on compression bombs.
    pub max_unpacked_size: ByteSize,
    /// Make images anew with the files in front that their containers are known to read first, for lazy clients that fetch
    /// up to a landmark and know nothing of profiles. Tags move on to other digests, at most once a week; digests handed
    /// out before stay readable. Not with `estargz-external-toc`.
    pub reorder: bool,
    /// A layer that comes at fewer bytes in a second than this is given up, and its image is served as it is. While an
    /// image of another upstream waits, sixteen times as much is asked for.
    pub least_rate: ByteSize,
    /// For how long a layer may come slower than `least_rate`; a sixth of it while an image of another upstream waits.
    #[serde(with = "humantime_serde")]
    pub slow_after: Duration,
    /// How long an upstream may take to give a layer, however fast it comes.
    #[serde(with = "humantime_serde")]
    pub layer_within: Duration,
    /// How long to wait for a layer that another process converts.
    #[serde(with = "humantime_serde")]
    pub lease_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let platform = |architecture: &str| Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        };
        Self {
            setting: Setting::Default,
            level: None,
            format: Format::Estargz,
            layout: Layout::SourceFirst,
            chunk_size: ByteSize::mib(4),
            min_chunk_size: ByteSize::b(0),
            platforms: vec![platform("amd64"), platform("arm64")],
            all_platforms: false,
            memory: ByteSize::mib(128),
            threads: None,
            layers_at_once: NonZeroUsize::MIN.saturating_add(3),
            images_at_once: NonZeroUsize::MIN.saturating_add(15),
            max_layer_size: ByteSize::gib(64),
            max_unpacked_size: ByteSize::gib(256),
            reorder: false,
            least_rate: ByteSize::kib(16),
            slow_after: Duration::from_secs(60),
            layer_within: Duration::from_secs(2 * 3600),
            lease_wait: Duration::from_secs(3600),
        }
    }
}

impl Config {
    /// What the writer is asked for.
    ///
    /// Fails on a level or a chunk size out of range, and on what excludes each other.
    pub fn options(&self) -> Result<Options, Error> {
        let chunk_size = chunk_bytes("chunk_size", self.chunk_size)?;
        if chunk_size == 0 {
            return Err(Error::Config("chunk_size is 0".to_owned()));
        }
        if self.reorder && self.format == Format::EstargzExternalToc {
            return Err(Error::Config(
                "reorder needs other diff-ids: estargz-external-toc keeps them".to_owned(),
            ));
        }
        Ok(Options::default()
            .with_layout(match self.layout {
                Layout::SourceFirst => estargz::write::Layout::SourceFirst,
                Layout::Classic => estargz::write::Layout::Classic,
            })
            .with_compression(self.compression()?)
            .with_chunk_size(chunk_size)
            .with_min_chunk_size(chunk_bytes("min_chunk_size", self.min_chunk_size)?)
            .with_toc(match self.format {
                Format::Estargz | Format::Zstdchunked => TocPlacement::Inside,
                Format::EstargzExternalToc => TocPlacement::External,
            })
            .with_limits(Limits::default().with_max_source_bytes(self.max_unpacked_size.as_u64())))
    }

    fn compression(&self) -> Result<Compression, Error> {
        let (name, highest, default, fast) = match self.format {
            Format::Estargz | Format::EstargzExternalToc => ("gzip", 12, 6, 1),
            Format::Zstdchunked => ("zstd", 19, 3, 1),
        };
        let level = self.level.unwrap_or(match self.setting {
            Setting::Default => default,
            Setting::Fast => fast,
        });
        if !(1..=highest).contains(&level) {
            return Err(Error::Config(format!(
                "level {level} is not one of {name}'s, 1 to {highest}"
            )));
        }
        Ok(match self.format {
            Format::Estargz | Format::EstargzExternalToc => Compression::Gzip(level),
            Format::Zstdchunked => Compression::Zstd(level),
        })
    }
}

fn chunk_bytes(key: &str, size: ByteSize) -> Result<u32, Error> {
    let bytes = u32::try_from(size.as_u64())
        .ok()
        .filter(|bytes| *bytes <= MAX_CHUNK_SIZE);
    bytes.ok_or_else(|| Error::Config(format!("{key} is over {MAX_CHUNK_SIZE} bytes")))
}

/// The name of everything that the bytes of a twin depend on, beside the source: `g1-gzip6-source-4194304`.
pub fn generation(options: &Options, priorities: &Priorities) -> Generation {
    let compression = match options.compression {
        Compression::Gzip(level) => format!("gzip{level}"),
        Compression::Zstd(level) => format!("zstd{level}"),
    };
    let layout = match options.layout {
        estargz::write::Layout::SourceFirst => "source",
        estargz::write::Layout::Classic => "classic",
    };
    let mut name = format!(
        "g{FORMAT_GENERATION}-{compression}-{layout}-{}",
        options.chunk_size
    );
    if options.min_chunk_size > 0 {
        name.push_str(&format!("-min{}", options.min_chunk_size));
    }
    if options.toc == TocPlacement::External {
        name.push_str("-external");
    }
    if !priorities.is_empty() {
        name.push_str("-first-");
        name.extend(priorities.digest().hex().chars().take(PRIORITIES_DIGITS));
    }
    Generation(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Priority;

    fn named(config: &Config) -> String {
        generation(&config.options().unwrap(), &Priorities::default()).0
    }

    #[test]
    fn the_generation_names_what_bytes_depend_on_and_nothing_else() {
        let config = Config::default();
        assert_eq!(named(&config), "g1-gzip6-source-4194304");
        assert_eq!(
            named(&Config {
                setting: Setting::Fast,
                ..config.clone()
            }),
            "g1-gzip1-source-4194304"
        );
        assert_eq!(
            named(&Config {
                layout: Layout::Classic,
                ..config.clone()
            }),
            "g1-gzip6-classic-4194304"
        );
        assert_eq!(
            named(&Config {
                format: Format::Zstdchunked,
                ..config.clone()
            }),
            "g1-zstd3-source-4194304"
        );
        let external = Config {
            format: Format::EstargzExternalToc,
            min_chunk_size: ByteSize::kib(1),
            ..config.clone()
        };
        assert_eq!(named(&external), "g1-gzip6-source-4194304-min1024-external");
        let elsewhere = Config {
            threads: NonZeroUsize::new(7),
            memory: ByteSize::gib(1),
            platforms: vec![],
            ..config.clone()
        };
        assert_eq!(named(&elsewhere), "g1-gzip6-source-4194304");
        let priorities = Priorities::new(vec![Priority {
            path: b"bin/sh".to_vec(),
            layer: None,
        }]);
        let prioritized = generation(&config.options().unwrap(), &priorities).0;
        let digest = prioritized
            .strip_prefix("g1-gzip6-source-4194304-first-")
            .unwrap();
        assert!(
            priorities
                .digest()
                .to_string()
                .starts_with(&format!("sha256:{digest}"))
        );
    }

    #[test]
    fn levels_and_sizes_out_of_range_are_refused() {
        let config = Config::default();
        assert!(
            Config {
                level: Some(13),
                ..config.clone()
            }
            .options()
            .is_err()
        );
        assert!(
            Config {
                level: Some(0),
                ..config.clone()
            }
            .options()
            .is_err()
        );
        assert!(
            Config {
                level: Some(13),
                format: Format::Zstdchunked,
                ..config.clone()
            }
            .options()
            .is_ok()
        );
        assert!(
            Config {
                reorder: true,
                format: Format::EstargzExternalToc,
                ..config.clone()
            }
            .options()
            .is_err()
        );
        assert!(
            Config {
                chunk_size: ByteSize::b(0),
                ..config.clone()
            }
            .options()
            .is_err()
        );
        assert!(
            Config {
                chunk_size: ByteSize::mib(65),
                ..config
            }
            .options()
            .is_err()
        );
    }

    #[test]
    fn the_configuration_survives_toml() {
        let config = Config {
            level: Some(9),
            ..Config::default()
        };
        assert_eq!(
            toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(),
            config
        );
        assert!(toml::from_str::<Config>("chunksize = 1").is_err());
    }
}
