//! Names of images: finds the record of a name that a user, a kubelet or an annotation gives, and
//! chooses the name for an image's labels.
//!
//! CRI keeps up to three records of an image: name with tag, name with digest, and the image id
//! (the config's digest). The given name may be none of them: a bare `busybox`, a short id, an id
//! without its algorithm.

mod grammar;

use crate::containerd::{Containerd, Image};

use super::Error;
pub(crate) use grammar::DOCKER_HUB;
use grammar::Reference;

/// Hex digits of a sha256 digest.
const ID_LENGTH: usize = 64;

/// The length of the shortest abbreviated id that is looked up. `crictl` and `docker` print at most 13
/// digits, and users copy fewer. A shorter text is more likely a name.
const SHORTEST_ID: usize = 7;

const ID_PREFIX: &str = "sha256:";

/// Finds the record of the image that `asked` names.
pub async fn find(containerd: &dyn Containerd, asked: &str) -> Result<Image, Error> {
    for name in spellings(asked) {
        match containerd.image(&name).await {
            Ok(image) => return Ok(image),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(failed(asked, e)),
        }
    }
    let short = asked.strip_prefix(ID_PREFIX).unwrap_or(asked);
    if !(SHORTEST_ID..ID_LENGTH).contains(&short.len()) || !is_hex(short) {
        return Err(Error::NotFound(asked.to_owned()));
    }
    let images = containerd.images().await.map_err(|e| failed(asked, e))?;
    let mut matching = images.into_iter().filter(|image| {
        let id = image.name.strip_prefix(ID_PREFIX);
        id.is_some_and(|id| id.starts_with(short))
    });
    match (matching.next(), matching.next()) {
        (Some(image), None) => Ok(image),
        (None, _) => Err(Error::NotFound(asked.to_owned())),
        (Some(_), Some(_)) => Err(Error::Ambiguous(asked.to_owned())),
    }
}

/// Returns the name of `image` and the names of all records of `images` that have the same target.
pub fn names_of(image: &Image, images: &[Image]) -> Vec<String> {
    let others = images.iter().filter(|other| other.name != image.name);
    let same = others.filter(|other| other.target.digest == image.target.digest);
    let names = std::iter::once(image).chain(same);
    names.map(|image| image.name.clone()).collect()
}

/// Whether a record's name can be pulled. An image id cannot, nor a name that does not begin with its
/// registry, such as those that an import makes (`import-2024-01-31@sha256:…`).
pub fn is_pullable(name: &str) -> bool {
    repository(name).is_some()
}

/// Returns the registry and the repository of a name that can be pulled: `docker.io/library/busybox`.
pub fn repository(name: &str) -> Option<String> {
    let reference = Reference::parse(name)?;
    (!is_id(name) && reference.to_string() == name).then(|| reference.name())
}

/// Returns the host of a registry without its port, as containerd writes it on the blobs that it pulls:
/// `registry.example` of `registry.example:5000`, `fd00::1` of `[fd00::1]:5000`.
pub fn hostname(registry: &str) -> &str {
    match registry.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((address, _)) => address,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    }
}

/// Returns the name for the labels of an image's layers: `asked` if it can be pulled and is one of the
/// image's names, else the best of these. A tag is better than a digest, and an id is never chosen. Of
/// equals the first in sorted order is chosen, so that the choice is stable.
///
/// `names` are the names of all records with the image's target. `None` if none of them can be pulled.
pub fn name_for_labels(asked: Option<&str>, names: &[String]) -> Option<String> {
    let asked = asked.and_then(|asked| {
        let mut spellings = spellings(asked).into_iter();
        spellings.find(|name| is_pullable(name) && names.contains(name))
    });
    asked.or_else(|| {
        let pullable = names.iter().filter(|name| is_pullable(name));
        pullable
            .min_by_key(|name| (name.contains('@'), *name))
            .cloned()
    })
}

/// Returns a reference with its registry and its tag spelled out, as CRI names its records. A text that is not
/// a reference is returned unchanged.
pub fn normal(name: &str) -> String {
    match Reference::parse(name) {
        Some(reference) if !is_id(name) => reference.to_string(),
        _ => name.to_owned(),
    }
}

/// Returns the name of the record that CRI's pull of this name makes: with its registry and its tag spelled out, and
/// without the tag if it has a digest as well.
pub fn record_name(asked: &str) -> String {
    match Reference::parse(asked) {
        Some(reference) if !is_id(asked) => reference
            .by_digest()
            .unwrap_or_else(|| reference.to_string()),
        _ => asked.to_owned(),
    }
}

/// Returns the names that a record of `asked` may have, the likeliest first.
fn spellings(asked: &str) -> Vec<String> {
    let mut names = vec![asked.to_owned()];
    if asked.len() == ID_LENGTH && is_hex(asked) {
        names.push(format!("{ID_PREFIX}{asked}"));
    } else if !is_id(asked)
        && let Some(reference) = Reference::parse(asked)
    {
        // CRI drops the tag of a name with tag and digest; other clients keep the name unchanged.
        names.push(reference.to_string());
        names.extend(reference.by_digest());
    }
    names.dedup();
    names
}

fn is_id(name: &str) -> bool {
    let hex = name.strip_prefix(ID_PREFIX);
    hex.is_some_and(|hex| hex.len() == ID_LENGTH && is_hex(hex))
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

fn failed(asked: &str, source: crate::containerd::Error) -> Error {
    Error::Containerd {
        image: asked.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
