//! The stargz snapshotter, which mounts the layers of eStargz images lazily from the registry, and unpacks
//! other layers.
//!
//! It uses http for a registry on the loopback interface, by the address in the image's name. Use it with
//! [`crate::Registry::start_by_address`].

mod program;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::images::Layer;
use crate::options::Remote;
use crate::proxy::{Invocation, ProxySnapshotter, socket};
use crate::scratch::Scratch;

/// The annotation with the digest of a blob's table of contents. Without it the snapshotter does not trust the
/// layer.
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Disables prefetching, so that layers stay lazy.
const CONFIG: &str = "no_prometheus = true\nnoprefetch = true\nno_background_fetch = true\n";

/// Writes its configuration.
pub(crate) fn prepare(scratch: &Scratch) -> Result<ProxySnapshotter> {
    let root = scratch.path("stargz");
    let config = scratch.path("stargz.toml");
    fs::create_dir(&root)?;
    fs::write(&config, CONFIG)?;
    let socket = socket(Remote::Stargz, scratch)?;
    let invocation = Invocation {
        program: program::built()?,
        arguments: vec!["serve".into(), socket.into(), config.into(), root.into()],
        // It reads registry credentials from this path. Without a PATH it finds no fusermount and mounts by
        // itself.
        environment: vec![("HOME", scratch.path("tmp").into())],
    };
    ProxySnapshotter::new(Remote::Stargz, scratch, invocation)
}

impl Layer {
    /// Returns an eStargz layer with the same files, which can be mounted lazily.
    ///
    /// # Errors
    /// If the conversion program is not available, or fails.
    pub fn estargz(self) -> Result<Self> {
        let annotations = self.annotations.clone();
        let (blob, toc) = convert(&self.into_tar())?;
        let layer = annotations
            .iter()
            .fold(Self::from_blob(blob), |layer, (key, value)| {
                layer.annotate(key, value)
            });
        Ok(layer.annotate(TOC_DIGEST, &toc))
    }
}

/// Returns the blob, and the digest of its table of contents.
fn convert(tar: &[u8]) -> Result<(Vec<u8>, String)> {
    let mut command = Command::new(program::built()?);
    command.arg("layer").stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running stargz")?;
    // The program reads all input before it writes.
    let mut stdin = child
        .stdin
        .take()
        .context("stargz without a standard input")?;
    stdin.write_all(tar)?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "stargz layer: {stderr}");
    Ok((output.stdout, stderr))
}
