//! Measures what it takes to find the image of a container with many images in the store: by its name, and by its chain
//! alone, which needs a list of all images.
//!
//! Run `cargo test --release --test node find_cost -- --ignored --nocapture --test-threads 1`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::images::digest;
use lab::{Image, Layer, Version};
use nri_unpack::config::ExtraLabels;
use nri_unpack::containerd::grpc::Grpc;
use nri_unpack::ctr::Ctr;
use nri_unpack::unpack::{
    ContentFallback, Engine, LabelPolicy, Labelling, Parallel, Profile, Repair, Request, Role,
    Urgency, Want,
};

use crate::ahead_cost::at;
use crate::support::{Node, handler};

/// The number of images, each with the three names of a pull by CRI.
const IMAGES: usize = 300;

const ROUNDS: usize = 200;

/// The policy of the default configuration.
struct Default;

impl LabelPolicy for Default {
    fn labelling(&self, _: &str, _: &[String]) -> Option<Labelling> {
        let (cri, required) = (true, true);
        Some(Labelling { cri, required })
    }

    fn extra_labels(&self, _: &str) -> ExtraLabels {
        ExtraLabels::default()
    }

    fn profile(&self, _: &str) -> Option<Profile> {
        None
    }

    fn repair(&self, _: &str) -> Option<Repair> {
        None
    }

    fn ctr(&self) -> Ctr {
        Ctr {
            namespace: "k8s.io".to_owned(),
            hosts: "/etc/containerd/certs.d".into(),
        }
    }
}

fn image(n: usize) -> Image {
    let name = format!("registry.test/find/app:{n}");
    let layer = |i: usize| Layer::new().file("f", 0o644, format!("{i} of {name}\n"));
    let id = digest(name.as_bytes());
    let image = Image::builder(&name)
        .named(format!("registry.test/find/app@{id}"))
        .named(id);
    (0..3).map(layer).fold(image, |i, l| i.layer(l)).build()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn the_image_of_a_container_among_300() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    for n in 0..IMAGES {
        node.store.put_image(&image(n)).await?;
    }
    let containerd = Arc::new(Grpc::new(node.lab.socket(), "k8s.io")?);
    let parallel = Parallel {
        images: 2,
        layers: 3,
    };
    let policy = Box::new(Default);
    let fallback = ContentFallback::default();
    let engine = Engine::new(containerd, Role::Command, parallel, policy, fallback);
    let image = image(IMAGES / 2);
    let ensure = async |want: Want| -> Result<Duration> {
        let began = Instant::now();
        let mut ticket = engine.ensure(Request {
            want,
            snapshotter: handler(Version::V2_1).to_owned(),
            urgency: Urgency::Creation,
        });
        let ended = ticket.outcome().await.map(|_| began.elapsed());
        ended.context("the image is not ready")
    };
    ensure(Want::Image(image.name().to_owned())).await?;
    let container = |name: Option<&str>| Want::Container {
        key: "c".to_owned(),
        chain: image.top().to_owned(),
        name: name.map(str::to_owned),
        left_to_containerd: false,
    };
    let (mut by_name, mut by_chain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_name.push(ensure(container(Some(image.name()))).await?);
        by_chain.push(ensure(container(None)).await?);
    }
    for (how, took) in [("by name", by_name), ("by chain", by_chain)] {
        let (median, most) = (at(&took, 50), at(&took, 95));
        println!("{IMAGES} images, {how}: median {median:?}, 95th percentile {most:?}");
    }
    engine.close().await;
    Ok(())
}
