//! An engine on the in-memory containerd, with one image.

use std::sync::Arc;

use crate::containerd::fake::Fake;
use crate::containerd::{Image, SnapshotKind};
use crate::image::{Manifest, Manifests, Platform};

use super::super::{
    ContentFallback, Engine, LabelPolicy, Outcome, Parallel, Request, Role, State, Ticket, Urgency,
    Want,
};
use super::{EROFS, NAME, PARALLEL, default_policy};

pub(super) struct Bench {
    pub(super) fake: Arc<Fake>,
    pub(super) engine: Arc<Engine>,
    pub(super) image: Image,
    pub(super) manifest: Arc<Manifest>,
    /// Bottom first.
    pub(super) chain_ids: Vec<String>,
    pub(super) snapshotter: &'static str,
}

impl Bench {
    pub(super) async fn new(layers: usize) -> Self {
        Self::of("application/vnd.oci.image.layer.v1.tar+gzip", layers).await
    }

    /// Makes a bench with layers of this media type.
    pub(super) async fn of(media_type: &str, layers: usize) -> Self {
        let fake = Fake::default();
        let image = fake.image_of(NAME, media_type, layers);
        Self::on(fake, image, EROFS, PARALLEL).await
    }

    /// Makes a bench on this containerd, of one of its images in one of its snapshotters.
    pub(super) async fn on(
        fake: Fake,
        image: Image,
        snapshotter: &'static str,
        parallel: Parallel,
    ) -> Self {
        let fake = Arc::new(fake);
        let manifests = Manifests::new(Platform::of_this_node());
        let manifest = manifests.read(fake.as_ref(), &image).await.unwrap();
        let layers = manifest.layers.iter();
        let bench = Self {
            engine: engine(&fake, parallel, default_policy()),
            chain_ids: layers.map(|layer| layer.chain_id.clone()).collect(),
            fake,
            image,
            manifest,
            snapshotter,
        };
        bench.fake.calls();
        bench
    }

    /// Replaces the engine by one with another policy, on the same containerd.
    pub(super) fn set_policy(&mut self, policy: Box<dyn LabelPolicy>) {
        self.engine = engine(&self.fake, PARALLEL, policy);
    }

    pub(super) fn request(&self, want: Want, urgency: Urgency) -> Ticket {
        self.engine.ensure(Request {
            want,
            snapshotter: self.snapshotter.to_owned(),
            urgency,
        })
    }

    /// Asks for an image.
    pub(super) fn ask(&self, name: &str) -> Ticket {
        self.request(Want::Image(name.to_owned()), Urgency::Asked)
    }

    /// Asks for the image of a container that is being created on this chain.
    pub(super) fn create(&self, key: &str, chain: &str, name: Option<&str>) -> Ticket {
        let want = Want::Container {
            key: key.to_owned(),
            chain: chain.to_owned(),
            name: name.map(str::to_owned),
            left_to_containerd: false,
        };
        self.request(want, Urgency::Creation)
    }

    pub(super) async fn ensure(&self) -> Outcome {
        self.ask(&self.image.name).outcome().await
    }

    pub(super) async fn state(&self) -> State {
        self.state_of(&self.image).await
    }

    pub(super) async fn state_of(&self, image: &Image) -> State {
        let names = [image.name.clone()];
        let listing = self.engine.list(self.snapshotter).await.unwrap();
        let status = self.engine.image_status(image, &names, &listing).await;
        status.unwrap().state
    }

    pub(super) fn top(&self) -> &str {
        self.manifest.chain_id().unwrap()
    }

    pub(super) fn config(&self) -> &str {
        &self.manifest.config
    }

    /// Commits the lowest `count` layers without labels, as containerd's own unpack does.
    pub(super) fn commit_without_labels(&self, count: usize) {
        for (i, chain_id) in self.chain_ids.iter().enumerate().take(count) {
            let parent = i.checked_sub(1).map(|below| self.chain_ids[below].as_str());
            self.fake
                .commit_unlabelled(self.snapshotter, chain_id, parent);
        }
    }

    /// Asserts that only committed snapshots remain, and no lease.
    pub(super) fn assert_nothing_left(&self) {
        assert!(self.fake.lease_ids().is_empty());
        for snapshot in self.fake.all(self.snapshotter) {
            assert_eq!(snapshot.kind, SnapshotKind::Committed, "{}", snapshot.name);
        }
    }
}

fn engine(fake: &Arc<Fake>, parallel: Parallel, policy: Box<dyn LabelPolicy>) -> Arc<Engine> {
    let fallback = ContentFallback::default();
    Engine::new(fake.clone(), Role::Daemon, parallel, policy, fallback)
}
