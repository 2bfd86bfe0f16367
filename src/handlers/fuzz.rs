//! The fuzzer of what the running containerd and its configuration files say.

use std::path::Path;
use std::sync::Arc;

use super::migration::{Files, Rules, version};
use super::settings::Settings;
use super::{cri_status, document, go_glob};

/// Files, with a zero byte between them, behind a byte that chooses the version of containerd. Each is also read as CRI's
/// status and as a pattern of imports.
pub fn containerd_configuration(bytes: &[u8]) {
    let Some((version_of, files)) = bytes.split_first() else {
        return;
    };
    let containerd = [None, Some((1, 7)), Some((2, 1)), Some((2, 3))];
    let containerd = containerd[usize::from(version_of % 4)];
    let texts: Vec<_> = files.split(|byte| *byte == 0).take(4).collect();
    let texts: Vec<_> = texts
        .iter()
        .filter_map(|text| std::str::from_utf8(text).ok())
        .collect();
    for text in &texts {
        let _ = cri_status::parse(text);
        if text.len() < 256 {
            let _ = go_glob::matches(text, "10-handlers.toml");
        }
    }
    let tables: Vec<toml::Table> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    let rules = Rules::of(containerd, tables.first().map_or(0, version));
    let mut all = Files::new(rules);
    let path: Arc<Path> = Path::new("/fuzz").into();
    for table in tables {
        all.add(table, &path);
    }
    if let Ok(tree) = all.finish() {
        let reported = document::reported(&tree, rules);
        let settings = Settings::new(tree, rules);
        let _ = settings.images_switch("discard_unpacked_layers");
        drop(reported.or(Default::default()));
    }
}
