//! A fault at each frame on NRI's socket, from the connection of the plugin to the end of a pod: the connection is closed
//! before a frame or in the middle of it, a frame is garbage or of another connection, or no further frame comes. The
//! plugin registers again, the next pod is served, and nothing is left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{FrameFault, NriTap, Options, Version};
use tokio::time::Instant;

use super::{LONGEST, chosen};
use crate::support::{ALL, APP, DEFAULT_HOOKS, Node, PATIENCE, handler};

const FAULTS: [FrameFault; 5] = [
    FrameFault::Cut,
    FrameFault::Half,
    FrameFault::Garbage,
    FrameFault::OtherConnection,
    FrameFault::Silence,
];

/// One of so many frames gets a fault in a short run.
const SHARE: usize = 11;

/// The log message of a plugin whose hooks are called.
const REGISTERED: &str = "nri_unpack::hooks] registered ";

/// The frames of the synchronization. If it fails by its time, NRI 0.6 keeps the connection and never asks the plugin; a
/// plugin cannot see that.
const SYNCHRONIZATION: [usize; 2] = [4, 5];

/// The time for a registration that succeeds.
const REGISTRATION: Duration = Duration::from_secs(2);

/// The line of a creation whose hook was called.
const DECIDED: &str = " hook=CreateContainer ";

struct Bench {
    node: Node,
    tap: NriTap,
    handler: &'static str,
}

impl Bench {
    async fn start(version: Version) -> Result<Self> {
        // The time that containerd waits for an answer is its default.
        let mut node = Node::start_on(
            version,
            Options::new(version),
            lab::Registry::start().await?,
            lab::images::app(APP)?,
        )
        .await?;
        let tap = NriTap::start(&node.lab)?;
        node.hooks = DEFAULT_HOOKS;
        let config = node.config(ALL);
        let direct = format!("{:?}", node.lab.nri_socket());
        node.serve_config(&config.replace(&direct, &format!("{:?}", tap.socket())))
            .await?;
        let handler = handler(version);
        node.wait_image(&node.image, handler).await?;
        node.assert_nothing_left(handler).await?;
        Ok(Self { node, tap, handler })
    }

    /// Starts the plugin again, and runs a pod when the plugin has registered, which a fault may delay or, if the runtime
    /// is silent, prevent: the plugin then waits as long as a busy runtime may take.
    async fn round(&mut self, fault: FrameFault) -> Result<()> {
        let log = self.node.log.from_now();
        let plugin = self.node.plugin.as_mut().context("serving")?;
        plugin.stop().await?;
        plugin.restart()?;
        match fault {
            FrameFault::Silence => drop(log.wait_for(REGISTERED, REGISTRATION).await),
            _ => drop(log.wait_for(REGISTERED, PATIENCE).await?),
        }
        self.pod().await
    }

    async fn pod(&mut self) -> Result<()> {
        let (_, _) = self.node.pod(self.handler, APP).await?;
        Ok(())
    }

    /// Runs pods until the plugin is asked about one.
    async fn assert_served(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.node.log.from_now();
            self.pod().await?;
            if log.lines_with(DECIDED).len() == 1 {
                break;
            }
            ensure!(Instant::now() < deadline, "the plugin is not asked");
        }
        self.node.assert_nothing_left(self.handler).await
    }
}

async fn every_frame(version: Version) -> Result<()> {
    let mut bench = Bench::start(version).await?;
    bench.tap.fail(usize::MAX, FrameFault::Cut);
    bench.round(FrameFault::Cut).await?;
    let frames = bench.tap.frames();
    println!("{version:?}: {frames} frames");
    // RegisterPlugin, Configure, Synchronize, and the two hooks of a pod, each with an answer.
    ensure!(frames >= 10, "{frames} frames");
    for frame in chosen(frames, SHARE)? {
        for fault in FAULTS {
            if version == Version::V1_7
                && fault == FrameFault::OtherConnection
                && SYNCHRONIZATION.contains(&frame)
            {
                continue;
            }
            let case = format!("{fault:?} at frame {frame}");
            bench.tap.fail(frame, fault);
            let began = Instant::now();
            bench.round(fault).await.with_context(|| case.clone())?;
            let took = began.elapsed();
            let has_occurred = bench.tap.heal();
            println!("{case}: {took:?}");
            ensure!(has_occurred, "{case}: fewer frames");
            ensure!(took < LONGEST, "{case}: {took:?}");
            bench.assert_served().await.context(case)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_2_1() -> Result<()> {
    every_frame(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_1_7() -> Result<()> {
    every_frame(Version::V1_7).await
}
