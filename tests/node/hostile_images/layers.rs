//! Layers that are valid and extreme: the same one many times, one with many names, and ones that hide everything.

use anyhow::Result;
use lab::{Image, Layer, Version};

use super::{MAX_GROWTH, image, repeated};
use crate::support::{Node, handler};

/// The variable with the number of layers, for a long run: `1000` takes minutes.
const LAYERS: &str = "NRI_UNPACK_LAYERS";

/// How often the layer is there in the ordinary suite.
const FEW: usize = 60;

/// The names of one layer.
const NAMES: usize = 100_000;

fn layers() -> usize {
    let wanted = std::env::var(LAYERS).ok();
    wanted.and_then(|wanted| wanted.parse().ok()).unwrap_or(FEW)
}

/// Returns images whose last layer hides files, also in ways that no builder uses.
fn whiteouts() -> Vec<Image> {
    let lower = || {
        let layer = Layer::new().dir("d", 0o755).file("d/f", 0o644, "f\n");
        layer.file("g", 0o644, "g\n").symlink("l", "d/f")
    };
    let hidden = Layer::new().whiteout("d").whiteout("g").whiteout("l");
    let opaque = Layer::new().file("./.wh..wh..opq", 0o644, "");
    let absent = Layer::new().whiteout("nothing").whiteout("no/such/file");
    let both = Layer::new().whiteout("g").file("g", 0o644, "new\n");
    let names = [
        ".wh.",
        ".wh..",
        ".wh...",
        ".wh..wh.",
        ".wh..wh.plnk",
        "d/.wh.",
        "d/.wh..",
    ];
    let odd = names.map(|name| Layer::new().file(name, 0o644, ""));
    [hidden, opaque, absent, both]
        .into_iter()
        .chain(odd)
        .enumerate()
        .map(|(n, upper)| {
            let image = Image::builder(format!("registry.test/hostile/whiteouts-{n}:1"));
            image.layer(lower()).layer(upper).build()
        })
        .collect()
}

async fn extreme_layers_take_little_memory(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let before = node.peak_memory()?;
    let many = (0..NAMES).fold(Layer::new().dir("d", 0o755), |layer, n| {
        layer.file(&format!("d/a-name-of-some-length-{n}"), 0o644, "")
    });
    let names = image("names").layer(many).build();
    node.store.put_image(&names).await?;
    node.meets(&names, handler, None).await?;
    node.ensure_ready(&names, handler)?;
    for image in whiteouts() {
        node.store.put_image(&image).await?;
        node.meets(&image, handler, None).await?;
    }
    node.assert_growth(before, MAX_GROWTH)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute, in which containerd makes an erofs of 100,000 files"]
async fn extreme_layers_take_little_memory_on_2_1() -> Result<()> {
    extreme_layers_take_little_memory(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn extreme_layers_take_little_memory_on_1_7() -> Result<()> {
    extreme_layers_take_little_memory(Version::V1_7).await
}

/// The same layer many times has as many chain ids. No file system mounts a thousand of them.
async fn the_same_layer_many_times(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let before = node.peak_memory()?;
    let image = repeated(image("repeated").build(), layers());
    node.store.put_image(&image).await?;
    node.meets(&image, handler, None).await?;
    node.assert_growth(before, MAX_GROWTH)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_many_times_on_2_1() -> Result<()> {
    the_same_layer_many_times(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_many_times_on_1_7() -> Result<()> {
    the_same_layer_many_times(Version::V1_7).await
}
