//! The files of a distribution's node as the root of a containerd: it finds its configuration at the distribution's path,
//! and has its sockets and its root there.
//!
//! containerd and its pods run in a mount namespace of their own. The machine's own directories are not changed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::dir::lab_dir;
use crate::scratch::Scratch;

/// The script that enters the tree.
const ENTER: &str = include_str!("tree/enter");

/// The configuration that containerd is started with. It imports the one of the distribution, whose values count.
/// `restrict_oom_score_adj` is explained in [`crate::config`].
const MAIN: &str = r#"version = 3
imports = ["CONFIG"]
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
"#;

/// [`MAIN`], for a distribution whose file has version 2.
const MAIN_2: &str = r#"version = 2
imports = ["CONFIG"]
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
"#;

/// A distribution's node.
#[derive(Debug, Clone)]
pub struct Tree {
    /// A directory with its files.
    pub files: PathBuf,
    /// The configuration of its containerd.
    pub config: &'static str,
    /// What it starts its containerd with, besides the configuration.
    pub arguments: &'static [&'static str],
    /// The directory of containerd's socket.
    pub run: &'static str,
    /// containerd's root.
    pub root: &'static str,
    /// The name of its pause image.
    pub pause: &'static str,
}

impl Tree {
    /// Makes the tree of a run. Returns containerd's configuration, in the form of its file.
    pub(crate) fn make(&self, scratch: &Scratch) -> Result<String> {
        let tree = path(scratch);
        copy(&self.files, &tree)?;
        // What every node has.
        for directory in [
            "run",
            "tmp",
            "var",
            "etc",
            self.root.trim_start_matches('/'),
        ] {
            fs::create_dir_all(tree.join(directory))?;
        }
        symlink("/run", tree.join("var/run"))?;
        let run = below(&tree, self.run);
        fs::create_dir_all(&run)?;
        // The directory of the sockets is mounted there.
        for entry in fs::read_dir(run)? {
            let entry = entry?;
            let name = entry.file_name();
            fs::copy(entry.path(), scratch.socket(&name.to_string_lossy())?)?;
        }
        for (name, text) in [
            ("hosts", "127.0.0.1 localhost\n"),
            ("hostname", "node\n"),
            ("resolv.conf", ""),
        ] {
            fs::write(tree.join("etc").join(name), text)?;
        }
        let enter = scratch.path("enter");
        fs::write(&enter, ENTER)?;
        fs::set_permissions(&enter, fs::Permissions::from_mode(0o755))?;
        let config = tree.join(self.config.trim_start_matches('/'));
        let main = match fs::read_to_string(&config) {
            Ok(text) if text.lines().any(|line| line == "version = 2") => MAIN_2,
            Ok(_) => MAIN,
            // containerd also runs without a configuration.
            Err(_) => return Ok(MAIN.replace("imports = [\"CONFIG\"]\n", "")),
        };
        Ok(main.replace("CONFIG", self.config))
    }

    /// Returns the command line that runs a program in the tree.
    pub(crate) fn enter(&self, scratch: &Scratch, sockets: &Path) -> Result<Vec<OsString>> {
        Ok(vec![
            scratch.path("enter").into(),
            path(scratch).into(),
            lab_dir()?.into(),
            sockets.into(),
            // Relative to the tree; `/var/run` would be that of the machine.
            below(Path::new("."), self.run).into(),
        ])
    }
}

/// Returns the tree of a run.
pub(crate) fn path(scratch: &Scratch) -> PathBuf {
    scratch.path("tree")
}

/// Returns a path below the tree. `/var/run` is a link to `/run`.
fn below(tree: &Path, path: &str) -> PathBuf {
    let path = path
        .strip_prefix("/var")
        .filter(|rest| rest.starts_with("/run/"))
        .unwrap_or(path);
    tree.join(path.trim_start_matches('/'))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let to = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, to)?;
        } else if kind.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
