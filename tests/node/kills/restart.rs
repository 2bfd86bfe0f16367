//! nydus-snapshotter is restarted on a node without the plugin: its own fault, and the documented remedy.

use anyhow::{Result, ensure};
use k8s_cri::v1::ListPodSandboxRequest;
use lab::{Cri, PAUSE, Remote, Version, images};

use super::tries::BETWEEN_TRIES;
use crate::guest_pull::{NYDUS, start};
use crate::pods::restart_nydus;
use crate::support::PATIENCE;

const TRIES: usize = 20;

/// Whether the error is a fault of nydus-snapshotter, which the plugin does not cause. After a restart
/// nydus-snapshotter 0.13.4 in proxy mode does not find its instances: it creates no container on a chain that
/// an earlier container used, such as the chain of the pause image.
fn is_nydus_fault(error: &tonic::Status) -> bool {
    let message = error.message();
    message.contains("create instance") && message.contains("already exists")
}

/// Creates a pod on nydus. containerd reconnects to a snapshotter only after a pause.
async fn run_pod(cri: &mut Cri) -> Result<Result<lab::Pod, tonic::Status>> {
    for _ in 0..TRIES {
        match cri.run_pod(NYDUS, &[]).await {
            Err(error) if error.message().contains("connection refused") => {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            other => return Ok(other),
        }
    }
    anyhow::bail!("containerd does not reach the snapshotter again")
}

/// Without the plugin: after a restart of nydus-snapshotter a ready image stays ready, but no second pod can be
/// created of it until the documented remedy is applied. A running pod keeps running, and can be removed.
async fn nydus_restart(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    for image in [images::pause(&[PAUSE])?, node.image.clone()] {
        node.ensure_ready(&image, NYDUS)?;
    }
    let running = node.cri.run_pod(NYDUS, &[]).await?;
    let nydus = node.lab.remote(Remote::Nydus);
    nydus.kill();
    nydus.restart().await?;
    let error = match run_pod(&mut node.cri).await? {
        Err(error) if is_nydus_fault(&error) => error,
        other => anyhow::bail!("{other:?}"),
    };
    node.play(NYDUS, error.message()).await?;
    let name = node.image.name().to_owned();
    for _ in 0..2 {
        let pod = run_pod(&mut node.cri).await??;
        let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
        node.assert_guest_pulls(&container).await?;
    }
    let list = ListPodSandboxRequest::default();
    let pods = node.cri.runtime.list_pod_sandbox(list).await?.into_inner();
    let ready = k8s_cri::v1::PodSandboxState::SandboxReady as i32;
    let runs = |pod: &k8s_cri::v1::PodSandbox| pod.id == running.id && pod.state == ready;
    ensure!(pods.items.iter().any(runs), "{pods:#?}");
    node.remove_pods_except(&[]).await?;
    node.assert_nothing_left(NYDUS).await
}

/// nydus-snapshotter cannot tell the mounts of any container, since all are from before its restart. `check` sees nevertheless
/// that the guest pulls.
async fn ready_images_stay_ready(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let (pause, image) = (images::pause(&[PAUSE])?, node.image.clone());
    for image in [&pause, &image] {
        node.ensure_ready(image, NYDUS)?;
    }
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let name = image.name().to_owned();
    let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
    node.assert_guest_pulls(&container).await?;
    node.lab.remote(Remote::Nydus).kill();
    restart_nydus(&node.lab).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node.store.snapshots(NYDUS).await.is_err() {
        ensure!(tokio::time::Instant::now() < deadline, "nydus is away");
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    let mounts = node.store.mounts(NYDUS, &container).await;
    ensure!(mounts.is_err(), "{mounts:?}");
    for image in [&pause, &image] {
        let state = node.state_of(image, NYDUS).await?;
        ensure!(state == "ready", "{}: {state}", image.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_images_stay_ready_on_2_1() -> Result<()> {
    ready_images_stay_ready(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_images_stay_ready_on_1_7() -> Result<()> {
    ready_images_stay_ready(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_remedy_mends_a_restarted_nydus_on_2_1() -> Result<()> {
    nydus_restart(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_remedy_mends_a_restarted_nydus_on_1_7() -> Result<()> {
    nydus_restart(Version::V1_7).await
}
