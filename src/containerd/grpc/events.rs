//! The subscription to containerd's events.

use containerd_client::services::v1 as api;
use futures::stream::{BoxStream, StreamExt};
use tonic::Request;

use super::{Grpc, failed};
use crate::containerd::{Event, Result};

pub(super) async fn subscribe(
    grpc: &Grpc,
    topics: &[&str],
) -> Result<BoxStream<'static, Result<Event>>> {
    let call = "subscribe to";
    let namespace = grpc.namespace.to_str().unwrap_or_default();
    let filter = |topic: &&str| format!("topic=={topic:?},namespace=={namespace:?}");
    // The request has no deadline, since the stream lasts as long as the connection.
    let request = grpc.in_namespace(Request::new(api::SubscribeRequest {
        filters: topics.iter().map(filter).collect(),
    }));
    let reply = api::events_client::EventsClient::new(grpc.channel.clone())
        .subscribe(request)
        .await;
    let stream = reply.map_err(failed(call, "events"))?.into_inner();
    let event = |envelope: containerd_client::types::Envelope| Event {
        topic: envelope.topic,
        payload: envelope.event.unwrap_or_default(),
    };
    Ok(stream
        .map(move |next| next.map(event).map_err(failed(call, "events")))
        .boxed())
}
