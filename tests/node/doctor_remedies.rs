//! The remedies of `doctor`, carried out: afterwards the finding is gone, and the operation that it warned of
//! succeeds.

use anyhow::{Context, Result, bail, ensure};
use lab::{Image, Layer, Options, Remote, Version, images};

use crate::doctor::{Found, has};
use crate::guest_pull::NYDUS;
use crate::support::Node;

/// With this annotation a pod tells containerd 1.7 for which handler an image is pulled.
pub(crate) const PULL_HANDLER: &str = "io.containerd.cri.runtime-handler";

impl Node {
    /// Appends the lines of a remedy to the file that it names.
    fn append_lines(&self, found: &Found, id: &str) -> Result<()> {
        let remedy = &found[id]["remedy"];
        let file = remedy["file"].as_str().context("a file")?;
        ensure!(
            file == self.lab.config().display().to_string(),
            "{remedy:#}"
        );
        let lines = remedy["lines"].as_array().context("lines")?;
        let lines: Vec<_> = lines.iter().filter_map(|line| line.as_str()).collect();
        let text = std::fs::read_to_string(file)?;
        Ok(std::fs::write(
            file,
            format!("{text}\n{}\n", lines.join("\n")),
        )?)
    }
}

/// An image whose config lists no layer.
async fn broken_image(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let layer = Layer::new().file("f", 0o644, "f\n");
    let right = Image::builder("registry.test/broken/app:1");
    let right = right.layer(layer).command(&["/f"]).build();
    let wrong = right.edited(|media_type, text| {
        let begin = "\"diff_ids\":[";
        let text = match text.split_once(begin) {
            Some((before, after)) if media_type == images::CONFIG => {
                let (_, after) = after.split_once(']').expect("a list");
                format!("{before}{begin}]{after}")
            }
            _ => text,
        };
        text.into_bytes()
    });
    let name = right.name().to_owned();
    node.store.put_image(&wrong).await?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, "images-broken", "warning", &name)?;
    has(
        &found,
        "images-broken",
        "warning",
        "build and push the image again",
    )?;

    node.registry.push(&right).await?;
    node.cri.pull_image(&name).await?;
    // containerd's CRI has kept the broken image under its ID.
    let (_, found) = node.examine()?;
    has(&found, "images-broken", "warning", "images rm sha256:")?;
    node.follow(&found, "images-broken").await?;
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key("images-broken"), "{found:#?}");
    node.ensure_ready(&right, "native")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_is_mended_by_a_new_push_on_2_1() -> Result<()> {
    broken_image(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_is_mended_by_a_new_push_on_1_7() -> Result<()> {
    broken_image(Version::V1_7).await
}

/// containerd 2.1 pulls with the transfer service, which here unpacks for another snapshotter than the default
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn the_transfer_service_unpacks_for_the_default_snapshotter_on_2_1() -> Result<()> {
    const ID: &str = "transfer-unpack-elsewhere";
    let mut node = Node::start(Version::V2_1).await?;
    let text = std::fs::read_to_string(node.lab.config())?;
    let table = "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]";
    let elsewhere = format!("{text}\n{table}\nplatform = \"linux\"\nsnapshotter = \"native\"\n");
    std::fs::write(node.lab.config(), elsewhere)?;
    node.restart_containerd().await?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, ID, "error", "refuses every pull")?;
    let layer = Layer::new().file("f", 0o644, "elsewhere\n");
    let image = Image::builder("registry.test/elsewhere/app:1").layer(layer);
    let image = image.command(&["/f"]).build();
    node.registry.push(&image).await?;
    let Err(refused) = node.cri.pull_image(image.name()).await else {
        bail!("pulled");
    };
    println!("{refused}");

    node.append_lines(&found, ID)?;
    node.restart_containerd().await?;
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key(ID), "{found:#?}");
    node.cri.pull_image(image.name()).await?;
    Ok(())
}

/// containerd 1.7 pulls for the handler that a pod names. nydus accepts no layer without labels, and by default
/// a pull sets no labels.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_for_a_handler_succeeds_with_labels_on_1_7() -> Result<()> {
    const ID: &str = "handler-pull-fails";
    let mut options = Options::new(Version::V1_7);
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(Version::V1_7, options).await?;
    let (_, found) = node.examine()?;
    has(&found, ID, "note", "disable_snapshot_annotations = false")?;
    let pod = node.cri.run_pod(NYDUS, &[(PULL_HANDLER, NYDUS)]).await?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, ID, "warning", "for the handler nydus")?;
    let layer = Layer::new().file("f", 0o644, "for nydus\n");
    let image = Image::builder("registry.test/for/nydus:1").layer(layer);
    let image = image.command(&["/f"]).build();
    node.registry.push(&image).await?;
    let Err(refused) = node.cri.pull_image_for(image.name(), NYDUS).await else {
        bail!("pulled without labels");
    };
    let missing = "missing CRI reference annotation";
    ensure!(refused.message().contains(missing), "{refused}");
    node.cri.remove_pod(&pod).await?;

    let text = std::fs::read_to_string(node.lab.config())?;
    let line = |on: bool| format!("disable_snapshot_annotations = {on}");
    ensure!(text.contains(&line(true)), "{text}");
    std::fs::write(node.lab.config(), text.replace(&line(true), &line(false)))?;
    node.restart_containerd().await?;
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key(ID), "{found:#?}");
    node.cri.pull_image_for(image.name(), NYDUS).await?;
    Ok(())
}

/// containerd before 1.7.26 shows its NRI timeout in its file only.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_nri_is_found_if_containerds_file_is_unreadable() -> Result<()> {
    for (version, is_old) in [(Version::V1_7, true), (Version::V2_1, false)] {
        let node = Node::start(version).await?;
        let (_, found) = node.examine()?;
        ensure!(!found.contains_key("nri-old"), "{found:#?}");
        let original = format!("{:?}", node.lab.config());
        let config = node
            .config("")
            .replace(&original, "\"/nowhere/config.toml\"");
        let (_, found) = node.examine_with(&config, &[])?;
        ensure!(found.contains_key("nri-old") == is_old, "{found:#?}");
        if is_old {
            has(&found, "nri-old", "warning", "1.7.26 or later")?;
        }
    }
    Ok(())
}
