//! The blobs of an image whose layers are gone, from its registry: containerd fetches them, the
//! flight's lease holds them until they are unpacked, and nothing of it stays.

mod credentials;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Logins, Source};
use crate::image::{self, Manifest};

use super::kept_blobs::changes_back;
use crate::unpack::snapshotter::lease::Lease;

/// The first version whose transfer service takes the node's registry configuration along.
const SINCE: (u64, u64) = (2, 1);

/// How registries are reached.
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
    #[error("containerd {0} cannot fetch missing blobs, that takes 2.1 or later")]
    TooOld(String),
    #[error("the image has no name that could be pulled")]
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

/// What it takes to fetch an image's blobs.
pub(crate) struct Pull<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) lease: &'a Lease,
    pub(crate) registries: &'a Registries,
    pub(crate) manifest: &'a Manifest,
    /// The names that the image goes by, the best first.
    pub(crate) names: &'a [&'a str],
    pub(crate) stop: &'a CancellationToken,
}

impl Pull<'_> {
    /// Fetches what the manifest names, and makes sure that `digest` is among it.
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

    /// By digest: a tag may have moved since.
    fn reference(&self) -> Option<String> {
        let repository = self.names.iter().find_map(|name| image::repository(name))?;
        Some(format!("{repository}@{}", self.manifest.digest))
    }

    /// A fetch labels the manifest, so that it keeps its blobs; afterwards it keeps what it kept
    /// before.
    async fn fetch(&self, source: &Source) -> Result<(), Failure> {
        let digest = &self.manifest.digest;
        let before = self.containerd.blob(digest).await?.labels;
        let fetch = self.containerd.fetch(self.lease.id(), source);
        let fetched = self.stop.run_until_cancelled(fetch).await;
        let now = self.containerd.blob(digest).await?.labels;
        let changes = changes_back(&before, &now);
        if !changes.is_empty() {
            self.containerd.label_blob(digest, changes).await?;
        }
        Ok(fetched.ok_or(Failure::Stopped)??)
    }
}

/// Of a version that is not understood the best is hoped.
fn is_older(version: &str) -> bool {
    containerd::numbers(version).is_some_and(|numbers| numbers < SINCE)
}
