//! containerd's configuration, in the version that each release wants.

use toml::{Table, Value};

use super::{Agent, CriPull, Place, Release};

/// The plugins of CRI: in 1.6, and in 2.x the parts for images, for the runtime, and for both.
const CRI_1: &str = "io.containerd.grpc.v1.cri";
const IMAGES: &str = "io.containerd.cri.v1.images";
const RUNTIME: &str = "io.containerd.cri.v1.runtime";
const SANDBOXES: &str = "io.containerd.podsandbox.controller.v1.podsandbox";

/// The configuration of a containerd whose files and sockets are in a workspace.
#[derive(Debug)]
pub(super) struct Configuration<'a> {
    place: &'a Place,
    table: Table,
}

impl<'a> Configuration<'a> {
    /// With a CRI service that needs no network plugin and no port.
    pub(super) fn new(place: &'a Place) -> Self {
        let cni = place.dir("cni");
        let (version, cri, programs) = match Release::of(place) {
            Release::V1_6 => (2, CRI_1, format!("bin_dir = {cni:?}")),
            Release::V2_4 => (3, RUNTIME, format!("bin_dirs = [{cni:?}]")),
        };
        // Both use folders of the whole machine.
        let disabled = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"];
        let (root, state) = (place.dir("ctd"), place.dir("ctd-state"));
        let base = format!(
            "version = {version}\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = {disabled:?}\n\
             grpc.address = {socket:?}\n\
             [plugins.{cri:?}.cni]\n{programs}\nconf_dir = {cni:?}\n\
             [plugins.{CRI_1:?}]\nstream_server_port = \"0\"\n",
            socket = place.path().join("ctd.sock"),
        );
        let table = Table::new();
        Self { place, table }.with(&base)
    }

    pub(super) fn without_cri(mut self) -> Self {
        let plugins = [CRI_1, IMAGES, RUNTIME, SANDBOXES].map(Value::from);
        let disabled = self.table.get_mut("disabled_plugins").unwrap();
        disabled.as_array_mut().unwrap().extend(plugins);
        self
    }

    /// Adds lines, which replace those for the same keys.
    pub(super) fn with(mut self, lines: &str) -> Self {
        merge(&mut self.table, lines.parse().unwrap());
        self
    }

    /// Adds the file in `deploy/`, and a pause image.
    pub(super) fn with_pods(self, agent: &Agent, sandbox: &str, pull: CriPull) -> Self {
        let release = Release::of(self.place);
        let file = deployed(release, self.place, agent);
        let configured = self.with(&file).with_sandbox(sandbox);
        match release {
            Release::V1_6 => configured,
            Release::V2_4 => configured.with(&pulling(pull)),
        }
    }

    /// Adds a pause image, and the settings by which pods run in a test.
    pub(super) fn with_sandbox(self, sandbox: &str) -> Self {
        let own = match Release::of(self.place) {
            Release::V1_6 => format!(
                "[plugins.{CRI_1:?}]\nsandbox_image = {sandbox:?}\nrestrict_oom_score_adj = true\n"
            ),
            Release::V2_4 => format!(
                "plugins.{IMAGES:?}.pinned_images.sandbox = {sandbox:?}\n\
                 plugins.{RUNTIME:?}.restrict_oom_score_adj = true\n"
            ),
        };
        self.with(&own).with("debug.level = \"debug\"")
    }

    pub(super) fn text(&self) -> String {
        self.table.to_string()
    }
}

/// Returns the file in `deploy/` for a release, with the paths of a workspace and its agent.
pub(crate) fn deployed(release: Release, place: &Place, agent: &Agent) -> String {
    let file = match release {
        Release::V1_6 => include_str!("../../../../deploy/containerd-1.toml"),
        Release::V2_4 => include_str!("../../../../deploy/containerd.toml"),
    };
    let paths = [
        ("/run/starlift-agent/agent.sock", agent.socket.clone()),
        ("/var/lib/starlift-agent", agent.root.clone()),
        ("/etc/containerd/certs.d", place.dir("certs.d")),
    ];
    paths.iter().fold(file.to_owned(), |file, (from, to)| {
        assert!(file.contains(from), "{from}");
        file.replace(from, to.to_str().unwrap())
    })
}

/// Returns the lines by which CRI of 2.x pulls in this way.
fn pulling(pull: CriPull) -> String {
    let is_local = pull == CriPull::Local;
    format!(
        "plugins.{IMAGES:?}.use_local_image_pull = {is_local}\n\
         plugins.{IMAGES:?}.disable_snapshot_annotations = {}\n",
        !is_local
    )
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}
