//! A fault in each call of an `ensure` that heals an image that the snapshotter has lost. The command removes the anchors
//! of all lost images, runs a garbage collection, and restores the anchors of the images that have to stay. The next
//! `ensure` makes the image ready, no other anchor is missing, and what is in use is still there.

mod kills;

use std::collections::BTreeMap;
use std::process::Output;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use containerd_client::services::v1::ListContentRequest;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use lab::{Call, Image, Options, PAUSE, Remote, Tap, Version, images, namespaced};
use tonic::Code;

use super::{FAULTS, LONGEST, chosen};
use crate::concurrency::of_its_own;
use crate::guest_pull::NYDUS;
use crate::support::Node;

/// One of so many calls gets a fault in a short run.
const SHARE: usize = 19;

/// The labels that keep chains.
const ANCHOR: &str = "containerd.io/gc.ref.snapshot.";

/// The calls of the removal: a run without one of them tests nothing.
const CALLS: [&str; 6] = [
    "Snapshots/Stat",
    "Snapshots/Commit",
    "Content/Update",
    "Leases/Create",
    "Leases/Delete",
    "Snapshots/Prepare",
];

/// The anchors of all config blobs: the value, by digest and label.
type Anchors = BTreeMap<(String, String), String>;

/// A node without the plugin, whose snapshotter loses some of its images.
struct Bench {
    node: Node,
    /// The image that `ensure` makes ready.
    target: Image,
    /// Another image that is lost as a whole, and one whose lower layers are left.
    others: [Image; 2],
    /// A lost image on which a container stands, and one that is not lost.
    used: [Image; 2],
    /// Their containers.
    containers: [String; 2],
    /// The anchors while everything is ready.
    anchors: Anchors,
}

impl Bench {
    async fn start(version: Version) -> Result<Self> {
        let mut options = Options::new(version);
        options.remotes = vec![Remote::Nydus];
        let mut node = Node::start_with(version, options).await?;
        node.tap = Some(Tap::start(&node.lab)?);
        let target = of_its_own("target", 2);
        let others = [of_its_own("other", 1), of_its_own("partly", 2)];
        let used = [of_its_own("held", 1), of_its_own("kept", 1)];
        node.ensure_ready(&images::pause(&[PAUSE])?, NYDUS)?;
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        let mut containers = Vec::new();
        for image in others.iter().chain(&used).chain([&target]) {
            node.pull(image).await?;
            node.ensure_ready(image, NYDUS)?;
        }
        for image in &used {
            let container = node.cri.create_container(&pod, image.name(), &[], &[]);
            containers.push(container.await?);
        }
        let Ok(containers) = <[String; 2]>::try_from(containers) else {
            bail!("two containers");
        };
        let mut bench = Self {
            node,
            target,
            others,
            used,
            containers,
            anchors: Anchors::new(),
        };
        bench.anchors = bench.anchors().await?;
        ensure!(bench.anchors.len() > 6, "{:#?}", bench.anchors);
        bench.lose().await?;
        let all = bench.others.iter().chain([&bench.target, &bench.used[0]]);
        for image in all {
            let state = bench.node.state_of(image, NYDUS).await?;
            ensure!(state == "lost", "{} is {state}", image.name());
        }
        Ok(bench)
    }

    fn tap(&self) -> Result<&Tap> {
        self.node.tap.as_ref().context("no tap")
    }

    /// The snapshotter loses the images.
    async fn lose(&self) -> Result<()> {
        let top = |image: &Image| image.chain_ids().pop();
        let mut keys: Vec<_> = [&self.target, &self.others[0], &self.used[0]]
            .iter()
            .flat_map(|image| image.chain_ids())
            .collect();
        keys.extend(top(&self.others[1]));
        let lost = self.node.lab.remote(Remote::Nydus).lose(&keys).await?;
        // The image that a container holds stays lost.
        ensure!(lost >= keys.len() - 1, "{lost} of {keys:#?}");
        Ok(())
    }

    /// Runs `ensure` of the target.
    fn ensure(&self) -> Result<Output> {
        let words = ["ensure", self.target.name(), "--snapshotter", NYDUS];
        tokio::task::block_in_place(|| self.node.command(&words))
    }

    /// Returns the anchors of all blobs.
    async fn anchors(&self) -> Result<Anchors> {
        let request = namespaced(ListContentRequest::default());
        let content = &mut self.node.store.client.content();
        let mut stream = content.list(request).await?.into_inner();
        let mut anchors = Anchors::new();
        while let Some(response) = stream.message().await? {
            for info in response.info {
                let labels = info.labels.into_iter();
                let labels = labels.filter(|(key, _)| key.starts_with(ANCHOR));
                anchors.extend(labels.map(|(key, value)| ((info.digest.clone(), key), value)));
            }
        }
        Ok(anchors)
    }

    /// Whether containerd has a record of the snapshot: it does not list those that are lost.
    async fn has_record(&self, key: &str) -> Result<bool> {
        let request = PrepareSnapshotRequest {
            snapshotter: NYDUS.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        };
        let snapshots = &mut self.node.store.client.snapshots();
        match snapshots.prepare(namespaced(request)).await {
            Err(e) if e.code() == Code::AlreadyExists => Ok(true),
            Err(e) => Err(e.into()),
            Ok(_) => Ok(false),
        }
    }

    /// Checks that the anchor of an image is what it was.
    fn assert_anchored(&self, image: &Image, anchors: &Anchors) -> Result<()> {
        let of_image = self.anchors.iter();
        for ((digest, key), value) in of_image.filter(|((it, _), _)| *it == image.config.digest) {
            let found = anchors.get(&(digest.clone(), key.clone()));
            ensure!(
                found == Some(value),
                "{}: {key} is {found:?}, not {value}",
                image.name()
            );
        }
        Ok(())
    }

    /// Checks that the next `ensure` makes the target ready, and that nothing else is harmed. Then makes the other images
    /// ready as well.
    async fn assert_healed(&self) -> Result<()> {
        let node = &self.node;
        node.ensure_ready(&self.target, NYDUS)?;
        node.nothing_left(NYDUS).await?;
        node.store.collect_garbage().await?;
        let anchors = self.anchors().await?;
        for image in [&node.image, &self.target, &self.used[0], &self.used[1]] {
            self.assert_anchored(image, &anchors)?;
        }
        let keys = self.used.iter().flat_map(|image| image.chain_ids());
        for key in keys.chain(self.containers.iter().cloned()) {
            ensure!(self.has_record(&key).await?, "{key} is gone");
        }
        let snapshots = node.store.snapshots(NYDUS).await?;
        let has = |key: &str| snapshots.iter().any(|it| it.key == key);
        ensure!(has(&self.containers[1]), "the container's snapshot is gone");
        let [lowest, _] = &self.others[1].chain_ids()[..] else {
            bail!("two layers");
        };
        ensure!(has(lowest), "a layer that was not lost is gone");
        for image in &self.others {
            node.ensure_ready(image, NYDUS)?;
        }
        node.nothing_left(NYDUS).await?;
        let anchors = self.anchors().await?;
        let missing: Vec<_> = self
            .anchors
            .iter()
            .filter(|(key, value)| anchors.get(*key) != Some(*value))
            .collect();
        ensure!(missing.is_empty(), "not anchored: {missing:#?}");
        ensure!(node.state_of(&self.used[1], NYDUS).await? == "ready");
        Ok(())
    }

    /// Returns the calls of a healing without a fault.
    async fn clean_run(&self) -> Result<Vec<Call>> {
        let earlier = self.tap()?.calls().len();
        let output = self.ensure()?;
        ensure!(output.status.success(), "{output:?}");
        let made = self.tap()?.calls().split_off(earlier);
        let is_absent = |name: &&&str| !made.iter().any(|call| call.path.ends_with(**name));
        let absent: Vec<_> = CALLS.iter().filter(is_absent).collect();
        ensure!(absent.is_empty(), "never called: {absent:?}");
        self.assert_healed().await?;
        Ok(made)
    }
}

async fn every_call(version: Version) -> Result<()> {
    let bench = Bench::start(version).await?;
    let made = bench.clean_run().await?;
    println!("{} calls", made.len());
    for call in chosen(made.len(), SHARE)? {
        for fault in FAULTS {
            bench.lose().await?;
            bench.tap()?.fail(call, fault);
            let began = Instant::now();
            let output = bench.ensure()?;
            let took = began.elapsed();
            let has_occurred = bench.tap()?.heal();
            let of = &made[call].path;
            let case = format!("{fault:?} in call {call}, {of}: {took:?}");
            println!("{case}: {:?}", output.status.code());
            ensure!(has_occurred, "{case}: the command made fewer calls");
            ensure!(took < LONGEST, "{case}");
            let code = output.status.code();
            ensure!(matches!(code, Some(0 | 1 | 3)), "{case}: {output:?}");
            bench.assert_healed().await.context(case)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_healing_on_2_1() -> Result<()> {
    every_call(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn in_a_healing_on_1_7() -> Result<()> {
    every_call(Version::V1_7).await
}
