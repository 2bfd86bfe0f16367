//! What the plugin has left in containerd, and its removal when the plugin leaves the node.
//!
//! containerd's own objects stay: images, blobs, and the chains that it has unpacked for a container or would have. No
//! snapshot is removed that something uses. A chain is taken away by its anchor: without it, containerd's garbage
//! collection removes what no container, no lease and no other image keeps.

mod judgement;
mod meaning;
mod removal;
mod seen;
mod survey;

use std::fmt;

use serde::Serialize;

pub(crate) use removal::Removal;
pub(crate) use survey::Survey;

/// A kind of thing that the plugin leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftoverKind {
    /// The lease of an unpack, which its process has not deleted.
    Lease,
    /// The writable snapshot of an unpack, a view, or a probe.
    TemporarySnapshot,
    /// A chain beside the image's own one, onto which a container was moved.
    PrivateChain,
    /// A chain that the plugin has unpacked, and that containerd alone would not have: no container has used it, or a
    /// guest pulls its layers.
    Copy,
    /// A label of this program on a blob or a snapshot.
    Label,
}

impl fmt::Display for LeftoverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lease => "lease",
            Self::TemporarySnapshot => "temporary-snapshot",
            Self::PrivateChain => "private-chain",
            Self::Copy => "copy",
            Self::Label => "label",
        })
    }
}

/// Whether a leftover can be removed, and whether it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It can be removed.
    Removable,
    /// It was removed.
    Removed,
    /// It stays for this reason, which is no error: something uses it.
    Stays(String),
    /// It could not be removed, for this reason.
    Failed(String),
}

impl Fate {
    /// Returns the word for it in tables and JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Removable => "removable",
            Self::Removed => "removed",
            Self::Stays(_) => "stays",
            Self::Failed(_) => "failed",
        }
    }

    /// Returns the reason; empty if there is none.
    pub fn reason(&self) -> &str {
        match self {
            Self::Removable | Self::Removed => "",
            Self::Stays(reason) | Self::Failed(reason) => reason,
        }
    }
}

/// Something that the plugin has left in containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its kind.
    pub kind: LeftoverKind,
    /// The snapshotter that it is in, or that it is about.
    pub snapshotter: Option<String>,
    /// The id of a lease, the key of a snapshot, the top layer of a chain, or the digest of the blob or the key of the
    /// snapshot that has a label.
    pub name: String,
    /// The key of the label; for a chain that of its anchor.
    pub label: Option<String>,
    /// The config blob that has the label.
    pub config: Option<String>,
    /// A name of the image that it belongs to.
    pub image: Option<String>,
    /// Whether it can be removed, and whether it was.
    pub fate: Fate,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// Collects the names that the code gives to what stays in containerd.
    fn collect(folder: &Path, names: &mut BTreeSet<String>) {
        const BEGINNINGS: [&str; 5] = [
            "nri-unpack/",
            "nri-unpack-",
            "nri-unpack ",
            "/nri-unpack",
            "extract-nri-unpack",
        ];
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_stem().is_some_and(|name| name == "tests") {
                continue;
            }
            if path.is_dir() {
                collect(&path, names);
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let literals = code.split('"').skip(1).step_by(2);
            let ours = literals.filter(|it| BEGINNINGS.iter().any(|begin| it.starts_with(begin)));
            names.extend(ours.map(|name| name.trim_end().to_owned()));
        }
    }

    #[test]
    fn the_list_of_what_stays_is_complete() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut names = BTreeSet::new();
        collect(&root.join("src/unpack"), &mut names);
        assert!(names.len() > 12, "{names:?}");
        let page = fs::read_to_string(root.join("docs/upgrade.md")).unwrap();
        for name in names {
            assert!(
                page.contains(&format!("`{name}")),
                "docs/upgrade.md does not list {name}"
            );
        }
    }
}
