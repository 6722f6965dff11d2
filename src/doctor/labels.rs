//! A dry Prepare: the containerd that runs is asked for a snapshot with the labels of a layer, and
//! the agent for the labels that arrived. No layer is named as the target, so that nothing is
//! fetched or mounted.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tonic::{Code, Status};

use super::check::Check;
use crate::containerd::labels::{Labels, dry};
use crate::containerd::services::snapshots::v1::{
    ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use crate::containerd::session::Session;
use crate::failure::Failure;

const WHAT: &str = "labels";
const NAMESPACE: &str = "default";
/// Time for all calls together.
const LIMIT: Duration = Duration::from_secs(10);
const RESTART: &str =
    "restart containerd: the configuration of the one that runs is older than its file";

/// Checks that labels of a layer reach the agent through the containerd that runs. `None` if one of
/// them does not answer, which has a check of its own.
pub(super) async fn check(containerd: &Path, agent: &Path, snapshotter: &str) -> Option<Check> {
    let trial = trial(containerd, agent, snapshotter);
    match tokio::time::timeout(LIMIT, trial).await {
        Ok(Ok(check)) => Some(check),
        Ok(Err(_unreachable)) => None,
        Err(_elapsed) => {
            let finding = format!("no snapshot within {}", humantime::format_duration(LIMIT));
            Some(Check::bad(WHAT, finding, "look at containerd's log"))
        }
    }
}

async fn trial(containerd: &Path, agent: &Path, snapshotter: &str) -> Result<Check, Failure> {
    let through = Session::open(containerd, NAMESPACE).await?;
    let agent = Session::open(agent, NAMESPACE).await?;
    let sent = dry();
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let key = format!(
        "starlift-doctor-{}-{}",
        std::process::id(),
        since.as_nanos()
    );
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        labels: sent.clone(),
        ..PrepareSnapshotRequest::default()
    };
    if let Err(status) = through.snapshots().prepare(prepare).await {
        return Ok(refused(&status, snapshotter));
    }
    let arrived = arrived(&agent, &key).await;
    let remove = RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key,
    };
    // The garbage collection removes it too, because nothing refers to it.
    let _removed = through.snapshots().remove(remove).await;
    Ok(judge(&sent, arrived.as_ref(), snapshotter))
}

fn refused(status: &Status, snapshotter: &str) -> Check {
    let finding = format!("containerd: {}", status.message());
    let is_unknown = matches!(
        status.code(),
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented
    );
    if is_unknown {
        let finding = format!("the containerd that runs has no snapshotter {snapshotter:?}");
        return Check::bad(WHAT, finding, RESTART);
    }
    let mend = "start the agent, then look at the logs of both";
    Check::bad(WHAT, finding, mend)
}

/// Returns the labels of the agent's snapshot whose key ends with `key`: containerd puts the
/// namespace and a number in front.
async fn arrived(agent: &Session, key: &str) -> Option<Labels> {
    let listed = agent
        .snapshots()
        .list(ListSnapshotsRequest::default())
        .await;
    let mut listed = listed.ok()?.into_inner();
    while let Ok(Some(page)) = listed.message().await {
        let mut snapshots = page.info.into_iter();
        if let Some(found) = snapshots.find(|snapshot| snapshot.name.ends_with(key)) {
            return Some(found.labels);
        }
    }
    None
}

fn judge(sent: &Labels, arrived: Option<&HashMap<String, String>>, snapshotter: &str) -> Check {
    let Some(arrived) = arrived else {
        let finding = format!("{snapshotter:?} of the containerd that runs is not this agent");
        return Check::bad(WHAT, finding, RESTART);
    };
    let mut lost: Vec<&str> = sent
        .iter()
        .filter(|(label, value)| arrived.get(*label) != Some(value))
        .map(|(label, _)| label.as_str())
        .collect();
    lost.sort_unstable();
    if lost.is_empty() {
        return Check::good(WHAT, "those of layers reach the agent");
    }
    let mend = "a program between containerd and the agent drops them: let containerd name the agent's own socket";
    Check::bad(WHAT, format!("lost on the way: {}", lost.join(", ")), mend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn labels_that_are_lost_are_named() {
        let sent = dry();
        assert_eq!(judge(&sent, Some(&sent), "stargz").state, State::Good);
        assert_eq!(judge(&sent, None, "stargz").state, State::Bad);
        let (label, _) = sent.iter().next().unwrap();
        let mut fewer = sent.clone();
        fewer.remove(label);
        let check = judge(&sent, Some(&fewer), "stargz");
        assert_eq!(check.state, State::Bad);
        assert!(check.told.ends_with(label), "{}", check.told);
    }
}
