//! A stand-in for Kubernetes' API server: lists with pages and watches with bookmarks over HTTP on the loopback interface,
//! as far as a client of pods and RuntimeClasses needs them, the change of a node, and the ways in which a server fails.
//!
//! It stores JSON and knows nothing else of the objects. It is not Kubernetes: what it answers is what the API's
//! documentation says, and its failures are ours.

mod answers;
mod faults;
mod nodes;
mod request;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use answers::{bookmark, fail, garbage, send, send_events, send_list};
use faults::Disturbance;
pub use faults::Ignored;
use request::{Request, read};
use tls::Tls;

/// The path of the pods of all namespaces.
const PODS: &str = "/api/v1/pods";

/// The path of the RuntimeClasses.
const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";

/// What the server does with the requests that come now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Answers as Kubernetes does.
    Good,
    /// Answers each request with this status.
    Status(u16),
    /// Answers lists, and a watch with the event of an error with this status.
    WatchError(u16),
    /// Answers lists, and ends each watch in the middle of a line.
    CutWatch,
    /// Closes each connection without an answer.
    Cut,
    /// Reads the request, and does not answer; closes the connection when it is set to something else.
    Silent,
    /// Answers each request with bytes that are no JSON; a list and a watch get as many as they read.
    Garbage,
    /// Sends a part of its answer, and closes the connection. Only for requests that [`ApiServer::disturb`] chooses.
    HalfCut,
    /// Sends a part of its answer, and the rest after [`ApiServer::calm`]. Only for requests that [`ApiServer::disturb`]
    /// chooses.
    HalfSilent,
    /// Answers after this time. Only for requests that [`ApiServer::disturb`] chooses.
    Delay(Duration),
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct ApiServer {
    address: String,
    tls: Option<Tls>,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// The number of changes, for those that wait for one.
    changes: watch::Sender<u64>,
}

struct State {
    mode: Mode,
    /// What it does with requests for nodes, if that is something else.
    nodes: Option<Mode>,
    /// The number of changes of nodes that it will refuse as conflicts.
    conflicts: usize,
    /// The largest page that is sent, whatever the limit of the request.
    page: usize,
    version: u64,
    /// The version from which on a watch may begin.
    oldest: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    /// The changes since the start, each with its version and its path.
    events: Vec<(u64, &'static str, Value)>,
    requests: Vec<String>,
    /// The number of times that all watches were cut.
    cuts: u64,
    /// The number of times that all watches were ended.
    ends: u64,
    /// The token that each request must have, if any.
    token: Option<String>,
    /// Chooses requests that it handles otherwise.
    disturbance: Option<Disturbance>,
    /// Which part of a new connection gets no answer.
    ignored: Option<Ignored>,
    /// The connections that fill the queue, while none is taken.
    fillers: Vec<std::net::TcpStream>,
    /// The number of times that the two were ended.
    calms: u64,
    /// The number of open watches.
    watches: usize,
}

impl ApiServer {
    /// Starts a server without objects on a free port.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start() -> Result<Self> {
        Self::start_on(None).await
    }

    /// Like [`Self::start`], with TLS. It accepts only clients with the certificate of [`Self::certificate`].
    ///
    /// # Errors
    /// If it cannot listen, or make certificates.
    pub async fn start_with_tls() -> Result<Self> {
        Self::start_on(Some(Tls::new()?)).await
    }

    async fn start_on(tls: Option<Tls>) -> Result<Self> {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await?);
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                mode: Mode::Good,
                nodes: None,
                conflicts: 0,
                page: usize::MAX,
                version: 1,
                oldest: 0,
                objects: BTreeMap::new(),
                events: Vec::new(),
                requests: Vec::new(),
                cuts: 0,
                ends: 0,
                token: None,
                disturbance: None,
                ignored: None,
                fillers: vec![],
                calms: 0,
                watches: 0,
            }),
            changes: watch::Sender::new(0),
        });
        let task = tokio::spawn(serve(listener.clone(), tls.clone(), shared.clone()));
        Ok(Self {
            address,
            tls,
            listener,
            shared,
            task,
        })
    }

    /// Returns its address: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns a client's certificate and its key in PEM, if it serves TLS.
    pub fn certificate(&self) -> Option<(&str, &str)> {
        let tls = self.tls.as_ref()?;
        Some((&tls.certificate, &tls.key))
    }

    /// Returns a kubeconfig for it, with this text for the user's credentials.
    pub fn kubeconfig(&self, user: &str) -> String {
        let cluster = match &self.tls {
            None => format!("server: 'http://{}'", self.address),
            Some(tls) => format!(
                "server: 'https://{}', certificate-authority-data: {}",
                self.address,
                BASE64_STANDARD.encode(&tls.ca)
            ),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters: [{{name: lab, cluster: {{{cluster}}}}}]\n\
             contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]\n\
             users: [{{name: lab, user: {user}}}]\n"
        )
    }

    /// Sets what it does from now on. The watches that are open go on, unless it is
    /// [`Mode::Cut`], [`Mode::CutWatch`] or [`Mode::WatchError`], which end them.
    pub fn set(&self, mode: Mode) {
        self.shared.state.lock().mode = mode;
        self.changed();
    }

    /// Ends all watches that are open, as after their time.
    pub fn end_watches(&self) {
        self.shared.state.lock().ends += 1;
        self.changed();
    }

    /// Closes the connections of all watches that are open.
    pub fn cut(&self) {
        self.shared.state.lock().cuts += 1;
        self.changed();
    }

    /// Sets the largest page.
    pub fn set_page(&self, page: usize) {
        self.shared.state.lock().page = page;
    }

    /// Sets the token that each request must have.
    pub fn set_token(&self, token: &str) {
        self.shared.state.lock().token = Some(token.to_owned());
    }

    /// Forgets the changes: the versions so far are too old for a watch.
    pub fn compact(&self) {
        let mut state = self.shared.state.lock();
        state.version += 1;
        state.oldest = state.version;
        state.events.clear();
    }

    /// Adds or replaces a pod, by its uid.
    pub fn put_pod(&self, pod: Value) {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        self.put(PODS, uid.to_owned(), pod);
    }

    /// Removes a pod by its uid.
    pub fn delete_pod(&self, uid: &str) {
        self.delete(PODS, uid);
    }

    /// Adds or replaces a RuntimeClass.
    pub fn put_class(&self, name: &str, handler: &str) {
        let class = json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": name, "uid": name}, "handler": handler,
        });
        self.put(CLASSES, name.to_owned(), class);
    }

    /// Sends a bookmark to each watch.
    pub fn bookmark(&self) {
        let mut state = self.shared.state.lock();
        state.version += 1;
        for path in [PODS, CLASSES] {
            let version = state.version;
            state.events.push((version, path, bookmark(version)));
        }
        drop(state);
        self.changed();
    }

    /// Returns the requests so far, each with its path and its query.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state.lock().requests.clone()
    }

    /// Waits until a request has all of these words, and returns the number of requests so far.
    ///
    /// # Errors
    /// If there is none within `timeout`.
    pub async fn wait_for_request(&self, words: &[&str], timeout: Duration) -> Result<usize> {
        self.wait_for_requests(words, 1, timeout).await
    }

    /// Like [`Self::wait_for_request`], for that many of them.
    ///
    /// # Errors
    /// If there are fewer within `timeout`.
    pub async fn wait_for_requests(
        &self,
        words: &[&str],
        count: usize,
        timeout: Duration,
    ) -> Result<usize> {
        let deadline = Instant::now() + timeout;
        loop {
            let requests = self.requests();
            let has_all = |request: &String| words.iter().all(|word| request.contains(word));
            if requests.iter().filter(|request| has_all(request)).count() >= count {
                return Ok(requests.len());
            }
            ensure!(
                Instant::now() < deadline,
                "no {count} of {words:?} in {requests:#?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn put(&self, path: &'static str, key: String, mut object: Value) {
        let mut state = self.shared.state.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let before = state.objects.insert((path, key), object.clone());
        let kind = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let event = json!({"type": kind, "object": object});
        state.events.push((version, path, event));
        drop(state);
        self.changed();
    }

    fn delete(&self, path: &'static str, key: &str) {
        let mut state = self.shared.state.lock();
        state.version += 1;
        let version = state.version;
        if let Some(mut object) = state.objects.remove(&(path, key.to_owned())) {
            object["metadata"]["resourceVersion"] = version.to_string().into();
            let event = json!({"type": "DELETED", "object": object});
            state.events.push((version, path, event));
        }
        drop(state);
        self.changed();
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|changes| *changes += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests", self.state.lock().requests.len())
    }
}

impl Shared {
    /// Waits until neither all requests nor those for nodes are answered in this mode.
    async fn until_set_to_another(&self, mode: Mode) -> Result<()> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let state = self.state.lock();
                if state.mode != mode && state.nodes != Some(mode) {
                    return Ok(());
                }
            }
            changes.changed().await?;
        }
    }
}

async fn serve(listener: Arc<TcpListener>, tls: Option<Tls>, shared: Arc<Shared>) {
    // Dropped with the task, and its connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(stream) = shared.accept(&listener).await else {
            return;
        };
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            // The client may go at any time.
            let _ = match tls {
                None => answer(stream, &shared).await,
                Some(tls) => match shared.shake_hands(&tls, stream).await {
                    Ok(stream) => answer(stream, &shared).await,
                    Err(e) => Err(e),
                },
            };
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers one request, and closes the connection.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    let (request, target) = read(&mut stream).await?;
    // A list and a watch are told apart by their queries.
    let is_get = request.method == "GET";
    let method = if is_get { "" } else { &request.method };
    let words = format!("{method} {target}").trim_start().to_owned();
    let (chosen, token) = shared.note(words);
    if token.is_some() && token != request.token {
        return fail(&mut stream, 401, "Unauthorized").await;
    }
    match chosen {
        Some(Mode::Silent) => shared.until_calm().await?,
        Some(Mode::Delay(time)) => tokio::time::sleep(time).await,
        Some(Mode::HalfCut | Mode::HalfSilent) if !request.is_watch() => {
            let mut whole = Vec::new();
            respond(&mut whole, shared, &request, None).await?;
            let is_cut = chosen == Some(Mode::HalfCut);
            return faults::half(&mut stream, shared, &whole, is_cut).await;
        }
        chosen => return respond(&mut stream, shared, &request, chosen).await,
    }
    respond(&mut stream, shared, &request, None).await
}

/// Sends the answer to a request in this mode; `None`: in that of the server.
async fn respond(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    request: &Request,
    chosen: Option<Mode>,
) -> Result<()> {
    if let Some(name) = request.path.strip_prefix(nodes::PATH) {
        return nodes::answer(stream, shared, name, request, chosen).await;
    }
    let path = match request.path.as_str() {
        PODS => PODS,
        CLASSES => CLASSES,
        _ => {
            let message = "the server could not find the requested resource";
            return fail(stream, 404, message).await;
        }
    };
    let mode = chosen.unwrap_or_else(|| shared.state.lock().mode);
    if let Some(done) = failing(stream, shared, mode).await {
        return done;
    }
    match request.is_watch() {
        true => send_events(stream, shared, path, request, chosen).await,
        false => send_list(stream, shared, path, request).await,
    }
}

/// Fails as this mode says; returns `None` if it says to answer.
async fn failing(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    mode: Mode,
) -> Option<Result<()>> {
    Some(match mode {
        Mode::Cut => Ok(()),
        Mode::Silent => shared.until_set_to_another(Mode::Silent).await,
        Mode::Status(code) => fail(stream, code, "as the test says").await,
        Mode::Garbage => garbage(stream).await,
        Mode::Good
        | Mode::WatchError(_)
        | Mode::CutWatch
        | Mode::HalfCut
        | Mode::HalfSilent
        | Mode::Delay(_) => return None,
    })
}
