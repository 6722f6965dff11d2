//! `crictl`, as the operator of a node uses it.

use std::process::Command;

use serde_json::Value;

use super::containerd::{self, Containerd};
use super::place::Place;

#[derive(Debug)]
pub(crate) struct Crictl<'a> {
    place: &'a Place,
    endpoint: String,
}

/// The ids of a running pod and of its container.
#[derive(Debug)]
pub(crate) struct RunningPod {
    pub(crate) pod: String,
    pub(crate) container: String,
}

impl<'a> Crictl<'a> {
    /// Creates a workspace with `crictl` and the containerd of today.
    pub(crate) fn place(tools: &[&str]) -> Option<Place> {
        Place::with_clients(&[containerd::CLIENTS, &["crictl"]].concat(), tools)
    }

    pub(crate) fn new(place: &'a Place, containerd: &Containerd<'_>) -> Self {
        let endpoint = format!("unix://{}", containerd.socket.display());
        Self { place, endpoint }
    }

    /// Runs `crictl` with these arguments, split at blanks, which must succeed.
    pub(crate) fn run(&self, arguments: &str) -> String {
        let mut command = self.command();
        let output = command.args(arguments.split(' ')).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}\n{said}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    /// Runs a shell's line in a container, and returns its output.
    pub(crate) fn shell(&self, pod: &RunningPod, line: &str) -> String {
        let mut command = self.command();
        command.args(["exec", &pod.container, "/bin/sh", "-c", line]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// Runs a pod with one container, by their configurations (PodSandboxConfig, ContainerConfig).
    pub(crate) fn run_pod(&self, sandbox: &Value, container: &Value) -> RunningPod {
        let write = |name: &str, value: &Value| self.place.write(name, value.to_string());
        let (sandbox, container) = (write("pod.json", sandbox), write("one.json", container));
        let (sandbox, container) = (sandbox.display(), container.display());
        let pod = self.run(&format!("runp {sandbox}"));
        let container = self.run(&format!("create {pod} {container} {sandbox}"));
        self.run(&format!("start {container}"));
        RunningPod { pod, container }
    }

    fn command(&self) -> Command {
        let mut command = self.place.command("crictl");
        command.args(["--timeout", "60s"]);
        for service in ["--runtime-endpoint", "--image-endpoint"] {
            command.arg(service).arg(&self.endpoint);
        }
        command
    }
}
