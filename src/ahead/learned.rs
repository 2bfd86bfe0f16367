//! Repositories whose images containers use in a snapshotter: a new image of them is wanted there. The store is the
//! memory (`unpack/target/usage.rs`). What was unpacked ahead and never used teaches nothing, and after several such
//! images the repository is forgotten.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::image;
use crate::unpack::{Error, Listing, Usage};

use super::Ahead;
use super::eager::{StoreImage, in_order};

/// The number of newest images of a repository without a use after which its images are no longer unpacked ahead.
const MAX_UNUSED: usize = 5;

/// Whether an image that arrives is wanted in a snapshotter because containers there have used its repository.
pub(super) async fn is_wanted(
    ahead: &Ahead,
    snapshotter: &str,
    name: &str,
    target: &str,
) -> Result<bool, Error> {
    let Some(repository) = image::repository(name) else {
        return Ok(false);
    };
    let node = &ahead.node;
    let mut images = match node.containerd.images().await {
        Ok(images) => images,
        Err(source) => {
            let image = name.to_owned();
            return Err(image::Error::Containerd { image, source }.into());
        }
    };
    images.retain(|image| image::repository(&image.name).as_ref() == Some(&repository));
    let mut others = in_order(images, None, &HashSet::new());
    others.retain(|image| image.image.target.digest != target);
    others.sort_by_key(|image| Reverse(image.created_at));
    let mut walk = Walk::default();
    for other in others {
        let usage = match node.engine.usage(&other.image, snapshotter).await {
            Ok(usage) => usage,
            // A broken image says nothing about the others.
            Err(e) if e.unreachable().is_none() => continue,
            Err(e) => return Err(e),
        };
        if let Some(wanted) = walk.decide(usage) {
            return Ok(wanted);
        }
    }
    Ok(false)
}

/// Returns the target digests of the images of the store that are wanted in the snapshotter of a listing because
/// containers there have used an older image of their repository.
pub(super) async fn wanted(
    ahead: &Ahead,
    store_images: &[StoreImage],
    listing: &Listing,
) -> HashSet<String> {
    let mut wanted = HashSet::new();
    if !listing.has_anchors() {
        return wanted;
    }
    for mut images in by_repository(store_images).into_values() {
        // A new image of a known repository is a second image of it.
        if images.len() < 2 {
            continue;
        }
        images.sort_by_key(|image| Reverse(image.created_at));
        let (mut walk, mut new) = (Walk::default(), vec![]);
        for image in images {
            let usage = ahead.node.engine.usage_in(&image.image, listing).await;
            let usage = usage.unwrap_or(Usage::Absent);
            match walk.decide(usage) {
                Some(true) => {
                    // Of the same time: it is not known which one is newer.
                    new.retain(|newer: &&StoreImage| newer.created_at > image.created_at);
                    let digests = new.iter().map(|newer| newer.image.target.digest.clone());
                    wanted.extend(digests);
                    break;
                }
                Some(false) => break,
                None if usage == Usage::Absent => new.push(image),
                None => {}
            }
        }
    }
    wanted
}

/// Walks over the images of one repository, from the newest on.
#[derive(Default)]
struct Walk {
    unused: usize,
}

impl Walk {
    /// Returns whether newer images are wanted; `None` if older images decide.
    fn decide(&mut self, usage: Usage) -> Option<bool> {
        match usage {
            Usage::Used => Some(true),
            Usage::Unused => {
                self.unused += 1;
                (self.unused == MAX_UNUSED).then_some(false)
            }
            Usage::Absent => None,
        }
    }
}

fn by_repository(store_images: &[StoreImage]) -> HashMap<String, Vec<&StoreImage>> {
    let mut repositories: HashMap<String, Vec<&StoreImage>> = HashMap::new();
    for image in store_images.iter().filter(|image| !image.is_pinned) {
        let names: HashSet<_> = image
            .names
            .iter()
            .filter_map(|n| image::repository(n))
            .collect();
        for repository in names {
            repositories.entry(repository).or_default().push(image);
        }
    }
    repositories
}
