//! SIGHUP: the plugin reads a changed configuration during a session.

use anyhow::{Result, ensure};
use lab::Version;

use crate::after_pull::layered;
use crate::support::{ALL, CRI_LABELS, Node, PATIENCE, handler};

impl Node {
    fn reload(&self, config: &str) -> Result<()> {
        self.plugin.as_ref().expect("serving").reload(config)
    }
}

async fn reload(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve("").await?;
    node.wait_reconciled(handler).await?;
    ensure!(node.store.chain(handler, &node.image).await?.is_empty());

    let log = node.log.from_now();
    node.reload("[hooks]\nwait = \"often\"\n")?;
    let stays = "the old configuration stays in force";
    let kept_line = log.wait_for(stays, PATIENCE).await?;
    ensure!(
        kept_line.contains(":2:8: hooks.wait: \"often\""),
        "{kept_line}"
    );

    let elsewhere = node
        .config(ALL)
        .replace("[nri]\n", "[nri]\nindex = \"77\"\n");
    node.reload(&elsewhere)?;
    let named = "some changed keys take effect at the next restart only keys=nri";
    log.wait_for(named, PATIENCE).await?;
    node.wait_labelled(handler).await?;

    // Labels for some images only.
    let some = format!("{ALL}image_labels = {{ \"*/plain:*\" = \"none\" }}\n");
    let again = node.log.from_now();
    node.reload(&node.config(&some))?;
    again
        .wait_for("the configuration was read again", PATIENCE)
        .await?;
    let plain = layered("registry.test/lab/plain:1", 1);
    node.registry.push(&plain).await?;
    node.cri.pull_image(plain.name()).await?;
    let ready = format!(
        "image is ready ahead image={} snapshotter={handler} ",
        plain.name()
    );
    log.wait_for(&ready, PATIENCE).await?;
    let chain = node.store.chain(handler, &plain).await?;
    let is_bare = |s: &lab::Snapshot| !s.labels.contains_key(CRI_LABELS[0]);
    ensure!(chain.len() == 1 && chain.iter().all(is_bare), "{chain:#?}");

    // The session is the same.
    ensure!(log.lines_with("registered").is_empty(), "registered again");
    let pod = node.cri.run_pod(handler, &[]).await?;
    let container = node.cri.create_container(&pod, node.image.name(), &[], &[]);
    container.await?;
    log.wait_for("image is ready pod=", PATIENCE).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_applies_a_changed_configuration_on_1_7() -> Result<()> {
    reload(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_applies_a_changed_configuration_on_2_1() -> Result<()> {
    reload(Version::V2_1).await
}
