//! `Snapshots.Commit` with the parent that it takes from containerd 2.2 on. The generated message,
//! which is older, does not have it; an older containerd passes over it.

use std::collections::HashMap;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// The method's path.
const PATH: &str = "/containerd.services.snapshots.v1.Snapshots/Commit";

/// containerd's message of this name, numbers and types as in its
/// `api/services/snapshots/v1/snapshots.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CommitSnapshotRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) key: String,
    #[prost(map = "string, string", tag = "4")]
    pub(super) labels: HashMap<String, String>,
    /// Since 2.2; empty for what the snapshot was prepared on.
    #[prost(string, tag = "5")]
    pub(super) parent: String,
}

/// Calls it.
pub(super) async fn call(
    channel: Channel,
    request: Request<CommitSnapshotRequest>,
) -> Result<(), Status> {
    let mut client = Grpc::new(channel);
    let ready = client.ready().await;
    ready.map_err(|e| Status::from_error(Box::new(e)))?;
    let codec = ProstCodec::<CommitSnapshotRequest, ()>::default();
    let path = PathAndQuery::from_static(PATH);
    client.unary(request, path, codec).await.map(drop)
}

#[cfg(test)]
mod tests {
    use containerd_client::services::v1::snapshots as generated;
    use prost::Message;

    use super::*;

    #[test]
    fn without_a_parent_it_is_the_generated_message_and_with_one_a_field_more() {
        let labels = HashMap::from([("a".to_owned(), "b".to_owned())]);
        let ours = |parent: &str| CommitSnapshotRequest {
            snapshotter: "erofs".to_owned(),
            name: "sha256:c".to_owned(),
            key: "extract-1 sha256:c".to_owned(),
            labels: labels.clone(),
            parent: parent.to_owned(),
        };
        let theirs = generated::CommitSnapshotRequest {
            snapshotter: "erofs".to_owned(),
            name: "sha256:c".to_owned(),
            key: "extract-1 sha256:c".to_owned(),
            labels: labels.clone(),
        };
        let bytes = theirs.encode_to_vec();
        assert_eq!(ours("").encode_to_vec(), bytes);
        // Field 5, of a length: (5 << 3) | 2.
        assert_eq!(
            ours("p").encode_to_vec(),
            [&bytes[..], &[0x2a, 1, b'p']].concat()
        );
    }
}
