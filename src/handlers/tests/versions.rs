//! Tests of the same files with different versions of containerd. The expected values are from each version's
//! `config dump`.

use super::*;

/// The expected values: the default snapshotter, the handlers except the built-in one, whether annotations
/// are off, and whether layers are discarded. `None` if this containerd does not start.
type Expected = Option<(&'static str, &'static str, bool, bool)>;

#[test]
fn files_are_read_by_the_rules_of_each_version() {
    let defaults = Some(("overlayfs", "", true, false));
    let guest = Some(("native", "guest=erofs", true, false));
    let reset = Some(("overlayfs", "guest=overlayfs*", true, false));
    let cases: [(&str, [Expected; 3]); 4] = [
        (
            "v2-no-runtimes",
            [Some(("native", "", false, true)), defaults, defaults],
        ),
        ("unversioned-drop-in", [None, defaults, guest]),
        ("v4-short-names", [None, None, guest]),
        ("reset-by-import", [None, reset, reset]),
    ];
    let versions: [&[&str]; 3] = [
        &["1.7.24", "1.7.34"],
        &["2.0.11", "2.1.9", "2.2.7"],
        &["2.3.4", "2.4.0-beta.0"],
    ];
    let configs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    for (case, expected) in cases {
        for (versions, expected) in versions.iter().zip(expected) {
            for version in *versions {
                let path = configs.join(case).join("config.toml");
                let numbers = crate::containerd::numbers(version);
                let file = FileConfig::read(&path, numbers);
                assert_eq!(
                    file.problems().is_empty(),
                    expected.is_some(),
                    "{case} on {version}"
                );
                let Some((default, handlers, annotations_off, discards)) = expected else {
                    let refused = matches!(file.problems(), [Problem::Refused { .. }]);
                    assert!(refused, "{case} on {version}");
                    continue;
                };
                let switch = |key| file.settings().images_switch(key).map(|(on, _)| on);
                let switches = [
                    switch("disable_snapshot_annotations").unwrap_or(true),
                    switch("discard_unpacked_layers").unwrap_or(false),
                ];
                assert_eq!(switches, [annotations_off, discards], "{case} on {version}");
                let all = Handlers::resolve(&Config::default(), Running::default(), Some(file));
                assert_eq!(all.default_name(), Some(default), "{case} on {version}");
                let found = all
                    .iter()
                    .filter(|(name, _)| *name != "runc")
                    .map(|(name, it)| {
                        let mark = if it.follows_default { "*" } else { "" };
                        format!("{name}={}{mark}", it.snapshotter)
                    });
                assert_eq!(
                    found.collect::<Vec<_>>().join(" "),
                    handlers,
                    "{case} on {version}"
                );
            }
        }
    }
}
