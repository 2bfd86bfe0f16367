//! Programs in Go that no package has, of libraries that Debian packages: compiled once with the Go of one suite. Only
//! the program is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::apt::{self, Download};
use crate::dir::lab_dir;
use crate::images::digest;

const SUITE: &str = "trixie";

/// A program of one source file.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    /// The packages of its libraries, in the syntax of apt's arguments.
    pub(crate) libraries: &'static [&'static str],
}

impl Program {
    /// Returns the program, which is compiled if it is missing: 170 MB of packages, and some time.
    pub(crate) fn built(&self) -> Result<PathBuf> {
        let dir = lab_dir()?.join(self.name);
        fs::create_dir_all(&dir)?;
        // A second process waits here, and then finds the program.
        let lock = File::create(dir.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        // A changed source gives another program.
        let source = digest(self.source.as_bytes());
        let source = &source["sha256:".len()..][..12];
        let program = dir.join(format!("{}-{source}", self.name));
        if program.exists() {
            return Ok(program);
        }
        let work = dir.join("partial");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        eprintln!("lab: compiling {}", self.name);
        let tree = work.join("tree");
        let packages = [&["golang-go"], self.libraries].concat();
        let packages: Vec<_> = packages.into_iter().map(str::to_owned).collect();
        let download = Download::from_suite(SUITE, &work)?;
        for deb in download.with_dependencies(&packages)? {
            apt::unpack(&deb, &tree)?;
        }
        self.compile(&work, &tree)?;
        fs::rename(work.join("program"), &program)?;
        fs::remove_dir_all(&work)?;
        Ok(program)
    }

    fn compile(&self, work: &Path, tree: &Path) -> Result<()> {
        let source = work.join("src").join(self.name);
        fs::create_dir_all(&source)?;
        fs::write(source.join("main.go"), self.source)?;
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
            "compiling {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}
