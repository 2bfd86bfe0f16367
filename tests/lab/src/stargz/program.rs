//! The stargz snapshotter's program. Debian packages only the library, so this module compiles `main.go` with
//! the Go and the library of one suite, in about two minutes, once. Only the program is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::apt::{self, Download};
use crate::dir::lab_dir;
use crate::images::digest;

const SOURCE: &str = include_str!("main.go");

const SUITE: &str = "trixie";

const PACKAGES: [&str; 2] = [
    "golang-go",
    "golang-github-containerd-stargz-snapshotter-dev=0.14.*",
];

/// Returns the program, which is compiled if it is missing. Later calls in the same process return the same
/// result.
pub(super) fn built() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|e| format!("{e:#}")));
    built.clone().map_err(|message| anyhow!("{message}"))
}

fn build() -> Result<PathBuf> {
    let dir = lab_dir()?.join("stargz");
    fs::create_dir_all(&dir)?;
    // A second process waits here, and then finds the program.
    let lock = File::create(dir.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    // A changed source gives another program.
    let source = digest(SOURCE.as_bytes());
    let program = dir.join(format!("stargz-{}", &source["sha256:".len()..][..12]));
    if program.exists() {
        return Ok(program);
    }
    let work = dir.join("partial");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(work.join("src/stargz"))?;
    eprintln!("lab: compiling the stargz snapshotter");
    let tree = work.join("tree");
    let download = Download::from_suite(SUITE, &work)?;
    for deb in download.with_dependencies(&PACKAGES.map(str::to_owned))? {
        apt::unpack(&deb, &tree)?;
    }
    compile(&work, &tree)?;
    fs::rename(work.join("program"), &program)?;
    fs::remove_dir_all(&work)?;
    Ok(program)
}

fn compile(work: &Path, tree: &Path) -> Result<()> {
    let source = work.join("src/stargz");
    fs::write(source.join("main.go"), SOURCE)?;
    let go = tree.join("usr/lib/go");
    let library = tree.join("usr/share/gocode");
    let output = Command::new(go.join("bin/go"))
        .args(["build", "-o"])
        .arg(work.join("program"))
        .arg(".")
        .current_dir(&source)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", work)
        .env("GOROOT", &go)
        .env(
            "GOPATH",
            format!("{}:{}", work.display(), library.display()),
        )
        .env("GOCACHE", work.join("go-cache"))
        .envs([
            ("GO111MODULE", "off"),
            ("GOTOOLCHAIN", "local"),
            ("CGO_ENABLED", "0"),
        ])
        .output()
        .context("go cannot be run")?;
    ensure!(
        output.status.success(),
        "compiling stargz: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
