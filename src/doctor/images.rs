//! How the images stand in the snapshotters that are ours to keep: the pause image, and all others
//! by what is wrong with them.

use std::collections::BTreeMap;

use crate::image::{self, Distinct};
use crate::unpack::{Error, Listing, State};

use super::finding::{Cure, Finding, Severity, word};
use super::scene::{Scene, Seen};

/// CRI's label on images that are never collected: the pause image is one.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// Names that are shown of many.
const SHOWN: usize = 3;

pub(super) async fn check(scene: &Scene) -> Vec<Finding> {
    let Some(seen) = scene.seen() else {
        return vec![];
    };
    let mut findings = Vec::new();
    let mut unreadable = BTreeMap::new();
    for (snapshotter, listing) in seen.kept(scene.config()) {
        let mut by_state: BTreeMap<&str, (State, Vec<&str>)> = BTreeMap::new();
        for known in &seen.images {
            match state(scene, known, listing).await {
                Ok(None) => {}
                Ok(Some(state)) if is_pause(seen, known) => {
                    findings.extend(pause(seen, &known.image.name, snapshotter, state));
                }
                Ok(Some(state)) => {
                    let of_state = by_state.entry(id(state).unwrap_or_default());
                    let (_, names) = of_state.or_insert((state, vec![]));
                    names.push(&known.image.name);
                }
                Err(why) => _ = unreadable.insert(known.image.name.as_str(), why),
            }
        }
        by_state.remove("");
        let found = by_state.iter();
        findings.extend(found.map(|(id, (state, names))| stand(id, *state, names, snapshotter)));
    }
    findings.extend(broken(&unreadable));
    findings
}

/// `None` for an image that is left to containerd, or that no node like this one could run.
async fn state(
    scene: &Scene,
    known: &Distinct,
    listing: &Listing,
) -> Result<Option<State>, String> {
    let engine = &scene.node.engine;
    match engine.look(&known.image, &known.names, listing).await {
        Ok(look) => Ok((!look.left_out).then_some(look.state)),
        Err(Error::Image(image::Error::MediaType { .. } | image::Error::NoPlatform { .. })) => {
            Ok(None)
        }
        Err(e) => Err(e.to_string()),
    }
}

/// By CRI's label, or as it is configured.
fn is_pause(seen: &Seen, known: &Distinct) -> bool {
    let is_pinned = known.image.labels.get(PINNED.0).map(String::as_str) == Some(PINNED.1);
    let configured = seen.handlers.sandbox_image();
    is_pinned || configured.is_some_and(|pause| known.names.contains(&pause.value))
}

fn ensure(images: &[&str], snapshotter: &str) -> String {
    let images: Vec<_> = images.iter().map(|name| word(name)).collect();
    format!(
        "nri-unpack ensure {} --snapshotter {snapshotter}",
        images.join(" ")
    )
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
            format!("the sandbox of a pod of handler {users} fails, is slow, or runs on a host's unpack; no NRI event tells of it in time"),
        )
        .advise("make it ready; the running plugin does so by itself, unless it is told not to")
        .run(ensure(&[name], snapshotter))
        .cure(Cure::Ensure {
            image: name.to_owned(),
            snapshotter: snapshotter.to_owned(),
        }),
    )
}

/// The finding's id, where the state is one: that an image is not there yet is none.
fn id(state: State) -> Option<&'static str> {
    match state {
        State::Ready | State::Missing | State::Unavailable => None,
        State::Partial => Some("images-partial"),
        State::Unlabelled => Some("images-unlabelled"),
        State::Mixed => Some("images-mixed"),
        State::Foreign => Some("images-foreign"),
        State::Unanchored => Some("images-unanchored"),
    }
}

fn stand(id: &'static str, state: State, names: &[&str], snapshotter: &str) -> Finding {
    let (severity, means) = match state {
        State::Mixed => (
            Severity::Error,
            "a container on it has a broken root file system: a host's unpack lies over layers that were left to the guest",
        ),
        State::Unlabelled => (
            Severity::Warning,
            "containerd has unpacked it without the labels that remote snapshotters need: pods fail, are slow, or run on a host's unpack",
        ),
        State::Foreign => (
            Severity::Warning,
            "its labels name another image, or a registry that it is not from, which a remote snapshotter or a guest would ask instead",
        ),
        State::Unanchored => (
            Severity::Warning,
            "the next garbage collection takes it away",
        ),
        _ => (
            Severity::Warning,
            "an unpack ended in the middle; the next container waits for the rest",
        ),
    };
    let found = format!(
        "{} {state} in {snapshotter}: {}",
        counted(names.len()),
        some(names)
    );
    Finding::new(id, severity, found, means)
        .advise("make it ready; what is in use is healed as far as it can be, and the rest when it is not used any more")
        .run(ensure(names, snapshotter))
}

fn broken(unreadable: &BTreeMap<&str, String>) -> Option<Finding> {
    let (first, why) = unreadable.first_key_value()?;
    let names: Vec<_> = unreadable.keys().copied().collect();
    let found = format!(
        "{} not readable: {} ({why})",
        counted(names.len()),
        some(&names)
    );
    Some(
        Finding::new(
            "images-unavailable",
            Severity::Warning,
            found,
            "containers of it fail: «content digest … not found»",
        )
        .advise("remove the image and pull it again")
        .run(format!("crictl rmi {}", word(first)))
        .run(format!("crictl pull {}", word(first))),
    )
}

fn counted(images: usize) -> String {
    match images {
        1 => "1 image is".to_owned(),
        n => format!("{n} images are"),
    }
}

fn some(names: &[&str]) -> String {
    let shown = names.iter().take(SHOWN).copied();
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_names_some_are_shown() {
        assert_eq!(some(&["a", "b"]), "a, b");
        assert_eq!(some(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    }
}
