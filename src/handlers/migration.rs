//! Merges configuration files as containerd does. The rules for versions of the format, imports and moved
//! tables differ between lines of releases. Pure.
//!
//! The rules are from the sources of 1.7.24, 2.1.9 and 2.4, and were compared with `containerd config dump`.

use std::path::Path;
use std::sync::Arc;

use toml::Table;

use super::tree::Tree;

/// CRI's table up to version 2 of the format.
pub(crate) const CRI: &str = "io.containerd.grpc.v1.cri";

/// CRI's table for images from version 3 on.
pub(crate) const IMAGES: &str = "io.containerd.cri.v1.images";

/// CRI's table for runtimes from version 3 on.
pub(crate) const RUNTIME: &str = "io.containerd.cri.v1.runtime";

/// The name of CRI's table in version 1.
const CRI_OF_VERSION_1: &str = "cri";

/// The keys that version 3 moved from CRI's table `containerd` to the images' table.
const OF_IMAGES: [&str; 3] = [
    "snapshotter",
    "disable_snapshot_annotations",
    "discard_unpacked_layers",
];

/// The keys that version 3 moved from CRI's table to the images' table, as far as they are read here.
const OF_PULLS: [&str; 4] = [
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_with_sync_fs",
];

/// The rules by which a containerd reads its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// A later file replaces a plugin's table as a whole, and the last version that a file states applies
    /// to all files.
    V1_7,
    /// Tables are merged key by key. Files of version 0 and 1 get the names of version 2. Keys that version 3
    /// moved are moved after the merge, if the last version that a file states is below 3.
    V2_0,
    /// Like [`Self::V2_0`], but each file is migrated from its own version to version 4 before the merge.
    V2_3,
}

impl Rules {
    /// Returns the rules of a containerd version. For an unknown version they are those of the first version
    /// that accepts the main file's version.
    pub(super) fn of(containerd: Option<(u64, u64)>, main_file: i64) -> Self {
        match containerd {
            Some(version) if version < (2, 0) => Self::V1_7,
            Some(version) if version < (2, 3) => Self::V2_0,
            Some(_) => Self::V2_3,
            None if main_file < 4 => Self::V2_0,
            None => Self::V2_3,
        }
    }

    /// Returns the latest version of the format that containerd accepts.
    pub(super) fn format(self) -> i64 {
        match self {
            Self::V1_7 => 2,
            Self::V2_0 => 3,
            Self::V2_3 => 4,
        }
    }
}

/// The merge of all files, one after another.
#[derive(Debug)]
pub(super) struct Files {
    rules: Rules,
    /// The last version that a file stated.
    version: i64,
    tree: Tree,
}

impl Files {
    pub(super) fn new(rules: Rules) -> Self {
        let version = match rules {
            Rules::V1_7 => 0,
            Rules::V2_0 | Rules::V2_3 => rules.format(),
        };
        Self {
            rules,
            version,
            tree: Tree::default(),
        }
    }

    /// Adds the next file, in containerd's order.
    pub(super) fn add(&mut self, table: Table, path: &Arc<Path>) {
        let mut version = version(&table);
        let mut file = Tree::new(table, path);
        match self.rules {
            Rules::V1_7 => {
                // The file replaces whole tables of plugins, so their earlier content is removed.
                let plugins: Vec<_> = plugin_names(&file);
                let all = self.tree.table_mut("plugins");
                plugins.iter().for_each(|name| _ = all.take(name));
            }
            Rules::V2_0 if version < 2 => {
                name_plugins(&mut file);
                version = self.version;
            }
            Rules::V2_3 if version < 4 => {
                if version < 2 {
                    name_plugins(&mut file);
                }
                split_cri(&mut file);
                version = self.version.max(4);
            }
            Rules::V2_0 | Rules::V2_3 => {}
        }
        if version != 0 {
            self.version = version;
        }
        self.tree.overlay(file);
    }

    /// Returns the merged values, or the reason why this containerd would not start with the files.
    pub(super) fn finish(mut self) -> Result<Tree, String> {
        let latest = self.rules.format();
        if self.version > latest {
            return Err(format!(
                "its version is {}, and this containerd accepts at most {latest}",
                self.version
            ));
        }
        match self.rules {
            Rules::V1_7 if self.version < 2 => {
                // Only the short names of plugins apply.
                let plugins = self.tree.table_mut("plugins");
                for (short, long) in [(CRI_OF_VERSION_1, CRI), ("nri", super::NRI_TABLE)] {
                    plugins.take(long);
                    plugins.rename(short, long);
                }
            }
            Rules::V1_7 => {
                let names = plugin_names(&self.tree);
                if let Some(name) = names
                    .iter()
                    .find(|name| !name.starts_with("io.containerd."))
                {
                    return Err(format!(
                        "it has a table of the plugin {name:?}, which is not a name of version 2"
                    ));
                }
            }
            Rules::V2_0 if self.version < 3 => split_cri(&mut self.tree),
            Rules::V2_0 | Rules::V2_3 => {}
        }
        Ok(self.tree)
    }
}

/// Returns the version that a file states, or 0.
pub(super) fn version(table: &Table) -> i64 {
    let stated = table.get("version").and_then(toml::Value::as_integer);
    stated.unwrap_or_default()
}

fn plugin_names(tree: &Tree) -> Vec<String> {
    let plugins = tree.table(&["plugins"]).into_iter();
    plugins.flat_map(Tree::keys).map(str::to_owned).collect()
}

/// Renames CRI's table to its name in version 2. Other plugins are not read here.
fn name_plugins(file: &mut Tree) {
    file.table_mut("plugins").rename(CRI_OF_VERSION_1, CRI);
}

/// Copies the values of CRI's table to the tables of version 3.
fn split_cri(file: &mut Tree) {
    let Some(cri) = file.table(&["plugins", CRI]).cloned() else {
        return;
    };
    let plugins = file.table_mut("plugins");
    let images = plugins.table_mut(IMAGES);
    if cri.value(&["sandbox_image"]).is_some() {
        let mut sandbox = cri.clone();
        sandbox.rename("sandbox_image", "sandbox");
        images
            .table_mut("pinned_images")
            .replace("sandbox", &sandbox);
    }
    OF_PULLS.iter().for_each(|key| images.replace(key, &cri));
    let Some(containerd) = cri.table(&["containerd"]).cloned() else {
        return;
    };
    // containerd loses these keys if no runtime is configured next to them.
    if containerd.table(&["runtimes"]).is_some() {
        OF_IMAGES
            .iter()
            .for_each(|key| images.replace(key, &containerd));
    }
    let runtime = plugins.table_mut(RUNTIME).table_mut("containerd");
    let keys = containerd.keys().filter(|key| !OF_IMAGES.contains(key));
    keys.for_each(|key| runtime.supply(key, &containerd));
}
