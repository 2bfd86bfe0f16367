//! What the mounts of an extraction snapshot say, and how a layer has to be applied through them
//! where the layers below it are not among them. The rules are those of containerd's own unpacker
//! (`core/unpack/unpacker.go`).

use crate::containerd::Mount;

/// Snapshotters whose snapshots are directories that overlayfs lays over each other, or that they
/// take for such.
const OVERLAYS: [&str; 2] = ["overlayfs", "erofs"];

/// Whether the snapshotter has put the layer's content there already: nothing can be written into
/// what lies on top.
pub(crate) fn are_staged(mounts: &[Mount]) -> bool {
    let options = mounts.last().map(|mount| mount.options.as_slice());
    options.is_some_and(|options| options.iter().any(|option| option == "ro"))
}

/// What a layer with other layers below it is applied through, from the mounts of a snapshot without
/// a parent; `None` where it is not known how its deletions would survive.
///
/// Such a snapshot is a bind mount of its directory. Applied through that, a deletion deletes what
/// is there, which is nothing; through an overlay mount with that directory on top it leaves a
/// whiteout, as it has to. The overlay is never mounted: containerd writes into its `upperdir`, so
/// it needs neither `lowerdir` nor `workdir`.
///
/// containerd does so for overlayfs only, and applies through whatever else it gets. erofs' own differ
/// finds the same directory by `upperdir` and does without; but where the walking differ stands in
/// for it, files that an image has deleted come back.
pub(crate) fn with_whiteouts(snapshotter: &str, mounts: &[Mount]) -> Option<Vec<Mount>> {
    match mounts {
        [bind] if bind.r#type == "bind" && OVERLAYS.contains(&snapshotter) => {
            let options = bind.options.iter().filter(|option| *option != "rbind");
            let upper = format!("upperdir={}", bind.source);
            Some(vec![Mount {
                r#type: "overlay".to_owned(),
                source: "overlay".to_owned(),
                options: options.cloned().chain([upper]).collect(),
                ..Default::default()
            }])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
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
    fn a_lone_bind_mount_becomes_an_overlay_and_nothing_else_does() {
        let bind = mount("bind", "/s/1/fs", &["uidmap=0:1:2", "rw", "rbind"]);
        let options = ["uidmap=0:1:2", "rw", "upperdir=/s/1/fs"];
        let overlay = mount("overlay", "overlay", &options);
        for snapshotter in ["overlayfs", "erofs"] {
            let mounts = with_whiteouts(snapshotter, std::slice::from_ref(&bind));
            assert_eq!(mounts, Some(vec![overlay.clone()]), "{snapshotter}");
        }
        let others = [
            ("native", vec![bind.clone()]),
            ("overlayfs", vec![overlay]),
            ("overlayfs", vec![mount("ext4", "/s/1/img", &["rw"])]),
            ("overlayfs", vec![bind.clone(), bind]),
            ("overlayfs", vec![]),
        ];
        for (snapshotter, mounts) in others {
            assert_eq!(with_whiteouts(snapshotter, &mounts), None, "{mounts:?}");
        }
    }

    #[test]
    fn what_is_staged_is_read_only_on_top() {
        let ro = || mount("erofs", "/s/1/layer.erofs", &["ro", "loop"]);
        let rw = || mount("bind", "/s/1/fs", &["rw", "rbind"]);
        for (mounts, staged) in [
            (vec![], false),
            (vec![rw()], false),
            (vec![ro()], true),
            (vec![ro(), rw()], false),
            (vec![rw(), ro()], true),
        ] {
            assert_eq!(are_staged(&mounts), staged, "{mounts:?}");
        }
    }
}
