//! Pods that are bound to this node, at a stand-in for the API server: their images are ready before their containers are
//! created, and nothing that the API server does makes the plugin worse.

mod cost;
mod credentials;
pub(crate) mod failures;
mod many;
mod memory;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod as KubernetesPod;
use lab::{ApiServer, Image, Layer, Version};
use serde_json::{Value, json};

use crate::support::{Node, PATIENCE, handler};

/// This node's name at the API server.
pub(crate) const NODE: &str = "lab-node";

/// The RuntimeClass of the handler with its own snapshotter. Its name is not that of the handler.
pub(crate) const CLASS: &str = "second";

/// A request that begins a watch of pods.
pub(crate) const WATCH: [&str; 2] = ["/api/v1/pods?", "watch=true"];

/// How long a kubelet takes from the binding of a pod to the creation of its first container.
const BOUND: Duration = Duration::from_millis(600);

/// Returns a pod of this node as Kubernetes' own type writes it.
pub(crate) fn pod(uid: &str, class: Option<&str>, images: &[&str]) -> Value {
    let containers = images.iter().enumerate();
    let containers = containers.map(|(n, image)| json!({"name": format!("c{n}"), "image": image}));
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{uid}"), "namespace": "lab", "uid": uid},
        "spec": {
            "nodeName": NODE,
            "runtimeClassName": class,
            "containers": containers.collect::<Vec<_>>(),
        },
        "status": {"phase": "Pending"},
    });
    let pod: KubernetesPod = serde_json::from_value(pod).expect("a pod");
    serde_json::to_value(pod).expect("a pod")
}

/// Returns an image that shares no layer with others.
pub(crate) fn own_image(name: &str) -> Image {
    let layer = |n: u8| Layer::new().file(&format!("f{n}"), 0o644, format!("{name} {n}\n"));
    Image::builder(name)
        .layer(layer(0))
        .layer(layer(1))
        .command(&["/none"])
        .build()
}

impl Node {
    /// Returns the configuration of a watch at this server.
    pub(crate) fn watching(&self, server: &ApiServer) -> Result<String> {
        let path = self.lab.path("kubeconfig");
        std::fs::write(&path, server.kubeconfig("{}"))?;
        Ok(format!(
            "[kubernetes]\nkubeconfig = {path:?}\nnode = \"{NODE}\"\n"
        ))
    }

    /// Starts the plugin with a watch at a new server, and waits until it watches pods.
    pub(crate) async fn serve_watching(
        &mut self,
        version: Version,
        more: &str,
    ) -> Result<ApiServer> {
        let server = ApiServer::start().await?;
        server.put_class(CLASS, handler(version));
        let config = self.watching(&server)? + more;
        self.serve(&config).await?;
        server.wait_for_request(&WATCH, PATIENCE).await?;
        Ok(server)
    }

    /// Waits until all layers of an image are in the snapshotter.
    async fn wait_unpacked(&self, snapshotter: &str, image: &Image) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.store.chain(snapshotter, image).await?.len() < image.layers.len() {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "{} is not unpacked",
                image.name()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn is_untouched(&self, snapshotter: &str, image: &Image) -> Result<bool> {
        Ok(self.store.chain(snapshotter, image).await?.is_empty())
    }
}

/// An image that is present is made ready when a pod is bound, and its container needs no unpack.
async fn present(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    let server = node.serve_watching(version, "").await?;
    node.wait_reconciled(handler).await?;
    let image = node.image.clone();
    ensure!(
        node.is_untouched(handler, &image).await?,
        "it was unpacked before"
    );

    server.put_pod(pod("1", Some(CLASS), &[image.name()]));
    tokio::time::sleep(BOUND).await;
    node.wait_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;
    ensure!(node.state_of(&image, handler).await? == "ready");

    let log = node.log.from_now();
    let sandbox = node.cri.run_pod(handler, &[]).await?;
    let container = node
        .cri
        .create_container(&sandbox, image.name(), &[], &[])
        .await?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    let ready = log.lines_with(" verdict=ready hook=CreateContainer ");
    ensure!(
        ready.len() == 1,
        "the hook found something to do: {}",
        log.text()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_present_is_ready_before_its_container_on_2_1() -> Result<()> {
    present(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_present_is_ready_before_its_container_on_1_7() -> Result<()> {
    present(Version::V1_7).await
}

/// An image that is pulled for a bound pod is made ready as it arrives. That of a pod that is gone, and that of a pod
/// of the default handler, are not.
async fn arriving(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    let server = node.serve_watching(version, "").await?;
    node.wait_reconciled(handler).await?;
    let new = |name: &str| own_image(&format!("registry.test/lab/{name}:1"));
    let [wanted, deleted, running, default, last] =
        ["wanted", "deleted", "running", "default", "last"].map(new);
    for (uid, class, image) in [
        ("1", Some(CLASS), &wanted),
        ("2", Some(CLASS), &deleted),
        ("3", Some(CLASS), &running),
        ("4", None, &default),
        ("5", Some(CLASS), &last),
    ] {
        server.put_pod(pod(uid, class, &[image.name()]));
    }
    server.delete_pod("2");
    let mut created = pod("3", Some(CLASS), &[running.name()]);
    created["status"]["phase"] = "Running".into();
    server.put_pod(created);
    // The last pod's event comes after all others.
    node.log
        .wait_for("pod is bound to this node pod=lab/pod-5", PATIENCE)
        .await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for image in [&deleted, &running, &default, &wanted, &last] {
        node.registry.push(image).await?;
        node.cri.pull_image(image.name()).await?;
    }
    node.wait_unpacked(handler, &wanted).await?;
    node.wait_unpacked(handler, &last).await?;
    for image in [&deleted, &running, &default] {
        ensure!(
            node.is_untouched(handler, image).await?,
            "{} was unpacked",
            image.name()
        );
    }
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_arrives_is_made_ready_for_its_pod_alone_on_2_1() -> Result<()> {
    arriving(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_arrives_is_made_ready_for_its_pod_alone_on_1_7() -> Result<()> {
    arriving(Version::V1_7).await
}

/// `eager = "none"` and a pattern hold for bound pods, and a class may come after its pod.
#[tokio::test(flavor = "multi_thread")]
async fn the_policy_holds_for_bound_pods() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::start(version).await?;
    let excluded = own_image("registry.test/lab/excluded:1");
    node.pull(&excluded).await?;
    let policy = "[snapshotters.native]\neager = \"none\"\n[snapshotters.erofs]\nexclude = [\"*/excluded:*\"]\n";
    let server = node.serve_watching(version, policy).await?;
    node.wait_reconciled("erofs").await?;
    server.put_class("native", "native");
    let image = node.image.clone();
    server.put_pod(pod("1", Some("native"), &[image.name()]));
    server.put_pod(pod("2", Some("later"), &[excluded.name(), image.name()]));
    node.log
        .wait_for("RuntimeClass of a bound pod is not known yet", PATIENCE)
        .await?;
    ensure!(node.is_untouched("erofs", &image).await?);
    server.put_class("later", "erofs");
    node.wait_labelled("erofs").await?;
    ensure!(
        node.is_untouched("erofs", &excluded).await?,
        "the excluded image was unpacked"
    );
    ensure!(
        node.is_untouched("native", &image).await?,
        "eager = \"none\" was ignored"
    );
    Ok(())
}

/// The plugin is killed while pods are bound, and finds them at its next start.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_were_bound_before_the_start_are_found() -> Result<()> {
    let version = Version::V2_1;
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    let server = node.serve_watching(version, "").await?;
    node.plugin.as_mut().context("no plugin")?.kill();
    server.put_pod(pod("1", Some(CLASS), &[node.image.name()]));
    node.plugin.as_mut().context("no plugin")?.restart()?;
    node.wait_labelled(handler).await
}
