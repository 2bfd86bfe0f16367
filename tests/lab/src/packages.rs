//! The programs that the lab runs: which Debian packages they come from, and where they lie once unpacked.
//!
//! Each package has a directory of its own below `target/lab/packages`, made whole by one rename, so a killed fetch
//! leaves nothing half done and several test processes can ask at once. Knows nothing of how the programs are used.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::apt;

/// A suite by its name, or the one that the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suite {
    Named(&'static str),
    Machine,
}

/// One package: its suite, its name, and the start of its version where the tests depend on it.
struct Package(Suite, &'static str, &'static str);

const TRIXIE: Suite = Suite::Named("trixie");
const FORKY: Suite = Suite::Named("forky");

/// Everything that is fetched. A new package is one line here.
const PACKAGES: &[Package] = &[
    Package(TRIXIE, "containerd", "1.7."),
    Package(FORKY, "containerd", "2.1."),
    // The remote snapshotters; what a test sees of them depends on their versions.
    Package(FORKY, "nydus-snapshotter", "0.13."),
    Package(FORKY, "soci-snapshotter", "0.4."),
    // The machine's own, since runc executes itself again and so cannot be run through another suite's ld.so.
    Package(Suite::Machine, "runc", ""),
    Package(TRIXIE, "busybox-static", ""),
    Package(TRIXIE, "docker-registry", ""),
    // containerd's erofs snapshotter wants 1.8 or newer; Debian 12 has 1.5.
    Package(TRIXIE, "erofs-utils", "1.8"),
    Package(TRIXIE, "libc6", ""),
    Package(TRIXIE, "libdeflate0", ""),
    Package(TRIXIE, "liblz4-1", ""),
    Package(TRIXIE, "liblzma5", ""),
    Package(TRIXIE, "libpcre2-8-0", ""),
    Package(TRIXIE, "libselinux1", ""),
    Package(TRIXIE, "libuuid1", ""),
    Package(TRIXIE, "libxxhash0", ""),
    Package(TRIXIE, "libzstd1", ""),
    Package(TRIXIE, "zlib1g", ""),
];

impl Package {
    fn suite(&self, machine: &str) -> String {
        match self.0 {
            Suite::Named(name) => name.to_owned(),
            Suite::Machine => machine.to_owned(),
        }
    }

    /// The directory below the packages' root, for example `trixie/containerd-1.7`.
    fn dir(&self, machine: &str) -> PathBuf {
        let Package(_, name, version) = self;
        let version = if version.is_empty() {
            String::new()
        } else {
            format!("-{}", version.trim_end_matches('.'))
        };
        Path::new(&self.suite(machine)).join(format!("{name}{version}"))
    }

    /// What apt is asked for.
    fn request(&self) -> String {
        let Package(_, name, version) = self;
        if version.is_empty() {
            (*name).to_owned()
        } else {
            format!("{name}={version}*")
        }
    }
}

/// The unpacked packages.
#[derive(Debug)]
pub struct Packages {
    root: PathBuf,
    machine: String,
}

/// The directory for everything that the lab writes, which exists: `NRI_UNPACK_LAB`, or `target/lab` of this checkout.
/// Its path is the real one, as the kernel shows it for mounts and executables.
pub(crate) fn lab_dir() -> Result<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."));
    let dir = std::env::var_os("NRI_UNPACK_LAB")
        .map_or_else(|| checkout.join("target/lab"), PathBuf::from);
    fs::create_dir_all(&dir)
        .and_then(|()| dir.canonicalize())
        .with_context(|| format!("creating {}", dir.display()))
}

impl Packages {
    /// The packages, fetched now if they are not there yet (about 125 MB, half a minute).
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
                .find(|p| Some(p.1) == apt::package_name(&deb))
                .with_context(|| {
                    format!("apt downloaded {}, which nobody asked for", deb.display())
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
            .find(|p| p.1 == name && p.2.starts_with(version));
        let package = package
            .unwrap_or_else(|| panic!("{name} {version} is not in the lab's table of packages"));
        self.root.join(package.dir(&self.machine))
    }

    /// The directory with containerd, its shim and `ctr`, for `1.7.` or `2.1.`.
    pub(crate) fn containerd(&self, version: &str) -> PathBuf {
        self.tree("containerd", version).join("usr/bin")
    }

    /// The directory with the `mkfs.erofs` to put first on containerd's PATH.
    pub(crate) fn wrappers(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// `mkfs.erofs` runs on Debian 13's libraries, through their own dynamic linker: Debian 12's are too old.
    fn write_erofs_wrapper(&self) -> Result<()> {
        let mut directories = Vec::new();
        let mut linker = None;
        for Package(suite, name, version) in PACKAGES {
            if *suite != TRIXIE {
                continue;
            }
            for triplet in read_dir_or_empty(&self.tree(name, version).join("usr/lib")) {
                if triplet.to_string_lossy().contains("-linux-gnu") {
                    linker = linker.or_else(|| {
                        read_dir_or_empty(&triplet)
                            .into_iter()
                            .find(|f| f.to_string_lossy().contains("/ld-linux-"))
                    });
                    directories.push(triplet.display().to_string());
                }
            }
        }
        let Some(linker) = linker else {
            bail!("libc6 of trixie holds no dynamic linker below usr/lib")
        };
        let script = format!(
            "#!/bin/sh\nexec {} --library-path {} {} \"$@\"\n",
            linker.display(),
            directories.join(":"),
            self.program("erofs-utils", "usr/bin/mkfs.erofs").display(),
        );
        fs::create_dir_all(self.wrappers())?;
        let path = self.wrappers().join("mkfs.erofs");
        if fs::read_to_string(&path).is_ok_and(|found| found == script) {
            return Ok(()); // Rewriting it under a containerd that executes it would fail that one's unpack.
        }
        let fresh = self.wrappers().join("mkfs.erofs.partial");
        fs::write(&fresh, script)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        fs::rename(&fresh, &path)?;
        Ok(())
    }
}

fn read_dir_or_empty(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default()
}
