//! The call to the diff service, which unpacks a layer's blob into mounts.

use containerd_client::services::v1 as api;

use super::{Grpc, WORK_DEADLINE, empty, failed};
use crate::containerd::{Descriptor, Mount, Payloads, Result};

pub(super) async fn apply(
    grpc: &Grpc,
    layer: &Descriptor,
    mounts: Vec<Mount>,
    payloads: Payloads,
) -> Result<String> {
    let call = "apply layer";
    let request = grpc.ask_within(
        WORK_DEADLINE,
        api::ApplyRequest {
            diff: Some(layer.clone()),
            mounts,
            payloads,
            ..Default::default()
        },
    );
    let reply = api::diff_client::DiffClient::new(grpc.channel.clone())
        .apply(request)
        .await;
    let reply = reply.map_err(failed(call, &layer.digest))?.into_inner();
    let applied = reply.applied.ok_or_else(empty(call, &layer.digest))?;
    Ok(applied.digest)
}
