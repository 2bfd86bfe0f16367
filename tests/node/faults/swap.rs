//! A fault in each call of the hook that moves a container onto a private chain, and in each call that replaces the old
//! chain afterwards. The creation succeeds on a chain that the guest pulls, or it is rejected and a next try of the
//! kubelet succeeds. Then the chain becomes ready, and nothing temporary is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use lab::{Call, Fault, Kind, Options, Pod, Registry, Remote, Tap, Version, images};

use super::place::Place;
use super::{FAULTS, chosen, is_complete};
use crate::after_pull::image;
use crate::guest_pull::NYDUS;
use crate::support::{APP, Node, ON_DEMAND, PATIENCE};
use crate::swap::is_removed_below;

/// By default a creation is allowed if containerd does not answer which chain it has.
const HOOKS: &str = "[hooks]\nwait = \"2s\"\non_unready = \"reject\"\n";

/// Longer than `wait` of [`HOOKS`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Longer than a hook may take.
const LATE: Fault = Fault::Delay(Duration::from_secs(4));

/// The longest time of a creation: its hook, and what containerd does before and after it.
const LONGEST: Duration = Duration::from_secs(8);

/// The kubelet tries again; its pauses are longer.
const TRIES: usize = 6;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// Longer than the pause between an event and the calls that follow it.
const QUIET: Duration = Duration::from_millis(80);

const LAYERS: usize = 2;

/// One of so many calls gets a fault in a short run.
const SHARE: usize = 11;

/// The calls that change something: a hook that never makes one of them tests nothing.
const CHANGES: [&str; 6] = [
    "Leases/Create",
    "Leases/AddResource",
    "Leases/Delete",
    "Content/Update",
    "Snapshots/Prepare",
    "Snapshots/Remove",
];

/// The calls that get a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Those of the hook, up to the end of its lease.
    Hook,
    /// Those after the hook.
    Replacement,
}

struct Bench {
    node: Node,
    pod: Pod,
    images: usize,
}

impl Bench {
    async fn start(version: Version) -> Result<Self> {
        let mut options = Options::new(version);
        options.remotes = vec![Remote::Nydus];
        options.request_timeout = REQUEST_TIMEOUT;
        let (registry, image) = (Registry::start().await?, images::app(APP)?);
        let mut node = Node::start_on(version, options, registry, image).await?;
        node.hooks = HOOKS;
        node.tap = Some(Tap::start(&node.lab)?);
        node.serve(ON_DEMAND).await?;
        node.log.wait_for("reconcile finished", PATIENCE).await?;
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        let mut bench = Self {
            node,
            pod,
            images: 0,
        };
        // The first one finds out that the guest pulls, and how long a swap takes.
        bench.next_image().await?;
        bench.create().await?;
        bench.assert_settled().await?;
        Ok(bench)
    }

    fn tap(&self) -> Result<&Tap> {
        self.node.tap.as_ref().context("no tap")
    }

    /// Puts an image into the store that no snapshotter has.
    async fn next_image(&mut self) -> Result<()> {
        self.node.image = image(LAYERS, self.images);
        self.images += 1;
        let node = &mut self.node;
        node.store.put_image(&node.image).await?;
        let deadline = Instant::now() + PATIENCE;
        while node.cri.image_status(node.image.name()).await?.is_none() {
            ensure!(Instant::now() < deadline, "CRI does not see the image");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The calls for events would be counted with the hook's.
        self.tap()?.quiet(0, QUIET, PATIENCE).await?;
        Ok(())
    }

    /// Creates a container as the kubelet does. Returns its ID and the number of tries.
    async fn create(&mut self) -> Result<(String, usize)> {
        let name = self.node.image.name().to_owned();
        for tried in 1..=TRIES {
            let began = Instant::now();
            let created = self.node.cri.create_container(&self.pod, &name, &[], &[]);
            let created = created.await;
            let took = began.elapsed();
            ensure!(took < LONGEST, "the creation took {took:?}: {created:?}");
            match created {
                Ok(container) => return Ok((container, tried)),
                Err(error) => {
                    let is_expected =
                        error.message().contains("nri-unpack:") || is_removed_below(&error);
                    ensure!(is_expected, "{error}");
                    println!("  {took:?}: {}", error.message());
                }
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        bail!("not created with {TRIES} tries")
    }

    /// Checks what has to hold when the plugin is done, then removes the container with its image.
    async fn assert_settled(&mut self) -> Result<()> {
        let node = &mut self.node;
        let image = node.image.clone();
        node.wait_image(&image, NYDUS).await?;
        node.assert_nothing_left(NYDUS).await?;
        node.store.collect_garbage().await?;
        node.assert_no_lost_snapshot(NYDUS).await?;
        let list = ListContainersRequest::default();
        let list = node.cri.runtime.list_containers(list).await?.into_inner();
        for container in list.containers {
            node.assert_guest_pulls(&container.id).await?;
            node.cri.remove_container(&container.id).await?;
        }
        node.cri.remove_image(image.name()).await?;
        let closed = node.lab.log().lines_with("closing plugin");
        ensure!(closed.is_empty(), "{closed:#?}");
        Ok(())
    }

    /// Returns the places of the calls without a fault.
    async fn clean_run(&mut self, part: Part) -> Result<Vec<Place>> {
        self.next_image().await?;
        let earlier = self.tap()?.calls().len();
        let (container, tries) = self.create().await?;
        ensure!(tries == 1, "{tries} tries without a fault");
        self.node.assert_guest_pulls(&container).await?;
        self.assert_replaced().await?;
        self.node.assert_nothing_left(NYDUS).await?;
        let made = self.tap()?.calls().split_off(earlier);
        self.assert_settled().await?;
        let recreates =
            |call: &Call| call.path.ends_with("/Prepare") && call.message.contains(&container);
        let recreated = made.iter().position(recreates).context("no swap")?;
        let ends = |call: &Call| call.path.ends_with("Leases/Delete");
        let end = made[recreated..]
            .iter()
            .position(ends)
            .context("the lease stays")?;
        let hook = recreated + end + 1;
        println!("{} calls, {hook} of the hook", made.len());
        let mut places = Place::of_each(&made);
        let after = places.split_off(hook);
        let absent = CHANGES
            .iter()
            .filter(|it| !places.iter().any(|place| place.is(it)));
        let absent: Vec<_> = absent.collect();
        ensure!(absent.is_empty(), "never called: {absent:?}");
        Ok(match part {
            Part::Hook => places,
            Part::Replacement => after,
        })
    }

    /// Waits until the old chain is replaced, without a call through the tap.
    async fn assert_replaced(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(e) = self.node.assert_proxied().await {
            ensure!(Instant::now() < deadline, "not replaced: {e}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Checks that the next run removes a lease.
    async fn assert_swept(&mut self) -> Result<()> {
        let plugin = self.node.plugin.as_mut().context("serving")?;
        plugin.stop().await?;
        plugin.restart()?;
        self.node.assert_nothing_left(NYDUS).await
    }

    /// Creates a container with a fault in one call. Returns whether the fault has occurred.
    async fn with_fault(&mut self, part: Part, place: &Place, fault: Fault) -> Result<bool> {
        self.next_image().await?;
        let began = tokio::time::Instant::now();
        place.fail(self.tap()?, fault);
        let (container, tries) = self.create().await?;
        let mut has_occurred = false;
        if part == Part::Hook {
            has_occurred = self.tap()?.heal();
        }
        self.node.assert_guest_pulls(&container).await?;
        if let Fault::Delay(time) = fault {
            // The call is made at that time, also if the hook has answered.
            tokio::time::sleep_until(began + time + BETWEEN_TRIES).await;
        }
        self.assert_replaced().await?;
        if is_left_to_the_sweep(place, fault) {
            self.assert_swept().await?;
        }
        self.node.assert_nothing_left(NYDUS).await?;
        if part == Part::Replacement {
            has_occurred = self.tap()?.heal();
        }
        self.assert_settled().await?;
        println!(
            "{fault:?} in {place:?}: {tries} tries, {:?}",
            began.elapsed()
        );
        Ok(has_occurred)
    }
}

impl Node {
    /// Waits until each active snapshot belongs to a pod or a container.
    pub(crate) async fn assert_no_lost_snapshot(&mut self, snapshotter: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (pods, containers) = (
                ListPodSandboxRequest::default(),
                ListContainersRequest::default(),
            );
            let cri = &mut self.cri.runtime;
            let pods = cri.list_pod_sandbox(pods).await?.into_inner().items;
            let containers = cri.list_containers(containers).await?.into_inner();
            let pods = pods.into_iter().map(|pod| pod.id);
            let containers = containers.containers.into_iter().map(|it| it.id);
            let owners: BTreeSet<_> = pods.chain(containers).collect();
            let snapshots = self.store.snapshots(snapshotter).await?.into_iter();
            let lost = snapshots.filter(|s| s.kind != Kind::Committed && !owners.contains(&s.key));
            let lost: Vec<_> = lost.collect();
            if lost.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "without an owner: {lost:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Whether a lease is left to the next sweep: it could not be deleted, or it was created when its hook had answered.
fn is_left_to_the_sweep(place: &Place, fault: Fault) -> bool {
    place.is("Leases/Delete") && fault == Fault::Error || place.is("Leases/Create") && fault == LATE
}

async fn every_call(version: Version, part: Part) -> Result<()> {
    let mut bench = Bench::start(version).await?;
    let places = bench.clean_run(part).await?;
    for (n, call) in chosen(places.len(), SHARE)?.into_iter().enumerate() {
        let mut faults = FAULTS.to_vec();
        // It takes seconds.
        if part == Part::Hook && (n == 0 || is_complete()) {
            faults.push(LATE);
        }
        for fault in faults {
            let place = &places[call];
            let run = async || bench.with_fault(part, place, fault).await;
            place.meets(fault, run).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_hook_on_2_1() -> Result<()> {
    every_call(Version::V2_1, Part::Hook).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_hook_on_1_7() -> Result<()> {
    every_call(Version::V1_7, Part::Hook).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_replacement_on_2_1() -> Result<()> {
    every_call(Version::V2_1, Part::Replacement).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn in_the_replacement_on_1_7() -> Result<()> {
    every_call(Version::V1_7, Part::Replacement).await
}
