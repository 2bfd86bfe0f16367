//! Clients of the metrics that are not what they should be: silent, slow, of another protocol, many at once. They keep no
//! scraper away, hold no more than a few descriptors, and change nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::metrics::{free_port, get};
use crate::support::{Node, handler};

/// More than there are connections at a time (16).
const SILENT: usize = 100;
const MORE_FILES: usize = 16 + 4;

/// A connection that is silent is closed after 30 s.
const SOON: Duration = Duration::from_secs(5);

impl Node {
    fn open_files(&self) -> Result<usize> {
        let plugin = self.plugin.as_ref().context("serving")?;
        let pid = plugin.pid().context("the plugin does not run")?;
        Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    }
}

async fn scrape(address: &str, path: &str) -> Result<u16> {
    let stream = TcpStream::connect(address).await?;
    Ok(get(stream, path, "*/*").await?.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_keep_no_scraper_away() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::start(version).await?;
    let (taken, address) = free_port().await?;
    drop(taken);
    node.serve(&format!("[metrics]\nlisten = \"{address}\"\n"))
        .await?;
    ensure!(scrape(&address, "/livez").await? == 200);
    let before = node.open_files()?;

    let mut silent = vec![];
    for n in 0..SILENT {
        let mut stream = TcpStream::connect(&address).await?;
        // Half a request, or nothing.
        let half: &[u8] = if n % 2 == 0 { b"GET /metr" } else { b"" };
        stream.write_all(half).await?;
        silent.push(stream);
        if n % 10 == 0 {
            ensure!(scrape(&address, "/metrics").await? == 200, "after {n}");
        }
    }
    ensure!(scrape(&address, "/livez").await? == 200);
    let files = node.open_files()?;
    ensure!(files <= before + MORE_FILES, "{before}, then {files} files");
    let mut rest = vec![];
    let closed = tokio::time::timeout(SOON, silent[0].read_to_end(&mut rest)).await;
    ensure!(closed.is_ok(), "the oldest connection is open");

    // The newest still waits.
    let newest = silent.last_mut().context("a connection")?;
    newest.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await?;
    newest.read_to_end(&mut rest).await?;
    ensure!(rest.starts_with(b"HTTP/1.0 200"), "{rest:?}");

    let pod = node.cri.run_pod(handler(version), &[]).await?;
    node.cri.remove_pod(&pod).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_requests_are_refused() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let (taken, address) = free_port().await?;
    drop(taken);
    node.serve(&format!("[metrics]\nlisten = \"{address}\"\n"))
        .await?;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for (request, status) in [
        ("POST /metrics HTTP/1.0\r\nContent-Length: 0\r\n\r\n", "405"),
        ("DELETE /livez HTTP/1.0\r\n\r\n", "405"),
        ("GET /../etc/passwd HTTP/1.0\r\n\r\n", "404"),
        ("\u{16}\u{3}\u{1} TLS", "400"),
        // Closed without an answer.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        (&long, "4"),
    ] {
        let mut stream = TcpStream::connect(&address).await?;
        // The listener may answer before it has read all.
        stream.write_all(request.as_bytes()).await.ok();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).await.ok();
        let answer = String::from_utf8_lossy(&answer);
        let line = answer.lines().next().unwrap_or_default();
        let found = line.split(' ').nth(1).unwrap_or_default();
        let begin: String = request.chars().take(20).collect();
        ensure!(found.starts_with(status), "{begin:?}: {line:?}");
    }
    ensure!(scrape(&address, "/livez").await? == 200);
    Ok(())
}
