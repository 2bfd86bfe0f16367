//! Debian's docker-registry on a free port of the loopback, and pushing to it.
//!
//! Its images are named `registry.test/…`; a containerd finds them through the hosts file that
//! [`crate::Lab::use_registry`] writes, so names, and what tests print, do not depend on the port.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::images::{Blob, Image};
use crate::log::Log;
use crate::packages::Packages;
use crate::process::Process;
use crate::scratch::Scratch;

/// The host part of the images' names; `.test` is reserved, so it is never resolved by accident.
pub(crate) const HOST: &str = "registry.test";

/// How long it may take to listen; it takes a tenth of a second.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// A running registry with a storage of its own. Dropped, both go.
#[derive(Debug)]
pub struct Registry {
    address: String,
    _process: Process,
    _scratch: Scratch,
}

impl Registry {
    /// Starts an empty registry.
    ///
    /// # Errors
    /// If its package cannot be had, or it does not start.
    pub async fn start() -> Result<Self> {
        let packages = tokio::task::spawn_blocking(Packages::fetch).await??;
        let scratch = Scratch::create("registry".to_owned())?;
        let config = scratch.path("registry.yml");
        // Port 0: the kernel chooses a free one, the log says which.
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info, formatter: text, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
                scratch.path("storage").display()
            ),
        )?;
        let mut command =
            Command::new(packages.program("docker-registry", "usr/bin/docker-registry"));
        command
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none");
        let mut process = Process::spawn(
            command,
            scratch.id(),
            Log::new(scratch.path("registry.log")),
        )?;
        let mut address = None;
        process
            .wait_until("listening", START_TIMEOUT, async |log: &Log| {
                address = listening_address(&log.text());
                address.is_some()
            })
            .await?;
        Ok(Self {
            address: address.context("a registry that listens nowhere")?,
            _process: process,
            _scratch: scratch,
        })
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The hosts file that sends a containerd here.
    pub(crate) fn hosts_toml(&self) -> String {
        format!(
            "server = \"http://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            self.address
        )
    }

    /// Pushes an image under all of its names, which have to begin with `registry.test/` and end with a tag.
    ///
    /// # Errors
    /// If the registry refuses it, as it does with images that lack a blob.
    pub async fn push(&self, image: &Image) -> Result<()> {
        let (address, image) = (self.address.clone(), image.clone());
        tokio::task::spawn_blocking(move || push(&address, &image)).await?
    }
}

fn listening_address(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
    Some(rest[..end].to_owned())
}

fn push(address: &str, image: &Image) -> Result<()> {
    for name in &image.names {
        let path = name.strip_prefix(HOST).and_then(|n| n.strip_prefix('/'));
        let (repository, tag) = path
            .and_then(|p| p.rsplit_once(':'))
            .with_context(|| format!("{name} is not of the form {HOST}/REPOSITORY:TAG"))?;
        let base = format!("http://{address}/v2/{repository}");
        for blob in &image.blobs {
            if blob.is_manifest() {
                put_manifest(&base, &blob.digest, blob)?;
            } else {
                put_blob(&base, blob)?;
            }
        }
        put_manifest(&base, tag, &image.target)?;
    }
    Ok(())
}

/// An upload in one piece: the registry says where to, and takes it there.
fn put_blob(base: &str, blob: &Blob) -> Result<()> {
    let started = ureq::post(format!("{base}/blobs/uploads/"))
        .send_empty()
        .context("starting an upload")?;
    let location = started
        .headers()
        .get("Location")
        .context("an upload without a location")?
        .to_str()?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{separator}digest={}", blob.digest);
    let done = ureq::put(url)
        .content_type("application/octet-stream")
        .send(&blob.bytes[..]);
    done.with_context(|| format!("uploading {}", blob.digest))?;
    Ok(())
}

fn put_manifest(base: &str, reference: &str, manifest: &Blob) -> Result<()> {
    let url = format!("{base}/manifests/{reference}");
    ureq::put(&url)
        .content_type(manifest.media_type)
        .send(&manifest.bytes[..])
        .with_context(|| format!("uploading the manifest {reference}"))?;
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
