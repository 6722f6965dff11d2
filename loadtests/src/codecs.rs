//! Measures every codec that was considered, on members cut exactly as eStargz cuts them. One core;
//! processor time.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use flate2::{Compress, Compression, FlushCompress};
use libdeflater::{CompressionLvl, Compressor, Decompressor};

use crate::figures::{Spread, float};
use crate::harness::run;
use crate::images::Image;
use crate::invariants::SameBytes;
use crate::members;
use crate::plot::{Plot, Point, Scatter};
use crate::report::Report;

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/deflate.go");
/// The size of a gzip header without a name plus the trailer (RFC 1952). zlib-rs compresses to raw
/// deflate here and omits both.
const GZIP_FRAME: usize = 18;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The names of the images, as the tests' `make-image` knows them.
    #[arg(default_values = ["rootfs", "python"])]
    images: Vec<String>,
    /// Rounds. Every codec runs once in each round.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Clone, Copy)]
enum Codec {
    Go(u8),
    ZlibRs(u8),
    Libdeflate(u8),
    Zstd(u8),
}

const CODECS: [Codec; 14] = [
    Codec::Go(9),
    Codec::Go(6),
    Codec::ZlibRs(6),
    Codec::ZlibRs(7),
    Codec::ZlibRs(9),
    Codec::Libdeflate(1),
    Codec::Libdeflate(4),
    Codec::Libdeflate(5),
    Codec::Libdeflate(6),
    Codec::Libdeflate(7),
    Codec::Libdeflate(9),
    Codec::Libdeflate(12),
    Codec::Zstd(3),
    Codec::Zstd(9),
];

/// The figures of one codec for all members in one round.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    bytes: u64,
}

impl Codec {
    fn name(self) -> String {
        match self {
            Self::Go(level) => format!("Go gzip {level}"),
            Self::ZlibRs(level) => format!("zlib-rs {level}"),
            Self::Libdeflate(level) => format!("libdeflate {level}"),
            Self::Zstd(level) => format!("zstd {level}"),
        }
    }

    fn group(self) -> usize {
        match self {
            Self::Go(_) => 0,
            Self::ZlibRs(_) => 1,
            Self::Libdeflate(_) => 2,
            Self::Zstd(_) => 3,
        }
    }

    /// The codec's users.
    fn remark(self) -> &'static str {
        match self {
            Self::Go(9) => "every existing converter",
            Self::Libdeflate(6) => "`default`",
            Self::Libdeflate(1) => "`fast`",
            Self::Zstd(3) => "`--zstdchunked`",
            _ => "",
        }
    }

    fn compress(self, members: &[&[u8]], peer: &Path) -> anyhow::Result<Run> {
        match self {
            Self::Go(level) => by_go(members, peer, level),
            Self::ZlibRs(level) => by_zlib_rs(members, level),
            Self::Libdeflate(level) => by_libdeflate(members, level),
            Self::Zstd(level) => by_zstd(members, level),
        }
    }
}

pub(crate) fn measure_all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report::begin("codecs", "Codecs on members as eStargz cuts them")?;
    report.note("one member per file, per 4 MiB of a larger file, and per gap between files; one thread; processor time");
    report.note(format!(
        "{} rounds, alternating codecs; medians (least–most); MB are 10⁶ bytes of tar",
        arguments.rounds
    ));
    report.note("size is relative to Go's level 9 on the same members");
    let place = tempfile::tempdir()?;
    let peer = place.path().join("deflate");
    run(&format!("go build -o {} {PEER}", peer.display()))?;
    for name in &arguments.images {
        let tars = Image::get(name)?.tars()?;
        let cuts: Vec<Vec<&[u8]>> = tars
            .iter()
            .map(|tar| members::cut(tar))
            .collect::<anyhow::Result<_>>()?;
        let members = cuts.concat();
        one_image(&mut report, name, &members, &peer, arguments.rounds)?;
        inflate(
            &mut report,
            name,
            &Image::get(name)?.layers()?,
            arguments.rounds,
        )?;
    }
    Ok(report)
}

fn one_image(
    report: &mut Report,
    name: &str,
    members: &[&[u8]],
    peer: &Path,
    rounds: usize,
) -> anyhow::Result<()> {
    let total = float(members.iter().map(|member| member.len() as u64).sum());
    let mut runs: Vec<Vec<Run>> = CODECS.iter().map(|_| Vec::new()).collect();
    let mut same = SameBytes::default();
    for _ in 0..rounds {
        for (codec, runs) in CODECS.iter().zip(&mut runs) {
            let run = codec.compress(members, peer)?;
            same.note(&codec.name(), &run.bytes.to_string())?;
            runs.push(run);
        }
    }
    let size_of = |runs: &[Run]| runs.first().map_or(f64::NAN, |run| float(run.bytes));
    let reference = runs.first().map_or(f64::NAN, |runs| size_of(runs));
    let (mut rows, mut points) = (Vec::new(), Vec::new());
    for (codec, runs) in CODECS.iter().zip(&runs) {
        let speed = Spread::of(runs.iter().map(|run| total / run.seconds / 1e6));
        let size = size_of(runs) / reference;
        rows.push(vec![
            codec.name(),
            speed.show(1),
            format!("{size:.3}"),
            codec.remark().to_owned(),
        ]);
        points.push(Point {
            label: codec.name(),
            x: speed.median,
            y: size,
            group: codec.group(),
        });
    }
    let count = members.len();
    report.table(
        format!("`{name}`: {:.1} MB in {count} members", total / 1e6),
        &["codec", "MB/s", "size", "used by"],
        rows,
    );
    report.plot(Plot::Scatter(Scatter {
        title: format!("{name}: speed and size of the codecs"),
        x: "MB of tar a second of one core (logarithmic)",
        y: "size relative to Go's level 9",
        points,
    }));
    Ok(())
}

/// Returns the seconds of processor time that this thread has used.
fn cpu() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: u64 = stat.split(' ').next().context("no schedstat")?.parse()?;
    Ok(float(nanoseconds) / 1e9)
}

/// Compresses every member. `compress` returns a member's compressed length.
fn timed(
    members: &[&[u8]],
    mut compress: impl FnMut(&[u8], &mut [u8]) -> anyhow::Result<usize>,
) -> anyhow::Result<Run> {
    // Larger than every codec's bound for one member.
    let longest = members.iter().map(|member| member.len()).max().unwrap_or(0);
    let mut out = vec![0; longest + longest / 8 + 1024];
    let begun = cpu()?;
    let mut bytes = 0;
    for member in members {
        bytes += compress(member, &mut out)? as u64;
    }
    Ok(Run {
        seconds: cpu()? - begun,
        bytes,
    })
}

fn by_libdeflate(members: &[&[u8]], level: u8) -> anyhow::Result<Run> {
    let level = CompressionLvl::new(level.into())
        .map_err(|_out_of_range| anyhow::anyhow!("no level {level}"))?;
    let mut compressor = Compressor::new(level);
    timed(members, |member, out| {
        Ok(compressor.gzip_compress(member, out)?)
    })
}

fn by_zlib_rs(members: &[&[u8]], level: u8) -> anyhow::Result<Run> {
    let mut compressor = Compress::new(Compression::new(level.into()), false);
    timed(members, |member, out| {
        compressor.reset();
        let mut sum = flate2::Crc::new();
        sum.update(member);
        let status = compressor.compress(member, out, FlushCompress::Finish)?;
        ensure!(
            status == flate2::Status::StreamEnd,
            "zlib-rs did not finish"
        );
        Ok(usize::try_from(compressor.total_out())? + GZIP_FRAME)
    })
}

fn by_zstd(members: &[&[u8]], level: u8) -> anyhow::Result<Run> {
    let mut compressor = zstd::bulk::Compressor::new(level.into())?;
    timed(members, |member, out| {
        Ok(compressor.compress_to_buffer(member, out)?)
    })
}

fn by_go(members: &[&[u8]], peer: &Path, level: u8) -> anyhow::Result<Run> {
    let mut child = Command::new(peer)
        .arg(level.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("go")?;
    let mut input =
        std::io::BufWriter::with_capacity(1 << 20, child.stdin.take().context("no stdin")?);
    for member in members {
        input.write_all(&u32::try_from(member.len())?.to_le_bytes())?;
        input.write_all(member)?;
    }
    drop(input.into_inner()?);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the Go peer failed");
    let text = String::from_utf8(output.stdout)?;
    let (seconds, bytes) = text
        .trim()
        .split_once(' ')
        .context("no output of the Go peer")?;
    Ok(Run {
        seconds: seconds.parse()?,
        bytes: bytes.parse()?,
    })
}

/// Measures how fast the source layers are inflated, the first step of every conversion.
fn inflate(
    report: &mut Report,
    name: &str,
    layers: &[PathBuf],
    rounds: usize,
) -> anyhow::Result<()> {
    let layers: Vec<Vec<u8>> = layers.iter().map(fs::read).collect::<Result<_, _>>()?;
    let (mut zlib_rs, mut libdeflate) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut bytes, mut buffer) = (0, vec![0; 64 << 10]);
        let begun = cpu()?;
        for layer in &layers {
            let mut decoder = flate2::bufread::GzDecoder::new(&layer[..]);
            loop {
                match std::io::Read::read(&mut decoder, &mut buffer)? {
                    0 => break,
                    read => bytes += read as u64,
                }
            }
        }
        zlib_rs.push(float(bytes) / 1e6 / (cpu()? - begun));

        let mut whole = vec![0; usize::try_from(bytes)?];
        let begun = cpu()?;
        for layer in &layers {
            Decompressor::new().gzip_decompress(layer, &mut whole)?;
        }
        libdeflate.push(float(bytes) / 1e6 / (cpu()? - begun));
    }
    let row = |name: &str, speeds: Vec<f64>| vec![name.to_owned(), Spread::of(speeds).show(0)];
    let rows = vec![
        row("zlib-rs, streaming (used by `convert`)", zlib_rs),
        row("libdeflate (needs the whole layer in memory)", libdeflate),
    ];
    report.table(
        format!("Inflating `{name}`'s layers"),
        &["", "MB/s of tar"],
        rows,
    );
    Ok(())
}
