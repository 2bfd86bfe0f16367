//! The work ahead over the in-memory containerd, on a clock that stands still unless a task waits.

mod arrivals;
mod demand;
mod eager;
mod limits;
mod pulls;
mod schedule;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::events::SnapshotRemove;
use containerd_client::services::v1::{ImageCreate, ImageDelete};
use prost::Message;

use nri::{Container, Plugin, Pod, RuntimeInfo};

use crate::config::Config;
use crate::containerd::fake::{Fake, sha256};
use crate::containerd::{Containerd, ErrorKind, Event, Image, Labels, Resource};
use crate::free_space;
use crate::hooks::Hooks;
use crate::image::IMAGE_REF;
use crate::unpack::{Action, ParentChain, Role, State};

use super::*;

const CONFIG: &str = "[containerd]\nconfig = \"/nonexistent/config.toml\"\n\
                      [handlers]\nlocal = \"erofs\"\nguest = \"nydus\"\n";
const NAME: &str = "r.example/app:1";

struct Bench {
    fake: Arc<Fake>,
    node: Arc<Node>,
    ahead: Arc<Ahead>,
}

impl Bench {
    /// A session has begun on this containerd, and all images were looked at.
    async fn on(fake: Fake, config: &str) -> Self {
        Self::with_free(fake, config, |_| Ok(100)).await
    }

    /// The same, with so much room.
    async fn with_free(fake: Fake, config: &str, free: free_space::Free) -> Self {
        let bench = Self::begun(fake, config, free);
        settle().await;
        bench
    }

    /// A session begins.
    fn begun(fake: Fake, config: &str, free: free_space::Free) -> Self {
        let fake = Arc::new(fake);
        let config = Config::from_toml(&format!("{CONFIG}{config}"), "test").unwrap();
        let node = Node::seeing(config, Role::Daemon, fake.clone(), free);
        node.refresh();
        let ahead = Ahead::begin(&node);
        Self { fake, node, ahead }
    }

    /// The hooks of a session of their own.
    async fn hooks(&self) -> Arc<Hooks> {
        let node = self.node.clone();
        let hooks = Hooks::new(Box::new(move |_| Ok(node.clone())));
        hooks.configure(RuntimeInfo::default()).await.unwrap();
        hooks
    }

    async fn state(&self, image: &Image, snapshotter: &str) -> State {
        let names = [image.name.clone()];
        let listing = self.node.engine.list(snapshotter).await.unwrap();
        let status = self.node.engine.image_status(image, &names, &listing).await;
        status.unwrap().state
    }

    /// Those of these images, each of one layer, that were prepared, in this order.
    fn prepared(&self, images: &[(&str, &Image)]) -> Vec<String> {
        let keys = self.fake.subjects("prepare snapshot");
        let name = |key: &String| {
            let mut images = images.iter();
            let one = images.find(|(_, image)| key.ends_with(&only_chain(image)));
            one.map(|(name, _)| (*name).to_owned())
        };
        keys.iter().filter_map(name).collect()
    }

    fn created(&self, name: &str) {
        let message = ImageCreate {
            name: name.to_owned(),
            ..ImageCreate::default()
        };
        self.emit("/images/create", &message);
    }

    fn removed(&self, name: &str) {
        let message = ImageDelete {
            name: name.to_owned(),
        };
        self.emit("/images/delete", &message);
    }

    /// containerd takes away what it was extracting the image's only layer into.
    fn unpack_failed(&self, image: &Image, snapshotter: &str, key: &str) {
        let message = SnapshotRemove {
            key: format!("{key} {}", only_chain(image)),
            snapshotter: snapshotter.to_owned(),
        };
        self.emit("/snapshot/remove", &message);
    }

    fn emit(&self, topic: &str, message: &impl Message) {
        self.fake.emit(&Event {
            topic: topic.to_owned(),
            payload: prost_types::Any {
                type_url: String::new(),
                value: message.encode_to_vec(),
            },
        });
    }
}

/// Longer than all pauses.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(30)).await;
}

fn pinned() -> Labels {
    Labels::from([("io.cri-containerd.pinned".to_owned(), "pinned".to_owned())])
}

const ALL: &str = "[snapshotters.erofs]\neager = \"all\"\n";

fn only_layer(name: &str) -> String {
    format!("the only layer of {name}")
}

/// One layer, which no other image has.
fn image_of_its_own_layer(fake: &Fake, name: &str) -> Image {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer = fake.document(media_type, only_layer(name).as_bytes());
    fake.image_from(name, &[layer])
}

/// The chain id of such an image.
fn only_chain(image: &Image) -> String {
    let blob = sha256(only_layer(&image.name).as_bytes());
    sha256(format!("what is in {blob}").as_bytes())
}
