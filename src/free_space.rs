//! The check of free space: unpacking ahead is paused while a file system is nearly full, so that space remains for the
//! images that pods need.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::Live;

/// The pause between checks of a file system that is nearly full. The kubelet removes images every five minutes.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// containerd's default root directory.
const DEFAULT_ROOT: &str = "/var/lib/containerd";

/// Reads how much of a directory's file system is free, in percent.
pub(crate) type Free = fn(&str) -> rustix::io::Result<u64>;

/// The check of free space. Logs each change once.
#[derive(Debug)]
pub(crate) struct FreeSpace {
    config: Live,
    free: Free,
    /// The directories with too little free space.
    too_little: Mutex<HashSet<String>>,
    /// The directories whose free space could not be read.
    unreadable: Mutex<HashSet<String>>,
    /// Notified when a directory has enough free space again.
    recovered: Notify,
}

/// A change of a directory, in percent.
#[derive(Debug, PartialEq)]
enum Change {
    Unreadable(rustix::io::Errno),
    TooLittle { free: u64, min_free: u64 },
    Enough { free: u64 },
}

impl FreeSpace {
    /// Creates the check. The minimum is in the configuration; `free` reads the free space.
    pub(crate) fn new(config: Live, free: Free) -> Self {
        Self {
            config,
            free,
            too_little: Mutex::default(),
            unreadable: Mutex::default(),
            recovered: Notify::new(),
        }
    }

    /// Whether there is enough free space for work that uses this directory. `true` if it cannot be read, for example in
    /// a container without the host's directory.
    pub(crate) fn is_enough(&self, root: Option<&str>) -> bool {
        let root = root.unwrap_or(DEFAULT_ROOT);
        let (is_enough, change) = self.check(root);
        match change {
            None => {}
            Some(Change::Unreadable(e)) => {
                log::warn!(root, error:% = e; "free space cannot be read: unpacking ahead goes on without the limit of unpack.min_free");
            }
            Some(Change::TooLittle { free, min_free }) => {
                log::warn!(root, free:% = format_args!("{free}%"), min_free:% = format_args!("{min_free}%"); "free space is below unpack.min_free: unpacking ahead is paused; images that a pod needs are still unpacked");
            }
            Some(Change::Enough { free }) => {
                log::info!(root, free:% = format_args!("{free}%"); "free space is no longer below unpack.min_free: unpacking ahead goes on");
            }
        }
        is_enough
    }

    /// Returns whether there is enough free space, and the change since the last check.
    fn check(&self, root: &str) -> (bool, Option<Change>) {
        let min_free = u64::from(self.config.now().unpack.min_free.as_u8());
        match (self.free)(root) {
            Ok(free) if free < min_free => {
                let is_new = self.too_little.lock().insert(root.to_owned());
                (
                    false,
                    is_new.then_some(Change::TooLittle { free, min_free }),
                )
            }
            Ok(free) => (
                true,
                self.record_enough(root).then_some(Change::Enough { free }),
            ),
            Err(e) => {
                self.record_enough(root);
                let is_new = self.unreadable.lock().insert(root.to_owned());
                (true, is_new.then_some(Change::Unreadable(e)))
            }
        }
    }

    /// Waits until there is enough free space for work that uses this directory.
    pub(crate) async fn wait_until_enough(&self, root: Option<&str>) {
        while !self.is_enough(root) {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    /// Waits until a directory has enough free space again. Only one task may wait here.
    pub(crate) async fn recovered(&self) {
        let checks = async {
            loop {
                tokio::time::sleep(CHECK_INTERVAL).await;
                let too_little: Vec<_> = self.too_little.lock().iter().cloned().collect();
                for root in too_little {
                    self.is_enough(Some(&root));
                }
            }
        };
        tokio::select! {
            () = self.recovered.notified() => {}
            () = checks => {}
        }
    }

    /// Records that a directory has enough free space. Returns whether it had too little before.
    fn record_enough(&self, root: &str) -> bool {
        let had_too_little = self.too_little.lock().remove(root);
        if had_too_little {
            self.recovered.notify_one();
        }
        had_too_little
    }
}

/// Returns the free space in percent for users other than root, as `df` computes it.
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
        let free_space = FreeSpace::new(config("15%"), |root| match root {
            "/full" => Ok(14),
            "/enough" => Ok(15),
            _ => Err(rustix::io::Errno::NOENT),
        });
        for (root, enough) in [
            (Some("/full"), false),
            (Some("/enough"), true),
            (Some("/elsewhere"), true),
            (None, true),
        ] {
            assert_eq!(free_space.is_enough(root), enough, "{root:?}");
        }
        assert!(FreeSpace::new(config("0%"), |_| Ok(0)).is_enough(Some("/")));
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_is_reported_once() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static FREE: AtomicU64 = AtomicU64::new(3);
        let free_space = FreeSpace::new(config("15%"), |_| Ok(FREE.load(Ordering::Relaxed)));
        let too_little = Change::TooLittle {
            free: 3,
            min_free: 15,
        };
        assert_eq!(free_space.check(DEFAULT_ROOT), (false, Some(too_little)));
        assert_eq!(free_space.check(DEFAULT_ROOT), (false, None));
        let minute = tokio::time::timeout(Duration::from_secs(60), free_space.recovered());
        assert!(minute.await.is_err());
        FREE.store(20, Ordering::Relaxed);
        // The next check reports the change.
        assert_eq!(
            free_space.check(DEFAULT_ROOT),
            (true, Some(Change::Enough { free: 20 }))
        );
        assert_eq!(free_space.check(DEFAULT_ROOT), (true, None));
        assert!(free_space.recovered().now_or_never().is_some());
        let minute = tokio::time::timeout(Duration::from_secs(60), free_space.recovered());
        assert!(minute.await.is_err());
    }
}
