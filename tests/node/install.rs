//! `install` and `uninstall`: below a prefix, what is written and what is not touched; and for real, where a
//! containerd starts what was installed.

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

/// The root of a node that is yet to be.
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

    /// Runs a command on it: its exit status, and what it says.
    fn run(&self, command: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let output = Command::new(PROGRAM)
            .arg(command)
            .arg("--prefix")
            .arg(self.0.path())
            .args(arguments)
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(said)?))
    }

    fn install(&self, arguments: &[&str]) -> Result<String> {
        let (status, said) = self.run("install", arguments)?;
        ensure!(status == Some(0), "{said}");
        Ok(said)
    }

    /// Nothing may be changed where it is refused.
    fn refused(&self, arguments: &[&str], expected: i32, words: &[&str]) -> Result<()> {
        let before = self.files()?;
        let (status, said) = self.run("install", arguments)?;
        ensure!(status == Some(expected), "{status:?}: {said}");
        for word in words {
            ensure!(said.contains(word), "no {word:?} in {said}");
        }
        ensure!(self.files()? == before, "something was written");
        Ok(())
    }

    /// Every file with its text, every link with its target.
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
fn for_systemd_and_back() -> Result<()> {
    let root = Root::new()?;
    let said = root.install(&SYSTEMD)?;
    ensure!(said.contains("next: systemctl --root="), "{said}");
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
    ensure!(root.files()? == files, "not the same again");

    fs::create_dir_all(root.path(ENABLED).parent().context("in a directory")?)?;
    symlink("../nri-unpack.service", root.path(ENABLED))?;
    for _ in 0..2 {
        let (status, said) = root.run("uninstall", &[])?;
        ensure!(status == Some(0), "{said}");
        ensure!(root.files()?.is_empty(), "{:#?}", root.files()?);
    }
    ensure!(!root.path("etc/nri-unpack").exists());
    Ok(())
}

#[test]
fn for_containerd_and_back() -> Result<()> {
    let root = Root::new()?;
    root.install(&CONTAINERD)?;
    let files = root.files()?;
    ensure!(files.len() == 2, "{files:#?}");
    ensure!(files[&root.path(LINK)] == PLACE);
    ensure!(files[&root.path(CONF)] == Config::default_toml());
    let said = root.install(&CONTAINERD)?;
    ensure!(
        said.matches("kept").count() == 2 && root.files()? == files,
        "{said}"
    );
    for _ in 0..2 {
        let (status, said) = root.run("uninstall", &[])?;
        ensure!(status == Some(0) && root.files()?.is_empty(), "{said}");
    }
    Ok(())
}

#[test]
fn what_an_operator_has_changed_stays() -> Result<()> {
    let root = Root::new()?;
    let config = "[hooks]\nwait = \"1s\"\n";
    root.put(CONFIG, config)?;
    let said = root.install(&SYSTEMD)?;
    ensure!(said.contains("kept"), "{said}");
    let (_, said) = root.run("uninstall", &[])?;
    ensure!(
        said.contains(&format!("left {}", root.path(CONFIG).display())),
        "{said}"
    );
    ensure!(fs::read_to_string(root.path(CONFIG))? == config);

    // It goes along to the other place.
    root.install(&CONTAINERD)?;
    ensure!(fs::read_to_string(root.path(CONF))? == config);
    let (_, said) = root.run("uninstall", &[])?;
    ensure!(
        root.path(CONF).exists() && !root.path(LINK).is_symlink(),
        "{said}"
    );

    let unit = root.put(UNIT, "[Service]\nExecStart=/bin/true\n")?;
    root.refused(&SYSTEMD, 1, &[UNIT, "drop-in"])?;
    let (_, said) = root.run("uninstall", &[])?;
    ensure!(said.contains("left") && unit.exists(), "{said}");
    Ok(())
}

/// A unit of another version, once as it was written and once changed by hand.
#[test]
fn a_unit_of_ours_is_replaced() -> Result<()> {
    let root = Root::new()?;
    let elsewhere = [
        "--launched-by",
        "systemd",
        "--program",
        "/opt/bin/nri-unpack",
    ];
    root.install(&elsewhere)?;
    let said = root.install(&SYSTEMD)?;
    ensure!(said.contains("replaced"), "{said}");
    let unit = fs::read_to_string(root.path(UNIT))?;
    ensure!(unit.contains(PLACE), "{unit}");
    fs::write(
        root.path(UNIT),
        unit.replace("WatchdogSec=60", "WatchdogSec=9"),
    )?;
    root.refused(&SYSTEMD, 1, &[UNIT, "systemctl edit"])
}

#[test]
fn a_configuration_of_ones_own() -> Result<()> {
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
    root.refused(&CONTAINERD, 1, &["42-nri-unpack", "uninstall"])?;
    root.run("uninstall", &[])?;

    root.put(CONFIG, "[hooks]\nwait = \"1s\"\n")?;
    root.refused(&with(SYSTEMD), 1, &[CONFIG, "differs"])?;
    let wrong = root
        .put("wrong.toml", "[hooks]\nwait = 5\n")?
        .display()
        .to_string();
    let with_wrong = [&SYSTEMD[..], &["--config", &wrong]].concat();
    root.refused(&with_wrong, 2, &["wrong.toml:2", "hooks.wait"])?;
    let with_none = [&SYSTEMD[..], &["--config", "/nonexistent.toml"]].concat();
    root.refused(&with_none, 2, &["/nonexistent.toml"])?;
    root.put(CONFIG, "[hooks]\nwait = 5\n")?;
    root.refused(&SYSTEMD, 2, &[CONFIG, "hooks.wait"])
}

#[test]
fn what_is_in_the_way_is_named() -> Result<()> {
    let root = Root::new()?;
    let badly_named = root.put("opt/nri/plugins/hook.sh", "#!/bin/sh\n")?;
    root.install(&CONTAINERD)?; // It cannot be executed, so containerd passes it over.
    fs::set_permissions(&badly_named, fs::Permissions::from_mode(0o755))?;
    root.refused(&CONTAINERD, 1, &["hook.sh", "NN-name", "rename"])?;
    fs::rename(&badly_named, root.path("opt/nri/plugins/20-hook"))?;
    root.install(&CONTAINERD)?;

    fs::remove_file(root.path(LINK))?;
    symlink("/usr/bin/another", root.path(LINK))?;
    root.refused(&CONTAINERD, 1, &[LINK, "another program"])?;
    fs::remove_file(root.path(LINK))?;
    root.put(LINK, "a copy")?;
    root.refused(&CONTAINERD, 1, &[LINK, "not a link"])?;
    let (_, said) = root.run("uninstall", &[])?;
    ensure!(said.contains("left") && root.path(LINK).exists(), "{said}");
    fs::remove_file(root.path(LINK))?;

    symlink(PLACE, root.path("opt/nri/plugins/20-nri-unpack"))?;
    root.refused(&CONTAINERD, 1, &["20-nri-unpack", "uninstall"])
}

/// As in a tree whose links are made for where it will be `/`.
#[test]
fn what_leads_out_of_the_prefix_is_named() -> Result<()> {
    let (root, node) = (Root::new()?, Root::new()?);
    node.put("nri/plugins/20-another", "")?;
    fs::create_dir_all(root.path("opt"))?;
    symlink(node.path("nri"), root.path("opt/nri"))?;
    root.refused(
        &CONTAINERD,
        1,
        &["opt/nri/plugins", "out of --prefix", "relative"],
    )?;
    fs::remove_file(node.path("nri/plugins/20-another"))?;
    symlink(PLACE, node.path("nri/plugins/10-nri-unpack"))?;
    let (status, said) = root.run("uninstall", &[])?;
    ensure!(
        status == Some(1) && said.contains("out of --prefix"),
        "{said}"
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
fn two_are_never_installed() -> Result<()> {
    let root = Root::new()?;
    root.install(&CONTAINERD)?;
    root.refused(&SYSTEMD, 1, &[LINK, "two would serve", "uninstall"])?;
    root.run("uninstall", &[])?;
    root.install(&SYSTEMD)?;
    root.refused(&CONTAINERD, 1, &[UNIT, "two would serve", "uninstall"])?;
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
    ensure!(!root.path(UNIT).exists(), "the package has one");
    root.refused(&SYSTEMD, 1, &[packaged, "package"])?;
    let (_, said) = root.run("uninstall", &[])?;
    ensure!(
        root.path(CONFIG).exists() && root.path(packaged).exists(),
        "{said}"
    );

    // Enabled, the package's unit is one too many for containerd.
    fs::create_dir_all(root.path(ENABLED).parent().context("in a directory")?)?;
    symlink(
        "/usr/lib/systemd/system/nri-unpack.service",
        root.path(ENABLED),
    )?;
    root.refused(&CONTAINERD, 1, &[ENABLED, "disable --now"])
}

#[test]
fn a_program_that_a_unit_cannot_start() -> Result<()> {
    let root = Root::new()?;
    for program in [
        "/home/me/nri-unpack",
        "/var/tmp/nri-unpack",
        "/tmp/x/nri-unpack",
    ] {
        let arguments = ["--launched-by", "systemd", "--program", program];
        root.refused(&arguments, 2, &[program, "/usr/local/bin"])?;
    }
    for program in ["/opt/my dir/nri-unpack", "/opt/%h/nri-unpack", "nri-unpack"] {
        let arguments = ["--launched-by", "systemd", "--program", program];
        root.refused(&arguments, 2, &[program])?;
    }
    root.refused(&["--launched-by", "upstart"], 2, &["systemd"])?;
    root.refused(&[], 2, &["--launched-by"])
}

#[test]
fn what_cannot_be_written_is_named() -> Result<()> {
    let root = Root::new()?;
    // Not even root makes a directory below a file.
    root.put("etc/systemd", "a file")?;
    let (status, said) = root.run("install", &SYSTEMD)?;
    ensure!(
        status == Some(1) && said.contains(UNIT),
        "{status:?}: {said}"
    );
    Ok(())
}

/// Directories of NRI are where containerd's own configuration has them; that names those of the lab.
async fn launched(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let own = node.lab.path("own.toml");
    let config = node.config("") + &format!("file = {:?}\n", node.log.path());
    fs::write(&own, config)?;
    let own = own.display().to_string();
    let output = Command::new(PROGRAM)
        .args(["install", "--launched-by", "containerd", "--config", &own])
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && said.ends_with("next: systemctl restart containerd\n"),
        "{said}"
    );
    node.restart_containerd().await?;
    node.log.wait_for(RESOLVED, PATIENCE).await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    let name = node.image.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    // What it takes away again is tried below a prefix: here it would be the machine's own, too.
    node.wait_labelled(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_starts_it_on_1_7() -> Result<()> {
    launched(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_starts_it_on_2_1() -> Result<()> {
    launched(Version::V2_1).await
}
