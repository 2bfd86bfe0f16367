//! This node: its containerd, the engine on it, and what its runtime handlers use.
//!
//! The plugin keeps one for its whole life, a command for the time that it runs. What goes on in
//! the background is owned here, and waited for by [`Node::close`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Live};
use crate::containerd::grpc::{Grpc, SetupError};
use crate::containerd::{self, Containerd};
use crate::free_space::{self, Room};
use crate::handlers::{FileConfig, Handlers, Running};
use crate::unpack::{Engine, Parallel, Role};
use crate::{peer, policy, retry};

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

/// What is known of the runtime handlers.
#[derive(Clone, Debug)]
struct HandlerState {
    /// As containerd answered last.
    handlers: Option<Arc<Handlers>>,
    answer: Answer,
}

/// Whether containerd has answered in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It is being asked.
    Awaited,
    /// It did not answer; it is asked again.
    None,
    /// The handlers are as they are now.
    Here,
}

impl HandlerState {
    fn now(&self) -> Option<&Arc<Handlers>> {
        let is_here = self.answer == Answer::Here;
        self.handlers.as_ref().filter(|_| is_here)
    }
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

    /// Finds out which handler uses which snapshotter. A CRI that shows no configuration, or is not
    /// there, leaves our own and containerd's files.
    pub async fn resolve(&self) -> Result<Arc<Handlers>, containerd::Error> {
        self.resolve_by(&self.config()).await
    }

    async fn resolve_by(&self, config: &Config) -> Result<Arc<Handlers>, containerd::Error> {
        let containerd = self.containerd.as_ref();
        let reported = or_files(containerd.cri_config().await, "its configuration")?;
        let directory = or_files(
            containerd.image_file_system().await,
            "its image file system",
        )?;
        let snapshotters = containerd.snapshotters().await?;
        let version = containerd::numbers(&containerd.version().await?);
        let file = FileConfig::read(config.containerd.config.as_ref(), version);
        let running = Running {
            cri_status_config: reported.as_deref(),
            image_file_system: directory.as_deref(),
            snapshotters: &snapshotters,
        };
        self.engine
            .hand_keys_over(file.settings().hands_keys_over());
        Ok(Arc::new(Handlers::resolve(config, running, Some(file))))
    }

    /// What is wrong with the handlers, their sources, or the snapshotters that they name.
    pub async fn problems(&self, handlers: &Handlers) -> Result<Vec<String>, containerd::Error> {
        let listed = self.containerd.snapshotters().await?;
        let up = listed
            .iter()
            .filter(|snapshotter| snapshotter.init_error.is_none());
        let up: Vec<_> = up.map(|snapshotter| snapshotter.name.as_str()).collect();
        let unknown = handlers.check_known(&up);
        let all = handlers.problems().iter().chain(&unknown);
        Ok(all.map(ToString::to_string).collect())
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

    async fn resolve_until_known(&self) {
        let mut said = false;
        for pause in retry::pauses() {
            let config = self.config();
            let socket = &config.containerd.socket;
            let resolved = async {
                let handlers = self.resolve_by(&config).await?;
                let problems = self.problems(&handlers).await?;
                Ok::<_, containerd::Error>((handlers, problems))
            };
            match resolved.await {
                Ok((handlers, problems)) if self.know(&config, handlers.clone()) => {
                    say(&handlers, &problems);
                    return say_unread(&handlers, socket.as_ref()).await;
                }
                // By a configuration that is not in force any more.
                Ok(_) => continue,
                Err(e) if said => log::debug!(socket:%, error:% = e; "containerd does not answer"),
                Err(e) => {
                    log::warn!(socket:%, error:% = e; "containerd does not answer: pods are let pass until it does; is containerd.socket right?");
                }
            }
            said = true;
            // What is known of this session stays so: only its configuration is read again.
            self.handlers.send_modify(|known| {
                if known.answer == Answer::Awaited {
                    known.answer = Answer::None;
                }
            });
            tokio::time::sleep(pause).await;
        }
    }

    /// Keeps the handlers where they are those of the configuration in force; answers whether they are.
    fn know(&self, config: &Arc<Config>, handlers: Arc<Handlers>) -> bool {
        self.handlers.send_if_modified(|known| {
            let is_in_force = Arc::ptr_eq(config, &self.config());
            if is_in_force {
                *known = HandlerState {
                    handlers: Some(handlers),
                    answer: Answer::Here,
                };
            }
            is_in_force
        })
    }

    /// What kind each handler's snapshotter is, before the first hook has to know.
    async fn find_out(&self) {
        if let Some(handlers) = self.handlers_now() {
            let snapshotters = handlers.snapshotters().into_iter();
            join_all(snapshotters.map(|name| self.engine.find_out(name))).await;
        }
    }

    async fn sweep(&self) {
        match self.engine.sweep().await {
            Ok(0) => {}
            Ok(leases) => log::info!(leases; "took away what an earlier run had left"),
            Err(e) => log::debug!(error:% = e; "not swept"),
        }
    }

    fn begin_session(&self) {
        let token = self.stop.child_token();
        let mut session = self.session.lock();
        std::mem::replace(&mut *session, token).cancel();
    }

    /// The handlers, waited for until `deadline` while containerd is being asked for the first time in
    /// this session; where it does not answer, nobody waits. Without an answer they are taken to be
    /// what they were in the session before.
    pub async fn handlers_by(&self, deadline: Instant) -> Option<Arc<Handlers>> {
        let mut known = self.handlers.subscribe();
        let asked = known.wait_for(|known| known.answer != Answer::Awaited);
        // In time or not: what is known now is all there is.
        let _ = tokio::time::timeout_at(deadline, asked).await;
        self.handlers.borrow().handlers.clone()
    }

    /// The handlers, as soon as they are known.
    pub async fn known_handlers(&self) -> Arc<Handlers> {
        let mut known = self.handlers.subscribe();
        loop {
            if let Some(handlers) = known.borrow_and_update().now() {
                return handlers.clone();
            }
            if known.changed().await.is_err() {
                // The sender lives in this node.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The handlers, if they are known.
    pub fn handlers_now(&self) -> Option<Arc<Handlers>> {
        self.handlers.borrow().now().cloned()
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

/// What CRI says of itself; `None` where it is there and does not say it: then containerd's files do.
fn or_files(
    said: Result<Option<String>, containerd::Error>,
    what: &str,
) -> Result<Option<String>, containerd::Error> {
    match said {
        Err(e) if !e.is_unreachable() => {
            log::warn!(error:% = e; "CRI does not show {what}; reading containerd's files");
            Ok(None)
        }
        said => said,
    }
}

/// Files of containerd's that are not read, although it tells all about handlers. Where containerd sees the same files
/// as this process, a pattern that matches nothing here matches nothing there.
async fn say_unread(handlers: &Handlers, socket: &Path) {
    const MEANS: &str = "handlers and snapshotters come from the running containerd; what the file says of labels, discarded layers and the pause image is not known";
    for problem in handlers.unread() {
        log::info!("{problem}; {MEANS}");
    }
    if handlers.unseen().is_empty() || !peer::has_other_mounts(peer::pid(socket).await) {
        return;
    }
    for unseen in handlers.unseen() {
        log::info!("containerd's configuration {unseen}; {MEANS}; mount it at the same path");
    }
}

fn say(handlers: &Handlers, problems: &[String]) {
    for problem in problems {
        log::error!("{problem}");
    }
    for (handler, resolved) in handlers.iter() {
        log::info!(handler, snapshotter = resolved.snapshotter.as_str(), from:% = resolved.origin; "handler resolved");
    }
}
