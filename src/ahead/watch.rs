//! Turns containerd's events into arrivals. When the stream ends, subscribes again, and a reconcile finds what was
//! missed in between.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::containerd::Error;
use crate::containerd::events::{self, StoreEvent};
use crate::retry;

use super::Ahead;
use super::job::Job;
use super::origin::Extraction;
use super::queue::Arrival;

/// The prefix of the keys of containerd's extraction snapshots: `extract-<unique> <chain id>`.
const EXTRACTION: &str = "extract-";

/// The prefix of the keys of the plugin's own extraction snapshots.
const OUR_EXTRACTION: &str = "extract-nri-unpack-";

/// The pause between a subscription and the first reconcile. containerd answers a subscription only with its first
/// event, but after this time the subscription has usually begun: what a reconcile misses is then in the stream.
const SUBSCRIBED: Duration = Duration::from_millis(100);

/// Runs until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    let mut pauses = retry::pauses();
    loop {
        let subscribed = async {
            tokio::time::sleep(SUBSCRIBED).await;
            ahead.subscribed();
        };
        let mut received = false;
        let ended = {
            let mut listening = pin!(listen(&ahead, &mut received));
            // A subscription that fails within the pause had not begun.
            tokio::select! {
                ended = &mut listening => ended,
                () = subscribed => listening.await,
            }
        };
        match ended {
            Ok(()) => log::debug!("containerd's event stream ended: subscribing again"),
            Err(e) => {
                log::debug!(error:% = e; "containerd's event stream failed: subscribing again")
            }
        }
        if received {
            pauses = retry::pauses();
        }
        if let Some(pause) = pauses.next() {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn listen(ahead: &Ahead, received: &mut bool) -> Result<(), Error> {
    let containerd = ahead.node.containerd.as_ref();
    let mut events = containerd.events(&events::ALL).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        if !std::mem::replace(received, true) {
            // The subscription has certainly begun now, and may have begun after the first reconcile.
            ahead.queue.reconcile();
        }
        match StoreEvent::of(&event) {
            // Handled at once, not through the queue: a chain of the image must no longer count as ready.
            Some(StoreEvent::ImageRemoved(name)) => ahead.image_removed(&name),
            // An extraction that succeeds is committed, and not removed.
            Some(StoreEvent::Removed { snapshotter, key }) => {
                ahead.user_removed(&key);
                if let Some(chain) = extracted(&key) {
                    ahead.push(&snapshotter, Job::Failed { chain });
                }
            }
            Some(StoreEvent::ContainerRemoved(id)) => ahead.user_removed(&id),
            Some(event) => {
                if let Some(arrival) = arrival(event, ahead.pulls.removals()) {
                    ahead.queue.push(arrival);
                    ahead.count_queued();
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// Returns the arrival of an event, which came after so many removals of images; `None` if it is not looked at.
fn arrival(event: StoreEvent, removals: u64) -> Option<Arrival> {
    match event {
        StoreEvent::Image(name) => Some(Arrival::Image(name)),
        StoreEvent::Prepared { snapshotter, key } => {
            let chain = extracted(&key)?;
            Some(Arrival::Layer(Extraction {
                snapshotter,
                key,
                chain,
                removals,
            }))
        }
        StoreEvent::ImageRemoved(_)
        | StoreEvent::Removed { .. }
        | StoreEvent::ContainerRemoved(_) => None,
    }
}

/// Returns the chain id of the layer that containerd extracts into the snapshot `key`; `None` for the plugin's own
/// extractions, and for all other snapshots.
fn extracted(key: &str) -> Option<String> {
    if key.starts_with(OUR_EXTRACTION) || !key.starts_with(EXTRACTION) {
        return None;
    }
    let (_, chain) = key.split_once(' ')?;
    Some(chain.to_owned())
}

#[cfg(test)]
mod tests {
    use containerd_client::events::{SnapshotPrepare, SnapshotRemove};
    use containerd_client::services::v1::ImageCreate;
    use prost::Message;

    use super::*;
    use crate::containerd::Event;

    const CREATED: &str = "/images/create";

    fn event(topic: &str, message: &impl Message) -> Event {
        Event {
            topic: topic.to_owned(),
            payload: prost_types::Any {
                type_url: String::new(),
                value: message.encode_to_vec(),
            },
        }
    }

    fn prepared(key: &str) -> Event {
        let message = SnapshotPrepare {
            key: key.to_owned(),
            parent: String::new(),
            snapshotter: "overlayfs".to_owned(),
        };
        event("/snapshot/prepare", &message)
    }

    fn removed(key: &str) -> Event {
        let message = SnapshotRemove {
            key: key.to_owned(),
            snapshotter: "erofs".to_owned(),
        };
        event("/snapshot/remove", &message)
    }

    fn arrival_of(event: &Event) -> Option<Arrival> {
        arrival(StoreEvent::of(event)?, 7)
    }

    #[test]
    fn events_become_arrivals() {
        let name = "r.example/app:1".to_owned();
        let created = ImageCreate {
            name: name.clone(),
            ..ImageCreate::default()
        };
        let layer = Arrival::Layer(Extraction {
            snapshotter: "overlayfs".to_owned(),
            key: "extract-12-ab sha256:c".to_owned(),
            chain: "sha256:c".to_owned(),
            removals: 7,
        });
        for (event, expected) in [
            (event(CREATED, &created), Some(Arrival::Image(name))),
            (event("/images/delete", &created), None),
            (prepared("extract-12-ab sha256:c"), Some(layer)),
            (prepared("extract-nri-unpack-1-2-3.0 sha256:c"), None),
            (prepared("a-container"), None),
            (removed("extract-12-ab sha256:c"), None),
            (event("/tasks/start", &created), None),
        ] {
            assert_eq!(arrival_of(&event), expected, "{event:?}");
        }
        let garbled = Event {
            topic: CREATED.to_owned(),
            payload: prost_types::Any {
                type_url: String::new(),
                value: vec![0xff; 9],
            },
        };
        assert_eq!(arrival_of(&garbled), None);
    }
}
