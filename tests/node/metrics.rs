//! The metrics of the plugin on a real node. The dashboard and the alerts name only existing metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{Plugin, Remote, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, Node, PATIENCE, PROGRAM, handler};

const PREFIX: &str = "nri_unpack_";

/// Returns the status, the header and the body of a response.
pub(crate) async fn get<S>(mut stream: S, path: &str, accept: &str) -> Result<(u16, String, String)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: node\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, head.to_owned(), body.to_owned()))
}

/// Returns the samples by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    lines.filter_map(sample).collect()
}

/// Returns the sum of the samples whose name and labels contain these words.
fn sum(samples: &BTreeMap<String, f64>, words: &[&str]) -> f64 {
    let meant = samples
        .iter()
        .filter(|(name, _)| words.iter().all(|word| name.contains(word)));
    meant.map(|(_, value)| value).sum()
}

/// Returns a port that is currently free.
pub(crate) async fn free_port() -> Result<(TcpListener, String)> {
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let address = taken.local_addr()?.to_string();
    Ok((taken, address))
}

impl Node {
    async fn wait_status(&self, socket: &Path, path: &str, expected: u16) -> Result<String> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = match UnixStream::connect(socket).await {
                Ok(stream) => get(stream, path, "*/*").await,
                Err(e) => Err(e.into()),
            };
            match answer {
                Ok((status, _, body)) if status == expected => return Ok(body),
                _ if tokio::time::Instant::now() < deadline => {}
                answer => anyhow::bail!("{path}: {answer:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

async fn metrics_are_counted(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let socket = node.lab.socket_path("metrics.sock")?;
    node.serve(&format!(
        "{ALL}[metrics]\nlisten = \"unix:{}\"\n",
        socket.display()
    ))
    .await?;
    ensure!(node.wait_status(&socket, "/livez", 200).await? == "alive\n");
    node.wait_status(&socket, "/readyz", 200).await?;
    node.wait_status(&socket, "/elsewhere", 404).await?;
    node.wait_labelled(handler).await?;
    node.wait_reconciled(handler).await?;

    let pod = node.cri.run_pod(handler, &[]).await?;
    let name = node.image.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    let accept = "application/openmetrics-text; version=1.0.0";
    let (status, head, text) = get(UnixStream::connect(&socket).await?, "/metrics", accept).await?;
    ensure!(
        status == 200 && head.contains("application/openmetrics-text"),
        "{head}"
    );
    ensure!(text.ends_with("# EOF\n"), "{text}");
    let counts = samples(&text);
    for (words, least) in [
        (
            &[
                "hook_duration_seconds_count",
                "\"CreateContainer\"",
                "\"ready\"",
            ][..],
            1.0,
        ),
        (&["hook_duration_seconds_count", "\"RunPodSandbox\""], 1.0),
        (
            &["ensures_total", "\"reconcile\"", handler, "\"unpacked\""],
            1.0,
        ),
        (&["unpack_duration_seconds_count", handler], 1.0),
        (&["unpacked_bytes_total", handler], 100.0),
        (&["images", handler, "\"ready\""], 1.0),
        (&["last_reconcile_timestamp_seconds"], 1.7e9),
        (&["sessions_total"], 1.0),
        (&["registered"], 1.0),
        (&["build_info"], 1.0),
    ] {
        let sum = sum(&counts, words);
        ensure!(sum >= least, "{words:?}: {sum}\n{text}");
    }
    ensure!(!text.contains(&name), "an image is a label: {text}");

    node.lab.kill();
    let why = node.wait_status(&socket, "/readyz", 503).await?;
    ensure!(
        why.contains("not registered") || why.contains("does not answer"),
        "{why}"
    );
    node.wait_status(&socket, "/livez", 200).await?;
    node.restart_containerd().await?;
    node.wait_status(&socket, "/readyz", 200).await?;
    // The plugin did not remove its socket.
    let plugin = node.plugin.as_mut().context("serving")?;
    plugin.kill();
    plugin.restart()?;
    node.wait_status(&socket, "/readyz", 200).await?;
    Ok(())
}

impl Node {
    /// Returns the time of the last reconcile in a snapshotter.
    async fn last_reconcile(&self, socket: &Path, snapshotter: &str) -> Result<f64> {
        let (_, _, text) = get(UnixStream::connect(socket).await?, "/metrics", "*/*").await?;
        let label = format!("snapshotter=\"{snapshotter}\"");
        let name = "last_reconcile_timestamp_seconds";
        let samples = samples(&text);
        let mut samples = samples.iter();
        let found = samples.find(|(sample, _)| sample.contains(name) && sample.contains(&label));
        // None while its worker has not begun.
        Ok(found.map_or(0.0, |(_, time)| *time))
    }

    async fn wait_reconcile_after(
        &self,
        socket: &Path,
        snapshotter: &str,
        before: f64,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.last_reconcile(socket, snapshotter).await? <= before {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "{snapshotter} is not reconciled"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Reloads the configuration, and waits until a reconcile of the snapshotter has finished.
    async fn reconcile_again(&self, config: &str, snapshotter: &str) -> Result<()> {
        let log = self.log.from_now();
        let plugin = self.plugin.as_ref().context("serving")?;
        plugin.reload(&self.config(config))?;
        let finished = format!("reconcile finished snapshotter={snapshotter} ");
        log.wait_for(&finished, PATIENCE).await?;
        Ok(())
    }
}

/// A snapshotter that does not answer has no new reconcile, and the others do.
async fn a_reconcile_belongs_to_its_snapshotter(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let handler = handler(version);
    let socket = node.lab.socket_path("metrics.sock")?;
    let listen = format!("[metrics]\nlisten = \"unix:{}\"\n", socket.display());
    node.serve(&listen).await?;
    let both = [NYDUS, handler];
    for snapshotter in both {
        node.wait_reconcile_after(&socket, snapshotter, 0.0).await?;
    }
    let before = node.last_reconcile(&socket, handler).await?;
    node.lab.remote(Remote::Nydus).pause()?;
    // A reconcile may have begun before.
    node.reconcile_again(&listen, NYDUS).await?;
    let silent = node.last_reconcile(&socket, NYDUS).await?;
    node.reconcile_again(&listen, NYDUS).await?;
    node.wait_reconcile_after(&socket, handler, before).await?;
    node.wait_for_lines("snapshotter does not answer", 1)
        .await?;
    let after = node.last_reconcile(&socket, NYDUS).await?;
    #[expect(clippy::float_cmp, reason = "the value has to be the same")]
    let is_same = after == silent;
    ensure!(is_same, "nydus: {silent} became {after}");
    node.lab.remote(Remote::Nydus).go_on()?;
    node.wait_reconcile_after(&socket, NYDUS, silent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconcile_belongs_to_its_snapshotter_on_2_1() -> Result<()> {
    a_reconcile_belongs_to_its_snapshotter(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_counted_on_2_1() -> Result<()> {
    metrics_are_counted(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_counted_on_1_7() -> Result<()> {
    metrics_are_counted(Version::V1_7).await
}

/// Forwards data between the plugin and the NRI socket. Ends each session when the runtime sends `Synchronize`,
/// after the plugin was configured.
async fn end_sessions_at_synchronize(listener: UnixListener, nri: PathBuf) -> Result<()> {
    loop {
        let (mut plugin, _) = listener.accept().await?;
        let mut runtime = UnixStream::connect(&nri).await?;
        let (mut from_plugin, mut to_plugin) = plugin.split();
        let (mut from_runtime, mut to_runtime) = runtime.split();
        let there = tokio::io::copy(&mut from_plugin, &mut to_runtime);
        let back = async {
            let mut piece = vec![0; 64 << 10];
            loop {
                let count = from_runtime.read(&mut piece).await?;
                let came = &piece[..count];
                if count == 0 || came.windows(11).any(|word| word == b"Synchronize") {
                    return std::io::Result::Ok(());
                }
                to_plugin.write_all(came).await?;
            }
        };
        tokio::select! {
            _ = there => {}
            _ = back => {}
        }
    }
}

/// `/readyz` fails for a session that ends after `Configure` and before `Synchronize`.
async fn readyz_fails_before_synchronize(version: Version) -> Result<()> {
    let node = Node::start(version).await?;
    let between = node.lab.socket_path("between.sock")?;
    let listener = UnixListener::bind(&between)?;
    let nri = node.lab.nri_socket().to_owned();
    let ends = tokio::spawn(end_sessions_at_synchronize(listener, nri.clone()));
    let socket = node.lab.socket_path("metrics.sock")?;
    let listen = format!("[metrics]\nlisten = \"unix:{}\"\n", socket.display());
    let config = node.config(&listen);
    let config = config.replace(&format!("{nri:?}"), &format!("{between:?}"));
    let plugin = Plugin::start(&node.lab, PROGRAM, &config)?;
    plugin.log().wait_for("registered", PATIENCE).await?;
    plugin.log().wait_for("trying again", PATIENCE).await?;
    let why = node.wait_status(&socket, "/readyz", 503).await?;
    ensure!(why.contains("not registered"), "{why}");
    ensure!(!ends.is_finished(), "{ends:?}");

    ends.abort();
    let _ = ends.await;
    std::fs::remove_file(&between)?;
    std::os::unix::fs::symlink(&nri, &between)?;
    node.wait_status(&socket, "/readyz", 200).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_fails_before_synchronize_on_2_1() -> Result<()> {
    readyz_fails_before_synchronize(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_fails_before_synchronize_on_1_7() -> Result<()> {
    readyz_fails_before_synchronize(Version::V1_7).await
}

/// Returns the names of metrics in an example.
fn metric_names(text: &str) -> BTreeSet<String> {
    let parts = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = parts.filter(|part| part.starts_with(PREFIX));
    names.map(str::to_owned).collect()
}

/// The text format, at an address that another process uses at first.
#[tokio::test(flavor = "multi_thread")]
async fn examples_name_existing_metrics() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let (taken, address) = free_port().await?;
    node.serve(&format!("{ALL}[metrics]\nlisten = \"{address}\"\n"))
        .await?;
    node.log
        .wait_for("metrics cannot be served; trying again", PATIENCE)
        .await?;
    drop(taken);
    node.log.wait_for("metrics are served", PATIENCE).await?;
    node.wait_labelled("erofs").await?;
    node.wait_reconciled("erofs").await?;
    let pod = node.cri.run_pod("erofs", &[]).await?;
    let name = node.image.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;

    let (_, head, text) = get(TcpStream::connect(&address).await?, "/metrics", "*/*").await?;
    ensure!(head.contains("text/plain; version=0.0.4"), "{head}");
    let there: BTreeSet<_> = samples(&text)
        .into_keys()
        .map(|name| name.split('{').next().unwrap_or_default().to_owned())
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for example in ["grafana/nri-unpack.json", "prometheus/alerts.yaml"] {
        let example = std::fs::read_to_string(root.join(example))?;
        let names = metric_names(&example);
        ensure!(!names.is_empty(), "{example}");
        let unknown: Vec<_> = names.difference(&there).collect();
        ensure!(unknown.is_empty(), "{unknown:?}\n{text}");
    }
    let dashboard = std::fs::read_to_string(root.join("grafana/nri-unpack.json"))?;
    serde_json::from_str::<serde_json::Value>(&dashboard)?;
    Ok(())
}
