//! The name of the API server is looked up at a DNS server that does not answer. The plugin ends at once none the
//! less: the C library's look-up cannot be ended, and takes half a minute.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;
use lab::{ApiServer, Version};

use crate::bound::NODE;
use crate::startup_taint::TAINT;
use crate::support::{Node, PATIENCE, write_script};

/// An address of the loopback interface that nothing else uses.
const NAMES: &str = "127.0.0.153";

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_looked_up_does_not_hold_up_the_end() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let server = ApiServer::start().await?;
    let silent = UdpSocket::bind((NAMES, 53))?;
    let resolv = node.lab.path("resolv.conf");
    std::fs::write(
        &resolv,
        format!("nameserver {NAMES}\noptions timeout:30 attempts:2\n"),
    )?;
    let script = node.lab.path("in-its-own-mounts");
    let program = node.program.display();
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation slave sh -c \
         'mount --bind {} /etc/resolv.conf && exec {program} \"$@\"' sh \"$@\"\n",
        resolv.display()
    );
    write_script(&script, &text)?;
    node.program = script;
    let kubeconfig = node.lab.path("kubeconfig");
    let named = server
        .kubeconfig("{}")
        .replace("127.0.0.1", "api-server.test");
    std::fs::write(&kubeconfig, named)?;
    node.serve(&format!(
        "[kubernetes]\nkubeconfig = {kubeconfig:?}\nnode = \"{NODE}\"\nstartup_taint = \"{TAINT}\"\n"
    ))
    .await?;
    silent.set_read_timeout(Some(PATIENCE))?;
    tokio::task::block_in_place(|| silent.recv_from(&mut [0; 512]))?;
    // All three look-ups have begun.
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.ends().await
}
