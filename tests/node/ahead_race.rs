//! The race after a pull: the kubelet creates a container as soon as its pull has returned, and the pod's
//! snapshotter is eager for the image. Either the plugin unpacks the image first, or containerd's fallback
//! does. In both cases the first creation of the container gets a correct chain.
//!
//! The tests make a few pulls for each number of layers. To measure how often unpacking ahead is first, how
//! often the hook repairs the chain, and how long that takes with the default of `hooks.wait`, run
//! `NRI_UNPACK_RACES=50 cargo test --test node ahead_race -- --nocapture --test-threads 1`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::{Image, Log, Options, Remote, Version};

use crate::after_pull::{image, percentiles, took};
use crate::guest_pull::NYDUS;
use crate::support::{ALL, CRI_LABELS, DEFAULT_HOOKS, Node, PATIENCE, handler};

/// The environment variable with the number of pulls for each number of layers.
const COUNT: &str = "NRI_UNPACK_RACES";
/// One pull for a running pod, one for a new pod.
const DEFAULT_COUNT: usize = 2;

const LAYERS: [usize; 3] = [1, 10, 40];

/// With fewer layers a pull may end before the plugin can read any of its content.
const ALWAYS_EARLY: usize = 10;

const READY_AHEAD: &str = "image is ready ahead";

/// The message of the hook when the image was unpacked ahead in time.
const READY: &str = "image is ready";

/// The results of the races of images with the same number of layers.
#[derive(Default)]
struct Results {
    /// Whether the pull labels its snapshots; the labels then name the image.
    is_annotated: bool,
    /// The durations of the hook, by its message.
    decisions: BTreeMap<String, Vec<Duration>>,
    /// The number of images whose unpack began with a layer of an unfinished pull.
    early: usize,
    /// The time from that begin to the return of the pull, unless containerd was first.
    leads: Vec<Duration>,
    creations: Vec<Duration>,
}

impl Results {
    /// Counts the lines that the plugin logged since before the pull.
    fn count(
        &mut self,
        log: &Log,
        snapshotter: &str,
        image: &Image,
        returned: SystemTime,
    ) -> Result<()> {
        let early = log.lines_with(&self.early_fields(snapshotter, image));
        self.early += usize::from(!early.is_empty());
        let ahead = early.iter().filter(|line| line.contains(READY_AHEAD));
        let leads =
            ahead.map(|line| Ok(returned.duration_since(logged_at(line)? - took(line)?).ok()));
        let leads = leads.collect::<Result<Vec<_>>>()?;
        self.leads.extend(leads.into_iter().flatten().max());
        let decisions: Vec<_> = log
            .lines_with("nri_unpack::hooks]")
            .into_iter()
            .filter(|line| line.contains(" hook=CreateContainer "))
            .collect();
        let [decision] = &decisions[..] else {
            anyhow::bail!("not exactly one decision: {decisions:#?}");
        };
        ensure!(
            [READY, "image made ready", "container moved"]
                .iter()
                .any(|w| decision.contains(w)),
            "the chain was not ready: {decision}"
        );
        let decisions = self.decisions.entry(message(decision)?);
        decisions.or_default().push(took(decision)?);
        Ok(())
    }

    /// Returns the log fields of an image whose unpack began with a layer of its pull. The image has no name
    /// yet, unless labels name it.
    fn early_fields(&self, snapshotter: &str, image: &Image) -> String {
        if self.is_annotated {
            return format!(" image={} snapshotter={snapshotter} ", image.name());
        }
        let repository = image.name().rsplit_once(':').map_or("", |(name, _)| name);
        let digest = &image.target.digest;
        format!(" image={repository}@{digest} snapshotter={snapshotter} ")
    }

    fn print(&self, what: &str) -> Result<()> {
        let decisions = self.decisions.iter();
        let (ahead_first, repaired): (Vec<_>, Vec<_>) =
            decisions.partition(|(message, _)| *message == READY);
        let count = |all: &[(&String, &Vec<Duration>)]| -> usize {
            all.iter().map(|(_, took)| took.len()).sum()
        };
        println!(
            "{what}: {} of {} unpacked ahead, {} repaired by the hook",
            count(&ahead_first),
            self.creations.len(),
            count(&repaired)
        );
        if !self.leads.is_empty() {
            let leads = percentiles(self.leads.clone())?;
            println!(
                "  {} begun during the pull, before its end: {leads}",
                self.early
            );
        }
        println!("  CreateContainer {}", percentiles(self.creations.clone())?);
        for (message, took) in &self.decisions {
            let took = (took.len(), percentiles(took.clone())?);
            println!("  hook, {} times «{message}»: {}", took.0, took.1);
        }
        Ok(())
    }
}

/// Returns when a line was logged, in milliseconds.
fn logged_at(line: &str) -> Result<SystemTime> {
    let at = line.trim_start_matches('[').split_whitespace().next();
    let at = at.with_context(|| line.to_owned())?;
    humantime::parse_rfc3339(at).with_context(|| line.to_owned())
}

/// Returns the message of a line: the text between its module and its first field.
fn message(line: &str) -> Result<String> {
    let (_, text) = line.split_once("] ").with_context(|| line.to_owned())?;
    let words = text.split(' ').take_while(|word| !word.contains('='));
    Ok(words.collect::<Vec<_>>().join(" "))
}

/// Pulls and creates at once, alternately for a running pod and for a new pod.
async fn races(version: Version, snapshotter: &str, config: &str) -> Result<()> {
    races_on(Options::new(version), version, snapshotter, config).await
}

/// Like [`races`], after a pull that labels its snapshots. containerd 2.1 then pulls without its transfer
/// service: it sends other events, in another order.
async fn races_annotated(version: Version, snapshotter: &str, config: &str) -> Result<()> {
    let mut options = Options::new(version);
    options.snapshot_annotations = true;
    races_on(options, version, snapshotter, config).await
}

async fn races_on(
    mut options: Options,
    version: Version,
    snapshotter: &str,
    config: &str,
) -> Result<()> {
    let many = std::env::var(COUNT).ok();
    let count = match &many {
        Some(many) => many.parse().with_context(|| format!("{COUNT}={many}"))?,
        None => DEFAULT_COUNT,
    };
    if snapshotter == NYDUS {
        options.remotes = vec![Remote::Nydus];
    }
    let is_annotated = options.snapshot_annotations;
    let mut node = Node::start_with(version, options).await?;
    if many.is_some() {
        node.hooks = DEFAULT_HOOKS;
    }
    node.serve(config).await?;
    node.wait_reconciled(snapshotter).await?;
    let old_pod = node.cri.run_pod(snapshotter, &[]).await?;
    for layers in LAYERS {
        let mut results = Results {
            is_annotated,
            ..Results::default()
        };
        for n in 0..count {
            let raced = node.race_once(snapshotter, layers, n, &old_pod, &mut results);
            raced
                .await
                .with_context(|| format!("{layers} layers, pull {n}"))?;
        }
        results.print(&format!(
            "{version:?}, {snapshotter}, {layers} layers, {count} pulls"
        ))?;
    }
    node.assert_nothing_left(snapshotter).await
}

impl Node {
    async fn race_once(
        &mut self,
        snapshotter: &str,
        layers: usize,
        n: usize,
        old_pod: &lab::Pod,
        results: &mut Results,
    ) -> Result<()> {
        self.image = image(layers, n);
        let name = self.image.name().to_owned();
        self.registry.push(&self.image).await?;
        let log = self.log.from_now();
        self.cri.pull_image(&name).await?;
        let returned = SystemTime::now();
        let is_new = n % 2 == 1;
        let pod = match is_new {
            true => self.cri.run_pod(snapshotter, &[]).await?,
            false => old_pod.clone(),
        };
        let began = std::time::Instant::now();
        let container = self.cri.create_container(&pod, &name, &[], &[]).await?;
        results.creations.push(began.elapsed());
        if snapshotter == NYDUS {
            self.assert_guest_pulls(&container).await?;
            self.wait_named().await?;
        } else {
            self.wait_ready(snapshotter).await?;
        }
        // The plugin logs this after the waiters have the result, also when containerd was first.
        if snapshotter == NYDUS && layers >= ALWAYS_EARLY {
            let early = results.early_fields(snapshotter, &self.image);
            log.wait_for(&early, PATIENCE).await?;
        }
        results.count(&log, snapshotter, &self.image, returned)?;
        if is_new {
            self.cri.remove_pod(&pod).await?;
        } else {
            self.cri.remove_container(&container).await?;
        }
        Ok(())
    }

    /// Waits until the labels of all layers name the tag. During the pull only the digest is known.
    pub(crate) async fn wait_named(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let chain = self.store.chain(NYDUS, &self.image).await?;
            let names = chain.iter().filter_map(|s| s.labels.get(CRI_LABELS[0]));
            let others: Vec<_> = names.filter(|name| *name != self.image.name()).collect();
            if others.is_empty() {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < deadline, "{others:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the image is labelled, and checks that it is ready.
    async fn wait_ready(&self, snapshotter: &str) -> Result<()> {
        self.wait_labelled(snapshotter).await?;
        let state = self.state_of(&self.image, snapshotter).await?;
        ensure!(state == "ready", "{state}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_2_1() -> Result<()> {
    races(Version::V2_1, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_1_7() -> Result<()> {
    races(Version::V1_7, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1() -> Result<()> {
    races(Version::V2_1, handler(Version::V2_1), ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7() -> Result<()> {
    races(Version::V1_7, handler(Version::V1_7), ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_2_1_with_annotations() -> Result<()> {
    races_annotated(Version::V2_1, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_1_7_with_annotations() -> Result<()> {
    races_annotated(Version::V1_7, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1_with_annotations() -> Result<()> {
    races_annotated(Version::V2_1, handler(Version::V2_1), ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7_with_annotations() -> Result<()> {
    races_annotated(Version::V1_7, handler(Version::V1_7), ALL).await
}
