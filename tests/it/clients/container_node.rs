//! A node that is a container: its root is an overlay, and containerd's and the agent's directories
//! are volumes. kind's nodes have this form, and the node of deploy/compose, whose own script runs
//! here.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::support::containerd::Release;
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Daemon, Place};
use crate::support::starlift::Starlift;

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/fixtures/container-node"
);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/compose/node.sh");

struct Node<'a> {
    place: &'a Place,
    daemon: Daemon,
}

impl<'a> Node<'a> {
    fn start(place: &'a Place, server: &str) -> Self {
        for name in ["layer", "root", "bin", "volumes/containerd", "volumes/run"] {
            place.dir(name);
        }
        let agent = place.dir("volumes/agent");
        let built = env!("CARGO_BIN_EXE_starlift");
        let executable = place.dir("bin").join("starlift");
        if !executable.exists() {
            fs::hard_link(built, &executable)
                .or_else(|_| fs::copy(built, &executable).map(drop))
                .unwrap();
        }
        let script = place.write("node.sh", fs::read(SCRIPT).unwrap());
        let mut node = Command::new("unshare");
        node.args(["--mount", "--pid", "--fork", "--kill-child"])
            .arg("env")
            .args(["STARLIFT_AGENT_BACKGROUND=off"])
            .arg(format!("SERVER={server}"))
            .args([
                "sh",
                "-c",
                "PATH=$1/bin:$PATH exec sh \"$0\" \"$1\" \"$2\"",
                FIXTURE,
            ])
            .arg(place.path())
            .arg(script);
        let socket = place.path().join("volumes/run/containerd.sock");
        let daemon = place.daemon("node", &mut node, || {
            let is_up = |mut command: Command| command.output().unwrap().status.success();
            let mut status = place.command(built);
            status.args(["agent", "status", "--root"]).arg(&agent);
            let mut version = place.command("ctr");
            version.arg("-a").arg(&socket).arg("version");
            is_up(status) && is_up(version)
        });
        Self { place, daemon }
    }

    /// Runs a command in the container, as `docker exec` does.
    fn exec(&self, words: &[&str]) -> String {
        let pid = self.daemon.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let mut command = self.place.command("nsenter");
        command.args(["--mount", "--pid", "--root", "--wd", "-t", children.trim()]);
        let output = command.arg("--").args(words).output().unwrap();
        assert!(
            output.status.success(),
            "{words:?}: {output:?}\n{}",
            self.daemon.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn a_node_that_is_a_container_starts_lazy_containers_from_its_volumes() {
    let tools = ["unshare", "nsenter", "pivot_root"];
    let Some(place) = Release::V1_6.place(&[fixture::TOOLS, &tools].concat()) else {
        return;
    };
    let upstream = format!("docker.io=oci:{}", Fixture::get("app").dir.display());
    let server = Starlift::start(&place, &["--wait", "25s", "--upstream", &upstream]);
    server.converted("docker.io/library/image", "1");
    let image = "docker.io/library/image:1";
    let starlift = place.path().join("bin/starlift").display().to_string();
    let read = |node: &Node<'_>, image: &str, name: &str| {
        let id = place.container_id(name);
        let run = ["ctr", "run", "--rm", "--snapshotter", "stargz", image, &id];
        node.exec(&[&run[..], &["/bin/cat", "/usr/share/old/d"]].concat())
    };
    let node = Node::start(&place, &server.url(""));
    // As in the README: the server's host in front of the name.
    let named = format!("{}/{image}", server.address);
    node.exec(&[&starlift, "rpull", &named]);
    assert_eq!(read(&node, &named, "named"), "new\n");
    node.exec(&["ctr", "images", "rm", "--sync", &named]);
    // As in deploy/compose: through the file that the installation wrote.
    let certs_dir = "/etc/containerd/certs.d";
    node.exec(&[&starlift, "rpull", "--hosts-dir", certs_dir, image]);
    assert_eq!(read(&node, image, "first"), "new\n");
    let status: Value =
        serde_json::from_str(&node.exec(&[&starlift, "agent", "status", "--json"])).unwrap();
    assert!(!status["layers"].as_array().unwrap().is_empty(), "{status}");
    assert_eq!(status["refusals"], Value::Array(vec![]));

    let finding = |root: &str| {
        let doctor = format!("{starlift} agent doctor --json --root {root} || true");
        let checks: Value = serde_json::from_str(&node.exec(&["sh", "-c", &doctor])).unwrap();
        let mut all = checks.as_array().unwrap().iter();
        let check = all.find(|check| check["what"] == "file system").unwrap();
        check["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(finding("/var/lib/starlift-agent"), "good");
    assert_eq!(finding("/opt/agent"), "bad", "the root of the container");

    // The container is made again, over the same volumes.
    drop(node);
    let node = Node::start(&place, &server.url(""));
    assert_eq!(read(&node, image, "second"), "new\n");
    node.exec(&["ctr", "images", "rm", "--sync", image]);
    drop(node);
}
