//! A real stargz snapshotter. Images that it can mount lazily are mounted before the first pod, on any registry
//! port. Images that it would have to unpack are left until a pod asks for them.
//!
//! Building the snapshotter takes two minutes, so `make check-stargz` runs these tests, and `make test` does
//! not.

use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Options, Registry, Remote, Version, images};
use tokio::time::sleep;

use crate::support::{DEFAULT_HOOKS, Node, PATIENCE};

const STARGZ: &str = "stargz";

/// The number of layers that only one image has, on top of the shared layers.
const OWN: usize = 2;
const SHARED: usize = 2;

async fn lazily(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Stargz];
    let registry = Registry::start_by_address().await?;
    let before = images::estargz(&registry.image("lab/before:1"), OWN)?;
    let mut node = Node::start_on(version, options, registry, before).await?;
    // Nothing on the node names the port of this image.
    let other = Registry::start_by_address().await?;
    node.lab.use_registry(&other)?;
    node.hooks = DEFAULT_HOOKS;
    node.serve("").await?;
    node.wait_named_in(STARGZ, &node.image, 0).await?;
    node.wait_lazy(1).await?;

    let pod = node.cri.run_pod(STARGZ, &[]).await?;
    let in_the_pull = images::estargz(&node.registry.image("lab/second:1"), OWN)?;
    let first_of_its_registry = images::estargz(&other.image("lab/third:1"), OWN)?;
    node.registry.push(&in_the_pull).await?;
    other.push(&first_of_its_registry).await?;
    for (n, image) in [in_the_pull, first_of_its_registry].into_iter().enumerate() {
        node.image = image;
        node.cri.pull_image(node.image.name()).await?;
        node.wait_named_in(STARGZ, &node.image, SHARED).await?;
        node.wait_lazy(n + 2).await?;
        ensure!(node.state_of(&node.image, STARGZ).await? == "ready");
        let began = Instant::now();
        let name = node.image.name().to_owned();
        let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
        println!("{version:?}: {name}: created in {:?}", began.elapsed());
        node.cri.start_container(&container).await?;
        let read = node.cri.cat(&container, "/data/1").await?;
        ensure!(read == format!("1 of {name}\n"), "{read}");
    }

    // An image that is no stargz image waits for a pod.
    let plain = images::own_layers(&node.registry.image("lab/plain:1"), OWN)?;
    node.registry.push(&plain).await?;
    let log = node.log.from_now();
    node.cri.pull_image(plain.name()).await?;
    let left = format!("the snapshotter needs its content image={} ", plain.name());
    log.wait_for(&left, PATIENCE).await?;
    ensure!(node.store.chain(STARGZ, &plain).await?.is_empty());
    let container = node
        .cri
        .create_container(&pod, plain.name(), &[], &[])
        .await?;
    node.cri.start_container(&container).await?;
    node.image = plain;
    node.wait_labelled(STARGZ).await?;
    node.wait_lazy(3).await?;
    node.assert_nothing_left(STARGZ).await
}

/// A part of the time that a hook of this test waits.
const SOON: Duration = Duration::from_secs(1);

/// A registry that takes connections and never answers.
struct Silent {
    port: u16,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Silent {
    fn listen() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let silent = Self {
            port: listener.local_addr()?.port(),
            connections: Arc::default(),
        };
        let connections = silent.connections.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                connections.lock().unwrap().push(connection);
            }
        });
        Ok(silent)
    }

    fn image(&self, path: &str) -> String {
        format!("127.0.0.1:{}/{path}", self.port)
    }
}

/// containerd unpacks the image itself while the snapshotter waits for the registry: the first creation gets the labels,
/// and no later hook waits for that registry.
async fn a_silent_registry(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Stargz];
    let registry = Registry::start_by_address().await?;
    let before = images::estargz(&registry.image("lab/before:1"), OWN)?;
    let mut node = Node::start_on(version, options, registry, before).await?;
    node.enlarge_database().await?;
    let silent = Silent::listen()?;
    node.image = images::estargz(&silent.image("lab/first:1"), OWN)?;
    let other = images::estargz(&silent.image("lab/second:1"), OWN)?;
    node.lab.import(&node.image).await?;
    node.lab.import(&other).await?;
    node.hooks = "[hooks]\nwait = \"1500ms\"";
    node.serve("[snapshotters.stargz]\neager = \"none\"\n")
        .await?;

    let name = node.image.name().to_owned();
    let annotation = [("nri-unpack/images", name.as_str())];
    let pod = node.cri.run_pod(STARGZ, &annotation).await?;
    let asked = silent.connections.lock().unwrap().len();
    ensure!(asked > 0, "the snapshotter did not ask the registry");
    for n in ["first", "second"] {
        let began = Instant::now();
        let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
        let took = began.elapsed();
        println!("{version:?}: {n} creation: {took:?}");
        ensure!(took < SOON, "the {n} creation took {took:?}");
        node.assert_labelled(STARGZ).await?;
        node.cri.start_container(&container).await?;
        let read = node.cri.cat(&container, "/data/1").await?;
        ensure!(read == format!("1 of {name}\n"), "{read}");
    }
    ensure!(node.state_of(&node.image, STARGZ).await? == "ready");
    ensure!(node.log.lines_with("registry does not answer").len() == 1);

    let annotation = [("nri-unpack/images", other.name())];
    let began = Instant::now();
    let pod = node.cri.run_pod(STARGZ, &annotation).await?;
    println!("{version:?}: pod of another image: {:?}", began.elapsed());
    let lines = node.log.lines_with("hook=RunPodSandbox");
    let took = lines.iter().filter_map(|line| {
        let took = line.split_once("took_ms=")?.1.split(' ').next()?;
        Some((line.contains(other.name()), took.parse::<f64>().ok()?))
    });
    let took: Vec<_> = took.collect();
    let [(false, first), (true, second)] = took[..] else {
        anyhow::bail!("{lines:#?}");
    };
    println!("{version:?}: the hooks took {first} ms and {second} ms");
    let soon = SOON.as_secs_f64() * 1000.0;
    ensure!(first > soon && second < soon, "{lines:#?}");
    // The work on it goes on until containerd has unpacked it.
    let name = other.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    node.wait_named_in(STARGZ, &other, SHARED).await?;
    node.assert_nothing_left(STARGZ).await
}

impl Node {
    /// Gives the snapshotter's database the size that it has after some weeks. While it waits for a registry, the
    /// snapshotter holds a read transaction, and a database that has to grow waits for the end of all of them.
    async fn enlarge_database(&self) -> Result<()> {
        let stargz = self.lab.remote(Remote::Stargz);
        stargz.kill();
        let database = self.lab.path("stargz/snapshotter/metadata.db");
        let database = std::fs::File::options().write(true).open(database)?;
        database.set_len(32 << 20)?;
        stargz.restart().await?;
        while self.store.snapshots(STARGZ).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until the layers of this many images are mounted from a registry.
    async fn wait_lazy(&self, images: usize) -> Result<()> {
        self.wait_lazy_mounts(SHARED + images * OWN).await
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles a stargz snapshotter, which takes two minutes: make check-stargz"]
async fn lazily_on_2_1() -> Result<()> {
    lazily(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles a stargz snapshotter, which takes two minutes: make check-stargz"]
async fn lazily_on_1_7() -> Result<()> {
    lazily(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles a stargz snapshotter, which takes two minutes: make check-stargz"]
async fn a_silent_registry_on_2_1() -> Result<()> {
    a_silent_registry(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles a stargz snapshotter, which takes two minutes: make check-stargz"]
async fn a_silent_registry_on_1_7() -> Result<()> {
    a_silent_registry(Version::V1_7).await
}
