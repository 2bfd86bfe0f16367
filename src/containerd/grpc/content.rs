//! Calls to the content store.

use std::time::SystemTime;

use containerd_client::services::v1 as api;

use super::deadline::PunctualChannel;
use super::{Grpc, MAX_MESSAGE, count, drain, empty, failed, label_paths};
use crate::containerd::{Blob, Each, Error, Labels, Result};

/// The label by which a manifest keeps its config from garbage collection.
const CONFIG_OF: &str = "containerd.io/gc.ref.content.config";

pub(super) async fn info(grpc: &Grpc, digest: &str) -> Result<Blob> {
    let call = "look up blob";
    let request = grpc.ask(api::InfoRequest {
        digest: digest.to_owned(),
    });
    let reply = client(grpc).info(request).await;
    let info = reply.map_err(failed(call, digest))?.into_inner().info;
    info.map(blob).ok_or_else(empty(call, digest))
}

pub(super) async fn list(grpc: &Grpc, each: Each<'_, Blob>) -> Result<()> {
    list_by(grpc, "list", vec![], each).await
}

pub(super) async fn list_manifests(grpc: &Grpc, each: Each<'_, Blob>) -> Result<()> {
    let filter = format!("labels.{CONFIG_OF:?}");
    list_by(grpc, "list manifests of", vec![filter], each).await
}

pub(super) async fn read(grpc: &Grpc, digest: &str, limit: u64) -> Result<Vec<u8>> {
    let call = "read blob";
    let request = grpc.ask(api::ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    });
    let reply = client(grpc).read(request).await;
    let stream = reply.map_err(failed(call, digest))?.into_inner();
    let mut bytes = Vec::new();
    drain(call, digest, stream, |part| {
        bytes.extend(part.data);
        if bytes.len() as u64 > limit {
            let message = format!("larger than the limit of {limit} bytes for such a document");
            return Err(Error::malformed(call, digest, &message));
        }
        Ok(())
    })
    .await?;
    Ok(bytes)
}

pub(super) async fn abort_write(grpc: &Grpc, reference: &str) -> Result<()> {
    let request = grpc.ask(api::AbortRequest {
        r#ref: reference.to_owned(),
    });
    let reply = client(grpc).abort(request).await;
    reply.map_err(failed("abort write", reference)).map(drop)
}

pub(super) async fn label(grpc: &Grpc, digest: &str, labels: Labels) -> Result<()> {
    let request = grpc.ask(api::UpdateRequest {
        update_mask: Some(label_paths(&labels)),
        info: Some(api::Info {
            digest: digest.to_owned(),
            labels: labels.into_iter().collect(),
            ..Default::default()
        }),
    });
    let reply = client(grpc).update(request).await;
    reply.map_err(failed("label blob", digest)).map(drop)
}

async fn list_by(
    grpc: &Grpc,
    call: &'static str,
    filters: Vec<String>,
    each: Each<'_, Blob>,
) -> Result<()> {
    let request = grpc.ask(api::ListContentRequest { filters });
    let reply = client(grpc).list(request).await;
    let stream = reply.map_err(failed(call, "content"))?.into_inner();
    let mut listed = 0;
    drain(call, "content", stream, |part| {
        count(call, "content", &mut listed, part.info.len())?;
        part.info.into_iter().map(blob).for_each(&mut *each);
        Ok(())
    })
    .await
}

pub(super) fn client(grpc: &Grpc) -> api::content_client::ContentClient<PunctualChannel> {
    api::content_client::ContentClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
}

fn blob(info: api::Info) -> Blob {
    Blob {
        digest: info.digest,
        size: info.size.try_into().unwrap_or_default(),
        labels: info.labels.into_iter().collect(),
        created_at: info.created_at.and_then(|t| SystemTime::try_from(t).ok()),
    }
}
