//! SOCI's snapshotter, which mounts layers lazily from the registry, and the creation of the index that it
//! needs.
//!
//! It fetches the index over https only, by the registry's name. Use it with
//! [`crate::Registry::start_with_tls`], whose certificate [`crate::Lab::use_registry`] installs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::containerd::Lab;
use crate::options::Remote;
use crate::packages::Packages;
use crate::proxy::{Invocation, ProxySnapshotter, socket};
use crate::registry::HOST;
use crate::scratch::Scratch;
use crate::store::NAMESPACE;

/// A script that runs a program with some of the machine's directories replaced by those of the run.
const ISOLATE: &str = include_str!("isolate");

/// Every layer is indexed and mounted lazily; by default only layers above 10 MiB are, which the test images
/// lack.
const MIN_LAYER_SIZE: u32 = 0;

/// Writes its configuration and creates its directories.
pub(crate) fn prepare(scratch: &Scratch) -> Result<ProxySnapshotter> {
    let dir = dir(scratch);
    let root = dir.join("root");
    fs::create_dir_all(dir.join("var-lib"))?;
    fs::create_dir(&root)?;
    fs::write(dir.join("hosts"), format!("127.0.0.1 localhost {HOST}\n"))?;
    fs::write(dir.join("ca.crt"), "")?;
    let isolate = dir.join("isolate");
    fs::write(&isolate, ISOLATE)?;
    fs::set_permissions(&isolate, fs::Permissions::from_mode(0o755))?;
    share(&root).with_context(|| format!("making {} a shared mount", root.display()))?;

    let config = dir.join("config.toml");
    fs::write(
        &config,
        format!(
            "no_prometheus = true\n[background_fetch]\ndisable = true\n\
             [snapshotter]\nmin_layer_size = {MIN_LAYER_SIZE}\n"
        ),
    )?;
    let mut arguments = isolated(&dir, "soci-snapshotter-grpc")?;
    let flag = |name: &str, value: PathBuf| [OsString::from(name), value.into()];
    arguments.extend(flag("--address", socket(Remote::Soci, scratch)?));
    arguments.extend(flag("--config", config));
    arguments.extend(flag("--root", root));
    arguments.extend(flag("--log-level", "debug".into()));
    let invocation = Invocation {
        program: "unshare".into(),
        arguments,
        environment: environment(&dir),
    };
    ProxySnapshotter::new(Remote::Soci, scratch, invocation)
}

/// Installs a registry's certificate. SOCI reads it before its first request to a registry.
pub(crate) fn trust(scratch: &Scratch, certificate: &Path) -> Result<()> {
    let mut trusted = File::options()
        .append(true)
        .open(dir(scratch).join("ca.crt"))?;
    trusted.write_all(&fs::read(certificate)?)?;
    Ok(())
}

impl Lab {
    /// Builds the SOCI index of an image that this containerd has with all blobs, and pushes it to the image's
    /// registry. [`Remote::Soci`] must be in [`crate::Options::remotes`].
    ///
    /// # Errors
    /// If SOCI fails; the message has its error.
    pub async fn publish_soci_index(&self, image: &str) -> Result<()> {
        let min_layer_size = MIN_LAYER_SIZE.to_string();
        self.soci(&["create", "--min-layer-size", &min_layer_size, image])
            .await?;
        self.soci(&["push", "--quiet", image]).await
    }

    async fn soci(&self, args: &[&str]) -> Result<()> {
        let dir = dir(self.scratch());
        let mut command = Command::new("unshare");
        command
            .args(isolated(&dir, "soci")?)
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", NAMESPACE])
            .args(args)
            .env_clear()
            .envs(environment(&dir));
        let output = tokio::task::spawn_blocking(move || command.output())
            .await?
            .context("unshare cannot be run")?;
        ensure!(
            output.status.success(),
            "soci {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

/// Makes a directory a shared mount, so that mounts below it appear in every mount namespace. Makes it private
/// first: if the machine's root is shared, the directory would join its peer group, and each mount below would
/// appear twice.
fn share(dir: &Path) -> rustix::io::Result<()> {
    mount_bind(dir, dir)?;
    mount_change(dir, MountPropagationFlags::PRIVATE)?;
    mount_change(dir, MountPropagationFlags::SHARED)
}

/// Returns its directory in a run.
fn dir(scratch: &Scratch) -> PathBuf {
    scratch.path("soci")
}

/// Returns the arguments of `unshare` for a program of SOCI, up to the program's own arguments.
fn isolated(dir: &Path, program: &str) -> Result<Vec<OsString>> {
    let program = Packages::fetch()?.program("soci-snapshotter", &format!("usr/bin/{program}"));
    Ok(vec![
        "--mount".into(),
        "--propagation".into(),
        "unchanged".into(),
        dir.join("isolate").into(),
        dir.into(),
        program.into(),
    ])
}

fn environment(dir: &Path) -> Vec<(&'static str, OsString)> {
    vec![
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        // SOCI reads registry credentials from this path.
        ("HOME", dir.into()),
        ("SSL_CERT_FILE", dir.join("ca.crt").into()),
    ]
}
