//! Builds an image from layers: config, manifest, and optionally an index.

use anyhow::Result;
use serde_json::{Value, json};

use super::format::{self, Format};
use super::index::{Indexing, index};
use super::{Blob, BuiltLayer, Flaw, Image, Layer, architecture, digest};

/// An image under construction.
#[derive(Clone)]
pub struct Builder {
    names: Vec<String>,
    layers: Vec<Layer>,
    run: Run,
    format: Format,
    platform: (&'static str, &'static str),
    indexing: Option<Indexing>,
    flaws: Vec<Flaw>,
}

/// The settings of the image's config for its containers.
#[derive(Clone, Default)]
pub(super) struct Run {
    entrypoint: Vec<String>,
    command: Vec<String>,
    user: String,
    volumes: Vec<String>,
}

impl Builder {
    pub(super) fn new(name: String) -> Self {
        Self {
            names: vec![name],
            layers: Vec::new(),
            run: Run::default(),
            format: Format::Oci,
            platform: (architecture(), ""),
            indexing: None,
            flaws: Vec::new(),
        }
    }

    /// Adds another name.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Adds a layer on top of the layers so far.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Converts all layers so far to the format that stargz mounts lazily.
    ///
    /// # Errors
    /// If the conversion program is not available.
    pub(super) fn estargz(mut self) -> Result<Self> {
        let layers = self.layers.into_iter().map(Layer::estargz);
        self.layers = layers.collect::<Result<_>>()?;
        Ok(self)
    }

    /// Sets the command of containers that set no command.
    pub fn command(mut self, command: &[&str]) -> Self {
        self.run.command = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Sets the entrypoint, which gets the command of the image or the container.
    pub fn entrypoint(mut self, entrypoint: &[&str]) -> Self {
        self.run.entrypoint = entrypoint.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Sets the user by a name in the image's own `/etc/passwd`.
    pub fn user(mut self, name: &str) -> Self {
        self.run.user = name.to_owned();
        self
    }

    /// Declares a volume: each container gets its own directory there, with the image's files in it.
    pub fn volume(mut self, path: &str) -> Self {
        self.run.volumes.push(path.to_owned());
        self
    }

    /// Uses the media types of docker's second schema instead of OCI's.
    pub fn docker(mut self) -> Self {
        self.format = Format::Docker;
        self
    }

    /// Sets a platform other than this machine's: architecture and variant.
    pub fn platform(mut self, architecture: &'static str, variant: &'static str) -> Self {
        self.platform = (architecture, variant);
        self
    }

    /// Makes the names point to an index, which lists an image of another platform before this machine's.
    pub fn indexed(mut self) -> Self {
        self.indexing.get_or_insert_default();
        self
    }

    /// Makes the index list an attestation as its first entry.
    pub fn attested(mut self) -> Self {
        self.indexing.get_or_insert_default().attested = true;
        self
    }

    /// Puts the index into another index.
    pub fn nested(mut self) -> Self {
        self.indexing.get_or_insert_default().nested = true;
        self
    }

    /// Adds a flaw.
    pub fn flaw(mut self, flaw: Flaw) -> Self {
        self.flaws.push(flaw);
        self
    }

    /// Builds the image.
    ///
    /// # Panics
    /// If a flaw refers to a layer that does not exist.
    pub fn build(self) -> Image {
        let mut blobs = Vec::new();
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in self.layers {
            let annotations = layer.annotations.clone();
            let (compression, marks) = (layer.compression, layer.marks);
            let media_type = self.format.layer(compression, marks);
            let (diff_id, bytes) = match layer.blob {
                Some(blob) => (digest(&format::gunzip(&blob)), blob),
                None => {
                    let tar = layer.into_tar();
                    (digest(&tar), compression.compress(tar))
                }
            };
            diff_ids.push(diff_id);
            let blob = Blob::new(media_type, bytes);
            let mut descriptor = describe(&blob);
            if !annotations.is_empty() {
                descriptor["annotations"] = json!(annotations);
            }
            descriptors.push(descriptor);
            blobs.push(blob);
        }
        for flaw in &self.flaws {
            match *flaw {
                Flaw::WrongDiffId(layer) => diff_ids[layer] = digest(b"another layer"),
                Flaw::DiffIdMissing => drop(diff_ids.pop()),
                Flaw::LayerMissing(_) | Flaw::ManifestTruncated => {}
            }
        }
        let layers = chain(&blobs, &diff_ids);
        let config = config(self.platform, &self.run, &diff_ids);
        let config = Blob::new(self.format.config(), config);
        let mut manifest = manifest(self.format, &config, &descriptors);
        if self.flaws.contains(&Flaw::ManifestTruncated) {
            manifest.bytes.truncate(manifest.bytes.len() / 2);
            manifest.digest = digest(&manifest.bytes);
        }
        let missing: Vec<String> = self
            .flaws
            .iter()
            .filter_map(|f| {
                if let Flaw::LayerMissing(i) = f {
                    Some(blobs[*i].digest.clone())
                } else {
                    None
                }
            })
            .collect();
        blobs.retain(|b| !missing.contains(&b.digest));
        blobs.extend([config.clone(), manifest.clone()]);
        let target = match self.indexing {
            Some(indexing) => index(self.format, &manifest, self.platform, indexing, &mut blobs),
            None => manifest.clone(),
        };
        Image {
            names: self.names,
            target,
            manifest,
            config,
            layers,
            blobs,
        }
    }
}

/// Returns the layers with their chain IDs. The chain ID of the first layer is its diff ID; each further one is
/// the digest of «chain ID below, space, diff ID». If the counts differ, the chain ends with the shorter list.
fn chain(blobs: &[Blob], diff_ids: &[String]) -> Vec<BuiltLayer> {
    let mut layers: Vec<BuiltLayer> = Vec::new();
    for (blob, diff_id) in blobs.iter().zip(diff_ids) {
        let chain_id = match layers.last() {
            None => diff_id.clone(),
            Some(below) => digest(format!("{} {diff_id}", below.chain_id).as_bytes()),
        };
        layers.push(BuiltLayer {
            digest: blob.digest.clone(),
            diff_id: diff_id.clone(),
            chain_id,
        });
    }
    layers
}

pub(super) fn config(
    (architecture, variant): (&str, &str),
    run: &Run,
    diff_ids: &[String],
) -> Vec<u8> {
    let mut config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": run.command },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    if !variant.is_empty() {
        config["variant"] = json!(variant);
    }
    if !run.entrypoint.is_empty() {
        config["config"]["Entrypoint"] = json!(run.entrypoint);
    }
    if !run.user.is_empty() {
        config["config"]["User"] = json!(run.user);
    }
    for volume in &run.volumes {
        config["config"]["Volumes"][volume] = json!({});
    }
    bytes(&config)
}

pub(super) fn manifest(format: Format, config: &Blob, layers: &[Value]) -> Blob {
    let media_type = format.manifest();
    let body = json!({ "schemaVersion": 2, "mediaType": media_type, "config": describe(config), "layers": layers });
    Blob::new(media_type, bytes(&body))
}

pub(super) fn describe(blob: &Blob) -> Value {
    json!({ "mediaType": blob.media_type, "digest": blob.digest, "size": blob.bytes.len() })
}

/// Serialises the value. The maps of `serde_json` are sorted, so equal values give equal bytes.
pub(super) fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Builder {
        let lower = Layer::new()
            .dir("d", 0o755)
            .file("d/f", 0o644, "hi\n")
            .symlink("l", "d/f");
        Image::builder("registry.test/a:1")
            .layer(lower)
            .layer(Layer::new().whiteout("d/f"))
    }

    #[test]
    fn builds_are_reproducible() {
        let (once, again) = (image().build(), image().build());
        assert_eq!(once.blobs, again.blobs);
        // The digest is fixed here, so that builds on different days are compared, too.
        assert_eq!(
            once.layers[0].diff_id,
            "sha256:269ed30391390b6685240717893f78fdc878fd415a5579d10952655b11ace698"
        );
        assert_eq!(
            once.layers[1].diff_id,
            "sha256:32d0e1a9c2304164c5485218ba26505da91669440624f9a4d209238456edd309"
        );
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let layers = image().build().layers;
        assert_eq!(layers[0].chain_id, layers[0].diff_id);
        assert_eq!(
            layers[1].chain_id,
            "sha256:d81614b561e69f08bc40b4ac68daa04eb6beea3df43f297a009d37438c95d247"
        );
    }

    #[test]
    fn each_flaw_changes_only_its_part() {
        let sound = image().build();
        let diff_ids = |image: &Image| {
            let config: Value = serde_json::from_slice(&image.config.bytes).unwrap();
            config["rootfs"]["diff_ids"].as_array().unwrap().len()
        };
        let has = |image: &Image, digest: &str| image.blobs.iter().any(|b| b.digest == digest);
        for flaw in [
            Flaw::WrongDiffId(1),
            Flaw::DiffIdMissing,
            Flaw::LayerMissing(1),
            Flaw::ManifestTruncated,
        ] {
            let flawed = image().flaw(flaw).build();
            let top = &sound.layers[1];
            assert_eq!(
                diff_ids(&flawed),
                if flaw == Flaw::DiffIdMissing { 1 } else { 2 },
                "{flaw:?}"
            );
            assert_eq!(
                has(&flawed, &top.digest),
                flaw != Flaw::LayerMissing(1),
                "{flaw:?}"
            );
            assert_eq!(
                flawed.layers.last().map(|l| &l.diff_id) == Some(&top.diff_id),
                matches!(flaw, Flaw::LayerMissing(_) | Flaw::ManifestTruncated),
                "{flaw:?}"
            );
            let manifest = serde_json::from_slice::<Value>(&flawed.manifest.bytes);
            assert_eq!(
                manifest.is_err(),
                flaw == Flaw::ManifestTruncated,
                "{flaw:?}"
            );
            assert_eq!(
                flawed.manifest.digest,
                digest(&flawed.manifest.bytes),
                "{flaw:?}"
            );
        }
    }
}
