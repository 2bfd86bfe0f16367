//! By default, an image is made ready ahead in a local snapshotter if a container is likely to need it there: containers
//! have used its repository, or a pod waits for its first container.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Image, PAUSE, Version, images};

use crate::after_pull::layered;
use crate::support::{APP, DEFAULT_HOOKS, Node, PATIENCE, handler};

const USED: &str = "why=containers have used its repository";
const WAITS: &str = "why=a pod waits for its first container";

/// On a node of any size.
pub(crate) const DURING_PULL: &str = "[unpack]\nmin_free = \"0%\"\nduring_pull = \"on\"\n";

/// The limit of images that count as those of one pod.
const OF_A_POD: usize = 4;

/// The number of unused images after which a repository is forgotten.
const UNUSED: usize = 5;

/// Returns a tag of a repository. It shares no layer with other tags.
pub(crate) fn tag(repository: &str, n: usize) -> Image {
    layered(&format!("registry.test/{repository}:{n}"), 3)
}

impl Node {
    /// A node with the plugin, which has the default configuration and this text.
    async fn with(version: Version, config: &str) -> Result<Self> {
        let mut node = Self::start(version).await?;
        node.hooks = DEFAULT_HOOKS;
        node.serve(config).await?;
        Ok(node)
    }

    /// Runs a pod with a container of this image.
    async fn uses(&mut self, handler: &str, image: &Image) -> Result<()> {
        let pod = self.cri.run_pod(handler, &[]).await?;
        let name = image.name();
        self.cri.create_container(&pod, name, &[], &[]).await?;
        self.cri.remove_pod(&pod).await?;
        Ok(())
    }

    /// Pulls an image, and waits until it is ready although no container needs it.
    async fn is_made_ready(&mut self, handler: &str, image: &Image, why: &str) -> Result<()> {
        let log = self.log.from_now();
        self.image = image.clone();
        self.pull(image).await?;
        self.wait_labelled(handler).await?;
        self.assert_nothing_left(handler).await?;
        // The line follows the last label.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while log.lines_with(why).is_empty() {
            let in_time = tokio::time::Instant::now() < deadline;
            ensure!(in_time, "{}: no line with {why}", image.name());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(self.state_of(image, handler).await? == "ready");
        Ok(())
    }

    /// Pulls an image and another one after it, and checks that the first one is not made ready.
    async fn is_not_made_ready(&mut self, handler: &str, image: &Image) -> Result<()> {
        // A pod that does not wait: the image would be made ready for one that does.
        let pod = self.cri.run_pod(handler, &[]).await?;
        self.cri.create_container(&pod, APP, &[], &[]).await?;
        self.pull(image).await?;
        // A later job of the same snapshotter.
        let after = tag(
            &format!("after/{}", image.name().replace(['/', ':', '.'], "-")),
            1,
        );
        self.pull(&after).await?;
        self.cri
            .create_container(&pod, after.name(), &[], &[])
            .await?;
        self.usage_is(handler, &after, "used").await?;
        self.cri.remove_pod(&pod).await?;
        let chain = self.store.chain(handler, image).await?;
        ensure!(chain.is_empty(), "{}: {} layers", image.name(), chain.len());
        Ok(())
    }

    /// Waits until a use of this image is recorded.
    pub(crate) async fn uses_and_waits(&mut self, handler: &str, image: &Image) -> Result<()> {
        self.pull(image).await?;
        self.uses(handler, image).await?;
        self.usage_is(handler, image, "used").await
    }

    /// Waits until the store tells this usage. An anchor alone was made by containerd, for a container.
    async fn usage_is(&self, handler: &str, image: &Image, usage: &str) -> Result<()> {
        let label = format!("nri-unpack/usage.{handler}");
        let anchor = format!("containerd.io/gc.ref.snapshot.{handler}");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let labels = self.store.content_labels(&image.config.digest).await?;
            let found = match labels.get(&label) {
                None if labels.contains_key(&anchor) => "used",
                found => found.map_or("", String::as_str),
            };
            if found == usage {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < deadline, "{labels:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn a_new_tag_of_a_used_repository_is_made_ready(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::with(version, "").await?;
    // Not used by a container, but made ready by a command.
    let ensured = tag("ensured", 1);
    node.pull(&ensured).await?;
    node.ensure_ready(&ensured, handler)?;
    node.usage_is(handler, &ensured, "unused").await?;
    node.is_not_made_ready(handler, &tag("ensured", 2)).await?;

    node.uses_and_waits(handler, &tag("used", 1)).await?;
    node.is_made_ready(handler, &tag("used", 2), USED).await?;
    for (image, ahead) in [
        (images::pause(&[PAUSE])?, Some("pinned")),
        (tag("used", 2), Some("used-repository")),
        (tag("ensured", 2), None),
    ] {
        let row = node.row(&["check", image.name(), "--snapshotter", handler])?;
        ensure!(row["ahead"].as_str() == ahead, "{row:#}");
    }
    node.usage_is(handler, &tag("used", 2), "unused").await?;
    // The memory is the store.
    let plugin = node.plugin.as_mut().context("serving")?;
    plugin.kill();
    plugin.restart()?;
    for n in 3..=UNUSED + 1 {
        node.is_made_ready(handler, &tag("used", n), USED).await?;
    }
    node.is_not_made_ready(handler, &tag("used", UNUSED + 2))
        .await?;
    // Wanted again.
    node.uses_and_waits(handler, &tag("used", 4)).await?;
    node.is_made_ready(handler, &tag("used", UNUSED + 3), USED)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_tag_of_a_used_repository_is_made_ready_on_2_1() -> Result<()> {
    a_new_tag_of_a_used_repository_is_made_ready(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_tag_of_a_used_repository_is_made_ready_on_1_7() -> Result<()> {
    a_new_tag_of_a_used_repository_is_made_ready(Version::V1_7).await
}

async fn an_image_that_arrives_while_a_pod_waits_is_made_ready(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::with(version, "").await?;
    node.is_not_made_ready(handler, &tag("before", 1)).await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    for n in 0..OF_A_POD {
        let image = tag(&format!("never-seen-{n}"), 1);
        node.is_made_ready(handler, &image, WAITS).await?;
    }
    node.is_not_made_ready(handler, &tag("one-too-many", 1))
        .await?;
    node.cri.remove_pod(&pod).await?;
    Ok(())
}

/// The layers are applied as their blobs arrive: the image is ready under its digest, before it has its record.
async fn an_image_is_made_ready_during_its_pull(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::with(version, DURING_PULL).await?;
    node.uses_and_waits(handler, &tag("used", 1)).await?;
    let log = node.log.from_now();
    node.is_made_ready(handler, &tag("used", 2), USED).await?;
    node.cri.run_pod(handler, &[]).await?;
    node.is_made_ready(handler, &tag("never-seen", 1), WAITS)
        .await?;
    for (repository, why) in [("used", USED), ("never-seen", WAITS)] {
        let lines = log.lines_with(&format!(
            "ready ahead image=registry.test/{repository}@sha256:"
        ));
        ensure!(lines.iter().any(|line| line.contains(why)), "{lines:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_made_ready_during_its_pull_on_2_1() -> Result<()> {
    an_image_is_made_ready_during_its_pull(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_made_ready_during_its_pull_on_1_7() -> Result<()> {
    an_image_is_made_ready_during_its_pull(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_arrives_while_a_pod_waits_is_made_ready_on_2_1() -> Result<()> {
    an_image_that_arrives_while_a_pod_waits_is_made_ready(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_arrives_while_a_pod_waits_is_made_ready_on_1_7() -> Result<()> {
    an_image_that_arrives_while_a_pod_waits_is_made_ready(Version::V1_7).await
}
