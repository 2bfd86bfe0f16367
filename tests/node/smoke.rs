//! The operator's smoke test, `tests/smoke/crictl.sh`, on a real node, with a replacement of `crictl` that
//! speaks CRI to it. With each result it leaves the node as it was.

use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use lab::{Log, Tap, Version};

use crate::guest_pull::{self, NYDUS};
use crate::support::{APP, Node, ON_DEMAND, PATIENCE, PROGRAM, handler};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/smoke/crictl.sh");

/// The shell that is `sh` on Debian. Other machines may have another `sh`.
const SHELL: &str = "/bin/dash";

/// The CRI calls of `create` and `runp`.
const CREATE: &str = "/runtime.v1.RuntimeService/CreateContainer";
const RUN_POD: &str = "/runtime.v1.RuntimeService/RunPodSandbox";
const PULL: &str = "/runtime.v1.ImageService/PullImage";

/// Builds the replacement of `crictl`: no other target of this test depends on it.
fn crictl() -> Result<&'static Path> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built);
    }
    let profile = Path::new(PROGRAM).parent().context("a directory")?;
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => anyhow::bail!("{PROGRAM} is in no profile's directory"),
    };
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut build = Command::new(cargo);
    // Like `make`, so that both share the build of the dependencies.
    build.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
    build.args(["--profile", name, "--target-dir"]);
    build.arg(profile.parent().context("a target directory")?);
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    ensure!(built.status.success(), "{built:?}");
    Ok(BUILT.get_or_init(|| profile.join("crictl")))
}

/// A run of the script, with its output so far.
struct Run {
    child: Child,
    output: Log,
}

impl Run {
    /// Sends SIGINT to the process group, as a terminal does on Ctrl-C.
    fn interrupt(&self) -> Result<()> {
        let group = format!("-{}", self.child.id());
        let sent = Command::new("kill")
            .args(["-s", "INT", "--", &group])
            .status()?;
        ensure!(sent.success(), "kill {group}");
        Ok(())
    }

    /// Returns the exit code and the whole output.
    async fn end(mut self) -> Result<(Option<i32>, String)> {
        let deadline = tokio::time::Instant::now() + 2 * PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status.code(), self.output.text()));
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "the script does not end: {}",
                self.output.text()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks that it ends with this exit code and these words in its last line; returns the output.
    async fn ends(self, code: i32, words: &str) -> Result<String> {
        let (found, output) = self.end().await?;
        let last = output.lines().last().unwrap_or_default();
        ensure!(
            found == Some(code) && last.contains(words),
            "{found:?}:\n{output}"
        );
        Ok(output)
    }
}

impl Node {
    /// Starts the script with these arguments, with all programs that it may call in PATH.
    fn smoke(&self, arguments: &[&str]) -> Result<Run> {
        let bin = self.lab.path("smoke");
        if !bin.exists() {
            std::fs::create_dir(&bin)?;
            symlink(crictl()?, bin.join("crictl"))?;
            symlink(PROGRAM, bin.join("nri-unpack"))?;
            symlink(self.lab.ctr_program(), bin.join("ctr"))?;
        }
        let path = format!("{}:/usr/bin:/bin", bin.display());
        self.smoke_on(&path, arguments)
    }

    fn smoke_on(&self, path: &str, arguments: &[&str]) -> Result<Run> {
        let config = self.lab.path("smoke.toml");
        std::fs::write(&config, self.config(""))?;
        let socket = self.tap.as_ref().map_or(self.lab.socket(), Tap::socket);
        let output = Log::new(self.lab.path("smoke.out")).from_now();
        let mut file = std::fs::File::options();
        let file = file.create(true).append(true).open(output.path())?;
        // The tests may run in the background of a shell, which ignores the signal; a script cannot undo that.
        let mut command = Command::new("/usr/bin/env");
        command.args(["--default-signal=INT", SHELL, SCRIPT]);
        command.arg("--config").arg(config);
        command.arg("--cgroup-parent").arg(self.lab.cgroup());
        command.arg("--runtime-endpoint").arg(socket);
        command.args(arguments).env("PATH", path).process_group(0);
        let child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Run { child, output })
    }

    /// Checks that no pod and no container exists, and that the image exists if `has_image` is true.
    async fn assert_as_before(&mut self, has_image: bool) -> Result<()> {
        let pods = self
            .cri
            .runtime
            .list_pod_sandbox(ListPodSandboxRequest::default());
        let pods = pods.await?.into_inner().items;
        ensure!(pods.is_empty(), "{pods:?}");
        let containers = ListContainersRequest::default();
        let containers = self.cri.runtime.list_containers(containers).await?;
        let containers = containers.into_inner().containers;
        ensure!(containers.is_empty(), "{containers:?}");
        let image = self.cri.image_status(APP).await?;
        ensure!(image.is_some() == has_image, "{image:?}");
        Ok(())
    }
}

async fn passes(mut node: Node) -> Result<()> {
    let version = node.lab.version();
    node.serve("").await?;
    let handler = handler(version);
    let output = node.smoke(&[handler, APP])?.ends(0, "PASS").await?;
    for words in [
        format!("image     {APP} is there: sha256:"),
        format!(" runs, of handler {handler}\n"),
        " was started: CONTAINER_RUNNING\n".to_owned(),
        format!("state     {APP} is ready in {handler}\n"),
        "labels    are on all snapshots that the container stands on: 5".to_owned(),
        "removed   pod ".to_owned(),
    ] {
        ensure!(output.contains(&words), "{words}:\n{output}");
    }
    ensure!(!output.contains("pulled "), "{output}");
    node.assert_as_before(true).await?;

    node.cri.remove_image(APP).await?;
    let output = node.smoke(&[handler, APP])?.ends(0, "PASS").await?;
    ensure!(
        output.contains(&format!("pulled    {APP}: sha256:")),
        "{output}"
    );
    ensure!(output.contains("removed   image sha256:"), "{output}");
    node.assert_as_before(false).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_on_2_1() -> Result<()> {
    passes(Node::start(Version::V2_1).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_on_1_7() -> Result<()> {
    passes(Node::start(Version::V1_7).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_with_annotations_on_2_1() -> Result<()> {
    passes(Node::start_annotated(Version::V2_1).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_with_annotations_on_1_7() -> Result<()> {
    passes(Node::start_annotated(Version::V1_7).await?).await
}

/// containerd sets no labels when it unpacks by itself.
async fn fails_without_the_plugin(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let reason = format!(
        "FAIL: {APP} is unlabelled in {handler}: 5 of 5 layers lack labels; does the plugin run? nri-unpack doctor"
    );
    node.smoke(&["--wait", "1", handler, APP])?
        .ends(1, &reason)
        .await?;
    node.assert_as_before(true).await?;
    node.cri.remove_image(APP).await?;
    node.smoke(&["--wait", "0", handler, APP])?
        .ends(1, &reason)
        .await?;
    node.assert_as_before(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn fails_without_the_plugin_on_2_1() -> Result<()> {
    fails_without_the_plugin(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn fails_without_the_plugin_on_1_7() -> Result<()> {
    fails_without_the_plugin(Version::V1_7).await
}

/// The snapshotter does guest pulls, and there is no guest: the container is created on a chain that was made
/// ahead, or its hook moves it onto one.
async fn passes_where_the_guest_pulls(version: Version) -> Result<()> {
    let mut node = guest_pull::start(version).await?;
    node.serve(ON_DEMAND).await?;
    let output = node
        .smoke(&["--no-start", NYDUS, APP])?
        .ends(0, "PASS")
        .await?;
    ensure!(output.contains(" is created\n"), "{output}");
    ensure!(
        output.contains("labels    are on all snapshots that the container stands on: 1"),
        "{output}"
    );
    ensure!(
        node.log.lines_with("container moved").len() == 1,
        "{output}"
    );
    node.assert_as_before(true).await?;

    let plugin = node.plugin.as_mut().context("serving")?;
    plugin.stop().await?;
    node.serve("").await?;
    node.cri.remove_image(APP).await?;
    let output = node
        .smoke(&["--no-start", NYDUS, APP])?
        .ends(0, "PASS")
        .await?;
    ensure!(output.contains("removed   image sha256:"), "{output}");
    node.assert_as_before(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_where_the_guest_pulls_on_2_1() -> Result<()> {
    passes_where_the_guest_pulls(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_where_the_guest_pulls_on_1_7() -> Result<()> {
    passes_where_the_guest_pulls(Version::V1_7).await
}

/// The script retries a creation that the plugin rejects, as the kubelet does.
#[tokio::test(flavor = "multi_thread")]
async fn tries_again() -> Result<()> {
    let mut node = guest_pull::start(Version::V2_1).await?;
    node.serve(&format!("swap = false\n{ON_DEMAND}")).await?;
    let run = node.smoke(&["--no-start", NYDUS, APP])?;
    let output = run.ends(0, "PASS").await?;
    let waiting = "waiting   the image is not ready in snapshotter nydus: ";
    ensure!(output.contains(waiting), "{output}");
    node.assert_as_before(true).await
}

/// A pod that is kept can be removed with the printed command.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_what_it_is_told_to() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.serve("").await?;
    let arguments = ["--pull", "--keep", "--no-labels", "erofs", APP];
    let output = node.smoke(&arguments)?.ends(0, "PASS").await?;
    ensure!(
        output.contains("pulled ") && !output.contains("labels ") && !output.contains("removed "),
        "{output}"
    );
    let kept = output.split("crictl rmp -f ").nth(1);
    let id = kept.and_then(|rest| rest.lines().next());
    let id = id.context("a pod that is kept")?.to_owned();
    let config = Default::default();
    node.cri.remove_pod(&lab::Pod { id, config }).await?;
    node.assert_as_before(true).await
}

/// If the test cannot run, the error names the cause and the remedy.
#[tokio::test(flavor = "multi_thread")]
async fn says_what_is_wrong() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let gone = "registry.test/lab/gone:1";
    for (arguments, code, words) in [
        (
            &["gone", APP][..],
            1,
            "FAIL: containerd has no runtime handler gone; it has erofs native runc",
        ),
        (
            &["erofs", gone],
            1,
            "FAIL: cannot pull registry.test/lab/gone:1: pulling image: rpc error: code = NotFound",
        ),
        (
            &["--no-pull", "erofs", gone],
            1,
            "FAIL: the image registry.test/lab/gone:1 is not there",
        ),
        (
            &["--snapshotter", "gone", "erofs", APP],
            1,
            "containerd has no snapshotter gone; it has",
        ),
        (
            &["--wait", "0", "runc", APP],
            1,
            "overlayfs is the default snapshotter",
        ),
        (
            &["--program", "/gone/nri-unpack", "erofs", APP],
            2,
            "FAIL: /gone/nri-unpack is not on PATH",
        ),
        (&["erofs"], 2, "FAIL: give a runtime handler and an image"),
        (
            &["--wait", "x", "erofs", APP],
            2,
            "FAIL: --wait takes seconds",
        ),
        (
            &["--frobnicate", "erofs", APP],
            2,
            "FAIL: there is no option --frobnicate",
        ),
        (&["erofs", "a\"b"], 2, "is not the name of an image"),
    ] {
        node.smoke(arguments)?.ends(code, words).await?;
        node.assert_as_before(true).await?;
    }
    let empty = node.lab.path("empty").display().to_string();
    let output = "FAIL: crictl is not on PATH: install cri-tools";
    node.smoke_on(&empty, &["erofs", APP])?
        .ends(2, output)
        .await?;

    node.lab.kill();
    let output = "FAIL: crictl does not reach containerd: validate service connection";
    node.smoke(&["erofs", APP])?.ends(1, output).await?;
    Ok(())
}

/// Ctrl-C in each step: before containerd gets the call, while containerd works on it, and while the script
/// waits.
#[tokio::test(flavor = "multi_thread")]
async fn cleans_up_on_ctrl_c() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.tap = Some(Tap::start(&node.lab)?);
    for call in [PULL, RUN_POD, CREATE] {
        node.cri.remove_image(APP).await?;
        let mut held = node
            .tap
            .as_ref()
            .context("tapped")?
            .hold(move |c| c.path == call);
        let run = node.smoke(&["erofs", APP])?;
        tokio::time::timeout(PATIENCE, held.came()).await??;
        run.interrupt()?;
        run.ends(1, "FAIL: interrupted").await?;
        node.assert_as_before(false).await?;
        node.cri.pull_image(APP).await?;
    }
    node.tap = None;
    for (line, delay) in [
        ("image ", 100),
        ("image ", 250),
        ("pod ", 50),
        ("pod ", 500),
    ] {
        let run = node.smoke(&["--wait", "60", "erofs", APP])?;
        run.output.wait_for(line, PATIENCE).await?;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        run.interrupt()?;
        run.ends(1, "FAIL: interrupted").await?;
        node.assert_as_before(true).await?;
    }
    Ok(())
}

/// A kubelet removes pods that it does not know: the script creates another pod.
#[tokio::test(flavor = "multi_thread")]
async fn outlives_a_kubelet() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.serve("").await?;
    node.tap = Some(Tap::start(&node.lab)?);
    let mut held = node
        .tap
        .as_ref()
        .context("tapped")?
        .hold(|c| c.path == CREATE);
    let run = node.smoke(&["erofs", APP])?;
    tokio::time::timeout(PATIENCE, held.came()).await??;
    let pods = node
        .cri
        .runtime
        .list_pod_sandbox(ListPodSandboxRequest::default());
    for pod in pods.await?.into_inner().items {
        let (id, config) = (pod.id, Default::default());
        node.cri.remove_pod(&lab::Pod { id, config }).await?;
    }
    held.release();
    let output = run.ends(0, "PASS").await?;
    ensure!(
        output.contains("again     the pod was removed from outside"),
        "{output}"
    );
    node.assert_as_before(true).await
}

/// An image that existed under another name stays, with both names.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_an_image_that_was_there_under_another_name() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.serve("").await?;
    let mut other = node.image.clone();
    other.names = vec!["registry.test/lab/other:1".to_owned()];
    node.registry.push(&other).await?;
    let output = node
        .smoke(&["erofs", other.name()])?
        .ends(0, "PASS")
        .await?;
    ensure!(
        output.contains("it was there before, under another name"),
        "{output}"
    );
    node.assert_as_before(true).await
}

#[test]
fn is_posix() -> Result<()> {
    for check in [
        Command::new(SHELL).args(["-n", SCRIPT]),
        Command::new("shellcheck").args(["--shell", "sh", SCRIPT]),
    ] {
        let done = check
            .output()
            .context("is shellcheck there? `make deps` installs it")?;
        ensure!(done.status.success(), "{done:?}");
    }
    Ok(())
}
