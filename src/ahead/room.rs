//! Work that nobody has asked for yet stops while the file system is nearly full: what is asked for
//! needs the rest.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::Live;

use super::eager::Place;

/// Between looks at a file system that is nearly full. What makes room, the kubelet's collection of
/// images, runs every five minutes.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// containerd's directory where nothing says another one.
const USUAL_ROOT: &str = "/var/lib/containerd";

/// How much has to be free.
#[derive(Debug)]
pub(super) struct Room {
    config: Live,
    /// How much of a directory's file system is free, in percent.
    free: fn(&str) -> rustix::io::Result<u64>,
    /// The directories of which it was said that there is too little room, or that nobody knows.
    said: Mutex<HashSet<String>>,
}

impl Room {
    /// The configuration says how much that is.
    pub(super) fn new(config: Live) -> Self {
        Self::seen_by(config, free_percent)
    }

    pub(super) fn seen_by(config: Live, free: fn(&str) -> rustix::io::Result<u64>) -> Self {
        Self {
            config,
            free,
            said: Mutex::default(),
        }
    }

    /// Whether there is room for work in this place. Where that cannot be seen (a container without
    /// the host's directory), there is. Each change is said once.
    pub(super) fn is_enough(&self, place: &Place) -> bool {
        let root = place.root.as_deref().unwrap_or(USUAL_ROOT);
        let min_free = u64::from(self.config.now().unpack.min_free.as_u8());
        let free = match (self.free)(root) {
            Ok(free) => free,
            Err(e) => {
                if self.is_new(root) {
                    log::warn!(root, error:% = e; "cannot see how much room is left; unpacking ahead goes on");
                }
                return true;
            }
        };
        if free < min_free {
            if self.is_new(root) {
                log::warn!(root, free:% = format_args!("{free}%"), min_free:% = format_args!("{min_free}%"); "too little room: nothing is unpacked ahead until there is more; what a pod asks for is");
            }
            return false;
        }
        if self.said().remove(root) {
            log::info!(root, free:% = format_args!("{free}%"); "there is room again: unpacking ahead goes on");
        }
        true
    }

    /// Until there is room in this place.
    pub(super) async fn wait(&self, place: &Place) {
        while !self.is_enough(place) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn is_new(&self, root: &str) -> bool {
        self.said().insert(root.to_owned())
    }

    fn said(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The share that others than root may still use, as `df` has it.
fn free_percent(directory: &str) -> rustix::io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let usable = used + stat.f_bavail;
    Ok((stat.f_bavail * 100).checked_div(usable).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_share_is_seen_and_what_cannot_be_seen_is_no_obstacle() {
        let place = |root: &str| Place {
            snapshotter: "erofs".to_owned(),
            is_proxy: false,
            root: Some(root.to_owned()),
        };
        let config = |min_free: &str| {
            let text = format!("[unpack]\nmin_free = {min_free:?}\n");
            Live::new(Config::from_toml(&text, "test").unwrap())
        };
        assert!(free_percent("/").unwrap() <= 100);
        let room = Room::seen_by(config("15%"), |root| match root {
            "/full" => Ok(14),
            "/roomy" => Ok(15),
            _ => Err(rustix::io::Errno::NOENT),
        });
        for (root, enough) in [("/full", false), ("/roomy", true), ("/elsewhere", true)] {
            assert_eq!(room.is_enough(&place(root)), enough, "{root}");
        }
        assert!(Room::new(config("0%")).is_enough(&place("/")));
    }
}
