//! The configuration in force, which a reload replaces while the program runs.

use std::sync::Arc;

use parking_lot::RwLock;

use super::Config;

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
        let old = self.now();
        let mut needs_restart = Vec::new();
        let mut keep = |key, is_changed: bool| {
            if is_changed {
                needs_restart.push(key);
            }
        };
        keep("nri", new.nri != old.nri);
        keep("containerd", new.containerd != old.containerd);
        keep("pull", new.pull != old.pull);
        keep("metrics", new.metrics != old.metrics);
        keep("kubernetes", new.kubernetes != old.kubernetes);
        let (unpack, before) = (&mut new.unpack, &old.unpack);
        keep(
            "unpack.parallel_images",
            unpack.parallel_images != before.parallel_images,
        );
        keep(
            "unpack.parallel_layers",
            unpack.parallel_layers != before.parallel_layers,
        );
        keep(
            "unpack.missing_content",
            unpack.missing_content != before.missing_content,
        );
        unpack.parallel_images = before.parallel_images;
        unpack.parallel_layers = before.parallel_layers;
        unpack.missing_content.clone_from(&before.missing_content);
        new.nri.clone_from(&old.nri);
        new.containerd.clone_from(&old.containerd);
        new.pull.clone_from(&old.pull);
        new.metrics.clone_from(&old.metrics);
        new.kubernetes.clone_from(&old.kubernetes);
        *self.0.write() = Arc::new(new);
        needs_restart
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
