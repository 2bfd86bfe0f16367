//! Groups the records of the image store by image.

use std::collections::BTreeMap;

use crate::containerd::Image;

use super::name_for_labels;

/// An image of the store with all of its names.
#[derive(Clone, Debug, PartialEq)]
pub struct Distinct {
    /// The record with the best name, by the order of [`name_for_labels`].
    pub image: Image,
    /// The names of all records of the image.
    pub names: Vec<String>,
}

/// Returns each image once, sorted by the best of its names.
pub fn distinct(images: Vec<Image>) -> Vec<Distinct> {
    let mut all: Vec<_> = by_target(images).map(one).collect();
    all.sort_by(|a, b| a.image.name.cmp(&b.image.name));
    all
}

/// The records of each image, sorted by the image's digest.
pub(crate) fn by_target(images: Vec<Image>) -> impl Iterator<Item = Vec<Image>> {
    let mut by_target: BTreeMap<String, Vec<Image>> = BTreeMap::new();
    for image in images {
        let of_target = by_target.entry(image.target.digest.clone()).or_default();
        of_target.push(image);
    }
    by_target.into_values()
}

fn one(mut images: Vec<Image>) -> Distinct {
    let names: Vec<_> = images.iter().map(|image| image.name.clone()).collect();
    let best = name_for_labels(None, &names);
    let at = names.iter().position(|name| Some(name) == best.as_ref());
    let image = images.swap_remove(at.unwrap_or(0));
    Distinct { image, names }
}
