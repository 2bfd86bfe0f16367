//! Images that are made to break what reads them: each gets an error that names it, or is made ready as containerd makes
//! it ready. The plugin goes on, leaves nothing, and takes little memory.
//!
//! Broken documents are in `bad_input`, odd ones in `odd_documents`, and texts in `untrusted`. `make fuzz` tries others.

mod blobs;
mod layers;

use anyhow::{Context, Result, ensure};
use lab::images::{Builder, Compression};
use lab::{Image, Layer, Version, images};
use serde_json::{Value, json};

use crate::hostile_containerd::ended;
use crate::support::{Node, PATIENCE, handler};

/// The limit of the growth of the plugin's peak memory over some images, in bytes. It grows by 2 to 6 MB.
const MAX_GROWTH: u64 = 16 << 20;

/// More layers than the plugin reads, and than any snapshotter mounts.
const MANY: usize = 10_000;

fn image(name: &str) -> Builder {
    let layer = |n: usize| Layer::new().file(&format!("f{n}"), 0o644, format!("{n} of {name}\n"));
    let image = Image::builder(format!("registry.test/hostile/{name}:1"));
    image.layer(layer(1)).layer(layer(2))
}

/// Returns the image with an edited document.
fn edited(image: Image, kind: &str, edit: impl Fn(&mut Value)) -> Image {
    image.edited(|media_type, text| {
        let mut document: Value = serde_json::from_str(&text).expect("written by us");
        if media_type == kind {
            edit(&mut document);
        }
        document.to_string().into_bytes()
    })
}

fn with_layer(name: &str, edit: impl Fn(&mut Value)) -> Image {
    edited(image(name).build(), images::MANIFEST, |manifest| {
        edit(&mut manifest["layers"][1]);
    })
}

fn repeated(image: Image, layers: usize) -> Image {
    let image = edited(image, images::CONFIG, |config| {
        let diff_ids = &mut config["rootfs"]["diff_ids"];
        *diff_ids = vec![diff_ids[0].clone(); layers].into();
    });
    edited(image, images::MANIFEST, |manifest| {
        let blobs = &mut manifest["layers"];
        *blobs = vec![blobs[0].clone(); layers].into();
    })
}

/// Returns images with the words of their errors.
fn refused() -> Vec<(Image, &'static str)> {
    let config_as_layer = edited(image("config").build(), images::MANIFEST, |manifest| {
        manifest["layers"][1]["digest"] = manifest["config"]["digest"].clone();
    });
    let no_config = edited(image("no-config").build(), images::MANIFEST, |manifest| {
        manifest["config"] = manifest["layers"][0].clone();
    });
    vec![
        (
            repeated(image("many").build(), MANY),
            "more than 4096 layers",
        ),
        (
            with_layer("algorithm", |layer| layer["digest"] = json!("sha999:0")),
            "content digest sha999:0",
        ),
        (
            with_layer("no-digest", |layer| {
                layer["digest"] = json!("../../etc/passwd")
            }),
            "is not a digest",
        ),
        (config_as_layer, "registry.test/hostile/config:1"),
        (no_config, "is not that of a container image"),
    ]
}

/// Returns images that containerd makes ready.
fn accepted() -> Vec<Image> {
    let sizes = edited(image("sizes").build(), images::MANIFEST, |manifest| {
        manifest["layers"][0]["size"] = json!(i64::MAX);
        manifest["layers"][1]["size"] = json!(-1);
    });
    let plain = Layer::new().file("plain", 0o644, "plain\n");
    let plain = image("plain")
        .layer(plain.compressed(Compression::None))
        .build();
    let plain = edited(plain, images::MANIFEST, |manifest| {
        manifest["layers"][2]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
    });
    // containerd looks at the content, not at the media type.
    let zstd = with_layer("zstd", |layer| {
        layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+zstd");
    });
    let forged = with_layer("forged", |layer| {
        layer["annotations"] = json!({
            "containerd.io/snapshot.ref": "sha256:forged",
            "containerd.io/snapshot/cri.image-ref": "registry.test/other:1",
            "containerd.io/snapshot/cri.layer-digest": "sha256:forged",
            "containerd.io/snapshot/uidmapping": "0:0:1",
            "containerd.io/snapshot/gidmapping": "0:0:1",
            "containerd.io/snapshot/nydus-proxy-mode": "true",
            "containerd.io/gc.root": "1",
            "containerd.io/gc.ref.snapshot.erofs": "sha256:forged",
        });
    });
    vec![sizes, plain, zstd, forged]
}

async fn no_image_crashes_the_plugin_or_takes_much_memory(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let before = node.peak_memory()?;
    for (image, words) in refused() {
        let name = image.name().to_owned();
        node.store.put_image(&image).await.context(name.clone())?;
        let ensured = node.command(&["ensure", &name, "--snapshotter", handler])?;
        let printed = String::from_utf8_lossy(&ensured.stderr).into_owned()
            + &String::from_utf8_lossy(&ensured.stdout);
        ensure!(ensured.status.code() == Some(1), "{ensured:?}");
        ensure!(
            printed.contains(&name) && printed.contains(words),
            "{name}: {printed}"
        );
        let annotation = [("nri-unpack/images", name.as_str())];
        let pod = node.cri.run_pod(handler, &annotation).await?;
        node.wait_for_lines(&name, 1).await?;
        node.cri.remove_pod(&pod).await?;
        node.assert_nothing_left(handler).await?;
    }
    for image in accepted() {
        node.store.put_image(&image).await?;
        node.ensure_ready(&image, handler)?;
        node.image = image;
        node.assert_labelled(handler).await?;
    }
    // The last one has the forged annotations.
    let chain = node.store.chain(handler, &node.image).await?;
    for (key, value) in chain.iter().flat_map(|layer| &layer.labels) {
        let is_mapping = key.contains("mapping") || key.contains("proxy-mode");
        let is_forged = value.contains("sha256:forged") || value.contains("registry.test/other");
        ensure!(
            !is_mapping && !is_forged && !key.contains("/gc."),
            "{key}: {value}"
        );
    }
    node.assert_growth(before, MAX_GROWTH)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_crashes_the_plugin_or_takes_much_memory_on_2_1() -> Result<()> {
    no_image_crashes_the_plugin_or_takes_much_memory(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_crashes_the_plugin_or_takes_much_memory_on_1_7() -> Result<()> {
    no_image_crashes_the_plugin_or_takes_much_memory(Version::V1_7).await
}

impl Node {
    /// Checks how much the plugin's peak memory has grown, in bytes.
    fn assert_growth(&self, before: u64, limit: u64) -> Result<()> {
        let growth = self.peak_memory()? - before;
        println!("the plugin's peak memory has grown by {growth} bytes");
        ensure!(growth < limit, "{growth} bytes");
        Ok(())
    }

    /// Has a command and the plugin make an image ready, and checks how both end: with an error that has these words, or,
    /// without words, in any way. Returns the peak of the command's memory in bytes.
    async fn meets(
        &mut self,
        image: &Image,
        snapshotter: &str,
        words: Option<&str>,
    ) -> Result<u64> {
        let name = image.name().to_owned();
        let log = self.log.from_now();
        let annotation = [("nri-unpack/images", name.as_str())];
        let pod = self.cri.run_pod(snapshotter, &annotation).await?;
        log.wait_for(&name, PATIENCE).await?;
        let ensure = ["ensure", &name, "--snapshotter", snapshotter];
        let (code, peak) = ended(self.command_of(&ensure)?).await?;
        let output = self.command(&ensure)?;
        let text = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        println!("{name}: {code:?}, {peak} KiB: {text}");
        if let Some(words) = words {
            ensure!(output.status.code() == Some(1), "{name}: {output:?}");
            ensure!(
                text.contains(&name) && text.contains(words),
                "{name}: {text}"
            );
            // It is in the hook's way, or is given up before.
            let created = self.cri.create_container(&pod, &name, &[], &[]).await;
            ensure!(created.is_err(), "{name}: a container of a broken image");
        }
        ensure!(matches!(code, Some(0 | 1)), "{name}: {code:?}");
        self.cri.remove_pod(&pod).await?;
        self.assert_nothing_left(snapshotter).await?;
        Ok(peak << 10)
    }
}
