//! The files of a release. The package and the static programs take minutes to build, so their tests run with
//! `make check-deb`, `make check-static` and `make check-arm64`. The other tests check that all files that the package
//! names exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Systemd, Version};
use nri_unpack::config::Config;

use crate::bound::own_image;
use crate::support::{Node, handler, write_script};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Each file of the package is in the tree, or the Makefile makes it.
#[test]
fn the_package_has_what_it_names() -> Result<()> {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml"))?.parse()?;
    let makefile = std::fs::read_to_string(root().join("Makefile"))?;
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().context("assets")?;
    let mut places = BTreeSet::new();
    for asset in assets {
        let source = asset[0].as_str().context("a source")?;
        places.insert(asset[1].as_str().context("a place")?);
        if source == "target/release/nri-unpack" {
            continue;
        }
        let directory = Path::new(source).parent().context("a directory")?;
        if let Ok(made) = directory.strip_prefix("target") {
            let made = Path::new("target").join(made).display().to_string();
            ensure!(
                makefile.contains(&made),
                "no rule of the Makefile makes {source}"
            );
            continue;
        }
        let found = glob::glob(&root().join(source).display().to_string())?.count();
        ensure!(found > 0, "no {source}");
    }
    for place in [
        "usr/bin/",
        "etc/nri-unpack/config.toml",
        "usr/share/man/man1/",
    ] {
        ensure!(places.contains(place), "nothing at {place}");
    }
    let scripts = deb["maintainer-scripts"].as_str().context("scripts")?;
    let script = std::fs::read_to_string(root().join(scripts).join("postrm"))?;
    ensure!(script.contains("#DEBHELPER#"), "{script}");
    // Paths that `sed` replaces.
    let unit = std::fs::read_to_string(root().join("systemd/nri-unpack.service"))?;
    ensure!(unit.matches("/usr/local/bin/").count() == 1, "{unit}");
    Ok(())
}

/// Returns the only file that matches this pattern; `make` has made it.
fn made(pattern: &str) -> Result<PathBuf> {
    let mut found = glob::glob(&root().join(pattern).display().to_string())?;
    let first = found.next().with_context(|| format!("no {pattern}"))??;
    ensure!(found.next().is_none(), "more than one {pattern}");
    Ok(first)
}

/// Returns every file at paths of packages, except the files that the machine writes by itself, and the files
/// that containerd and the tests write in this checkout or in the lab's directory.
fn files(systemd: &Systemd, node: &Node) -> Result<BTreeSet<String>> {
    let places = ["/boot", "/etc", "/opt", "/root", "/srv", "/usr", "/var"];
    let [checkout, containerd] = [root(), node.lab.root()].map(|path| path.display().to_string());
    let mut find = places.to_vec();
    for left_out in ["/var/log/journal", "/var/lib/dpkg", &checkout, &containerd] {
        find.extend(["-path", left_out, "-prune", "-o"]);
    }
    find.push("-print");
    let list = systemd.ok("find", &find)?;
    Ok(list.lines().map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make check-deb`, which builds the package"]
async fn the_package() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let systemd = Systemd::boot(&node.lab).await?;
    std::fs::copy(
        made("target/debian/*.deb")?,
        systemd.path("/run/package.deb"),
    )?;
    let before = files(&systemd, &node)?;
    systemd.ok("dpkg", &["--install", "/run/package.deb"])?;
    for state in ["is-enabled", "is-active"] {
        systemd.ok("systemctl", &[state, "nri-unpack"])?;
    }
    systemd.ok("systemd-analyze", &["verify", "nri-unpack.service"])?;
    let handlers = systemd.ok("nri-unpack", &["handlers"])?;
    ensure!(handlers.contains("erofs"), "{handlers}");
    let installed = files(&systemd, &node)?;
    for file in [
        "/usr/bin/nri-unpack",
        "/etc/nri-unpack/config.toml",
        "/usr/share/man/man1/nri-unpack-install.1.gz",
        "/usr/share/bash-completion/completions/nri-unpack",
        "/usr/share/doc/nri-unpack/copyright",
    ] {
        ensure!(installed.contains(file), "no {file}");
    }
    // Its unit exists: `install` writes no file, and a second unit is refused.
    let printed = systemd.ok("nri-unpack", &["install", "--launched-by", "systemd"])?;
    ensure!(printed.matches("kept").count() == 2, "{printed}");
    let refused = systemd.run("nri-unpack", &["install", "--launched-by", "containerd"])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");

    // Install it again after an operator's edit.
    let config = systemd.path("/etc/nri-unpack/config.toml");
    std::fs::write(&config, "[hooks]\nwait = \"1s\"\n")?;
    systemd.ok("dpkg", &["--install", "/run/package.deb"])?;
    ensure!(
        std::fs::read_to_string(&config)?.contains("1s"),
        "overwritten"
    );

    systemd.ok("dpkg", &["--remove", "nri-unpack"])?;
    let active = systemd.run("systemctl", &["is-active", "nri-unpack"])?;
    ensure!(!active.status.success(), "{active:?}");
    ensure!(
        config.exists(),
        "removing the package without a purge removed an edited file"
    );
    systemd.ok("dpkg", &["--purge", "nri-unpack"])?;
    let after = files(&systemd, &node)?;
    let left: Vec<_> = after.symmetric_difference(&before).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make check-static`, which builds the program"]
async fn the_static_program() -> Result<()> {
    let program = musl(std::env::consts::ARCH)?;
    let linked = Command::new("ldd").arg(&program).output()?;
    let linked = String::from_utf8([linked.stdout, linked.stderr].concat())?;
    let is_static = ["statically linked", "not a dynamic executable"];
    ensure!(is_static.iter().any(|it| linked.contains(it)), "{linked}");

    let mut node = Node::start(Version::V2_1).await?;
    node.program = program;
    makes_ready(&node).await
}

/// Returns the static program for a kind of machine.
fn musl(architecture: &str) -> Result<PathBuf> {
    made(&format!(
        "target/{architecture}-unknown-linux-musl/release/nri-unpack"
    ))
}

/// Each command that does something to an image does it.
async fn makes_ready(node: &Node) -> Result<()> {
    let handler = handler(Version::V2_1);
    let run = |command: &str| -> Result<Option<i32>> {
        let output = node.command(&[command, node.image.name(), "--handler", handler])?;
        Ok(output.status.code())
    };
    ensure!(run("check")? == Some(1), "ready before `ensure`");
    ensure!(run("ensure")? == Some(0), "not made ready");
    ensure!(run("check")? == Some(0), "not ready");
    node.assert_labelled(handler).await
}

/// The emulator runs the program on this machine's containerd: the commands, and the plugin with a pod.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make check-arm64`, which builds the program"]
async fn the_program_for_arm64() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::start(version).await?;
    let program = musl("aarch64")?;
    let emulated = node.lab.path("nri-unpack");
    let script = format!("#!/bin/sh\nexec qemu-aarch64 {program:?} \"$@\"\n");
    write_script(&emulated, &script)?;
    node.program = emulated;

    let default = Command::new(&node.program)
        .args(["config", "--default"])
        .output()?;
    ensure!(String::from_utf8(default.stdout)? == Config::default_toml());
    let handlers = node.command(&["handlers", "--output", "json"])?;
    let handlers = String::from_utf8(handlers.stdout)?;
    ensure!(handlers.contains("\"erofs\""), "{handlers}");
    makes_ready(&node).await?;

    node.serve("").await?;
    let image = own_image("registry.test/lab/emulated:1");
    node.pull(&image).await?;
    let pod = node
        .cri
        .run_pod("erofs", &[("nri-unpack/images", image.name())])
        .await?;
    node.cri
        .create_container(&pod, image.name(), &[], &[])
        .await?;
    ensure!(node.state_of(&image, "erofs").await? == "ready");
    node.assert_nothing_left("erofs").await
}
