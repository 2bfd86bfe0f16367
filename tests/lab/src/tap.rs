//! A socket before containerd's: it records the calls of its clients, and can hold a call up or lose it.
//!
//! It forwards HTTP/2 streams as they come and knows nothing of what is in them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tonic::codegen::Bytes;
use tonic::codegen::http::Request;

use crate::containerd::Lab;

/// The calls whose message is looked at before they go on, all of them with a single one.
const READ: &str = "/containerd.services.snapshots.v1.Snapshots/";

/// A call on its way to containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its service and method: `/containerd.services.snapshots.v1.Snapshots/Prepare`.
    pub path: String,
    /// For calls to the snapshots service, the message as text: keys and labels can be found in it.
    pub message: String,
}

/// A tapped containerd. Dropped, it closes every connection.
#[derive(Debug)]
pub struct Tap {
    socket: PathBuf,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    calls: Mutex<Vec<Call>>,
    traps: Mutex<Vec<Trap>>,
}

/// Waits for one call.
struct Trap {
    which: Box<dyn Fn(&Call) -> bool + Send>,
    came: oneshot::Sender<Call>,
    /// Let on when told so, lost when the other end is dropped.
    go: oneshot::Receiver<()>,
}

/// The first call that a [`Tap`] was asked to hold. When it is dropped, the call is lost: it never reaches containerd,
/// and its caller gets an error.
#[derive(Debug)]
pub struct Held {
    came: oneshot::Receiver<Call>,
    go: oneshot::Sender<()>,
}

impl Tap {
    /// Listens before this containerd, which may come and go.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(lab: &Lab) -> Result<Self> {
        let socket = lab.socket_path("tap.sock")?;
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listening on {}", socket.display()))?;
        let seen = Arc::<Seen>::default();
        let task = tokio::spawn(serve(listener, lab.socket().to_owned(), seen.clone()));
        Ok(Self { socket, seen, task })
    }

    /// Where to connect instead of to containerd.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.seen.calls).clone()
    }

    /// Holds the next call that is `which`, and only that one.
    pub fn hold(&self, which: impl Fn(&Call) -> bool + Send + 'static) -> Held {
        let (came, has_come) = oneshot::channel();
        let (go, may_go) = oneshot::channel();
        lock(&self.seen.traps).push(Trap {
            which: Box::new(which),
            came,
            go: may_go,
        });
        Held { came: has_come, go }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Held {
    /// Waits until the call is on its way. Then it stands.
    ///
    /// # Errors
    /// If the tap is gone.
    pub async fn came(&mut self) -> Result<Call> {
        (&mut self.came).await.context("the tap is gone")
    }

    /// Lets it on.
    pub fn release(self) {
        // Refused where the connection that it came on is gone.
        let _ = self.go.send(());
    }
}

impl Seen {
    /// Waits for as long as the call is held; `false` where it is lost.
    async fn pass(&self, call: Call) -> bool {
        lock(&self.calls).push(call.clone());
        let trap = {
            let mut traps = lock(&self.traps);
            let at = traps.iter().position(|trap| (trap.which)(&call));
            at.map(|at| traps.remove(at))
        };
        match trap {
            None => true,
            Some(trap) => {
                // An error where the test has dropped the receiver.
                let _ = trap.came.send(call);
                trap.go.await.is_ok()
            }
        }
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} calls", lock(&self.calls).len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Its connections end with it.
async fn serve(listener: UnixListener, containerd: PathBuf, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (containerd, seen) = (containerd.clone(), seen.clone());
        // What goes wrong here shows at the ends, as a connection that breaks.
        connections.spawn(async move { drop(connection(stream, &containerd, seen).await) });
        while connections.try_join_next().is_some() {}
    }
}

/// One client's connection, with one of its own to containerd.
async fn connection(client: UnixStream, containerd: &Path, seen: Arc<Seen>) -> Result<()> {
    let server = UnixStream::connect(containerd).await?;
    let (containerd, server) = h2::client::handshake(server).await?;
    let mut client = h2::server::handshake(client).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { Ok(server.await?) });
    loop {
        tokio::select! {
            request = client.accept() => {
                let Some(request) = request else { return Ok(()) };
                let (request, respond) = request?;
                tasks.spawn(forward(request, respond, containerd.clone(), seen.clone()));
            }
            // containerd has ended, so the tap ends. A stream that breaks ends alone.
            Some(_) = tasks.join_next() => {
                if containerd.clone().ready().await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn forward(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    containerd: SendRequest<Bytes>,
    seen: Arc<Seen>,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let mut message = Vec::new();
    if path.starts_with(READ) {
        while let Some(data) = body.data().await {
            message.extend_from_slice(&taken(&mut body, data?)?);
        }
    }
    let call = Call {
        path,
        message: String::from_utf8_lossy(&message).into_owned(),
    };
    if !seen.pass(call).await {
        respond.send_reset(Reason::CANCEL);
        return Ok(());
    }
    let mut containerd = containerd.ready().await?;
    let (response, mut up) = containerd.send_request(Request::from_parts(head, ()), false)?;
    let upwards = async {
        match up.send_data(message.into(), false) {
            Ok(()) => copy(body, up).await,
            Err(_) => Ok(()),
        }
    };
    let downwards = async {
        let (head, body) = response.await?.into_parts();
        let ends = body.is_end_stream();
        let head = tonic::codegen::http::Response::from_parts(head, ());
        let down = respond.send_response(head, ends)?;
        if !ends {
            copy(body, down).await?;
        }
        Ok(())
    };
    tokio::try_join!(upwards, downwards)?;
    Ok(())
}

/// Copies all data and the trailers. A receiver may stop early, as containerd does when it answers before the end of
/// the request: the other direction goes on.
async fn copy(mut from: RecvStream, mut to: SendStream<Bytes>) -> Result<()> {
    while let Some(data) = from.data().await {
        let data = taken(&mut from, data?)?;
        if to.send_data(data, false).is_err() {
            return Ok(());
        }
    }
    let _ = match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    };
    Ok(())
}

/// Tells the sender that there is room again.
fn taken(from: &mut RecvStream, data: Bytes) -> Result<Bytes> {
    from.flow_control().release_capacity(data.len())?;
    Ok(data)
}
