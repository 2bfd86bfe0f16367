//! A fault in each call of an `ensure`, and of commands that only read: containerd answers with an error, its answer is
//! lost, or it is slow. The command ends, and the next one makes the image ready and leaves nothing behind.
//!
//! Without `NRI_UNPACK_FAULTS` a part of the calls is tried, chosen by `NRI_UNPACK_SEED`; with it each call.
//! [`met`] fails if a method of the trait `Containerd` is in no run.

mod ahead;
pub(crate) mod api_server;
mod at_random;
mod frames;
mod late;
mod lost;
mod met;
mod place;
mod swap;

use std::collections::BTreeSet;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Fault, Options, Remote, Tap, Version};

use crate::concurrency::of_its_own;
use crate::guest_pull::NYDUS;
use crate::random::Random;
use crate::support::{CRI_LABELS, Node, handler};

const FAULTS: [Fault; 3] = [
    Fault::Error,
    Fault::AnswerLost,
    Fault::Delay(Duration::from_millis(300)),
];

/// One of so many calls gets a fault in a short run. A layer takes five calls: a multiple of five would meet the same
/// call of each.
const SHARE: usize = 7;

/// The same where each run takes long.
const SMALL_SHARE: usize = 37;

/// The longest time that a command with a fault may take.
const LONGEST: Duration = Duration::from_secs(30);

/// The calls of an unpack that change something.
const UNPACK: [&str; 6] = [
    "Leases/Create",
    "Leases/Delete",
    "Snapshots/Prepare",
    "Snapshots/Commit",
    "Content/Update",
    "Diff/Apply",
];

/// The state of the chain before each `ensure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Missing,
    /// Unpacked by containerd without labels, where the snapshotter needs them when a snapshot is prepared.
    Unlabelled,
    /// The blobs are missing, and overlayfs has the layers.
    Unpacked,
    /// The blobs are missing, and the registry has them.
    Pulled,
}

impl Before {
    /// Returns the calls without which a run tests nothing.
    fn calls(self) -> Vec<&'static str> {
        let more: &[&str] = match self {
            // A labelled `Prepare` commits the layer itself, and the chain is anchored already.
            Self::Unlabelled => {
                let changes = ["Leases/Create", "Leases/Delete", "Prepare", "Remove"];
                return changes.to_vec();
            }
            Self::Missing => &[],
            Self::Unpacked => &["View", "Usage", "Content/Write", "Snapshots/Remove"],
            Self::Pulled => &["Transfer/Transfer"],
        };
        [&UNPACK, more].concat()
    }

    /// Returns which share of the calls gets a fault in a short run.
    fn share(self) -> usize {
        match self {
            Self::Missing | Self::Unlabelled => SHARE,
            Self::Unpacked | Self::Pulled => SMALL_SHARE,
        }
    }
}

struct Bench {
    node: Node,
    snapshotter: &'static str,
    before: Before,
}

impl Bench {
    async fn start(version: Version, snapshotter: &'static str, before: Before) -> Result<Self> {
        let mut options = Options::new(version);
        if snapshotter == NYDUS {
            options.remotes = vec![Remote::Nydus];
        }
        let mut node = Node::start_with(version, options).await?;
        if before == Before::Unlabelled {
            // An image that the guest pulls shows the behaviour of the snapshotter.
            node.ensure_ready(&node.image, snapshotter)?;
        }
        match before {
            Before::Missing | Before::Unlabelled => node.image = of_its_own("faults", 4),
            Before::Unpacked | Before::Pulled => node.image = of_its_own("faults", 2),
        }
        if before == Before::Pulled {
            node.registry.push(&node.image).await?;
            node.hooks = met::pulling(&node);
        }
        node.tap = Some(Tap::start(&node.lab)?);
        Ok(Self {
            node,
            snapshotter,
            before,
        })
    }

    fn tap(&self) -> Result<&Tap> {
        self.node.tap.as_ref().context("no tap")
    }

    /// Brings the chain into the state before an `ensure`.
    async fn reset(&mut self) -> Result<()> {
        let name = self.node.image.name().to_owned();
        self.node.cri.remove_image(&name).await?;
        self.node.store.collect_garbage().await?;
        let chain = self
            .node
            .store
            .chain(self.snapshotter, &self.node.image)
            .await?;
        ensure!(chain.is_empty(), "{} layers are left", chain.len());
        match self.before {
            // It unpacks the image in overlayfs.
            Before::Unpacked => self.node.lab.import(&self.node.image).await?,
            _ => self.node.store.put_image(&self.node.image).await?,
        }
        if [Before::Unpacked, Before::Pulled].contains(&self.before) {
            for layer in &self.node.image.layers {
                self.node.store.delete_content(&layer.digest).await?;
            }
        }
        if self.before == Before::Unlabelled {
            // The handler has the name of its snapshotter.
            let pod = self.node.cri.run_pod(self.snapshotter, &[]).await?;
            let cri = &mut self.node.cri;
            cri.create_container(&pod, &name, &[], &[]).await?;
            cri.remove_pod(&pod).await?;
            let state = self
                .node
                .state_of(&self.node.image, self.snapshotter)
                .await?;
            ensure!(state == "unlabelled", "{state}");
        }
        Ok(())
    }

    fn ensure(&self) -> Result<Output> {
        let arguments = [
            "ensure",
            self.node.image.name(),
            "--snapshotter",
            self.snapshotter,
        ];
        tokio::task::block_in_place(|| self.node.command(&arguments))
    }

    async fn assert_ready(&self) -> Result<()> {
        let output = self.ensure()?;
        ensure!(output.status.success(), "{output:?}");
        match self.before {
            Before::Missing => self.node.assert_labelled(self.snapshotter).await?,
            Before::Unpacked | Before::Pulled => {
                self.node.assert_labelled(self.snapshotter).await?;
                self.node
                    .assert_nothing_rebuilding(self.snapshotter)
                    .await?;
            }
            // The mount of a guest pull depends on the top layer alone.
            Before::Unlabelled => {
                let chain = self
                    .node
                    .store
                    .chain(self.snapshotter, &self.node.image)
                    .await?;
                let top = chain.last().context("no layer")?;
                let name = top.labels.get(CRI_LABELS[0]);
                ensure!(
                    name.is_some_and(|name| name == self.node.image.name()),
                    "{top:?}"
                );
            }
        }
        self.node.nothing_left(self.snapshotter).await
    }
}

/// Whether each call gets a fault.
pub(crate) fn is_complete() -> bool {
    std::env::var_os("NRI_UNPACK_FAULTS").is_some()
}

/// Returns the numbers of the calls that get a fault: in a short run one of so many.
pub(crate) fn chosen(calls: usize, share: usize) -> Result<Vec<usize>> {
    if is_complete() {
        return Ok((0..calls).collect());
    }
    let first = Random::new()?.below(share.min(calls.max(1)));
    Ok((first..calls).step_by(share).collect())
}

async fn every_call(version: Version, snapshotter: &'static str, before: Before) -> Result<()> {
    let mut bench = Bench::start(version, snapshotter, before).await?;
    bench.reset().await?;
    let earlier = bench.tap()?.calls().len();
    bench.assert_ready().await?;
    let made: Vec<_> = bench.tap()?.calls().split_off(earlier);
    let expected = before.calls().into_iter();
    let absent = expected.filter(|name| !made.iter().any(|call| call.path.ends_with(name)));
    let absent: BTreeSet<_> = absent.collect();
    ensure!(absent.is_empty(), "never called: {absent:?}");

    for call in chosen(made.len(), before.share())? {
        for fault in FAULTS {
            bench.reset().await?;
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
            ensure!(
                matches!(output.status.code(), Some(0 | 1 | 3)),
                "{case}: {output:?}"
            );
            bench.assert_ready().await.context(case)?;
        }
    }
    Ok(())
}

/// Commands that only read end with every fault.
async fn in_commands(version: Version) -> Result<()> {
    let mut bench = Bench::start(version, handler(version), Before::Missing).await?;
    bench.reset().await?;
    for words in [["check"], ["doctor"]] {
        let run = |bench: &Bench| tokio::task::block_in_place(|| bench.node.command(&words));
        let earlier = bench.tap()?.calls().len();
        run(&bench)?;
        let made: Vec<_> = bench.tap()?.calls().split_off(earlier);
        for call in chosen(made.len(), SHARE)? {
            for fault in FAULTS {
                bench.tap()?.fail(call, fault);
                let began = Instant::now();
                let output = run(&bench)?;
                let took = began.elapsed();
                let has_occurred = bench.tap()?.heal();
                let case = format!("{words:?}, {fault:?} in call {call}: {took:?}");
                println!("{case}: {:?}", output.status.code());
                ensure!(has_occurred, "{case}: the command made fewer calls");
                ensure!(took < LONGEST, "{case}");
                let code = output.status.code();
                ensure!(matches!(code, Some(0..=3)), "{case}: {output:?}");
                bench.node.nothing_left(bench.snapshotter).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_commands_on_2_1() -> Result<()> {
    in_commands(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn in_commands_on_1_7() -> Result<()> {
    in_commands(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_pull_on_2_1() -> Result<()> {
    let version = Version::V2_1;
    every_call(version, handler(version), Before::Pulled).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_rebuild_on_2_1() -> Result<()> {
    let version = Version::V2_1;
    every_call(version, handler(version), Before::Unpacked).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn in_a_rebuild_on_1_7() -> Result<()> {
    let version = Version::V1_7;
    every_call(version, handler(version), Before::Unpacked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_unpack_on_2_1() -> Result<()> {
    let version = Version::V2_1;
    every_call(version, handler(version), Before::Missing).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_unpack_on_1_7() -> Result<()> {
    let version = Version::V1_7;
    every_call(version, handler(version), Before::Missing).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_replacement_on_2_1() -> Result<()> {
    every_call(Version::V2_1, NYDUS, Before::Unlabelled).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_replacement_on_1_7() -> Result<()> {
    every_call(Version::V1_7, NYDUS, Before::Unlabelled).await
}
