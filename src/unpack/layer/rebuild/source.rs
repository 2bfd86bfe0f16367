//! Finds the directory in which overlayfs keeps a layer's own files, from the mounts of a view of the layer.
//!
//! Views of other snapshotters may look the same and are not used: a view of native shows all layers in one
//! directory, and a view of a remote snapshotter may show content that is not on this node.

use std::path::PathBuf;

use crate::containerd::{self, Containerd, Mount};

use super::{Failure, SOURCE};
use crate::unpack::snapshotter::lease::Lease;
use crate::unpack::snapshotter::temporary;

/// The number of attempts to make a view. A view of the same name may exist: another process made it and is
/// about to remove it, or a crash left it.
const VIEW_TRIES: usize = 3;

/// The mount option with which overlayfs keeps its own attributes in the `user` namespace of attributes:
/// containerd sets it if it runs in a user namespace.
const USERXATTR: &str = "userxattr";

/// A layer's own directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Whether it is mounted with the option `userxattr`.
    pub(super) userxattr: bool,
}

/// Returns the directory of the committed layer `chain_id`, which the lease must hold. `is_lowest` says that no
/// layer is below it.
pub(super) async fn directory(
    containerd: &dyn Containerd,
    lease: &Lease,
    chain_id: &str,
    is_lowest: bool,
) -> Result<Directory, Failure> {
    let mounts = view(containerd, lease, chain_id).await?;
    own_directory(&mounts, is_lowest)
        .ok_or_else(|| Failure::Mounts(mounts.iter().map(|mount| mount.r#type.clone()).collect()))
}

/// Returns the mounts of a view of the layer. The view itself is removed before this returns; the directory
/// remains because the lease holds the layer.
async fn view(
    containerd: &dyn Containerd,
    lease: &Lease,
    chain_id: &str,
) -> Result<Vec<Mount>, Failure> {
    let key = temporary::view(chain_id);
    let mut taken = None;
    for _ in 0..VIEW_TRIES {
        let viewed = containerd.view(lease.id(), SOURCE, &key, chain_id).await;
        // The view is not needed any more: its mounts are in the answer. One of another process is not needed
        // either, and a lost answer leaves one too.
        lease.remove(containerd, SOURCE, &key).await;
        match viewed {
            Ok(mounts) => return Ok(mounts),
            Err(e) if e.is_not_found() => return Err(Failure::NotThere),
            Err(e) if e.already_exists() => taken = Some(e),
            Err(e) => return Err(e.into()),
        }
    }
    Err(taken.map_or(Failure::NotThere, containerd::Error::into))
}

/// Returns the layer's own directory from the mounts of its view. overlayfs shows the lowest layer as a bind
/// mount, and lists the directories of other layers with the highest first. The lowest layer's directory was never
/// an upper directory, so overlayfs wrote no attributes into it.
fn own_directory(mounts: &[Mount], is_lowest: bool) -> Option<Directory> {
    let [mount] = mounts else {
        return None;
    };
    let path = match (mount.r#type.as_str(), is_lowest) {
        ("bind", true) => mount.source.as_str(),
        ("overlay", false) => {
            let mut options = mount.options.iter();
            let lower = options.find_map(|option| option.strip_prefix("lowerdir="))?;
            let (highest, below) = lower.split_once(':')?;
            // A backslash escapes a colon: then the name is cut in the middle, and another directory would be
            // read.
            (!highest.contains('\\') && !below.is_empty()).then_some(highest)?
        }
        _ => return None,
    };
    Some(Directory {
        path: path.into(),
        userxattr: mount.options.iter().any(|option| option == USERXATTR),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            r#type: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_mount_options_tell_which_attributes_overlayfs_uses() {
        for (options, expected) in [
            (&["lowerdir=/s/2/fs:/s/1/fs"][..], false),
            (&["userxattr", "lowerdir=/s/2/fs:/s/1/fs"], true),
        ] {
            let mounts = [mount("overlay", "overlay", options)];
            let found = own_directory(&mounts, false).unwrap();
            assert_eq!(found.userxattr, expected);
        }
    }

    #[test]
    fn the_highest_directory_is_the_layers_own() {
        let bind = mount("bind", "/s/1/fs", &["ro", "rbind"]);
        let two = mount(
            "overlay",
            "overlay",
            &["index=off", "lowerdir=/s/2/fs:/s/1/fs"],
        );
        let escaped = mount("overlay", "overlay", &["lowerdir=/a\\:b/2:/a\\:b/1"]);
        let one = mount("overlay", "overlay", &["lowerdir=/s/2/fs"]);
        let none = mount("overlay", "overlay", &["upperdir=/s/2/fs"]);
        let fuse = mount("fuse.x", "/s/2/fs", &[]);
        for (mounts, is_lowest, expected) in [
            (vec![bind.clone()], true, Some("/s/1/fs")),
            // native has all layers in one directory.
            (vec![bind.clone()], false, None),
            (vec![two.clone()], false, Some("/s/2/fs")),
            (vec![two.clone()], true, None),
            (vec![escaped], false, None),
            (vec![one], false, None),
            (vec![none], false, None),
            (vec![fuse], true, None),
            (vec![two, bind], false, None),
            (vec![], true, None),
        ] {
            let found = own_directory(&mounts, is_lowest);
            let path = found.map(|directory| directory.path);
            assert_eq!(path.as_deref(), expected.map(Path::new), "{mounts:?}");
        }
    }
}
