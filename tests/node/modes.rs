//! The owner and the mode of every file that the plugin and its commands make, with the smallest and the largest umask:
//! nothing is writable by others than root, and what has names of images and pods is readable by root only.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Log, Plugin, Version};

use crate::support::{Node, PATIENCE, PROGRAM, RESOLVED, write_script};

/// A file that only root may read: lines of the log, and what the metrics say, have names of images and pods.
const OF_ROOT: u32 = 0o600;

/// A file that anybody may read: pages of the manual, and a unit and a configuration, which have no secrets.
const OF_ALL: u32 = 0o644;

/// A directory on the way to such a file. The umask may make it smaller.
const WAY: u32 = 0o755;

/// What is made, below the directory of the test, with its kind and mode. A `*` stands for any name.
const EXPECTED: [(&str, char, u32); 16] = [
    ("log/plugin.log", 'f', OF_ROOT),
    ("run/metrics.sock", 's', OF_ROOT),
    ("man/*", 'f', OF_ALL),
    ("systemd/etc", 'd', WAY),
    ("systemd/etc/nri-unpack", 'd', WAY),
    ("systemd/etc/nri-unpack/config.toml", 'f', OF_ALL),
    ("systemd/etc/systemd", 'd', WAY),
    ("systemd/etc/systemd/system", 'd', WAY),
    ("systemd/etc/systemd/system/nri-unpack.service", 'f', OF_ALL),
    ("containerd/etc", 'd', WAY),
    ("containerd/etc/nri", 'd', WAY),
    ("containerd/etc/nri/conf.d", 'd', WAY),
    ("containerd/etc/nri/conf.d/10-nri-unpack.conf", 'f', OF_ALL),
    ("containerd/opt", 'd', WAY),
    ("containerd/opt/nri", 'd', WAY),
    ("containerd/opt/nri/plugins", 'd', WAY),
];

/// A link has no mode of its own.
const LINK: &str = "containerd/opt/nri/plugins/10-nri-unpack";

/// Writes a program that runs the one under test with this umask, in this directory, which is also its home and has its
/// temporary files.
fn wrapper(path: &Path, directory: &Path, umask: &str) -> Result<()> {
    let at = directory.display();
    let text = format!(
        "#!/bin/sh\numask {umask}\ncd {at}\nHOME={at} TMPDIR={at}/tmp exec {PROGRAM} \"$@\"\n"
    );
    write_script(path, &text)
}

/// Returns everything below a directory.
fn below(directory: &Path) -> Result<BTreeMap<PathBuf, Metadata>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            found.extend(below(&path)?);
        }
        found.insert(path, metadata);
    }
    Ok(found)
}

fn kind(metadata: &Metadata) -> char {
    let kind = metadata.file_type();
    match () {
        () if kind.is_symlink() => 'l',
        () if kind.is_dir() => 'd',
        () if kind.is_socket() => 's',
        () => 'f',
    }
}

/// Whether a path is the one that is expected.
fn is_at(path: &str, expected: &str) -> bool {
    match expected.strip_suffix('*') {
        Some(directory) => path
            .strip_prefix(directory)
            .is_some_and(|name| !name.contains('/')),
        None => path == expected,
    }
}

/// Checks what was made, and that everything that is expected was.
fn check(directory: &Path, umask: u32, made: &BTreeMap<PathBuf, Metadata>) -> Result<()> {
    let owner = fs::metadata("/proc/self")?.uid();
    let mut missing: Vec<_> = EXPECTED.iter().map(|(path, ..)| *path).collect();
    missing.push(LINK);
    for (path, metadata) in made {
        let path = path.strip_prefix(directory)?;
        let path = path.to_str().context("a name that is no text")?;
        let (kind, mode) = (kind(metadata), metadata.mode() & 0o7777);
        println!("{umask:03o}: {kind} {mode:04o} {path}");
        missing.retain(|expected| !is_at(path, expected));
        ensure!(metadata.uid() == owner, "{path}: owner {}", metadata.uid());
        if path == LINK {
            ensure!(kind == 'l', "{path}: {kind}");
            continue;
        }
        let expected = EXPECTED.iter().find(|(expected, ..)| is_at(path, expected));
        let (_, of_kind, of_mode) = expected.with_context(|| format!("{path} is not known"))?;
        let of_mode = match of_kind {
            'd' => of_mode & !umask,
            // The pages are for a package, whose modes are set when it is made.
            _ if path.starts_with("man/") => of_mode & !umask,
            _ => *of_mode,
        };
        ensure!(
            (kind, mode) == (*of_kind, of_mode),
            "{path}: {kind} {mode:04o}, not {of_kind} {of_mode:04o}"
        );
    }
    ensure!(missing.is_empty(), "not made: {missing:?}");
    Ok(())
}

async fn modes_with(umask: u32) -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let directory = node.lab.path("made");
    for name in ["tmp", "log", "run", "man", "systemd", "containerd"] {
        fs::create_dir_all(directory.join(name))?;
    }
    node.program = node.lab.path("wrapper");
    wrapper(&node.program, &directory, &format!("{umask:03o}"))?;
    let before = below(&directory)?;

    let at = |name: &str| directory.join(name);
    let metrics = format!(
        "[metrics]\nlisten = \"unix:{}\"\n",
        at("run/metrics.sock").display()
    );
    let log = at("log/plugin.log");
    let config = node.config(&(metrics + "[snapshotters.default]\neager = \"all\"\n"));
    let config = config + &format!("file = {log:?}\n");
    let plugin = Plugin::start(&node.lab, &node.program, &config)?;
    Log::new(log.clone()).wait_for(RESOLVED, PATIENCE).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod("erofs", &[]).await?;
    node.cri.create_container(&pod, &image, &[], &[]).await?;
    // A file that is removed is made again.
    fs::remove_file(&log)?;
    plugin.reload(&config)?;
    let again = Log::new(log)
        .wait_for("the configuration was read again", PATIENCE)
        .await;
    again.context("after a removal of the log file")?;
    for arguments in [
        &["ensure", &image, "--snapshotter", "native"][..],
        &["check"],
        &["doctor"],
        &["handlers"],
        &["purge", "--dry-run"],
        &["purge"],
    ] {
        node.command(arguments)?;
    }
    for (by, below) in [("systemd", "systemd"), ("containerd", "containerd")] {
        let mut install = Command::new(&node.program);
        install.args(["install", "--launched-by", by, "--prefix"]);
        install
            .arg(at(below))
            .args(["--program", "/usr/local/bin/nri-unpack"]);
        let output = install.output()?;
        ensure!(output.status.success(), "{output:?}");
    }
    for arguments in [
        ["man-pages", "man"],
        ["config", "--default"],
        ["completions", "bash"],
    ] {
        let output = Command::new(&node.program).args(arguments).output()?;
        ensure!(output.status.success(), "{output:?}");
    }
    let mut made = below(&directory)?;
    made.retain(|path, _| !before.contains_key(path));
    check(&directory, umask, &made)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_writable_by_others_with_umask_0() -> Result<()> {
    modes_with(0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_writable_by_others_with_umask_077() -> Result<()> {
    modes_with(0o077).await
}
