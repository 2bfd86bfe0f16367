//! Tests with containerd's status, files on disk, and both together.

mod reading;
mod versions;

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;

/// A temporary folder with configuration files.
struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            fs::write(path, text).expect("written");
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self) -> FileConfig {
        self.read_as(None)
    }

    /// Reads the files as a containerd of this version does.
    fn read_as(&self, containerd: Option<(u64, u64)>) -> FileConfig {
        FileConfig::read(&self.path("config.toml"), containerd)
    }

    /// Resolves the handlers from these files alone.
    fn resolve(&self) -> Handlers {
        Handlers::resolve(&Config::default(), Running::default(), Some(self.read()))
    }

    /// Returns the handlers with their snapshotters and sources in one line.
    fn summary(&self, handlers: &Handlers) -> String {
        let folder = format!("{}/", self.0.path().display());
        let one = |(handler, resolved): (&str, &Resolved)| {
            let mark = if resolved.follows_default { "*" } else { "" };
            let Resolved {
                snapshotter,
                origin,
                ..
            } = resolved;
            format!(
                "{handler}={snapshotter}{mark}@{}",
                origin.to_string().replace(&folder, "")
            )
        };
        handlers.iter().map(one).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the answers of a containerd with this CRI status and no image file system.
fn running(status: Option<&str>) -> Running<'_> {
    Running {
        cri_status_config: status,
        ..Running::default()
    }
}

/// Whether the problem is an unknown default snapshotter, as without a file.
fn is_of_default(problem: &str) -> bool {
    problem.starts_with("the default snapshotter is not known")
}

fn problems(handlers: &Handlers) -> Vec<String> {
    handlers
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn config(text: &str) -> Config {
    Config::from_toml(text, "c.toml").expect("a valid configuration")
}

const VERSION_3: &str = r#"
version = 3
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
pinned_images = { sandbox = "registry.example/pause:3.8" }
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "crun"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata]
snapshotter = "nydus"
"#;

/// The status of containerd 2.1. 1.7 adds the default snapshotter and the sandbox image.
const STATUS: &str = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes":
    {"runc": {"snapshotter": ""}, "kata": {"snapshotter": "nydus"}, "gvisor": {"snapshotter": "erofs"}}}}"#;

fn status_of_1_7() -> String {
    let more =
        r#"{"sandboxImage": "registry.example/pause:3.9", "containerd": {"snapshotter": "zfs","#;
    STATUS.replacen(r#"{"containerd": {"#, more, 1)
}

#[test]
fn sources_have_their_precedence() {
    let files = Files::new(&[("config.toml", VERSION_3)]);
    let overruled = "[handlers]\nkata = 'devmapper'\n";
    let cases = [
        ("no source", ("", None, false), ""),
        (
            "2.x: runtimes from the status, the default from the file",
            ("", Some(STATUS.to_owned()), true),
            "gvisor=erofs@CRI status kata=nydus@CRI status runc=native*@config.toml",
        ),
        (
            "1.7: the file is not used",
            ("", Some(status_of_1_7()), true),
            "gvisor=erofs@CRI status kata=nydus@CRI status runc=zfs*@CRI status",
        ),
        (
            "the plugin's configuration over all",
            (overruled, Some(status_of_1_7()), true),
            "gvisor=erofs@CRI status kata=devmapper@configuration runc=zfs*@CRI status",
        ),
        (
            "the plugin's configuration over files",
            (overruled, None, true),
            "crun=native*@config.toml kata=devmapper@configuration runc=native*@config.toml",
        ),
        (
            "the plugin's configuration alone",
            (overruled, None, false),
            "kata=devmapper@configuration",
        ),
    ];
    for (name, (text, status, with_files), expected) in cases {
        let containerd = with_files.then(|| files.read());
        let handlers = Handlers::resolve(&config(text), running(status.as_deref()), containerd);
        assert_eq!(files.summary(&handlers), expected, "{name}");
        let mut problems = problems(&handlers);
        problems.retain(|problem| with_files || status.is_some() || !is_of_default(problem));
        assert_eq!(problems, [""; 0], "{name}");
    }
}

#[test]
fn with_a_broken_status_the_files_are_used() {
    let files = Files::new(&[("config.toml", VERSION_3)]);
    let handlers = Handlers::resolve(&Config::default(), running(Some("{")), Some(files.read()));
    assert_eq!(handlers.default_runtime().value, "crun");
    let expected = "cannot parse the configuration in containerd's CRI status: \
                    EOF while parsing an object at line 1 column 1";
    assert_eq!(problems(&handlers), [expected]);
}

#[test]
fn broken_files_that_are_not_needed_are_no_problem() {
    let files = Files::new(&[("config.toml", "[plugins.cri\n")]);
    let resolve = |running| Handlers::resolve(&Config::default(), running, Some(files.read()));
    let of_1_7 = status_of_1_7();
    assert_eq!(problems(&resolve(running(Some(&of_1_7)))), [""; 0]);
    let listed = [listed("zfs")];
    let of_2 = Running {
        cri_status_config: Some(STATUS),
        image_file_system: Some("/zfs"),
        snapshotters: &listed,
    };
    let handlers = resolve(of_2);
    assert_eq!(problems(&handlers), [""; 0]);
    assert_eq!(handlers.default_name(), Some("zfs"));
    let problems = problems(&resolve(running(Some(STATUS))));
    assert_eq!(
        problems.len(),
        2,
        "the files are needed if CRI does not report the default: {problems:?}"
    );
}

#[test]
fn handlers_are_looked_up() {
    let zfs = [listed("zfs")];
    let running = Running {
        image_file_system: Some("/zfs"),
        snapshotters: &zfs,
        ..running(Some(STATUS))
    };
    let handlers = Handlers::resolve(&Config::default(), running, None);
    let snapshotter = |handler| {
        handlers
            .snapshotter(handler)
            .map(|resolved| resolved.snapshotter.as_str())
    };
    assert_eq!(snapshotter("kata"), Ok("nydus"));
    assert_eq!(snapshotter(""), Ok("zfs"), "the default runtime's");
    let error = snapshotter("kata-qemu").expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "the runtime handler \"kata-qemu\" is not known (known: gvisor, kata, runc): \
         add `\"kata-qemu\" = \"<snapshotter>\"` to [handlers] of the configuration"
    );
}

#[test]
fn names_that_containerd_does_not_have_are_problems() {
    let none = Files::new(&[("config.toml", "version = 3\n")]);
    let mistaken = config("[handlers]\nkatta = 'nydus'\n");
    let handlers = Handlers::resolve(&mistaken, running(Some(STATUS)), Some(none.read()));
    assert_eq!(
        problems(&handlers),
        [
            "[handlers] names the runtime handler \"katta\", which containerd does not have: \
          it has gvisor, kata, runc; correct the name, or remove it"
        ]
    );
    let unknown = handlers.check_known(&["overlayfs", "erofs", "native"]);
    let unknown: Vec<String> = unknown.iter().map(ToString::to_string).collect();
    let expected = |handler, origin| {
        format!(
            "the runtime handler \"{handler}\" uses the snapshotter \"nydus\" ({origin}), which containerd does not \
             list: it lists erofs, native, overlayfs; \
             load the snapshotter's plugin, or add it to containerd's proxy_plugins"
        )
    };
    assert_eq!(
        unknown,
        [
            expected("kata", "CRI status"),
            expected("katta", "configuration")
        ]
    );
    assert!(
        handlers
            .check_known(&["overlayfs", "erofs", "nydus"])
            .is_empty()
    );
}

#[test]
fn runtime_platforms_set_no_snapshotter_but_are_compared() {
    let pulls = "[plugins.'io.containerd.cri.v1.images'.runtime_platforms]\n\
                 kata = { snapshotter = 'nydus' }\nrunc = { snapshotter = 'nydus' }\nnone = { platform = 'linux/amd64' }\n";
    let files = Files::new(&[("config.toml", &format!("version = 3\n{pulls}"))]);
    let handlers = Handlers::resolve(
        &Config::default(),
        running(Some(STATUS)),
        Some(files.read()),
    );
    assert_eq!(
        handlers
            .snapshotter("runc")
            .map(|resolved| resolved.snapshotter.as_str()),
        Ok("overlayfs")
    );
    let expected = format!(
        "containerd pulls images for the runtime handler \"runc\" into \"nydus\" (runtime_platforms in {}), \
         but creates its containers in \"overlayfs\": give the runtime the same snapshotter",
        files.path("config.toml").display()
    );
    assert_eq!(problems(&handlers), [expected]);
}

fn listed(name: &str) -> Snapshotter {
    Snapshotter {
        name: name.to_owned(),
        exports: [("root".to_owned(), format!("/{name}"))].into(),
        ..Snapshotter::default()
    }
}

#[test]
fn a_default_that_no_source_has_is_not_assumed() {
    let broken = [("config.toml", "version = 3\nimports = ['gone.toml']\n")];
    for (files, how) in [
        (&broken[..], "cannot be read"),
        (&[], "does not exist at containerd.config"),
    ] {
        let files = Files::new(files);
        let resolve =
            |text| Handlers::resolve(&config(text), running(Some(STATUS)), Some(files.read()));
        let handlers = resolve("");
        assert_eq!(handlers.default_name(), None);
        let expected = "gvisor=erofs@CRI status kata=nydus@CRI status";
        assert_eq!(files.summary(&handlers), expected);
        let problem = problems(&handlers).pop().expect("a problem");
        let words = [how, "(handlers that use it: runc)", "[handlers]"];
        assert!(words.iter().all(|word| problem.contains(word)), "{problem}");
        for handler in ["", "runc"] {
            let error = handlers.snapshotter(handler).expect_err("not known");
            assert_eq!(error, HandlerError::Undecided("runc".to_owned()));
        }
        let handlers = resolve("[handlers]\nrunc = 'zfs'\n");
        assert!(
            files
                .summary(&handlers)
                .ends_with(" runc=zfs@configuration")
        );
    }
}

#[test]
fn the_running_containerd_has_precedence_over_differing_files() {
    let files = Files::new(&[("config.toml", &VERSION_3.replace("nydus", "devmapper"))]);
    let listed = [listed("overlayfs"), listed("native")];
    let resolve = |directory, file| {
        let running = Running {
            cri_status_config: Some(STATUS),
            image_file_system: Some(directory),
            snapshotters: &listed,
        };
        Handlers::resolve(&Config::default(), running, file)
    };
    let handlers = resolve("/overlayfs", Some(files.read()));
    let expected =
        "gvisor=erofs@CRI status kata=nydus@CRI status runc=overlayfs*@CRI image file system";
    assert_eq!(files.summary(&handlers), expected);
    assert_eq!(problems(&handlers), [""; 0]);
    let differences = handlers.differences().iter().map(ToString::to_string);
    let differences: Vec<_> = differences.collect();
    let file = files.path("config.toml").display().to_string();
    let remedy =
        "the value of the running containerd is used; restart containerd, or correct the file";
    assert_eq!(
        differences,
        [
            format!(
                "the default snapshotter is overlayfs in the running containerd (CRI image file system), and native in {file}: {remedy}"
            ),
            format!(
                "the default runtime is runc in the running containerd (CRI status), and crun in {file}: {remedy}"
            ),
            format!(
                "the snapshotter of the runtime handler \"kata\" is nydus in the running containerd (CRI status), and devmapper in {file}: {remedy}"
            ),
        ]
    );
    assert_eq!(
        resolve("/native", Some(files.read())).differences().len(),
        2
    );
    assert_eq!(resolve("/native", None).differences().len(), 0);
}
