//! Fetches the missing blobs of an image from its registry: containerd fetches them, and the flight's lease
//! holds them until they are unpacked. Nothing remains afterwards.

mod credentials;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Labels, Logins, Source};
use crate::image::{self, Manifest};

use super::kept_blobs::changes_back;
use crate::unpack::schedule::process_lock::process_lock;
use crate::unpack::snapshotter::lease::Lease;

/// The first containerd version whose transfer service uses the node's registry configuration.
const SINCE: (u64, u64) = (2, 1);

/// The name of the lock against other processes, which fetch blobs of the same image.
const LOCK: &str = "pull";

/// The number of attempts to restore the labels.
const RESTORE_TRIES: usize = 3;

/// The configuration with which containerd reaches registries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registries {
    /// containerd's directory of `hosts.toml` files.
    pub hosts: PathBuf,
    /// A file in the form of docker's `config.json`.
    pub credentials: Option<PathBuf>,
}

/// Why the blobs were not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("containerd {0} cannot fetch missing blobs: that needs version 2.1 or later")]
    TooOld(String),
    #[error("the image has no name with which it could be pulled")]
    NoName,
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    #[error("{0} does not have the blob")]
    NotThere(String),
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    #[error("stopped")]
    Stopped,
}

/// The fetch of an image's blobs.
pub(crate) struct Pull<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) lease: &'a Lease,
    pub(crate) registries: &'a Registries,
    pub(crate) manifest: &'a Manifest,
    /// The image's names, the preferred one first.
    pub(crate) names: &'a [&'a str],
    pub(crate) stop: &'a CancellationToken,
}

impl Pull<'_> {
    /// Fetches the blobs that the manifest names, and checks that `digest` is one of them.
    pub(crate) async fn blob(&self, digest: &str) -> Result<(), Failure> {
        let version = self.containerd.version().await?;
        if is_older(&version) {
            return Err(Failure::TooOld(version));
        }
        let logins = match &self.registries.credentials {
            Some(path) => credentials::read(path).await?,
            None => Logins::new(),
        };
        let source = Source {
            reference: self.reference().ok_or(Failure::NoName)?,
            hosts: self.registries.hosts.clone(),
            logins,
        };
        self.fetch(&source).await?;
        match self.containerd.blob(digest).await {
            Ok(_) => Ok(()),
            Err(e) if e.is_not_found() => Err(Failure::NotThere(source.reference)),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the reference by digest, since a tag may have moved.
    fn reference(&self) -> Option<String> {
        let repository = self.names.iter().find_map(|name| image::repository(name))?;
        Some(format!("{repository}@{}", self.manifest.digest))
    }

    /// Fetches the blobs, then restores the manifest's gc labels: containerd's fetch adds one for each blob.
    async fn fetch(&self, source: &Source) -> Result<(), Failure> {
        let digest = &self.manifest.digest;
        // Another process would take the labels of this fetch for those from before.
        let lock = process_lock(self.containerd, LOCK, digest);
        let lock = self.stop.run_until_cancelled(lock).await;
        let _lock = lock.ok_or(Failure::Stopped)?;
        let before = self.containerd.blob(digest).await?.labels;
        let fetch = self.containerd.fetch(self.lease.id(), source);
        let fetched = self.stop.run_until_cancelled(fetch).await;
        let mut restored = self.restore(&before).await;
        for _ in 1..RESTORE_TRIES {
            if restored.is_err() {
                restored = self.restore(&before).await;
            }
        }
        restored?;
        Ok(fetched.ok_or(Failure::Stopped)??)
    }

    async fn restore(&self, before: &Labels) -> Result<(), containerd::Error> {
        let digest = &self.manifest.digest;
        let now = self.containerd.blob(digest).await?.labels;
        let changes = changes_back(before, &now);
        if !changes.is_empty() {
            self.containerd.label_blob(digest, changes).await?;
        }
        Ok(())
    }
}

/// Whether this containerd is older than [`SINCE`]. A version that cannot be parsed counts as new enough.
fn is_older(version: &str) -> bool {
    containerd::numbers(version).is_some_and(|numbers| numbers < SINCE)
}
