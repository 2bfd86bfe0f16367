//! This node: its containerd, the engine on it, and what its runtime handlers use.
//!
//! The plugin keeps one for its whole life, a command for the time that it runs. What goes on in
//! the background is owned here, and waited for by [`Node::close`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::containerd::grpc::{Grpc, SetupError};
use crate::containerd::{self, Containerd};
use crate::handlers::{FileConfig, Handlers};
use crate::unpack::{Engine, Parallel, Request, Role, Standing, Urgency, Want};
use crate::{policy, retry};

/// Between sweeps for what could not be taken away before. Such leftovers are rare and harmless.
const SWEEP_EVERY: Duration = Duration::from_secs(5 * 60);

/// The node that this program runs on.
pub struct Node {
    /// As it was read.
    pub config: Arc<Config>,
    /// The one connection.
    pub containerd: Arc<dyn Containerd>,
    /// All work on it.
    pub engine: Arc<Engine>,
    handlers: watch::Sender<Known>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends what goes on for an earlier session.
    session: Mutex<CancellationToken>,
}

/// What is known of the runtime handlers.
#[derive(Clone, Debug)]
enum Known {
    /// containerd is being asked.
    NotYet,
    /// It did not answer; it is asked again.
    NoAnswer,
    /// This.
    Handlers(Arc<Handlers>),
}

/// A container that exists already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// Its id, which is its snapshot's key.
    pub id: String,
    /// Where its snapshot is.
    pub snapshotter: String,
    /// The image, as its annotation names it.
    pub image: Option<String>,
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
        let config = Arc::new(config);
        let parallel = Parallel {
            images: config.unpack.parallel_images.count().get(),
            layers: config.unpack.parallel_layers.count().get(),
        };
        let labels = policy::Labels(config.clone());
        Arc::new(Self {
            engine: Engine::new(
                containerd.clone(),
                role,
                parallel,
                Box::new(labels),
                policy::missing(&config),
            ),
            config,
            containerd,
            handlers: watch::Sender::new(Known::NotYet),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            session: Mutex::default(),
        })
    }

    /// Finds out which handler uses which snapshotter. A CRI that shows no configuration, or is not
    /// there, leaves our own and containerd's files.
    pub async fn resolve(&self) -> Result<Arc<Handlers>, containerd::Error> {
        let reported = match self.containerd.cri_config().await {
            Ok(reported) => reported,
            Err(e) if e.is_unreachable() => return Err(e),
            Err(e) => {
                log::warn!(error:% = e; "CRI does not show its configuration; reading containerd's files");
                None
            }
        };
        let file = FileConfig::read(self.config.containerd.config.as_ref());
        let handlers = Handlers::resolve(&self.config, reported.as_deref(), Some(file));
        Ok(Arc::new(handlers))
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

    /// In the background, for a new session: resolves the handlers anew, again and again until
    /// containerd answers, and takes away what a crash has left, then and now and then.
    pub fn refresh(self: &Arc<Self>) {
        self.handlers.send_replace(Known::NotYet);
        let token = self.next_session();
        let node = self.clone();
        self.tasks.spawn(async move {
            let refresh = async {
                node.resolve_until_known().await;
                node.engine.forget();
                loop {
                    node.sweep().await;
                    tokio::time::sleep(SWEEP_EVERY).await;
                }
            };
            token.run_until_cancelled(refresh).await;
        });
    }

    async fn resolve_until_known(&self) {
        let socket = &self.config.containerd.socket;
        let mut said = false;
        for pause in retry::pauses() {
            let resolved = async {
                let handlers = self.resolve().await?;
                let problems = self.problems(&handlers).await?;
                Ok::<_, containerd::Error>((handlers, problems))
            };
            match resolved.await {
                Ok((handlers, problems)) => return self.know(handlers, &problems),
                Err(e) if said => log::debug!(socket:%, error:% = e; "containerd does not answer"),
                Err(e) => {
                    log::warn!(socket:%, error:% = e; "containerd does not answer: pods are let pass until it does; is containerd.socket right?");
                }
            }
            said = true;
            self.handlers.send_replace(Known::NoAnswer);
            tokio::time::sleep(pause).await;
        }
    }

    fn know(&self, handlers: Arc<Handlers>, problems: &[String]) {
        for problem in problems {
            log::error!("{problem}");
        }
        for (handler, resolved) in handlers.iter() {
            log::info!(handler, snapshotter = resolved.snapshotter.as_str(), from:% = resolved.origin; "handler resolved");
        }
        self.handlers.send_replace(Known::Handlers(handlers));
    }

    async fn sweep(&self) {
        match self.engine.sweep().await {
            Ok(0) => {}
            Ok(leases) => log::info!(leases; "took away what an earlier run had left"),
            Err(e) => log::debug!(error:% = e; "not swept"),
        }
    }

    /// The token of what goes on for the session that begins; that of the one before is cancelled.
    fn next_session(&self) -> CancellationToken {
        let token = self.stop.child_token();
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *session, token.clone()).cancel();
        token
    }

    /// The handlers, waited for until `deadline` while containerd is being asked for the first time in
    /// this session; where it does not answer, nobody waits.
    pub async fn handlers_by(&self, deadline: Instant) -> Option<Arc<Handlers>> {
        let mut handlers = self.handlers.subscribe();
        let asked = handlers.wait_for(|known| !matches!(known, Known::NotYet));
        let known = tokio::time::timeout_at(deadline, asked).await;
        match &*known.ok()?.ok()? {
            Known::Handlers(handlers) => Some(handlers.clone()),
            Known::NotYet | Known::NoAnswer => None,
        }
    }

    /// In the background, one after another, once the handlers are known: has the images of these
    /// containers ready for the next ones. The next session ends it.
    pub fn check_existing(
        self: &Arc<Self>,
        existing: impl FnOnce(&Handlers) -> Vec<Existing> + Send + 'static,
    ) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, node) = (session.clone(), self.clone());
        self.tasks.spawn(async move {
            let check = async {
                let mut handlers = node.handlers.subscribe();
                let known = handlers.wait_for(|known| matches!(known, Known::Handlers(_)));
                let containers = match known.await.as_deref() {
                    Ok(Known::Handlers(handlers)) => existing(handlers),
                    _ => return,
                };
                for container in containers {
                    node.check_one(container).await;
                }
            };
            token.run_until_cancelled(check).await;
        });
    }

    async fn check_one(&self, container: Existing) {
        let Existing {
            id,
            snapshotter,
            image,
        } = container;
        let name = image.as_deref();
        let chain = match self.engine.standing(&snapshotter, &id, name).await {
            Ok(Standing::Unknown { chain }) => chain,
            Ok(Standing::Ready | Standing::Scratch) => return,
            Err(e) => {
                log::debug!(container = id.as_str(), error:% = e; "container not checked");
                return;
            }
        };
        let want = Want::Container {
            key: id.clone(),
            chain,
            name: image,
        };
        let request = Request {
            want,
            snapshotter: snapshotter.clone(),
            urgency: Urgency::Background,
        };
        match self.engine.ensure(request).outcome().await {
            Ok(done) => {
                log::debug!(container = id.as_str(), snapshotter = snapshotter.as_str(), action:% = done.action; "container's image is ready");
            }
            Err(e) if e.is_left_out() => {
                log::debug!(container = id.as_str(), error:% = e; "container's image is left to containerd");
            }
            Err(e) => {
                log::warn!(container = id.as_str(), snapshotter = snapshotter.as_str(), error:% = e; "container's image is not ready");
                self.engine.replace_if_in_use(&e, &snapshotter);
            }
        }
    }

    /// Stops all work, and waits until it has tidied up after itself.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.engine.close().await;
    }
}
