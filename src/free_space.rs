//! The check of free space: unpacking ahead is paused while a file system is nearly full, so that the images that pods
//! need fit.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::Live;

/// The pause between looks at a file system that is nearly full. The kubelet removes images every five minutes.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// containerd's default directory.
const USUAL_ROOT: &str = "/var/lib/containerd";

/// How much of a directory's file system is free, in percent.
pub(crate) type Free = fn(&str) -> rustix::io::Result<u64>;

/// The check of free space. Logs each change once in the life of the process.
#[derive(Debug)]
pub(crate) struct Room {
    config: Live,
    free: Free,
    /// The directories with too little free space.
    full: Mutex<HashSet<String>>,
    /// The directories whose free space could not be read.
    unseen: Mutex<HashSet<String>>,
    /// Notified when a directory has enough free space again.
    again: Notify,
}

/// A change of a directory, in percent.
#[derive(Debug, PartialEq)]
enum Change {
    Unseen(rustix::io::Errno),
    Full { free: u64, min_free: u64 },
    Roomy { free: u64 },
}

impl Room {
    /// Makes a check: the configuration has the minimum, and `free` reads the free space.
    pub(crate) fn new(config: Live, free: Free) -> Self {
        Self {
            config,
            free,
            full: Mutex::default(),
            unseen: Mutex::default(),
            again: Notify::new(),
        }
    }

    /// Whether there is enough free space for work that uses this directory. If it cannot be read (in a container
    /// without the host's directory), there is.
    pub(crate) fn is_enough(&self, root: Option<&str>) -> bool {
        let root = root.unwrap_or(USUAL_ROOT);
        let (is_enough, change) = self.look(root);
        match change {
            None => {}
            Some(Change::Unseen(e)) => {
                log::warn!(root, error:% = e; "free space cannot be read: unpacking ahead goes on without the limit of unpack.min_free");
            }
            Some(Change::Full { free, min_free }) => {
                log::warn!(root, free:% = format_args!("{free}%"), min_free:% = format_args!("{min_free}%"); "free space is below unpack.min_free: unpacking ahead is paused; images that a pod needs are still unpacked");
            }
            Some(Change::Roomy { free }) => {
                log::info!(root, free:% = format_args!("{free}%"); "free space is no longer below unpack.min_free: unpacking ahead goes on");
            }
        }
        is_enough
    }

    /// Whether there is enough free space, and what has changed.
    fn look(&self, root: &str) -> (bool, Option<Change>) {
        let min_free = u64::from(self.config.now().unpack.min_free.as_u8());
        match (self.free)(root) {
            Ok(free) if free < min_free => {
                let is_new = self.full.lock().insert(root.to_owned());
                (false, is_new.then_some(Change::Full { free, min_free }))
            }
            Ok(free) => (true, self.has_room(root).then_some(Change::Roomy { free })),
            Err(e) => {
                self.has_room(root);
                let is_new = self.unseen.lock().insert(root.to_owned());
                (true, is_new.then_some(Change::Unseen(e)))
            }
        }
    }

    /// Waits until there is enough free space for work that uses this directory.
    pub(crate) async fn wait(&self, root: Option<&str>) {
        while !self.is_enough(root) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until a directory has enough free space again. Only one task may wait here.
    pub(crate) async fn again(&self) {
        let looks = async {
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                let full: Vec<_> = self.full.lock().iter().cloned().collect();
                for root in full {
                    self.is_enough(Some(&root));
                }
            }
        };
        tokio::select! {
            () = self.again.notified() => {}
            () = looks => {}
        }
    }

    /// Records that a directory has enough free space. Returns whether it had too little before.
    fn has_room(&self, root: &str) -> bool {
        let is_new = self.full.lock().remove(root);
        if is_new {
            self.again.notify_one();
        }
        is_new
    }
}

/// Returns the free space for users other than root in percent, as `df` computes it.
pub(crate) fn free_percent(directory: &str) -> rustix::io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let usable = used + stat.f_bavail;
    Ok((stat.f_bavail * 100).checked_div(usable).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::config::Config;

    fn config(min_free: &str) -> Live {
        let text = format!("[unpack]\nmin_free = {min_free:?}\n");
        Live::new(Config::from_toml(&text, "test").unwrap())
    }

    #[test]
    fn too_little_free_space_stops_work_and_unknown_free_space_does_not() {
        assert!(free_percent("/").unwrap() <= 100);
        let room = Room::new(config("15%"), |root| match root {
            "/full" => Ok(14),
            "/roomy" => Ok(15),
            _ => Err(rustix::io::Errno::NOENT),
        });
        for (root, enough) in [
            (Some("/full"), false),
            (Some("/roomy"), true),
            (Some("/elsewhere"), true),
            (None, true),
        ] {
            assert_eq!(room.is_enough(root), enough, "{root:?}");
        }
        assert!(Room::new(config("0%"), |_| Ok(0)).is_enough(Some("/")));
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_is_reported_once() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static FREE: AtomicU64 = AtomicU64::new(3);
        let room = Room::new(config("15%"), |_| Ok(FREE.load(Ordering::Relaxed)));
        let full = Change::Full {
            free: 3,
            min_free: 15,
        };
        assert_eq!(room.look(USUAL_ROOT), (false, Some(full)));
        assert_eq!(room.look(USUAL_ROOT), (false, None));
        let minute = tokio::time::timeout(Duration::from_secs(60), room.again());
        assert!(minute.await.is_err());
        FREE.store(20, Ordering::Relaxed);
        // The next look reports the change.
        assert_eq!(
            room.look(USUAL_ROOT),
            (true, Some(Change::Roomy { free: 20 }))
        );
        assert_eq!(room.look(USUAL_ROOT), (true, None));
        assert!(room.again().now_or_never().is_some());
        let minute = tokio::time::timeout(Duration::from_secs(60), room.again());
        assert!(minute.await.is_err());
    }
}
