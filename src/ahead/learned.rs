//! Repositories whose images containers use in a snapshotter: a new image of them is wanted there. The store is the
//! memory (`unpack/target/usage.rs`). What was unpacked ahead and never used teaches nothing, and after several such
//! images the repository is forgotten.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::image;
use crate::unpack::{Engine, Error, Listing, Usage};

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
    let images = in_order(images, None, &HashSet::new());
    let arriving = images.iter().find(|it| it.image.target.digest == target);
    // During its pull an image has no record, and is the newest.
    let arrived_at = arriving.map(|arriving| arriving.created_at);
    let mut others: Vec<_> = images
        .iter()
        .filter(|it| it.image.target.digest != target)
        .collect();
    others.sort_by_key(|image| Reverse(image.created_at));
    let mut walk = Walk::default();
    for other in others {
        let usage = match node.engine.usage(&other.image, snapshotter).await {
            Ok(usage) => usage,
            // A broken image says nothing about the others.
            Err(e) if e.unreachable().is_none() => continue,
            Err(e) => return Err(e),
        };
        match walk.decide(usage) {
            Some(false) => return Ok(false),
            Some(true) => return Ok(arrived_at.is_none_or(|at| at > other.created_at)),
            None => {}
        }
    }
    Ok(false)
}

/// Returns the target digests of the images of the store that are wanted in the snapshotter of a listing: of each
/// repository that containers have used there, the newest images that are newer than the newest used one.
pub(super) async fn wanted(
    engine: &Engine,
    store_images: &[StoreImage],
    listing: &Listing,
) -> HashSet<String> {
    let mut wanted = HashSet::new();
    // A new image of a known repository is a second image of it.
    for newer in used(engine, store_images, listing, 2).await.into_values() {
        wanted.extend(newer.into_iter().take(MAX_UNUSED));
    }
    wanted
}

/// Returns the repositories that containers have used in the snapshotter of a listing, and the target digests of the
/// images of each that are newer than its newest used image, the newest first. Looks only at repositories with so many
/// images or more.
pub(super) async fn used(
    engine: &Engine,
    store_images: &[StoreImage],
    listing: &Listing,
    at_least: usize,
) -> HashMap<String, Vec<String>> {
    let mut used = HashMap::new();
    if !listing.has_anchors() {
        return used;
    }
    for (repository, mut images) in by_repository(store_images) {
        if images.len() < at_least {
            continue;
        }
        // A hook waits until this task yields.
        tokio::task::yield_now().await;
        images.sort_by_key(|image| Reverse(image.created_at));
        let (mut walk, mut newer) = (Walk::default(), vec![]);
        for image in images {
            let usage = engine.usage_in(&image.image, listing).await;
            match walk.decide(usage.unwrap_or(Usage::Absent)) {
                Some(true) => {
                    // Of the same time: it is not known which one is newer.
                    newer.retain(|it: &&StoreImage| it.created_at > image.created_at);
                    let digests = newer.into_iter().map(|it| it.image.target.digest.clone());
                    used.insert(repository, digests.collect());
                    break;
                }
                Some(false) => break,
                None => newer.push(image),
            }
        }
    }
    used
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
    let mut by_repository: HashMap<String, Vec<&StoreImage>> = HashMap::new();
    for image in store_images.iter().filter(|image| !image.is_pinned) {
        for repository in repositories(image) {
            by_repository.entry(repository).or_default().push(image);
        }
    }
    by_repository
}

/// Returns the repositories of an image, each once.
pub(super) fn repositories(image: &StoreImage) -> impl Iterator<Item = String> {
    let names = image.names.iter().map(String::as_str);
    let repositories: HashSet<_> = names.filter_map(image::repository).collect();
    repositories.into_iter()
}
