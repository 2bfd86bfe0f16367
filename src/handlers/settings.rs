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
