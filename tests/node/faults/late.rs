//! containerd is slower than the deadline of a call: the call ends with an error that says so, and containerd serves it
//! later. What was begun is removed, and the next command makes the image ready.
//!
//! The deadlines of minutes and hours are not waited for: [`given_up`] ends a call as its deadline would, and containerd
//! serves it a second later, when the command has ended. [`beyond_ten_seconds`] waits for the real deadline of metadata. That
//! each call has its deadline, also if its answer has begun, is tested with the clock of a unit test
//! (`src/containerd/grpc/deadline/tests.rs`).

use std::collections::BTreeSet;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Fault, Tap, Version};

use super::{Before, Bench, LONGEST, chosen};
use crate::concurrency::of_its_own;
use crate::guest_pull::NYDUS;
use crate::support::{Node, handler};

/// Longer than a command goes on after it was given up.
const LATER: Duration = Duration::from_secs(1);

/// The deadline of a call for metadata, and a delay that is longer.
const DEADLINE: Duration = Duration::from_secs(10);
const TOO_LONG: Duration = Duration::from_millis(10_500);

/// The methods whose deadline is an hour, and that of the stream of events, which has none.
const OTHERS: [&str; 6] = ["Prepare", "View", "Commit", "Apply", "Write", "Subscribe"];

/// The calls without which a command goes on: the sweep of what others have left, the end of its own lease, and the version,
/// by which some labels are chosen.
const GOES_ON: [&str; 3] = ["Leases/List", "Leases/Delete", "Version/Version"];

/// One of so many calls is given up in a short run.
const SHARE: usize = 9;

/// Whether the command's text says that a call took too long.
fn says_so(output: &Output) -> bool {
    let printed = [&output.stdout[..], &output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).to_lowercase();
    [
        "timeout expired",
        "operation was canceled",
        "too slow",
        "in time",
    ]
    .iter()
    .any(|words| printed.contains(words))
}

impl Bench {
    /// Checks the end of a command whose call took too long, and that the next one makes the image ready.
    async fn assert_given_up(&mut self, output: &Output) -> Result<()> {
        let code = output.status.code();
        ensure!(matches!(code, Some(0 | 1 | 3)), "{output:?}");
        self.tap()?.until_served().await;
        // Removes also a lease that was created when the command had ended.
        self.assert_ready().await?;
        self.node.store.collect_garbage().await?;
        self.assert_ready().await
    }
}

/// Each call of an `ensure` is given up, and served later.
async fn given_up(version: Version, snapshotter: &'static str, before: Before) -> Result<()> {
    let mut bench = Bench::start(version, snapshotter, before).await?;
    bench.reset().await?;
    let earlier = bench.tap()?.calls().len();
    bench.assert_ready().await?;
    let made: Vec<_> = bench.tap()?.calls().split_off(earlier);
    println!("{} calls", made.len());
    for call in chosen(made.len(), SHARE)? {
        bench.reset().await?;
        bench.tap()?.fail(call, Fault::GivenUp(LATER));
        let began = Instant::now();
        let output = bench.ensure()?;
        let case = format!("call {call}, {}: {:?}", made[call].path, began.elapsed());
        println!("{case}: {:?}", output.status.code());
        ensure!(bench.tap()?.heal(), "{case}: the command made fewer calls");
        ensure!(began.elapsed() < LONGEST, "{case}");
        bench.assert_given_up(&output).await.context(case)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpack_on_2_1() -> Result<()> {
    given_up(Version::V2_1, handler(Version::V2_1), Before::Missing).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpack_on_1_7() -> Result<()> {
    given_up(Version::V1_7, handler(Version::V1_7), Before::Missing).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an unpack is tested in each run"]
async fn a_rebuild_on_2_1() -> Result<()> {
    given_up(Version::V2_1, handler(Version::V2_1), Before::Unpacked).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an unpack is tested in each run"]
async fn a_pull_on_2_1() -> Result<()> {
    given_up(Version::V2_1, handler(Version::V2_1), Before::Pulled).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an unpack is tested in each run"]
async fn a_replacement_on_1_7() -> Result<()> {
    given_up(Version::V1_7, NYDUS, Before::Unlabelled).await
}

/// One call of each kind for metadata takes longer than its deadline. All commands run at the same time.
async fn beyond_ten_seconds(version: Version) -> Result<()> {
    let snapshotter = handler(version);
    let mut node = Node::start(version).await?;
    let tap = Tap::start_as(&node.lab, "clean")?;
    node.tap = Some(tap);
    let first = of_its_own("clean", 1);
    node.store.put_image(&first).await?;
    node.ensure_ready(&first, snapshotter)?;
    let tap = node.tap.as_ref().context("no tap")?;
    let paths = tap.calls().into_iter().map(|call| call.path);
    let paths: BTreeSet<_> = paths
        .filter(|path| !OTHERS.iter().any(|name| path.ends_with(name)))
        .collect();
    ensure!(paths.len() > 6, "{paths:?}");
    let mut running = vec![];
    for (n, path) in paths.iter().enumerate() {
        let image = of_its_own(&format!("slow-{n}"), 1);
        node.store.put_image(&image).await?;
        let tap = Tap::start_as(&node.lab, &format!("tap-{n}"))?;
        let slow = path.clone();
        tap.fail_when(move |call| call.path == slow, Fault::Delay(TOO_LONG));
        node.tap = Some(tap);
        let words = ["ensure", image.name(), "--snapshotter", snapshotter];
        let mut command = node.command_of(&words)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        running.push((path, image, node.tap.take(), Instant::now(), child));
    }
    for (path, image, tap, began, child) in running {
        let ended = tokio::task::spawn_blocking(|| child.wait_with_output());
        let output = ended.await??;
        let took = began.elapsed();
        println!("{path}: {took:?}, {:?}", output.status.code());
        let case = || format!("{path}: {took:?}, {output:?}");
        ensure!(tap.context("no tap")?.heal(), "{}: never called", case());
        ensure!((DEADLINE..LONGEST).contains(&took), "{}", case());
        let goes_on = GOES_ON.iter().any(|name| path.ends_with(name));
        ensure!(says_so(&output) || goes_on, "{}", case());
        node.ensure_ready(&image, snapshotter).with_context(case)?;
    }
    node.nothing_left(snapshotter).await
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_ten_seconds_on_2_1() -> Result<()> {
    beyond_ten_seconds(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn beyond_ten_seconds_on_1_7() -> Result<()> {
    beyond_ten_seconds(Version::V1_7).await
}
