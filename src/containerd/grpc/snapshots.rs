//! Calls to the snapshotters, through containerd's metadata store.

use std::time::SystemTime;

use containerd_client::services::v1::snapshots as snap;

use super::commit::{self, CommitSnapshotRequest};
use super::deadline::PunctualChannel;
use super::{Grpc, MAX_MESSAGE, count, drain, empty, failed, label_paths};
use crate::containerd::{Each, Labels, Mount, Result, Snapshot, SnapshotKind};

pub(super) async fn stat(grpc: &Grpc, snapshotter: &str, key: &str) -> Result<Snapshot> {
    let call = "stat snapshot";
    let request = grpc.ask(snap::StatSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    });
    let reply = client(grpc).stat(request).await;
    let info = reply.map_err(failed(call, key))?.into_inner().info;
    info.map(snapshot).ok_or_else(empty(call, key))
}

pub(super) async fn list(grpc: &Grpc, snapshotter: &str, each: Each<'_, Snapshot>) -> Result<()> {
    let call = "list snapshots of";
    let request = grpc.ask(snap::ListSnapshotsRequest {
        snapshotter: snapshotter.to_owned(),
        ..Default::default()
    });
    let reply = client(grpc).list(request).await;
    let stream = reply.map_err(failed(call, snapshotter))?.into_inner();
    let mut listed = 0;
    drain(call, snapshotter, stream, |part| {
        count(call, snapshotter, &mut listed, part.info.len())?;
        part.info.into_iter().map(snapshot).for_each(&mut *each);
        Ok(())
    })
    .await
}

pub(super) async fn prepare(
    grpc: &Grpc,
    lease: &str,
    snapshotter: &str,
    key: &str,
    parent: Option<&str>,
    labels: Labels,
) -> Result<Vec<Mount>> {
    let request = grpc.ask_leased(
        lease,
        snap::PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.unwrap_or_default().to_owned(),
            labels: labels.into_iter().collect(),
        },
    )?;
    let reply = client(grpc).prepare(request).await;
    let reply = reply.map_err(failed("prepare snapshot", key))?;
    Ok(reply.into_inner().mounts)
}

pub(super) async fn view(
    grpc: &Grpc,
    lease: &str,
    snapshotter: &str,
    key: &str,
    parent: &str,
) -> Result<Vec<Mount>> {
    let request = grpc.ask_leased(
        lease,
        snap::ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        },
    )?;
    let reply = client(grpc).view(request).await;
    let reply = reply.map_err(failed("view snapshot", parent))?;
    Ok(reply.into_inner().mounts)
}

pub(super) async fn mounts(grpc: &Grpc, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
    let request = grpc.ask(snap::MountsRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    });
    let reply = client(grpc).mounts(request).await;
    let reply = reply.map_err(failed("ask mounts of snapshot", key))?;
    Ok(reply.into_inner().mounts)
}

pub(super) async fn inodes(grpc: &Grpc, snapshotter: &str, key: &str) -> Result<u64> {
    let request = grpc.ask(snap::UsageRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    });
    let reply = client(grpc).usage(request).await;
    let reply = reply.map_err(failed("ask usage of snapshot", key))?;
    Ok(reply.into_inner().inodes.try_into().unwrap_or_default())
}

pub(super) async fn commit(
    grpc: &Grpc,
    lease: &str,
    snapshotter: &str,
    name: &str,
    key: &str,
    parent: Option<&str>,
    labels: Labels,
) -> Result<()> {
    let request = CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
        labels: labels.into_iter().collect(),
        parent: parent.unwrap_or_default().to_owned(),
    };
    let committed = commit::call(grpc.channel.clone(), grpc.ask_leased(lease, request)?).await;
    committed.map_err(failed("commit snapshot", name))
}

/// The key of a snapshot that does not exist.
const NOTHING: &str = "nri-unpack nothing";

/// Only a commit reads the metadata before it asks the snapshotter. A commit of a snapshot that does not exist always
/// fails, and changes nothing: with *AlreadyExists* if there is a record of this name (`core/metadata/snapshot.go`).
pub(super) async fn has_record(grpc: &Grpc, snapshotter: &str, name: &str) -> Result<bool> {
    let request = CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: name.to_owned(),
        key: NOTHING.to_owned(),
        ..Default::default()
    };
    let committed = commit::call(grpc.channel.clone(), grpc.ask(request)).await;
    match committed.map_err(failed("look up record of snapshot", name)) {
        Err(e) if e.already_exists() => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
        Ok(()) => Ok(false),
    }
}

pub(super) async fn remove(grpc: &Grpc, snapshotter: &str, key: &str) -> Result<()> {
    let request = grpc.ask(snap::RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    });
    let reply = client(grpc).remove(request).await;
    reply.map_err(failed("remove snapshot", key)).map(drop)
}

pub(super) async fn label(grpc: &Grpc, snapshotter: &str, key: &str, labels: Labels) -> Result<()> {
    let request = grpc.ask(snap::UpdateSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        update_mask: Some(label_paths(&labels)),
        info: Some(snap::Info {
            name: key.to_owned(),
            labels: labels.into_iter().collect(),
            ..Default::default()
        }),
    });
    let reply = client(grpc).update(request).await;
    reply.map_err(failed("label snapshot", key)).map(drop)
}

fn client(grpc: &Grpc) -> snap::snapshots_client::SnapshotsClient<PunctualChannel> {
    snap::snapshots_client::SnapshotsClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
}

fn snapshot(info: snap::Info) -> Snapshot {
    Snapshot {
        kind: match info.kind() {
            snap::Kind::Committed => SnapshotKind::Committed,
            snap::Kind::View => SnapshotKind::View,
            snap::Kind::Active | snap::Kind::Unknown => SnapshotKind::Active,
        },
        created_at: info.created_at.and_then(|t| SystemTime::try_from(t).ok()),
        parent: Some(info.parent).filter(|parent| !parent.is_empty()),
        name: info.name,
        labels: info.labels.into_iter().collect(),
    }
}
