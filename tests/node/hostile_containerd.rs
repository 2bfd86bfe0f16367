//! A containerd that answers with nonsense, or without end: commands end with an error, and the plugin goes on, in
//! little memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::join_all;
use lab::{Nonsense, NonsenseServer, Plugin, Version};

use crate::memory::Memory;
use crate::support::{APP, DEFAULT_HOOKS, Node, program};

const ALL: [Nonsense; 9] = [
    Nonsense::Http1,
    Nonsense::Garbage,
    Nonsense::Huge,
    Nonsense::Empty,
    Nonsense::EndlessEmpty,
    Nonsense::EndlessLists,
    Nonsense::ManyElements,
    Nonsense::ManyEntries(2),
    Nonsense::ManyEntries(6),
];

/// Longer than a command takes: some calls, each with a deadline of ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The limit of the plugin's memory, in KiB. At rest it takes some ten MiB.
const MOST_KIB: u64 = 100 << 10;

/// As many messages of an endless answer as the plugin takes at least before it is looked at.
const MANY: u64 = 2_000_000;

/// As many answers, or refused connections, as show that the plugin works.
const FEW: u64 = 5;

/// Writes the configuration of a node in this directory. Returns its file.
fn config(dir: &Path) -> Result<PathBuf> {
    let config = dir.join("config.toml");
    let text = format!(
        "[nri]\nsocket = {:?}\n[containerd]\nsocket = {:?}\nconfig = {:?}\n",
        dir.join("nri.sock"),
        dir.join("containerd.sock"),
        dir.join("containerd.toml")
    );
    std::fs::write(&config, text)?;
    Ok(config)
}

fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).arg("--config").arg(config);
    // As its unit does.
    command.env("MALLOC_ARENA_MAX", "1").stdin(Stdio::null());
    command
}

/// Waits for the end of a process, and kills it if it does not end. Returns its exit status and its peak.
pub(crate) async fn ended(mut command: Command) -> Result<(Option<i32>, u64)> {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let began = Instant::now();
    let mut peak = 0;
    loop {
        // It fails in the moment between the end of the process and the wait for it.
        peak = Memory::of(child.id()).map_or(peak, |memory| memory.peak.max(peak));
        if let Some(status) = child.try_wait()? {
            return Ok((status.code(), peak));
        }
        if began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} does not end");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end() -> Result<()> {
    for nonsense in ALL {
        let dir = tempfile::tempdir()?;
        let config = config(dir.path())?;
        let _server = NonsenseServer::start(&dir.path().join("containerd.sock"), nonsense)?;
        let commands = [
            &["ensure", "busybox:1", "--snapshotter", "erofs"][..],
            &["check"],
            &["doctor"],
        ];
        // At the same time: an endless answer takes each ten seconds.
        let ends = commands.map(|arguments| ended(command(&config, arguments)));
        for (arguments, end) in commands.into_iter().zip(join_all(ends).await) {
            let (code, peak) = end?;
            println!("{nonsense:?} {arguments:?}: {code:?}, {peak} KiB");
            // An empty list of images is no error.
            let is_fine = nonsense == Nonsense::Empty && arguments[0] == "check";
            let codes = if is_fine { 0..=0 } else { 1..=3 };
            let ends = code.is_some_and(|code| codes.contains(&code));
            ensure!(ends, "{nonsense:?} {arguments:?}: {code:?}");
            ensure!(peak < MOST_KIB, "{nonsense:?} {arguments:?}: {peak} KiB");
        }
    }
    Ok(())
}

/// NRI's runtime is a real one, so that the plugin does its work: pods of all handlers are created.
#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_goes_on_in_little_memory() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.hooks = DEFAULT_HOOKS;
    let containerd = node.lab.socket().display().to_string();
    for nonsense in ALL {
        let socket = node.lab.socket_path("nonsense.sock")?;
        drop(std::fs::remove_file(&socket));
        let server = NonsenseServer::start(&socket, nonsense)?;
        let config = node.config("");
        let config = config.replacen(&containerd, &socket.display().to_string(), 1);
        let mut plugin = Plugin::start(&node.lab, program(), &config)?;
        let wanted = match nonsense {
            Nonsense::EndlessEmpty | Nonsense::EndlessLists => MANY,
            _ => FEW,
        };
        let began = Instant::now();
        while server.sent() < wanted && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let pod = node.cri.run_pod("erofs", &[]).await?;
        node.cri.create_container(&pod, APP, &[], &[]).await?;
        node.cri.remove_pod(&pod).await?;
        let memory = Memory::of(plugin.pid().context("the plugin has ended")?)?;
        println!("{nonsense:?}: {} messages, {memory}", server.sent());
        ensure!(server.sent() >= wanted, "{nonsense:?}: {}", server.sent());
        ensure!(memory.peak < MOST_KIB, "{nonsense:?}: {memory}");
        // A stop waits for the calls that go on, for ten seconds at most.
        plugin.kill();
    }
    Ok(())
}
