//! nydus-snapshotter takes calls and does not answer: it is stopped as a whole, or its `Prepare` alone hangs. Images
//! and pods of another snapshotter are made as if it were not there, hooks answer in time, commands end with an error
//! that names it, and everything becomes ready when it answers again.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Image, Options, PAUSE, Remote, Stalled, Tap, Version, images};

use crate::after_pull::{image, took};
use crate::guest_pull::{NYDUS, start_with};
use crate::support::{APP, DEFAULT_HOOKS, Node, PATIENCE, handler};

/// The images that arrive meanwhile.
const IMAGES: usize = 25;
const LAYERS: usize = 2;

/// The longest time of a hook: the default of `hooks.wait`, and a margin for a loaded machine.
const LONGEST_HOOK: Duration = Duration::from_millis(500 + 100);

/// The longest time of a command, which waits for the snapshotter.
const LONGEST_COMMAND: Duration = Duration::from_secs(60);

/// A node on which nydus-snapshotter can be made to hang.
struct Bench {
    node: Node,
    handler: &'static str,
    images: Vec<Image>,
    /// The proxy between containerd and nydus-snapshotter, if there is one.
    tap: Option<Tap>,
}

/// A command that runs beside.
struct Running {
    child: Child,
    words: String,
    began: Instant,
}

impl Bench {
    async fn start(version: Version, is_tapped: bool) -> Result<Self> {
        let mut node = start_with(version, Options::new(version)).await?;
        let tap = match is_tapped {
            true => Some(node.tap_nydus().await?),
            false => None,
        };
        node.hooks = DEFAULT_HOOKS;
        let handler = handler(version);
        let eager = format!("[snapshotters.{handler}]\neager = \"all\"\n");
        // The duration of each hook is logged.
        let config = node.config(&eager);
        let config = config.replace("level = \"debug\"", "level = \"trace\"");
        node.serve_config(&config).await?;
        let (pause, app) = (images::pause(&[PAUSE])?, node.image.clone());
        for snapshotter in [NYDUS, handler] {
            for image in [&pause, &app] {
                node.wait_image(image, snapshotter).await?;
            }
        }
        Ok(Self {
            node,
            handler,
            images: (0..IMAGES).map(|n| image(LAYERS, n)).collect(),
            tap,
        })
    }

    /// Starts a command whose work is in nydus.
    fn begin(&self, words: &[&str]) -> Result<Running> {
        let mut command: Command = self.node.command_of(words)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Running {
            child: command.spawn()?,
            words: words.join(" "),
            began: Instant::now(),
        })
    }

    /// Images arrive, and pods of the other handler start.
    async fn assert_others_go_on(&mut self) -> Result<()> {
        let node = &mut self.node;
        for image in &self.images {
            node.store.put_image(image).await?;
        }
        let began = Instant::now();
        let log = node.log.from_now();
        for image in [APP, self.images[0].name(), APP] {
            for handler in [self.handler, ""] {
                let pod = node.cri.run_pod(handler, &[]).await?;
                let container = node.cri.create_container(&pod, image, &[], &[]).await?;
                if image == APP {
                    node.cri.start_container(&container).await?;
                    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
                }
                node.cri.remove_pod(&pod).await?;
            }
        }
        println!("pods beside: {:?}", began.elapsed());
        let hooks = log.lines_with("nri_unpack::hooks] answers hook=");
        // Two for each pod.
        ensure!(hooks.len() >= 12, "{hooks:#?}");
        for hook in hooks {
            ensure!(took(&hook)? < LONGEST_HOOK, "{hook}");
        }
        let ready = async {
            for image in &self.images {
                node.wait_image(image, self.handler).await?;
            }
            anyhow::Ok(())
        };
        let ready = tokio::time::timeout(PATIENCE, ready).await;
        let late = || format!("not all images are ready in {}", self.handler);
        ready.with_context(late)??;
        println!("images ready in {}: {:?}", self.handler, began.elapsed());
        let closed = node.lab.log().lines_with("closing plugin");
        ensure!(closed.is_empty(), "{closed:#?}");
        Ok(())
    }

    /// nydus-snapshotter answers again: nothing else has to happen.
    async fn assert_heals(&mut self) -> Result<()> {
        let (node, began) = (&mut self.node, Instant::now());
        for image in &self.images {
            node.wait_image(image, NYDUS).await?;
        }
        println!("images ready in {NYDUS}: {:?}", began.elapsed());
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        let image = &self.images[0];
        let container = node.cri.create_container(&pod, image.name(), &[], &[]);
        let container = container.await?;
        node.assert_guest_pulls_image(&container, image).await?;
        for snapshotter in [NYDUS, self.handler] {
            node.assert_nothing_left(snapshotter).await?;
        }
        node.store.collect_garbage().await?;
        node.assert_no_lost_snapshot(NYDUS).await
    }
}

impl Node {
    /// Puts a proxy between containerd and nydus-snapshotter.
    async fn tap_nydus(&mut self) -> Result<Tap> {
        let nydus = self.lab.remote(Remote::Nydus);
        let tap = Tap::of_snapshotter(&self.lab, nydus)?;
        let config = std::fs::read_to_string(self.lab.config())?;
        let address = |socket: &std::path::Path| format!("address = \"{}\"", socket.display());
        let [own, tapped] = [nydus.socket(), tap.socket()].map(address);
        ensure!(config.contains(&own), "{config}");
        std::fs::write(self.lab.config(), config.replace(&own, &tapped))?;
        self.restart_containerd().await?;
        Ok(tap)
    }
}

impl Running {
    /// Waits for the end of the command.
    fn output(mut self) -> Result<Output> {
        while self.child.try_wait()?.is_none() {
            if self.began.elapsed() > LONGEST_COMMAND {
                self.child.kill()?;
                let output = self.child.wait_with_output()?;
                anyhow::bail!("`{}` does not end: {output:?}", self.words);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!(
            "`{}` ended after {:?} or less",
            self.words,
            self.began.elapsed()
        );
        Ok(self.child.wait_with_output()?)
    }

    /// Waits for the end of the command, whose error names the snapshotter.
    fn assert_names_nydus(self) -> Result<()> {
        let words = self.words.clone();
        let output = tokio::task::block_in_place(|| self.output())?;
        let printed = [&output.stdout[..], &output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        ensure!(
            !output.status.success() && printed.contains(NYDUS),
            "`{words}`: {}\n{printed}",
            output.status
        );
        Ok(())
    }
}

/// The whole snapshotter is stopped.
async fn stopped(version: Version) -> Result<()> {
    let mut bench = Bench::start(version, false).await?;
    bench.node.lab.remote(Remote::Nydus).pause()?;
    let new = image(LAYERS, IMAGES);
    bench.node.store.put_image(&new).await?;
    let commands = [
        vec!["ensure", new.name(), "--snapshotter", NYDUS],
        vec!["check", "--snapshotter", NYDUS],
        vec!["doctor"],
    ];
    let commands = commands.iter().map(|words| bench.begin(words));
    let commands = commands.collect::<Result<Vec<_>>>()?;
    bench.assert_others_go_on().await?;
    let results = commands.into_iter().map(Running::assert_names_nydus);
    let failed: Vec<_> = results.filter_map(Result::err).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    bench.node.lab.remote(Remote::Nydus).go_on()?;
    bench.images.push(new);
    bench.assert_heals().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_on_2_1() -> Result<()> {
    stopped(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn stopped_on_1_7() -> Result<()> {
    stopped(Version::V1_7).await
}

/// It answers everything but `Prepare`.
async fn prepare_hangs(version: Version) -> Result<()> {
    let mut bench = Bench::start(version, true).await?;
    let tap = bench.tap.as_ref().context("no tap")?;
    let stalled: Stalled = tap.stall(|call| call.path.ends_with("Snapshots/Prepare"));
    bench.assert_others_go_on().await?;
    ensure!(stalled.held() > 0, "nothing hung");
    drop(stalled);
    bench.assert_heals().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn prepare_hangs_on_2_1() -> Result<()> {
    prepare_hangs(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn prepare_hangs_on_1_7() -> Result<()> {
    prepare_hangs(Version::V1_7).await
}
