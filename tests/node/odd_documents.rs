//! Documents of which containerd reads less than it is given: what it imports and runs is made ready.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Version, images};
use serde_json::{Value, json};

use crate::support::{DEFAULT_HOOKS, Node};

/// The largest document that is read.
const LARGEST: usize = 8 << 20;

/// Much less than one string for each element, and more than the document and its copies on the wire.
const ALLOWED: u64 = 64 << 20;

fn image(name: &str) -> lab::images::Builder {
    let layer = Layer::new().file("f", 0o644, name);
    Image::builder(format!("registry.test/odd/{name}:1")).layer(layer)
}

/// With a field more in its config.
fn configured(name: &str, field: &[u8]) -> Image {
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
        configured("surrogate", br#""author":"\ud83d""#),
        configured("latin1", b"\"author\":\"caf\xe9\""),
        configured("nested", nested.as_bytes()),
        indexed,
        manifest,
        configured("features", features.as_bytes()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containerd_runs_is_made_ready() -> Result<()> {
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
    let grown = node.peak_memory()? - before;
    println!("the plugin's peak memory has grown by {grown} bytes");
    ensure!(grown < ALLOWED, "{grown} bytes");
    Ok(())
}
