//! A proxy in front of containerd's socket. It records the calls of its clients, can hold or drop a call, and
//! can put a fault into one.
//!
//! It forwards HTTP/2 streams unchanged and does not parse their messages.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// The calls whose message is read before they are forwarded; each has a single message.
const READ: &str = "/containerd.services.snapshots.v1.Snapshots/";

/// A call to containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The service and method: `/containerd.services.snapshots.v1.Snapshots/Prepare`.
    pub path: String,
    /// The message as text, for calls to the snapshots service; keys and labels can be found in it.
    pub message: String,
}

/// A fault of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call never reaches containerd, which seems to answer with an error.
    Error,
    /// containerd serves the call, and its answer is lost.
    AnswerLost,
    /// The call reaches containerd after this time.
    Delay(Duration),
}

/// gRPC's code of an error that is not known.
const UNKNOWN: &str = "2";

/// The proxy of a containerd. Dropping it closes all connections.
#[derive(Debug)]
pub struct Tap {
    socket: PathBuf,
    observer: Arc<Observer>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Observer {
    calls: Mutex<Vec<Call>>,
    traps: Mutex<Vec<Trigger>>,
    /// The next fault, and the number of the call that it is for.
    fault: Mutex<Option<(usize, Fault)>>,
}

/// Waits for one call.
struct Trigger {
    which: Box<dyn Fn(&Call) -> bool + Send>,
    came: oneshot::Sender<Call>,
    /// Sends when the call may continue; the call is dropped when the sender is dropped.
    go: oneshot::Receiver<()>,
}

/// The first call that matches [`Tap::hold`]. If `Held` is dropped, the call never reaches containerd, and its
/// caller gets an error.
#[derive(Debug)]
pub struct Held {
    came: oneshot::Receiver<Call>,
    go: oneshot::Sender<()>,
}

impl Tap {
    /// Listens in front of this containerd, which may restart.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn start(lab: &Lab) -> Result<Self> {
        let socket = lab.socket_path("tap.sock")?;
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listening on {}", socket.display()))?;
        let observer = Arc::<Observer>::default();
        let task = tokio::spawn(serve(listener, lab.socket().to_owned(), observer.clone()));
        Ok(Self {
            socket,
            observer,
            task,
        })
    }

    /// Returns the socket to use instead of containerd's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns all calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.observer.calls).clone()
    }

    /// Puts a fault into the call after the next `calls` calls, until [`Self::heal`].
    pub fn fail(&self, calls: usize, fault: Fault) {
        let before = lock(&self.observer.calls).len();
        *lock(&self.observer.fault) = Some((before + calls, fault));
    }

    /// Ends the fault. Returns whether it has occurred.
    pub fn heal(&self) -> bool {
        lock(&self.observer.fault).take().is_none()
    }

    /// Holds the next call that matches `which`, and only that one.
    pub fn hold(&self, which: impl Fn(&Call) -> bool + Send + 'static) -> Held {
        let (came, has_come) = oneshot::channel();
        let (go, may_go) = oneshot::channel();
        lock(&self.observer.traps).push(Trigger {
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
    /// Waits until the call has arrived and is held.
    ///
    /// # Errors
    /// If the tap has ended.
    pub async fn came(&mut self) -> Result<Call> {
        (&mut self.came).await.context("the tap is gone")
    }

    /// Forwards the call.
    pub fn release(self) {
        // This fails if the connection of the call has ended.
        let _ = self.go.send(());
    }
}

/// How a call continues.
enum Passage {
    Forwarded,
    Dropped,
    Failed(Fault),
}

impl Observer {
    /// Waits while the call is held.
    async fn pass(&self, call: Call) -> Passage {
        let number = {
            let mut calls = lock(&self.calls);
            calls.push(call.clone());
            calls.len() - 1
        };
        let fault = lock(&self.fault).take_if(|(at, _)| *at == number);
        if let Some((_, fault)) = fault {
            return Passage::Failed(fault);
        }
        let trap = {
            let mut traps = lock(&self.traps);
            let at = traps.iter().position(|trap| (trap.which)(&call));
            at.map(|at| traps.remove(at))
        };
        match trap {
            None => Passage::Forwarded,
            Some(trap) => {
                // This fails if the test has dropped the receiver.
                let _ = trap.came.send(call);
                match trap.go.await {
                    Ok(()) => Passage::Forwarded,
                    Err(_) => Passage::Dropped,
                }
            }
        }
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} calls", lock(&self.calls).len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts connections; they end with this task.
async fn serve(listener: UnixListener, containerd: PathBuf, observer: Arc<Observer>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (containerd, observer) = (containerd.clone(), observer.clone());
        // The client and containerd see an error as a broken connection.
        connections.spawn(async move { drop(connection(stream, &containerd, observer).await) });
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one client's connection, with a connection of its own to containerd.
async fn connection(client: UnixStream, containerd: &Path, observer: Arc<Observer>) -> Result<()> {
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
                tasks.spawn(forward(request, respond, containerd.clone(), observer.clone()));
            }
            // containerd has ended, so the connection ends. A broken stream ends only itself.
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
    observer: Arc<Observer>,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let mut message = Vec::new();
    if path.starts_with(READ) {
        while let Some(data) = body.data().await {
            message.extend_from_slice(&release_capacity(&mut body, data?)?);
        }
    }
    let call = Call {
        path,
        message: String::from_utf8_lossy(&message).into_owned(),
    };
    let mut is_answered = true;
    match observer.pass(call).await {
        Passage::Forwarded => {}
        Passage::Dropped => {
            respond.send_reset(Reason::CANCEL);
            return Ok(());
        }
        Passage::Failed(Fault::Error) => {
            let answer = tonic::codegen::http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", UNKNOWN)
                .header("grpc-message", "a fault of the test")
                .body(())?;
            respond.send_response(answer, true)?;
            return Ok(());
        }
        Passage::Failed(Fault::AnswerLost) => is_answered = false,
        Passage::Failed(Fault::Delay(time)) => tokio::time::sleep(time).await,
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
        let (head, mut body) = response.await?.into_parts();
        if !is_answered {
            while let Some(data) = body.data().await {
                release_capacity(&mut body, data?)?;
            }
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
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

/// Copies all data and the trailers. A receiver may stop early, as containerd does when it responds before the
/// end of the request; the other direction continues.
async fn copy(mut from: RecvStream, mut to: SendStream<Bytes>) -> Result<()> {
    while let Some(data) = from.data().await {
        let data = release_capacity(&mut from, data?)?;
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

/// Returns the capacity of this data to the sender.
fn release_capacity(from: &mut RecvStream, data: Bytes) -> Result<Bytes> {
    from.flow_control().release_capacity(data.len())?;
    Ok(data)
}
