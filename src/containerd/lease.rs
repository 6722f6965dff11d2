//! The lease of a pull. Until an image refers to the pulled objects, only the lease keeps
//! containerd from collecting them as garbage.

use std::time::{Duration, SystemTime};

use super::session::{Session, refused};
use crate::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Resource,
};
use crate::failure::Failure;

const EXPIRE_LABEL: &str = "containerd.io/gc.expire";
/// Time after which containerd drops the lease of a killed pull; the same as for its own client.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A lease. Its owner has to end it: dropping it does nothing.
#[derive(Debug)]
pub(crate) struct Lease {
    session: Session,
    id: String,
}

impl Lease {
    /// Creates a lease, and returns it with a session whose calls are under it.
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
            .map_err(refused("creating a lease"))?;
        Ok((
            Self {
                session: session.clone(),
                id: id.clone(),
            },
            session.under_lease(&id)?,
        ))
    }

    /// Ends the lease. With `collected`, returns only after containerd has removed the objects that
    /// nothing else refers to.
    pub(crate) async fn end(self, collected: bool) -> Result<(), Failure> {
        let request = DeleteRequest {
            id: self.id.clone(),
            sync: collected,
        };
        let what = format!("lease {} cannot be ended and stays for a day", self.id);
        self.session
            .leases()
            .delete(request)
            .await
            .map_err(refused(what))
            .map(drop)
    }
}

/// Adds an existing snapshot to the session's lease. Otherwise containerd could collect it during
/// the pull, if its image is removed at the same time. The caller checks afterwards whether the
/// snapshot still exists.
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
        .map_err(refused(format!("adding the snapshot {key} to the lease")))
        .map(drop)
}
