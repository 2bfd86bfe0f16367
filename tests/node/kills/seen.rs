//! The checks after the kills see what they are for: each fault is made on a node at rest, without a plugin that mends it.

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::DeleteImageRequest;
use lab::{Labels, Version, namespaced};

use super::{Bench, Counts};
use crate::support::CRI_LABELS;

impl Bench {
    async fn assert_sees(&mut self, words: &str) -> Result<()> {
        let seen = self.look(&mut Counts::default()).await;
        let seen = seen.err().context(words.to_owned())?;
        let seen = format!("{seen:#}");
        ensure!(seen.contains(words), "«{seen}», not «{words}»");
        println!("{seen}");
        Ok(())
    }
}

fn labels(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into()
}

/// In the order of the checks from the last one, so that each fault is seen beside those before.
#[tokio::test(flavor = "multi_thread")]
async fn each_fault_is_seen() -> Result<()> {
    let mut bench = Bench::start(Version::V2_1).await?;
    bench.node.plugin.as_mut().context("serving")?.kill();
    bench.assert_sees("the plugin does not run").await?;
    bench.node.lab.share_mounts()?;
    bench.assert_sees("mounts are left").await?;

    let store = &bench.node.store;
    store.put_lease("of-another", &Labels::new()).await?;
    let keeps = labels("containerd.io/gc.root", "now");
    store
        .put_committed("of-another", "erofs", "left", "", &keeps)
        .await?;
    bench.assert_sees("snapshots are left").await?;

    let image = bench.in_use[0].image.clone();
    let wrong = labels(CRI_LABELS[3], "sha256:other");
    let store = &bench.node.store;
    store.label_snapshot("erofs", image.top(), &wrong).await?;
    bench.assert_sees("is Some(\"").await?;
    let request = DeleteImageRequest {
        name: image.name().to_owned(),
        sync: true,
        ..Default::default()
    };
    let mut records = bench.node.store.client.images();
    records.delete(namespaced(request)).await?;
    bench.assert_sees("is lost").await?;

    let store = &bench.node.store;
    store.put_lease("nri-unpack-left", &Labels::new()).await?;
    bench.assert_sees("leases are left").await?;

    let container = bench.in_use[1].container.clone();
    let change = ["sh", "-c", "echo changed >/data/0"];
    let cri = &mut bench.node.cri;
    ensure!(cri.exec_sync(&container, &change).await?.code == 0);
    bench.assert_sees("files are not as before").await?;
    bench.node.cri.stop_container(&container).await?;
    bench.assert_sees("state: ContainerExited").await
}
