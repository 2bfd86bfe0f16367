//! The programs that the lab runs: their Debian packages, and their paths after the unpack.
//!
//! Each package has its own directory below `target/lab/packages`, which is created with one rename: a killed
//! fetch leaves no partial directory, and several test processes can fetch at once. Does not know how the
//! programs are used.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::apt;
use crate::dir::lab_dir;

/// A suite by name, or the machine's suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suite {
    Named(&'static str),
    Machine,
}

/// A package to fetch.
struct Package {
    suite: Suite,
    name: &'static str,
    /// The start of its version, if the tests depend on it; else empty.
    version: &'static str,
}

const fn package(suite: Suite, name: &'static str, version: &'static str) -> Package {
    Package {
        suite,
        name,
        version,
    }
}

const TRIXIE: Suite = Suite::Named("trixie");
const FORKY: Suite = Suite::Named("forky");

/// All packages that are fetched. A new package is one line here.
const PACKAGES: &[Package] = &[
    package(TRIXIE, "containerd", "1.7."),
    package(FORKY, "containerd", "2.1."),
    // The remote snapshotters; the tests depend on their versions.
    package(FORKY, "nydus-snapshotter", "0.13."),
    package(FORKY, "soci-snapshotter", "0.4."),
    // The machine's own: runc executes itself again, so it cannot run with another suite's ld.so.
    package(Suite::Machine, "runc", ""),
    // Is loaded into programs of this machine.
    package(Suite::Machine, "libfaketime", ""),
    // A file system in user space, which can be stopped.
    package(TRIXIE, "bindfs", ""),
    package(TRIXIE, "busybox-static", ""),
    package(TRIXIE, "docker-registry", ""),
    // containerd's erofs snapshotter needs 1.8 or newer; Debian 12 has 1.5.
    package(TRIXIE, "erofs-utils", "1.8"),
    // Debian 12 does not have it, and this version runs on Debian 12's libraries.
    package(TRIXIE, "kustomize", "5."),
    package(TRIXIE, "libc6", ""),
    package(TRIXIE, "libdeflate0", ""),
    package(TRIXIE, "libfuse2t64", ""),
    package(TRIXIE, "liblz4-1", ""),
    package(TRIXIE, "liblzma5", ""),
    package(TRIXIE, "libpcre2-8-0", ""),
    package(TRIXIE, "libselinux1", ""),
    package(TRIXIE, "libuuid1", ""),
    package(TRIXIE, "libxxhash0", ""),
    package(TRIXIE, "libzstd1", ""),
    package(TRIXIE, "zlib1g", ""),
];

impl Package {
    fn suite(&self, machine: &str) -> String {
        match self.suite {
            Suite::Named(name) => name.to_owned(),
            Suite::Machine => machine.to_owned(),
        }
    }

    /// Returns the directory below the packages' root, for example `trixie/containerd-1.7`.
    fn dir(&self, machine: &str) -> PathBuf {
        let version = self.version.trim_end_matches('.');
        let dash = if version.is_empty() { "" } else { "-" };
        Path::new(&self.suite(machine)).join(format!("{}{dash}{version}", self.name))
    }

    /// Returns the package in the syntax of apt's arguments.
    fn request(&self) -> String {
        match self.version {
            "" => self.name.to_owned(),
            version => format!("{}={version}*", self.name),
        }
    }
}

/// The unpacked packages.
#[derive(Debug)]
pub struct Packages {
    root: PathBuf,
    machine: String,
}

impl Packages {
    /// Returns the packages, which are fetched if they are missing (160 MB, half a minute).
    ///
    /// # Errors
    /// If a package is not available; the message names the reason and the remedy. Later calls in the same
    /// process return the same result, so that a hundred tests do not try a hundred downloads.
    pub fn fetch() -> Result<&'static Packages> {
        static FETCHED: OnceLock<std::result::Result<Packages, String>> = OnceLock::new();
        FETCHED
            .get_or_init(|| {
                lab_dir()
                    .and_then(|lab| Packages::fetch_into(&lab))
                    .map_err(|e| format!("{e:#}"))
            })
            .as_ref()
            .map_err(|message| anyhow!("{message}"))
    }

    fn fetch_into(lab: &Path) -> Result<Packages> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the lab mounts file systems and runs containers: run it as root"
        );
        let root = lab.join("packages");
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let packages = Packages {
            root: root.canonicalize()?,
            machine: apt::machine_suite()?,
        };
        // Held until this function returns: a second process waits here, and then finds all packages.
        let lock = File::create(lab.join("packages.lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let missing: Vec<&Package> = PACKAGES
            .iter()
            .filter(|p| !packages.root.join(p.dir(&packages.machine)).exists())
            .collect();
        let mut suites: Vec<String> = missing.iter().map(|p| p.suite(&packages.machine)).collect();
        suites.sort();
        suites.dedup();
        for suite in suites {
            let wanted: Vec<&Package> = missing
                .iter()
                .copied()
                .filter(|p| p.suite(&packages.machine) == suite)
                .collect();
            packages.fetch_suite(&suite, &wanted)?;
        }
        packages.write_erofs_wrapper()?;
        Ok(packages)
    }

    fn fetch_suite(&self, suite: &str, wanted: &[&Package]) -> Result<()> {
        let temp = self.root.join(format!("{suite}.partial"));
        if temp.exists() {
            fs::remove_dir_all(&temp)?;
        }
        fs::create_dir_all(&temp)?;
        fs::create_dir_all(self.root.join(suite))?;
        let requests: Vec<String> = wanted.iter().map(|p| p.request()).collect();
        eprintln!("lab: fetching {} from Debian {suite}", requests.join(", "));
        for deb in apt::Download::from_suite(suite, &temp)?.packages(&requests)? {
            let package = wanted
                .iter()
                .find(|p| Some(p.name) == apt::package_name(&deb))
                .with_context(|| {
                    format!("apt downloaded {}, which was not asked for", deb.display())
                })?;
            let tree = temp.join("tree");
            apt::unpack(&deb, &tree)?;
            fs::rename(&tree, self.root.join(package.dir(&self.machine)))?;
        }
        fs::remove_dir_all(&temp)?;
        Ok(())
    }

    /// Returns the directory of all packages.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a program in a package of the table.
    ///
    /// # Panics
    /// If the package is not in the table, which is a mistake of the caller.
    pub fn program(&self, package: &str, path: &str) -> PathBuf {
        self.tree(package, "").join(path)
    }

    /// Returns the tree of the package with this name and start of the version.
    fn tree(&self, name: &str, version: &str) -> PathBuf {
        let package = PACKAGES
            .iter()
            .find(|p| p.name == name && p.version.starts_with(version));
        let package = package
            .unwrap_or_else(|| panic!("{name} {version} is not in the lab's table of packages"));
        self.root.join(package.dir(&self.machine))
    }

    /// Returns the directory with containerd, its shim and `ctr`, for `1.7.` or `2.1.`.
    pub fn containerd(&self, version: &str) -> PathBuf {
        self.tree("containerd", version).join("usr/bin")
    }

    /// Returns the directory with `mkfs.erofs`, to be the first on containerd's PATH.
    pub(crate) fn wrappers(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Returns the library that shows another clock to the program into which it is loaded (`LD_PRELOAD`).
    pub fn fake_clock(&self) -> PathBuf {
        let directory = format!("usr/lib/{}-linux-gnu/faketime", std::env::consts::ARCH);
        self.program("libfaketime", &directory)
            .join("libfaketimeMT.so.1")
    }

    /// Returns a command that runs a program of Debian 13 with its own libraries and dynamic linker: Debian 12's are too
    /// old.
    pub(crate) fn on_its_own_libc(&self, package: &str, path: &str) -> Result<Command> {
        let (linker, libraries) = self.trixie_libraries()?;
        let mut command = Command::new(linker);
        command.arg("--library-path").arg(libraries);
        command.arg(self.program(package, path));
        Ok(command)
    }

    /// Returns the dynamic linker of Debian 13, and the directories of its libraries, separated by colons.
    fn trixie_libraries(&self) -> Result<(PathBuf, String)> {
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let directories: Vec<String> = PACKAGES
            .iter()
            .filter(|p| p.suite == TRIXIE)
            .map(|p| self.root.join(p.dir(&self.machine)).join(&libraries))
            .map(|directory| directory.display().to_string())
            .collect();
        let linker = dynamic_linker(&self.program("libc6", &libraries))?;
        Ok((linker, directories.join(":")))
    }

    /// Writes a wrapper that runs `mkfs.erofs` like [`Self::on_its_own_libc`].
    fn write_erofs_wrapper(&self) -> Result<()> {
        let (linker, libraries) = self.trixie_libraries()?;
        let script = format!(
            "#!/bin/sh\nexec {} --library-path {libraries} {} \"$@\"\n",
            linker.display(),
            self.program("erofs-utils", "usr/bin/mkfs.erofs").display(),
        );
        fs::create_dir_all(self.wrappers())?;
        let path = self.wrappers().join("mkfs.erofs");
        if fs::read_to_string(&path).is_ok_and(|found| found == script) {
            return Ok(());
        }
        // Written with a rename, since a containerd of another process may be executing it.
        let fresh = self.wrappers().join("mkfs.erofs.partial");
        fs::write(&fresh, script)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        fs::rename(&fresh, &path)?;
        Ok(())
    }
}

/// Returns the dynamic linker, the only program among libc's libraries. Its name depends on the architecture.
fn dynamic_linker(libraries: &Path) -> Result<PathBuf> {
    let entries =
        fs::read_dir(libraries).with_context(|| format!("reading {}", libraries.display()))?;
    let is_linker = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("ld-linux-"))
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(is_linker)
        .with_context(|| format!("no dynamic linker in {}", libraries.display()))
}
