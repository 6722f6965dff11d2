//! `starlift verify`: reads every byte of an image, and reports the differences.
//!
//! A layer's TOC is compared with its tar, every chunk and file with its digest, and the stream
//! with the diff-id of the image's configuration. With `--against`, the stream is also compared
//! with the tar of the source layer. With `--provenance-key`, the image must have a signed statement.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::progress::Bar;
use super::registry_args::RegistryArgs;
use super::{Global, output};
use crate::failure::Failure;
use crate::inspect::Part;
use crate::inspect::image::Verification;
use crate::inspect::layer::LayerFile;
use crate::oci::Platform;
use crate::provenance::TrustedKeys;

/// Check every byte of an image or of a layer's file; the exit code is 1 if there is a difference
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// `HOST/repository:tag[@digest]`, `oci:DIR[:tag]`, `docker-archive:FILE`, or the file of a
    /// layer
    what: String,
    /// The source image, or the file of the source layer
    #[arg(long, value_name = "SRC")]
    against: Option<String>,
    /// The blob of a layer file's external TOC
    #[arg(long, value_name = "FILE")]
    external_toc: Option<String>,
    /// Require a signed statement on the image by this public key (PEM; repeatable): that it was
    /// converted, with --against from that source image
    #[arg(long, value_name = "FILE")]
    provenance_key: Vec<PathBuf>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Only this platform of a multi-platform image
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// The result of a verification.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    ok: bool,
    parts: Vec<Part>,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let config = global.load(Vec::new())?.config;
    let keys = TrustedKeys::read(&args.provenance_key).map_err(Failure::from_error)?;
    let parts = if Path::new(&args.what).is_file() {
        if !keys.is_empty() {
            return Err(Failure::new(
                "only an image has a signed statement, not the file of a layer",
            ));
        }
        let file = LayerFile {
            path: &args.what,
            against: args.against.as_deref(),
            external_toc: args.external_toc.as_deref(),
        };
        vec![file.verify().await?]
    } else {
        let bar = Bar::new("verifying", 0, args.json);
        let verification = Verification {
            registries: args.registry.registries(&config),
            platform: args.platform.as_ref(),
            keys: &keys,
            counter: bar.counter(),
        };
        let parts = verification
            .verify(&args.what, args.against.as_deref())
            .await?;
        bar.finish();
        parts
    };
    let outcome = Outcome {
        ok: parts.iter().all(|part| part.findings.is_empty()),
        parts,
    };
    if args.json {
        output::print_json(&outcome)?;
    } else {
        output::print(&outcome.text())?;
    }
    Ok(if outcome.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Outcome {
    fn text(&self) -> String {
        let mut text = String::new();
        for part in &self.parts {
            let verdict = if part.findings.is_empty() {
                "ok"
            } else {
                "DIFFERS"
            };
            text.push_str(&format!("{verdict:7}  {}  {}\n", part.name, part.what));
            for finding in &part.findings {
                text.push_str(&format!("         {}\n", super::table::printable(finding)));
            }
        }
        text
    }
}
