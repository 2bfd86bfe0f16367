//! Extracts runtimes and images from containerd's merged configuration. No I/O.

use std::collections::BTreeMap;
use std::path::Path;

use super::DEFAULT_RUNTIME;
use super::migration::{CRI, IMAGES, RUNTIME, Rules};
use super::origin::{Found, Origin};
use super::source::Reported;
use super::tree::Tree;

/// The runtimes, each with the snapshotter that it names.
type Runtimes = BTreeMap<String, Option<Found>>;

/// The keys of the values, which differ between 1.7 and later versions.
struct Places {
    images: &'static [&'static str],
    runtime: &'static [&'static str],
    sandbox_image: &'static [&'static str],
}

impl Places {
    fn of(rules: Rules) -> Self {
        match rules {
            Rules::V1_7 => Self {
                images: &["plugins", CRI, "containerd"],
                runtime: &["plugins", CRI, "containerd"],
                sandbox_image: &["plugins", CRI, "sandbox_image"],
            },
            Rules::V2_0 | Rules::V2_3 => Self {
                images: &["plugins", IMAGES],
                runtime: &["plugins", RUNTIME, "containerd"],
                sandbox_image: &["plugins", IMAGES, "pinned_images", "sandbox"],
            },
        }
    }
}

/// Returns the keys of the table with CRI's settings for image pulls.
pub(super) fn images_table(rules: Rules) -> &'static [&'static str] {
    Places::of(rules).images
}

pub(super) fn reported(tree: &Tree, rules: Rules) -> Reported {
    let places = Places::of(rules);
    let below = |table: &[&'static str], key| found(tree, &[table, &[key]].concat());
    let runtimes = tree.table(&[places.runtime, &["runtimes"]].concat());
    let pulls = tree.table(&[places.images, &["runtime_platforms"]].concat());
    let pulls = pulls.map(snapshotters).unwrap_or_default().into_iter();
    Reported {
        default_snapshotter: below(places.images, "snapshotter"),
        default_runtime: below(places.runtime, "default_runtime_name"),
        sandbox_image: found(tree, places.sandbox_image),
        runtimes: runtimes
            .map(snapshotters)
            .map(|runtimes| with_built_in(runtimes, rules)),
        pulls: pulls
            .filter_map(|(name, pull)| Some((name, pull?)))
            .collect(),
    }
}

/// Adds the built-in runtime, which containerd 2 keeps if its files add others.
fn with_built_in(mut runtimes: Runtimes, rules: Rules) -> Runtimes {
    if rules != Rules::V1_7 {
        runtimes.entry(DEFAULT_RUNTIME.to_owned()).or_default();
    }
    runtimes
}

/// Returns the `snapshotter` of each table.
fn snapshotters(tables: &Tree) -> Runtimes {
    let names = tables.keys().filter(|name| tables.table(&[name]).is_some());
    let snapshotter = |name: &str| (name.to_owned(), found(tables, &[name, "snapshotter"]));
    names.map(snapshotter).collect()
}

fn found(tree: &Tree, keys: &[&str]) -> Option<Found> {
    let (text, path): (_, &Path) = tree.text(keys)?;
    Found::some(Some(text.to_owned()), &Origin::File(path.to_owned()))
}
