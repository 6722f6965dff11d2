//! A connection to containerd with one namespace and, during a pull, one lease.

use std::path::Path;

use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::containerd::services::content::v1::content_client::ContentClient;
use crate::containerd::services::diff::v1::diff_client::DiffClient;
use crate::containerd::services::images::v1::images_client::ImagesClient;
use crate::containerd::services::leases::v1::leases_client::LeasesClient;
use crate::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crate::failure::Failure;

const NAMESPACE_HEADER: &str = "containerd-namespace";
const LEASE_HEADER: &str = "containerd-lease";

/// A connection whose clients share a namespace and, if there is one, a lease.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    channel: Channel,
    headers: Headers,
}

/// The metadata of each request.
#[derive(Debug, Clone)]
pub(crate) struct Headers {
    namespace: AsciiMetadataValue,
    lease: Option<AsciiMetadataValue>,
}

pub(crate) type Service = InterceptedService<Channel, Headers>;

impl Session {
    /// Connects to the unix socket `address`.
    pub(crate) async fn open(address: &Path, namespace: &str) -> Result<Self, Failure> {
        let unreachable = || format!("containerd cannot be reached at {}", address.display());
        let absolute = std::path::absolute(address).map_err(Failure::when(unreachable()))?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", absolute.display()));
        let channel = endpoint
            .map_err(Failure::when(unreachable()))?
            .connect()
            .await;
        let namespace = namespace
            .parse()
            .map_err(Failure::when(format!("{namespace:?} is not a namespace")))?;
        Ok(Self {
            channel: channel.map_err(Failure::when(unreachable()))?,
            headers: Headers {
                namespace,
                lease: None,
            },
        })
    }

    /// Returns a session whose calls are under the lease `id`.
    pub(crate) fn under_lease(&self, id: &str) -> Result<Self, Failure> {
        let lease = id
            .parse()
            .map_err(Failure::when(format!("{id:?} is not a lease")))?;
        Ok(Self {
            channel: self.channel.clone(),
            headers: Headers {
                lease: Some(lease),
                ..self.headers.clone()
            },
        })
    }

    pub(crate) fn content(&self) -> ContentClient<Service> {
        ContentClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// Returns the lease of the session's calls.
    pub(crate) fn lease(&self) -> Option<&str> {
        self.headers.lease.as_ref()?.to_str().ok()
    }

    pub(crate) fn diff(&self) -> DiffClient<Service> {
        DiffClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    pub(crate) fn images(&self) -> ImagesClient<Service> {
        ImagesClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    pub(crate) fn leases(&self) -> LeasesClient<Service> {
        LeasesClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Service> {
        SnapshotsClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(NAMESPACE_HEADER, self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert(LEASE_HEADER, lease.clone());
        }
        Ok(request)
    }
}

/// Converts a status from containerd into a failure of the action `what`.
pub(crate) fn refused(what: impl Into<String>) -> impl FnOnce(Status) -> Failure {
    let what = what.into();
    move |status| Failure::new(format!("{what}: containerd: {}", status.message()))
}
