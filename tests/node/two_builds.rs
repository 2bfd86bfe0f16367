//! Compares two builds of the program: `NRI_UNPACK_OTHER` names the old one, `NRI_UNPACK_PROGRAM` the new one, by default
//! that of this build. Each has a containerd of its own, and they run in turn; the other one is idle. Each measurement of
//! the one is paired with the next one of the other, and every second pair begins with the old build: what changes slowly
//! on the machine cancels out in the ratio of a pair. The medians, and the median of the ratios with its quartiles, are
//! printed: they do not make a test fail, a wrong state does.
//!
//! `NRI_UNPACK_OTHER=/path/to/nri-unpack cargo test --release --test node two_builds -- --ignored --nocapture --test-threads 1`.
//! If both variables name release programs, the tests themselves need no `--release`. `NRI_UNPACK_ROUNDS` is the number of
//! rounds of each measure.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Image, Pod, Version, images};

use crate::after_pull::layered;
use crate::ahead_cost::median;
use crate::ahead_in_the_way::BIG;
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, DEFAULT_HOOKS, Node, ON_DEMAND, PATIENCE, handler, program};

/// The environment variable with the old program.
const OTHER: &str = "NRI_UNPACK_OTHER";

/// The environment variable with the number of rounds of each measure.
const ROUNDS: &str = "NRI_UNPACK_ROUNDS";

/// Its default. One more round comes first, which is not counted.
const DEFAULT_ROUNDS: usize = 10;

/// The pairs of containers of a round.
const PER_ROUND: usize = 3;

const LAYERS: usize = 10;

/// The image of the unpack beside pods: it takes some seconds.
const BIG_LAYERS: usize = 3;
const BIG_BYTES: usize = 48 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// A container on nydus right after its pull.
    Race,
    /// A container on nydus whose image the host unpacks.
    Swap,
    /// A pod and its container on the default handler, while an image is unpacked for another one.
    Bystander,
    /// The first container of an image that is ready ahead.
    FirstContainer,
}

impl Measure {
    const ALL: [Self; 4] = [
        Self::Race,
        Self::Swap,
        Self::Bystander,
        Self::FirstContainer,
    ];

    fn config(self) -> &'static str {
        match self {
            Self::Race | Self::Bystander => "",
            Self::Swap => ON_DEMAND,
            Self::FirstContainer => ALL,
        }
    }

    /// Returns the pairs of a round.
    fn pairs(self) -> usize {
        match self {
            // All pods during one unpack.
            Self::Bystander => 1,
            _ => PER_ROUND,
        }
    }

    /// Returns the handler whose images are made ready.
    fn handler(self, version: Version) -> &'static str {
        match self {
            Self::Race | Self::Swap => NYDUS,
            Self::Bystander | Self::FirstContainer => handler(version),
        }
    }
}

/// A node with one of the builds.
struct Side {
    node: Node,
    handler: &'static str,
    pod: Pod,
    /// The time of each pair.
    times: Vec<Duration>,
}

impl Side {
    async fn start(version: Version, measure: Measure, program: PathBuf) -> Result<Self> {
        let mut node = start(version).await?;
        node.program = program;
        node.hooks = DEFAULT_HOOKS;
        node.serve(measure.config()).await?;
        node.log.wait_for("reconcile finished", PATIENCE).await?;
        let handler = measure.handler(version);
        let pod = node.cri.run_pod(handler, &[]).await?;
        Ok(Self {
            node,
            handler,
            pod,
            times: vec![],
        })
    }

    /// Measures its half of the pair with this number.
    async fn measure(&mut self, measure: Measure, n: usize, big: &Image) -> Result<()> {
        let time = match measure {
            Measure::Bystander => {
                let mut times = vec![];
                self.node.beside(big, &mut times).await?
            }
            Measure::FirstContainer => self.first_container(n).await?,
            Measure::Race | Measure::Swap => self.after_pull(measure, n).await?,
        };
        self.times.push(time);
        self.node.assert_nothing_left(self.handler).await
    }

    /// Pulls an image that shares no layer with another, and creates a container of it at once.
    async fn after_pull(&mut self, measure: Measure, n: usize) -> Result<Duration> {
        let image = image(n);
        let log = self.node.log.from_now();
        self.node.pull(&image).await?;
        let (container, took) = self.create(&image).await?;
        self.node
            .assert_guest_pulls_image(&container, &image)
            .await?;
        let moved = log.lines_with("container moved").len();
        let is_moved = measure == Measure::Swap;
        ensure!(!is_moved || moved == 1, "moved {moved} times");
        self.node.wait_image(&image, NYDUS).await?;
        self.remove(&container, &image).await?;
        Ok(took)
    }

    async fn first_container(&mut self, n: usize) -> Result<Duration> {
        let image = image(n);
        self.node.pull(&image).await?;
        self.node.wait_image(&image, self.handler).await?;
        self.node.assert_nothing_left(self.handler).await?;
        let log = self.node.log.from_now();
        let (container, took) = self.create(&image).await?;
        let ready = log.lines_with(" verdict=ready hook=CreateContainer ");
        ensure!(ready.len() == 1, "{}", log.text());
        self.remove(&container, &image).await?;
        Ok(took)
    }

    async fn create(&mut self, image: &Image) -> Result<(String, Duration)> {
        let began = Instant::now();
        let cri = &mut self.node.cri;
        let container = cri.create_container(&self.pod, image.name(), &[], &[]);
        let container = container.await?;
        Ok((container, began.elapsed()))
    }

    async fn remove(&mut self, container: &str, image: &Image) -> Result<()> {
        self.node.cri.remove_container(container).await?;
        self.node.cri.remove_image(image.name()).await?;
        Ok(())
    }
}

fn image(n: usize) -> Image {
    layered(&format!("registry.test/builds/app:{n}"), LAYERS)
}

/// Returns the program that the variable names, by its absolute path.
fn program_of(variable: &str) -> Result<PathBuf> {
    let program = std::env::var_os(variable).map(PathBuf::from);
    let program = program.with_context(|| format!("{variable} has to name the other program"))?;
    program
        .canonicalize()
        .with_context(|| format!("{variable}={}", program.display()))
}

fn rounds() -> Result<usize> {
    match std::env::var(ROUNDS) {
        Ok(rounds) => rounds.parse().with_context(|| format!("{ROUNDS}={rounds}")),
        Err(_) => Ok(DEFAULT_ROUNDS),
    }
}

async fn compare(version: Version) -> Result<()> {
    let (old, new, rounds) = (program_of(OTHER)?, program().canonicalize()?, rounds()?);
    println!("new {}, old {}", new.display(), old.display());
    let big = images::large(BIG, BIG_LAYERS, BIG_BYTES)?;
    for measure in Measure::ALL {
        let mut new = Side::start(version, measure, new.clone()).await?;
        let mut old = Side::start(version, measure, old.clone()).await?;
        let pairs = measure.pairs();
        for n in 0..(1 + rounds) * pairs {
            // The first of the two warms the caches that both read.
            let sides = match n % 2 {
                0 => [&mut new, &mut old],
                _ => [&mut old, &mut new],
            };
            for side in sides {
                let measured = side.measure(measure, n, &big).await;
                measured
                    .with_context(|| format!("{measure:?}, pair {n}, {:?}", side.node.program))?;
            }
            if n + 1 == pairs {
                // What is measured at the first use only is no part of the comparison.
                new.times.clear();
                old.times.clear();
            }
        }
        print(version, measure, &new.times, &old.times);
    }
    Ok(())
}

fn print(version: Version, measure: Measure, new: &[Duration], old: &[Duration]) {
    let ratio = |(new, old): (&Duration, &Duration)| new.as_secs_f64() / old.as_secs_f64();
    let mut ratios: Vec<_> = new.iter().zip(old).map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "{version:?}, {measure:?}: new {:.1?}, old {:.1?}, new / old of {} pairs {:.3} (quartiles {:.3} to {:.3})",
        median(new),
        median(old),
        ratios.len(),
        quantile(&ratios, 0.5),
        quantile(&ratios, 0.25),
        quantile(&ratios, 0.75),
    );
}

/// Returns this quantile of sorted values; one between two of them is interpolated.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = last as f64 * part;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[test]
fn quantiles_are_interpolated() {
    for (values, quartiles) in [
        (&[1.0][..], [1.0, 1.0, 1.0]),
        (&[1.0, 2.0], [1.25, 1.5, 1.75]),
        (&[1.0, 2.0, 3.0, 4.0, 9.0], [2.0, 3.0, 4.0]),
    ] {
        assert_eq!(
            [0.25, 0.5, 0.75].map(|part| quantile(values, part)),
            quartiles
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes, of two programs"]
async fn on_2_1() -> Result<()> {
    compare(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes, of two programs"]
async fn on_1_7() -> Result<()> {
    compare(Version::V1_7).await
}
