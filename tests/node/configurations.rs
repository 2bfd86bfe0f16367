//! The plugin reads containerd's configuration files as containerd does: each result is compared with
//! `config dump`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Packages, Version};
use nri_unpack::config::Config;
use nri_unpack::handlers::{FileConfig, Handlers, Running};
use toml::{Table, Value};

const CRI: &str = "[plugins.'io.containerd.grpc.v1.cri'.containerd]\n";
const GUEST: &str =
    "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.guest]\nruntime_type = 'x'\n";
const NEW_GUEST: &str =
    "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.guest]\nruntime_type = 'x'\n";
const IMAGES: &str = "[plugins.'io.containerd.cri.v1.images']\n";

/// Creates the test cases: the files below `tests/configs` and others, each a folder with a `config.toml`.
fn cases() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let text = |parts: &[&str]| parts.concat();
    let says = |version: u8, name: &str| {
        let (guest, images) = if version == 3 {
            (NEW_GUEST, IMAGES)
        } else {
            (GUEST, CRI)
        };
        format!(
            "version = {version}\n{images}snapshotter = '{name}'\n{guest}snapshotter = '{name}'\n"
        )
    };
    let write = |case: &str, name: &str, text: &str| -> Result<()> {
        let path = folder.path().join(case).join(name);
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        Ok(std::fs::write(path, text)?)
    };
    // Which files a pattern of `imports` matches.
    for version in [2, 3] {
        for (i, pattern) in [
            "**/*.toml",
            "**.toml",
            "[^x]*",
            "to\\\\p*",
            "*/../*.toml",
            "nothing/*",
        ]
        .into_iter()
        .enumerate()
        {
            let case = format!("pattern-{version}-{i}");
            let main = format!("version = {version}\nimports = [\"conf.d/{pattern}\"]\n");
            write(&case, "config.toml", &main)?;
            for (name, snapshotter) in [
                ("conf.d/1.toml", "native"),
                ("conf.d/a/2.toml", "btrfs"),
                ("conf.d/a/b/3.toml", "zfs"),
                ("conf.d/top.toml", "erofs"),
                ("conf.d/x.toml", "devmapper"),
            ] {
                write(&case, name, &says(version, snapshotter))?;
            }
        }
    }
    let cases: &[(&str, &[(&str, String)])] = &[
        (
            "version-1",
            &[(
                "config.toml",
                text(&[
                    "[plugins.cri]\nsandbox_image = 'p:1'\n[plugins.cri.containerd]\nsnapshotter = 'native'\n[plugins.cri.containerd.runtimes.guest]\nruntime_type = 'x'\nsnapshotter = 'zfs'\n",
                ]),
            )],
        ),
        (
            "version-1-long-names",
            &[(
                "config.toml",
                text(&[
                    CRI,
                    "snapshotter = 'native'\n",
                    GUEST,
                    "snapshotter = 'zfs'\n",
                ]),
            )],
        ),
        (
            "version-2",
            &[(
                "config.toml",
                text(&[
                    "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'p:1'\n",
                    CRI,
                    "snapshotter = 'native'\ndiscard_unpacked_layers = true\ndefault_runtime_name = 'guest'\n",
                    GUEST,
                    "snapshotter = 'zfs'\n",
                ]),
            )],
        ),
        (
            "version-2-short-names",
            &[(
                "config.toml",
                text(&["version = 2\n[plugins.cri.containerd]\nsnapshotter = 'native'\n"]),
            )],
        ),
        (
            "version-2-imports-2",
            &[
                (
                    "config.toml",
                    text(&[
                        "version = 2\nimports = ['m.toml']\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'p:1'\n",
                        CRI,
                        "snapshotter = 'native'\ndiscard_unpacked_layers = true\n",
                        GUEST,
                        "snapshotter = 'zfs'\n",
                    ]),
                ),
                (
                    "m.toml",
                    text(&[
                        "version = 2\n",
                        CRI,
                        "disable_snapshot_annotations = false\n",
                        GUEST,
                    ]),
                ),
            ],
        ),
        (
            "version-2-imports-3",
            &[
                (
                    "config.toml",
                    text(&[
                        "version = 2\nimports = ['m.toml']\n",
                        CRI,
                        "snapshotter = 'native'\n",
                        GUEST,
                        "snapshotter = 'zfs'\n",
                    ]),
                ),
                (
                    "m.toml",
                    text(&["version = 3\n", IMAGES, "discard_unpacked_layers = true\n"]),
                ),
            ],
        ),
        (
            "version-3-imports-2",
            &[
                (
                    "config.toml",
                    text(&[
                        "version = 3\nimports = ['m.toml']\n",
                        IMAGES,
                        "snapshotter = 'native'\ndiscard_unpacked_layers = true\n",
                        NEW_GUEST,
                        "snapshotter = 'zfs'\n",
                    ]),
                ),
                (
                    "m.toml",
                    text(&[
                        "version = 2\n",
                        CRI,
                        "snapshotter = 'btrfs'\ndisable_snapshot_annotations = false\n",
                        GUEST,
                        "snapshotter = 'btrfs'\n",
                    ]),
                ),
            ],
        ),
        (
            "version-3-imports-none",
            &[
                (
                    "config.toml",
                    text(&[
                        "version = 3\nimports = ['m.toml']\n",
                        IMAGES,
                        "discard_unpacked_layers = true\n",
                    ]),
                ),
                (
                    "m.toml",
                    text(&[
                        IMAGES,
                        "snapshotter = 'btrfs'\ndiscard_unpacked_layers = false\npinned_images = { sandbox = 'p:2' }\n",
                    ]),
                ),
            ],
        ),
        (
            "deeper",
            &[
                (
                    "config.toml",
                    text(&["version = 3\nimports = ['1/*.toml', '2/a.toml']\n"]),
                ),
                (
                    "1/a.toml",
                    text(&["version = 3\nimports = ['b.toml', '../config.toml']\n"]),
                ),
                ("1/b.toml", says(3, "native")),
                ("2/a.toml", says(3, "zfs")),
            ],
        ),
        (
            "bad-pattern",
            &[(
                "config.toml",
                text(&["version = 2\nimports = ['[*.toml']\n"]),
            )],
        ),
        (
            "missing-import",
            &[(
                "config.toml",
                text(&["version = 2\nimports = ['m.toml']\n"]),
            )],
        ),
        ("version-5", &[("config.toml", text(&["version = 5\n"]))]),
    ];
    for (case, files) in cases {
        for (name, text) in *files {
            write(case, name, text)?;
        }
    }
    Ok(folder)
}

/// The effective configuration.
#[derive(Debug, PartialEq)]
struct Effective {
    default_snapshotter: String,
    handlers: Vec<(String, String)>,
    default_runtime: String,
    annotations_off: bool,
    discards: bool,
    sandbox_image: Option<String>,
}

fn at<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (last, tables) = keys.split_last()?;
    let mut tables = tables.iter();
    let table = tables.try_fold(table, |table, key| table.get(*key)?.as_table());
    table?.get(*last)
}

/// Returns what containerd itself reads from the files, or `None` if it does not start with them.
fn dumped(containerd: &Path, config: &Path, version: Version) -> Result<Option<Effective>> {
    let mut command = Command::new(containerd.join("containerd"));
    let output = command
        .arg("-c")
        .arg(config)
        .args(["config", "dump"])
        .output()?;
    if !output.status.success() {
        return Ok(None);
    }
    let dump: Table = std::str::from_utf8(&output.stdout)?.parse()?;
    let (images, runtime, sandbox): (&[&str], &[&str], &[&str]) = match version {
        Version::V1_7 => {
            // containerd prints a file of version 1 without conversion.
            let is_old = at(&dump, &["plugins", "cri"]).is_some();
            let cri = if is_old {
                "cri"
            } else {
                "io.containerd.grpc.v1.cri"
            };
            let table: &'static [&str] = Box::leak(Box::new(["plugins", cri, "containerd"]));
            (
                table,
                table,
                Box::leak(Box::new(["plugins", cri, "sandbox_image"])),
            )
        }
        Version::V2_1 => (
            &["plugins", "io.containerd.cri.v1.images"],
            &["plugins", "io.containerd.cri.v1.runtime", "containerd"],
            &[
                "plugins",
                "io.containerd.cri.v1.images",
                "pinned_images",
                "sandbox",
            ],
        ),
    };
    let text = |keys: &[&str]| at(&dump, keys).and_then(Value::as_str).map(str::to_owned);
    let switch = |key| at(&dump, &[images, &[key]].concat()).and_then(Value::as_bool);
    let default = text(&[images, &["snapshotter"]].concat()).context("a default")?;
    let runtimes = at(&dump, &[runtime, &["runtimes"]].concat()).and_then(Value::as_table);
    let handlers = runtimes.into_iter().flatten().map(|(name, runtime)| {
        let own = runtime
            .get("snapshotter")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let own = if own.is_empty() { &default } else { own };
        (name.clone(), own.to_owned())
    });
    Ok(Some(Effective {
        handlers: handlers.collect(),
        default_runtime: text(&[runtime, &["default_runtime_name"]].concat())
            .context("a runtime")?,
        annotations_off: switch("disable_snapshot_annotations").context("annotations")?,
        discards: switch("discard_unpacked_layers").context("discard")?,
        sandbox_image: text(sandbox),
        default_snapshotter: default,
    }))
}

/// Returns what this program reads; `None` if it reports a problem that keeps containerd from starting.
fn read(config: &Path, version: Version) -> Option<Effective> {
    let numbers = match version {
        Version::V1_7 => (1, 7),
        Version::V2_1 => (2, 1),
    };
    let file = FileConfig::read(config, Some(numbers));
    if !file.problems().is_empty() {
        return None;
    }
    let switch = |key, usual| {
        file.settings()
            .images_switch(key)
            .map_or(usual, |(on, _)| on)
    };
    let (annotations_off, discards) = (
        switch("disable_snapshot_annotations", true),
        switch("discard_unpacked_layers", false),
    );
    let handlers = Handlers::resolve(&Config::default(), Running::default(), Some(file));
    let all = handlers.iter();
    Some(Effective {
        default_snapshotter: handlers.default_name()?.to_owned(),
        handlers: all
            .map(|(name, it)| (name.to_owned(), it.snapshotter.clone()))
            .collect(),
        default_runtime: handlers.default_runtime().value.clone(),
        annotations_off,
        discards,
        sandbox_image: handlers.sandbox_image().map(|image| image.value.clone()),
    })
}

#[test]
fn files_are_read_as_containerd_reads_them() -> Result<()> {
    let packages = Packages::fetch()?;
    let made = cases()?;
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    let mut compared = 0;
    for version in Version::ALL {
        let prefix = if version == Version::V1_7 {
            "1.7."
        } else {
            "2.1."
        };
        let containerd = packages.containerd(prefix);
        for folder in std::fs::read_dir(made.path())?.chain(std::fs::read_dir(&kept)?) {
            let folder = folder?.path();
            // containerd 2 starts without the missing file; for this program the file may exist in containerd's
            // mount namespace.
            if version == Version::V2_1 && folder.ends_with("missing-import") {
                continue;
            }
            let config = folder.join("config.toml");
            let expected = dumped(&containerd, &config, version)?;
            let mut found = read(&config, version);
            // No file names the pause image that is built into containerd.
            if let (Some(found), Some(expected)) = (&mut found, &expected)
                && found.sandbox_image.is_none()
            {
                found.sandbox_image.clone_from(&expected.sandbox_image);
            }
            ensure!(
                found == expected,
                "{version:?}, {}: read {found:#?}, but it is {expected:#?}",
                config.display()
            );
            compared += 1;
        }
    }
    ensure!(compared > 50, "{compared}");
    Ok(())
}
