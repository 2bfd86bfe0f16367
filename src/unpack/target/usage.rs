//! Whether a container has used an image in a snapshotter. The store itself remembers it, in the labels of the image's
//! config blob: the anchor shows that the image was unpacked there, and a second label whether a container has used it
//! since. An image that containerd unpacked has the anchor only: containerd unpacks for a container.

use crate::containerd::{self, Containerd, Image, Labels};
use crate::image::{self, Manifest};

use super::images::Images;
use crate::unpack::chain::error::Error;
use crate::unpack::snapshotter::listing::{Listing, USAGE, is_anchor};

/// The value of the label of an image that a container has used.
pub(crate) const USED: &str = "used";

const UNUSED: &str = "unused";

/// Whether a container has used an image in a snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The image is not unpacked there.
    Absent,
    /// The plugin has unpacked it, and no container has used it.
    Unused,
    /// A container has used it.
    Used,
}

/// Returns the usage of an image in a snapshotter.
pub(crate) async fn of(images: &Images, image: &Image, snapshotter: &str) -> Result<Usage, Error> {
    let Some(ends) = images.ends(image).await? else {
        return Ok(Usage::Absent);
    };
    let config = images.containerd().blob(&ends.config).await;
    let config = config.map_err(|e| failed(image, snapshotter, e))?;
    Ok(usage(&config.labels, snapshotter, ends.chain.as_deref()))
}

/// Returns the same from a listing.
pub(crate) async fn listed(
    images: &Images,
    image: &Image,
    listing: &Listing,
) -> Result<Usage, Error> {
    let Some(ends) = images.ends(image).await? else {
        return Ok(Usage::Absent);
    };
    let labels = listing.anchors(&ends.config);
    Ok(labels.map_or(Usage::Absent, |labels| {
        usage(labels, &listing.snapshotter, ends.chain.as_deref())
    }))
}

/// Records that a container uses the image of this reference. Writes nothing if that is recorded.
pub(crate) async fn record(
    images: &Images,
    reference: &str,
    snapshotter: &str,
) -> Result<(), Error> {
    let containerd = images.containerd();
    let image = image::find(containerd, reference).await?;
    let manifest = images.manifest(&image).await?;
    let recorded = write(containerd, snapshotter, &manifest).await;
    recorded.map_err(|e| failed(&image, snapshotter, e))
}

/// Reads the usage from the labels of the image's config blob.
fn usage(labels: &Labels, snapshotter: &str, chain: Option<&str>) -> Usage {
    let is_its_anchor = |(key, value): (&String, &String)| {
        is_anchor(key, snapshotter) && Some(value.as_str()) == chain
    };
    if !labels.iter().any(is_its_anchor) {
        return Usage::Absent;
    }
    match labels.get(&key(snapshotter)) {
        Some(value) if value == UNUSED => Usage::Unused,
        _ => Usage::Used,
    }
}

/// Returns the label for an image that gets its first anchor in a snapshotter. Empty if the labels of the config blob
/// tell its usage already.
pub(crate) fn unused(labels: &Labels, snapshotter: &str) -> Labels {
    let key = key(snapshotter);
    let is_known = labels.contains_key(&key) || labels.keys().any(|it| is_anchor(it, snapshotter));
    match is_known {
        true => Labels::new(),
        false => Labels::from([(key, UNUSED.to_owned())]),
    }
}

/// Records that the plugin replaces the image's chain: if containerd has set the anchor, a container has used the image.
pub(crate) async fn record_replaced(
    containerd: &dyn Containerd,
    snapshotter: &str,
    config: &str,
) -> Result<(), containerd::Error> {
    let key = key(snapshotter);
    let labels = match containerd.blob(config).await {
        Ok(config) => config.labels,
        // The image was removed meanwhile.
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e),
    };
    let is_anchored = labels.keys().any(|it| is_anchor(it, snapshotter));
    if labels.contains_key(&key) || !is_anchored {
        return Ok(());
    }
    let label = Labels::from([(key, USED.to_owned())]);
    containerd.label_blob(config, label).await
}

async fn write(
    containerd: &dyn Containerd,
    snapshotter: &str,
    manifest: &Manifest,
) -> Result<(), containerd::Error> {
    let key = key(snapshotter);
    let config = containerd.blob(&manifest.config).await?;
    let is_recorded = match config.labels.get(&key) {
        Some(value) => value == USED,
        // An image that containerd has unpacked counts as used. One without an anchor is being unpacked.
        None => config.labels.keys().any(|it| is_anchor(it, snapshotter)),
    };
    if is_recorded {
        return Ok(());
    }
    let label = Labels::from([(key, USED.to_owned())]);
    containerd.label_blob(&manifest.config, label).await
}

fn failed(image: &Image, snapshotter: &str, source: containerd::Error) -> Error {
    Error::Containerd {
        image: image.name.clone(),
        snapshotter: snapshotter.to_owned(),
        source,
    }
}

/// Returns the key of the label of a snapshotter.
pub(crate) fn key(snapshotter: &str) -> String {
    format!("{USAGE}{snapshotter}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::containerd::fake::Fake;

    const EROFS: &str = "erofs";

    fn anchor(suffix: &str, chain: &str) -> Labels {
        let key = format!("containerd.io/gc.ref.snapshot.{EROFS}{suffix}");
        Labels::from([(key, chain.to_owned())])
    }

    #[tokio::test]
    async fn the_labels_of_the_config_tell_the_usage() {
        let fake = Arc::new(Fake::default());
        let image = fake.image("r.example/app:1", 2);
        let images = Images::new(fake.clone());
        let manifest = images.manifest(&image).await.unwrap();
        let chain = manifest.chain_id().unwrap();
        let labels = async || fake.blob(&manifest.config).await.unwrap().labels;
        let read = async || usage(&labels().await, EROFS, Some(chain));
        assert_eq!(read().await, Usage::Absent);

        // By the plugin, ahead.
        let mut made = unused(&labels().await, EROFS);
        made.extend(anchor("", chain));
        fake.label_blob(&manifest.config, made).await.unwrap();
        assert_eq!(read().await, Usage::Unused);
        record(&images, &image.name, EROFS).await.unwrap();
        assert_eq!(of(&images, &image, EROFS).await.unwrap(), Usage::Used);
        assert_eq!(read().await, Usage::Used);
        // The chain was replaced.
        fake.label_blob(&manifest.config, anchor("", ""))
            .await
            .unwrap();
        assert_eq!(read().await, Usage::Absent);
        assert!(unused(&labels().await, EROFS).is_empty());
        // Recorded already: nothing is written.
        fake.calls();
        record(&images, &image.name, EROFS).await.unwrap();
        assert!(fake.subjects("label blob").is_empty());

        // By containerd, for a container.
        let by_containerd = anchor("", chain);
        assert_eq!(usage(&by_containerd, EROFS, Some(chain)), Usage::Used);
        assert!(unused(&by_containerd, EROFS).is_empty());
        assert_eq!(usage(&by_containerd, "ero", Some(chain)), Usage::Absent);
        // The chain of another image.
        let other = anchor("", "sha256:other");
        assert_eq!(usage(&other, EROFS, Some(chain)), Usage::Absent);
    }
}
