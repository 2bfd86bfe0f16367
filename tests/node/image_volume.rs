//! An image volume (containerd 2.1) on a snapshotter that leaves images to the guest: containerd mounts it on
//! the host, where its layers are empty.

use anyhow::{Result, ensure};
use k8s_cri::v1::CreateContainerRequest;
use lab::{Image, Layer, Pod, Version};

use crate::ahead_volume::mounting;
use crate::guest_pull::{NYDUS, start};
use crate::support::Node;

/// Returns an image of three layers: the second replaces a file of the first and hides another, the third adds
/// one.
fn volume() -> Image {
    let file = |name: &str, content: &str| Layer::new().file(name, 0o644, content);
    Image::builder("registry.test/lab/volume:1")
        .layer(file("replaced", "old\n").file("hidden", 0o644, "hidden\n"))
        .layer(file("replaced", "new\n").whiteout("hidden"))
        .layer(file("model/weights", "weights\n"))
        .build()
}

/// Returns a request for container `number` of the pod.
fn numbered(pod: &Pod, image: &Image, volume: &Image, number: u32) -> CreateContainerRequest {
    let mut request = mounting(pod, image.name(), volume.name());
    if let Some(metadata) = request.config.as_mut().and_then(|c| c.metadata.as_mut()) {
        metadata.attempt = number;
    }
    request
}

impl Node {
    async fn assert_volume_complete(&mut self, container: &str) -> Result<()> {
        self.cri.start_container(container).await?;
        let found = self
            .cri
            .exec_sync(container, &["find", "/model", "-type", "f"]);
        let mut found: Vec<_> = found.await?.stdout.lines().map(str::to_owned).collect();
        found.sort();
        ensure!(
            found == ["/model/model/weights", "/model/replaced"],
            "{found:?}"
        );
        let replaced = self.cri.cat(container, "/model/replaced").await?;
        ensure!(replaced == "new\n", "{replaced}");
        Ok(())
    }
}

/// The first creation gets a volume with all files, which is filled once for all containers of a pod. While a
/// blob is missing the creation is rejected with an explanation; when the blob is back, the volume is filled.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_volume_has_all_files() -> Result<()> {
    let mut node = start(Version::V2_1).await?;
    node.serve("").await?;
    node.wait_reconciled(NYDUS).await?;
    let (image, volume) = (node.image.clone(), volume());
    node.registry.push(&volume).await?;
    node.cri.pull_image(volume.name()).await?;
    node.lab.give_to_guest(&image)?;

    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    for number in 0..2 {
        let request = numbered(&pod, &image, &volume, number);
        let created = node.cri.runtime.create_container(request).await?;
        node.assert_volume_complete(&created.into_inner().container_id)
            .await?;
        ensure!(node.log.lines_with("image volume filled").len() == 1);
    }
    ensure!(
        node.state_of(&volume, NYDUS).await? == "ready",
        "the chain is no longer left to the guest"
    );

    let lost = &volume.layers[1].digest;
    node.store.delete_content(lost).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let request = numbered(&pod, &image, &volume, 0);
    let Err(error) = node.cri.runtime.create_container(request).await else {
        anyhow::bail!("created with a volume that lacks a layer");
    };
    let words = [
        "may lack layers",
        "has to be unpacked, but its blob is",
        lost,
    ];
    ensure!(
        words.iter().all(|words| error.message().contains(words)),
        "{error}"
    );
    let rejected = node.log.lines_with("verdict=rejected");
    ensure!(rejected.len() == 1, "{rejected:?}");
    let doctor = node.command(&["doctor", "--output", "json"])?;
    let printed = String::from_utf8_lossy(&doctor.stdout);
    let volumes = "1 image volumes in nydus lack guest-pulled layers";
    ensure!(
        printed.contains("image-volume-empty") && printed.contains(volumes),
        "{printed}"
    );
    node.lab
        .ctr(&[
            "content",
            "fetch",
            "--hosts-dir",
            &node.lab.path("hosts").display().to_string(),
            volume.name(),
        ])
        .await?;
    let request = numbered(&pod, &image, &volume, 1);
    let created = node.cri.runtime.create_container(request).await?;
    node.assert_volume_complete(&created.into_inner().container_id)
        .await?;
    node.assert_nothing_left(NYDUS).await
}
