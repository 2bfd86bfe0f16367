//! The mounts of an extraction snapshot, and how a layer is applied through mounts that lack the layers below it.
//! The rules are those of containerd's own unpacker (`core/unpack/unpacker.go`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::containerd::Mount;

/// The snapshotters whose snapshots are upper directories of overlayfs, or are treated as such by their differ.
const OVERLAYS: [&str; 2] = ["overlayfs", "erofs"];

/// Whether the snapshotter has already provided the layer's content: its top mount is read-only.
pub(crate) fn are_staged(mounts: &[Mount]) -> bool {
    let options = mounts.last().map(|mount| mount.options.as_slice());
    options.is_some_and(|options| options.iter().any(|option| option == "ro"))
}

/// The option by which nydus-snapshotter describes to the Kata runtime what a mount stands for.
const KATA_VOLUME: &str = "io.katacontainers.volume=";

/// The kind of such a mount whose image the guest pulls.
const GUEST_PULL: &str = "image_guest_pull";

/// Whether these mounts of a container stand for an image that the guest pulls, and not for directories of the host.
pub(crate) fn are_of_guest(mounts: &[Mount]) -> bool {
    let options = mounts.iter().flat_map(|mount| &mount.options);
    let mut volumes = options.filter_map(|option| option.strip_prefix(KATA_VOLUME));
    volumes.any(|volume| {
        let json = STANDARD.decode(volume).unwrap_or_default();
        let volume = serde_json::from_slice::<serde_json::Value>(&json);
        volume.is_ok_and(|volume| volume["volume_type"] == GUEST_PULL)
    })
}

/// Returns the mounts through which a layer that has layers below it is applied, made from the mounts of a snapshot
/// without a parent; `None` where it is not known whether the layer's deletions would be kept.
///
/// A snapshot without a parent is a bind mount of its directory. An apply through the bind mount drops a deletion,
/// since the file to delete is not there. An apply through an overlay mount with that directory as `upperdir` leaves
/// a whiteout, as needed. The overlay is never mounted: containerd writes into its `upperdir`, so it needs neither
/// `lowerdir` nor `workdir`.
///
/// containerd does this for overlayfs only, and uses the mounts of other snapshotters as they are. The differ of
/// erofs finds the same directory by `upperdir` and works with both kinds of mounts. But where the walking differ
/// replaces it, an apply through the bind mount brings back files that the image has deleted.
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
    fn only_a_single_bind_mount_becomes_an_overlay() {
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
    fn a_volume_for_the_guest_is_one_that_it_pulls() {
        let volume = |json: &str| format!("{KATA_VOLUME}{}", STANDARD.encode(json));
        let pulled =
            volume(r#"{"volume_type": "image_guest_pull", "image_pull": {"metadata": {}}}"#);
        let block = volume(r#"{"volume_type": "image_raw_block"}"#);
        for (option, expected) in [
            (pulled.as_str(), true),
            (&block, false),
            ("io.katacontainers.volume=%", false),
            ("lowerdir=/a:/b", false),
        ] {
            let mounts = [mount(
                "fuse.nydus-overlayfs",
                "overlay",
                &["lowerdir=/a", option],
            )];
            assert_eq!(are_of_guest(&mounts), expected, "{option}");
        }
    }

    #[test]
    fn a_read_only_top_mount_is_staged_content() {
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
