use std::collections::HashMap;

use prost_types::{FieldMask, Timestamp};
use starlift::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use starlift::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use starlift::containerd::types::Mount;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::agent::Agent;
use crate::support::place::Place;

/// Go's zero time on the wire.
const GO_ZERO: Timestamp = Timestamp {
    seconds: -62_135_596_800,
    nanos: 0,
};

type Client = SnapshotsClient<Channel>;

async fn client(agent: &Agent) -> Client {
    let address = format!("unix://{}", agent.socket.display());
    Client::connect(address).await.unwrap()
}

async fn prepare(
    client: &mut Client,
    key: &str,
    parent: &str,
    labels: &[(&str, &str)],
) -> Result<Vec<Mount>, Status> {
    let labels = labels
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let request = PrepareSnapshotRequest {
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels,
        ..Default::default()
    };
    client
        .prepare(request)
        .await
        .map(|response| response.into_inner().mounts)
}

async fn commit(client: &mut Client, name: &str, key: &str) -> Result<(), Status> {
    let request = CommitSnapshotRequest {
        name: name.to_owned(),
        key: key.to_owned(),
        ..Default::default()
    };
    client.commit(request).await.map(drop)
}

async fn stat(client: &mut Client, key: &str) -> Result<Info, Status> {
    let request = StatSnapshotRequest {
        key: key.to_owned(),
        ..Default::default()
    };
    client
        .stat(request)
        .await
        .map(|response| response.into_inner().info.unwrap())
}

async fn pages(
    client: &mut Client,
    filters: &[&str],
) -> Result<Vec<ListSnapshotsResponse>, Status> {
    let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
    let mut stream = client
        .list(ListSnapshotsRequest {
            filters,
            ..Default::default()
        })
        .await?
        .into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await? {
        pages.push(page);
    }
    Ok(pages)
}

#[tokio::test]
async fn a_snapshot_is_prepared_committed_viewed_and_removed() {
    let place = Place::with(&[]).unwrap();
    let agent = Agent::start(&place);
    let client = &mut client(&agent).await;
    let mounts = prepare(
        client,
        "default/1/extract",
        "",
        &[("containerd.io/gc.root", "x")],
    )
    .await
    .unwrap();
    assert_eq!(
        (
            mounts[0].r#type.as_str(),
            mounts[0].options.join(",").as_str()
        ),
        ("bind", "rw,rbind")
    );
    let info = stat(client, "default/1/extract").await.unwrap();
    assert_eq!(
        (info.kind(), info.labels["containerd.io/gc.root"].as_str()),
        (Kind::Active, "x")
    );
    let again = MountsRequest {
        key: "default/1/extract".into(),
        ..Default::default()
    };
    assert_eq!(
        client.mounts(again).await.unwrap().into_inner().mounts,
        mounts
    );

    commit(client, "default/2/base", "default/1/extract")
        .await
        .unwrap();
    let view = ViewSnapshotRequest {
        key: "v".into(),
        parent: "default/2/base".into(),
        ..Default::default()
    };
    let mounts = client.view(view).await.unwrap().into_inner().mounts;
    assert_eq!(
        (
            mounts[0].r#type.as_str(),
            mounts[0].options.join(",").as_str()
        ),
        ("bind", "ro,rbind")
    );
    let info = stat(client, "v").await.unwrap();
    assert_eq!(
        (info.kind(), info.parent.as_str()),
        (Kind::View, "default/2/base")
    );
    let usage = client
        .usage(UsageRequest {
            key: "default/2/base".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(usage.into_inner().inodes, 1);

    for key in ["v", "default/2/base"] {
        client
            .remove(RemoveSnapshotRequest {
                key: key.into(),
                ..Default::default()
            })
            .await
            .unwrap();
    }
    client.cleanup(CleanupRequest::default()).await.unwrap();
    assert!(pages(client, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn errors_have_the_codes_that_containerd_acts_on() {
    let place = Place::with(&[]).unwrap();
    let agent = Agent::start(&place);
    let client = &mut client(&agent).await;
    prepare(client, "a", "", &[]).await.unwrap();
    commit(client, "base", "a").await.unwrap();
    prepare(client, "child", "base", &[]).await.unwrap();
    let code = |outcome: Result<(), Status>| outcome.unwrap_err().code();
    assert_eq!(
        code(prepare(client, "x", "none", &[]).await.map(drop)),
        Code::NotFound
    );
    assert_eq!(
        code(prepare(client, "x", "child", &[]).await.map(drop)),
        Code::InvalidArgument
    );
    assert_eq!(
        code(prepare(client, "child", "", &[]).await.map(drop)),
        Code::AlreadyExists
    );
    assert_eq!(
        code(commit(client, "base", "child").await),
        Code::AlreadyExists
    );
    assert_eq!(
        code(commit(client, "x", "base").await),
        Code::FailedPrecondition
    );
    let remove = RemoveSnapshotRequest {
        key: "base".into(),
        ..Default::default()
    };
    assert_eq!(
        code(client.remove(remove).await.map(drop)),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(pages(client, &["name=x"]).await.map(drop)),
        Code::InvalidArgument
    );
    let update = UpdateSnapshotRequest {
        info: Some(Info {
            name: "base".into(),
            ..Info::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["kind".into()],
        }),
        ..Default::default()
    };
    assert_eq!(
        code(client.update(update).await.map(drop)),
        Code::InvalidArgument
    );
    assert_eq!(
        code(
            client
                .update(UpdateSnapshotRequest::default())
                .await
                .map(drop)
        ),
        Code::NotFound
    );
}

#[tokio::test]
async fn an_update_may_carry_gos_zero_time() {
    let place = Place::with(&[]).unwrap();
    let agent = Agent::start(&place);
    let client = &mut client(&agent).await;
    prepare(client, "a", "", &[("old", "1")]).await.unwrap();
    let labels = HashMap::from([("new".to_owned(), "2".to_owned())]);
    let info = Info {
        name: "a".into(),
        created_at: Some(GO_ZERO),
        updated_at: Some(GO_ZERO),
        labels,
        ..Info::default()
    };
    let update_mask = Some(FieldMask {
        paths: vec!["labels.new".into()],
    });
    let request = UpdateSnapshotRequest {
        info: Some(info),
        update_mask,
        ..Default::default()
    };
    let info = client
        .update(request)
        .await
        .unwrap()
        .into_inner()
        .info
        .unwrap();
    assert_eq!(
        info.labels,
        HashMap::from([("old".into(), "1".into()), ("new".into(), "2".into())])
    );
    assert!(info.created_at.unwrap().seconds > 1_600_000_000);
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let place = Place::with(&[]).unwrap();
    let agent = Agent::start(&place);
    let client = &mut client(&agent).await;
    for number in 0..205 {
        prepare(client, &format!("key-{number:03}"), "", &[])
            .await
            .unwrap();
    }
    let pages = pages(client, &["kind==active"]).await.unwrap();
    assert_eq!(
        pages.iter().map(|page| page.info.len()).collect::<Vec<_>>(),
        [100, 100, 5]
    );
    let names: Vec<_> = pages
        .iter()
        .flat_map(|page| &page.info)
        .map(|info| info.name.clone())
        .collect();
    assert!(names.is_sorted() && names[204] == "key-204");
}

#[tokio::test]
async fn fifty_clients_prepare_at_once() {
    let place = Place::with(&[]).unwrap();
    let agent = Agent::start(&place);
    let client = client(&agent).await;
    let prepares = (0..50).map(|number| {
        let mut client = client.clone();
        async move {
            prepare(&mut client, &format!("key-{number}"), "", &[])
                .await
                .unwrap()[0]
                .source
                .clone()
        }
    });
    let sources: std::collections::HashSet<_> = futures::future::join_all(prepares)
        .await
        .into_iter()
        .collect();
    assert_eq!(sources.len(), 50);
}

#[tokio::test]
async fn a_layer_that_cannot_be_lazy_gets_an_ordinary_snapshot() {
    let place = Place::with(&[]).unwrap();
    let agent = Agent::start(&place);
    let client = &mut client(&agent).await;
    let target = ("containerd.io/snapshot.ref", "sha256:chain");
    let digest = format!("sha256:{}", "0".repeat(64));
    let layer = [
        target,
        (
            "containerd.io/snapshot/remote/stargz.reference",
            "127.0.0.1:1/app:1",
        ),
        (
            "containerd.io/snapshot/remote/stargz.digest",
            digest.as_str(),
        ),
    ];
    assert_eq!(
        prepare(client, "without-layer", "", &[target])
            .await
            .unwrap()[0]
            .r#type,
        "bind"
    );
    assert_eq!(
        prepare(client, "with-layer", "", &layer).await.unwrap()[0].r#type,
        "bind"
    );
    assert_eq!(
        stat(client, "with-layer").await.unwrap().kind(),
        Kind::Active
    );
}
