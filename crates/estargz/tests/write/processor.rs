//! The bytes are the same on every processor: this binary runs on older ones in an emulator.

use std::process::Command;

use estargz::write::{Compression, Options};

use crate::support::{Tar, convert, every_type, noise};

/// From one without SSE4 to one with all features of the emulator.
const PROCESSORS: [&str; 3] = ["qemu64", "Nehalem", "max"];

/// Prints a digest for each compression; run by the test below, on a processor of its choice.
#[test]
#[ignore = "the part of the next test that runs elsewhere"]
fn print_digests() {
    println!("digests {}", digests().join(" "));
}

#[test]
fn the_bytes_do_not_depend_on_the_processor() {
    let Ok(this) = std::env::current_exe() else {
        return;
    };
    if Command::new("qemu-x86_64")
        .arg("--version")
        .output()
        .is_err()
    {
        return;
    }
    let expected = format!("digests {}", digests().join(" "));
    for processor in PROCESSORS {
        let output = Command::new("qemu-x86_64")
            .args(["-cpu", processor])
            .arg(&this)
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "--test-threads=1",
                "processor::print_digests",
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains(&expected),
            "{processor}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn digests() -> Vec<String> {
    let text: Vec<u8> = noise(5, 200_000)
        .iter()
        .map(|byte| b"etaoin shrdlu\n.,"[usize::from(byte % 16)])
        .collect();
    let tar = [
        Tar::default()
            .file("text", &text)
            .file("zeros", &[0; 50_000])
            .bytes,
        every_type(),
    ]
    .concat();
    [
        Compression::Gzip(1),
        Compression::Gzip(6),
        Compression::Gzip(9),
        Compression::Zstd(3),
    ]
    .map(|compression| {
        convert(&tar, &Options::default().with_compression(compression))
            .1
            .blob_digest
            .to_string()
    })
    .to_vec()
}
