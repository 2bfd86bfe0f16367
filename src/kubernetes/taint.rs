//! Removes the startup taint from this node, when the plugin is ready. A new node has the taint from its registration on,
//! so no pod is bound to it before.
//!
//! The taint is not put back: a plugin that is updated or that fails later makes no node unschedulable.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use crate::metrics;

use super::access::Access;
use super::api::{self, Error};
use super::objects::Node;
use super::pauses::{self, Pauses};

/// The number of changes by other clients in a row that are nothing but bad luck.
const MAX_CONFLICTS: usize = 8;

/// The shortest pause before the next look at a node without the taint. A node that is deleted and registers again gets the taint
/// again, while a plugin that is no pod goes on.
const LOOK_EVERY: Duration = Duration::from_secs(10 * 60);

/// What was found at the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The taint, which is removed now.
    Taint,
    /// No taint of this key.
    None,
}

/// Removes taints of this key until it is dropped, or until the session with the runtime has ended.
pub(super) async fn run(access: &Access, key: &str) {
    let mut pauses = Pauses::new();
    let (mut failure, mut conflicts) = (None, 0);
    // The next session begins this again.
    while metrics::is_registered() {
        let node = access.node();
        let pause = match remove(access, key).await {
            Ok(found) => {
                metrics::startup_taint(false);
                match found {
                    Found::Taint => {
                        log::info!(node, taint = key; "startup taint removed: pods may be bound to this node");
                    }
                    Found::None => log::debug!(node, taint = key; "node has no startup taint"),
                }
                (pauses, failure, conflicts) = (Pauses::new(), None, 0);
                pauses::spread(LOOK_EVERY)
            }
            // 422: the test of the patch has failed.
            Err(Error::Failed {
                code: 409 | 422, ..
            }) if conflicts < MAX_CONFLICTS => {
                log::debug!(node, taint = key; "taints of the node have changed meanwhile: trying again");
                conflicts += 1;
                pauses.next()
            }
            Err(e) => {
                metrics::api_server_error(e.reason());
                log_failure(&mut failure, access, key, &e);
                pauses.after(&e)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Removes the taints of this key from the node, and returns whether it had any.
async fn remove(access: &Access, key: &str) -> Result<Found, Error> {
    let (client, path) = (access.client().await?, path(access));
    let operations = removal(&taints(&client, &path).await?, key);
    if operations.is_empty() {
        return Ok(Found::None);
    }
    api::patch(&client, &path, &operations).await?;
    Ok(Found::Taint)
}

/// Like [`remove`], but changes nothing: the API server does all but that, and refuses what it would refuse.
pub(super) async fn try_out(access: &Access, key: &str) -> Result<Found, Error> {
    let (client, path) = (access.client().await?, path(access));
    let operations = removal(&taints(&client, &path).await?, key);
    api::patch(&client, &(path + "?dryRun=All"), &operations).await?;
    Ok(match operations.is_empty() {
        true => Found::None,
        false => Found::Taint,
    })
}

async fn taints(client: &Client, path: &str) -> Result<Vec<Value>, Error> {
    let node: Node = api::object(client, path).await?;
    Ok(node.spec.taints)
}

fn path(access: &Access) -> String {
    format!("/api/v1/nodes/{}", access.node())
}

/// Returns the operations of a JSON patch that removes the taints of this key, and fails if another client has changed
/// the list. Each effect has a taint of its own.
fn removal(taints: &[Value], key: &str) -> Vec<Value> {
    let ours = taints.iter().enumerate();
    let ours = ours.filter(|(_, taint)| taint["key"] == key);
    // From the last on, so that a removal moves no taint that is tested later.
    let operations = ours.rev().flat_map(|(n, taint)| {
        let path = format!("/spec/taints/{n}");
        [
            json!({"op": "test", "path": path, "value": taint}),
            json!({"op": "remove", "path": path}),
        ]
    });
    operations.collect()
}

/// Logs a failure once, until a try works.
fn log_failure(last: &mut Option<&'static str>, access: &Access, key: &str, error: &Error) {
    let node = access.node();
    if last.replace(error.reason()) == Some(error.reason()) {
        return log::debug!(node, taint = key, error:%; "startup taint cannot be removed: trying again");
    }
    let remedy = match error {
        Error::Refused { code: 403, .. } => {
            "; allow `get` and `patch` of nodes, with other credentials than the kubelet's (docs/kubernetes.md)"
        }
        Error::Refused { .. } => "; renew the credentials (docs/kubernetes.md)",
        Error::Failed { code: 404, .. } => "; set kubernetes.node to this node's name",
        _ => "",
    };
    log::warn!(node, taint = key, error:%; "startup taint cannot be removed{remedy}; no pod that does not tolerate it is bound to this node until that works; trying again");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Value {
        json!({"key": key, "effect": effect})
    }

    #[test]
    fn only_taints_of_the_key_are_removed_from_the_last_on() {
        let (ours, foreign) = ("nri-unpack/starting", "nri-unpack/starting-2");
        let taints = [
            taint(ours, "NoSchedule"),
            taint(foreign, "NoSchedule"),
            taint(ours, "NoExecute"),
        ];
        let of = |n: usize| {
            let path = format!("/spec/taints/{n}");
            [
                json!({"op": "test", "path": path, "value": taints[n]}),
                json!({"op": "remove", "path": path}),
            ]
        };
        assert_eq!(removal(&taints, ours), [of(2), of(0)].concat());
        assert_eq!(removal(&taints[1..2], ours), [Value::Null; 0]);
        assert_eq!(removal(&[json!(3), json!({})], ours), [Value::Null; 0]);
    }
}
