//! `Snapshots.Commit` with the field `parent` of containerd 2.2 and later. The generated message is
//! older and lacks the field; an older containerd ignores it.

use std::collections::HashMap;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::deadline::PunctualChannel;

/// The method's path.
const PATH: &str = "/containerd.services.snapshots.v1.Snapshots/Commit";

/// containerd's message of this name. Numbers and types are those of its
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
    /// Since containerd 2.2. Empty: the parent that the snapshot was prepared with.
    #[prost(string, tag = "5")]
    pub(super) parent: String,
}

/// Calls `Snapshots.Commit`.
pub(super) async fn call(
    channel: PunctualChannel,
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
    fn the_message_without_a_parent_equals_the_generated_one_and_a_parent_adds_a_field() {
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
        // The tag of field 5, length-delimited: (5 << 3) | 2.
        assert_eq!(
            ours("p").encode_to_vec(),
            [&bytes[..], &[0x2a, 1, b'p']].concat()
        );
    }
}
