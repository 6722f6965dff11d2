//! Pods, made with the calls of the CRI runtime service that a kubelet sends for one container
//! (kubernetes/cri-api, pkg/apis/runtime/v1/api.proto). Only the fields that are set here are
//! declared.

use bytes::Bytes;
use prost::Message;
use tonic::{Request, Status};

use super::cri::Kubelet;

/// `NamespaceMode.NODE`: the pod shares the node's network, so no network plugin is needed.
pub(crate) const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandbox {
    #[prost(message, optional, tag = "2")]
    security_context: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Image>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct Exec {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout_seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Output {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

/// A request or an answer with a single text: the id of a sandbox or a container.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

/// A pod with one container. [`Self::remove`] removes it.
#[derive(Debug)]
pub(crate) struct Pod {
    kubelet: Kubelet,
    sandbox: String,
    container: String,
}

impl Pod {
    /// Runs `command` in a container of `image`, which must be pulled.
    pub(crate) async fn start(
        kubelet: &Kubelet,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<Self, Status> {
        let namespace_options = Some(NamespaceOption { network: NODE });
        let linux = LinuxSandbox {
            security_context: Some(SandboxSecurity { namespace_options }),
        };
        let metadata = Metadata {
            name: name.to_owned(),
            uid: name.to_owned(),
            namespace: "default".to_owned(),
        };
        let sandbox_config = SandboxConfig {
            metadata: Some(metadata),
            linux: Some(linux),
        };
        let run = RunPodSandbox {
            config: Some(sandbox_config.clone()),
        };
        let sandbox: Id = call(kubelet, "RunPodSandbox", &run).await?;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "one".to_owned(),
            }),
            image: Some(Image {
                image: image.to_owned(),
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
        };
        let create = CreateContainer {
            sandbox: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let container: Id = call(kubelet, "CreateContainer", &create).await?;
        let _started: Id = call(kubelet, "StartContainer", &container).await?;
        Ok(Self {
            kubelet: kubelet.clone(),
            sandbox: sandbox.id,
            container: container.id,
        })
    }

    /// Runs a command in the container and returns its output.
    pub(crate) async fn exec(&self, command: &[&str]) -> Result<String, Status> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let exec = Exec {
            container: self.container.clone(),
            command,
            timeout_seconds: 60,
        };
        let output: Output = call(&self.kubelet, "ExecSync", &exec).await?;
        assert_eq!(
            output.exit_code,
            0,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout).unwrap())
    }

    pub(crate) async fn remove(self) -> Result<(), Status> {
        let sandbox = Id { id: self.sandbox };
        let _stopped: Id = call(&self.kubelet, "StopPodSandbox", &sandbox).await?;
        let _removed: Id = call(&self.kubelet, "RemovePodSandbox", &sandbox).await?;
        Ok(())
    }
}

async fn call<T: Message + Default>(
    kubelet: &Kubelet,
    method: &str,
    request: &impl Message,
) -> Result<T, Status> {
    let answer = kubelet
        .call_runtime(method, Request::new(Bytes::from(request.encode_to_vec())))
        .await?;
    Ok(T::decode(answer.into_inner()).unwrap())
}
