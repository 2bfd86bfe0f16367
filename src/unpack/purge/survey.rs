//! Finds what the plugin has left. Changes nothing.
//!
//! Each list of containerd is read once, as a stream, and only what belongs to the plugin is kept.

use std::collections::{BTreeMap, HashSet};

use super::judgement::{Configs, Names, SnapshotterSurvey, Store, Working};
use super::meaning::meaning;
use super::seen::Seen;
use super::{Fate, Leftover, LeftoverKind};
use crate::containerd::{self, Blob, Containerd, Snapshotter};
use crate::image::{Digest, distinct};
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::{ANCHOR, OWN_LABELS};
use crate::unpack::target::images::Images;

/// Finds what the plugin has left.
pub(crate) struct Survey<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) images: &'a Images,
    pub(crate) leases: &'a Leases,
}

impl Survey<'_> {
    /// Returns all leftovers.
    pub(crate) async fn run(&self) -> Result<Vec<Leftover>, containerd::Error> {
        let Content { configs, blobs } = self.content().await?;
        let names = self.names(&configs, &blobs).await?;
        let listed = self.containerd.snapshotters().await?;
        let mut snapshotters = BTreeMap::from_iter(
            listed
                .into_iter()
                .map(|listed| (listed.name.clone(), Some(listed))),
        );
        // What containerd has no snapshotter for is kept by labels alone.
        let named = configs.values().flat_map(BTreeMap::keys);
        for snapshotter in named.filter_map(|key| meaning(key).snapshotter()) {
            snapshotters.entry(snapshotter.to_owned()).or_default();
        }
        let mut surveys = Vec::new();
        for (name, listed) in &snapshotters {
            let read = match listed {
                None => Ok(Seen::default()),
                Some(Snapshotter {
                    init_error: Some(why),
                    ..
                }) => Err(why.clone()),
                Some(snapshotter) => self.seen(snapshotter, &configs).await,
            };
            surveys.push(SnapshotterSurvey::new(name, read));
        }
        // Leases are read after all snapshots: what a process has prepared by then is known by its lease, and what it
        // prepares later is in no list.
        let leases = self.leases.of_this_program(self.containerd).await?;
        let store = Store {
            working: self.working(&leases).await?,
            configs,
            names,
        };
        let mut found: Vec<_> = leases.iter().map(lease).collect();
        found.extend(surveys.iter().flat_map(|it| it.leftovers(&store)));
        found.extend(store.other_labels());
        Ok(found)
    }

    /// Reads the snapshots of a snapshotter.
    async fn seen(&self, snapshotter: &Snapshotter, configs: &Configs) -> Result<Seen, String> {
        let name = snapshotter.name.as_str();
        let seen = Seen::read(self.containerd, name).await;
        let mut seen = seen.map_err(|e| e.to_string())?;
        if snapshotter.proxy_address().is_none() {
            seen.forget_all_marks();
        }
        let anchor = format!("{ANCHOR}{name}");
        let tops = configs.values().filter_map(|labels| labels.get(&anchor));
        seen.forget_false_marks(self.containerd, name, tops).await;
        Ok(seen)
    }

    /// Returns what the leases of processes that still run tell of.
    async fn working(&self, leases: &[(String, bool)]) -> Result<Working, containerd::Error> {
        let mut working = Working::default();
        for (lease, _) in leases.iter().filter(|(_, is_left)| !is_left) {
            working.leases.insert(lease.clone());
            match self.containerd.lease_resources(lease).await {
                Err(e) if e.is_not_found() => {}
                held => {
                    let held = held?.into_iter().map(|held| held.id);
                    working.snapshots.extend(held);
                }
            }
        }
        Ok(working)
    }

    async fn content(&self) -> Result<Content, containerd::Error> {
        let mut content = Content::default();
        let each = &mut |mut blob: Blob| {
            content.blobs.insert(Digest::of(&blob.digest));
            blob.labels
                .retain(|key, _| key.starts_with(ANCHOR) || key.starts_with(OWN_LABELS));
            if !blob.labels.is_empty() {
                content.configs.insert(blob.digest, blob.labels);
            }
        };
        self.containerd.blobs(each).await?;
        Ok(content)
    }

    /// Reads the names of all images, and which of those that have labels lack blobs. A broken image has no name.
    async fn names(
        &self,
        configs: &Configs,
        blobs: &HashSet<Digest>,
    ) -> Result<Names, containerd::Error> {
        let mut names = Names::default();
        for image in distinct(self.containerd.images().await?) {
            let manifest = match self.images.readable(&image.image).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) => continue,
                Err(e) => {
                    names.unread = Some(e.to_string());
                    continue;
                }
            };
            let name = image.image.name;
            let chain = manifest.chain_id().map(str::to_owned);
            names
                .by_chain
                .extend(chain.map(|chain| (chain, name.clone())));
            if configs.contains_key(&manifest.config) {
                let mut layers = manifest.layers.iter().map(|layer| &layer.blob.digest);
                let missing = layers.find(|blob| !blobs.contains(&Digest::of(blob)));
                let missing = missing.map(|blob| (manifest.config.clone(), blob.clone()));
                names.missing.extend(missing);
            }
            names.by_config.insert(manifest.config.clone(), name);
        }
        Ok(names)
    }
}

/// What is kept of the content store.
#[derive(Default)]
struct Content {
    configs: Configs,
    blobs: HashSet<Digest>,
}

fn lease((id, is_left): &(String, bool)) -> Leftover {
    let stays = || {
        let why =
            "its process runs, or ran in another process namespace: containerd ends it after a day";
        Fate::Stays(why.to_owned())
    };
    Leftover {
        kind: LeftoverKind::Lease,
        snapshotter: None,
        name: id.clone(),
        label: None,
        config: None,
        image: None,
        fate: if *is_left { Fate::Removable } else { stays() },
    }
}
