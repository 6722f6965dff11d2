//! The agent as a service of systemd, on a node whose init is this machine's systemd: installed,
//! restarted and killed under a running container, there after a reboot, and uninstalled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::containerd::Release;
use crate::support::eventually::eventually;
use crate::support::fixture::Fixture;
use crate::support::image::Random;
use crate::support::place::{Daemon, Place};

const BOOT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/fixtures/systemd-node"
);
const TOOLS: &[&str] = &[
    "systemctl",
    "unshare",
    "nsenter",
    "pivot_root",
    "findmnt",
    "ip",
    "curl",
    "umoci",
];
const CGROUPS: &str = "/sys/fs/cgroup";
const IMAGE: &str = "127.0.0.1:8080/local/app:1";
/// Files of the image, of which each lies in chunks of its own.
const FILES: usize = 6;
const FILE_SIZE: usize = 1 << 20;

/// A node that runs.
struct Machine<'a> {
    place: &'a Place,
    executable: &'a Path,
    /// `None` only while it is dropped.
    init: Option<Daemon>,
    pid: u32,
}

impl<'a> Machine<'a> {
    /// Boots the node, with what an earlier one left in its files.
    fn boot(place: &'a Place, executable: &'a Path) -> Self {
        let mut command = Command::new("bash");
        command.arg(BOOT).arg(place.path());
        let mut pid = None;
        let init = place.daemon("init", &mut command, || {
            pid = init_in(place);
            pid.is_some()
        });
        let machine = Self {
            place,
            executable,
            init: Some(init),
            pid: pid.unwrap(),
        };
        eventually("the node has started", || {
            let output = machine.output("systemctl is-system-running");
            matches!(output.stdout.trim_ascii(), b"running" | b"degraded")
        });
        machine.serve();
        machine
    }

    /// Starts a server for the node's images, as a service that is gone after a reboot.
    fn serve(&self) {
        let folder = self.place.path().display();
        self.starlift_as(
            "systemd-run --quiet --unit=server",
            &format!("serve --upstream local=oci:{folder}/image --store {folder}/store"),
        );
        eventually("the server answers", || {
            let answer = self.output("curl -sf http://127.0.0.1:8080/readyz");
            answer.status.success()
        });
    }

    fn output(&self, line: &str) -> Output {
        let mut command = self.place.command("nsenter");
        command.args(["-t", &self.pid.to_string()]);
        command.args(["-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wd=/"]);
        command.args(line.split_whitespace()).output().unwrap()
    }

    /// Runs `line`, split at blanks, and returns its standard output.
    fn run(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(
            output.status.success(),
            "{line}\n{output:?}\n{}",
            self.journal()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn starlift_as(&self, prefix: &str, arguments: &str) -> String {
        self.run(&format!(
            "{prefix} {} {arguments}",
            self.executable.display()
        ))
    }

    fn starlift(&self, arguments: &str) -> String {
        self.starlift_as("", arguments)
    }

    fn journal(&self) -> String {
        let output = self.output("journalctl --no-pager -q -o cat -n 40 -u starlift-agent");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn is_active(&self, unit: &str) -> bool {
        let output = self.output(&format!("systemctl is-active --quiet {unit}"));
        output.status.success()
    }

    fn run_container(&self, id: &str) {
        self.run(&format!(
            "ctr run --detach --snapshotter stargz {IMAGE} {id} /bin/sleep 1000"
        ));
    }

    /// Reads a file in a container, which must be as it was made.
    fn read(&self, id: &str, file: usize) {
        let exec = format!("ctr task exec --exec-id read-{file} {id}");
        let read = self.run(&format!("{exec} /bin/cat /data/{file}"));
        assert!(read == content(file), "{} bytes", read.len());
    }
}

impl Drop for Machine<'_> {
    /// Ends every process of the node at once, as a power cut does.
    fn drop(&mut self) {
        drop(self.init.take());
        let name = self.place.path().file_name().unwrap();
        let hierarchies = fs::read_dir(CGROUPS).unwrap().flatten();
        let groups = hierarchies.map(|entry| entry.path().join(name));
        for group in groups.chain([Path::new(CGROUPS).join(name)]) {
            eventually("the node's cgroups are removed", || remove_group(&group));
        }
    }
}

/// Returns the process that is the init of the node in this workspace, as this machine counts it.
fn init_in(place: &Place) -> Option<u32> {
    let processes = place.processes().into_iter();
    let mut unshare = processes.filter(|(_, line)| line.starts_with("unshare "));
    let (pid, _) = unshare.next()?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let init = children.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
    (name.trim() == "systemd").then_some(init)
}

/// Removes a cgroup and those below it. Returns whether they are gone.
fn remove_group(group: &Path) -> bool {
    let Ok(entries) = fs::read_dir(group) else {
        return true;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}

/// The text of a file of the image, which no compression makes small.
fn content(file: usize) -> String {
    hex::encode(Random::new(file as u64 + 1).bytes(FILE_SIZE / 2))
}

/// Makes the image in the workspace, as an OCI layout.
fn make_image(place: &Place) {
    let (image, data) = (place.path().join("image"), place.dir("data"));
    for file in 0..FILES {
        place.write(&format!("data/{file}"), content(file));
    }
    let app = Fixture::get("app").dir.display().to_string();
    place.run(&format!("cp -r {app} {}", image.display()));
    let (image, data) = (image.display(), data.display());
    place.run(&format!("umoci insert --image {image}:1 {data} /data"));
}

#[test]
fn the_agent_is_a_service_of_systemd() {
    let Some(place) = Release::V1_6.place(TOOLS) else {
        return;
    };
    make_image(&place);
    // The node sees this folder, and not where the sources are.
    let executable: PathBuf = place.path().join("starlift");
    let built = env!("CARGO_BIN_EXE_starlift");
    fs::hard_link(built, &executable)
        .or_else(|_| fs::copy(built, &executable).map(drop))
        .unwrap();
    let machine = Machine::boot(&place, &executable);
    let etc = place.path().join("etc");
    // Prefetching would leave nothing to read while the agent is away.
    place.write(
        "etc/systemd/system/starlift-agent.service.d/test.conf",
        "[Service]\nEnvironment=STARLIFT_AGENT_BACKGROUND=off\n",
    );

    let done = machine.starlift("agent install");
    assert!(
        done.contains("run     systemctl restart containerd") && done.ends_with("Done.\n"),
        "{done}"
    );
    assert!(machine.is_active("starlift-agent") && machine.is_active("containerd"));
    let again = machine.starlift("agent install");
    assert!(again.ends_with("Nothing to change.\n"), "{again}");

    let first = place.container_id("first");
    machine.starlift(&format!("rpull {IMAGE}"));
    machine.run_container(&first);
    machine.read(&first, 0);
    machine.run("systemctl restart starlift-agent");
    machine.read(&first, 1);
    machine.run("systemctl kill --signal=KILL starlift-agent");
    machine.read(&first, 2);
    let restarts = machine.run("systemctl show --property=NRestarts starlift-agent");
    assert_eq!(restarts, "NRestarts=1\n");
    machine.run("systemctl restart containerd");
    machine.read(&first, 3);
    let refused = machine.output(&format!("{} agent uninstall", executable.display()));
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");

    drop(machine);
    let machine = Machine::boot(&place, &executable);
    assert!(machine.is_active("starlift-agent"), "{}", machine.journal());
    machine.run(&format!("ctr container rm {first}"));
    let second = place.container_id("second");
    machine.run_container(&second);
    for file in 0..FILES {
        machine.read(&second, file);
    }

    machine.run(&format!("ctr task kill --signal KILL {second}"));
    eventually("the container has ended", || {
        machine.run("ctr task ls").contains("STOPPED")
    });
    machine.run(&format!("ctr container rm {second}"));
    machine.run(&format!("ctr image rm --sync {IMAGE}"));
    let done = machine.starlift("agent uninstall");
    assert!(done.ends_with("Done.\n"), "{done}");
    assert!(!machine.is_active("starlift-agent") && machine.is_active("containerd"));
    assert!(!etc.join("systemd/system/starlift-agent.service").exists());
    assert!(!etc.join("containerd/config.toml").exists());
}
