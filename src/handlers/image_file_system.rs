//! Finds the default snapshotter by CRI's first image file system. containerd 1.7 to 2.4 report there the
//! directory of the default snapshotter: the plugin's export `root`, or else a directory that is named after
//! the plugin.

use super::Running;
use super::origin::{Found, Origin};
use crate::containerd::Snapshotter;

/// The name of the directory of a plugin without an export `root`, up to the plugin's name.
const UNNAMED: &str = "io.containerd.snapshotter.v1.";

/// Returns the snapshotter of that directory. If several export it, it is the one that is `written` in
/// containerd's files, if it is among them.
pub(super) fn snapshotter(running: Running<'_>, written: Option<&str>) -> Option<Found> {
    let directory = running.image_file_system?.trim_end_matches('/');
    let is_there = |snapshotter: &&Snapshotter| match root(snapshotter) {
        Some(root) => root.trim_end_matches('/') == directory,
        None => {
            let last = directory.rsplit('/').next();
            last.and_then(|last| last.strip_prefix(UNNAMED)) == Some(&snapshotter.name)
        }
    };
    let there: Vec<_> = running.snapshotters.iter().filter(is_there).collect();
    let found = match there[..] {
        [one] => one,
        _ => there.into_iter().find(|it| Some(&*it.name) == written)?,
    };
    Some(Found::new(&*found.name, Origin::ImageFileSystem))
}

fn root(snapshotter: &Snapshotter) -> Option<&str> {
    let root = snapshotter.exports.get("root");
    root.map(String::as_str).filter(|root| !root.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshotter_is_found_by_its_directory() {
        let own = "/r/io.containerd.snapshotter.v1.overlayfs";
        let listed = [
            ("overlayfs", Some(own)),
            ("native", Some("/elsewhere/native/")),
            ("nydus", None),
            ("soci", Some("/var/lib/shared")),
            ("stargz", Some("/var/lib/shared")),
            ("thief", Some("/r/io.containerd.snapshotter.v1.nydus")),
        ];
        let listed = listed.map(|(name, root)| Snapshotter {
            name: name.to_owned(),
            exports: root
                .map(|root| ("root".to_owned(), root.to_owned()))
                .into_iter()
                .collect(),
            ..Snapshotter::default()
        });
        let all = &listed[..];
        for (directory, listed, written, expected) in [
            (Some(own), all, None, Some("overlayfs")),
            (
                Some("/elsewhere/native"),
                all,
                Some("overlayfs"),
                Some("native"),
            ),
            (
                Some("/other/io.containerd.snapshotter.v1.nydus"),
                all,
                None,
                Some("nydus"),
            ),
            (
                Some("/r/io.containerd.snapshotter.v1.nydus"),
                &all[..3],
                None,
                Some("nydus"),
            ),
            // The directory matches two snapshotters.
            (
                Some("/r/io.containerd.snapshotter.v1.nydus"),
                all,
                None,
                None,
            ),
            (
                Some("/r/io.containerd.snapshotter.v1.nydus"),
                all,
                Some("nydus"),
                Some("nydus"),
            ),
            (Some("/var/lib/shared"), all, None, None),
            (Some("/var/lib/shared"), all, Some("stargz"), Some("stargz")),
            (Some("/var/lib/shared"), all, Some("native"), None),
            // A snapshotter that exports another root does not match by the directory's name.
            (
                Some("/x/io.containerd.snapshotter.v1.native"),
                all,
                None,
                None,
            ),
            (Some("/x/io.containerd.snapshotter.v1.zfs"), all, None, None),
            (Some(""), all, None, None),
            (None, all, Some("native"), None),
        ] {
            let running = Running {
                image_file_system: directory,
                snapshotters: listed,
                ..Running::default()
            };
            let found = snapshotter(running, written);
            let found = found.as_ref().map(|found| found.value.as_str());
            assert_eq!(found, expected, "{directory:?}, {written:?}");
        }
    }
}
