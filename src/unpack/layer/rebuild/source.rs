//! Where overlayfs keeps a layer's own files: the directory, from what a view of the layer mounts.
//!
//! Other snapshotters' views may look the same and are not taken: those of native show all layers in
//! one, those of a remote snapshotter show what may not be on this node at all.

use std::path::PathBuf;

use crate::containerd::{self, Containerd, Mount};

use super::{Failure, SOURCE};
use crate::unpack::snapshotter::lease::Lease;

/// Attempts of `View`. Another process may have a view of the same name between two calls, or a crash has left
/// one.
const VIEW_TRIES: usize = 3;

/// The option with which overlayfs keeps what it needs for itself in attributes of the user: where containerd
/// runs in a user namespace.
const USERXATTR: &str = "userxattr";

/// A layer's own directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// It is mounted with that option.
    pub(super) userxattr: bool,
}

/// The directory of the committed layer `chain_id`, which the lease has to hold. `is_lowest` says
/// whether anything lies below.
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

/// What a view of the layer mounts. The view itself is gone when this returns: the directory stays
/// because the lease holds the layer.
async fn view(
    containerd: &dyn Containerd,
    lease: &Lease,
    chain_id: &str,
) -> Result<Vec<Mount>, Failure> {
    let key = Lease::view_key(chain_id);
    let mut taken = None;
    for _ in 0..VIEW_TRIES {
        let viewed = containerd.view(lease.id(), SOURCE, &key, chain_id).await;
        // A view of this name, of this process or another, is not needed any more: its mounts were in the
        // answer. If the answer is lost, the view is there as well.
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

/// overlayfs binds the lowest layer's directory, and lists the others' with the highest first. The lowest one
/// was never an upper directory, so overlayfs has put nothing into it.
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
            // An escaped colon: a directory's name is cut, and a wrong one must not be read.
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
    fn the_mount_says_whose_attributes_overlayfs_uses() {
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
    fn a_layers_own_directory_is_the_highest() {
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
            // All layers in one directory, as native has them.
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
