//! The race after a pull: the kubelet creates a container as soon as its pull has returned, and the
//! image is eager in the pod's snapshotter. The plugin's work ahead or containerd's
//! fallback wins; in both cases the container's first attempt gets a chain that is right.
//!
//! The tests make a few pulls for each number of layers. What the work ahead wins in the long run, what
//! the hook heals, and what that costs with the plugin's own default of `hooks.wait`, is shown by
//! `NRI_UNPACK_RACES=50 cargo test --test node ahead_race -- --nocapture --test-threads 1`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::{Image, Log, Options, Remote, Version};

use crate::after_pull::{image, percentiles, took};
use crate::guest_pull::NYDUS;
use crate::support::{ALL, CRI_LABELS, DEFAULT_HOOKS, Node, PATIENCE, handler};

/// How many pulls for each number of layers.
const COUNT: &str = "NRI_UNPACK_RACES";
/// One for a pod that runs already, one for a new one.
const FEW: usize = 2;

const LAYERS: [usize; 3] = [1, 10, 40];

/// With fewer, a pull may be over before anything of it can be read.
const ALWAYS_EARLY: usize = 10;

const READY_AHEAD: &str = "image is ready ahead";

/// What the hook says where the work ahead was in time.
const WON: &str = "image is ready";

/// How the races of images with as many layers ended.
#[derive(Default)]
struct Tally {
    /// Whether the pull labels what it unpacks: then its labels tell the image's name.
    annotated: bool,
    /// By what the hook said of the container.
    verdicts: BTreeMap<String, Vec<Duration>>,
    /// Images whose work began with a layer of the pull.
    early: usize,
    /// How long that was before the pull returned, where it was not overtaken.
    leads: Vec<Duration>,
    creations: Vec<Duration>,
}

impl Tally {
    /// Reads the plugin's log since before the pull.
    fn count(
        &mut self,
        log: &Log,
        snapshotter: &str,
        image: &Image,
        returned: SystemTime,
    ) -> Result<()> {
        let early = log.lines_with(&self.begun_early(snapshotter, image));
        self.early += usize::from(!early.is_empty());
        let ahead = early.iter().filter(|line| line.contains(READY_AHEAD));
        let leads =
            ahead.map(|line| Ok(returned.duration_since(said_at(line)? - took(line)?).ok()));
        let leads = leads.collect::<Result<Vec<_>>>()?;
        self.leads.extend(leads.into_iter().flatten().max());
        let said: Vec<_> = log
            .lines_with("nri_unpack::hooks]")
            .into_iter()
            .filter(|line| line.contains(" hook=CreateContainer "))
            .collect();
        let [said] = &said[..] else {
            anyhow::bail!("not one verdict: {said:#?}");
        };
        ensure!(
            [WON, "image made ready", "container moved"]
                .iter()
                .any(|w| said.contains(w)),
            "not from a ready chain: {said}"
        );
        let verdicts = self.verdicts.entry(verdict(said)?);
        verdicts.or_default().push(took(said)?);
        Ok(())
    }

    /// The fields of an image whose work began with a layer of its pull: it has no name yet, unless labels tell it.
    fn begun_early(&self, snapshotter: &str, image: &Image) -> String {
        if self.annotated {
            return format!(" image={} snapshotter={snapshotter} ", image.name());
        }
        let repository = image.name().rsplit_once(':').map_or("", |(name, _)| name);
        let digest = &image.target.digest;
        format!(" image={repository}@{digest} snapshotter={snapshotter} ")
    }

    fn say(&self, what: &str) -> Result<()> {
        let verdicts = self.verdicts.iter();
        let (won, healed): (Vec<_>, Vec<_>) = verdicts.partition(|(said, _)| *said == WON);
        let count = |all: &[(&String, &Vec<Duration>)]| -> usize {
            all.iter().map(|(_, took)| took.len()).sum()
        };
        println!(
            "{what}: {} of {} won by the work ahead, {} healed by the hook",
            count(&won),
            self.creations.len(),
            count(&healed)
        );
        if !self.leads.is_empty() {
            let leads = percentiles(self.leads.clone())?;
            println!(
                "  {} begun during the pull, before its end by {leads}",
                self.early
            );
        }
        println!("  CreateContainer {}", percentiles(self.creations.clone())?);
        for (verdict, took) in &self.verdicts {
            let took = (took.len(), percentiles(took.clone())?);
            println!("  hook, {} times «{verdict}»: {}", took.0, took.1);
        }
        Ok(())
    }
}

/// When a line was logged; to the millisecond.
fn said_at(line: &str) -> Result<SystemTime> {
    let at = line.trim_start_matches('[').split_whitespace().next();
    let at = at.with_context(|| line.to_owned())?;
    humantime::parse_rfc3339(at).with_context(|| line.to_owned())
}

/// The message of a line, between its module and its first field.
fn verdict(line: &str) -> Result<String> {
    let (_, said) = line.split_once("] ").with_context(|| line.to_owned())?;
    let words = said.split(' ').take_while(|word| !word.contains('='));
    Ok(words.collect::<Vec<_>>().join(" "))
}

/// Pulls and creates at once, for a pod that runs already and for a new one in turn.
async fn races(version: Version, snapshotter: &str, config: &str) -> Result<()> {
    races_on(Options::new(version), version, snapshotter, config).await
}

/// The same after a pull that labels what it unpacks, which 2.1 does without its transfer service: other events come,
/// in another order.
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
        None => FEW,
    };
    if snapshotter == NYDUS {
        options.remotes = vec![Remote::Nydus];
    }
    let annotated = options.snapshot_annotations;
    let mut node = Node::start_with(version, options).await?;
    if many.is_some() {
        node.hooks = DEFAULT_HOOKS;
    }
    node.serve(config).await?;
    node.log.wait_for("reconcile finished", PATIENCE).await?;
    let old_pod = node.cri.run_pod(snapshotter, &[]).await?;
    for layers in LAYERS {
        let mut tally = Tally {
            annotated,
            ..Tally::default()
        };
        for n in 0..count {
            let raced = node.race(snapshotter, layers, n, &old_pod, &mut tally);
            raced
                .await
                .with_context(|| format!("{layers} layers, pull {n}"))?;
        }
        tally.say(&format!(
            "{version:?}, {snapshotter}, {layers} layers, {count} pulls"
        ))?;
    }
    node.assert_nothing_left(snapshotter).await
}

impl Node {
    async fn race(
        &mut self,
        snapshotter: &str,
        layers: usize,
        n: usize,
        old_pod: &lab::Pod,
        tally: &mut Tally,
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
        tally.creations.push(began.elapsed());
        if snapshotter == NYDUS {
            self.assert_guest_pulls(&container).await?;
            self.wait_named().await?;
        } else {
            self.wait_ready(snapshotter).await?;
        }
        // Logged after the waiters have their outcome; also where containerd has overtaken the flight.
        if snapshotter == NYDUS && layers >= ALWAYS_EARLY {
            let early = tally.begun_early(snapshotter, &self.image);
            log.wait_for(&early, PATIENCE).await?;
        }
        tally.count(&log, snapshotter, &self.image, returned)?;
        if is_new {
            self.cri.remove_pod(&pod).await?;
        } else {
            self.cri.remove_container(&container).await?;
        }
        Ok(())
    }

    /// No layer is called by the digest any more, which was all that the pull had told.
    async fn wait_named(&self) -> Result<()> {
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

    /// Labelled, and nothing is to be done about it.
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
