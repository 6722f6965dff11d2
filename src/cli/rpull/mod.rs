//! `starlift rpull`: pulls an image into containerd, each layer lazily if the snapshotter can.

mod login;

use std::path::PathBuf;

use bytesize::ByteSize;

use self::login::LoginArgs;
use super::progress::Bar;
use super::registry_args::RegistryArgs;
use super::{Global, output};
use crate::config::Layer as ConfigLayer;
use crate::containerd::labels::Dialect;
use crate::containerd::lease::Lease;
use crate::containerd::pull::{Pull, PullReport};
use crate::containerd::session::Session;
use crate::containerd::unpack::Outcome;
use crate::failure::Failure;
use crate::oci::{ImageName, Platform};
use crate::signals::interruption;
use crate::transport::{Endpoint, Location};

/// Pull an image into containerd, lazily if its snapshotter can
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// `HOST/repository:tag[@digest]`
    image: ImageName,
    /// containerd's socket
    #[arg(
        long,
        short,
        value_name = "SOCKET",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
    /// containerd's namespace; kubelets use k8s.io
    #[arg(
        long,
        short,
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    namespace: String,
    /// The snapshotter, by its name in containerd's configuration
    #[arg(
        long,
        value_name = "NAME",
        env = "CONTAINERD_SNAPSHOTTER",
        default_value = "stargz"
    )]
    snapshotter: String,
    /// The platform of a multi-platform image [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// A label for the image in containerd (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    label: Vec<(String, String)>,
    /// Ask the snapshotter not to verify the layers of this image
    #[arg(long)]
    skip_content_verify: bool,
    /// Describe layers to the snapshotter by the label names that CRI uses, not by the stargz
    /// plugin's
    #[arg(long)]
    use_containerd_labels: bool,
    /// containerd's directory of `HOST/hosts.toml`
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl Args {
    fn pull(&self) -> Pull<'_> {
        let platform = self.platform.clone();
        Pull {
            image: &self.image,
            platform: platform.unwrap_or_else(Platform::of_this_machine),
            snapshotter: &self.snapshotter,
            dialect: if self.use_containerd_labels {
                Dialect::Containerd
            } else {
                Dialect::Stargz
            },
            skip_verify: self.skip_content_verify,
            labels: self.label.iter().cloned().collect(),
        }
    }
}

/// Pulls the image. A pull that fails or is interrupted removes everything that it added to
/// containerd.
pub(super) async fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    let hosts_dir = args.hosts_dir.as_deref();
    let flags = hosts_dir.map(|dir| ConfigLayer::flag("--hosts-dir", &["pull", "certs_dir"], dir));
    let config = global.load(flags.into_iter().collect())?.config;
    let location = Location::Registry(args.image.clone());
    let logins = args.login.logins(&args.image.host).await?;
    let endpoint = Endpoint::open_with(
        &config.upstreams,
        &location,
        args.registry.plain_http,
        logins,
    )?;
    let session = Session::open(&args.address, &args.namespace).await?;
    let (lease, leased) = Lease::take(&session).await?;
    let pull = args.pull();
    let bar = Bar::new("pulling", 0, args.json);
    let outcome = tokio::select! {
        outcome = pull.run(&endpoint, &leased, bar.counter()) => outcome,
        interruption = interruption() => Err(interruption),
    };
    bar.finish();
    // The objects of a failed pull are removed before its failure is reported.
    let ended = tokio::select! {
        ended = lease.end(outcome.is_err()) => ended,
        interruption = interruption() => Err(interruption),
    };
    if let Err(failure) = ended {
        output::say(&failure.to_string());
    }
    report(&outcome?, args.json)
}

fn report(pulled: &PullReport, json: bool) -> Result<(), Failure> {
    if json {
        return output::print_json(pulled);
    }
    let with = |outcome: Outcome| {
        pulled
            .layers
            .iter()
            .filter(move |layer| layer.outcome == outcome)
    };
    let (lazy, present) = (with(Outcome::Lazy).count(), with(Outcome::Present).count());
    let fetched = ByteSize::b(with(Outcome::Unpacked).map(|layer| layer.size).sum());
    let unpacked = with(Outcome::Unpacked).count();
    let count = pulled.layers.len();
    output::say(&format!(
        "{lazy} of {count} layers are lazy, {unpacked} unpacked ({fetched}), {present} present before"
    ));
    output::print(&format!("{}\n", pulled.digest))
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected KEY=VALUE".to_owned())
}
