//! The plugin's life: connects to the runtime, serves, and connects again, until it is stopped.

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

/// How long the work under way may take to tidy up after itself. What it does not manage, the sweep
/// of the next start does.
const DRAIN: Duration = Duration::from_secs(10);

/// A runtime that synchronizes the plugins that it launches does so at once when all are configured.
const SYNCHRONIZED: Duration = Duration::from_secs(5);

/// A session that lived as long ended for a reason of its own: the next pause is a short one again.
const STEADY: Duration = Duration::from_secs(30);

/// The state of the connection to the runtime.
enum Link {
    /// No session: the runtime is not there, or the session ended.
    Disconnected,
    /// Registered and synchronized, since then.
    Serving(Session, Instant),
}

/// The plugin under systemd or by hand: finds the runtime at a socket, and finds it again whenever
/// it has been away.
pub struct Daemon<'a> {
    /// NRI's socket.
    pub socket: &'a Path,
    /// What it registers as.
    pub identity: Identity,
    /// Lives through all sessions.
    pub node: Arc<Node>,
}

impl Daemon<'_> {
    /// Serves until `stop`; then stops the running work and cleans up.
    pub async fn run(self, stop: CancellationToken) {
        notify(&[sd_notify::NotifyState::Ready]);
        let mut link = Link::Disconnected;
        let node = self.node.clone();
        let watched = watchdog::watched(
            move || node.probe_locks(),
            || notify(&[sd_notify::NotifyState::Watchdog]),
        );
        tokio::select! {
            () = self.follow(&mut link, &stop) => {}
            () = watched => {}
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        log::info!("stopping");
        let close = async {
            if let Link::Serving(session, _) = link {
                session.close().await;
            }
            self.node.close().await;
        };
        drained(close).await;
    }

    async fn follow(&self, link: &mut Link, stop: &CancellationToken) {
        let mut pauses = Pauses::new();
        while let Some(next) = stop.run_until_cancelled(self.next(link, &mut pauses)).await {
            *link = next;
        }
    }

    /// One step of the link. A step that is cancelled leaves the link as it was.
    async fn next(&self, link: &mut Link, pauses: &mut Pauses) -> Link {
        match link {
            Link::Disconnected => match self.connect().await {
                Ok(session) => {
                    pauses.last_logged = None;
                    status("serving");
                    return Link::Serving(session, Instant::now());
                }
                Err(e) => {
                    // It may have come as far as to be configured.
                    metrics::session_ended();
                    pauses.wait(&e.to_string()).await;
                }
            },
            Link::Serving(session, since) => {
                let end = session.ended().await;
                metrics::session_ended();
                if since.elapsed() >= STEADY {
                    *pauses = Pauses::new();
                }
                pauses
                    .wait(&format!("the session with NRI ended: {end}"))
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

/// The plugin where containerd launched it: one session on the socket that it was given. When that
/// ends, containerd has ended or has given the plugin up, and will launch another.
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
                if tokio::time::timeout(SYNCHRONIZED, synchronized)
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
            drained(session.close()).await;
            Ok(())
        }
        Some(Err(e)) => Err(e),
        None => Ok(()),
    };
    metrics::session_ended();
    if let Some(node) = hooks.node() {
        drained(node.close()).await;
    }
    served
}

/// Runs work that stops, in its own time, when SIGTERM or SIGINT comes, and when SIGHUP comes and
/// `hung_up` says so.
pub async fn until_signal<F: Future>(
    work: impl FnOnce(CancellationToken) -> F,
    mut hung_up: impl FnMut() -> ControlFlow<()>,
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
                if hung_up().is_break() {
                    break;
                }
            }
        }
    }
    stop.cancel();
    Ok(work.await)
}

async fn drained(work: impl Future<Output = ()>) {
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

    async fn wait(&mut self, why: &str) {
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
    // A line of its own would be another message to systemd.
    notify(&[sd_notify::NotifyState::Status(&printable(text))]);
}

/// Without systemd this does nothing.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::debug!(error:% = e; "systemd could not be notified");
    }
}
