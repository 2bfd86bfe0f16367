//! Checks the state of images in the managed snapshotters: of the pause image, and of all others by their state.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use crate::ahead::is_pinned;
use crate::config::MissingContent;
use crate::containerd::ErrorKind;
use crate::ctr::Ctr;
use crate::image::{self, Distinct};
use crate::unpack::{Error, ImageStatus, Listing, REBUILT_FROM, State};

use super::finding::{Cure, Finding, Severity, some, word};
use super::inventory::{Inventory, Seen};
use super::permissions;
use super::pulls::PULLS_FROM;

/// The last part of a pause image's repository, for a containerd that does not report its pause image.
const PAUSE: &str = "pause";

/// The maximum number of names in a finding.
const SHOWN: usize = 3;

/// An image and its state in one snapshotter.
struct There<'a> {
    distinct: &'a Distinct,
    status: ImageStatus,
    /// The chain ids, bottom first.
    chain: Vec<String>,
}

/// What the images of one snapshotter share.
struct Shared<'a> {
    /// The layers of images that are unpacked completely.
    whole: HashSet<&'a str>,
    /// The layers of ready images, which garbage collection keeps.
    anchored: HashSet<&'a str>,
    /// The snapshotter that layers can be rebuilt from.
    rebuilt: Option<&'a Listing>,
    /// Whether missing blobs are fetched again when they are needed.
    are_pulled: bool,
}

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let mut findings = Vec::new();
    let mut unreadable = Unreadable::default();
    for (snapshotter, listing) in seen.kept(inventory.config()) {
        let mut there = Vec::new();
        for distinct in &seen.images {
            match status_of(inventory, distinct, listing).await {
                Ok(found) => there.push(found),
                Err(e) => unreadable.add(&distinct.image.name, &e),
            }
        }
        let shared = Shared::of(inventory, seen, &there);
        let mut by_state: BTreeMap<&str, (State, Vec<&str>)> = BTreeMap::new();
        for it in there.iter().filter(|it| !it.status.is_excluded) {
            let name = it.distinct.image.name.as_str();
            if is_pause(seen, it.distinct) {
                findings.extend(pause(seen, name, snapshotter, it.status.state));
            } else if let Some(id) = id(it.status.state)
                && !shared.explains(it)
            {
                let (_, names) = by_state.entry(id).or_insert((it.status.state, vec![]));
                names.push(name);
            }
        }
        let found = by_state.iter();
        findings.extend(
            found.map(|(id, (state, names))| of_state(inventory, id, *state, names, snapshotter)),
        );
    }
    findings.extend(unreadable.findings(inventory));
    findings
}

async fn status_of<'a>(
    inventory: &Inventory,
    distinct: &'a Distinct,
    listing: &Listing,
) -> Result<There<'a>, Error> {
    let engine = &inventory.node.engine;
    Ok(There {
        distinct,
        status: engine
            .image_status(&distinct.image, &distinct.names, listing)
            .await?,
        chain: engine.chain(&distinct.image).await?,
    })
}

impl There<'_> {
    fn layers(&self) -> impl Iterator<Item = &str> {
        self.chain.iter().map(String::as_str)
    }
}

impl<'a> Shared<'a> {
    fn of(inventory: &Inventory, seen: &'a Seen, there: &'a [There<'a>]) -> Self {
        let layers = |wanted: &dyn Fn(&ImageStatus) -> bool| {
            let images = there.iter().filter(|it| wanted(&it.status));
            images.flat_map(There::layers).collect()
        };
        let config = inventory.config();
        let means = &config.unpack.missing_content;
        let source = seen
            .listings
            .get(REBUILT_FROM)
            .and_then(|listing| listing.as_ref().ok());
        let source = source.filter(|_| {
            let root = seen
                .snapshotter(REBUILT_FROM)
                .and_then(|s| s.exports.get("root"));
            let is_readable = |root: &String| permissions::unreadable(Path::new(root)).is_none();
            means.contains(&MissingContent::Rebuild) && root.is_some_and(is_readable)
        });
        Self {
            whole: layers(&|status| status.committed == status.layers),
            anchored: layers(&|status| status.state == State::Ready),
            rebuilt: source,
            are_pulled: means.contains(&MissingContent::Pull)
                && inventory
                    .version()
                    .is_some_and(|version| version >= PULLS_FROM),
        }
    }

    /// Whether the state of an image is only a result of shared layers, or is repaired when the image is
    /// needed.
    fn explains(&self, it: &There<'_>) -> bool {
        match it.status.state {
            State::Partial => it
                .layers()
                .take(it.status.committed)
                .all(|layer| self.whole.contains(layer)),
            State::Unanchored => it
                .layers()
                .last()
                .is_some_and(|top| self.anchored.contains(top)),
            State::Unavailable => {
                let mut missing = it.layers().skip(it.status.committed);
                let is_rebuilt = |layer| self.rebuilt.is_some_and(|source| source.has(layer));
                self.are_pulled || missing.all(is_rebuilt)
            }
            _ => false,
        }
    }
}

/// Whether an image is the pause image: the configured one, else a pinned image with a matching name. The name matters,
/// since some tools pin all images that they import.
fn is_pause(seen: &Seen, distinct: &Distinct) -> bool {
    let mut names = distinct.names.iter().map(|name| image::normal(name));
    match seen.handlers.sandbox_image() {
        Some(pause) => {
            let pause = image::normal(&pause.value);
            names.any(|name| name == pause)
        }
        None => {
            let is_called_so = |name: String| {
                let repository = image::repository(&name).unwrap_or_default();
                repository.rsplit('/').next() == Some(PAUSE)
            };
            is_pinned(&distinct.image) && names.any(is_called_so)
        }
    }
}

/// Images that cannot be read, by the reason.
#[derive(Default)]
struct Unreadable<'a> {
    /// A document is not in the content store.
    gone: BTreeMap<&'a str, String>,
    /// A document was changed on this node.
    changed: BTreeMap<&'a str, String>,
    /// A document is wrong.
    wrong: BTreeMap<&'a str, String>,
}

impl<'a> Unreadable<'a> {
    fn add(&mut self, name: &'a str, error: &Error) {
        match error {
            // Not a container image, or none for the platform of this node.
            Error::Image(image::Error::MediaType { .. } | image::Error::NoPlatform { .. }) => {}
            Error::Image(image::Error::Containerd { source, .. })
                if source.kind == ErrorKind::NotFound =>
            {
                self.gone.insert(name, error.to_string());
            }
            Error::Image(image::Error::Changed { .. }) => {
                self.changed.insert(name, error.to_string());
            }
            // A call failed, or the image was removed since: the state of its documents is unknown.
            Error::Image(image::Error::Containerd { .. } | image::Error::NotFound(_)) => {}
            Error::Image(_) => _ = self.wrong.insert(name, error.to_string()),
            _ => {}
        }
    }

    fn findings(&self, inventory: &Inventory) -> Vec<Finding> {
        const MEANS: &str =
            "containers of it fail: «content digest … not found», or containerd rejects a document";
        let finding = |id, of: &BTreeMap<&str, String>| {
            let names: Vec<_> = of.keys().copied().collect();
            let why = of.values().next()?;
            let found = format!(
                "{} not readable: {} ({why})",
                counted(names.len()),
                some(&names, SHOWN)
            );
            Some(Finding::new(id, Severity::Warning, found, MEANS))
        };
        let names: Vec<_> = self.gone.keys().copied().collect();
        let gone = finding("images-unavailable", &self.gone);
        let gone = gone.map(|finding| fetch(inventory, finding, &names));
        let wrong = finding("images-broken", &self.wrong);
        let wrong = wrong.map(|finding| {
            let finding = finding.advise(
                "build and push the image again, and pull it: a pull of the unchanged image fetches the same document; \
                 remove a record that has only an id, since an earlier pull has left it",
            );
            let ctr = Ctr::of(inventory.config());
            let ids = self.wrong.keys().filter(|name| !image::is_pullable(name));
            ids.take(SHOWN)
                .fold(finding, |finding, id| finding.run(ctr.remove_image(id)))
        });
        let changed = finding("images-changed", &self.changed);
        let changed = changed.map(|finding| {
            let finding = finding.advise("remove the image, and pull it again");
            let names = self.changed.keys().filter(|name| image::is_pullable(name));
            names.take(SHOWN).fold(finding, |finding, name| {
                let name = word(name);
                let finding = finding.run(format!("crictl rmi {name}"));
                finding.run(format!("crictl pull {name}"))
            })
        });
        let all = [gone, changed, wrong].into_iter();
        all.flatten().collect()
    }
}

/// Adds the commands that fetch missing blobs. They change neither the image's record nor its names.
fn fetch(inventory: &Inventory, finding: Finding, names: &[&str]) -> Finding {
    let ctr = Ctr::of(inventory.config());
    let finding = finding.advise(
        "fetch the missing blobs: existing blobs and the image stay (`--user` for a registry that needs credentials)",
    );
    let named = names
        .iter()
        .filter(|name| image::is_pullable(name))
        .take(SHOWN);
    named.fold(finding, |finding, name| finding.run(ctr.fetch(name)))
}

fn pause(seen: &Seen, name: &str, snapshotter: &str, state: State) -> Option<Finding> {
    if state == State::Ready {
        return None;
    }
    let users = seen.users(snapshotter);
    Some(
        Finding::new(
            "pause-not-ready",
            Severity::Error,
            format!("the pause image {name} is {state} in {snapshotter}"),
            format!("the sandbox of a pod of handler {users} fails, is slow, or runs on layers that the host has unpacked; NRI has no event before it is created"),
        )
        .advise("make it ready; a running plugin does so by itself, unless its configuration excludes it")
        .ensure(&[name], snapshotter)
        .cure(Cure::Ensure {
            images: vec![name.to_owned()],
            snapshotter: snapshotter.to_owned(),
        }),
    )
}

/// Returns the id of the finding for a state; `None` if the state is no finding of this check.
fn id(state: State) -> Option<&'static str> {
    match state {
        // The check of lost snapshots reports them.
        State::Ready | State::Missing | State::Lost => None,
        State::Unavailable => Some("images-unavailable"),
        State::Partial => Some("images-partial"),
        State::Unlabelled => Some("images-unlabelled"),
        State::Mixed => Some("images-mixed"),
        State::Foreign => Some("images-foreign"),
        State::Unanchored => Some("images-unanchored"),
    }
}

fn of_state(
    inventory: &Inventory,
    id: &'static str,
    state: State,
    names: &[&str],
    snapshotter: &str,
) -> Finding {
    let (severity, means) = match state {
        State::Unavailable => (
            Severity::Warning,
            "the blob of a layer is gone, and the layer cannot be rebuilt on this node: the first container of it there fails, «content digest … not found»",
        ),
        State::Mixed => (
            Severity::Error,
            "a container on it has a broken root file system: layers that the host has unpacked lie over guest-pulled layers",
        ),
        State::Unlabelled => (
            Severity::Warning,
            "containerd has unpacked it without the labels that remote snapshotters need: pods fail, are slow, or run on layers that the host has unpacked",
        ),
        State::Foreign => (
            Severity::Warning,
            "its labels name another image, or a registry that it is not from; a remote snapshotter or a guest would pull from there",
        ),
        State::Unanchored => (Severity::Warning, "the next garbage collection removes it"),
        _ => (
            Severity::Warning,
            "an unpack has ended early; the next container waits for the missing layers",
        ),
    };
    let found = format!(
        "{} {state} in {snapshotter}: {}",
        counted(names.len()),
        some(names, SHOWN)
    );
    let finding = Finding::new(id, severity, found, means);
    if state == State::Unavailable {
        return fetch(inventory, finding, names);
    }
    finding
        .advise("make it ready; a chain in use is repaired as far as possible, and completely when nothing uses it")
        .ensure(names, snapshotter)
}

fn counted(images: usize) -> String {
    match images {
        1 => "1 image is".to_owned(),
        n => format!("{n} images are"),
    }
}
