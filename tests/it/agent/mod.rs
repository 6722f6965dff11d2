//! The agent's gRPC service in this process, called as containerd calls it.

mod burst;
mod cri_proxy;
mod erofs;
mod fetching;
mod limits;
mod merged;
mod model;
mod mount;
mod peaks;
mod profiles;
mod provenance;
mod pull;
mod reads;
mod socket;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use starlift::agent::Config;
use starlift::agent::layer_mount::LayerMount;
use starlift::agent::layers::Layers;
use starlift::agent::server::{self, ServeError};
use starlift::agent::snapshots::Snapshots;
use starlift::agent::snapshotter::Snapshotter;
use starlift::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use starlift::registry;
use starlift::transport::Upstreams;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// An agent that serves its socket until it is stopped.
struct Agent {
    root: tempfile::TempDir,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Agent {
    fn start() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    fn on(root: tempfile::TempDir) -> Self {
        let snapshots = Arc::new(Snapshots::open(&root.path().join("root")).unwrap());
        let shutdown = CancellationToken::new();
        let listener = server::bind(&socket_beneath(root.path()), None).unwrap();
        let config = Config {
            root: root.path().join("root"),
            ..Config::default()
        };
        let upstreams = Upstreams::new(&registry::Config::default()).unwrap();
        let layers = Layers::open(&config, upstreams, &LayerMount::ALL).unwrap();
        let snapshotter = Snapshotter::new(snapshots, Arc::new(layers));
        let served = tokio::spawn(server::serve(listener, snapshotter, None, shutdown.clone()));
        Self {
            root,
            shutdown,
            served,
        }
    }

    fn socket(&self) -> PathBuf {
        socket_beneath(self.root.path())
    }

    async fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::connect(format!("unix://{}", self.socket().display()))
            .await
            .unwrap()
    }

    async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.served.await.unwrap().unwrap();
        self.root
    }
}

fn socket_beneath(root: &Path) -> PathBuf {
    root.join("run/agent.sock")
}
