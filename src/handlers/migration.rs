//! What a containerd makes of its configuration files: how versions of the format, imports and the moves
//! between tables work together is another thing in each line of releases. Pure.
//!
//! Read from the sources of 1.7.24, 2.1.9 and 2.4, and held against `containerd config dump`.

use std::path::Path;
use std::sync::Arc;

use toml::Table;

use super::tree::Tree;

/// CRI's only table up to version 2.
pub(crate) const CRI: &str = "io.containerd.grpc.v1.cri";

/// What version 3 made of it: images…
pub(crate) const IMAGES: &str = "io.containerd.cri.v1.images";

/// …and runtimes.
pub(crate) const RUNTIME: &str = "io.containerd.cri.v1.runtime";

/// What version 1 calls CRI's table.
const CRI_OF_VERSION_1: &str = "cri";

/// What CRI's table `containerd` had that is the images' since.
const OF_IMAGES: [&str; 3] = [
    "snapshotter",
    "disable_snapshot_annotations",
    "discard_unpacked_layers",
];

/// The rules by which a containerd reads its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// A later file replaces a plugin's table as a whole, and the last version that is stated counts for
    /// all files.
    V1_7,
    /// Tables are laid over each other key by key. Files of version 0 and 1 get the names of version 2; what
    /// moved with version 3 is moved when all files are together, if the last version that is stated is
    /// below 3.
    V2_0,
    /// As before, but each file is moved to version 4 by its own version, before it is laid over the others.
    V2_3,
}

impl Rules {
    /// Those of a containerd of this version; of one whose version is not known those of the first that
    /// takes the main file's version.
    pub(super) fn of(containerd: Option<(u64, u64)>, main_file: i64) -> Self {
        match containerd {
            Some(version) if version < (2, 0) => Self::V1_7,
            Some(version) if version < (2, 3) => Self::V2_0,
            Some(_) => Self::V2_3,
            None if main_file < 4 => Self::V2_0,
            None => Self::V2_3,
        }
    }

    /// The latest version of the format that it takes.
    pub(super) fn format(self) -> i64 {
        match self {
            Self::V1_7 => 2,
            Self::V2_0 => 3,
            Self::V2_3 => 4,
        }
    }
}

/// All files, as they are read one after another.
#[derive(Debug)]
pub(super) struct Files {
    rules: Rules,
    /// The last that was stated.
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

    /// Takes the next file, in containerd's order.
    pub(super) fn add(&mut self, table: Table, path: &Arc<Path>) {
        let mut version = version(&table);
        let mut file = Tree::new(table, path);
        match self.rules {
            Rules::V1_7 => {
                // What is laid over the rest as a whole must not be there before.
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

    /// What is in force, or why this containerd does not start with it.
    pub(super) fn finish(mut self) -> Result<Tree, String> {
        let latest = self.rules.format();
        if self.version > latest {
            return Err(format!(
                "it is of version {}, and this containerd takes {latest} at most",
                self.version
            ));
        }
        match self.rules {
            Rules::V1_7 if self.version < 2 => {
                // By its short names alone.
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
                        "it has a table of the plugin {name:?}, which is no name of version 2"
                    ));
                }
            }
            Rules::V2_0 if self.version < 3 => split_cri(&mut self.tree),
            Rules::V2_0 | Rules::V2_3 => {}
        }
        Ok(self.tree)
    }
}

/// The version that a file states; none counts as 0.
pub(super) fn version(table: &Table) -> i64 {
    let stated = table.get("version").and_then(toml::Value::as_integer);
    stated.unwrap_or_default()
}

fn plugin_names(tree: &Tree) -> Vec<String> {
    let plugins = tree.table(&["plugins"]).into_iter();
    plugins.flat_map(Tree::keys).map(str::to_owned).collect()
}

/// Gives plugins the names of version 2, as far as they are read here.
fn name_plugins(file: &mut Tree) {
    file.table_mut("plugins").rename(CRI_OF_VERSION_1, CRI);
}

/// Moves what CRI's one table says into those of version 3.
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
    ["registry", "image_decryption"]
        .iter()
        .for_each(|key| images.replace(key, &cri));
    let Some(containerd) = cri.table(&["containerd"]).cloned() else {
        return;
    };
    // containerd forgets these where no runtime is configured beside them.
    if containerd.table(&["runtimes"]).is_some() {
        OF_IMAGES
            .iter()
            .for_each(|key| images.replace(key, &containerd));
    }
    let runtime = plugins.table_mut(RUNTIME).table_mut("containerd");
    let keys = containerd.keys().filter(|key| !OF_IMAGES.contains(key));
    keys.for_each(|key| runtime.supply(key, &containerd));
}
