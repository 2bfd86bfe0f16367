//! The merged keys of containerd's configuration files, each with its file. `document` extracts runtimes and
//! snapshotters.

use std::path::Path;
use std::time::Duration;

use toml::Value;

use crate::config::parse_duration;

use super::document::images_table;
use super::migration::{CRI, IMAGES, Rules};
use super::tree::Tree;

/// NRI's table, the same in all versions.
pub const NRI_TABLE: &str = "io.containerd.nri.v1.nri";

/// The merged keys of all files.
#[derive(Debug)]
pub struct Settings {
    tree: Tree,
    rules: Rules,
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(Tree::default(), Rules::V2_3)
    }
}

impl Settings {
    pub(super) fn new(tree: Tree, rules: Rules) -> Self {
        Self { tree, rules }
    }

    /// Returns the value under these keys and its file: the last one that sets it.
    pub fn find(&self, keys: &[&str]) -> Option<(&Value, &Path)> {
        self.tree.value(keys)
    }

    /// Returns the boolean under these keys and its file.
    pub fn switch(&self, keys: &[&str]) -> Option<(bool, &Path)> {
        let (value, path) = self.find(keys)?;
        Some((value.as_bool()?, path))
    }

    /// Returns a boolean of CRI's settings for image pulls and its file.
    pub fn images_switch(&self, key: &str) -> Option<(bool, &Path)> {
        self.switch(&[images_table(self.rules), &[key]].concat())
    }

    /// Returns the heading of the table with CRI's settings for image pulls.
    pub fn images_heading(&self) -> String {
        let keys = images_table(self.rules).iter();
        let quoted = keys.map(|key| match key.contains('.') {
            true => format!("{key:?}"),
            false => (*key).to_owned(),
        });
        format!("[{}]", quoted.collect::<Vec<_>>().join("."))
    }

    /// Iterates over the keys in the table under these keys.
    pub fn names(&self, keys: &[&str]) -> impl Iterator<Item = &str> {
        self.tree.table(keys).into_iter().flat_map(Tree::keys)
    }

    /// Returns the time that NRI waits for a plugin's answer and its file, if a file sets it.
    pub fn request_timeout(&self) -> Option<(Duration, &Path)> {
        let (value, path) = self.find(&["plugins", NRI_TABLE, "plugin_request_timeout"])?;
        let timeout = parse_duration(value.as_str()?).ok()?;
        Some((timeout, path))
    }

    /// Whether CRI of containerd 2.1 or later pulls images itself, and not by the transfer service. It does if
    /// `use_local_image_pull` is set, and if it has a setting that the transfer service does not support
    /// (`CheckLocalImagePullConfigs` in containerd).
    pub fn pulls_locally(&self) -> bool {
        const DOWNLOADS: [&str; 3] = ["plugins", IMAGES, "max_concurrent_downloads"];
        const BY_DEFAULT: i64 = 3;
        let is = |key, value| self.images_switch(key).is_some_and(|(on, _)| on == value);
        let registry = |key| ["plugins", IMAGES, "registry", key];
        let downloads = self.find(&DOWNLOADS);
        let downloads = downloads.and_then(|(number, _)| number.as_integer());
        is("use_local_image_pull", true)
            || is("disable_snapshot_annotations", false)
            || is("discard_unpacked_layers", true)
            || is("image_pull_with_sync_fs", true)
            || ["mirrors", "configs", "auths"]
                .iter()
                .any(|key| self.names(&registry(key)).next().is_some())
            || downloads.is_some_and(|number| number != BY_DEFAULT)
    }

    /// Whether CRI passes the node's keys to the unpack of an encrypted layer. It does unless
    /// `image_decryption.key_model` differs from its default `node`.
    pub fn hands_keys_over(&self) -> bool {
        let table = match self.rules {
            Rules::V1_7 => CRI,
            Rules::V2_0 | Rules::V2_3 => IMAGES,
        };
        let written = self.find(&["plugins", table, "image_decryption", "key_model"]);
        let written = written.and_then(|(model, _)| model.as_str());
        written.is_none_or(|model| model == "node")
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::FileConfig;
    use super::*;

    #[test]
    fn only_a_valid_timeout_is_read() {
        let settings = |text: &str| {
            let text = format!("[plugins.{NRI_TABLE:?}]\nplugin_request_timeout = {text}");
            let tree = Tree::new(text.parse().expect("TOML"), &Path::new("/e").into());
            Settings::new(tree, Rules::V2_0)
        };
        let half = Some((Duration::from_millis(500), Path::new("/e")));
        assert_eq!(settings("\"500ms\"").request_timeout(), half);
        assert_eq!(settings("\"soon\"").request_timeout(), None);
        assert_eq!(settings("5").request_timeout(), None);
    }

    #[test]
    fn the_nodes_keys_are_passed_unless_a_file_sets_another_key_model() {
        assert!(Settings::default().hands_keys_over());
        for (rules, table, model, expected) in [
            (Rules::V2_0, IMAGES, "node", true),
            (Rules::V2_3, IMAGES, "", false),
            (Rules::V1_7, CRI, "", false),
            (Rules::V2_0, CRI, "", true),
            (Rules::V2_0, "io.containerd.cri.v1.runtime", "", true),
        ] {
            let text = format!("[plugins.{table:?}.image_decryption]\nkey_model = {model:?}\n");
            let tree = Tree::new(text.parse().expect("TOML"), &Path::new("/a").into());
            let settings = Settings::new(tree, rules);
            assert_eq!(settings.hands_keys_over(), expected, "{table} {model}");
        }
    }

    #[test]
    fn cri_pulls_itself_with_settings_that_the_transfer_service_lacks() {
        const V2: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'";
        const V3: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'";
        for (table, text, expected) in [
            (V3, "]\n", false),
            (V3, "]\nuse_local_image_pull = true", true),
            (V3, "]\nuse_local_image_pull = false", false),
            (V3, "]\ndisable_snapshot_annotations = false", true),
            (V3, "]\ndisable_snapshot_annotations = true", false),
            (V3, "]\ndiscard_unpacked_layers = true", true),
            (V3, "]\nimage_pull_with_sync_fs = true", true),
            (V3, "]\nmax_concurrent_downloads = 3", false),
            (V3, "]\nmax_concurrent_downloads = 10", true),
            (
                V3,
                ".registry]\nconfig_path = '/etc/containerd/certs.d'",
                false,
            ),
            (V3, ".registry.mirrors]\n", false),
            (
                V3,
                ".registry.mirrors.'docker.io']\nendpoint = ['https://a']",
                true,
            ),
            (
                V3,
                ".registry.configs.'r.example'.auth]\nusername = 'a'",
                true,
            ),
            (
                V3,
                ".registry.auths.'https://r.example']\nusername = 'a'",
                true,
            ),
            (V2, "]\n", false),
            (V2, "]\nmax_concurrent_downloads = 10", true),
            (V2, "]\nimage_pull_with_sync_fs = true", true),
            (
                V2,
                ".registry.mirrors.'docker.io']\nendpoint = ['https://a']",
                true,
            ),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("config.toml");
            std::fs::write(&path, format!("{table}{text}\n")).unwrap();
            for version in [(2, 1), (2, 4)] {
                let files = FileConfig::read(&path, Some(version));
                let found = files.settings().pulls_locally();
                assert_eq!(found, expected, "{table}{text} {version:?}");
            }
        }
    }

    #[test]
    fn the_images_table_depends_on_the_version() {
        let heading = |rules| Settings::new(Tree::default(), rules).images_heading();
        assert_eq!(
            heading(Rules::V1_7),
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]"
        );
        assert_eq!(
            heading(Rules::V2_3),
            "[plugins.\"io.containerd.cri.v1.images\"]"
        );
    }
}
