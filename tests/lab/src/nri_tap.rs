//! A proxy in front of NRI's socket. It counts the frames of both directions, and can put a fault at one of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::containerd::Lab;

/// The connection and the length of the payload, each four bytes.
const HEADER: usize = 8;

/// What happens to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameFault {
    /// The connection is closed before the frame.
    Cut,
    /// The connection is closed after half of the frame.
    Half,
    /// Each byte of the payload is 255.
    Garbage,
    /// The frame belongs to a connection that does not exist.
    OtherConnection,
    /// Neither this frame nor a later one of its direction is forwarded. The connection stays open until [`NriTap::heal`].
    Silence,
}

/// The proxy. Dropping it closes all connections.
#[derive(Debug)]
pub struct NriTap {
    socket: PathBuf,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    frames: AtomicUsize,
    /// The number of the frame with a fault.
    fault: Mutex<Option<(usize, FrameFault)>>,
    healed: Notify,
}

impl NriTap {
    /// Listens in front of the NRI socket of this containerd, which may restart.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn start(lab: &Lab) -> Result<Self> {
        let socket = lab.socket_path("nri-tap.sock")?;
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listening on {}", socket.display()))?;
        let state = Arc::<State>::default();
        let task = tokio::spawn(serve(listener, lab.nri_socket().to_owned(), state.clone()));
        Ok(Self {
            socket,
            state,
            task,
        })
    }

    /// Returns the socket to use instead of NRI's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the number of frames since the last call of [`Self::fail`].
    pub fn frames(&self) -> usize {
        self.state.frames.load(Ordering::SeqCst)
    }

    /// Counts from 0 again, and puts a fault at the frame with this number, until [`Self::heal`].
    pub fn fail(&self, frame: usize, fault: FrameFault) {
        self.state.frames.store(0, Ordering::SeqCst);
        *self.state.fault() = Some((frame, fault));
    }

    /// Ends the fault. Returns whether it has occurred.
    pub fn heal(&self) -> bool {
        let has_occurred = self.state.fault().take().is_none();
        self.state.healed.notify_waiters();
        has_occurred
    }
}

impl Drop for NriTap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn fault(&self) -> std::sync::MutexGuard<'_, Option<(usize, FrameFault)>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a frame, and returns its fault.
    fn count(&self) -> Option<FrameFault> {
        let number = self.frames.fetch_add(1, Ordering::SeqCst);
        let fault = self.fault().take_if(|(at, _)| *at == number);
        fault.map(|(_, fault)| fault)
    }
}

async fn serve(listener: UnixListener, server: PathBuf, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (server, state) = (server.clone(), state.clone());
        connections.spawn(async move {
            let Ok(server) = UnixStream::connect(&server).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Both directions end when one has ended.
            tokio::select! {
                _ = forward(from_client, to_server, &state) => {}
                _ = forward(from_server, to_client, &state) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Forwards frames until the connection ends, or a fault ends it.
async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    state: &State,
) -> Result<()> {
    loop {
        let mut header = [0; HEADER];
        from.read_exact(&mut header).await?;
        let [c0, c1, c2, c3, l0, l1, l2, l3] = header;
        let connection = u32::from_be_bytes([c0, c1, c2, c3]);
        let mut payload = vec![0; u32::from_be_bytes([l0, l1, l2, l3]) as usize];
        from.read_exact(&mut payload).await?;
        match state.count() {
            None => {}
            Some(FrameFault::Cut) => return Ok(()),
            Some(FrameFault::Half) => {
                to.write_all(&header).await?;
                to.write_all(&payload[..payload.len() / 2]).await?;
                return Ok(());
            }
            Some(FrameFault::Garbage) => payload.fill(255),
            Some(FrameFault::OtherConnection) => {
                header[..4].copy_from_slice(&(connection + 7).to_be_bytes());
            }
            Some(FrameFault::Silence) => {
                state.healed.notified().await;
                return Ok(());
            }
        }
        // One write: the other end reads a frame at once.
        to.write_all(&[&header[..], &payload].concat()).await?;
    }
}
