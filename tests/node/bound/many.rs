//! As many pods as a kubelet runs are bound at the same moment.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{ApiServer, Version};

use super::{CLASS, WATCH, own_image, pod};
use crate::support::{Node, PATIENCE, handler};

/// The kubelet's default.
const PODS: usize = 110;

/// The limit of the time for all: they are unpacked one after another.
const ALL: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_bound_at_once_lose_nothing() -> Result<()> {
    let version = Version::V2_1;
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    let images: Vec<_> = (0..PODS)
        .map(|n| own_image(&format!("registry.test/many/app:{n}")))
        .collect();
    for image in &images {
        node.store.put_image(image).await?;
    }
    let server = ApiServer::start().await?;
    server.set_page(20);
    server.put_class(CLASS, handler);
    for (n, image) in images.iter().enumerate() {
        let images = [image.name(), node.image.name()];
        server.put_pod(pod(&n.to_string(), Some(CLASS), &images));
    }
    let config = node.watching(&server)?;
    node.serve(&config).await?;
    server.wait_for_request(&WATCH, PATIENCE).await?;
    let pages = server.requests();
    let pages = pages.iter().filter(|request| request.contains("continue="));
    ensure!(pages.count() == PODS / 20, "{:#?}", server.requests());
    let began = tokio::time::Instant::now();
    for image in images.iter().chain([&node.image.clone()]) {
        while node.store.chain(handler, image).await?.len() < image.layers.len() {
            ensure!(began.elapsed() < ALL, "{} is not unpacked", image.name());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    println!("{PODS} images are ready after {:?}", began.elapsed());
    node.assert_nothing_left(handler).await
}
