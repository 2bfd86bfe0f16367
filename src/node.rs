//! This node: its containerd, the engine on it, and its runtime handlers.
//!
//! The plugin has one for its whole life, a command for its own. All background work is
//! owned here, and [`Node::close`] waits for it.

mod handlers;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Live};
use crate::containerd::Containerd;
use crate::containerd::grpc::{Grpc, SetupError};
use crate::free_space::{self, FreeSpace};
use crate::panics;
use crate::policy;
use crate::unpack::{Engine, Parallel, Role};

use handlers::{Answer, HandlerState};

/// The pause before the first sweep: a container that is being created may stand on layers that only the lease of a killed
/// process keeps. After this time its creation is over, or the images were looked at and the layers are kept by them.
const SWEEP_FIRST: Duration = Duration::from_secs(5);

/// The pause before the second sweep: the last call of a process that was killed may end after the first.
const SWEEP_SOON: Duration = Duration::from_secs(10);

/// The pause between later sweeps, for what could not be removed before. Such leftovers are rare and harmless.
const SWEEP_EVERY: Duration = Duration::from_secs(5 * 60);

/// The node that this program runs on.
pub struct Node {
    config: Live,
    /// The only connection to containerd.
    pub containerd: Arc<dyn Containerd>,
    /// Does all work on containerd.
    pub engine: Arc<Engine>,
    /// The check of free space for work ahead.
    pub(crate) free_space: FreeSpace,
    handlers: watch::Sender<HandlerState>,
    /// Notified when another configuration is in force and its handlers are known.
    reloaded: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancels the work of the current session.
    session: Mutex<CancellationToken>,
}

impl Node {
    /// Opens the node. The connection is made at first use. Has to be called within a tokio runtime.
    pub fn open(config: Config, role: Role) -> Result<Arc<Self>, SetupError> {
        let socket = config.containerd.socket.as_ref();
        let grpc = Grpc::new(socket, config.containerd.namespace.as_str())?;
        Ok(Self::with(config, role, Arc::new(grpc)))
    }

    /// Makes a node on this containerd, which may be a fake.
    pub fn with(config: Config, role: Role, containerd: Arc<dyn Containerd>) -> Arc<Self> {
        Self::seeing(config, role, containerd, free_space::measure)
    }

    /// Makes a node that measures free space in another way.
    pub(crate) fn seeing(
        config: Config,
        role: Role,
        containerd: Arc<dyn Containerd>,
        measure: free_space::Measure,
    ) -> Arc<Self> {
        let parallel = Parallel {
            images: config.unpack.parallel_images.count().get(),
            layers: config.unpack.parallel_layers.count().get(),
        };
        let live = Live::new(config);
        let stop = CancellationToken::new();
        Arc::new(Self {
            engine: Engine::new(
                containerd.clone(),
                role,
                parallel,
                Box::new(policy::Labels(live.clone())),
                policy::content_fallback(&live.now()),
            ),
            free_space: FreeSpace::new(live.clone(), measure),
            config: live,
            reloaded: Notify::new(),
            containerd,
            handlers: watch::Sender::new(HandlerState {
                handlers: None,
                answer: Answer::Awaited,
            }),
            tasks: TaskTracker::new(),
            session: Mutex::new(stop.child_token()),
            stop,
        })
    }

    /// Returns the current configuration.
    pub fn config(&self) -> Arc<Config> {
        self.config.now()
    }

    /// Puts another configuration in force, as far as that is possible while the program runs. Returns
    /// the keys that take effect only at a restart. The handlers are resolved again in the background.
    pub fn reload(self: &Arc<Self>, config: Config) -> Vec<&'static str> {
        let in_vain = self.config.adopt(config);
        let node = self.clone();
        self.in_session(async move {
            panics::begin_again(|| node.resolve_until_known()).await;
            node.engine.forget();
            node.reloaded.notify_one();
            node.find_out().await;
        });
        in_vain
    }

    /// Waits until another configuration is in force.
    pub async fn reloaded(&self) {
        self.reloaded.notified().await;
    }

    /// Begins a new session, and cancels the work of the one before. In the background the handlers
    /// are resolved again, with retries until containerd answers. What a crash has left is removed
    /// some seconds later, and at intervals.
    pub fn refresh(self: &Arc<Self>) {
        self.handlers
            .send_modify(|state| state.answer = Answer::Awaited);
        self.begin_session();
        let node = self.clone();
        self.in_session(async move {
            panics::begin_again(|| node.resolve_until_known()).await;
            node.engine.forget();
            node.find_out().await;
        });
        let node = self.clone();
        self.in_session(async move {
            panics::begin_again(|| node.sweep_regularly()).await;
        });
    }

    /// A snapshotter that does not answer does not delay it: it needs only containerd.
    async fn sweep_regularly(&self) {
        self.known_handlers().await;
        tokio::time::sleep(SWEEP_FIRST).await;
        for pause in std::iter::once(SWEEP_SOON).chain(std::iter::repeat(SWEEP_EVERY)) {
            self.sweep().await;
            tokio::time::sleep(pause).await;
        }
    }

    async fn sweep(&self) {
        match self.engine.sweep().await {
            Ok(0) => log::debug!("there are no leftovers of earlier runs to remove"),
            Ok(leases) => log::info!(leases; "removed the leftovers of an earlier run"),
            Err(e) => {
                log::debug!(error:% = e; "sweep failed: the next sweep removes the leftovers of earlier runs")
            }
        }
    }

    fn begin_session(&self) {
        let token = self.stop.child_token();
        let mut session = self.session.lock();
        std::mem::replace(&mut *session, token).cancel();
    }

    /// Runs work in the background, until the next session begins. A panic ends it.
    pub fn in_session(&self, work: impl Future<Output = ()> + Send + 'static) {
        let session = self.session.lock();
        let token = session.clone();
        self.tasks.spawn(async move {
            token.run_until_cancelled(panics::contain(work)).await;
        });
    }

    /// Runs work in the background, until the node is closed.
    pub fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(panics::contain(work)).await;
        });
    }

    /// Takes and releases each lock that all work takes: if one is held for good, this does not
    /// return.
    pub fn probe_locks(&self) {
        drop(self.session.lock());
        drop(self.handlers_now());
        self.engine.probe_locks();
    }

    /// Stops all work, and waits until it has cleaned up.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.engine.close().await;
    }
}
