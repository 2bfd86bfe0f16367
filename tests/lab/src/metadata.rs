//! containerd's metadata in CRI's namespace, for comparison: which objects a step has changed, or that it
//! changed none.
//!
//! Update times are included, so that a write of identical values shows, too.

use std::collections::BTreeMap;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snapshots_api;
use tonic::Status;

use crate::store::{Labels, Store, namespaced, sorted};

/// The type of the plugins that are snapshotters.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// What stands before the time of the last update.
const TIME: &str = ", updated ";

/// containerd's metadata at one moment: image records, blobs, unfinished blobs, leases with their resources,
/// and the snapshots of every snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// Returns the differences to a later one, one per line: `+` for new, `-` for removed, both for changed.
    pub fn changes(&self, later: &Metadata) -> Vec<String> {
        let only_in = |one: &Metadata, other: &Metadata, sign: char| -> Vec<(String, String)> {
            let missing = one.0.iter().filter(|(k, v)| other.0.get(*k) != Some(*v));
            missing
                .map(|(k, v)| (k.clone(), format!("{sign} {k}: {v}")))
                .collect()
        };
        let mut changes = only_in(self, later, '-');
        changes.extend(only_in(later, self, '+'));
        // The sort is stable: the older of two changed lines stays first.
        changes.sort_by(|(one, _), (other, _)| one.cmp(other));
        changes.into_iter().map(|(_, line)| line).collect()
    }

    /// Returns the same without update times: a write of identical values does not show.
    #[must_use]
    pub fn without_times(&self) -> Self {
        let timeless = |text: &String| match text.rsplit_once(TIME) {
            Some((values, _)) => values.to_owned(),
            None => text.clone(),
        };
        let all = self.0.iter();
        Self(all.map(|(k, v)| (k.clone(), timeless(v))).collect())
    }

    /// Returns the objects, one per line: the kind and the name, then the values.
    pub fn lines(&self) -> Vec<String> {
        let line = |(name, values): (&String, &String)| format!("{name}: {values}");
        self.0.iter().map(line).collect()
    }
}

impl Store {
    /// Reads everything.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn metadata(&self) -> Result<Metadata, Status> {
        let mut all = BTreeMap::new();
        self.add_images(&mut all).await?;
        self.add_content(&mut all).await?;
        self.add_leases(&mut all).await?;
        for snapshotter in self.snapshotters().await? {
            self.add_snapshots(&snapshotter, &mut all).await?;
        }
        Ok(Metadata(all))
    }

    /// Returns the working snapshotters, containerd's own and proxy plugins.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn snapshotters(&self) -> Result<Vec<String>, Status> {
        let request = namespaced(api::PluginsRequest {
            filters: vec![format!("type=={SNAPSHOTTER}")],
        });
        let plugins = self.client.introspection().plugins(request).await?;
        let plugins = plugins.into_inner().plugins.into_iter();
        Ok(plugins
            .filter(|p| p.init_err.is_none())
            .map(|p| p.id)
            .collect())
    }

    /// Returns the labels of every blob, by digest.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn content(&self) -> Result<BTreeMap<String, Labels>, Status> {
        let infos = self.content_infos().await?.into_iter();
        Ok(infos.map(|i| (i.digest, sorted(i.labels))).collect())
    }

    async fn content_infos(&self) -> Result<Vec<api::Info>, Status> {
        let request = namespaced(api::ListContentRequest::default());
        let mut stream = self.client.content().list(request).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(response) = stream.message().await? {
            infos.extend(response.info);
        }
        Ok(infos)
    }

    async fn add_images(&self, all: &mut BTreeMap<String, String>) -> Result<(), Status> {
        let request = namespaced(api::ListImagesRequest::default());
        for image in self
            .client
            .images()
            .list(request)
            .await?
            .into_inner()
            .images
        {
            let target = image.target.unwrap_or_default().digest;
            let updated = image.updated_at.unwrap_or_default();
            let labels = sorted(image.labels);
            all.insert(
                format!("image {}", image.name),
                format!("{target} {labels:?}{TIME}{updated}"),
            );
        }
        Ok(())
    }

    async fn add_content(&self, all: &mut BTreeMap<String, String>) -> Result<(), Status> {
        for info in self.content_infos().await? {
            let updated = info.updated_at.unwrap_or_default();
            let labels = sorted(info.labels);
            all.insert(
                format!("content {}", info.digest),
                format!("{labels:?}{TIME}{updated}"),
            );
        }
        let request = namespaced(api::ListStatusesRequest::default());
        let statuses = self.client.content().list_statuses(request).await?;
        for status in statuses.into_inner().statuses {
            all.insert(
                format!("ingest {}", status.r#ref),
                format!("{} of {} bytes", status.offset, status.total),
            );
        }
        Ok(())
    }

    async fn add_leases(&self, all: &mut BTreeMap<String, String>) -> Result<(), Status> {
        for (id, labels) in self.leases().await? {
            let request = namespaced(api::ListResourcesRequest { id: id.clone() });
            let held = self.client.leases().list_resources(request).await?;
            let held = held.into_inner().resources.into_iter();
            let mut held: Vec<String> = held.map(|r| format!("{} {}", r.r#type, r.id)).collect();
            held.sort();
            all.insert(format!("lease {id}"), format!("{labels:?}, holds {held:?}"));
        }
        Ok(())
    }

    async fn add_snapshots(
        &self,
        snapshotter: &str,
        all: &mut BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let request = namespaced(snapshots_api::ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            ..Default::default()
        });
        let mut stream = self.client.snapshots().list(request).await?.into_inner();
        while let Some(response) = stream.message().await? {
            for info in response.info {
                let kind = info.kind().as_str_name();
                let updated = info.updated_at.unwrap_or_default();
                let (parent, labels) = (&info.parent, sorted(info.labels));
                all.insert(
                    format!("snapshot {snapshotter} {}", info.name),
                    format!("{kind} on {parent:?} {labels:?}{TIME}{updated}"),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_have_signs() {
        let metadata = |entries: &[(&str, &str)]| {
            let owned = |&(k, v): &(&str, &str)| (k.to_owned(), v.to_owned());
            Metadata(entries.iter().map(owned).collect())
        };
        let before = metadata(&[
            ("image a:1", "same"),
            ("image b:1", "old"),
            ("lease c", "gone"),
        ]);
        let after = metadata(&[
            ("image a:1", "same"),
            ("image b:1", "new"),
            ("content d", ""),
        ]);
        assert_eq!(
            before.changes(&after),
            [
                "+ content d: ",
                "- image b:1: old",
                "+ image b:1: new",
                "- lease c: gone"
            ]
        );
        assert!(before.changes(&before).is_empty());
        let touched = metadata(&[("image a:1", "x, updated 2")]);
        let before = metadata(&[("image a:1", "x, updated 1")]);
        assert_eq!(before.changes(&touched).len(), 2);
        assert_eq!(before.without_times(), touched.without_times());
        assert_eq!(before.without_times().lines(), ["image a:1: x"]);
    }
}
