//! Writes a blob to the content store: a stream of messages, each with one answer.

use futures::future;
use futures::stream::{BoxStream, Stream, StreamExt};
use tonic::{Request, Status};

use containerd_client::services::v1::{WriteAction, WriteContentRequest};

use super::{Grpc, WORK_DEADLINE, content, failed};
use crate::containerd::{BlobChunk, Error, Result};

impl Grpc {
    pub(super) async fn write(
        &self,
        lease: &str,
        reference: &str,
        chunks: BoxStream<'static, BlobChunk>,
    ) -> Result<()> {
        let call = "write blob";
        let mut request = Request::new(messages(reference, chunks));
        request.set_timeout(WORK_DEADLINE);
        let request = self.under(lease, self.in_namespace(request))?;
        let written = async {
            let reply = content::client(self).write(request).await;
            let mut answers = reply.map_err(failed(call, reference))?.into_inner();
            let mut last = None;
            // containerd does not go on until its answers are read.
            while let Some(answer) = answers.message().await.map_err(failed(call, reference))? {
                last = Some(answer);
            }
            match last {
                Some(answer) if answer.action() == WriteAction::Commit => Ok(()),
                _ => Err(Error::malformed(
                    call,
                    reference,
                    "containerd did not commit the blob",
                )),
            }
        };
        // The request's own deadline covers only the first answer.
        tokio::time::timeout(WORK_DEADLINE, written)
            .await
            .unwrap_or_else(|_| {
                Err(failed(call, reference)(Status::deadline_exceeded(
                    "too slow",
                )))
            })
    }
}

/// Converts chunks to messages. The last one has the expected digest and size, and containerd rejects a
/// blob that differs.
fn messages(
    reference: &str,
    chunks: BoxStream<'static, BlobChunk>,
) -> impl Stream<Item = WriteContentRequest> + Send + 'static {
    let reference = reference.to_owned();
    chunks.scan(0_i64, move |offset, piece| {
        let mut message = WriteContentRequest {
            r#ref: reference.clone(),
            offset: *offset,
            ..Default::default()
        };
        match piece {
            BlobChunk::Data(data) => {
                message.set_action(WriteAction::Write);
                *offset += i64::try_from(data.len()).unwrap_or(i64::MAX);
                message.data = data;
            }
            BlobChunk::End { digest, size } => {
                message.set_action(WriteAction::Commit);
                message.total = size.try_into().unwrap_or(i64::MAX);
                message.expected = digest;
            }
        }
        future::ready(Some(message))
    })
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn offsets_follow_the_data_and_the_last_message_has_digest_and_size() {
        let chunks = [
            BlobChunk::Data(vec![1; 5]),
            BlobChunk::Data(vec![2; 3]),
            BlobChunk::End {
                digest: "sha256:d".to_owned(),
                size: 8,
            },
        ];
        let messages: Vec<_> = messages("r", stream::iter(chunks).boxed()).collect().await;
        let seen: Vec<_> = messages
            .iter()
            .map(|m| (m.action(), m.offset, m.data.len(), m.total))
            .collect();
        assert_eq!(
            seen,
            [
                (WriteAction::Write, 0, 5, 0),
                (WriteAction::Write, 5, 3, 0),
                (WriteAction::Commit, 8, 0, 8),
            ]
        );
        assert!(messages.iter().all(|m| m.r#ref == "r"));
        assert_eq!(messages[2].expected, "sha256:d");
    }
}
