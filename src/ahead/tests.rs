//! Tests of the work ahead with the in-memory containerd and a paused clock.

mod arrivals;
mod demand;
mod eager;
mod learned;
mod limits;
mod lost;
mod panics;
mod pulls;
mod replacements;
mod schedule;
mod workers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::events::SnapshotRemove;
use containerd_client::services::v1::{ImageCreate, ImageDelete};
use prost::Message;

use nri::{Container, Plugin, Pod, RuntimeInfo};

use crate::config::Config;
use crate::containerd::fake::{Fake, sha256};
use crate::containerd::{Containerd, ErrorKind, Event, Image, Labels, Resource};
use crate::free_space::{Measure, Space};
use crate::hooks::Hooks;
use crate::image::{IMAGE_REF, PROXY_MODE};
use crate::unpack::{Action, ParentChain, Request, Role, State, Want};

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
    /// Begins a session on this containerd, and waits until all images have been checked.
    async fn on(fake: Fake, config: &str) -> Self {
        Self::with_free(fake, config, |_| percent(100)).await
    }

    /// Does the same with this free space.
    async fn with_free(fake: Fake, config: &str, measure: Measure) -> Self {
        let bench = Self::begun(fake, config, measure);
        settle().await;
        bench
    }

    /// Begins a session, and does not wait.
    fn begun(fake: Fake, config: &str, measure: Measure) -> Self {
        let fake = Arc::new(fake);
        let config = Config::from_toml(&format!("{CONFIG}{config}"), "test").unwrap();
        let node = Node::seeing(config, Role::Daemon, fake.clone(), measure);
        node.refresh();
        let ahead = Ahead::begin(&node);
        Self { fake, node, ahead }
    }

    /// Returns the hooks of another session.
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

    /// Returns the names of those images whose layers were prepared, in order. Each image has one layer.
    fn prepared(&self, images: &[(&str, &Image)]) -> Vec<String> {
        let keys = self.fake.subjects("prepare snapshot");
        let name = |key: &String| {
            let mut images = images.iter();
            let one = images.find(|(_, image)| key.ends_with(&only_chain(image)));
            one.map(|(name, _)| (*name).to_owned())
        };
        keys.iter().filter_map(name).collect()
    }

    fn emit_created(&self, name: &str) {
        let message = ImageCreate {
            name: name.to_owned(),
            ..ImageCreate::default()
        };
        self.emit("/images/create", &message);
    }

    fn emit_removed(&self, name: &str) {
        let message = ImageDelete {
            name: name.to_owned(),
        };
        self.emit("/images/delete", &message);
    }

    /// Emits the event of containerd that removes an extraction snapshot of the image's only layer.
    fn emit_unpack_failed(&self, image: &Image, snapshotter: &str, key: &str) {
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

/// Returns the space of a large file system of which so much is free.
fn percent(free: u64) -> rustix::io::Result<Space> {
    Ok(Space {
        free: free << 30,
        total: 100 << 30,
    })
}

/// Waits longer than all pauses.
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

/// Adds an image with one layer, which no other image has.
fn image_with_own_layer(fake: &Fake, name: &str) -> Image {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer = fake.document(media_type, only_layer(name).as_bytes());
    fake.image_from(name, &[layer])
}

/// Returns the chain ID of such an image.
fn only_chain(image: &Image) -> String {
    let blob = sha256(only_layer(&image.name).as_bytes());
    sha256(format!("what is in {blob}").as_bytes())
}
