//! Measures the memory of an idle plugin with the watch and without it, of the same program in turn.
//!
//! `cargo test --release --test node bound::memory -- --ignored --nocapture --test-threads 1`.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{ApiServer, Version};

use super::{CLASS, WATCH, own_image, pod};
use crate::memory::Memory;
use crate::support::{DEFAULT_HOOKS, Node, PATIENCE, handler};

/// The plugin frees what it needed for the list, and rests.
const REST: Duration = Duration::from_secs(5);

/// How long the wake-ups are counted.
const COUNTED: Duration = Duration::from_secs(10);

/// As many pods as a kubelet runs.
const PODS: usize = 110;

/// What Kubernetes writes about the managers of a pod's fields, and more that is skipped, in bytes.
const SKIPPED: usize = 12 << 10;

/// Returns how often the threads of a process went to sleep so far.
fn sleeps(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += count.context("no switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// Returns the memory of the idle plugin, and how often its threads wake up in [`COUNTED`].
async fn idle(node: &mut Node, config: &str, server: Option<&ApiServer>) -> Result<(Memory, u64)> {
    node.serve(config).await?;
    node.wait_reconciled(handler(Version::V2_1)).await?;
    if let Some(server) = server {
        server.wait_for_request(&WATCH, PATIENCE).await?;
    }
    tokio::time::sleep(REST).await;
    let plugin = node.plugin.as_mut().context("no plugin")?;
    let pid = plugin.pid().context("the plugin does not run")?;
    let before = sleeps(pid)?;
    tokio::time::sleep(COUNTED).await;
    let (memory, woken) = (Memory::of(pid)?, sleeps(pid)? - before);
    plugin.stop().await?;
    std::fs::write(node.log.path(), "")?;
    Ok((memory, woken))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn of_the_watch() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.hooks = DEFAULT_HOOKS;
    for pods in [0, PODS] {
        for is_tls in [false, true] {
            let server = match is_tls {
                false => ApiServer::start().await?,
                true => ApiServer::start_with_tls().await?,
            };
            server.put_class(CLASS, "erofs");
            for n in 0..pods {
                let mut pod = pod(&n.to_string(), None, &[own_image("r.example/app:1").name()]);
                pod["metadata"]["annotations"] = serde_json::json!({"a": "x".repeat(SKIPPED)});
                server.put_pod(pod);
            }
            let path = node.lab.path("kubeconfig");
            let user = match server.certificate() {
                None => "{}".to_owned(),
                Some((certificate, key)) => {
                    std::fs::write(node.lab.path("client.crt"), certificate)?;
                    std::fs::write(node.lab.path("client.key"), key)?;
                    "{client-certificate: client.crt, client-key: client.key}".to_owned()
                }
            };
            std::fs::write(&path, server.kubeconfig(&user))?;
            let config = format!(
                "[kubernetes]\nkubeconfig = {path:?}\nnode = \"{}\"\n",
                super::NODE
            );
            for _ in 0..2 {
                let off = idle(&mut node, "", None).await?;
                let on = idle(&mut node, &config, Some(&server)).await?;
                println!(
                    "{pods} pods, TLS {is_tls}: off {}, {} wake-ups; on {}, {} wake-ups",
                    off.0, off.1, on.0, on.1
                );
            }
        }
    }
    Ok(())
}
