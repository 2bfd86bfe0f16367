//! Debian's docker-registry on a free port of the loopback interface, and a push to it.
//!
//! Its images are named `registry.test/…`. containerd finds them through the hosts file that
//! [`crate::Lab::use_registry`] writes, so names and test output do not depend on the port. The names contain
//! the port for a registry with TLS, whose clients read no hosts file, and for a registry by address, for tests
//! of ports.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::images::Image;
use crate::log::Log;
use crate::packages::Packages;
use crate::process::{GARBAGE_PERCENT, Process};
use crate::scratch::Scratch;
use crate::storage::Storage;

/// The host part of the images' names; `.test` is reserved, so it never resolves by accident.
pub(crate) const HOST: &str = "registry.test";

/// The timeout until it listens; it takes a tenth of a second.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// The directory of its storage.
const STORAGE: &str = "storage";

/// The files of its TLS configuration.
const CERTIFICATE: &str = "registry.crt";
const KEY: &str = "registry.key";

/// The user of a registry that requires credentials.
pub const USER: &str = "lab";

/// The password of [`USER`].
pub const PASSWORD: &str = "let me in";

/// The bcrypt hash of the password, for the registry.
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuu4h2R.N3/mVBA7Xh7aLzKSJDAsK61n52";

/// A running registry with a storage of its own. Dropping it removes both.
#[derive(Debug)]
pub struct Registry {
    /// The host part of its images' names.
    host: String,
    address: String,
    /// The address for pulls. It differs from the address for pushes only if pulls require credentials.
    pulls: String,
    /// The registry, and the second one over TLS, if any. Both serve the same storage.
    processes: Vec<Process>,
    scratch: Scratch,
}

impl Registry {
    /// Starts an empty registry.
    ///
    /// # Errors
    /// If its package is not available, or it does not start.
    pub async fn start() -> Result<Self> {
        // This may download packages, and reports what is missing before anything is created.
        let packages = tokio::task::spawn_blocking(Packages::fetch).await??;
        let scratch = Scratch::create("registry".to_owned())?;
        let (process, address) = serve(packages, &scratch, "registry", "", "").await?;
        Ok(Self {
            host: HOST.to_owned(),
            pulls: address.clone(),
            address,
            processes: vec![process],
            scratch,
        })
    }

    /// Starts an empty registry whose images' names contain its address, with a random, non-default port.
    ///
    /// # Errors
    /// If its package is not available, or it does not start.
    pub async fn start_by_address() -> Result<Self> {
        let registry = Self::start().await?;
        let host = registry.address.clone();
        Ok(Self { host, ..registry })
    }

    /// Starts an empty registry that also serves TLS, with a certificate of its own, on the port in its images'
    /// names.
    ///
    /// # Errors
    /// If its package or `openssl` is not available, or it does not start.
    pub async fn start_with_tls() -> Result<Self> {
        let mut registry = Self::start().await?;
        let scratch = &registry.scratch;
        make_certificate(scratch)?;
        let tls = format!(
            ", tls: {{certificate: {}, key: {}}}",
            scratch.path(CERTIFICATE).display(),
            scratch.path(KEY).display()
        );
        let (process, address) =
            serve(Packages::fetch()?, scratch, "registry-tls", &tls, "").await?;
        let (_, port) = address
            .rsplit_once(':')
            .context("an address without port")?;
        registry.host = format!("{HOST}:{port}");
        registry.processes.push(process);
        Ok(registry)
    }

    /// Starts an empty registry from which only [`USER`] can pull.
    ///
    /// # Errors
    /// If its package is not available, or it does not start.
    pub async fn start_private() -> Result<Self> {
        let mut registry = Self::start().await?;
        let scratch = &registry.scratch;
        let users = scratch.path("users");
        fs::write(&users, format!("{USER}:{PASSWORD_HASH}\n"))?;
        let login = format!(
            "auth: {{htpasswd: {{realm: lab, path: {}}}}}\n",
            users.display()
        );
        let packages = Packages::fetch()?;
        let (process, address) = serve(packages, scratch, "registry-private", "", &login).await?;
        registry.pulls = address;
        registry.processes.push(process);
        Ok(registry)
    }

    /// Returns the name under which this registry's `path` is pulled, for example of `lab/app:1`.
    pub fn image(&self, path: &str) -> String {
        format!("{}/{path}", self.host)
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns the certificate to trust, if it serves TLS.
    pub(crate) fn certificate(&self) -> Option<PathBuf> {
        Some(self.scratch.path(CERTIFICATE)).filter(|file| file.exists())
    }

    /// Returns the address for pushes: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the address for pulls.
    pub fn pull_address(&self) -> &str {
        &self.pulls
    }

    /// Returns the hosts file with which containerd finds this registry.
    pub(crate) fn hosts_toml(&self) -> String {
        format!(
            "server = \"http://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            self.pulls
        )
    }

    /// Stops it with SIGSTOP: it takes connections and requests, and never answers.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on with SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let mut processes = self.processes.iter();
        processes.try_for_each(|process| process.signal(signal))
    }

    /// Adds an image to the registry under all of its names, which must begin with this registry's host and end
    /// with a tag.
    ///
    /// # Errors
    /// If the image lacks a blob, which a registry would reject, too.
    pub async fn push(&self, image: &Image) -> Result<()> {
        let (host, image) = (self.host.clone(), image.clone());
        let storage = Storage::below(&self.scratch.path(STORAGE));
        tokio::task::spawn_blocking(move || push(&host, &storage, &image)).await?
    }
}

/// Starts a registry on the run's storage and a free port; returns its address. `tls` is the end of its `http`
/// section, `login` is a section of its own.
async fn serve(
    packages: &Packages,
    scratch: &Scratch,
    name: &str,
    tls: &str,
    login: &str,
) -> Result<(Process, String)> {
    let config = scratch.path(&format!("{name}.yml"));
    // Port 0: the kernel chooses a free port, and the log names it.
    fs::write(
        &config,
        format!(
            "version: 0.1\nlog: {{level: info, formatter: text, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'{tls}}}\n{login}",
            scratch.path(STORAGE).display()
        ),
    )?;
    let mut command = Command::new(packages.program("docker-registry", "usr/bin/docker-registry"));
    command
        .arg("serve")
        .arg(&config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("GOGC", GARBAGE_PERCENT);
    let log = Log::new(scratch.path(&format!("{name}.log")));
    let mut process = Process::spawn(command, scratch.id(), log)?;
    let mut address = None;
    process
        .wait_until("listening", START_TIMEOUT, async |log: &Log| {
            address = listening_address(&log.text());
            address.is_some()
        })
        .await?;
    Ok((process, address.context("a registry that listens nowhere")?))
}

/// Creates a key and a self-signed certificate.
fn make_certificate(scratch: &Scratch) -> Result<()> {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", &format!("/CN={HOST}")])
        .args(["-addext", &format!("subjectAltName=DNS:{HOST}")])
        .arg("-keyout")
        .arg(scratch.path(KEY))
        .arg("-out")
        .arg(scratch.path(CERTIFICATE))
        .output()
        .context("openssl cannot be run: `make deps` installs it")?;
    ensure!(
        output.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn listening_address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
    Some(rest[..end].to_owned())
}

fn push(host: &str, storage: &Storage, image: &Image) -> Result<()> {
    for blob in &image.blobs {
        for digest in image.references(blob).into_values() {
            let there = image.blobs.iter().any(|b| b.digest == digest);
            ensure!(there, "{} lacks the blob {digest}", image.name());
        }
    }
    for name in &image.names {
        let path = name.strip_prefix(host).and_then(|n| n.strip_prefix('/'));
        let (repository, tag) = path
            .and_then(|p| p.rsplit_once(':'))
            .with_context(|| format!("{name} is not of the form {host}/REPOSITORY:TAG"))?;
        storage
            .put(repository, tag, image)
            .with_context(|| format!("putting {name} into the registry"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_log() {
        let cases = [
            (
                "level=info msg=\"listening on 127.0.0.1:4017\" go.version=1\n",
                Some("127.0.0.1:4017"),
            ),
            ("level=info msg=\"listening on 127.0.0.1:40", None),
            ("level=info msg=\"redis not configured\"\n", None),
        ];
        for (log, address) in cases {
            assert_eq!(listening_address(log).as_deref(), address, "{log}");
        }
    }
}
