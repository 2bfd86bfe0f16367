//! The nodes of the stand-in: reading one, and changing it by a JSON patch. The patch is applied by a program of its own
//! kind, and all of it or nothing, as the API server does.

use anyhow::{Result, ensure};
use json_patch::{Patch, patch};
use serde_json::{Value, json};
use tokio::io::AsyncWrite;

use super::{ApiServer, Mode, Request, Shared, fail, failing, send};

/// The path of a node, up to its name.
pub(super) const PATH: &str = "/api/v1/nodes/";

impl ApiServer {
    /// Adds or replaces a node.
    pub fn put_node(&self, node: Value) {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        self.put(PATH, name.to_owned(), node);
    }

    /// Returns the taints of a node; none if there is no such node.
    pub fn taints(&self, name: &str) -> Vec<Value> {
        let state = self.shared.state.lock();
        let node = state.objects.get(&(PATH, name.to_owned()));
        let taints = node.and_then(|node| node["spec"]["taints"].as_array());
        taints.cloned().unwrap_or_default()
    }

    /// Sets what it does with requests for nodes from now on; `None`: the same as with all others.
    pub fn set_nodes(&self, mode: Option<Mode>) {
        self.shared.state.lock().nodes = mode;
        self.changed();
    }

    /// Answers the next changes of nodes with 409.
    pub fn conflict(&self, times: usize) {
        self.shared.state.lock().conflicts = times;
    }
}

pub(super) async fn answer(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    name: &str,
    request: &Request,
    chosen: Option<Mode>,
) -> Result<()> {
    let mode = chosen.unwrap_or_else(|| {
        let state = shared.state.lock();
        state.nodes.unwrap_or(state.mode)
    });
    if let Some(done) = failing(stream, shared, mode).await {
        return done;
    }
    let (code, answer) = match request.method.as_str() {
        "GET" => shared.node(name),
        "PATCH" => shared.patch(name, request)?,
        _ => return fail(stream, 405, "the method is not allowed").await,
    };
    match code {
        200 => send(stream, code, &answer.to_string()).await,
        _ => fail(stream, code, answer.as_str().unwrap_or_default()).await,
    }
}

impl Shared {
    /// Returns the status and the node, or the status and the reason.
    fn node(&self, name: &str) -> (u16, Value) {
        let state = self.state.lock();
        match state.objects.get(&(PATH, name.to_owned())) {
            Some(node) => (200, node.clone()),
            None => (404, json!(format!("nodes \"{name}\" not found"))),
        }
    }

    fn patch(&self, name: &str, request: &Request) -> Result<(u16, Value)> {
        let kind = request.content_type.as_deref();
        if kind != Some("application/json-patch+json") {
            return Ok((415, json!("the type of the patch is not known")));
        }
        let operations: Patch = serde_json::from_slice(&request.body)?;
        let mut state = self.state.lock();
        if state.conflicts > 0 {
            state.conflicts -= 1;
            return Ok((409, json!("the object has been modified")));
        }
        let version = state.version + 1;
        let Some(node) = state.objects.get_mut(&(PATH, name.to_owned())) else {
            return Ok((404, json!(format!("nodes \"{name}\" not found"))));
        };
        let mut changed = node.clone();
        if let Err(e) = patch(&mut changed, &operations) {
            return Ok((422, json!(e.to_string())));
        }
        if request.query.get("dryRun").is_some_and(|run| run == "All") {
            return Ok((200, changed));
        }
        changed["metadata"]["resourceVersion"] = version.to_string().into();
        *node = changed.clone();
        state.version = version;
        ensure!(changed["metadata"]["name"] == name, "the name was changed");
        Ok((200, changed))
    }
}
