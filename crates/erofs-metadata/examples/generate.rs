//! Makes the metadata of many files and reports time and memory.
//!
//! ```text
//! cargo run --release --example generate -- 500000 METADATA
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use erofs_metadata::{Attributes, Data, Image, Kind, Time};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// As in an image with a Python installation: about ten files for each directory.
const FILES_IN_A_DIRECTORY: usize = 10;
const BLOCK: u64 = 4096;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match &arguments[..] {
        [entries, metadata] => generate(entries, metadata),
        _ => Err("usage: generate ENTRIES METADATA".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unprintable = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn generate(entries: &str, metadata: &str) -> Result<()> {
    let entries: usize = entries.parse()?;
    let start = Instant::now();
    let image = image(entries)?;
    let added = start.elapsed();
    let layout = image.layout()?;
    let laid_out = start.elapsed();
    layout.write_to(File::create(metadata)?)?;
    writeln!(
        io::stdout(),
        "{} inodes, {} bytes; added in {added:.2?}, laid out in {:.2?}, written in {:.2?}; {}",
        layout.inodes(),
        layout.size(),
        laid_out - added,
        start.elapsed() - laid_out,
        peak_memory()?
    )?;
    Ok(())
}

fn image(entries: usize) -> Result<Image> {
    let mut image = Image::builder().device(entries as u64 * 4).build()?;
    let mut directory = image.root();
    for number in 1..entries {
        let attributes = Attributes::default().with_modified(Time {
            seconds: 1_700_000_000 + i64::try_from(number)?,
            nanoseconds: 0,
        });
        if number % (FILES_IN_A_DIRECTORY + 1) == 1 {
            let name = format!("directory-{number}");
            let root = image.root();
            directory = image.insert(root, name.as_bytes(), Kind::Directory, &attributes)?;
        } else {
            let place = number as u64 * 4 * BLOCK;
            let kind = Kind::File {
                size: 3 * BLOCK + 17,
                data: Data::At(place),
            };
            let name = format!("module_{number:08}.py");
            image.insert(directory, name.as_bytes(), kind, &attributes)?;
        }
    }
    Ok(image)
}

/// The most memory that this process had at once, as Linux counts it.
fn peak_memory() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    Ok(peak.unwrap_or("peak memory unknown").to_owned())
}
