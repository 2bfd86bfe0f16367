//! What is known of the runtime handlers: which snapshotter each of them uses.

use std::path::Path;
use std::sync::Arc;

use futures::future::join_all;
use tokio::time::Instant;

use crate::config::Config;
use crate::containerd;
use crate::handlers::{FileConfig, Handlers, Running};
use crate::{peer, retry};

use super::Node;

/// What is known of the runtime handlers.
#[derive(Clone, Debug)]
pub(super) struct HandlerState {
    /// The last answer of containerd.
    pub(super) handlers: Option<Arc<Handlers>>,
    pub(super) answer: Answer,
}

/// Whether containerd has answered in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Not yet.
    Awaited,
    /// It did not answer; the request is repeated.
    None,
    /// The handlers are current.
    Here,
}

impl HandlerState {
    fn now(&self) -> Option<&Arc<Handlers>> {
        let is_here = self.answer == Answer::Here;
        self.handlers.as_ref().filter(|_| is_here)
    }
}

impl Node {
    /// Finds out which handler uses which snapshotter. If CRI shows no configuration, or is not
    /// there, the plugin's own configuration and containerd's files are used.
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

    /// Returns the problems of the handlers, their sources, and the snapshotters that they name.
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

    pub(super) async fn resolve_until_known(&self) {
        let mut is_logged = false;
        for pause in retry::pauses() {
            let config = self.config();
            let socket = &config.containerd.socket;
            let resolved = async {
                let handlers = self.resolve_by(&config).await?;
                let problems = self.problems(&handlers).await?;
                Ok::<_, containerd::Error>((handlers, problems))
            };
            match resolved.await {
                Ok((handlers, problems)) if self.store(&config, handlers.clone()) => {
                    log_handlers(&handlers, &problems);
                    return log_unread(&handlers, socket.as_ref()).await;
                }
                // The configuration has changed in between.
                Ok(_) => continue,
                Err(e) if is_logged => {
                    log::debug!(socket:%, error:% = e; "containerd does not answer");
                }
                Err(e) => {
                    log::warn!(socket:%, error:% = e; "containerd does not answer: pods are allowed unchecked until it does; check containerd.socket");
                }
            }
            is_logged = true;
            // Handlers that are known in this session stay known after a reload.
            self.handlers.send_modify(|state| {
                if state.answer == Answer::Awaited {
                    state.answer = Answer::None;
                }
            });
            tokio::time::sleep(pause).await;
        }
    }

    /// Stores the handlers if they were resolved with the configuration in force. Returns whether they were.
    fn store(&self, config: &Arc<Config>, handlers: Arc<Handlers>) -> bool {
        self.handlers.send_if_modified(|state| {
            let is_in_force = Arc::ptr_eq(config, &self.config());
            if is_in_force {
                *state = HandlerState {
                    handlers: Some(handlers),
                    answer: Answer::Here,
                };
            }
            is_in_force
        })
    }

    /// Finds out the profile of each handler's snapshotter, before the first hook needs it.
    pub(super) async fn find_out(&self) {
        if let Some(handlers) = self.handlers_now() {
            let snapshotters = handlers.snapshotters().into_iter();
            join_all(snapshotters.map(|name| self.engine.find_out(name))).await;
        }
    }

    /// Returns the handlers. Waits until `deadline` for containerd's first answer in this session, but not after
    /// a request that failed. Without an answer, returns the handlers of the session before.
    pub async fn handlers_by(&self, deadline: Instant) -> Option<Arc<Handlers>> {
        let mut states = self.handlers.subscribe();
        let asked = states.wait_for(|state| state.answer != Answer::Awaited);
        // The result does not matter: the last known handlers are returned in any case.
        let _ = tokio::time::timeout_at(deadline, asked).await;
        self.handlers.borrow().handlers.clone()
    }

    /// Waits until the handlers are known, and returns them.
    pub async fn known_handlers(&self) -> Arc<Handlers> {
        let mut states = self.handlers.subscribe();
        loop {
            if let Some(handlers) = states.borrow_and_update().now() {
                return handlers.clone();
            }
            if states.changed().await.is_err() {
                // The sender lives in this node.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns the handlers, if they are known.
    pub fn handlers_now(&self) -> Option<Arc<Handlers>> {
        self.handlers.borrow().now().cloned()
    }
}

/// Returns CRI's answer; `None` if CRI can be reached and does not have it: then containerd's files are read.
fn or_files(
    result: Result<Option<String>, containerd::Error>,
    what: &str,
) -> Result<Option<String>, containerd::Error> {
    match result {
        Err(e) if !e.is_unreachable() => {
            log::warn!(error:% = e; "CRI does not show {what}; reading containerd's files");
            Ok(None)
        }
        result => result,
    }
}

/// Files of containerd's that are not read, although it tells all about handlers. Where containerd sees the same files
/// as this process, a pattern that matches nothing here matches nothing there.
async fn log_unread(handlers: &Handlers, socket: &Path) {
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

fn log_handlers(handlers: &Handlers, problems: &[String]) {
    for problem in problems {
        log::error!("{problem}");
    }
    for (handler, resolved) in handlers.iter() {
        log::info!(handler, snapshotter = resolved.snapshotter.as_str(), from:% = resolved.origin; "handler resolved");
    }
}
