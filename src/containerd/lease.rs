//! Holds what a pull has brought so far: until an image names it, containerd would collect it as garbage.

use std::time::{Duration, SystemTime};

use super::session::{Session, refused};
use crate::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Resource,
};
use crate::failure::Failure;

const EXPIRE_LABEL: &str = "containerd.io/gc.expire";
/// When containerd drops a lease whose pull was killed; as long as its own client's.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A lease; whoever takes it ends it.
#[derive(Debug)]
pub(crate) struct Lease {
    session: Session,
    id: String,
}

impl Lease {
    /// A new lease, and the session under it.
    pub(crate) async fn take(session: &Session) -> Result<(Self, Session), Failure> {
        let id = format!("starlift-{:016x}", rand::random::<u64>());
        let expiry = humantime::format_rfc3339_seconds(SystemTime::now() + LIFETIME).to_string();
        let request = CreateRequest {
            id: id.clone(),
            labels: [(EXPIRE_LABEL.to_owned(), expiry)].into(),
        };
        session
            .leases()
            .create(request)
            .await
            .map_err(refused("taking a lease"))?;
        Ok((
            Self {
                session: session.clone(),
                id: id.clone(),
            },
            session.under_lease(&id)?,
        ))
    }

    /// Ends the lease. With `collected`, returns only when containerd has removed what nothing else names.
    pub(crate) async fn end(self, collected: bool) -> Result<(), Failure> {
        let request = DeleteRequest {
            id: self.id.clone(),
            sync: collected,
        };
        let what = format!(
            "the lease {} could not be ended and stays for a day",
            self.id
        );
        self.session
            .leases()
            .delete(request)
            .await
            .map_err(refused(what))
            .map(drop)
    }
}

/// Puts a snapshot that was there before under the session's lease: what a removal at the same time leaves without a name
/// would be collected beneath the pull. Whether it was still there is to be asked afterwards.
pub(crate) async fn hold_snapshot(
    session: &Session,
    snapshotter: &str,
    key: &str,
) -> Result<(), Failure> {
    let Some(lease) = session.lease() else {
        return Ok(());
    };
    let resource = Resource {
        id: key.to_owned(),
        r#type: format!("snapshots/{snapshotter}"),
    };
    let request = AddResourceRequest {
        id: lease.to_owned(),
        resource: Some(resource),
    };
    session
        .leases()
        .add_resource(request)
        .await
        .map_err(refused(format!("holding the snapshot {key}")))
        .map(drop)
}
