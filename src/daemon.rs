//! The plugin as a daemon: connects to the runtime, serves, and connects again, until it is stopped.

mod watchdog;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nri::{Identity, Session};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::hooks::Hooks;
use crate::metrics;
use crate::node::Node;
use crate::printable::printable;
use crate::retry;

/// The limit of the cleanup when the plugin stops. The sweep of the next start removes the rest.
const DRAIN: Duration = Duration::from_secs(10);

/// The wait for the runtime's list of containers. A runtime that sends the list to plugins that it launches does so
/// as soon as all plugins are configured.
const SYNCHRONIZE_TIMEOUT: Duration = Duration::from_secs(5);

/// After a session of at least this duration, the pauses between attempts begin short again.
const STABLE_SESSION: Duration = Duration::from_secs(30);

/// The state of the connection to the runtime.
enum Link {
    /// No session: the runtime cannot be reached, or the session has ended.
    Disconnected,
    /// A session, and the time of its start.
    Serving(Session, Instant),
}

/// The plugin as started by systemd or a user: connects to the runtime's socket, and connects again after the runtime
/// was restarted.
pub struct Daemon<'a> {
    /// The path of NRI's socket.
    pub socket: &'a Path,
    /// The name and the index under which the plugin registers.
    pub identity: Identity,
    /// The node, which is used by all sessions.
    pub node: Arc<Node>,
}

impl Daemon<'_> {
    /// Serves until `stop` is cancelled. Then stops the running work and cleans up.
    pub async fn run(self, stop: CancellationToken) {
        notify(&[sd_notify::NotifyState::Ready]);
        let mut link = Link::Disconnected;
        let node = self.node.clone();
        let watchdog = watchdog::notify_while_alive(
            move || node.probe_locks(),
            || notify(&[sd_notify::NotifyState::Watchdog]),
        );
        tokio::select! {
            () = self.run_link(&mut link, &stop) => {}
            () = watchdog => {}
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        log::info!("stopping");
        let close = async {
            if let Link::Serving(session, _) = link {
                session.close().await;
            }
            self.node.close().await;
        };
        drain(close).await;
    }

    async fn run_link(&self, link: &mut Link, stop: &CancellationToken) {
        let mut pauses = Pauses::new();
        while let Some(next) = stop.run_until_cancelled(self.next(link, &mut pauses)).await {
            *link = next;
        }
    }

    /// Runs one step and returns the next state. A cancelled step does not change the link.
    async fn next(&self, link: &mut Link, pauses: &mut Pauses) -> Link {
        match link {
            Link::Disconnected => match self.connect().await {
                Ok(session) => {
                    pauses.last_logged = None;
                    status("serving");
                    return Link::Serving(session, Instant::now());
                }
                Err(e) => {
                    // The session may have been configured before it failed.
                    metrics::session_ended();
                    pauses.log_and_wait(&e.to_string()).await;
                }
            },
            Link::Serving(session, since) => {
                let end = session.ended().await;
                metrics::session_ended();
                if since.elapsed() >= STABLE_SESSION {
                    *pauses = Pauses::new();
                }
                pauses
                    .log_and_wait(&format!("the session with NRI ended: {end}"))
                    .await;
            }
        }
        Link::Disconnected
    }

    async fn connect(&self) -> Result<Session, Box<dyn std::error::Error + Send + Sync>> {
        let stream = nri::connect::socket(self.socket).await?;
        Ok(Session::start(stream, self.identity.clone(), self.hooks()).await?)
    }

    fn hooks(&self) -> Arc<Hooks> {
        let node = self.node.clone();
        Hooks::new(Box::new(move |_| Ok(node.clone())))
    }
}

/// Serves one session on the socket that containerd has passed to the plugin that it launched. When the session ends,
/// containerd has ended or has closed the connection, and launches the plugin again.
pub async fn serve_launched(
    stream: UnixStream,
    identity: Identity,
    hooks: Arc<Hooks>,
    stop: CancellationToken,
) -> Result<(), nri::SessionError> {
    let start = Session::start_launched(stream, identity, hooks.clone());
    let served = match stop.run_until_cancelled(start).await {
        Some(Ok(mut session)) => {
            let synchronized = session.synchronized();
            let unsynchronized = async {
                if tokio::time::timeout(SYNCHRONIZE_TIMEOUT, synchronized)
                    .await
                    .is_err()
                {
                    hooks.unsynchronized();
                }
                std::future::pending().await
            };
            let ended = async {
                tokio::select! {
                    end = session.ended() => end,
                    end = unsynchronized => end,
                }
            };
            if let Some(end) = stop.run_until_cancelled(ended).await {
                log::info!(reason:% = end; "the session with containerd ended");
            }
            drain(session.close()).await;
            Ok(())
        }
        Some(Err(e)) => Err(e),
        None => Ok(()),
    };
    metrics::session_ended();
    if let Some(node) = hooks.node() {
        drain(node.close()).await;
    }
    served
}

/// Runs work, and cancels its token on SIGTERM, on SIGINT, or on SIGHUP if `on_hangup` returns `Break`. Returns when the
/// work has ended.
pub async fn until_signal<F: Future>(
    work: impl FnOnce(CancellationToken) -> F,
    mut on_hangup: impl FnMut() -> ControlFlow<()>,
) -> std::io::Result<F::Output> {
    let mut hup = signal(SignalKind::hangup())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let mut work = std::pin::pin!(work(stop.clone()));
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => {
                if on_hangup().is_break() {
                    break;
                }
            }
        }
    }
    stop.cancel();
    Ok(work.await)
}

/// Waits for work that has been told to stop, up to the limit.
async fn drain(work: impl Future<Output = ()>) {
    if tokio::time::timeout(DRAIN, work).await.is_err() {
        log::warn!("work did not end within {DRAIN:?}; the next start removes its leftovers");
    }
}

/// The pauses between attempts to connect. Each reason for a pause is logged once as a warning.
struct Pauses {
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    last_logged: Option<String>,
}

impl Pauses {
    fn new() -> Self {
        Self {
            pauses: Box::new(retry::pauses()),
            last_logged: None,
        }
    }

    async fn log_and_wait(&mut self, why: &str) {
        if self.last_logged.as_deref() == Some(why) {
            log::debug!("{why}");
        } else {
            log::warn!("{why}; trying again until it works");
            status(why);
            self.last_logged = Some(why.to_owned());
        }
        if let Some(pause) = self.pauses.next() {
            tokio::time::sleep(pause).await;
        }
    }
}

fn status(text: &str) {
    // A line break in the text would begin another message to systemd.
    notify(&[sd_notify::NotifyState::Status(&printable(text))]);
}

/// Sends states to systemd. Does nothing without systemd.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::debug!(error:% = e; "systemd could not be notified");
    }
}
