//! The operator's options for conversions, and the name of those that the converted bytes depend
//! on.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use estargz::write::{Compression, Limits, MAX_CHUNK_SIZE, Options, TocPlacement};

use super::error::Error;
use super::priority::Priorities;
use crate::oci::Platform;
use crate::store::Generation;

/// Raised whenever the writer's bytes change for the same options. Images of an older generation
/// are then converted again.
const FORMAT_GENERATION: u32 = 1;

/// How many digits of the digest of priorities are part of a generation's name.
const PRIORITIES_DIGITS: usize = 32;

/// The effort spent on compression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// No larger than the reference converter's output.
    #[default]
    Default,
    /// Faster, for a few percent of size.
    Fast,
}

/// The format of converted layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    #[default]
    Estargz,
    /// The TOC is stored beside the layer, in the image `TAG-esgztoc`. Diff-ids stay the same.
    EstargzExternalToc,
    Zstdchunked,
}

/// The position of the entries that eStargz adds to the layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Behind the unchanged source tar.
    #[default]
    SourceFirst,
    /// Inside the archive, in the order of the reference converter.
    Classic,
}

/// The conversion's section of the configuration.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `default` writes no more bytes than the reference converter, `fast` trades a few percent of
    /// size for speed.
    pub setting: Setting,
    /// Compression level that replaces the level of `setting`: 1 to 12 for gzip, 1 to 19 for zstd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// `estargz`, `estargz-external-toc` or `zstdchunked`.
    pub format: Format,
    /// `source-first` keeps the source tar unchanged at the front, `classic` is the order of the
    /// reference converter.
    pub layout: Layout,
    /// The most bytes of a file in one chunk. Each chunk is fetched separately.
    pub chunk_size: ByteSize,
    /// Files smaller than this share a compressed member; with 0 every file has a member of its
    /// own.
    pub min_chunk_size: ByteSize,
    /// The platforms of a multi-platform image that are converted before anyone pulls them.
    pub platforms: Vec<Platform>,
    /// Convert every platform of a multi-platform image.
    pub all_platforms: bool,
    /// Memory shared by all running conversions, without their TOCs.
    pub memory: ByteSize,
    /// Compressing threads. The default is the number of processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
    /// Layers converted at once. Fewer if `memory` is too small for that many.
    pub layers_at_once: NonZeroUsize,
    /// Images converted at once. Further images wait.
    pub images_at_once: NonZeroUsize,
    /// A source layer larger than this, compressed, passes through until the limit is raised.
    pub max_layer_size: ByteSize,
    /// A layer that inflates to more than this passes through. The limit stops compression bombs.
    pub max_unpacked_size: ByteSize,
    /// Convert images once more with the files at the front that their containers are known to read
    /// first, for lazy clients that prefetch up to a landmark and do not use profiles. Tags then
    /// point to new digests, at most once a week. Digests served before stay readable. Cannot be
    /// combined with `estargz-external-toc`.
    pub reorder: bool,
    /// The file of a private key (PKCS#8, PEM; Ed25519, or ECDSA on P-256) that signs which source
    /// image each converted image was made from. Nothing is signed if not set. Images converted
    /// before are signed when their statements are requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PathBuf>,
    /// The conversion of a layer that arrives at fewer bytes per second than this is given up, and
    /// the source image is served. While an image of another upstream waits, the least rate is
    /// sixteen times as high.
    pub least_rate: ByteSize,
    /// How long a layer may arrive slower than `least_rate`; a sixth of that while an image of
    /// another upstream waits.
    #[serde(with = "humantime_serde")]
    pub slow_after: Duration,
    /// How long an upstream may take to send a layer, whatever the rate.
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
            chunk_size: ByteSize::kib(256),
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
            signing_key: None,
            least_rate: ByteSize::kib(16),
            slow_after: Duration::from_secs(60),
            layer_within: Duration::from_secs(2 * 3600),
            lease_wait: Duration::from_secs(3600),
        }
    }
}

impl Config {
    /// Returns the options of the writer.
    ///
    /// Fails on a level or a chunk size out of range, and on options that exclude each other.
    pub fn options(&self) -> Result<Options, Error> {
        let chunk_size = chunk_bytes("chunk_size", self.chunk_size)?;
        if chunk_size == 0 {
            return Err(Error::Config("chunk_size is 0".to_owned()));
        }
        if self.reorder && self.format == Format::EstargzExternalToc {
            return Err(Error::Config(
                "reorder changes diff-ids, which estargz-external-toc keeps".to_owned(),
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
                "level {level} is out of range for {name}: 1 to {highest}"
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

/// Returns the name of all options that the converted bytes depend on, beside the source:
/// `g1-gzip6-source-262144`.
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
    fn the_generation_names_exactly_the_options_that_bytes_depend_on() {
        let config = Config::default();
        assert_eq!(named(&config), "g1-gzip6-source-262144");
        assert_eq!(
            named(&Config {
                setting: Setting::Fast,
                ..config.clone()
            }),
            "g1-gzip1-source-262144"
        );
        assert_eq!(
            named(&Config {
                layout: Layout::Classic,
                ..config.clone()
            }),
            "g1-gzip6-classic-262144"
        );
        assert_eq!(
            named(&Config {
                format: Format::Zstdchunked,
                ..config.clone()
            }),
            "g1-zstd3-source-262144"
        );
        let external = Config {
            format: Format::EstargzExternalToc,
            min_chunk_size: ByteSize::kib(1),
            ..config.clone()
        };
        assert_eq!(named(&external), "g1-gzip6-source-262144-min1024-external");
        let elsewhere = Config {
            threads: NonZeroUsize::new(7),
            memory: ByteSize::gib(1),
            platforms: vec![],
            ..config.clone()
        };
        assert_eq!(named(&elsewhere), "g1-gzip6-source-262144");
        let priorities = Priorities::new(vec![Priority {
            path: b"bin/sh".to_vec(),
            layer: None,
        }]);
        let prioritized = generation(&config.options().unwrap(), &priorities).0;
        let digest = prioritized
            .strip_prefix("g1-gzip6-source-262144-first-")
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
