//! `starlift agent install` and `uninstall`: make the agent the snapshotter of this node's
//! containerd, and undo it. Another user than root has a rootless containerd.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Place;
use crate::agent;
use crate::cli::{Global, output};
use crate::failure::Failure;
use crate::install::{self, Agent, Mirror, Node, Paths, Step, User};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Pull through this Starlift server: writes hosts.toml files
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// A registry that is pulled through --server (repeatable)
    #[arg(
        long,
        value_name = "NAME",
        requires = "server",
        default_value = "_default"
    )]
    registry: Vec<String>,
    /// The executable that the unit starts [default: this one]
    #[arg(long, value_name = "FILE")]
    executable: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Uninstall although images or containers need the agent, or although it does not answer
    #[arg(long)]
    force: bool,
}

/// Flags that identify a node.
#[derive(Debug, clap::Args)]
struct NodeArgs {
    #[command(flatten)]
    place: Place,
    /// Show the steps, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Write files only; start and restart no service, and show the commands that do
    #[arg(long)]
    no_services: bool,
    /// containerd's program [default: that of k3s or RKE2, else containerd]
    #[arg(long, value_name = "FILE")]
    containerd: Option<PathBuf>,
    /// containerd's configuration file [default: that of k3s or RKE2, else
    /// /etc/containerd/config.toml]
    #[arg(long, value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    /// containerd's socket [default: that of k3s and RKE2, else /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET")]
    containerd_address: Option<PathBuf>,
    /// The systemd service that starts containerd [default: that of k3s or RKE2, else containerd]
    #[arg(long, value_name = "NAME")]
    containerd_service: Option<String>,
    /// The folder of hosts.toml files, if containerd names none [default: /etc/containerd/certs.d;
    /// for other users than root, here as above, the folders of rootless containerd]
    #[arg(long, value_name = "DIR")]
    certs_dir: Option<PathBuf>,
    /// The folder of systemd's units [default: /etc/systemd/system, if systemd runs]
    #[arg(long, value_name = "DIR")]
    unit_dir: Option<PathBuf>,
}

impl NodeArgs {
    fn node(&self, global: &Global) -> Result<Node, Failure> {
        let user = user()?;
        let paths = Paths {
            containerd: self.containerd.clone(),
            containerd_config: self.containerd_config.clone(),
            containerd_address: self.containerd_address.clone(),
            containerd_service: self.containerd_service.clone(),
            certs_dir: self.certs_dir.clone(),
            unit_dir: self.unit_dir.clone(),
            user: user.clone(),
        };
        let agent = self.agent(global, user.as_ref())?;
        Ok(Node::find(&paths, &agent, self.no_services))
    }

    /// Returns the configuration of the agent. A user's agent has its socket and root in the user's
    /// folders, unless they are configured.
    fn agent(&self, global: &Global, user: Option<&User>) -> Result<agent::Config, Failure> {
        let loaded = global.load(self.place.layers())?;
        let mut config = loaded.config.agent.clone();
        if let Some((address, root)) = user.map(User::agent) {
            if loaded.is_default(&["agent", "address"]) {
                config.address = address;
            }
            if loaded.is_default(&["agent", "root"]) {
                config.root = root;
            }
        }
        Ok(config)
    }

    /// Returns the flags of the agent that the unit starts.
    fn agent_arguments(&self, global: &Global) -> Result<Vec<String>, Failure> {
        let user = user()?;
        let config = self.agent(global, user.as_ref())?;
        let of_user = |path: &PathBuf| user.as_ref().map(|_| path.clone());
        let flags = [
            (
                "--address",
                self.place.address.clone().or(of_user(&config.address)),
            ),
            ("--root", self.place.root.clone().or(of_user(&config.root))),
            ("--config", global.config.clone()),
        ];
        let mut arguments = Vec::new();
        for (flag, path) in flags {
            let Some(path) = path else { continue };
            let path = std::path::absolute(path);
            let path = path.map_err(Failure::when(format!("{flag} has no path")))?;
            arguments.extend([flag.to_owned(), path.to_string_lossy().into_owned()]);
        }
        Ok(arguments)
    }
}

/// Returns the folders of the user who runs this program, `None` for root.
///
/// # Errors
/// If the user has no runtime directory, without which there is no rootless containerd.
fn user() -> Result<Option<User>, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let folder = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let missing = |name: &str| {
        Failure::new(format!(
            "{name} is not set: run it as root, or log in as the user of rootless containerd"
        ))
    };
    let home = folder("HOME").ok_or_else(|| missing("HOME"))?;
    let or_home =
        |name: &str, default: &str| folder(name).unwrap_or_else(|| Path::new(&home).join(default));
    Ok(Some(User {
        config: or_home("XDG_CONFIG_HOME", ".config"),
        data: or_home("XDG_DATA_HOME", ".local/share"),
        runtime: folder("XDG_RUNTIME_DIR").ok_or_else(|| missing("XDG_RUNTIME_DIR"))?,
    }))
}

pub(super) async fn install(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let node = args.node.node(global)?;
    let executable = match &args.executable {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(Failure::when("own executable is not known"))?,
    };
    let agent = Agent {
        executable,
        arguments: args.node.agent_arguments(global)?,
    };
    let mirror = args.server.as_ref().map(|server| Mirror {
        server: server.trim_end_matches('/').to_owned(),
        registries: args.registry.clone(),
    });
    let steps = install::install(&node, &agent, mirror.as_ref(), args.node.dry_run).await?;
    print(&steps, args.node.dry_run)
}

pub(super) async fn uninstall(args: &UninstallArgs, global: &Global) -> Result<ExitCode, Failure> {
    let node = args.node.node(global)?;
    let steps = install::uninstall(&node, args.force, args.node.dry_run).await?;
    print(&steps, args.node.dry_run)
}

fn print(steps: &[Step], is_dry_run: bool) -> Result<ExitCode, Failure> {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Write {
                path,
                removed,
                added,
            } => {
                text += &format!("write   {}\n", path.display());
                for (sign, lines) in [('-', removed), ('+', added)] {
                    for line in lines {
                        text += &format!("      {sign} {line}\n");
                    }
                }
            }
            Step::Delete(path) => text += &format!("delete  {}\n", path.display()),
            Step::Run(command) => text += &format!("run     {command}\n"),
            Step::Note(note) => text += &format!("note    {note}\n"),
        }
    }
    let is_change = |step: &Step| !matches!(step, Step::Note(_));
    text += match (steps.iter().any(is_change), is_dry_run) {
        (false, _) => "Nothing to change.\n",
        (true, true) => "Dry run: nothing was changed.\n",
        (true, false) => "Done.\n",
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
