//! This node: its containerd, the engine on it, and what its runtime handlers use.
//!
//! The plugin keeps one for its whole life, a command for the time that it runs. What goes on in
//! the background is owned here, and waited for by [`Node::close`].

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
use crate::free_space::{self, Room};
use crate::policy;
use crate::unpack::{Engine, Parallel, Role};

use handlers::{Answer, HandlerState};

/// Until the first sweep: a container that is being created may stand on layers that only the lease of a killed
/// process keeps. After this time its creation is over, or the images were looked at and the layers are kept by them.
const SWEEP_FIRST: Duration = Duration::from_secs(5);

/// Until the second sweep: the last call of a process that was killed may end after the first.
const SWEEP_SOON: Duration = Duration::from_secs(10);

/// Between sweeps for what could not be taken away before. Such leftovers are rare and harmless.
const SWEEP_EVERY: Duration = Duration::from_secs(5 * 60);

/// The node that this program runs on.
pub struct Node {
    config: Live,
    /// The one connection.
    pub containerd: Arc<dyn Containerd>,
    /// All work on it.
    pub engine: Arc<Engine>,
    /// For work that nobody has asked for.
    pub(crate) room: Room,
    handlers: watch::Sender<HandlerState>,
    /// Another configuration is in force, and the handlers are known as it has them.
    reloaded: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends what goes on for an earlier session.
    session: Mutex<CancellationToken>,
}

impl Node {
    /// Connects when first used. Has to be called within a tokio runtime.
    pub fn open(config: Config, role: Role) -> Result<Arc<Self>, SetupError> {
        let socket = config.containerd.socket.as_ref();
        let grpc = Grpc::new(socket, config.containerd.namespace.as_str())?;
        Ok(Self::with(config, role, Arc::new(grpc)))
    }

    /// On this containerd, whatever stands behind it.
    pub fn with(config: Config, role: Role, containerd: Arc<dyn Containerd>) -> Arc<Self> {
        Self::seeing(config, role, containerd, free_space::free_percent)
    }

    /// The same, where somebody else says how much room is free.
    pub(crate) fn seeing(
        config: Config,
        role: Role,
        containerd: Arc<dyn Containerd>,
        free: free_space::Free,
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
                policy::missing(&live.now()),
            ),
            room: Room::new(live.clone(), free),
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

    /// The configuration as it is now.
    pub fn config(&self) -> Arc<Config> {
        self.config.now()
    }

    /// Puts another configuration in force, as far as that is possible while the program runs: answers
    /// the keys that take effect at a restart. In the background the handlers are resolved anew.
    pub fn reload(self: &Arc<Self>, config: Config) -> Vec<&'static str> {
        let in_vain = self.config.adopt(config);
        let node = self.clone();
        self.in_session(async move {
            node.resolve_until_known().await;
            node.engine.forget();
            node.reloaded.notify_one();
            node.find_out().await;
            tokio::time::sleep(SWEEP_FIRST).await;
        });
        in_vain
    }

    /// Until another configuration is in force.
    pub async fn reloaded(&self) {
        self.reloaded.notified().await;
    }

    /// A new session begins, and what went on for the one before ends. In the background the handlers
    /// are resolved anew, again and again until containerd answers, and what a crash has left is
    /// taken away, then and now and then.
    pub fn refresh(self: &Arc<Self>) {
        self.handlers
            .send_modify(|known| known.answer = Answer::Awaited);
        self.begin_session();
        let node = self.clone();
        self.in_session(async move {
            node.resolve_until_known().await;
            node.engine.forget();
            node.find_out().await;
            for pause in std::iter::once(SWEEP_SOON).chain(std::iter::repeat(SWEEP_EVERY)) {
                node.sweep().await;
                tokio::time::sleep(pause).await;
            }
        });
    }

    async fn sweep(&self) {
        match self.engine.sweep().await {
            Ok(0) => {}
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

    /// In the background, until the next session begins.
    pub fn in_session(&self, work: impl Future<Output = ()> + Send + 'static) {
        let session = self.session.lock();
        let token = session.clone();
        self.tasks.spawn(async move {
            token.run_until_cancelled(work).await;
        });
    }

    /// In the background, for as long as the node lives.
    pub fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    /// Takes each lock that all work takes, and lets it go: where one is held for good, this does not
    /// return.
    pub fn probe_locks(&self) {
        drop(self.session.lock());
        drop(self.handlers_now());
        self.engine.probe_locks();
    }

    /// Stops all work, and waits until it has tidied up after itself.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.engine.close().await;
    }
}
