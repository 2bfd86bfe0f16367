//! The data that the checks read, gathered once: the configurations of the plugin and of containerd, and
//! containerd's answers. A snapshotter that does not answer within a deadline has an error in place of its listing.

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
use crate::unpack::{Listing, Lists};

/// The deadline for the listing of a snapshotter. A healthy one takes milliseconds.
const LIST_DEADLINE: Duration = Duration::from_secs(4);

/// The annotation of a pod by which containerd determines the handler that an image is pulled for; from 2.0 on only with
/// `runtime_platforms`.
pub(super) const PULL_HANDLER: &str = "io.containerd.cri.runtime-handler";

/// The node at the time of the examination.
pub(super) struct Inventory {
    pub(super) node: Arc<Node>,
    config: Arc<Config>,
    pub(super) files: FileConfig,
    /// Whether containerd has another mount namespace than this process.
    pub(super) sees_other_files: bool,
    pub(super) seen: Result<Seen, containerd::Error>,
}

/// The answers of containerd.
pub(super) struct Seen {
    /// containerd's version.
    pub(super) version: String,
    /// CRI's running configuration, if it reports one.
    pub(super) cri: Option<Value>,
    pub(super) handlers: Arc<Handlers>,
    /// All snapshotters that containerd lists.
    pub(super) snapshotters: Vec<Snapshotter>,
    /// All plugins of any type that containerd lists.
    pub(super) plugins: Vec<ListedPlugin>,
    /// The size of the state of pods and containers that NRI sends to a plugin, if CRI reports it.
    pub(super) state_bytes: usize,
    /// The handlers that pods name in [`PULL_HANDLER`].
    pub(super) pulls_for: BTreeSet<String>,
    pub(super) images: Vec<Distinct>,
    /// The listing of each snapshotter that a handler uses, by its name.
    pub(super) listings: BTreeMap<String, Result<Listing, String>>,
}

impl Inventory {
    pub(super) async fn read(node: Arc<Node>) -> Self {
        let config = node.config();
        let seen = Seen::read(&node).await;
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

    /// Returns the answers of containerd; `None` if it does not answer.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref().ok()
    }

    /// Returns the first two numbers of containerd's version, if it is known.
    pub(super) fn version(&self) -> Option<(u64, u64)> {
        containerd::numbers(&self.seen()?.version)
    }
}

impl Seen {
    async fn read(node: &Node) -> Result<Self, containerd::Error> {
        let containerd = node.containerd.as_ref();
        let version = containerd.version().await?;
        // If CRI is off, containerd's files are used instead.
        let cri = containerd.cri_config().await.ok().flatten();
        let handlers = node.resolve().await?;
        let snapshotters = containerd.snapshotters().await?;
        let images = distinct(containerd.images().await?);
        let (mut lists, mut listings) = (node.engine.lists(), BTreeMap::new());
        for name in handlers.snapshotters() {
            let is_up = |s: &&Snapshotter| s.name == name && s.init_error.is_none();
            if snapshotters.iter().any(|s| is_up(&s)) {
                listings.insert(name.to_owned(), list(&mut lists, name).await);
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

    /// Returns the handlers that use a snapshotter, as text.
    pub(super) fn users(&self, snapshotter: &str) -> String {
        let users = self.handlers.iter();
        let users = users.filter(|(_, resolved)| resolved.snapshotter == snapshotter);
        let users: Vec<_> = users.map(|(handler, _)| handler).collect();
        users.join(", ")
    }

    /// Iterates over the managed snapshotters that answer, with their listings.
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

    /// Whether a snapshotter is a proxy plugin.
    pub(super) fn is_proxy(&self, name: &str) -> bool {
        self.snapshotter(name)
            .is_some_and(|s| s.proxy_address().is_some())
    }

    pub(super) fn snapshotter(&self, name: &str) -> Option<&Snapshotter> {
        self.snapshotters.iter().find(|s| s.name == name)
    }
}

async fn list(lists: &mut Lists<'_>, snapshotter: &str) -> Result<Listing, String> {
    let list = lists.read(snapshotter);
    match tokio::time::timeout(LIST_DEADLINE, list).await {
        Ok(listed) => listed.map_err(|e| e.message),
        Err(_) => Err(format!("no answer within {LIST_DEADLINE:?}")),
    }
}
