//! This node: its containerd, the engine on it, and what its runtime handlers use.
//!
//! The plugin keeps one for its whole life, a command for the time that it runs. What goes on in
//! the background is owned here, and waited for by [`Node::close`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::containerd::grpc::{Grpc, SetupError};
use crate::containerd::{self, Containerd};
use crate::handlers::{FileConfig, Handlers};
use crate::unpack::{Engine, Request, Role, Standing, Want};
use crate::{policy, retry};

/// The node that this program runs on.
pub struct Node {
    /// As it was read.
    pub config: Arc<Config>,
    /// The one connection.
    pub containerd: Arc<dyn Containerd>,
    /// All work on it.
    pub engine: Arc<Engine>,
    handlers: watch::Sender<Option<Arc<Handlers>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends the check of what an earlier session found on the node.
    checking: Mutex<CancellationToken>,
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
        let containerd: Arc<dyn Containerd> = Arc::new(grpc);
        let config = Arc::new(config);
        let parallel_images = config.unpack.parallel_images.count().get();
        let labels = policy::Labels(config.clone());
        Ok(Arc::new(Self {
            engine: Engine::new(containerd.clone(), role, parallel_images, Box::new(labels)),
            config,
            containerd,
            handlers: watch::Sender::new(None),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            checking: Mutex::default(),
        }))
    }

    /// Finds out which handler uses which snapshotter, and says what is wrong with any of them.
    pub async fn resolve(&self) -> Result<Arc<Handlers>, containerd::Error> {
        let reported = self.containerd.cri_config().await?;
        let file = FileConfig::read(self.config.containerd.config.as_ref());
        let handlers = Handlers::resolve(&self.config, reported.as_deref(), Some(file));
        let handlers = Arc::new(handlers);
        self.handlers.send_replace(Some(handlers.clone()));
        Ok(handlers)
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

    /// In the background: resolves the handlers anew and takes away what a crash has left, again and
    /// again until containerd answers.
    pub fn refresh(self: &Arc<Self>) {
        let node = self.clone();
        self.tasks.spawn(async move {
            node.stop.run_until_cancelled(node.refreshed()).await;
        });
    }

    async fn refreshed(&self) {
        let mut said = false;
        for pause in retry::pauses() {
            match self.try_refresh().await {
                Ok(()) => return,
                Err(e) if said => log::debug!(error:% = e; "containerd does not answer yet"),
                Err(e) => log::warn!(error:% = e; "containerd does not answer yet; trying on"),
            }
            said = true;
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_refresh(&self) -> Result<(), containerd::Error> {
        let handlers = self.resolve().await?;
        for problem in self.problems(&handlers).await? {
            log::error!("{problem}");
        }
        for (handler, resolved) in handlers.iter() {
            log::info!(handler, snapshotter = resolved.snapshotter.as_str(), from:% = resolved.origin; "handler resolved");
        }
        self.engine.forget();
        let swept = self.engine.sweep().await?;
        if swept > 0 {
            log::info!(leases = swept; "took away what an earlier run had left");
        }
        Ok(())
    }

    /// The handlers, waited for until `deadline`: right after a start they are not known yet.
    pub async fn handlers_by(&self, deadline: Instant) -> Option<Arc<Handlers>> {
        let mut handlers = self.handlers.subscribe();
        let known = handlers.wait_for(Option::is_some);
        let known = tokio::time::timeout_at(deadline.into(), known).await;
        known.ok()?.ok()?.clone()
    }

    /// In the background, one after another, once the handlers are known: has the images of these
    /// containers ready for the next ones. A later call ends an earlier one.
    pub fn check_existing(
        self: &Arc<Self>,
        existing: impl FnOnce(&Handlers) -> Vec<Existing> + Send + 'static,
    ) {
        let token = self.stop.child_token();
        let mut checking = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *checking, token.clone()).cancel();
        let node = self.clone();
        self.tasks.spawn(async move {
            let check = async {
                let mut handlers = node.handlers.subscribe();
                let known = handlers.wait_for(Option::is_some).await;
                let Some(known) = known.ok().and_then(|known| known.clone()) else {
                    return;
                };
                for container in existing(&known) {
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
            background: true,
        };
        match self.engine.ensure(request).outcome().await {
            Ok(done) if done.stand_on.is_some() => {
                log::warn!(container = id.as_str(), image = done.image.as_str(), snapshotter = snapshotter.as_str(); "container runs from an unpack on the host that its guest should have pulled");
                self.engine.replace_when_unused(done.image, snapshotter);
            }
            Ok(done) => {
                log::debug!(container = id.as_str(), snapshotter = snapshotter.as_str(), action:% = done.action; "container's image is ready");
            }
            Err(e) => {
                log::warn!(container = id.as_str(), snapshotter = snapshotter.as_str(), error:% = e; "container's image is not ready");
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
