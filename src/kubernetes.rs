//! Kubernetes knows the pods of this node before the runtime does. This part watches them at the API server, and says
//! which images the bound pods wait for, in the snapshotters of which runtime handlers. And it removes the startup taint
//! from the node, when the plugin is ready for pods.
//!
//! No pod waits for the API server. Without it, and without the feature `kubernetes`, the plugin works as without this
//! part. Knows neither NRI nor containerd: what becomes of an image is the business of [`crate::ahead`].

#[cfg(feature = "kubernetes")]
mod access;
#[cfg(feature = "kubernetes")]
mod api;
#[cfg(feature = "kubernetes")]
mod objects;
#[cfg(feature = "kubernetes")]
mod pauses;
#[cfg(feature = "kubernetes")]
mod pods;
#[cfg(feature = "kubernetes")]
mod reflector;
#[cfg(feature = "kubernetes")]
mod taint;
#[cfg(feature = "kubernetes")]
mod trial;

use std::sync::Arc;

use crate::ahead::Ahead;
use crate::config::{Config, Watch};
#[cfg(feature = "kubernetes")]
use crate::metrics;
use crate::node::Node;
#[cfg(feature = "kubernetes")]
use crate::panics;
#[cfg(feature = "kubernetes")]
use crate::policy;

#[cfg(feature = "kubernetes")]
pub use trial::{Trial, try_access, try_taint};

/// Returns a warning if the configuration asks for something that this program cannot do.
pub fn not_built(config: &Config) -> Option<&'static str> {
    let config = &config.kubernetes;
    if cfg!(feature = "kubernetes") {
        None
    } else if config.startup_taint().is_some() {
        Some(
            "kubernetes.startup_taint is set, but this program was built without the feature `kubernetes`",
        )
    } else {
        (config.watch == Watch::On).then_some(
            "kubernetes.watch is \"on\", but this program was built without the feature `kubernetes`",
        )
    }
}

/// The remedy for [`not_built`].
pub const BUILD: &str = "use a build with the feature, or remove the key";

/// Starts to watch the pods of this node, until the next session begins.
#[cfg(feature = "kubernetes")]
pub fn begin(node: &Arc<Node>, ahead: &Arc<Ahead>) {
    let config = node.config();
    match access::Access::for_watch(&config.kubernetes) {
        Ok(Some(access)) => node.in_session(watch(access, node.clone(), ahead.clone())),
        Ok(None) => {}
        Err(e) => log::error!("{e}; pods are not watched until this is corrected"),
    }
}

/// Removes the startup taint from this node as soon as the plugin is ready, if the configuration names one. The runtime
/// has told which containers exist: it calls the plugin for each one that comes.
#[cfg(feature = "kubernetes")]
pub fn synchronized(node: &Arc<Node>, ahead: &Arc<Ahead>) {
    let config = node.config();
    let Some(key) = config.kubernetes.startup_taint() else {
        return;
    };
    metrics::startup_taint(true);
    match access::Access::for_taint(&config.kubernetes) {
        Ok(access) => node.in_session(remove_taint(access, key.to_owned(), ahead.clone())),
        Err(e) => log::error!(taint = key; "{e}; the startup taint stays until this is corrected"),
    }
}

/// Does nothing: [`begin`] has said so.
#[cfg(not(feature = "kubernetes"))]
pub fn synchronized(_: &Arc<Node>, _: &Arc<Ahead>) {}

#[cfg(feature = "kubernetes")]
async fn remove_taint(access: access::Access, key: String, ahead: Arc<Ahead>) {
    ahead.until_pinned_ready().await;
    panics::begin_again(|| taint::run(&access, &key)).await;
}

/// Says that there is nothing to start, if the configuration asks for something.
#[cfg(not(feature = "kubernetes"))]
pub fn begin(node: &Arc<Node>, _: &Arc<Ahead>) {
    if let Some(why) = not_built(&node.config()) {
        log::error!("{why}: {BUILD}");
    }
}

#[cfg(feature = "kubernetes")]
async fn watch(access: access::Access, node: Arc<Node>, ahead: Arc<Ahead>) {
    // What is known of the pods is of no use before.
    ahead.until_known().await;
    // Work ahead is no verdict: without a list of namespaces the annotation counts in all snapshotters.
    let may_skip =
        Box::new(move |namespace: &str| policy::may_skip(&node.config().hooks, namespace, false));
    let known = pods::Known::new(access.node(), ahead, may_skip);
    log::info!(node = access.node(), from:% = access.origin(); "watching the pods that are bound to this node");
    let (classes, pods) = (pods::Classes(&known), pods::Pods(&known));
    tokio::join!(
        panics::begin_again(|| reflector::run(&access, &classes)),
        panics::begin_again(|| reflector::run(&access, &pods)),
    );
}
