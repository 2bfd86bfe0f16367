//! A proxy in front of the socket of containerd or of a snapshotter. It records the calls of its clients, can hold or
//! drop a call, can hold all calls of a kind, and can put a fault into one.
//!
//! It forwards HTTP/2 streams unchanged and does not parse their messages.

mod forward;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::containerd::Lab;
use crate::proxy::ProxySnapshotter;

/// A call to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The service and method: `/containerd.services.snapshots.v1.Snapshots/Prepare`.
    pub path: String,
    /// The message as text, for calls to the snapshots service, for lists of content, images and plugins: keys, labels and
    /// filters can be found in it.
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
    /// The call ends for its client as at its deadline, and containerd serves it after this time, also if the client has
    /// ended by then.
    GivenUp(Duration),
}

/// The proxy of a socket. Dropping it closes all connections.
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
    stalls: Mutex<Vec<Stall>>,
    /// The next fault, and the call that it is for.
    fault: Mutex<Option<(NumberedFilter, Fault)>>,
    /// Chooses faults for all calls.
    disturbance: Mutex<Option<Disturbance>>,
    /// The calls that their clients have given up.
    late: Mutex<JoinSet<()>>,
}

type Filter = Box<dyn Fn(&Call) -> bool + Send>;

/// Gets also the number of the call.
type NumberedFilter = Box<dyn Fn(usize, &Call) -> bool + Send>;

/// Returns the fault of a call.
type Disturbance = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

/// Waits for one call.
struct Trigger {
    which: Filter,
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

/// Holds calls until it ends.
struct Stall {
    which: Filter,
    held: Arc<AtomicUsize>,
    /// Fails when [`Stalled`] is dropped.
    end: watch::Receiver<()>,
}

/// All calls that match [`Tap::stall`]. They are forwarded when it is dropped.
#[derive(Debug)]
pub struct Stalled {
    held: Arc<AtomicUsize>,
    _end: watch::Sender<()>,
}

impl Tap {
    /// Listens in front of this containerd, which may restart.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_as(lab, "tap")
    }

    /// Like [`Self::start`], for one of several. Each has a name of its own.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn start_as(lab: &Lab, name: &str) -> Result<Self> {
        Self::between(lab.socket_path(&format!("{name}.sock"))?, lab.socket())
    }

    /// Listens in front of this snapshotter, which may restart. containerd has to be configured for it.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn of_snapshotter(lab: &Lab, snapshotter: &ProxySnapshotter) -> Result<Self> {
        let name = format!("{}-tap.sock", snapshotter.remote().name());
        Self::between(lab.socket_path(&name)?, snapshotter.socket())
    }

    /// Listens on `socket`, and forwards to `server`.
    fn between(socket: PathBuf, server: &Path) -> Result<Self> {
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listening on {}", socket.display()))?;
        let observer = Arc::<Observer>::default();
        let task = tokio::spawn(forward::serve(
            listener,
            server.to_owned(),
            observer.clone(),
        ));
        Ok(Self {
            socket,
            observer,
            task,
        })
    }

    /// Returns the socket to use instead of the server's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns all calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.observer.calls).clone()
    }

    /// Waits until there are more than `calls` calls, and none came for `time`: the client has no more work, or waits.
    /// Returns the number of calls.
    ///
    /// # Errors
    /// If that takes longer than `timeout`.
    pub async fn quiet(&self, calls: usize, time: Duration, timeout: Duration) -> Result<usize> {
        let quiet = async {
            let count = || lock(&self.observer.calls).len();
            let mut before = count();
            loop {
                tokio::time::sleep(time).await;
                let now = count();
                if now == before && now > calls {
                    return now;
                }
                before = now;
            }
        };
        let quiet = tokio::time::timeout(timeout, quiet).await;
        quiet.context("the client does not rest")
    }

    /// Puts a fault into the call after the next `calls` calls, until [`Self::heal`].
    pub fn fail(&self, calls: usize, fault: Fault) {
        let at = lock(&self.observer.calls).len() + calls;
        self.set_fault(Box::new(move |number, _| number == at), fault);
    }

    /// Puts a fault into the next call that matches `which`, and only that one, until [`Self::heal`].
    pub fn fail_when(&self, which: impl Fn(&Call) -> bool + Send + 'static, fault: Fault) {
        self.set_fault(Box::new(move |_, call| which(call)), fault);
    }

    fn set_fault(&self, which: NumberedFilter, fault: Fault) {
        *lock(&self.observer.fault) = Some((which, fault));
    }

    /// Puts the faults that `choose` returns into the calls, until [`Self::calm`].
    pub fn disturb(&self, choose: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        *lock(&self.observer.disturbance) = Some(Box::new(choose));
    }

    /// Ends what [`Self::disturb`] began.
    pub fn calm(&self) {
        lock(&self.observer.disturbance).take();
    }

    /// Ends the fault. Returns whether it has occurred.
    pub fn heal(&self) -> bool {
        lock(&self.observer.fault).take().is_none()
    }

    /// Waits until containerd has served the calls that their clients have given up.
    pub async fn until_served(&self) {
        let late = std::mem::take(&mut *lock(&self.observer.late));
        late.join_all().await;
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

    /// Forgets what is held and was not met: no further call is held for it.
    pub fn forget_holds(&self) {
        lock(&self.observer.traps).clear();
    }

    /// Holds all calls that match `which`: the server seems to work on them, and never to answer.
    pub fn stall(&self, which: impl Fn(&Call) -> bool + Send + 'static) -> Stalled {
        let held = Arc::<AtomicUsize>::default();
        let (sender, end) = watch::channel(());
        lock(&self.observer.stalls).push(Stall {
            which: Box::new(which),
            held: held.clone(),
            end,
        });
        Stalled { held, _end: sender }
    }
}

impl Stalled {
    /// Returns how many calls have been held so far.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
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
        let fault = lock(&self.fault).take_if(|(which, _)| which(number, &call));
        if let Some((_, fault)) = fault {
            return Passage::Failed(fault);
        }
        if let Some(fault) = self.disturb(&call) {
            return Passage::Failed(fault);
        }
        self.wait_while_stalled(&call).await;
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

impl Observer {
    fn disturb(&self, call: &Call) -> Option<Fault> {
        let mut disturbance = lock(&self.disturbance);
        disturbance.as_mut().and_then(|choose| choose(call))
    }

    async fn wait_while_stalled(&self, call: &Call) {
        let end = {
            let mut stalls = lock(&self.stalls);
            stalls.retain(|stall| stall.end.has_changed().is_ok());
            let stall = stalls.iter().find(|stall| (stall.which)(call));
            stall.map(|stall| {
                stall.held.fetch_add(1, Ordering::Relaxed);
                stall.end.clone()
            })
        };
        if let Some(mut end) = end {
            // Nothing is ever sent: this waits for the sender's end.
            let _ = end.changed().await;
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
