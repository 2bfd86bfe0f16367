//! Faults of single requests, which a test chooses, and connections that get no answer.

use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use super::tls::Tls;
use super::{ApiServer, Mode, Shared};

/// Returns how a request is handled; `None`: as all others.
pub(super) type Disturbance = Box<dyn FnMut(&str) -> Option<Mode> + Send>;

/// The number of connections that wait to be accepted, of an ordinary server.
const BACKLOG: i32 = 1024;

/// More connections than wait for a server with the shortest queue.
const FILLERS: usize = 8;

/// How long a connection to the local machine takes at most.
const CONNECT: Duration = Duration::from_millis(200);

/// Which part of a new connection gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// The connection itself: its first packet is dropped, as by a firewall.
    Connect,
    /// What is sent on it: the kernel has taken the connection, and the server never accepts it.
    Accept,
    /// TLS's handshake.
    Handshake,
}

impl ApiServer {
    /// Handles each request from now on as `choose` says, which gets it as [`Self::requests`] has it, until [`Self::calm`].
    pub fn disturb(&self, choose: impl FnMut(&str) -> Option<Mode> + Send + 'static) {
        self.shared.state.lock().disturbance = Some(Box::new(choose));
    }

    /// Gives no answer to this part of new connections, until [`Self::calm`]. Open connections go on.
    ///
    /// # Errors
    /// If the queue of connections cannot be filled.
    pub fn ignore(&self, what: Ignored) -> Result<()> {
        self.shared.state.lock().ignored = Some(what);
        self.changed();
        if what == Ignored::Connect {
            let fillers = self.fill()?;
            self.shared.state.lock().fillers = fillers;
        }
        Ok(())
    }

    /// Fills the queue of connections: the kernel drops the first packet of a further one.
    fn fill(&self) -> Result<Vec<BlockingStream>> {
        rustix::net::listen(&*self.listener, 0)?;
        let address: SocketAddr = self.address.parse()?;
        let mut fillers = vec![];
        for _ in 0..FILLERS {
            match BlockingStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => fillers.push(stream),
                Err(_) => return Ok(fillers),
            }
        }
        anyhow::bail!("{FILLERS} connections were taken, and none refused")
    }

    /// Returns the number of watches that are open, also of clients that have gone without a word.
    pub fn watches(&self) -> usize {
        self.shared.state.lock().watches
    }

    /// Ends what [`Self::disturb`] and [`Self::ignore`] began: what waits for an answer gets it.
    pub fn calm(&self) {
        let mut state = self.shared.state.lock();
        state.disturbance = None;
        if state.ignored.take() == Some(Ignored::Connect) {
            // It has listened before.
            let _ = rustix::net::listen(&*self.listener, BACKLOG);
            state.fillers.clear();
        }
        state.calms += 1;
        drop(state);
        self.changed();
    }
}

impl Shared {
    /// Records a request. Returns how it is handled, and the token that it must have.
    pub(super) fn note(&self, request: String) -> (Option<Mode>, Option<String>) {
        let mut state = self.state.lock();
        let disturbance = state.disturbance.as_mut();
        let chosen = disturbance.and_then(|choose| choose(&request));
        state.requests.push(request);
        (chosen, state.token.clone())
    }

    /// Accepts a connection, as soon as connections are accepted.
    pub(super) async fn accept(&self, listener: &TcpListener) -> Result<TcpStream> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let is_open = {
                let state = self.state.lock();
                !matches!(state.ignored, Some(Ignored::Accept | Ignored::Connect))
            };
            tokio::select! {
                biased;
                changed = changes.changed() => changed?,
                accepted = listener.accept(), if is_open => return Ok(accepted?.0),
            }
        }
    }

    /// Answers the handshake of a client.
    pub(super) async fn shake_hands(
        &self,
        tls: &Tls,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>> {
        let ignored = self.state.lock().ignored;
        if ignored == Some(Ignored::Handshake) {
            self.until_calm().await?;
        }
        Ok(tls.acceptor.accept(stream).await?)
    }

    /// Counts a watch until it ends.
    pub(super) fn watched(&self) -> Watched<'_> {
        self.state.lock().watches += 1;
        Watched(self)
    }

    /// Waits for the next [`ApiServer::calm`].
    pub(super) async fn until_calm(&self) -> Result<()> {
        let mut changes = self.changes.subscribe();
        let before = self.state.lock().calms;
        while self.state.lock().calms == before {
            changes.changed().await?;
        }
        Ok(())
    }
}

/// A watch that is open.
pub(super) struct Watched<'a>(&'a Shared);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.state.lock().watches -= 1;
    }
}

/// Sends the head of an answer and a half of its body. Then closes the connection, or sends the rest after
/// [`ApiServer::calm`].
pub(super) async fn half(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    answer: &[u8],
    is_cut: bool,
) -> Result<()> {
    const END: &[u8] = b"\r\n\r\n";
    let head = answer.windows(END.len()).position(|bytes| bytes == END);
    let body = head.map_or(0, |at| at + END.len());
    let (first, rest) = answer.split_at(body + (answer.len() - body) / 2);
    stream.write_all(first).await?;
    stream.flush().await?;
    if is_cut {
        return Ok(());
    }
    shared.until_calm().await?;
    stream.write_all(rest).await?;
    Ok(stream.shutdown().await?)
}
