//! Debian packages of another suite: the machine's own apt downloads and verifies them; they are unpacked and
//! not installed.
//!
//! Knows apt, but not the use of the packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::sources::{Source, machine_sources};

/// The list of installed packages for apt: empty. Otherwise apt would want an installed newer version, for
/// example a security update, which this suite does not have.
const STATUS: &str = "status";

/// Returns the suite of the machine, for example `bookworm`.
pub(crate) fn machine_suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let field = |name: &str| {
        release
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        _ => bail!(
            "this machine is not Debian: the lab takes containerd from Debian's suites, run it on Debian 12 or 13"
        ),
    }
}

/// A suite whose packages can be downloaded; it writes only below the given directory.
pub(crate) struct Download {
    suite: String,
    dir: PathBuf,
}

impl Download {
    /// Fetches the suite's package lists into `dir`, which must exist and which the caller removes.
    pub(crate) fn from_suite(suite: &str, dir: &Path) -> Result<Self> {
        let download = Self {
            suite: suite.to_owned(),
            dir: dir.to_owned(),
        };
        let mut failures = Vec::new();
        for source in machine_sources(&machine_suite()?)? {
            match download.update(&source) {
                Ok(()) => return Ok(download),
                Err(error) => failures.push(format!("{}: {error:#}", source.uris)),
            }
        }
        bail!(
            "no source of this machine gives Debian's suite {suite}; is the network there? see `apt-get update`:\n{}",
            failures.join("\n")
        )
    }

    fn update(&self, source: &Source) -> Result<()> {
        let lists = self.dir.join("lists");
        if lists.exists() {
            fs::remove_dir_all(&lists)?;
        }
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(self.dir.join("cache/archives/partial"))?;
        fs::write(self.dir.join(STATUS), "")?;
        fs::write(self.dir.join("lab.sources"), source.stanza(&self.suite))?;
        self.apt(&["update"])?;
        ensure!(
            is_debians(&lists)?,
            "its release file does not name Debian as its origin"
        );
        Ok(())
    }

    /// Downloads the packages (`name` or `name=version pattern`), and returns the files in any order.
    pub(crate) fn packages(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let mut args = vec!["download"];
        args.extend(packages.iter().map(String::as_str));
        self.apt(&args).with_context(|| {
            format!(
                "downloading {} from {}; has the suite moved on? then its version in tests/lab/src/packages.rs has to",
                packages.join(", "),
                self.suite
            )
        })?;
        debs(&self.dir)
    }

    /// Like [`Self::packages`], with all dependencies.
    pub(crate) fn with_dependencies(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let mut args = vec!["install", "--download-only", "--yes"];
        args.push("--no-install-recommends");
        args.extend(packages.iter().map(String::as_str));
        self.apt(&args)
            .with_context(|| format!("downloading {} from {}", packages.join(", "), self.suite))?;
        debs(&self.dir.join("cache/archives"))
    }

    fn apt(&self, args: &[&str]) -> Result<()> {
        let setting = |name: &str, path: &str| format!("{name}={}", self.dir.join(path).display());
        let mut command = Command::new("apt-get");
        command.current_dir(&self.dir).arg("-qq");
        for option in [
            setting("Dir::Etc::SourceList", "lab.sources"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            setting("Dir::State::Lists", "lists"),
            setting("Dir::Cache", "cache"),
            setting("Dir::State::status", STATUS),
            // Without this option an update that reached no mirror is only a warning, with exit code 0.
            "APT::Update::Error-Mode=any".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // apt downloads as an unprivileged user, who cannot write below a checkout of root.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        run(command.args(args))
    }
}

fn debs(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    Ok(entries
        .into_iter()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "deb"))
        .collect())
}

/// Whether a release file among these lists is Debian's. apt has checked its signature.
fn is_debians(lists: &Path) -> Result<bool> {
    for entry in fs::read_dir(lists)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("Release") {
            let release = fs::read_to_string(&path)?;
            return Ok(release.lines().any(|line| line == "Origin: Debian"));
        }
    }
    Ok(false)
}

/// Returns the package name from the name of a package file.
pub(crate) fn package_name(deb: &Path) -> Option<&str> {
    deb.file_name()?.to_str()?.split('_').next()
}

/// Unpacks a package file without running its scripts.
pub(crate) fn unpack(deb: &Path, into: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))
}

/// Runs a command; its stderr becomes the error.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!(
            "{program} cannot be run: the lab needs Debian's own tools, run it on Debian 12 or 13"
        )
    })?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
