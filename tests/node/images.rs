//! All kinds of images that containerd unpacks, with all forms of names: `ensure` and the hook of a container
//! set the same labels as containerd's own labelled pull.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use lab::images::{Builder, Compression, architecture, schema1};
use lab::{Handler, Image, Layer, Options, Version};
use serde_json::Value;

use crate::labels::theirs;
use crate::support::{APP, CRI_LABELS, LaunchedBy, Node, PATIENCE, handler};

/// containerd truncates the list of layers: as many digests as fit into 4,096 bytes, key included.
const LISTED_LAYERS: usize = 56;

/// Returns the builder of an image that shares no layer with images of other names.
fn image(name: &str, layers: usize) -> Builder {
    let layer = |n: usize| Layer::new().file(&format!("f{n}"), 0o644, format!("{n} of {name}\n"));
    let image = Image::builder(name).command(&["/none"]);
    (0..layers).map(layer).fold(image, Builder::layer)
}

/// Returns a platform that this machine can run, but that is not its own.
fn compatible_platform() -> (&'static str, &'static str) {
    match architecture() {
        "amd64" => ("386", ""),
        // arm64 runs the older 32 bit platforms.
        _ => ("arm", "v6"),
    }
}

/// Returns one image of each kind that a registry accepts.
fn kinds(prefix: &str) -> Vec<Image> {
    let name = |kind: &str| format!("registry.test/{prefix}/{kind}:1");
    let layer = |kind: &str, n: usize| {
        let content = format!("{n} of {prefix} {kind}\n");
        Layer::new().file(&format!("f{n}"), 0o644, content)
    };
    let (architecture, variant) = compatible_platform();
    let annotated = layer("annotated", 1)
        .annotate("containerd.io/snapshot/nydus-bootstrap", "true")
        .annotate("org.example.other", "x");
    let mixed = image(&name("mixed"), 1)
        .layer(layer("mixed", 1).compressed(Compression::Zstd))
        .layer(layer("mixed", 2).compressed(Compression::None));
    let images = [
        image(&name("docker"), 3).docker(),
        image(&name("list"), 2).docker().indexed(),
        image(&name("index"), 2).attested(),
        image(&name("nested"), 2).attested().nested(),
        image(&name("lesser"), 2)
            .platform(architecture, variant)
            .indexed(),
        mixed,
        image(&name("annotated"), 0).layer(annotated),
        image(&name("empty"), 0),
        image(&name("127"), 127),
    ];
    images.map(Builder::build).into()
}

/// Checks that every layer has the labels that the lab computes, with this reference.
async fn assert_labelled(
    node: &Node,
    image: &Image,
    snapshotter: &str,
    reference: &str,
) -> Result<()> {
    let chain = node.store.chain(snapshotter, image).await?;
    let layers = &image.layers;
    ensure!(
        chain.len() == layers.len(),
        "{} of {} layers of {}",
        chain.len(),
        layers.len(),
        image.name()
    );
    for (i, snapshot) in chain.iter().enumerate() {
        let following = layers[i..].iter().take(LISTED_LAYERS);
        let following: Vec<_> = following.map(|layer| layer.digest.as_str()).collect();
        let values = [
            reference,
            &image.manifest.digest,
            &layers[i].digest,
            &following.join(","),
        ];
        for (label, value) in CRI_LABELS.into_iter().zip(values) {
            let found = snapshot.labels.get(label).map(String::as_str);
            ensure!(
                found == Some(value),
                "{}, layer {i}: {label} is {found:?}, not {value}",
                image.name()
            );
        }
    }
    Ok(())
}

fn parse_results(output: &Output) -> Result<Value> {
    ensure!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    Ok(report["results"][0].clone())
}

/// Keys, values and anchors are equal to those of containerd's pull.
async fn labels_equal_those_of_a_pull(version: Version) -> Result<()> {
    let (ours, theirs) = (handler(version), theirs(version));
    let mut options = Options::new(version);
    // The pull for «theirs» must set labels for the comparison; by default it sets none.
    options.snapshot_annotations = true;
    options.pull_by_handler = true;
    options.handlers = vec![Handler::new("ours", ours), Handler::new("theirs", theirs)];
    let mut node = Node::start_with(version, options).await?;
    for image in kinds("equal") {
        let name = image.name();
        node.registry.push(&image).await?;
        node.cri.pull_image_for(name, "theirs").await?;
        let ensured = node.command(&["ensure", name, "--handler", "ours", "--output", "json"])?;
        let result = parse_results(&ensured).with_context(|| name.to_owned())?;
        let action = if image.layers.is_empty() {
            "none"
        } else {
            "unpacked"
        };
        ensure!(
            result["action"] == action && result["layers_done"] == image.layers.len(),
            "{result:#}"
        );

        let made = node.store.chain(ours, &image).await?;
        let pulled = node.store.chain(theirs, &image).await?;
        ensure!(made.len() == image.layers.len(), "{name}: {made:#?}");
        ensure!(made == pulled, "{name}: {made:#?}\n{pulled:#?}");
        assert_labelled(&node, &image, ours, name).await?;
        let config = node.store.content_labels(&image.config.digest).await?;
        for snapshotter in [ours, theirs] {
            let anchor = config.get(&format!("containerd.io/gc.ref.snapshot.{snapshotter}"));
            // containerd also anchors the chain without layers, with an empty name.
            let anchor = anchor.filter(|anchor| !anchor.is_empty());
            ensure!(
                anchor.map_or("", String::as_str) == image.top(),
                "{name} in {snapshotter}: {config:?}"
            );
        }
        let check = node.command(&["check", name, "--handler", "ours"])?;
        ensure!(check.status.success(), "{check:?}");
    }
    node.assert_nothing_left(ours).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_labelled_as_by_2_1() -> Result<()> {
    labels_equal_those_of_a_pull(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_labelled_as_by_1_7() -> Result<()> {
    labels_equal_those_of_a_pull(Version::V1_7).await
}

/// The container of each kind finds its image labelled, although no image was ready before.
async fn each_kind_is_labelled_for_a_container(version: Version) -> Result<()> {
    let mut node = Node::serving(version, LaunchedBy::Itself).await?;
    let handler = handler(version);
    let pod = node.cri.run_pod(handler, &[]).await?;
    for image in kinds("container") {
        let name = image.name();
        if name.contains("/127:") && version == Version::V1_7 {
            // Skipped for 10 seconds of copying: `native` copies all lower layers for each layer. The test on
            // 2.1 covers this kind.
            continue;
        }
        if name.contains("/lesser:") && version == Version::V2_1 {
            // The transfer service does not pull for a platform that this machine can run, but that is not its
            // own.
            node.put(&image).await?;
        } else {
            node.registry.push(&image).await?;
            let pulled = node.cri.pull_image(name).await;
            pulled.with_context(|| name.to_owned())?;
        }
        let created = node.cri.create_container(&pod, name, &[], &[]).await;
        created.with_context(|| name.to_owned())?;
        assert_labelled(&node, &image, handler, name).await?;
    }
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_labelled_for_a_container_on_2_1() -> Result<()> {
    each_kind_is_labelled_for_a_container(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_labelled_for_a_container_on_1_7() -> Result<()> {
    each_kind_is_labelled_for_a_container(Version::V1_7).await
}

/// Returns the names that users and kubelets use for an image that was pulled by its tag.
fn names_of(image: &Image) -> Vec<(&'static str, String)> {
    let (repository, _) = image.name().rsplit_once(':').expect("a tag");
    let id = &image.config.digest;
    vec![
        ("tag", image.name().to_owned()),
        ("digest", by_digest(image)),
        ("both", format!("{repository}:1@{}", image.target.digest)),
        ("id", id.clone()),
        ("hex", id["sha256:".len()..].to_owned()),
        ("short", id["sha256:".len()..][..13].to_owned()),
    ]
}

fn by_digest(image: &Image) -> String {
    let (repository, _) = image.name().rsplit_once(':').expect("a tag");
    format!("{repository}@{}", image.target.digest)
}

/// The labels carry the requested name, in the form that a registry accepts.
async fn labels_carry_the_requested_name(version: Version) -> Result<()> {
    let mut node = Node::serving(version, LaunchedBy::Itself).await?;
    let handler = handler(version);
    let pod = node.cri.run_pod(handler, &[]).await?;
    // The pod no longer waits for its first container: no image is made ready ahead for it, under its tag.
    node.cri.create_container(&pod, APP, &[], &[]).await?;
    let count = names_of(&node.image).len();
    for n in 0..2 * count {
        let name = format!("registry.test/asked/app{n}:1");
        let image = image(&name, 2).attested().nested().build();
        node.registry.push(&image).await?;
        node.cri.pull_image(&name).await?;
        let (way, asked) = names_of(&image).swap_remove(n % count);
        let by_ensure = n < count;
        if by_ensure {
            let ensured = node.command(&["ensure", &asked, "--handler", handler])?;
            ensure!(ensured.status.success(), "{way}: {ensured:?}");
        } else {
            let created = node.cri.create_container(&pod, &asked, &[], &[]).await;
            created.with_context(|| way.to_owned())?;
        }
        // containerd 1.7 passes the first name of the image, the tag, to the container's hook.
        let told_digest = by_ensure || version == Version::V2_1;
        let expected = match way {
            "digest" | "both" if told_digest => by_digest(&image),
            _ => name,
        };
        let labelled = assert_labelled(&node, &image, handler, &expected).await;
        labelled.with_context(|| format!("by {way}, by ensure: {by_ensure}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_carry_the_requested_name_on_2_1() -> Result<()> {
    labels_carry_the_requested_name(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_carry_the_requested_name_on_1_7() -> Result<()> {
    labels_carry_the_requested_name(Version::V1_7).await
}

impl Node {
    /// Adds an image to the store unchanged, and waits until CRI knows it.
    async fn put(&mut self, image: &Image) -> Result<()> {
        self.store.put_image(image).await?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.cri.image_status(image.name()).await?.is_none() {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "CRI does not know the image"
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// Images that no registry of the lab accepts: short names, and layers that must not be distributed.
#[tokio::test(flavor = "multi_thread")]
async fn bare_names_and_foreign_layers_are_labelled() -> Result<()> {
    let mut node = Node::serving(Version::V2_1, LaunchedBy::Itself).await?;
    let pod = node.cri.run_pod("erofs", &[]).await?;
    let foreign = |n: usize| {
        Layer::new()
            .file("foreign", 0o644, format!("{n}"))
            .foreign()
    };
    for (n, builder) in [
        image("docker.io/library/bare0:latest", 1),
        image("docker.io/library/bare1:latest", 1)
            .layer(foreign(1))
            .docker(),
        image("docker.io/library/bare2:latest", 1).layer(foreign(2)),
        image("docker.io/library/bare3:latest", 2),
    ]
    .into_iter()
    .enumerate()
    {
        let (image, bare) = (builder.build(), format!("bare{n}"));
        node.put(&image).await?;
        if n % 2 == 0 {
            let ensured = node.command(&["ensure", &bare, "--handler", "erofs"])?;
            ensure!(ensured.status.success(), "{ensured:?}");
        } else {
            node.cri.create_container(&pod, &bare, &[], &[]).await?;
        }
        assert_labelled(&node, &image, "erofs", image.name()).await?;
    }
    Ok(())
}

/// The error for an image that containerd does not unpack names it, and says what to do.
async fn unsupported_images_are_named(version: Version) -> Result<()> {
    let node = Node::start(version).await?;
    let handler = handler(version);
    let secret = |n: usize| Layer::new().file("s", 0o644, format!("{n}")).encrypted();
    let encrypted = image("registry.test/lab/encrypted:1", 1)
        .layer(secret(1))
        .layer(secret(2))
        .build();
    let elsewhere = image("registry.test/lab/elsewhere:1", 1)
        .platform("mips64le", "")
        .attested()
        .build();
    let old = schema1("registry.test/lab/old:1");
    for (image, digest, words) in [
        (
            &encrypted,
            &encrypted.layers[1].digest,
            &["layer 2 of 3", "is encrypted", "stream processors"][..],
        ),
        (
            &elsewhere,
            &elsewhere.target.digest,
            &["no manifest for linux/"],
        ),
        (&old, &old.target.digest, &["docker's schema 1", "skopeo"]),
    ] {
        node.store.put_image(image).await?;
        let ensured = node.command(&["ensure", image.name(), "--handler", handler])?;
        let printed = String::from_utf8_lossy(&ensured.stdout);
        ensure!(ensured.status.code() == Some(1), "{ensured:?}");
        for part in [image.name(), digest].iter().chain(words) {
            ensure!(printed.contains(part), "{part}: {printed}");
        }
    }
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_images_are_named_on_2_1() -> Result<()> {
    unsupported_images_are_named(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_images_are_named_on_1_7() -> Result<()> {
    unsupported_images_are_named(Version::V1_7).await
}
