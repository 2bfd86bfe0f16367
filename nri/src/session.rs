//! A plugin's session with a runtime: register, be configured, be synchronized, serve, end.
//!
//! It owns every task of the session and knows their order; what the plugin does with a call is
//! the service's business, and what happens on the socket the mux's.

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
use crate::mux;
use crate::plugin::Plugin;
use crate::service::{Progress, Refused, Service};
use crate::types::{DEFAULT_REGISTRATION_TIMEOUT, DEFAULT_REQUEST_TIMEOUT};

/// How long the runtime may keep a plugin waiting where it has to wait itself. It takes plugins one
/// at a time, and before it sends one the whole state it waits for every pod and container operation
/// that is under way: minutes, where a container is given them to stop. Who gives up sooner and
/// registers again waits just as long, and each time holds up new operations meanwhile.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How long the runtime may take to configure the plugin that it has just registered. It does so at
/// once, and waits for nothing before.
const CONFIGURE_LIMIT: Duration = DEFAULT_REGISTRATION_TIMEOUT;

/// How long what was answered may take to get on the wire when the session closes.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Sent along with the registration: the newest NRI whose protocol this crate speaks.
const NRI_VERSION: &str = "v0.12.2";

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The runtime rejected the registration.
    #[error("the runtime refused to register plugin {identity}: {reason}")]
    Rejected {
        /// Who wanted to register.
        identity: Identity,
        /// What the runtime said.
        reason: String,
    },
    /// The plugin's own `configure` or `synchronize` failed.
    #[error("the plugin's {method} failed: {reason}")]
    Plugin {
        /// The method.
        method: &'static str,
        /// Its error, or its panic.
        reason: String,
    },
    /// The runtime said nothing more.
    #[error("the runtime fell silent: no {awaited} within {limit:?}")]
    Silent {
        /// What should have come.
        awaited: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The connection ended.
    #[error("the session ended before it began: {0}")]
    Ended(SessionEnd),
}

/// The last step of the handshake that the start of a session waits for.
#[derive(Clone, Copy)]
enum Step {
    Configured,
    Synchronized,
}

/// A running session. [`close`](Self::close) ends it in order; dropping it ends it as well, with
/// whatever calls are under way, but waits for nothing.
pub struct Session {
    mux: JoinHandle<SessionEnd>,
    /// What the mux's task ended with: it can only be asked once.
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
    /// runtime; the first events may already have come by then.
    ///
    /// `stream` is usually one of [`connect`](crate::connect)'s.
    ///
    /// # Errors
    /// When the runtime rejects the plugin, the plugin rejects the runtime, the connection ends, or
    /// the runtime falls silent. Whatever was started has ended by then.
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
    /// configured it: an NRI before 0.8 never synchronizes the plugins that it launches. Later ones do so
    /// soon after; [`Session::synchronized`] tells.
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

    /// Waits until the runtime has synchronized the plugin; for good where the session ends before.
    pub fn synchronized(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut progress = self.progress.clone();
        async move {
            if progress.wait_for(|p| p.synchronized).await.is_err() {
                pending().await
            }
        }
    }

    /// Waits for the session's end and says why it is over. Cancel safe, and may be asked again.
    pub async fn ended(&mut self) -> SessionEnd {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let end = (&mut self.mux).await.unwrap_or(SessionEnd::Panicked);
        self.end.insert(end).clone()
    }

    /// Ends the session in order: takes no more calls, lets those under way go on for as long as
    /// the runtime would wait for them, sends their answers, and closes the connection. That takes
    /// the runtime's request timeout and a few seconds at most, whatever the other side does.
    pub async fn close(mut self) {
        self.stop_reading.cancel();
        self.calls.close();
        let configured = self.progress.borrow().configured;
        let grace = configured.map_or(DEFAULT_REQUEST_TIMEOUT, |c| c.request_timeout);
        let calls = self.calls.clone();
        tokio::select! {
            () = calls.wait() => {}
            // Nobody is left to answer.
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
        // With these two go the virtual connections, once they have written what they had to; and
        // when it is on the wire, the mux ends by itself.
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

    /// Everything up and running, and nothing said yet.
    async fn serve<T>(stream: T, plugin: Arc<dyn Plugin>) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let kill = CancellationToken::new();
        let cancel_calls = kill.child_token();
        let stop_reading = kill.child_token();
        let calls = TaskTracker::new();
        let service = Service::new(plugin, calls.clone(), cancel_calls.clone());
        let progress = service.progress();

        let (mux, plugin_side, runtime_side) = mux::divide(stream);
        let mux = tokio::spawn(mux.run(stop_reading.clone(), kill.clone()));
        // A listener that ends would make ttrpc panic in its shutdown.
        let incoming = stream::iter([Ok(plugin_side)]).chain(stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(api::create_plugin(Arc::new(service)));
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
                self.reached("Synchronize", PATIENCE, |progress| progress.synchronized)
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
        match self.within(AWAITED, PATIENCE, answer).await? {
            Ok(_) => Ok(()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(SessionError::Rejected {
                identity,
                reason: status.message().to_owned(),
            }),
            // ttrpc lost its connection. The mux knows why, and ends any moment.
            Err(_) => self.within(AWAITED, CONFIGURE_LIMIT, pending()).await,
        }
    }

    /// Waits until the runtime has come as far as `far_enough` says.
    async fn reached(
        &mut self,
        awaited: &'static str,
        limit: Duration,
        far_enough: fn(&Progress) -> bool,
    ) -> Result<(), SessionError> {
        let mut progress = self.progress.clone();
        let refused = async {
            let settled = progress.wait_for(|p| p.refused.is_some() || far_enough(p));
            match settled.await.map(|progress| progress.refused.clone()) {
                Ok(refused) => refused,
                // The service is gone, and so will the mux be.
                Err(_) => pending().await,
            }
        };
        match self.within(awaited, limit, refused).await? {
            None => Ok(()),
            Some(Refused { method, reason }) => Err(SessionError::Plugin { method, reason }),
        }
    }

    /// Waits for a part of the handshake, unless the session ends or `limit` passes first.
    async fn within<F: Future>(
        &mut self,
        awaited: &'static str,
        limit: Duration,
        part: F,
    ) -> Result<F::Output, SessionError> {
        tokio::select! {
            // A refusal comes with the connection's end right behind it.
            biased;
            output = part => Ok(output),
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
