//! containerd takes calls and does not answer. Commands end with exit status 3, a plugin that works ends in time when it is
//! told to, and when containerd goes on, so does the node.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Version;
use tokio::time::Instant;

use crate::after_pull::image;
use crate::support::{ALL, DEFAULT_HOOKS, Node, PATIENCE, RESOLVED, handler};

/// The longest time of a command: some calls one after the other, each of which gives up.
const LONGEST_COMMAND: Duration = Duration::from_secs(60);

/// The longest time in which a plugin ends: that of its work to clean up, and some more.
const LONGEST_END: Duration = Duration::from_secs(10 + 3);

const UNREACHABLE: i32 = 3;

const LAYERS: usize = 5;
const IMAGES: usize = 4;

impl Node {
    /// Runs commands at the same time, and checks that each ends in time.
    async fn assert_commands_end(&self, commands: &[&[&str]]) -> Result<()> {
        let mut running = vec![];
        for words in commands {
            let mut command = self.command_of(words)?;
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            running.push((words, Instant::now(), command.spawn()?));
        }
        for (words, began, child) in running {
            let ended = tokio::task::spawn_blocking(|| child.wait_with_output());
            let output: Output = ended.await??;
            let took = began.elapsed();
            println!(
                "{words:?}: {took:?}, {}",
                String::from_utf8_lossy(&output.stderr)
            );
            ensure!(took < LONGEST_COMMAND, "{words:?} took {took:?}");
            ensure!(
                output.status.code() == Some(UNREACHABLE),
                "{words:?}: {output:?}"
            );
        }
        Ok(())
    }
}

async fn commands_and_the_plugin_end(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let images: Vec<_> = (0..IMAGES).map(|n| image(LAYERS, n)).collect();
    for image in &images {
        node.store.put_image(image).await?;
    }
    node.hooks = DEFAULT_HOOKS;
    node.serve(ALL).await?;
    // In the middle of its work.
    node.lab.pause()?;
    let name = images[0].name();
    let commands: [&[&str]; 3] = [
        &["check"],
        &["doctor"],
        &["ensure", name, "--snapshotter", handler],
    ];
    node.assert_commands_end(&commands).await?;
    let plugin = node.plugin.as_mut().context("serving")?;
    let began = Instant::now();
    plugin.stop().await?;
    let took = began.elapsed();
    println!("the plugin ended in {took:?}");
    ensure!(took < LONGEST_END, "the plugin ended only after {took:?}");
    // While containerd hangs, it connects and waits.
    plugin.restart()?;
    let log = node.log.from_now();
    node.lab.go_on()?;
    log.wait_for(RESOLVED, PATIENCE).await?;
    for image in &images {
        node.wait_image(image, handler).await?;
    }
    node.assert_nothing_left(handler).await?;
    node.pod(handler, name).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_the_plugin_end_on_2_1() -> Result<()> {
    commands_and_the_plugin_end(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_the_plugin_end_on_1_7() -> Result<()> {
    commands_and_the_plugin_end(Version::V1_7).await
}
