//! Documents with content that containerd ignores: if containerd imports and runs the image, the plugin makes
//! it ready.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Version, images};
use serde_json::{Value, json};

use crate::support::{DEFAULT_HOOKS, Node};

/// The size of the largest document that the plugin reads.
const LARGEST: usize = 8 << 20;

/// Less than one string for each element would take, more than the document and its copies on the wire.
const MAX_GROWTH: u64 = 64 << 20;

fn image(name: &str) -> lab::images::Builder {
    let layer = Layer::new().file("f", 0o644, name);
    Image::builder(format!("registry.test/odd/{name}:1")).layer(layer)
}

/// Returns an image with an additional field in its config.
fn with_config_field(name: &str, field: &[u8]) -> Image {
    image(name).build().edited(|media_type, text| {
        let text = text.into_bytes();
        match media_type == images::CONFIG {
            true => [b"{", field, b",", &text[1..]].concat(),
            false => text,
        }
    })
}

fn odd_images() -> Vec<Image> {
    let nested = format!("\"x\":{}{}", "[".repeat(200), "]".repeat(200));
    let features = vec!["\"\""; (LARGEST - 1000) / 3].join(",");
    let features = format!("\"os.features\":[{features}]");
    let indexed = image("index").indexed().build();
    let indexed = indexed.edited(|media_type, text| match media_type == images::INDEX {
        true => {
            let mut index: Value = serde_json::from_str(&text).expect("written by us");
            let entries = index["manifests"].as_array_mut().expect("an index");
            let foreign = entries
                .iter_mut()
                .find(|entry| entry["platform"]["architecture"] != json!(images::architecture()));
            foreign.expect("one of another platform")["digest"] = json!("x");
            index.to_string().into_bytes()
        }
        false => text.into_bytes(),
    });
    let manifest = image("manifest").build();
    let manifest = manifest.edited(|media_type, text| {
        let text = match media_type == images::MANIFEST {
            true => text.replace("\"layers\":", "\"Layers\":"),
            false => text,
        };
        text.into_bytes()
    });
    vec![
        with_config_field("surrogate", br#""author":"\ud83d""#),
        with_config_field("latin1", b"\"author\":\"caf\xe9\""),
        with_config_field("nested", nested.as_bytes()),
        indexed,
        manifest,
        with_config_field("features", features.as_bytes()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_documents_are_made_ready() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.hooks = DEFAULT_HOOKS;
    node.serve("").await?;
    let before = node.peak_memory()?;
    for image in odd_images() {
        // containerd unpacks it for its default snapshotter.
        node.lab.import(&image).await?;
        let chain = node.store.chain("overlayfs", &image).await?;
        ensure!(chain.len() == 1, "{}: {chain:?}", image.name());
        let annotation = [("nri-unpack/images", image.name())];
        node.cri.run_pod("erofs", &annotation).await?;
        node.image = image;
        node.wait_labelled("erofs").await?;
    }
    let growth = node.peak_memory()? - before;
    println!("the plugin's peak memory has grown by {growth} bytes");
    ensure!(growth < MAX_GROWTH, "{growth} bytes");
    Ok(())
}
