//! What the checks look at, gathered once: the configuration of both sides, and what containerd
//! answers. A snapshotter that does not answer costs what it would have said, and a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::config::Config;
use crate::containerd::{self, ListedPlugin, Snapshotter};
use crate::handlers::{FileConfig, Handlers};
use crate::image::{Distinct, distinct};
use crate::node::Node;
use crate::peer;
use crate::policy;
use crate::unpack::Listing;

/// How long a snapshotter may take to list what it has. One that is well takes milliseconds.
const LIST_DEADLINE: Duration = Duration::from_secs(4);

/// By this annotation of a pod containerd 1.7 knows which handler an image is pulled for.
pub(super) const PULL_HANDLER: &str = "io.containerd.cri.runtime-handler";

/// The node, as it was when it was looked at.
pub(super) struct Inventory {
    pub(super) node: Arc<Node>,
    config: Arc<Config>,
    pub(super) files: FileConfig,
    /// Whether containerd has other mounts than this process.
    pub(super) sees_other_files: bool,
    pub(super) seen: Result<Seen, containerd::Error>,
}

/// What containerd answered.
pub(super) struct Seen {
    /// containerd's.
    pub(super) version: String,
    /// CRI's running configuration, where it shows one.
    pub(super) cri: Option<Value>,
    pub(super) handlers: Arc<Handlers>,
    /// All that containerd lists.
    pub(super) snapshotters: Vec<Snapshotter>,
    /// Of any kind.
    pub(super) plugins: Vec<ListedPlugin>,
    /// What NRI has to tell a plugin of pods and containers, where CRI says it.
    pub(super) state_bytes: usize,
    /// The handlers that pods name for their pulls.
    pub(super) pulls_for: BTreeSet<String>,
    pub(super) images: Vec<Distinct>,
    /// What each snapshotter that a handler uses has, by its name.
    pub(super) listings: BTreeMap<String, Result<Listing, String>>,
}

impl Inventory {
    pub(super) async fn look(node: Arc<Node>) -> Self {
        let config = node.config();
        let seen = Seen::look(&node).await;
        let version = seen.as_ref().ok();
        let version = version.and_then(|seen| containerd::numbers(&seen.version));
        let files = FileConfig::read(config.containerd.config.as_ref(), version);
        let sees_other_files =
            peer::has_other_mounts(peer::pid(config.containerd.socket.as_ref()).await);
        Self {
            node,
            config,
            files,
            sees_other_files,
            seen,
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// What containerd answered, if it did.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref().ok()
    }

    /// containerd's version by its first two numbers, if it is known.
    pub(super) fn version(&self) -> Option<(u64, u64)> {
        containerd::numbers(&self.seen()?.version)
    }
}

impl Seen {
    async fn look(node: &Node) -> Result<Self, containerd::Error> {
        let containerd = node.containerd.as_ref();
        let version = containerd.version().await?;
        // Where CRI is off, containerd's files have to do.
        let cri = containerd.cri_config().await.ok().flatten();
        let handlers = node.resolve().await?;
        let snapshotters = containerd.snapshotters().await?;
        let images = distinct(containerd.images().await?);
        let mut listings = BTreeMap::new();
        for name in handlers.snapshotters() {
            let is_up = |s: &&Snapshotter| s.name == name && s.init_error.is_none();
            if snapshotters.iter().any(|s| is_up(&s)) {
                listings.insert(name.to_owned(), list(node, name).await);
            }
        }
        Ok(Self {
            version,
            cri: cri.and_then(|json| serde_json::from_str(&json).ok()),
            handlers,
            snapshotters,
            plugins: containerd.plugins().await?,
            state_bytes: containerd.cri_state_bytes().await.unwrap_or_default(),
            pulls_for: containerd
                .pod_annotation(PULL_HANDLER)
                .await
                .unwrap_or_default(),
            images,
            listings,
        })
    }

    /// The handlers that use a snapshotter, for people to read.
    pub(super) fn users(&self, snapshotter: &str) -> String {
        let users = self.handlers.iter();
        let users = users.filter(|(_, resolved)| resolved.snapshotter == snapshotter);
        let users: Vec<_> = users.map(|(handler, _)| handler).collect();
        users.join(", ")
    }

    /// The snapshotters that answer and whose images are ours to keep, with what they have.
    pub(super) fn kept<'a>(
        &'a self,
        config: &'a Config,
    ) -> impl Iterator<Item = (&'a str, &'a Listing)> {
        let default = self.handlers.default_name();
        let kept = self
            .listings
            .iter()
            .filter(move |(name, _)| policy::is_kept(config, name, default));
        kept.filter_map(|(name, listing)| Some((name.as_str(), listing.as_ref().ok()?)))
    }

    /// Whether another process makes the snapshots of this one.
    pub(super) fn is_proxy(&self, name: &str) -> bool {
        self.snapshotter(name)
            .is_some_and(|s| s.proxy_address().is_some())
    }

    pub(super) fn snapshotter(&self, name: &str) -> Option<&Snapshotter> {
        self.snapshotters.iter().find(|s| s.name == name)
    }
}

async fn list(node: &Node, snapshotter: &str) -> Result<Listing, String> {
    let list = node.engine.list(snapshotter);
    match tokio::time::timeout(LIST_DEADLINE, list).await {
        Ok(listed) => listed.map_err(|e| e.message),
        Err(_) => Err(format!("no answer within {LIST_DEADLINE:?}")),
    }
}
