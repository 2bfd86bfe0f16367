//! The check of free space: unpacking ahead is paused while a file system is nearly full, so that space remains for the
//! images that pods need. An unpack reserves the space that it will take, so that several do not count on the same space.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::Live;

/// The pause between checks of a file system that is nearly full. The kubelet removes images every five minutes.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// containerd's default root directory.
const DEFAULT_ROOT: &str = "/var/lib/containerd";

/// The space of a file system in bytes, as users other than root see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// What is free.
    pub(crate) free: u64,
    /// What is used, and what is free.
    pub(crate) total: u64,
}

impl Space {
    /// Returns what is free in percent, as `df` computes it.
    fn percent(self) -> u64 {
        percent(self.free, self.total)
    }
}

fn percent(part: u64, total: u64) -> u64 {
    let percent = u128::from(part) * 100;
    let percent = percent.checked_div(total.into()).unwrap_or(100);
    percent.try_into().unwrap_or(100)
}

/// Reads the space of a directory's file system.
pub(crate) type Measure = fn(&str) -> rustix::io::Result<Space>;

/// The check of free space. Logs each change once.
#[derive(Debug)]
pub(crate) struct FreeSpace {
    config: Live,
    measure: Measure,
    roots: Mutex<Roots>,
    /// Notified when a directory has enough free space again.
    recovered: Notify,
}

/// What is known of the directories.
#[derive(Debug, Default)]
struct Roots {
    /// The space that unpacks have reserved, in bytes, by the device of the file system.
    reserved: HashMap<u64, u64>,
    /// The directories with too little free space, and the smallest unpack that waits for more, in bytes.
    too_little: HashMap<String, u64>,
    /// The directories whose free space could not be read.
    unreadable: HashSet<String>,
}

/// A change of a directory.
#[derive(Debug, PartialEq)]
enum Change {
    Unreadable(rustix::io::Errno),
    /// Less than the minimum is free, in percent.
    TooLittle {
        free: u64,
        min_free: u64,
    },
    /// An unpack of so many bytes would leave less than the minimum free.
    TooLarge {
        bytes: u64,
        free: u64,
        min_free: u64,
    },
    Enough {
        free: u64,
    },
}

/// The space that an unpack has reserved, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    of: &'a FreeSpace,
    device: u64,
    bytes: u64,
}

impl FreeSpace {
    /// Creates the check. The minimum is in the configuration; `measure` reads the space.
    pub(crate) fn new(config: Live, measure: Measure) -> Self {
        Self {
            config,
            measure,
            roots: Mutex::default(),
            recovered: Notify::new(),
        }
    }

    /// Reserves space for an unpack into this directory. Returns `None` if less than the minimum would be free after it.
    /// Succeeds if the free space cannot be read, for example in a container without the host's directory.
    pub(crate) fn reserve(&self, root: Option<&str>, bytes: u64) -> Option<Reservation<'_>> {
        let root = root.unwrap_or(DEFAULT_ROOT);
        let (reservation, change) = self.check(root, bytes, bytes);
        if let Some(change) = change {
            change.log(root);
        }
        reservation
    }

    /// Checks whether there is enough free space for so many bytes more, and returns the change since the last check. If
    /// there is, reserves `taken` bytes before any other check.
    fn check(
        &self,
        root: &str,
        bytes: u64,
        taken: u64,
    ) -> (Option<Reservation<'_>>, Option<Change>) {
        let min_free = u64::from(self.config.now().unpack.min_free.as_u8());
        let measured = (self.measure)(root);
        let device = device(Path::new(root));
        let mut roots = self.roots.lock();
        let space = match measured {
            Ok(space) => space,
            Err(e) => {
                if roots.too_little.remove(root).is_some() {
                    self.recovered.notify_one();
                }
                let is_new = roots.unreadable.insert(root.to_owned());
                let reservation = self.reservation(&mut roots, device, taken);
                let change = is_new.then_some(Change::Unreadable(e));
                return (Some(reservation), change);
            }
        };
        let reserved = roots.reserved.get(&device).copied().unwrap_or_default();
        let left = space.free.saturating_sub(reserved).saturating_sub(bytes);
        let free = space.percent();
        if percent(left, space.total) < min_free {
            let smallest = roots.too_little.get(root).copied();
            roots.too_little.insert(
                root.to_owned(),
                smallest.map_or(bytes, |smallest| smallest.min(bytes)),
            );
            let change = if free < min_free {
                Change::TooLittle { free, min_free }
            } else {
                Change::TooLarge {
                    bytes,
                    free,
                    min_free,
                }
            };
            return (None, smallest.is_none().then_some(change));
        }
        let reservation = self.reservation(&mut roots, device, taken);
        // A smaller unpack than those that wait says nothing about them.
        let has_recovered = roots
            .too_little
            .get(root)
            .is_some_and(|waits| bytes >= *waits);
        if has_recovered {
            roots.too_little.remove(root);
            self.recovered.notify_one();
        }
        let change = has_recovered.then_some(Change::Enough { free });
        (Some(reservation), change)
    }

    fn reservation(&self, roots: &mut Roots, device: u64, bytes: u64) -> Reservation<'_> {
        let reserved = roots.reserved.entry(device).or_default();
        *reserved = reserved.saturating_add(bytes);
        Reservation {
            of: self,
            device,
            bytes,
        }
    }

    /// Waits until a directory has enough free space again. Only one task may wait here.
    pub(crate) async fn recovered(&self) {
        let checks = async {
            loop {
                tokio::time::sleep(CHECK_INTERVAL).await;
                let too_little = self.roots.lock().too_little.clone();
                for (root, bytes) in too_little {
                    let (_, change) = self.check(&root, bytes, 0);
                    if let Some(change) = change {
                        change.log(&root);
                    }
                }
            }
        };
        tokio::select! {
            () = self.recovered.notified() => {}
            () = checks => {}
        }
    }
}

impl Change {
    fn log(&self, root: &str) {
        match self {
            Self::Unreadable(e) => {
                log::warn!(root, error:% = e; "free space cannot be read: unpacking ahead goes on without the limit of unpack.min_free");
            }
            Self::TooLittle { free, min_free } => {
                log::warn!(root, free:% = format_args!("{free}%"), min_free:% = format_args!("{min_free}%"); "free space is below unpack.min_free: unpacking ahead is paused; images that a pod needs are still unpacked");
            }
            Self::TooLarge {
                bytes,
                free,
                min_free,
            } => {
                log::warn!(root, bytes, free:% = format_args!("{free}%"), min_free:% = format_args!("{min_free}%"); "free space would fall below unpack.min_free: an image that takes bytes is not unpacked ahead until there is more space, but when a pod needs it");
            }
            Self::Enough { free } => {
                log::info!(root, free:% = format_args!("{free}%"); "free space is no longer below unpack.min_free: unpacking ahead goes on");
            }
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut roots = self.of.roots.lock();
        if let Some(reserved) = roots.reserved.get_mut(&self.device) {
            *reserved = reserved.saturating_sub(self.bytes);
        }
    }
}

/// Returns the device of the file system on which a directory is, or will be. 0, which is no device, if not even the root
/// directory can be read.
fn device(directory: &Path) -> u64 {
    let existing = directory.ancestors().find_map(|path| path.metadata().ok());
    existing.map_or(0, |metadata| metadata.dev())
}

/// Returns the space of a directory's file system for users other than root.
pub(crate) fn measure(directory: &str) -> rustix::io::Result<Space> {
    let stat = rustix::fs::statvfs(directory)?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let usable = used.saturating_add(stat.f_bavail);
    Ok(Space {
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: usable.saturating_mul(stat.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::config::Config;

    const GB: u64 = 1 << 30;

    fn config(min_free: &str) -> Live {
        let text = format!("[unpack]\nmin_free = {min_free:?}\n");
        Live::new(Config::from_toml(&text, "test").unwrap())
    }

    fn free(gigabytes: u64) -> rustix::io::Result<Space> {
        Ok(Space {
            free: gigabytes * GB,
            total: 100 * GB,
        })
    }

    #[test]
    fn too_little_free_space_stops_work_and_unknown_free_space_does_not() {
        assert!(measure("/").unwrap().percent() <= 100);
        let free_space = FreeSpace::new(config("15%"), |root| match root {
            "/full" => free(14),
            "/enough" => free(15),
            _ => Err(rustix::io::Errno::NOENT),
        });
        for (root, enough) in [
            (Some("/full"), false),
            (Some("/enough"), true),
            (Some("/elsewhere"), true),
            (None, true),
        ] {
            assert_eq!(free_space.reserve(root, 0).is_some(), enough, "{root:?}");
        }
        let unlimited = FreeSpace::new(config("0%"), |_| free(0));
        assert!(unlimited.reserve(Some("/"), 9 * GB).is_some());
    }

    #[test]
    fn unpacks_do_not_count_on_the_same_space() {
        let free_space = FreeSpace::new(config("15%"), |_| free(20));
        let reserve = |bytes| free_space.reserve(None, bytes);
        assert!(reserve(6 * GB).is_none());
        let first = reserve(3 * GB);
        assert!(first.is_some() && reserve(3 * GB).is_none());
        let second = reserve(2 * GB);
        assert!(second.is_some() && reserve(1).is_none());
        drop(first);
        assert!(reserve(3 * GB).is_some());
    }

    /// The size of a layer is what its descriptor says.
    #[test]
    fn sizes_that_no_layer_has_do_no_harm() {
        let free_space = FreeSpace::new(config("0%"), |_| free(20));
        let all = [u64::MAX; 2].map(|bytes| free_space.reserve(None, bytes));
        assert!(all.iter().all(Option::is_some));
        drop(all);
        assert!(free_space.reserve(None, GB).is_some());
    }

    #[test]
    fn directories_of_one_file_system_share_its_space() {
        let free_space = FreeSpace::new(config("15%"), |_| free(20));
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "a/b/second"].map(|name| {
            let path = directory.path().join(name);
            path.to_str().unwrap().to_owned()
        });
        std::fs::create_dir(&first).unwrap();
        assert_ne!(device(Path::new(&first)), device(Path::new("/proc")));
        let reserved = free_space.reserve(Some(&first), 3 * GB);
        assert!(reserved.is_some());
        assert!(free_space.reserve(Some(&second), 3 * GB).is_none());
        assert!(free_space.reserve(Some("/proc"), 3 * GB).is_some());
        drop(reserved);
        assert!(free_space.reserve(Some(&second), 3 * GB).is_some());
    }

    #[test]
    fn unpacks_that_come_at_the_same_time_do_not_count_on_the_same_space() {
        use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
        const ROUNDS: usize = 20_000;
        let free_space = FreeSpace::new(config("15%"), |_| free(20));
        let (arrived, reserved) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // A barrier would wake the threads one after another.
        let both = |round: usize| {
            arrived.fetch_add(1, SeqCst);
            while arrived.load(SeqCst) < 2 * round {
                std::thread::yield_now();
            }
        };
        let rounds = || {
            for round in 1..=ROUNDS {
                both(2 * round - 1);
                let reservation = free_space.reserve(None, 3 * GB);
                reserved.fetch_add(reservation.iter().count(), SeqCst);
                both(2 * round);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(rounds);
            scope.spawn(rounds);
        });
        assert_eq!(reserved.into_inner(), ROUNDS);
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_is_reported_once() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static FREE: AtomicU64 = AtomicU64::new(3);
        let free_space = FreeSpace::new(config("15%"), |_| free(FREE.load(Ordering::Relaxed)));
        let check = |bytes| {
            let (reservation, change) = free_space.check(DEFAULT_ROOT, bytes, 0);
            (reservation.is_some(), change)
        };
        let too_little = Change::TooLittle {
            free: 3,
            min_free: 15,
        };
        assert_eq!(check(GB), (false, Some(too_little)));
        assert_eq!(check(0), (false, None));
        let recovers = || tokio::time::timeout(Duration::from_secs(60), free_space.recovered());
        assert!(recovers().await.is_err());
        FREE.store(20, Ordering::Relaxed);
        // The next check reports the change.
        assert_eq!(check(0), (true, Some(Change::Enough { free: 20 })));
        assert_eq!(check(0), (true, None));
        assert!(free_space.recovered().now_or_never().is_some());
        assert!(recovers().await.is_err());

        let too_large = Change::TooLarge {
            bytes: 9 * GB,
            free: 20,
            min_free: 15,
        };
        assert_eq!(check(9 * GB), (false, Some(too_large)));
        // A smaller one says nothing about it.
        assert_eq!(check(GB), (true, None));
        assert!(recovers().await.is_err());
        FREE.store(30, Ordering::Relaxed);
        assert!(recovers().await.is_ok());
        assert_eq!(check(9 * GB), (true, None));
    }
}
