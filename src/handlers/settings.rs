//! containerd's configuration files key by key, for whoever asks for one key and the file that says
//! it. What runtimes and snapshotters follow from them is read elsewhere, with types.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

/// NRI's table, the same in all versions.
pub const NRI_TABLE: &str = "io.containerd.nri.v1.nri";

/// CRI's table about images, in versions 3 and 2.
const IMAGE_TABLES: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];

/// What the files say, in containerd's order.
#[derive(Debug, Default)]
pub struct Settings {
    files: Vec<(PathBuf, Table)>,
}

impl Settings {
    /// Takes the next file. One that is no TOML says nothing: [`Problem`](super::Problem) tells of it.
    pub(super) fn add(&mut self, path: &Path, text: &str) {
        if let Ok(table) = text.parse() {
            self.files.push((path.to_owned(), table));
        }
    }

    /// The value under these keys, and the file that has it: the last one that says so.
    pub fn find(&self, keys: &[&str]) -> Option<(&Value, &Path)> {
        let mut files = self.files.iter().rev();
        files.find_map(|(path, table)| Some((lookup(table, keys)?, path.as_path())))
    }

    /// The same for a switch.
    pub fn switch(&self, keys: &[&str]) -> Option<(bool, &Path)> {
        let (value, path) = self.find(keys)?;
        Some((value.as_bool()?, path))
    }

    /// How long NRI waits for a plugin's answer, where a file says it.
    pub fn request_timeout(&self) -> Option<(Duration, &Path)> {
        let (value, path) = self.find(&["plugins", NRI_TABLE, "plugin_request_timeout"])?;
        let timeout = humantime::parse_duration(value.as_str()?).ok()?;
        Some((timeout, path))
    }

    /// Whether CRI hands the keys of the node over when it unpacks an encrypted layer: it does unless
    /// `image_decryption.key_model` is another than its default, `node`.
    pub fn hands_keys_over(&self) -> bool {
        let keys = ["image_decryption", "key_model"];
        let written = IMAGE_TABLES.iter().find_map(|table| {
            let (value, _) = self.find(&["plugins", table, keys[0], keys[1]])?;
            value.as_str()
        });
        written.is_none_or(|model| model == "node")
    }

    /// The version that the main file states.
    pub fn version(&self) -> Option<i64> {
        self.files.first()?.1.get("version")?.as_integer()
    }
}

fn lookup<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (last, tables) = keys.split_last()?;
    let mut table = table;
    for key in tables {
        table = table.get(*key)?.as_table()?;
    }
    table.get(*last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_the_nodes_unless_a_file_says_otherwise() {
        for (table, model, expected) in [
            ("io.containerd.cri.v1.images", "node", true),
            ("io.containerd.cri.v1.images", "", false),
            ("io.containerd.grpc.v1.cri", "", false),
            ("io.containerd.cri.v1.runtime", "", true),
        ] {
            let mut settings = Settings::default();
            assert!(settings.hands_keys_over());
            let text = format!("[plugins.{table:?}.image_decryption]\nkey_model = {model:?}\n");
            settings.add(Path::new("/a"), &text);
            assert_eq!(settings.hands_keys_over(), expected, "{table} {model}");
        }
    }

    #[test]
    fn the_last_file_that_says_it_counts() {
        let mut settings = Settings::default();
        settings.add(
            Path::new("/a"),
            "version = 3\n[plugins.x]\non = true\nn = 1",
        );
        settings.add(Path::new("/b"), "[plugins.x]\non = false");
        settings.add(Path::new("/c"), "[plugins.y]\non = true");
        settings.add(Path::new("/d"), "[plugins.x\n");
        let on = ["plugins", "x", "on"];
        assert_eq!(settings.switch(&on), Some((false, Path::new("/b"))));
        let n = settings.find(&["plugins", "x", "n"]);
        assert_eq!(n, Some((&Value::Integer(1), Path::new("/a"))));
        assert_eq!(settings.switch(&["plugins", "x", "n"]), None);
        assert_eq!(settings.find(&["plugins", "x", "n", "deeper"]), None);
        assert_eq!(settings.version(), Some(3));

        assert_eq!(settings.request_timeout(), None);
        let nri = format!("[plugins.{NRI_TABLE:?}]\nplugin_request_timeout = \"500ms\"");
        settings.add(Path::new("/e"), &nri);
        let timeout = Some((Duration::from_millis(500), Path::new("/e")));
        assert_eq!(settings.request_timeout(), timeout);
    }
}
