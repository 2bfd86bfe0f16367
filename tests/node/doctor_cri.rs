//! `doctor` when containerd's CRI does not start: this is the finding, and it quotes containerd's error.

use anyhow::{Result, ensure};
use lab::Version;

use crate::doctor::has;
use crate::support::Node;

/// A change of containerd's configuration, the expected finding, and words of its text.
type Case<'a> = (&'a dyn Fn(&str) -> String, &'a str, &'a str);

async fn assert_found_without_cri(version: Version, cases: &[Case<'_>]) -> Result<()> {
    let node = Node::start(version).await?;
    ensure!(!node.examine()?.1.contains_key("nri-state-too-large"));
    let text = std::fs::read_to_string(node.lab.config())?;
    for (change, id, words) in cases {
        node.lab.stop().await?;
        std::fs::write(node.lab.config(), change(&text))?;
        node.lab.restart_without_cri().await?;
        let (code, found) = node.examine()?;
        ensure!(code == Some(1), "{code:?}: {found:#?}");
        has(&found, id, "error", words)?;
        let of_nri = found.keys().find(|id| id.starts_with("nri-"));
        ensure!(of_nri.is_none(), "{found:#?}");
    }
    node.lab.stop().await?;
    std::fs::write(node.lab.config(), &text)?;
    node.lab.restart().await?;
    let (_, found) = node.examine()?;
    ensure!(!found.keys().any(|id| id.starts_with("cri-")), "{found:#?}");
    Ok(())
}

/// The annotations of the pods do not fit into the single message of NRI 0.6.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_does_not_fit_is_found_on_1_7() -> Result<()> {
    let mut node = Node::start(Version::V1_7).await?;
    let large = "x".repeat(200_000);
    for _ in 0..22 {
        node.cri.run_pod("native", &[("a", &large)]).await?;
    }
    node.serve("").await?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, "nri-state-too-large", "error", "4 MiB at most")?;
    let log = node.log.text();
    ensure!(
        !log.contains("] synchronized"),
        "the plugin was synchronized: {log}"
    );
    Ok(())
}

fn disable_cri(text: &str) -> String {
    format!("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{text}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_cri_plugin_is_found_on_2_1() -> Result<()> {
    let default =
        |text: &str| text.replacen("snapshotter = \"overlayfs\"", "snapshotter = \"zfs9\"", 1);
    let mirrors = |text: &str| {
        let table = "[plugins.\"io.containerd.cri.v1.images\".registry.mirrors.\"a.example\"]";
        format!("{text}\n{table}\nendpoint = [\"https://b.example\"]\n")
    };
    let transfer = |text: &str| {
        let table = "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]";
        format!("{text}\n{table}\nplatform = \"linux\"\nsnapshotter = \"zfs9\"\n")
    };
    let cases: [Case<'_>; 4] = [
        (&default, "cri-failed", "failed to find snapshotter"),
        (&transfer, "cri-failed", "(io.containerd.transfer.v1.local)"),
        (&mirrors, "cri-failed", "mirrors"),
        (&disable_cri, "cri-off", "disabled_plugins"),
    ];
    assert_found_without_cri(Version::V2_1, &cases).await
}

/// The differ `erofs` is a default, and `mkfs.erofs` is not installed.
#[tokio::test(flavor = "multi_thread")]
async fn a_differ_without_its_program_is_found_on_2_1() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    node.lab.stop().await?;
    node.lab.restart_without_programs().await?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}: {found:#?}");
    for words in ["mkfs.erofs", "(io.containerd.differ.v1.erofs)"] {
        has(&found, "cri-failed", "error", words)?;
    }
    let of_nri = found.keys().find(|id| id.starts_with("nri-"));
    ensure!(of_nri.is_none(), "{found:#?}");
    // Apply the remedy of the finding.
    node.lab.stop().await?;
    node.lab.restart().await?;
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key("cri-failed"), "{found:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_cri_plugin_is_found_on_1_7() -> Result<()> {
    let default =
        |text: &str| text.replacen("snapshotter = \"overlayfs\"", "snapshotter = \"zfs9\"", 1);
    let cases: [Case<'_>; 2] = [
        (&default, "cri-failed", "failed to find snapshotter"),
        (&disable_cri, "cri-off", "disabled_plugins"),
    ];
    assert_found_without_cri(Version::V1_7, &cases).await
}
