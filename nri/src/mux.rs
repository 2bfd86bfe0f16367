//! Multiplexes two ttrpc connections over one socket: the task that owns the socket, and the two virtual
//! connections.
//!
//! Knows frames and connection ids, and of the payload only where ttrpc's messages end. The end of the task ends the
//! session. ttrpc hides why a connection ended, so the task returns a [`SessionEnd`].
//!
//! All memory is bounded. A frame is forwarded in chunks and never held whole. Data that a virtual
//! connection has not read is limited to `INCOMING_BYTES`, and data that the socket has not accepted to
//! `OUTGOING_FRAMES`. A virtual connection that stops reading blocks the other one for at most
//! `STALL_LIMIT`. Then the session ends, since a connection whose data is dropped cannot continue.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
    DuplexStream, ReadBuf, duplex, split,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, PollSender};

use crate::boundaries::{Boundaries, Refused};
use crate::end::{STALL_LIMIT, SessionEnd};
use crate::frame::{HEADER_LEN, Header, MAX_PAYLOAD};

/// The id of the connection on which the plugin serves the runtime's calls.
pub const PLUGIN_SERVICE: u32 = 1;

/// The id of the connection on which the runtime serves the plugin's calls.
pub const RUNTIME_SERVICE: u32 = 2;

/// The limit of unread data of a virtual connection, in bytes. A ttrpc reader always reads, so this only
/// has to cover the time until it is scheduled: a few hundred requests of a kilobyte.
const INCOMING_BYTES: usize = 256 << 10;

/// The limit of frames that wait for the socket. If the queue is full, the writer waits. The runtime sends
/// one request at a time to a plugin, and an answer has tens of bytes.
const OUTGOING_FRAMES: usize = 64;

/// The limit for the shutdown of the stream. A socket shuts down immediately; other streams may not.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(1);

/// The owner of the socket. [`run`](Self::run) starts it.
#[derive(Debug)]
pub struct Mux<T> {
    trunk: T,
    lanes: Lanes,
    outgoing: mpsc::Receiver<Vec<u8>>,
}

/// The write ends of the virtual connections.
#[derive(Debug)]
struct Lanes {
    plugin: Lane,
    runtime: Lane,
}

/// The write end of a virtual connection.
#[derive(Debug)]
struct Lane {
    stream: DuplexStream,
    /// `None` if any data is forwarded.
    messages: Option<Boundaries>,
}

impl Lanes {
    fn find(&mut self, connection: u32) -> Option<&mut Lane> {
        match connection {
            PLUGIN_SERVICE => Some(&mut self.plugin),
            RUNTIME_SERVICE => Some(&mut self.runtime),
            _ => None,
        }
    }
}

impl Lane {
    fn new(stream: DuplexStream) -> Self {
        Self {
            stream,
            messages: None,
        }
    }

    async fn write(&mut self, connection: u32, bytes: &[u8]) -> Result<(), SessionEnd> {
        if let Some(messages) = &mut self.messages {
            let followed = messages.follow(bytes);
            followed.map_err(|refused| match refused {
                Refused::TooLong(length) => SessionEnd::NotTtrpc { connection, length },
                Refused::NotARequest => SessionEnd::NotARequest { connection },
            })?;
        }
        match timeout(STALL_LIMIT, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SessionEnd::Abandoned { connection }),
            Err(_) => Err(SessionEnd::Stalled { connection }),
        }
    }
}

/// Divides `trunk` into the connections [`PLUGIN_SERVICE`] and [`RUNTIME_SERVICE`], in this order.
/// Data is transferred only while the mux runs.
pub fn divide<T>(trunk: T) -> (Mux<T>, VirtualConnection, VirtualConnection) {
    let (sender, outgoing) = mpsc::channel(OUTGOING_FRAMES);
    let (plugin, lane_of_plugin) = VirtualConnection::new(PLUGIN_SERVICE, sender.clone());
    let (runtime, lane_of_runtime) = VirtualConnection::new(RUNTIME_SERVICE, sender);
    let lanes = Lanes {
        plugin: Lane::new(lane_of_plugin),
        runtime: Lane::new(lane_of_runtime),
    };
    let mux = Mux {
        trunk,
        lanes,
        outgoing,
    };
    (mux, plugin, runtime)
}

impl<T: AsyncRead + AsyncWrite> Mux<T> {
    /// Ends the session also when the peer sends a message that ttrpc or NRI does not allow.
    #[must_use]
    pub fn for_ttrpc(mut self) -> Self {
        self.lanes.plugin.messages = Some(Boundaries::of_requests());
        self.lanes.runtime.messages = Some(Boundaries::of_answers());
        self
    }

    /// Transfers frames until the socket ends, `kill` is cancelled, or both virtual connections are
    /// closed and all that they wrote is sent. After `stop_reading` no more frames are read: answers
    /// are still sent, and no new request arrives.
    ///
    /// In all cases the socket is shut down, and the virtual connections read their end.
    pub async fn run(self, stop_reading: CancellationToken, kill: CancellationToken) -> SessionEnd {
        let Self {
            trunk,
            mut lanes,
            mut outgoing,
        } = self;
        let (trunk_in, mut trunk_out) = split(trunk);
        let end = tokio::select! {
            () = kill.cancelled() => SessionEnd::ClosedHere,
            Err(end) = read_frames(trunk_in, &mut lanes, &stop_reading) => end,
            end = write_frames(&mut trunk_out, &mut outgoing) => end,
        };
        // The shutdown is explicit: the original of an inherited socket stays open, so that the peer would
        // not see a drop of the duplicate.
        let _ = timeout(SHUTDOWN_LIMIT, trunk_out.shutdown()).await;
        end
    }
}

async fn read_frames(
    trunk: impl AsyncRead + Unpin,
    lanes: &mut Lanes,
    stop_reading: &CancellationToken,
) -> Result<Infallible, SessionEnd> {
    let mut trunk = BufReader::new(trunk);
    let frames = async {
        loop {
            let header = read_header(&mut trunk).await?;
            let lane = lanes.find(header.connection());
            if lane.is_none() {
                log::warn!(
                    connection = header.connection(), bytes = header.length();
                    "frame for an unknown virtual connection dropped"
                );
            }
            forward(&mut trunk, header, lane).await?;
        }
    };
    tokio::select! {
        end = frames => end,
        () = stop_reading.cancelled() => std::future::pending().await,
    }
}

async fn read_header(trunk: &mut (impl AsyncBufRead + Unpin)) -> Result<Header, SessionEnd> {
    // An end between two frames is an orderly one. `read_exact` alone cannot distinguish it.
    if trunk.fill_buf().await?.is_empty() {
        return Err(SessionEnd::ClosedByPeer);
    }
    let mut bytes = [0; HEADER_LEN];
    trunk.read_exact(&mut bytes).await?;
    Ok(Header::decode(bytes)?)
}

/// Forwards one payload to its lane, or skips it if there is none.
async fn forward(
    trunk: &mut (impl AsyncBufRead + Unpin),
    header: Header,
    mut lane: Option<&mut Lane>,
) -> Result<(), SessionEnd> {
    let connection = header.connection();
    let mut left = header.length();
    while left > 0 {
        let read = trunk.fill_buf().await?;
        if read.is_empty() {
            return Err(SessionEnd::Truncated);
        }
        let chunk = &read[..read.len().min(left)];
        if let Some(lane) = &mut lane {
            lane.write(connection, chunk).await?;
        }
        let forwarded = chunk.len();
        trunk.consume(forwarded);
        left -= forwarded;
    }
    Ok(())
}

/// Writes frames until both virtual connections are closed and the last frame is written, or until an error.
async fn write_frames(
    trunk: &mut (impl AsyncWrite + Unpin),
    outgoing: &mut mpsc::Receiver<Vec<u8>>,
) -> SessionEnd {
    while let Some(frame) = outgoing.recv().await {
        let written = async {
            trunk.write_all(&frame).await?;
            trunk.flush().await
        };
        if let Err(error) = written.await {
            return error.into();
        }
    }
    SessionEnd::ClosedHere
}

/// One of the two connections, which ttrpc reads and writes like a socket.
///
/// One write makes one frame. The Go peer depends on the sizes of ttrpc's writes: it reads a frame with a
/// single call into its present buffer, and fails if the frame is larger.
#[derive(Debug)]
pub struct VirtualConnection {
    id: u32,
    /// Used only to read. Writes go to `outgoing` as frames, since a byte stream does not keep the boundaries
    /// of writes.
    incoming: DuplexStream,
    outgoing: PollSender<Vec<u8>>,
}

impl VirtualConnection {
    fn new(id: u32, outgoing: mpsc::Sender<Vec<u8>>) -> (Self, DuplexStream) {
        let (incoming, lane) = duplex(INCOMING_BYTES);
        let outgoing = PollSender::new(outgoing);
        let connection = Self {
            id,
            incoming,
            outgoing,
        };
        (connection, lane)
    }
}

impl AsyncRead for VirtualConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.incoming).poll_read(cx, buf)
    }
}

impl AsyncWrite for VirtualConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outgoing.poll_reserve(cx)).map_err(gone)?;

        let payload = &buf[..buf.len().min(MAX_PAYLOAD)];
        let header = Header::new(self.id, payload.len()).map_err(io::Error::other)?;
        let frame = [&header.encode()[..], payload].concat();
        self.outgoing.send_item(frame).map_err(gone)?;
        Poll::Ready(Ok(payload.len()))
    }

    /// Succeeds immediately: all writes are queued in order, and the mux sends them without delay.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
