//! `starlift agent doctor`: what keeps a node from starting images lazily, and the mend.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use toml::{Table, Value};

use super::Place;
use crate::agent::{self, api};
use crate::cli::failure::Failure;
use crate::cli::{Global, output};

/// The first kernel whose FUSE resends what a dead agent left unanswered, and reads backing files by itself.
const WANTED_KERNEL: (u32, u32) = (6, 9);
/// The first kernel whose overlayfs takes as many lower layers as images have without tricks.
const NEEDED_KERNEL: (u32, u32) = (5, 4);
/// The CRI plugin's table in containerd's configuration, versions 2 and 3.
const CRI_TABLES: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// containerd's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// containerd's socket
    #[arg(long, value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    containerd_address: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    what: &'static str,
    state: State,
    told: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// It works, but not as well as it could.
    Fair,
    Bad,
}

pub(super) async fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let loaded = global.load(args.place.layers())?;
    let config = &loaded.config.agent;
    let mut checks = vec![
        root(),
        fuse(),
        kernel(&rustix::system::uname().release().to_string_lossy()),
        agent(config).await,
        listening("containerd", &args.containerd_address, "start containerd"),
    ];
    checks.extend(containerd(&args.containerd_config, &config.address));
    if args.json {
        output::print_json(&checks)?;
    } else {
        output::print(&text(&checks))?;
    }
    let is_bad = checks.iter().any(|check| check.state == State::Bad);
    Ok(if is_bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { what, state, told, mend } in checks {
        let mark = match state {
            State::Good => "ok  ",
            State::Fair => "fair",
            State::Bad => "BAD ",
        };
        text += &format!("{mark}  {what}: {told}\n");
        if let Some(mend) = mend {
            text += &format!("      {mend}\n");
        }
    }
    text
}

impl Check {
    fn good(what: &'static str, told: impl Into<String>) -> Self {
        Self { what, state: State::Good, told: told.into(), mend: None }
    }

    fn fair(what: &'static str, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what, state: State::Fair, told: told.into(), mend: Some(mend.into()) }
    }

    fn bad(what: &'static str, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what, state: State::Bad, told: told.into(), mend: Some(mend.into()) }
    }
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::good("user", "root")
    } else {
        Check::bad("user", "not root", "the agent mounts file systems: run it, and this, as root")
    }
}

fn fuse() -> Check {
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::good("FUSE", "/dev/fuse can be opened"),
        Err(error) => {
            Check::bad("FUSE", format!("/dev/fuse: {error}"), "modprobe fuse; in a container, pass the device")
        }
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < NEEDED_KERNEL {
        Check::bad("kernel", release, "Linux 5.4 or newer is needed")
    } else if version < WANTED_KERNEL {
        let mend = "from Linux 6.9 on a read that an agent dies over is asked again, and files held whole are read \
                    without the agent";
        Check::fair("kernel", release, mend)
    } else {
        Check::good("kernel", release)
    }
}

async fn agent(config: &agent::Config) -> Check {
    match api::report(&config.root).await {
        Ok(report) => Check::good("agent", format!("runs, {} layers mounted lazily", report.layers.len())),
        Err(error) => {
            let mend = "systemctl enable --now starlift-agent, or name its --root";
            Check::bad("agent", error.to_string(), mend)
        }
    }
}

fn listening(what: &'static str, socket: &Path, mend: &str) -> Check {
    let shown = socket.display();
    match fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => Check::bad(what, format!("{shown} is no socket"), mend),
        _ => match UnixStream::connect(socket) {
            Ok(_) => Check::good(what, format!("listens on {shown}")),
            Err(error) => Check::bad(what, format!("{shown}: {error}"), mend),
        },
    }
}

fn containerd(file: &Path, address: &Path) -> Vec<Check> {
    const WHAT: &str = "containerd's configuration";
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return vec![Check::bad(WHAT, format!("{}: {error}", file.display()), snippet(address))],
    };
    match text.parse::<Table>() {
        Ok(table) => configured(&table, address),
        Err(error) => {
            vec![Check::bad(
                WHAT,
                format!("{}: {}", file.display(), error.message()),
                "containerd cannot read it either",
            )]
        }
    }
}

fn configured(table: &Table, address: &Path) -> Vec<Check> {
    const PLUGIN: &str = "snapshotter plugin";
    let plugins = table.get("proxy_plugins").and_then(Value::as_table);
    let ours = plugins.into_iter().flatten().find(|(_, plugin)| {
        let text = |key: &str| plugin.get(key).and_then(Value::as_str);
        text("type") == Some("snapshot") && text("address").map(Path::new) == Some(address)
    });
    let Some((name, _)) = ours else {
        let told = format!("no proxy_plugins entry has the address {}", address.display());
        return vec![Check::bad(PLUGIN, told, snippet(address))];
    };
    let mut checks = vec![Check::good(PLUGIN, format!("{name:?} is this agent"))];
    checks.extend(CRI_TABLES.iter().filter_map(|table_name| cri(table, table_name, name)));
    checks
}

/// The CRI plugin's part, if it is written down.
fn cri(table: &Table, table_name: &str, plugin: &str) -> Option<Check> {
    const WHAT: &str = "CRI";
    let cri = table.get("plugins")?.get(table_name)?;
    // Version 2 has them one table deeper.
    let own = cri.get("containerd").unwrap_or(cri);
    let snapshotter = own.get("snapshotter").and_then(Value::as_str).unwrap_or("overlayfs");
    let is_silent = own.get("disable_snapshot_annotations").and_then(Value::as_bool).unwrap_or(true);
    Some(if snapshotter != plugin {
        Check::fair(WHAT, format!("pods use {snapshotter:?}"), format!("snapshotter = {plugin:?} in its table"))
    } else if is_silent {
        let mend = "disable_snapshot_annotations = false in its table: without the annotations every layer is unpacked";
        Check::bad(WHAT, "it does not say which layers it wants", mend)
    } else {
        Check::good(WHAT, format!("pods use {plugin:?}"))
    })
}

fn snippet(address: &Path) -> String {
    format!(
        "add to containerd's configuration, and restart it:\n      [proxy_plugins.stargz]\n      type = \"snapshot\"\n      \
         address = \"{}\"",
        address.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(text: &str) -> Vec<(&'static str, State)> {
        let checks = configured(&text.parse().unwrap(), Path::new("/run/a.sock"));
        checks.into_iter().map(|check| (check.what, check.state)).collect()
    }

    const PLUGIN: &str = "[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/a.sock'\n";

    #[test]
    fn the_plugin_is_known_by_its_address() {
        assert_eq!(states(PLUGIN), [("snapshotter plugin", State::Good)]);
        assert_eq!(states("version = 2"), [("snapshotter plugin", State::Bad)]);
        assert_eq!(states(&PLUGIN.replace("a.sock", "b.sock")), [("snapshotter plugin", State::Bad)]);
        assert_eq!(states(&PLUGIN.replace("'snapshot'", "'content'")), [("snapshotter plugin", State::Bad)]);
    }

    #[test]
    fn pods_need_the_plugin_and_the_annotations() {
        let cri = |settings: &str| {
            let table = "[plugins.'io.containerd.grpc.v1.cri'.containerd]\n";
            states(&format!("{PLUGIN}{table}{settings}")).pop().unwrap()
        };
        assert_eq!(cri(""), ("CRI", State::Fair));
        assert_eq!(cri("snapshotter = 'stargz'"), ("CRI", State::Bad));
        assert_eq!(cri("snapshotter = 'stargz'\ndisable_snapshot_annotations = false"), ("CRI", State::Good));
        let newer =
            "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'stargz'\ndisable_snapshot_annotations = false";
        assert_eq!(states(&format!("{PLUGIN}{newer}")).pop().unwrap(), ("CRI", State::Good));
    }

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(kernel("6.18.44-fc").state, State::Good);
        assert_eq!(kernel("6.1.0-18-amd64").state, State::Fair);
        assert_eq!(kernel("4.19.0").state, State::Bad);
        assert_eq!(kernel("strange").state, State::Bad);
    }
}
