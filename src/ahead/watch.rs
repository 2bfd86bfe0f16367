//! containerd's events, turned into arrivals. The stream is asked for again whenever it breaks, and a
//! reconcile finds what was missed meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::containerd::Error;
use crate::containerd::events::{self, StoreEvent};
use crate::retry;

use super::Ahead;
use super::origin::Extraction;
use super::queue::Arrival;

/// What containerd names the snapshot of a layer that is being extracted: `extract-<unique> <chain id>`.
const EXTRACTION: &str = "extract-";

/// What our own are named.
const OUR_EXTRACTION: &str = "extract-nri-unpack-";

/// containerd answers a subscription with its first event. After this long it has begun, as a rule, and
/// what a reconcile does not find any more is in the stream.
const SUBSCRIBED: Duration = Duration::from_millis(100);

/// Goes on until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    let mut pauses = retry::pauses();
    loop {
        let subscribed = async {
            tokio::time::sleep(SUBSCRIBED).await;
            ahead.queue.reconcile();
        };
        let mut heard = false;
        let ended = {
            let mut listening = pin!(listen(&ahead, &mut heard));
            // One that has failed by then has not begun.
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
        if heard {
            pauses = retry::pauses();
        }
        if let Some(pause) = pauses.next() {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn listen(ahead: &Ahead, heard: &mut bool) -> Result<(), Error> {
    let containerd = ahead.node.containerd.as_ref();
    let mut events = containerd.events(&events::ALL).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        if !std::mem::replace(heard, true) {
            // Now it has begun for certain, and may have begun later than was thought.
            ahead.queue.reconcile();
        }
        match StoreEvent::of(&event) {
            // At once: whatever else waits, a chain may not be taken for ready any more.
            Some(StoreEvent::ImageRemoved(name)) => ahead.image_removed(&name),
            Some(event) => {
                if let Some(arrival) = arrival(event, ahead.pulls.removals()) {
                    ahead.queue.push(arrival);
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// What an event tells after so many removals; `None` where that is nothing of ours.
fn arrival(event: StoreEvent, removals: u64) -> Option<Arrival> {
    match event {
        StoreEvent::Image(name) => Some(Arrival::Image(name)),
        StoreEvent::ImageRemoved(_) => None,
        StoreEvent::Prepared { snapshotter, key } => {
            let chain = extracted(&key)?;
            Some(Arrival::Layer(Extraction {
                snapshotter,
                key,
                chain,
                removals,
            }))
        }
        // One that succeeds is committed, and not removed.
        StoreEvent::Removed { snapshotter, key } => {
            let chain = extracted(&key)?;
            Some(Arrival::Failed { snapshotter, chain })
        }
    }
}

/// The chain id of the layer that containerd extracts into the snapshot `key`; `None` for our own
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
    fn events_tell_what_arrives() {
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
        let failed = Arrival::Failed {
            snapshotter: "erofs".to_owned(),
            chain: "sha256:c".to_owned(),
        };
        for (event, expected) in [
            (event(CREATED, &created), Some(Arrival::Image(name))),
            (event("/images/delete", &created), None),
            (prepared("extract-12-ab sha256:c"), Some(layer)),
            (prepared("extract-nri-unpack-1-2-3.0 sha256:c"), None),
            (prepared("a-container"), None),
            (removed("extract-12-ab sha256:c"), Some(failed)),
            (removed("extract-nri-unpack-1-2-3.0 sha256:c"), None),
            (removed("a-container"), None),
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
