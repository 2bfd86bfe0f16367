//! A plugin's session with a runtime: registration, configuration, synchronization, service, end.
//!
//! The session owns all of its tasks and knows the order of the calls. The service calls the plugin, and the
//! mux owns the socket.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};

use crate::api::{self, RuntimeClient};
use crate::end::SessionEnd;
use crate::identity::Identity;
use crate::limited::limited;
use crate::mux;
use crate::plugin::Plugin;
use crate::service::{Progress, Refused, Service};
use crate::types::{DEFAULT_REGISTRATION_TIMEOUT, DEFAULT_REQUEST_TIMEOUT};

/// The limit for steps before which the runtime itself may have to wait. The runtime registers plugins one
/// at a time. Before it sends the whole state, it waits for every pod and container operation in progress,
/// which may take minutes if a container has a long grace period. A plugin that gives up earlier and
/// registers again has to wait as long, and blocks new operations each time.
const BUSY_LIMIT: Duration = Duration::from_secs(10 * 60);

/// The limit for the configuration, which the runtime sends immediately after the registration.
const CONFIGURE_LIMIT: Duration = DEFAULT_REGISTRATION_TIMEOUT;

/// The limit for the transmission of the last answers when the session closes.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The newest NRI version whose protocol this crate implements, sent with the registration.
const NRI_VERSION: &str = "v0.12.2";

/// The reason why a session could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The runtime rejected the registration.
    #[error("the runtime rejected the registration of plugin {identity}: {reason}")]
    Rejected {
        /// The plugin.
        identity: Identity,
        /// The runtime's message.
        reason: String,
    },
    /// The plugin's own `configure` or `synchronize` failed.
    #[error("the plugin's {method} failed: {reason}")]
    Plugin {
        /// The method.
        method: &'static str,
        /// The text of the error or the panic.
        reason: String,
    },
    /// The runtime did not continue the handshake in time.
    #[error("the runtime did not continue the handshake: no {awaited} within {limit:?}")]
    Silent {
        /// The call or answer that is missing.
        awaited: &'static str,
        /// The time that has passed.
        limit: Duration,
    },
    /// The connection ended during the handshake.
    #[error("the session ended during the handshake: {0}")]
    Ended(SessionEnd),
}

/// The last step of the handshake that the start of a session waits for.
#[derive(Clone, Copy)]
enum Step {
    Configured,
    Synchronized,
}

/// A running session. [`close`](Self::close) ends it in order. Dropping it ends it and all calls in progress
/// immediately.
pub struct Session {
    mux: JoinHandle<SessionEnd>,
    /// The result of the mux's task, which can be joined only once.
    end: Option<SessionEnd>,
    server: Server,
    runtime: RuntimeClient,
    progress: watch::Receiver<Progress>,
    calls: TaskTracker,
    cancel_calls: CancellationToken,
    stop_reading: CancellationToken,
    kill: DropGuard,
}

impl Session {
    /// Registers the plugin and serves it. Returns when the plugin is synchronized with the
    /// runtime. Events may arrive before it returns.
    ///
    /// `stream` is usually from [`connect`](crate::connect).
    ///
    /// # Errors
    /// When the runtime rejects the plugin, the plugin refuses the session, the connection ends, or
    /// the runtime does not continue the handshake in time. All tasks of the session have then ended.
    pub async fn start<T>(
        stream: T,
        identity: Identity,
        plugin: Arc<dyn Plugin>,
    ) -> Result<Self, SessionError>
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let session = Self::serve(stream, plugin).await;
        session.begin(identity, Step::Synchronized).await
    }

    /// Registers a plugin that the runtime has launched, and serves it. Returns when the runtime has
    /// configured it, since an NRI before 0.8 never synchronizes the plugins that it launches. Later
    /// versions synchronize soon after; [`Session::synchronized`] waits for that.
    ///
    /// # Errors
    /// Those of [`Session::start`].
    pub async fn start_launched<T>(
        stream: T,
        identity: Identity,
        plugin: Arc<dyn Plugin>,
    ) -> Result<Self, SessionError>
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let session = Self::serve(stream, plugin).await;
        session.begin(identity, Step::Configured).await
    }

    /// Waits until the runtime has synchronized the plugin. Never returns if the session ends before.
    pub fn synchronized(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut progress = self.progress.clone();
        async move {
            if progress.wait_for(|p| p.synchronized).await.is_err() {
                pending().await
            }
        }
    }

    /// Waits for the session's end and returns its reason. Cancel safe, and may be called again.
    pub async fn ended(&mut self) -> SessionEnd {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let end = (&mut self.mux).await.unwrap_or(SessionEnd::Panicked);
        self.end.insert(end).clone()
    }

    /// Ends the session in order: accepts no more calls, waits for those in progress for as long as the
    /// runtime would, sends their answers, and closes the connection. That takes at most the runtime's
    /// request timeout and a few seconds, even if the runtime does not respond.
    pub async fn close(mut self) {
        self.stop_reading.cancel();
        self.calls.close();
        let configured = self.progress.borrow().configured;
        let grace = configured.map_or(DEFAULT_REQUEST_TIMEOUT, |c| c.request_timeout);
        let calls = self.calls.clone();
        tokio::select! {
            () = calls.wait() => {}
            // The connection has ended, so no answer can be sent.
            _ = self.ended() => {}
            () = sleep(grace) => {}
        }
        self.cancel_calls.cancel();

        let Self {
            mut mux,
            end,
            mut server,
            runtime,
            kill,
            ..
        } = self;
        // Without the client and the server the virtual connections close, and the mux ends after it has
        // sent all that they wrote.
        drop(runtime);
        let flushed = async {
            calls.wait().await;
            let _ = server.shutdown().await;
            if end.is_none() {
                let _ = (&mut mux).await;
            }
        };
        let flushed = timeout(FLUSH_LIMIT, flushed).await.is_ok();
        if !flushed && end.is_none() {
            drop(kill);
            let _ = mux.await;
        }
    }

    /// Starts all tasks of a session, before the registration.
    async fn serve<T>(stream: T, plugin: Arc<dyn Plugin>) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let kill = CancellationToken::new();
        let cancel_calls = kill.child_token();
        let stop_reading = kill.child_token();
        let calls = TaskTracker::new();
        let service = Arc::new(Service::new(plugin, calls.clone(), cancel_calls.clone()));
        let progress = service.progress();

        let (mux, plugin_side, runtime_side) = mux::divide(stream);
        let mux = tokio::spawn(mux.for_ttrpc().run(stop_reading.clone(), kill.clone()));
        // ttrpc panics in its shutdown if the listener has ended.
        let incoming = stream::iter([Ok(plugin_side)]).chain(stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(limited(api::create_plugin(service.clone()), &service));
        server
            .start()
            .await
            .expect("a server that was given a listener starts");
        Self {
            mux,
            end: None,
            server,
            runtime: RuntimeClient::new(Client::new(Socket::new(runtime_side))),
            progress,
            calls,
            cancel_calls,
            stop_reading,
            kill: kill.drop_guard(),
        }
    }

    /// Registers the plugin and waits for the runtime to reach `step`. An error closes the session.
    async fn begin(mut self, identity: Identity, step: Step) -> Result<Self, SessionError> {
        match self.handshake(identity, step).await {
            Ok(()) => Ok(self),
            Err(error) => {
                self.close().await;
                Err(error)
            }
        }
    }

    async fn handshake(&mut self, identity: Identity, step: Step) -> Result<(), SessionError> {
        self.register(identity).await?;
        self.reached("Configure", CONFIGURE_LIMIT, |progress| {
            progress.configured.is_some()
        })
        .await?;
        match step {
            Step::Configured => Ok(()),
            Step::Synchronized => {
                self.reached("Synchronize", BUSY_LIMIT, |progress| progress.synchronized)
                    .await
            }
        }
    }

    async fn register(&mut self, identity: Identity) -> Result<(), SessionError> {
        const AWAITED: &str = "answer to the registration";
        let runtime = self.runtime.clone();
        let request = api::RegisterPluginRequest {
            plugin_name: identity.name.to_string(),
            plugin_idx: identity.index.to_string(),
            NRI_version: NRI_VERSION.to_owned(),
            ..Default::default()
        };
        let answer = runtime.register_plugin(ttrpc::context::Context::default(), &request);
        match self.within(AWAITED, BUSY_LIMIT, answer).await? {
            Ok(_) => Ok(()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(SessionError::Rejected {
                identity,
                reason: status.message().to_owned(),
            }),
            // ttrpc lost its connection. The mux ends soon and has the reason.
            Err(_) => self.within(AWAITED, CONFIGURE_LIMIT, pending()).await,
        }
    }

    /// Waits until the progress satisfies `is_reached`, or the plugin refuses the session.
    async fn reached(
        &mut self,
        awaited: &'static str,
        limit: Duration,
        is_reached: fn(&Progress) -> bool,
    ) -> Result<(), SessionError> {
        let mut progress = self.progress.clone();
        let refused = async {
            let settled = progress.wait_for(|p| p.refused.is_some() || is_reached(p));
            match settled.await.map(|progress| progress.refused.clone()) {
                Ok(refused) => refused,
                // The service has ended; the mux ends soon.
                Err(_) => pending().await,
            }
        };
        match self.within(awaited, limit, refused).await? {
            None => Ok(()),
            Some(Refused { method, reason }) => Err(SessionError::Plugin { method, reason }),
        }
    }

    /// Waits for a step of the handshake. Fails if the session ends or `limit` passes first.
    async fn within<F: Future>(
        &mut self,
        awaited: &'static str,
        limit: Duration,
        step: F,
    ) -> Result<F::Output, SessionError> {
        tokio::select! {
            // The connection may end immediately after a refusal, which has to be reported.
            biased;
            output = step => Ok(output),
            end = self.ended() => Err(SessionError::Ended(end)),
            () = sleep(limit) => Err(SessionError::Silent { awaited, limit }),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
