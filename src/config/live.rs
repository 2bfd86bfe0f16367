//! The configuration in force, which a reload replaces while the program runs.

use std::sync::Arc;

use parking_lot::RwLock;

use super::{Config, Hooks, Log, Unpack};

/// The configuration in force. All clones see a new configuration at the same moment. A caller that
/// needs several keys of one configuration calls [`now`](Self::now) once and keeps the result.
#[derive(Clone, Debug)]
pub struct Live(Arc<RwLock<Arc<Config>>>);

impl Live {
    /// Creates it with this configuration in force.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(config))))
    }

    /// Returns the configuration in force.
    pub fn now(&self) -> Arc<Config> {
        self.0.read().clone()
    }

    /// Puts `new` in force, except for the keys that take effect at a restart only: these keep their old
    /// values. Returns the keys and tables of this kind that `new` changes.
    pub fn adopt(&self, new: Config) -> Vec<&'static str> {
        let old = self.now();
        let mut restart = Restart::default();
        // Without `..` here and below, a new key does not compile until its place is decided.
        let Config {
            nri,
            containerd,
            hooks,
            unpack,
            pull,
            handlers,
            kubernetes,
            snapshotters,
            metrics,
            log,
        } = new;
        let Unpack {
            parallel_images,
            parallel_layers,
            min_free,
            during_pull,
            reconcile_every,
            missing_content,
        } = unpack;
        let Hooks {
            wait,
            on_unready,
            swap,
            skip_namespaces,
        } = hooks;
        let Log {
            file,
            level,
            format,
        } = log;
        let before = &old.unpack;
        let in_force = Config {
            nri: restart.keep("nri", nri, &old.nri),
            containerd: restart.keep("containerd", containerd, &old.containerd),
            pull: restart.keep("pull", pull, &old.pull),
            metrics: restart.keep("metrics", metrics, &old.metrics),
            kubernetes: restart.keep("kubernetes", kubernetes, &old.kubernetes),
            unpack: Unpack {
                parallel_images: restart.keep(
                    "unpack.parallel_images",
                    parallel_images,
                    &before.parallel_images,
                ),
                parallel_layers: restart.keep(
                    "unpack.parallel_layers",
                    parallel_layers,
                    &before.parallel_layers,
                ),
                missing_content: restart.keep(
                    "unpack.missing_content",
                    missing_content,
                    &before.missing_content,
                ),
                // They are read when they are used.
                min_free,
                during_pull,
                reconcile_every,
            },
            // They are read when they are used.
            hooks: Hooks {
                wait,
                on_unready,
                swap,
                skip_namespaces,
            },
            handlers,
            snapshotters,
            // A reload configures the log again.
            log: Log {
                file,
                level,
                format,
            },
        };
        *self.0.write() = Arc::new(in_force);
        restart.changed
    }
}

/// The keys that take effect at a restart only and that a new configuration changes.
#[derive(Default)]
struct Restart {
    changed: Vec<&'static str>,
}

impl Restart {
    /// Returns the old value, and notes the key if the new one differs.
    fn keep<T: Clone + PartialEq>(&mut self, key: &'static str, new: T, old: &T) -> T {
        if new != *old {
            self.changed.push(key);
        }
        old.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_toml(text, "test").unwrap()
    }

    #[test]
    fn reloadable_keys_change_and_changed_restart_keys_are_named() {
        let live = Live::new(config("[unpack]\nparallel_layers = 5\n"));
        let holder = live.clone();
        let changed = "[unpack]\nmin_free = \"1%\"\nparallel_layers = 6\nmissing_content = []\n\
                       [hooks]\nwait = \"1s\"\n[handlers]\na = \"b\"\n[snapshotters.b]\n\
                       eager = \"all\"\n[log]\nlevel = \"debug\"\n[nri]\nindex = \"20\"\n\
                       [containerd]\nnamespace = \"x\"\n[metrics]\nlisten = \"127.0.0.1:1\"\n\
                       [pull]\nhosts = \"/h\"\n[kubernetes]\nwatch = \"off\"\n";
        let needs_restart = live.adopt(config(changed));
        let names = [
            "nri",
            "containerd",
            "pull",
            "metrics",
            "kubernetes",
            "unpack.parallel_layers",
            "unpack.missing_content",
        ];
        assert_eq!(needs_restart, names);
        let expected = "[unpack]\nmin_free = \"1%\"\nparallel_layers = 5\n[hooks]\nwait = \"1s\"\n\
                        [handlers]\na = \"b\"\n[snapshotters.b]\neager = \"all\"\n\
                        [log]\nlevel = \"debug\"\n";
        assert_eq!(*holder.now(), config(expected));
        assert_eq!(live.adopt(config(expected)), [""; 0]);
    }
}
