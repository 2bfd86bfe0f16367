//! The configuration in force, which may be exchanged while the program runs.

use std::sync::Arc;

use parking_lot::RwLock;

use super::Config;

/// The configuration in force. All who hold it see the next one at the same moment; whoever needs
/// several keys to agree asks once.
#[derive(Clone, Debug)]
pub struct Live(Arc<RwLock<Arc<Config>>>);

impl Live {
    /// Begins with this one.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(config))))
    }

    /// As it is now.
    pub fn now(&self) -> Arc<Config> {
        self.0.read().clone()
    }

    /// Puts this one in force, but for what the program was built on when it started: that stays as it
    /// was. Answers the keys and tables that were changed in vain, for they take effect at a restart.
    pub fn adopt(&self, mut new: Config) -> Vec<&'static str> {
        let old = self.now();
        let mut in_vain = Vec::new();
        let mut keep = |key, is_changed: bool| {
            if is_changed {
                in_vain.push(key);
            }
        };
        keep("nri", new.nri != old.nri);
        keep("containerd", new.containerd != old.containerd);
        keep("pull", new.pull != old.pull);
        keep("metrics", new.metrics != old.metrics);
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
        *self.0.write() = Arc::new(new);
        in_vain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_toml(text, "test").unwrap()
    }

    #[test]
    fn what_can_change_does_and_what_cannot_is_named() {
        let live = Live::new(config("[unpack]\nparallel_layers = 5\n"));
        let holder = live.clone();
        let changed = "[unpack]\nmin_free = \"1%\"\nparallel_layers = 6\nmissing_content = []\n\
                       [hooks]\nwait = \"1s\"\n[handlers]\na = \"b\"\n[snapshotters.b]\n\
                       eager = \"all\"\n[log]\nlevel = \"debug\"\n[nri]\nindex = \"20\"\n\
                       [containerd]\nnamespace = \"x\"\n[metrics]\nlisten = \"127.0.0.1:1\"\n\
                       [pull]\nhosts = \"/h\"\n";
        let in_vain = live.adopt(config(changed));
        let names = [
            "nri",
            "containerd",
            "pull",
            "metrics",
            "unpack.parallel_layers",
            "unpack.missing_content",
        ];
        assert_eq!(in_vain, names);
        let expected = "[unpack]\nmin_free = \"1%\"\nparallel_layers = 5\n[hooks]\nwait = \"1s\"\n\
                        [handlers]\na = \"b\"\n[snapshotters.b]\neager = \"all\"\n\
                        [log]\nlevel = \"debug\"\n";
        assert_eq!(*holder.now(), config(expected));
        assert_eq!(live.adopt(config(expected)), [""; 0]);
    }
}
