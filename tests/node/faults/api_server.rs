//! A fault in each request to the API server: an error, a connection that is closed before the answer or in the middle of
//! it, garbage, a delay. The images of the bound pods become ready and the startup taint is removed, the failure is said
//! once, the plugin goes on and leaves nothing behind. The requests are those of a run without a fault: lists with several
//! pages, watches, watches that have ended, a version that is too old, the node and its change.
//!
//! [`met`] fails if a request of the program is in no such run.

mod met;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{ApiServer, Image, Mode, Version};
use tokio::time::{Instant, sleep};

use super::{chosen, is_complete};
use crate::bound::failures::findings;
use crate::bound::{CLASS, NODE, own_image, pod};
use crate::startup_taint::{TAINT, kubernetes_node, taint};
use crate::support::{Node, PATIENCE, handler};

/// The kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Pods,
    WatchOfPods,
    Classes,
    WatchOfClasses,
    Node,
    Patch,
    /// A patch that changes nothing.
    TriedPatch,
}

/// The kinds of requests of the plugin.
pub(crate) const PLUGIN: [Kind; 6] = [
    Kind::Pods,
    Kind::WatchOfPods,
    Kind::Classes,
    Kind::WatchOfClasses,
    Kind::Node,
    Kind::Patch,
];

/// The kinds of requests of `doctor`.
pub(crate) const DOCTOR: [Kind; 4] = [Kind::Pods, Kind::Classes, Kind::Node, Kind::TriedPatch];

impl Kind {
    /// Returns the kind of a request as the server records it; `None` for an unknown one.
    pub(crate) fn of(request: &str) -> Option<Self> {
        let is_watch = request.contains("watch=true");
        let is_try = request.contains("dryRun=All");
        let kinds = [
            ("/api/v1/pods?", [Self::Pods, Self::WatchOfPods], is_watch),
            (
                "/apis/node.k8s.io/v1/runtimeclasses?",
                [Self::Classes, Self::WatchOfClasses],
                is_watch,
            ),
            ("/api/v1/nodes/", [Self::Node; 2], false),
            (
                "PATCH /api/v1/nodes/",
                [Self::Patch, Self::TriedPatch],
                is_try,
            ),
        ];
        let mut kinds = kinds.into_iter();
        let (_, [plain, other], is_other) = kinds.find(|(begin, ..)| request.starts_with(begin))?;
        Some(if is_other { other } else { plain })
    }
}

/// A request since the start of a program: its kind, and how many of this kind come before it.
type Place = (Kind, usize);

const FAULTS: [Mode; 8] = [
    Mode::Status(403),
    Mode::Status(410),
    Mode::Status(429),
    Mode::Status(500),
    Mode::Cut,
    Mode::HalfCut,
    Mode::Garbage,
    Mode::Delay(Duration::from_millis(300)),
];

/// One of so many pairs of a request and a fault is tried in a short run.
const SHARE: usize = 41;

/// The pods that are bound before the plugin starts; each is on a page of its own.
const BEFORE: usize = 2;

/// The watch of each kind that begins again with a version that is too old.
const TOO_OLD: usize = 2;

/// No request comes for so long after the last one.
const QUIET: Duration = Duration::from_millis(100);

/// A node with a plugin that is started again for each fault.
struct Bench {
    node: Node,
    handler: &'static str,
    /// The number of servers so far.
    runs: usize,
}

/// A fault, until it has occurred.
#[derive(Clone)]
struct Fault {
    place: Place,
    mode: Mode,
    has_occurred: Arc<AtomicBool>,
}

impl Fault {
    fn new(place: Place, mode: Mode) -> Self {
        let has_occurred = Arc::default();
        Self {
            place,
            mode,
            has_occurred,
        }
    }

    fn put_into(&self, server: &ApiServer) {
        let (fault, seen) = (self.clone(), AtomicUsize::new(0));
        server.disturb(move |request| {
            let (kind, before) = fault.place;
            let is_it =
                Kind::of(request) == Some(kind) && seen.fetch_add(1, Ordering::Relaxed) == before;
            fault.has_occurred.fetch_or(is_it, Ordering::Relaxed);
            is_it.then_some(fault.mode)
        });
    }

    fn has_occurred(&self) -> bool {
        self.has_occurred.load(Ordering::Relaxed)
    }

    /// How often the failure is said.
    fn lines(&self) -> usize {
        match (self.mode, self.place.0) {
            (Mode::Delay(_), _) => 0,
            // A version that is too old is part of lists and watches.
            (Mode::Status(410), Kind::Node | Kind::Patch) => 1,
            (Mode::Status(410), _) => 0,
            // The head of the answer says already that the version is too old.
            (Mode::HalfCut, Kind::WatchOfPods | Kind::WatchOfClasses)
                if self.place.1 == TOO_OLD =>
            {
                0
            }
            _ => 1,
        }
    }
}

impl Bench {
    async fn start(version: Version) -> Result<Self> {
        Ok(Self {
            node: Node::start(version).await?,
            handler: handler(version),
            runs: 0,
        })
    }

    /// Returns a server with a new node and its first pods, and the images of all pods.
    async fn server(&mut self) -> Result<(ApiServer, Vec<Image>)> {
        self.runs += 1;
        let server = ApiServer::start().await?;
        server.set_page(1);
        server.put_class(CLASS, self.handler);
        server.put_class("other", "other");
        server.put_node(kubernetes_node(&[taint(TAINT, "NoSchedule")])?);
        let image = |n: usize| own_image(&format!("registry.test/run-{}/app:{n}", self.runs));
        let images: Vec<_> = (0..BEFORE + 2).map(image).collect();
        for image in &images {
            self.node.store.put_image(image).await?;
        }
        for (n, image) in images[..BEFORE].iter().enumerate() {
            server.put_pod(pod(&n.to_string(), Some(CLASS), &[image.name()]));
        }
        Ok((server, images))
    }

    fn config(&self, server: &ApiServer) -> Result<String> {
        let config = self.node.watching(server)?;
        Ok(format!("{config}startup_taint = \"{TAINT}\"\n"))
    }

    /// Runs the plugin until all pods were bound, and the watches end between them. Returns the requests.
    async fn run(&mut self, fault: Option<&Fault>) -> Result<Vec<Place>> {
        let (server, images) = self.server().await?;
        if let Some(fault) = fault {
            fault.put_into(&server);
        }
        let config = self.config(&server)?;
        self.node.serve(&config).await?;
        let pid = self.pid()?;
        self.until_ready(&images[..BEFORE], fault).await?;
        self.until_untainted(&server, fault).await?;
        for (n, image) in images.iter().enumerate().skip(BEFORE) {
            self.until_watched(&server, fault).await?;
            let before = server.requests().len();
            if n > BEFORE {
                // The version of the watches is too old for them to begin again.
                server.compact();
            }
            server.end_watches();
            server.put_pod(pod(&n.to_string(), Some(CLASS), &[image.name()]));
            self.until_ready(std::slice::from_ref(image), fault).await?;
            ensure!(is_refused(fault) || server.requests().len() > before);
        }
        self.until_watched(&server, fault).await?;
        ensure!(self.pid()? == pid, "the plugin has ended");
        let places = places(&server.requests())?;
        self.assert_said(fault)?;
        if is_refused(fault) {
            self.start_again(&server, &images).await?;
        }
        self.node.assert_nothing_left(self.handler).await?;
        self.plugin()?.stop().await?;
        std::fs::write(self.node.log.path(), "")?;
        for image in &images {
            self.node.cri.remove_image(image.name()).await?;
        }
        Ok(places)
    }

    fn plugin(&mut self) -> Result<&mut lab::Plugin> {
        self.node.plugin.as_mut().context("serving")
    }

    fn pid(&mut self) -> Result<u32> {
        self.plugin()?.pid().context("the plugin has ended")
    }

    /// Waits until the images are ready. After a refusal the next try comes after minutes: then a container needs its image,
    /// and the hook makes it ready.
    async fn until_ready(&mut self, images: &[Image], fault: Option<&Fault>) -> Result<()> {
        for image in images {
            let deadline = Instant::now() + PATIENCE;
            while self.node.state_of(image, self.handler).await? != "ready" {
                if is_refused(fault) {
                    let name = image.name().to_owned();
                    let pod = self.node.cri.run_pod(self.handler, &[]).await?;
                    let created = self.node.cri.create_container(&pod, &name, &[], &[]);
                    created.await?;
                    self.node.cri.remove_pod(&pod).await?;
                    self.node.wait_image(image, self.handler).await?;
                }
                ensure!(Instant::now() < deadline, "{} is not ready", image.name());
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn until_untainted(&self, server: &ApiServer, fault: Option<&Fault>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !server.taints(NODE).is_empty() && !is_refused(fault) {
            ensure!(Instant::now() < deadline, "the taint stays");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until both kinds are watched, and no request comes for a moment.
    async fn until_watched(&self, server: &ApiServer, fault: Option<&Fault>) -> Result<()> {
        let (deadline, mut before) = (Instant::now() + PATIENCE, 0);
        loop {
            let requests = server.requests().len();
            let are_watched = server.watches() == 2 || is_refused(fault);
            if requests == before && are_watched {
                return Ok(());
            }
            before = requests;
            ensure!(Instant::now() < deadline, "not watched");
            sleep(QUIET).await;
        }
    }

    /// Checks that the failure was said as often as it has to be.
    fn assert_said(&self, fault: Option<&Fault>) -> Result<()> {
        let log = &self.node.log;
        let what = [
            "watch at the API server failed",
            "startup taint cannot be removed",
        ];
        let said = what.iter().flat_map(|what| log.lines_with(what));
        let said: Vec<_> = said.filter(|line| line.contains("WARN")).collect();
        let expected = fault.map_or(0, Fault::lines);
        ensure!(said.len() == expected, "not {expected} lines: {said:#?}");
        let errors = log.lines_with(" ERROR ");
        ensure!(errors.is_empty(), "{errors:#?}");
        Ok(())
    }

    /// Starts the plugin again: it does not wait for the end of the pause after a refusal.
    async fn start_again(&mut self, server: &ApiServer, images: &[Image]) -> Result<()> {
        let (requests, log) = (server.requests().len(), self.node.log.from_now());
        self.plugin()?.stop().await?;
        self.plugin()?.restart()?;
        log.wait_for("watch at the API server begins what=pods", PATIENCE)
            .await?;
        log.wait_for(
            "watch at the API server begins what=runtimeclasses",
            PATIENCE,
        )
        .await?;
        crate::startup_taint::until_untainted(server).await?;
        ensure!(server.requests().len() > requests);
        self.until_ready(images, None).await
    }
}

fn is_refused(fault: Option<&Fault>) -> bool {
    fault.is_some_and(|fault| fault.mode == Mode::Status(403) && fault.has_occurred())
}

/// Returns the place of each request.
fn places(requests: &[String]) -> Result<Vec<Place>> {
    let kind = |request: &String| Kind::of(request).with_context(|| format!("unknown: {request}"));
    let kinds = requests.iter().map(kind).collect::<Result<Vec<_>>>()?;
    let before = |n: usize| kinds[..n].iter().filter(|kind| **kind == kinds[n]).count();
    Ok((0..kinds.len()).map(|n| (kinds[n], before(n))).collect())
}

async fn every_request(version: Version) -> Result<()> {
    let mut bench = Bench::start(version).await?;
    let places = bench.run(None).await?;
    let kinds: BTreeSet<_> = places.iter().map(|(kind, _)| *kind).collect();
    ensure!(kinds == PLUGIN.into_iter().collect(), "only {kinds:?}");
    let pairs = places
        .iter()
        .flat_map(|place| FAULTS.map(|mode| (*place, mode)));
    let pairs: Vec<_> = pairs.collect();
    println!("{} requests, {} faults", places.len(), pairs.len());
    for n in chosen(pairs.len(), SHARE)? {
        let (place, mode) = pairs[n];
        let (fault, began) = (Fault::new(place, mode), Instant::now());
        let case = || format!("{mode:?} in {place:?}");
        bench.run(Some(&fault)).await.with_context(case)?;
        println!("{}: {:?}", case(), began.elapsed());
        ensure!(fault.has_occurred(), "{}: no such request", case());
    }
    Ok(())
}

/// `doctor` has a finding for each fault but a delay, and changes nothing.
async fn in_doctor(version: Version) -> Result<()> {
    let mut bench = Bench::start(version).await?;
    let (server, _) = bench.server().await?;
    let config = bench.config(&server)?;
    let found = findings(&bench.node, &config)?;
    let is_tainted =
        |found: &[(String, String)]| found.iter().any(|(id, _)| id == "kubernetes-startup-taint");
    ensure!(found.len() == 1 && is_tainted(&found), "{found:?}");
    let places = places(&server.requests())?;
    let kinds: BTreeSet<_> = places.iter().map(|(kind, _)| *kind).collect();
    ensure!(kinds == DOCTOR.into_iter().collect(), "only {kinds:?}");
    let pairs = places
        .iter()
        .flat_map(|place| FAULTS.map(|mode| (*place, mode)));
    let pairs: Vec<_> = pairs.collect();
    println!("{} requests, {} faults", places.len(), pairs.len());
    let share = if is_complete() { 1 } else { 5 };
    for n in chosen(pairs.len(), share)? {
        let (place, mode) = pairs[n];
        let fault = Fault::new(place, mode);
        fault.put_into(&server);
        let found = findings(&bench.node, &config)?;
        let case = format!("{mode:?} in {place:?}: {found:?}");
        ensure!(fault.has_occurred(), "{case}: no such request");
        let ids = match mode {
            Mode::Delay(_) => &["kubernetes-startup-taint"][..],
            Mode::Status(403) => &["kubernetes-forbidden", "kubernetes-startup-taint"],
            _ => &["kubernetes-unreachable", "kubernetes-startup-taint"],
        };
        let is_known = found.iter().all(|(id, _)| ids.contains(&id.as_str()));
        ensure!(is_known && !found.is_empty(), "{case}");
        let is_named = found.iter().any(|(id, _)| id == ids[0]);
        ensure!(is_named, "{case}");
        ensure!(!server.taints(NODE).is_empty(), "{case}: the taint is gone");
        server.calm();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_plugin_on_2_1() -> Result<()> {
    every_request(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn in_the_plugin_on_1_7() -> Result<()> {
    every_request(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_doctor_on_2_1() -> Result<()> {
    in_doctor(Version::V2_1).await
}
