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
    pub fn adopt(&self, mut new: Config) -> Vec<&'static str> {
        let restart = Restart::keep_fixed(&mut new, &self.now());
        *self.0.write() = Arc::new(new);
        restart.changed
    }
}

/// The keys that take effect at a restart only and that a new configuration changes.
#[derive(Default)]
struct Restart {
    changed: Vec<&'static str>,
}

impl Restart {
    /// Puts the old values of these keys into the new configuration. Each key is listed, so that a new one does not
    /// compile until it is decided whether a reload may change it. What is `_` is read when it is used; a reload
    /// configures the log again.
    fn keep_fixed(new: &mut Config, old: &Config) -> Self {
        let Config {
            nri,
            containerd,
            pull,
            metrics,
            kubernetes,
            unpack,
            hooks,
            handlers: _,
            snapshotters: _,
            log,
        } = new;
        let Hooks {
            wait: _,
            on_unready: _,
            swap: _,
            skip_namespaces: _,
        } = hooks;
        let Log {
            file: _,
            level: _,
            format: _,
        } = log;
        let mut restart = Self::default();
        restart.keep("nri", nri, &old.nri);
        restart.keep("containerd", containerd, &old.containerd);
        restart.keep("pull", pull, &old.pull);
        restart.keep("metrics", metrics, &old.metrics);
        restart.keep("kubernetes", kubernetes, &old.kubernetes);
        restart.keep_fixed_of_unpack(unpack, &old.unpack);
        restart
    }

    fn keep_fixed_of_unpack(&mut self, new: &mut Unpack, old: &Unpack) {
        let Unpack {
            parallel_images: images,
            parallel_layers: layers,
            missing_content: content,
            min_free: _,
            during_pull: _,
            reconcile_every: _,
        } = new;
        self.keep("unpack.parallel_images", images, &old.parallel_images);
        self.keep("unpack.parallel_layers", layers, &old.parallel_layers);
        self.keep("unpack.missing_content", content, &old.missing_content);
    }

    /// Keeps the old value, and notes the key if the new one differs.
    fn keep<T: Clone + PartialEq>(&mut self, key: &'static str, new: &mut T, old: &T) {
        if new != old {
            self.changed.push(key);
            new.clone_from(old);
        }
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
