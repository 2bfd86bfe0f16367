//! Tries the access to the API server once, for `doctor`.

use std::time::Duration;

use tokio::time::timeout;

use crate::config;

use super::access::Access;
use super::api::{Error, Resource};
use super::objects::{Pod, RuntimeClass};
use super::pods::{Classes, Pods};
use super::reflector::Kind;
use super::taint::{self, Found};

/// The limit of a try. All other findings of `doctor` wait for it. Shorter than the limit of a connection, so that one that
/// is not accepted has the same finding as an answer that does not come.
const LIMIT: Duration = Duration::from_secs(8);

/// The result of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It is not configured.
    Off,
    /// The configuration or the credentials cannot be used; with the reason and the remedy.
    Unusable(String),
    /// The API server cannot be reached, or its answer cannot be used.
    Failed {
        /// The source of the credentials.
        origin: String,
        /// The error.
        error: String,
    },
    /// The API server refuses the request.
    Refused {
        /// The source of the credentials.
        origin: String,
        /// The resource that must not be used as it is needed.
        resource: &'static str,
        /// The error.
        error: String,
        /// Whether the credentials were not accepted at all.
        is_unknown: bool,
    },
    /// It works.
    Works {
        /// The name of this node.
        node: String,
        /// Whether there are pods on a node of this name.
        has_pods: bool,
    },
    /// The API server has no node of this name.
    NoNode {
        /// The name.
        node: String,
    },
    /// This node has its startup taint.
    Tainted {
        /// The name of this node.
        node: String,
        /// The key of the taint.
        key: String,
    },
}

/// Asks the API server for one pod and one RuntimeClass.
pub async fn try_access(config: &config::Kubernetes) -> Trial {
    let access = match Access::for_watch(config) {
        Ok(Some(access)) => access,
        Ok(None) => return Trial::Off,
        Err(e) => return Trial::Unusable(e.to_string()),
    };
    let tried = timeout(LIMIT, has_pods(&access)).await;
    let tried = tried.unwrap_or(Err((Pods::WORD, Error::Slow(LIMIT))));
    match tried {
        Ok(has_pods) => Trial::Works {
            node: access.node().to_owned(),
            has_pods,
        },
        Err((resource, e)) => failed(access.origin().to_string(), resource, &e),
    }
}

/// Tries to remove the startup taint from this node, without changing it.
pub async fn try_taint(config: &config::Kubernetes) -> Trial {
    let Some(key) = config.startup_taint() else {
        return Trial::Off;
    };
    let access = match Access::for_taint(config) {
        Ok(access) => access,
        Err(e) => return Trial::Unusable(e.to_string()),
    };
    let node = access.node().to_owned();
    let tried = timeout(LIMIT, taint::try_out(&access, key)).await;
    match tried.unwrap_or(Err(Error::Slow(LIMIT))) {
        Ok(Found::None) => Trial::Off,
        Ok(Found::Taint) => Trial::Tainted {
            node,
            key: key.to_owned(),
        },
        Err(Error::Failed { code: 404, .. }) => Trial::NoNode { node },
        Err(e) => failed(access.origin().to_string(), "nodes", &e),
    }
}

fn failed(origin: String, resource: &'static str, error: &Error) -> Trial {
    let text = error.to_string();
    match error {
        Error::Setup(_) => Trial::Unusable(text),
        Error::Refused { code, .. } => Trial::Refused {
            origin,
            resource,
            error: text,
            is_unknown: *code == 401,
        },
        _ => Trial::Failed {
            origin,
            error: text,
        },
    }
}

/// Whether pods are bound to this node, if all kinds can be listed.
async fn has_pods(access: &Access) -> Result<bool, (&'static str, Error)> {
    let of = |kind| move |e| (kind, e);
    let client = access.client().await.map_err(of(Pods::WORD))?;
    let fields = Pods::fields(access.node());
    let pods = Resource {
        client: client.clone(),
        path: Pods::PATH,
        fields: fields.as_deref(),
    };
    let pod = pods.any::<Pod>().await.map_err(of(Pods::WORD))?;
    let classes = Resource {
        client,
        path: Classes::PATH,
        fields: None,
    };
    let class = classes.any::<RuntimeClass>().await;
    class.map_err(of(Classes::WORD))?;
    Ok(pod.is_some())
}
