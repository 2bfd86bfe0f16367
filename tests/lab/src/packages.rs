//! The programs that the lab runs: which Debian packages they come from, and where they lie once unpacked.
//!
//! Each package has a directory of its own below `target/lab/packages`, made whole by one rename, so a killed fetch
//! leaves nothing half done and several test processes can ask at once. Knows nothing of how the programs are used.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::apt;
use crate::dir::lab_dir;

/// A suite by its name, or the one that the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suite {
    Named(&'static str),
    Machine,
}

/// A package to fetch.
struct Package {
    suite: Suite,
    name: &'static str,
    /// The start of its version, where the tests depend on it; else empty.
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

/// Everything that is fetched. A new package is one line here.
const PACKAGES: &[Package] = &[
    package(TRIXIE, "containerd", "1.7."),
    package(FORKY, "containerd", "2.1."),
    // The remote snapshotters; what a test sees of them depends on their versions.
    package(FORKY, "nydus-snapshotter", "0.13."),
    package(FORKY, "soci-snapshotter", "0.4."),
    // The machine's own, since runc executes itself again and so cannot be run through another suite's ld.so.
    package(Suite::Machine, "runc", ""),
    package(TRIXIE, "busybox-static", ""),
    package(TRIXIE, "docker-registry", ""),
    // containerd's erofs snapshotter wants 1.8 or newer; Debian 12 has 1.5.
    package(TRIXIE, "erofs-utils", "1.8"),
    // Debian 12 has none, and this one runs on its libraries.
    package(TRIXIE, "kustomize", "5."),
    package(TRIXIE, "libc6", ""),
    package(TRIXIE, "libdeflate0", ""),
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

    /// The directory below the packages' root, for example `trixie/containerd-1.7`.
    fn dir(&self, machine: &str) -> PathBuf {
        let version = self.version.trim_end_matches('.');
        let dash = if version.is_empty() { "" } else { "-" };
        Path::new(&self.suite(machine)).join(format!("{}{dash}{version}", self.name))
    }

    /// What apt is asked for.
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
    /// The packages, fetched now if they are not there yet (160 MB to download, half a minute).
    ///
    /// # Errors
    /// When a package cannot be had; the message says why and what to do. Asking again in the same process gives
    /// the same answer, so that a hundred tests do not try a hundred downloads.
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
        // Held until this function returns: a second process waits here and then finds everything in place.
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

    /// The directory of all packages.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A program of a package of the table.
    ///
    /// # Panics
    /// If the package is not in the table: a mistake of the caller's, not of the machine.
    pub fn program(&self, package: &str, path: &str) -> PathBuf {
        self.tree(package, "").join(path)
    }

    /// The tree of the package of this name whose version starts so.
    fn tree(&self, name: &str, version: &str) -> PathBuf {
        let package = PACKAGES
            .iter()
            .find(|p| p.name == name && p.version.starts_with(version));
        let package = package
            .unwrap_or_else(|| panic!("{name} {version} is not in the lab's table of packages"));
        self.root.join(package.dir(&self.machine))
    }

    /// The directory with containerd, its shim and `ctr`, for `1.7.` or `2.1.`.
    pub fn containerd(&self, version: &str) -> PathBuf {
        self.tree("containerd", version).join("usr/bin")
    }

    /// The directory with the `mkfs.erofs` to put first on containerd's PATH.
    pub(crate) fn wrappers(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// `mkfs.erofs` runs on Debian 13's libraries, through their own dynamic linker: Debian 12's are too old.
    fn write_erofs_wrapper(&self) -> Result<()> {
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let directories: Vec<String> = PACKAGES
            .iter()
            .filter(|p| p.suite == TRIXIE)
            .map(|p| self.root.join(p.dir(&self.machine)).join(&libraries))
            .map(|directory| directory.display().to_string())
            .collect();
        let script = format!(
            "#!/bin/sh\nexec {} --library-path {} {} \"$@\"\n",
            dynamic_linker(&self.program("libc6", &libraries))?.display(),
            directories.join(":"),
            self.program("erofs-utils", "usr/bin/mkfs.erofs").display(),
        );
        fs::create_dir_all(self.wrappers())?;
        let path = self.wrappers().join("mkfs.erofs");
        if fs::read_to_string(&path).is_ok_and(|found| found == script) {
            return Ok(());
        }
        // By a rename, since a containerd of another process may be executing it.
        let fresh = self.wrappers().join("mkfs.erofs.partial");
        fs::write(&fresh, script)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        fs::rename(&fresh, &path)?;
        Ok(())
    }
}

/// The one among libc's libraries that is also a program. Its name differs by architecture.
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
