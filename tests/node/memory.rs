//! The resident memory of the plugin: nothing of an image stays after it. And measurements of the memory, and of the cost
//! of `check`, with many images in the store.
//!
//! For the measurements run `cargo test --release --test node memory -- --ignored --nocapture --test-threads 1`.
//! `NRI_UNPACK_OTHER` names another program, which is measured in turn with this one on the same node.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use lab::{Handler, Image, Layer, Log, Options, Plugin, Remote, Version, images};
use serde_json::{Value, json};

use crate::after_pull::image;
use crate::ahead_cost::median;
use crate::guest_pull::NYDUS;
use crate::support::{DEFAULT_HOOKS, Node, PATIENCE, program};

/// The environment variable with the other program to measure.
const OTHER: &str = "NRI_UNPACK_OTHER";

/// The number of layers of each image. No two images share one.
const LAYERS: usize = 20;

/// The number of images that are stored at the same time.
const AT_ONCE: usize = 4;

/// The number of comparisons of `check` with the lists that it reads.
const ROUNDS: usize = 10;

/// A look at thousands of snapshots takes seconds on a busy machine.
const LOOK: Duration = Duration::from_secs(120);

/// The plugin frees what it needed for the look, and rests.
const REST: Duration = Duration::from_secs(5);

/// The resident memory of a process, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// All of it, including the pages of the program that were used.
    pub(crate) resident: u64,
    /// The heap and the stacks.
    pub(crate) anonymous: u64,
    /// The peak of [`Self::resident`].
    pub(crate) peak: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kilobytes = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            Ok(number.with_context(|| name.to_owned())?.parse()?)
        };
        Ok(Self {
            resident: kilobytes("VmRSS:")?,
            anonymous: kilobytes("RssAnon:")?,
            peak: kilobytes("VmHWM:")?,
        })
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = |kilobytes: u64| (kilobytes << 10) as f64 / 1e6;
        write!(
            f,
            "{:5.1} MB resident, {:5.1} anonymous, {:5.1} peak",
            megabytes(self.resident),
            megabytes(self.anonymous),
            megabytes(self.peak)
        )
    }
}

fn programs() -> Vec<PathBuf> {
    let other = std::env::var_os(OTHER).map(PathBuf::from);
    other.into_iter().chain([program()]).collect()
}

/// Starts a node with four handlers, each with a snapshotter of its own, one of which holds the layers of so many images.
async fn start(images: usize, holder: &str) -> Result<Node> {
    let mut options = Options::new(Version::V2_1);
    options
        .handlers
        .push(Handler::new("blockfile", "blockfile"));
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(Version::V2_1, options).await?;
    node.hooks = DEFAULT_HOOKS;
    let put = async |n| node.store.put_chain(holder, &image(LAYERS, n)).await;
    let put = stream::iter(0..images).map(put).buffer_unordered(AT_ONCE);
    put.try_collect::<()>().await?;
    Ok(node)
}

/// Prints the memory of each program in each phase of its start, and after it.
async fn measure(node: &Node, images: usize, more: &str) -> Result<()> {
    for program in programs() {
        let log = Log::new(node.lab.path("plugin.log")).from_now();
        let mut plugin = Plugin::start(&node.lab, &program, &node.config(more))?;
        let pid = plugin.pid().context("the plugin does not run")?;
        let show = |phase: &str| -> Result<()> {
            let memory = Memory::of(pid)?;
            println!(
                "{images} images, {phase:10} {memory}  {}",
                program.display()
            );
            Ok(())
        };
        log.wait_for("", LOOK).await?;
        show("start")?;
        log.wait_for("handler resolved", LOOK).await?;
        show("handlers")?;
        log.wait_for("reconcile finished", LOOK).await?;
        show("look")?;
        tokio::time::sleep(REST).await;
        show("after it")?;
        plugin.stop().await?;
    }
    Ok(())
}

/// Prints how long `check` of all images takes in these four snapshotters, and how long containerd takes for the lists.
async fn measure_check(node: &Node, images: usize) -> Result<()> {
    let config = node.lab.path("check.toml");
    std::fs::write(&config, node.config(""))?;
    let mut lists = Vec::new();
    let mut checks = vec![Vec::new(); programs().len()];
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for snapshotter in ["blockfile", "erofs", "native", NYDUS] {
            node.store.snapshots(snapshotter).await?;
        }
        node.store.images().await?;
        node.store.content().await?;
        lists.push(began.elapsed());
        for (program, took) in programs().iter().zip(&mut checks) {
            let mut check = Command::new(program);
            check.arg("check").arg("--config").arg(&config);
            let began = Instant::now();
            let status = check.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            took.push(began.elapsed());
            ensure!(status.code() == Some(1), "{program:?}: {status}");
        }
    }
    let lists = median(&lists);
    for (program, took) in programs().iter().zip(&checks) {
        let took = median(took);
        println!(
            "{images} images, check {took:?}, containerd's lists {lists:?}: {:?} beyond  {}",
            took.saturating_sub(lists),
            program.display()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn memory_of_one_image() -> Result<()> {
    let node = start(0, NYDUS).await?;
    measure(&node, 1, "").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn memory_of_300_images() -> Result<()> {
    let node = start(300, NYDUS).await?;
    measure(&node, 300, "").await?;
    measure_check(&node, 300).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of many minutes"]
async fn memory_of_1000_images() -> Result<()> {
    // nydus would take most of an hour to be filled. The plugin treats it like any snapshotter with `eager = "all"`.
    let node = start(1000, "native").await?;
    let eager = "[snapshotters.native]\neager = \"all\"\n[snapshotters.nydus]\neager = \"none\"\n";
    measure(&node, 1000, eager).await
}

/// Nearly the size of the largest document that the plugin reads.
const LARGE: usize = (8 << 20) - 4096;

/// The number of such images.
const REMOVED: usize = 6;

/// The allocator keeps some freed memory. The manifests together would take more.
const HELD_KIB: u64 = 16 << 10;

/// Returns an image whose manifest is large because of annotations that containerd's prefix begins.
fn annotated(n: usize) -> Image {
    let layer = Layer::new().file("f", 0o644, format!("{n}\n"));
    let image = Image::builder(format!("registry.test/large/app:{n}")).layer(layer);
    image.build().edited(|media_type, text| {
        let mut document: Value = serde_json::from_str(&text).expect("written by us");
        if media_type == images::MANIFEST {
            let annotations = (0..LARGE / 1000).map(|i| {
                let key = format!("containerd.io/lab.{i:06}");
                (key, json!("x".repeat(965)))
            });
            let annotations: serde_json::Map<_, _> = annotations.collect();
            document["layers"][0]["annotations"] = Value::Object(annotations);
        }
        document.to_string().into_bytes()
    })
}

/// Images with large manifests are made ready and removed, one after another.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_removed_image_is_held() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.hooks = DEFAULT_HOOKS;
    node.serve("[snapshotters.erofs]\neager = \"all\"\n")
        .await?;
    node.log.wait_for("reconcile finished", PATIENCE).await?;
    let pid = node.plugin.as_ref().and_then(Plugin::pid);
    let pid = pid.context("the plugin does not run")?;
    let mut held = Vec::new();
    for n in 0..REMOVED {
        let image = annotated(n);
        node.store.put_image(&image).await?;
        node.wait_image(&image, "erofs").await?;
        node.cri.remove_image(image.name()).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let memory = Memory::of(pid)?;
        println!("{memory}");
        held.push(memory.anonymous);
    }
    // What the allocator keeps is full after the first two.
    let before = held[0].max(held[1]);
    ensure!(held[REMOVED - 1] < before + HELD_KIB, "{held:?} KiB");
    Ok(())
}
