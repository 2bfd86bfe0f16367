//! From an image's record to its manifest for this node: index, manifest, config, and the layers
//! with their diff ids and chain ids.
//!
//! Documents are small and named by their content, so what was read once is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use oci_spec::image::{ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::containerd::{Containerd, Descriptor, Image};

use super::{Error, Platform};

/// The largest index, manifest or config that is read, in bytes. Registries allow 4 MiB for a
/// manifest; twice that is a document nobody made in earnest.
const MAX_DOCUMENT: u64 = 8 << 20;

/// Indexes within indexes that are followed. Real ones have one; a loop cannot be made (a digest
/// does not contain itself), but a long chain can.
const MAX_DEPTH: usize = 4;

/// Manifests that are remembered: more than the images of a large node. At some 300 bytes a layer
/// this is a few megabytes.
const MAX_REMEMBERED: usize = 1024;

/// What an image consists of on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Of the manifest itself, not of the index around it.
    pub digest: String,
    /// Of the config blob, which is the image id.
    pub config: String,
    /// Bottom first.
    pub layers: Vec<Layer>,
}

impl Manifest {
    /// The chain id of the whole image; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<&str> {
        self.layers.last().map(|layer| layer.chain_id.as_str())
    }
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The blob as the manifest describes it: compressed digest, media type, annotations.
    pub blob: Descriptor,
    /// The digest of the uncompressed layer.
    pub diff_id: String,
    /// The name of the snapshot of this layer and all below it.
    pub chain_id: String,
}

/// Reads manifests, and remembers them by the digest that an image's record points to.
#[derive(Debug)]
pub struct Manifests {
    platform: Platform,
    known: Mutex<HashMap<String, Arc<Manifest>>>,
}

impl Manifests {
    /// A reader that picks the manifests for `platform`.
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            known: Mutex::default(),
        }
    }

    /// The manifest of `image` for this node.
    pub async fn read(
        &self,
        containerd: &dyn Containerd,
        image: &Image,
    ) -> Result<Arc<Manifest>, Error> {
        if let Some(known) = self.known().get(&image.target.digest) {
            return Ok(known.clone());
        }
        let reader = Reader {
            containerd,
            image: &image.name,
            platform: &self.platform,
        };
        let manifest = Arc::new(reader.manifest(image.target.clone()).await?);
        let mut known = self.known();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(image.target.digest.clone(), manifest.clone());
        Ok(manifest)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Manifest>>> {
        // Nothing panics under this lock: it only guards single operations on the map.
        self.known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What containerd reads of a config: any other field may be as it likes.
#[derive(serde::Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(serde::Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// One reading of one image.
struct Reader<'a> {
    containerd: &'a dyn Containerd,
    image: &'a str,
    platform: &'a Platform,
}

impl Reader<'_> {
    async fn manifest(&self, mut target: Descriptor) -> Result<Manifest, Error> {
        for _ in 0..MAX_DEPTH {
            match DocumentKind::of(&target.media_type) {
                Some(DocumentKind::Manifest) => return self.layers(&target).await,
                Some(DocumentKind::Index) => {
                    let index: ImageIndex = self.document("index", &target).await?;
                    target = self.choose(&index, &target.digest)?;
                }
                None => {
                    return Err(Error::MediaType {
                        image: self.image.to_owned(),
                        media_type: target.media_type,
                        digest: target.digest,
                    });
                }
            }
        }
        Err(self.malformed("index", &target.digest, "indexes nested too deeply"))
    }

    /// The manifest of an index that suits this node best; of equals the first, as containerd does.
    fn choose(&self, index: &ImageIndex, digest: &str) -> Result<Descriptor, Error> {
        let ranked = index.manifests().iter().filter_map(|entry| {
            DocumentKind::of(entry.media_type().as_ref())?;
            let rank = match entry.platform() {
                Some(p) => self.platform.rank(&Platform::new(
                    p.os().to_string().as_str(),
                    p.architecture().to_string().as_str(),
                    p.variant().as_deref().unwrap_or_default(),
                ))?,
                // Without a platform an entry is taken when nothing better is there.
                None => u32::MAX,
            };
            Some((rank, entry))
        });
        let (_, best) = ranked
            .min_by_key(|(rank, _)| *rank)
            .ok_or_else(|| Error::NoPlatform {
                image: self.image.to_owned(),
                platform: self.platform.to_string(),
                digest: digest.to_owned(),
            })?;
        Ok(descriptor(best))
    }

    async fn layers(&self, target: &Descriptor) -> Result<Manifest, Error> {
        let manifest: ImageManifest = self.document("manifest", target).await?;
        let config_blob = descriptor(manifest.config());
        let config: Config = self.document("config", &config_blob).await?;
        // An image may carry blobs that are no layers; containerd passes over them, too.
        let layers = manifest.layers().iter().map(descriptor);
        let layers: Vec<_> = layers.filter(|l| is_layer(&l.media_type)).collect();
        let diff_ids = config.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let reason = format!(
                "{} layers, but its config {} lists {} diff ids",
                layers.len(),
                config_blob.digest,
                diff_ids.len()
            );
            return Err(self.malformed("manifest", &target.digest, &reason));
        }
        Ok(Manifest {
            digest: target.digest.clone(),
            config: config_blob.digest,
            layers: chain(layers, diff_ids),
        })
    }

    /// Reads a document and holds it against its descriptor: a blob that was cut short or changed
    /// on disk must not decide what is unpacked.
    async fn document<T: DeserializeOwned>(
        &self,
        what: &'static str,
        target: &Descriptor,
    ) -> Result<T, Error> {
        let digest = &target.digest;
        let read = self.containerd.read(digest, MAX_DOCUMENT).await;
        let bytes = read.map_err(|source| Error::Containerd {
            image: self.image.to_owned(),
            source,
        })?;
        if digest.starts_with("sha256:") && *digest != sha256(&bytes) {
            let reason = format!("its {} bytes do not have this digest", bytes.len());
            return Err(self.malformed(what, digest, &reason));
        }
        serde_json::from_slice(&bytes).map_err(|e| self.malformed(what, digest, &e.to_string()))
    }

    fn malformed(&self, what: &'static str, digest: &str, reason: &str) -> Error {
        Error::Malformed {
            image: self.image.to_owned(),
            what,
            digest: digest.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

enum DocumentKind {
    Index,
    Manifest,
}

impl DocumentKind {
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Self::Index),
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => Some(Self::Manifest),
            _ => None,
        }
    }
}

/// As containerd's `IsLayerType`: any OCI layer, docker's layers with their suffixes taken off.
fn is_layer(media_type: &str) -> bool {
    let docker = media_type.split('+').next().unwrap_or_default();
    media_type.starts_with("application/vnd.oci.image.layer.")
        || matches!(
            docker,
            "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        )
}

/// Pairs blobs with diff ids; a chain id is the digest of the chain id below and the diff id.
fn chain(blobs: Vec<Descriptor>, diff_ids: Vec<String>) -> Vec<Layer> {
    let mut below: Option<String> = None;
    let layers = blobs.into_iter().zip(diff_ids).map(|(blob, diff_id)| {
        let chain_id = match &below {
            None => diff_id.clone(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        };
        below = Some(chain_id.clone());
        Layer {
            blob,
            diff_id,
            chain_id,
        }
    });
    layers.collect()
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn descriptor(oci: &oci_spec::image::Descriptor) -> Descriptor {
    Descriptor {
        media_type: oci.media_type().to_string(),
        digest: oci.digest().to_string(),
        size: oci.size().try_into().unwrap_or(i64::MAX),
        annotations: oci.annotations().clone().unwrap_or_default(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::find;
    use super::*;
    use crate::containerd::fake::Fake;

    /// A manifest that never was in a store.
    pub(crate) fn manifest(layers: usize) -> Manifest {
        let digest = |what: &str, i: usize| sha256(format!("{what} {i}").as_bytes());
        let blobs = (0..layers).map(|i| Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: digest("blob", i),
            ..Default::default()
        });
        let diff_ids = (0..layers).map(|i| digest("diff", i)).collect();
        Manifest {
            digest: digest("manifest", 0),
            config: digest("config", 0),
            layers: chain(blobs.collect(), diff_ids),
        }
    }

    fn amd64() -> Manifests {
        Manifests::new(Platform::new("linux", "amd64", ""))
    }

    /// An index over these targets, each with its platform.
    fn index(fake: &Fake, entries: &[(&Descriptor, Option<(&str, &str)>)]) -> Descriptor {
        let entry = |(target, platform): &(&Descriptor, Option<(&str, &str)>)| {
            let mut entry = serde_json::json!({
                "mediaType": target.media_type, "digest": target.digest, "size": target.size,
            });
            if let Some((os, architecture)) = platform {
                entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
            }
            entry
        };
        let media_type = "application/vnd.oci.image.index.v1+json";
        let manifests: Vec<_> = entries.iter().map(entry).collect();
        let document = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        fake.document(media_type, document.to_string().as_bytes())
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let layers = manifest(2).layers;
        assert_eq!(layers[0].chain_id, layers[0].diff_id);
        let pair = format!("{} {}", layers[0].diff_id, layers[1].diff_id);
        assert_eq!(layers[1].chain_id, sha256(pair.as_bytes()));
    }

    #[tokio::test]
    async fn an_index_leads_to_this_platforms_manifest() {
        let fake = Fake::default();
        let (here, there) = (fake.image("a:1", 2).target, fake.image("b:1", 1).target);
        let (linux, arm) = (Some(("linux", "amd64")), Some(("linux", "arm64")));
        let attestation = Some(("unknown", "unknown"));
        let inner = index(&fake, &[(&here, linux)]);
        for (entries, expected) in [
            (vec![(&there, arm), (&here, linux)], Ok(&here)),
            (vec![(&there, attestation), (&here, None)], Ok(&here)),
            (vec![(&there, None), (&here, linux)], Ok(&here)),
            (vec![(&inner, None)], Ok(&here)),
            (vec![(&there, arm)], Err("no manifest for linux/amd64")),
        ] {
            let image = fake.tag("index:1", index(&fake, &entries));
            let read = amd64().read(&fake, &image).await;
            match expected {
                Ok(target) => assert_eq!(read.unwrap().digest, target.digest),
                Err(words) => assert!(read.unwrap_err().to_string().contains(words)),
            }
        }
    }

    #[tokio::test]
    async fn a_manifest_is_read_once() {
        let fake = Fake::default();
        let (image, manifests) = (fake.image("a:1", 3), amd64());
        let first = manifests.read(&fake, &image).await.unwrap();
        assert_eq!(first.layers.len(), 3);
        assert_eq!(fake.calls(), ["read blob", "read blob"]);
        assert_eq!(manifests.read(&fake, &image).await.unwrap(), first);
        assert!(fake.calls().is_empty());
    }

    #[tokio::test]
    async fn a_bad_document_is_named() {
        let fake = Fake::default();
        let error = async |image: &Image| {
            let read = amd64().read(&fake, image).await;
            read.unwrap_err().to_string()
        };

        let truncated = fake.document(
            "application/vnd.oci.image.manifest.v1+json",
            br#"{"schemaVersion": 2, "config"#,
        );
        let message = error(&fake.tag("short:1", truncated.clone())).await;
        assert!(
            message.contains(&truncated.digest) && message.contains("EOF"),
            "{message}"
        );

        let image = fake.image("changed:1", 1);
        fake.corrupt(&image.target.digest, b"{}");
        let message = error(&image).await;
        assert!(
            message.contains("its 2 bytes do not have this digest"),
            "{message}"
        );

        let other = fake.document("application/vnd.cncf.helm.config", b"{}");
        let message = error(&fake.tag("chart:1", other)).await;
        assert!(
            message.contains("application/vnd.cncf.helm.config"),
            "{message}"
        );

        let image = fake.image("gone:1", 1);
        fake.discard(&image.target.digest);
        let message = error(&image).await;
        assert!(
            message.starts_with("image gone:1: read blob sha256:"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn layers_and_diff_ids_have_to_match() {
        let fake = Fake::default();
        let image = fake.image("a:1", 2);
        let manifest = fake.read(&image.target.digest, MAX_DOCUMENT).await.unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        manifest["layers"].as_array_mut().unwrap().pop();
        let target = fake.document(&image.target.media_type, manifest.to_string().as_bytes());
        let read = amd64().read(&fake, &fake.tag("short:1", target)).await;
        let message = read.unwrap_err().to_string();
        assert!(
            message.contains("1 layers, but its config sha256:"),
            "{message}"
        );
        assert!(message.contains("lists 2 diff ids"), "{message}");
    }

    #[tokio::test]
    async fn images_are_found_by_what_users_write() {
        let fake = Fake::default();
        let target = fake.image("docker.io/library/busybox:latest", 1).target;
        let id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        fake.tag(id, target);
        for asked in [
            "busybox",
            "docker.io/library/busybox:latest",
            id,
            &id[7..],
            &id[7..19],
        ] {
            assert!(find(&fake, asked).await.is_ok(), "{asked}");
        }
        for asked in ["busybox:2", "0123456", "UPPER", "", "a b"] {
            let found = find(&fake, asked).await;
            assert_eq!(found.is_ok(), asked == "0123456", "{asked}");
        }
        let message = find(&fake, "nope:1").await.unwrap_err().to_string();
        assert!(message.contains("crictl pull nope:1"), "{message}");
    }
}
