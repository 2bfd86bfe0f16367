//! Calls to the lease manager.

use containerd_client::services::v1 as api;
use tonic::Request;

use super::deadline::PunctualChannel;
use super::{COLLECTION_DEADLINE, Grpc, MAX_MESSAGE, METADATA_DEADLINE, failed};
use crate::containerd::{Labels, Lease, Resource, Result};

pub(super) async fn create(grpc: &Grpc, id: &str, labels: Labels) -> Result<()> {
    let request = grpc.ask(api::CreateRequest {
        id: id.to_owned(),
        labels: labels.into_iter().collect(),
    });
    let reply = client(grpc).create(request).await;
    reply.map_err(failed("create lease", id)).map(drop)
}

pub(super) async fn delete(grpc: &Grpc, id: &str, sync: bool) -> Result<()> {
    let reply = client(grpc).delete(deletion(grpc, id, sync)).await;
    reply.map_err(failed("delete lease", id)).map(drop)
}

fn deletion(grpc: &Grpc, id: &str, sync: bool) -> Request<api::DeleteRequest> {
    let deadline = match sync {
        true => COLLECTION_DEADLINE,
        false => METADATA_DEADLINE,
    };
    let id = id.to_owned();
    grpc.ask_within(deadline, api::DeleteRequest { id, sync })
}

pub(super) async fn list(grpc: &Grpc) -> Result<Vec<Lease>> {
    let request = grpc.ask(api::ListRequest { filters: vec![] });
    let reply = client(grpc).list(request).await;
    let leases = reply.map_err(failed("list", "leases"))?.into_inner().leases;
    let lease = |l: api::Lease| Lease {
        id: l.id,
        labels: l.labels.into_iter().collect(),
    };
    Ok(leases.into_iter().map(lease).collect())
}

pub(super) async fn resources(grpc: &Grpc, id: &str) -> Result<Vec<Resource>> {
    let request = grpc.ask(api::ListResourcesRequest { id: id.to_owned() });
    let reply = client(grpc).list_resources(request).await;
    let reply = reply.map_err(failed("list resources of lease", id))?;
    let resource = |r: api::Resource| Resource {
        kind: r.r#type,
        id: r.id,
    };
    Ok(reply
        .into_inner()
        .resources
        .into_iter()
        .map(resource)
        .collect())
}

pub(super) async fn hold(grpc: &Grpc, lease: &str, resource: Resource) -> Result<()> {
    let request = grpc.ask(api::AddResourceRequest {
        id: lease.to_owned(),
        resource: Some(api::Resource {
            id: resource.id,
            r#type: resource.kind,
        }),
    });
    let reply = client(grpc).add_resource(request).await;
    reply.map_err(failed("add to lease", lease)).map(drop)
}

pub(super) async fn release(grpc: &Grpc, lease: &str, resource: Resource) -> Result<()> {
    let request = grpc.ask(api::DeleteResourceRequest {
        id: lease.to_owned(),
        resource: Some(api::Resource {
            id: resource.id,
            r#type: resource.kind,
        }),
    });
    let reply = client(grpc).delete_resource(request).await;
    reply.map_err(failed("remove from lease", lease)).map(drop)
}

fn client(grpc: &Grpc) -> api::leases_client::LeasesClient<PunctualChannel> {
    api::leases_client::LeasesClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn a_deletion_waits_for_its_garbage_collection() {
        let grpc = Grpc::new(Path::new("/nowhere"), "k8s.io").unwrap();
        for (sync, timeout) in [(false, "10000000u"), (true, "600000m")] {
            let request = deletion(&grpc, "a", sync);
            assert_eq!(request.metadata().get("grpc-timeout").unwrap(), timeout);
        }
    }
}
