//! `install` and `uninstall`: which files they write below a prefix, and which they do not change. One test
//! lets a real containerd start the installed plugin.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::Version;
use nri_unpack::config::Config;
use tempfile::TempDir;

use crate::support::{Node, PATIENCE, PROGRAM, RESOLVED, handler};

const UNIT: &str = "etc/systemd/system/nri-unpack.service";
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/nri-unpack.service";
const CONFIG: &str = "etc/nri-unpack/config.toml";
const LINK: &str = "opt/nri/plugins/10-nri-unpack";
const CONF: &str = "etc/nri/conf.d/10-nri-unpack.conf";
const PLACE: &str = "/usr/local/bin/nri-unpack";
const SYSTEMD: [&str; 4] = ["--launched-by", "systemd", "--program", PLACE];
const CONTAINERD: [&str; 4] = ["--launched-by", "containerd", "--program", PLACE];

/// A directory that stands for the root of a node.
struct Root(TempDir);

impl Root {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("below the root")?)?;
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Runs a command on this root; returns its exit code and its output.
    fn run(&self, command: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let output = Command::new(PROGRAM)
            .arg(command)
            .arg("--prefix")
            .arg(self.0.path())
            .args(arguments)
            .output()?;
        let printed = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(printed)?))
    }

    fn install(&self, arguments: &[&str]) -> Result<String> {
        let (status, printed) = self.run("install", arguments)?;
        ensure!(status == Some(0), "{printed}");
        Ok(printed)
    }

    /// Checks that the command fails with this exit code and these words, and changes no file.
    fn assert_refused(&self, arguments: &[&str], expected: i32, words: &[&str]) -> Result<()> {
        let before = self.files()?;
        let (status, printed) = self.run("install", arguments)?;
        ensure!(status == Some(expected), "{status:?}: {printed}");
        for word in words {
            ensure!(printed.contains(word), "no {word:?} in {printed}");
        }
        ensure!(self.files()? == before, "something was written");
        Ok(())
    }

    /// Returns every file with its text, and every link with its target.
    fn files(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut files = BTreeMap::new();
        collect(self.0.path(), &mut files)?;
        Ok(files)
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_symlink() {
            files.insert(path.clone(), fs::read_link(&path)?.display().to_string());
        } else if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.insert(path.clone(), fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn install_and_uninstall_for_systemd() -> Result<()> {
    let root = Root::new()?;
    let printed = root.install(&SYSTEMD)?;
    ensure!(printed.contains("next: systemctl --root="), "{printed}");
    let unit = fs::read_to_string(root.path(UNIT))?;
    ensure!(
        unit.contains("\nExecStart=/usr/local/bin/nri-unpack run\n"),
        "{unit}"
    );
    ensure!(fs::read_to_string(root.path(CONFIG))? == Config::default_toml());
    for path in [UNIT, CONFIG] {
        let mode = fs::metadata(root.path(path))?.permissions().mode();
        ensure!(mode & 0o777 == 0o644, "{path}: {mode:o}");
    }

    let files = root.files()?;
    ensure!(files.len() == 2, "{files:#?}");
    root.install(&SYSTEMD)?;
    ensure!(root.files()? == files, "the second install changed files");

    fs::create_dir_all(root.path(ENABLED).parent().context("in a directory")?)?;
    symlink("../nri-unpack.service", root.path(ENABLED))?;
    for _ in 0..2 {
        let (status, printed) = root.run("uninstall", &[])?;
        ensure!(status == Some(0), "{printed}");
        ensure!(root.files()?.is_empty(), "{:#?}", root.files()?);
    }
    ensure!(!root.path("etc/nri-unpack").exists());
    Ok(())
}

#[test]
fn install_and_uninstall_for_containerd() -> Result<()> {
    let root = Root::new()?;
    root.install(&CONTAINERD)?;
    let files = root.files()?;
    ensure!(files.len() == 2, "{files:#?}");
    ensure!(files[&root.path(LINK)] == PLACE);
    ensure!(files[&root.path(CONF)] == Config::default_toml());
    let printed = root.install(&CONTAINERD)?;
    ensure!(
        printed.matches("kept").count() == 2 && root.files()? == files,
        "{printed}"
    );
    for _ in 0..2 {
        let (status, printed) = root.run("uninstall", &[])?;
        ensure!(status == Some(0) && root.files()?.is_empty(), "{printed}");
    }
    Ok(())
}

#[test]
fn edited_files_are_kept() -> Result<()> {
    let root = Root::new()?;
    let config = "[hooks]\nwait = \"1s\"\n";
    root.put(CONFIG, config)?;
    let printed = root.install(&SYSTEMD)?;
    ensure!(printed.contains("kept"), "{printed}");
    let (_, printed) = root.run("uninstall", &[])?;
    ensure!(
        printed.contains(&format!("left {}", root.path(CONFIG).display())),
        "{printed}"
    );
    ensure!(fs::read_to_string(root.path(CONFIG))? == config);

    // `install` uses it for the other way to launch, too.
    root.install(&CONTAINERD)?;
    ensure!(fs::read_to_string(root.path(CONF))? == config);
    let (_, printed) = root.run("uninstall", &[])?;
    ensure!(
        root.path(CONF).exists() && !root.path(LINK).is_symlink(),
        "{printed}"
    );

    let unit = root.put(UNIT, "[Service]\nExecStart=/bin/true\n")?;
    root.assert_refused(&SYSTEMD, 1, &[UNIT, "drop-in"])?;
    let (_, printed) = root.run("uninstall", &[])?;
    ensure!(printed.contains("left") && unit.exists(), "{printed}");
    Ok(())
}

/// A unit of another version of the plugin: first unchanged, then edited.
#[test]
fn an_unedited_unit_is_replaced() -> Result<()> {
    let root = Root::new()?;
    let elsewhere = [
        "--launched-by",
        "systemd",
        "--program",
        "/opt/bin/nri-unpack",
    ];
    root.install(&elsewhere)?;
    let printed = root.install(&SYSTEMD)?;
    ensure!(printed.contains("replaced"), "{printed}");
    let unit = fs::read_to_string(root.path(UNIT))?;
    ensure!(unit.contains(PLACE), "{unit}");
    fs::write(
        root.path(UNIT),
        unit.replace("WatchdogSec=60", "WatchdogSec=9"),
    )?;
    root.assert_refused(&SYSTEMD, 1, &[UNIT, "systemctl edit"])
}

#[test]
fn a_given_configuration_is_installed() -> Result<()> {
    let root = Root::new()?;
    let own = root
        .put("own.toml", "[nri]\nindex = \"42\"\n")?
        .display()
        .to_string();
    let with = |by: [&'static str; 4]| [&by[..], &["--config", &own]].concat();
    root.install(&with(CONTAINERD))?;
    ensure!(root.path("opt/nri/plugins/42-nri-unpack").is_symlink());
    let installed = fs::read_to_string(root.path("etc/nri/conf.d/42-nri-unpack.conf"))?;
    ensure!(installed.contains("42"), "{installed}");
    root.assert_refused(&CONTAINERD, 1, &["42-nri-unpack", "uninstall"])?;
    root.run("uninstall", &[])?;

    root.put(CONFIG, "[hooks]\nwait = \"1s\"\n")?;
    root.assert_refused(&with(SYSTEMD), 1, &[CONFIG, "differs"])?;
    let wrong = root
        .put("wrong.toml", "[hooks]\nwait = 5\n")?
        .display()
        .to_string();
    let with_wrong = [&SYSTEMD[..], &["--config", &wrong]].concat();
    root.assert_refused(&with_wrong, 2, &["wrong.toml:2", "hooks.wait"])?;
    let with_none = [&SYSTEMD[..], &["--config", "/nonexistent.toml"]].concat();
    root.assert_refused(&with_none, 2, &["/nonexistent.toml"])?;
    root.put(CONFIG, "[hooks]\nwait = 5\n")?;
    root.assert_refused(&SYSTEMD, 2, &[CONFIG, "hooks.wait"])
}

#[test]
fn conflicting_files_are_named() -> Result<()> {
    let root = Root::new()?;
    let badly_named = root.put("opt/nri/plugins/hook.sh", "#!/bin/sh\n")?;
    root.install(&CONTAINERD)?; // It cannot be executed, so containerd passes it over.
    fs::set_permissions(&badly_named, fs::Permissions::from_mode(0o755))?;
    root.assert_refused(&CONTAINERD, 1, &["hook.sh", "NN-name", "rename"])?;
    fs::rename(&badly_named, root.path("opt/nri/plugins/20-hook"))?;
    root.install(&CONTAINERD)?;

    fs::remove_file(root.path(LINK))?;
    symlink("/usr/bin/another", root.path(LINK))?;
    root.assert_refused(&CONTAINERD, 1, &[LINK, "another program"])?;
    fs::remove_file(root.path(LINK))?;
    root.put(LINK, "a copy")?;
    root.assert_refused(&CONTAINERD, 1, &[LINK, "not a link"])?;
    let (_, printed) = root.run("uninstall", &[])?;
    ensure!(
        printed.contains("left") && root.path(LINK).exists(),
        "{printed}"
    );
    fs::remove_file(root.path(LINK))?;

    symlink(PLACE, root.path("opt/nri/plugins/20-nri-unpack"))?;
    root.assert_refused(&CONTAINERD, 1, &["20-nri-unpack", "uninstall"])
}

/// A directory tree whose links are valid only when it is mounted at `/`.
#[test]
fn links_out_of_the_prefix_are_named() -> Result<()> {
    let (root, node) = (Root::new()?, Root::new()?);
    node.put("nri/plugins/20-another", "")?;
    fs::create_dir_all(root.path("opt"))?;
    symlink(node.path("nri"), root.path("opt/nri"))?;
    root.assert_refused(
        &CONTAINERD,
        1,
        &["opt/nri/plugins", "out of --prefix", "relative"],
    )?;
    fs::remove_file(node.path("nri/plugins/20-another"))?;
    symlink(PLACE, node.path("nri/plugins/10-nri-unpack"))?;
    let (status, printed) = root.run("uninstall", &[])?;
    ensure!(
        status == Some(1) && printed.contains("out of --prefix"),
        "{printed}"
    );
    ensure!(node.path("nri/plugins/10-nri-unpack").is_symlink());

    fs::remove_file(root.path("opt/nri"))?;
    fs::create_dir_all(root.path("var/nri"))?;
    symlink("../var/nri", root.path("opt/nri"))?;
    root.install(&CONTAINERD)?;
    ensure!(root.path("var/nri/plugins/10-nri-unpack").is_symlink());
    Ok(())
}

#[test]
fn a_second_plugin_is_refused() -> Result<()> {
    let root = Root::new()?;
    root.install(&CONTAINERD)?;
    root.assert_refused(&SYSTEMD, 1, &[LINK, "two would serve", "uninstall"])?;
    root.run("uninstall", &[])?;
    root.install(&SYSTEMD)?;
    root.assert_refused(&CONTAINERD, 1, &[UNIT, "two would serve", "uninstall"])?;
    root.run("uninstall", &[])?;

    let packaged = "usr/lib/systemd/system/nri-unpack.service";
    root.put(packaged, "[Service]\nExecStart=/usr/bin/nri-unpack run\n")?;
    let from_package = [
        "--launched-by",
        "systemd",
        "--program",
        "/usr/bin/nri-unpack",
    ];
    root.install(&from_package)?;
    ensure!(
        !root.path(UNIT).exists(),
        "a second unit beside that of the package"
    );
    root.assert_refused(&SYSTEMD, 1, &[packaged, "package"])?;
    let (_, printed) = root.run("uninstall", &[])?;
    ensure!(
        root.path(CONFIG).exists() && root.path(packaged).exists(),
        "{printed}"
    );

    // If the package's unit is enabled, containerd must not launch the plugin too.
    fs::create_dir_all(root.path(ENABLED).parent().context("in a directory")?)?;
    symlink(
        "/usr/lib/systemd/system/nri-unpack.service",
        root.path(ENABLED),
    )?;
    root.assert_refused(&CONTAINERD, 1, &[ENABLED, "disable --now"])
}

#[test]
fn an_unsuitable_program_path_is_refused() -> Result<()> {
    let root = Root::new()?;
    for program in [
        "/home/me/nri-unpack",
        "/var/tmp/nri-unpack",
        "/tmp/x/nri-unpack",
    ] {
        let arguments = ["--launched-by", "systemd", "--program", program];
        root.assert_refused(&arguments, 2, &[program, "/usr/local/bin"])?;
    }
    for program in ["/opt/my dir/nri-unpack", "/opt/%h/nri-unpack", "nri-unpack"] {
        let arguments = ["--launched-by", "systemd", "--program", program];
        root.assert_refused(&arguments, 2, &[program])?;
    }
    root.assert_refused(&["--launched-by", "upstart"], 2, &["systemd"])?;
    root.assert_refused(&[], 2, &["--launched-by"])
}

#[test]
fn an_unwritable_path_is_named() -> Result<()> {
    let root = Root::new()?;
    // Even root cannot create a directory below a file.
    root.put("etc/systemd", "a file")?;
    let (status, printed) = root.run("install", &SYSTEMD)?;
    ensure!(
        status == Some(1) && printed.contains(UNIT),
        "{status:?}: {printed}"
    );
    Ok(())
}

/// containerd's own configuration names the NRI directories; here they are those of the lab.
async fn installed_for_containerd(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let own = node.lab.path("own.toml");
    let config = node.config("") + &format!("file = {:?}\n", node.log.path());
    fs::write(&own, config)?;
    let own = own.display().to_string();
    let output = Command::new(PROGRAM)
        .args(["install", "--launched-by", "containerd", "--config", &own])
        .output()?;
    let printed = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && printed.ends_with("next: systemctl restart containerd\n"),
        "{printed}"
    );
    node.restart_containerd().await?;
    node.log.wait_for(RESOLVED, PATIENCE).await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    let name = node.image.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    // `uninstall` is tested below a prefix: here it would also change this machine.
    node.wait_labelled(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_starts_the_installed_plugin_on_1_7() -> Result<()> {
    installed_for_containerd(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_starts_the_installed_plugin_on_2_1() -> Result<()> {
    installed_for_containerd(Version::V2_1).await
}
