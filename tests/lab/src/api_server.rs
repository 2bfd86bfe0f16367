//! A stand-in for Kubernetes' API server: lists with pages and watches with bookmarks over HTTP on the loopback interface,
//! as far as a client of pods and RuntimeClasses needs them, the change of a node, and the ways in which a server fails.
//!
//! It stores JSON and knows nothing else of the objects. It is not Kubernetes: what it answers is what the API's
//! documentation says, and its failures are ours.

mod nodes;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use tls::Tls;

/// The path of the pods of all namespaces.
const PODS: &str = "/api/v1/pods";

/// The path of the RuntimeClasses.
const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";

/// The limit of a request's head, and of its body.
const MAX_REQUEST: usize = 16 << 10;

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
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct ApiServer {
    address: String,
    tls: Option<Tls>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The number of changes, for those that wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
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
    /// The token that each request must have, if any.
    token: Option<String>,
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
        let listener = TcpListener::bind("127.0.0.1:0").await?;
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
                token: None,
            }),
            changes: watch::Sender::new(0),
        });
        let task = tokio::spawn(serve(listener, tls.clone(), shared.clone()));
        Ok(Self {
            address,
            tls,
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
            let object = json!({"metadata": {"resourceVersion": version.to_string()}});
            let event = json!({"type": "BOOKMARK", "object": object});
            state.events.push((version, path, event));
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

async fn serve(listener: TcpListener, tls: Option<Tls>, shared: Arc<Shared>) {
    // Dropped with the task, and its connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            // The client may go at any time.
            let _ = match tls {
                None => answer(stream, &shared).await,
                Some(tls) => match tls.acceptor.accept(stream).await {
                    Ok(stream) => answer(stream, &shared).await,
                    Err(e) => Err(e.into()),
                },
            };
        });
        while connections.try_join_next().is_some() {}
    }
}

/// A request without its headers but two.
struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    token: Option<String>,
    content_type: Option<String>,
    body: Vec<u8>,
}

/// Answers one request, and closes the connection.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    let (request, target) = read(&mut stream).await?;
    let (mode, token) = {
        let mut state = shared.state.lock();
        // A list and a watch are told apart by their queries.
        let is_get = request.method == "GET";
        let method = if is_get { "" } else { &request.method };
        state
            .requests
            .push(format!("{method} {target}").trim_start().to_owned());
        (state.mode, state.token.clone())
    };
    if token.is_some() && token != request.token {
        return fail(&mut stream, 401, "Unauthorized").await;
    }
    if let Some(name) = request.path.strip_prefix(nodes::PATH) {
        return nodes::answer(&mut stream, shared, name, &request).await;
    }
    let path = match request.path.as_str() {
        PODS => PODS,
        CLASSES => CLASSES,
        _ => {
            return fail(
                &mut stream,
                404,
                "the server could not find the requested resource",
            )
            .await;
        }
    };
    let is_watch = request
        .query
        .get("watch")
        .is_some_and(|watch| watch == "true");
    if let Some(done) = failing(&mut stream, shared, mode).await {
        return done;
    }
    match is_watch {
        true => send_events(&mut stream, shared, path, &request).await,
        false => send_list(&mut stream, shared, path, &request).await,
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
        Mode::Good | Mode::WatchError(_) | Mode::CutWatch => return None,
    })
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Request, String)> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        ensure!(bytes.len() < MAX_REQUEST, "a request without end");
        bytes.push(stream.read_u8().await?);
    }
    let text = String::from_utf8(bytes)?;
    let mut lines = text.lines();
    let first = lines.next().context("no request")?;
    let (method, rest) = first.split_once(' ').context("no method")?;
    let target = rest.split(' ').next().context("no target")?.to_owned();
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let header = |name: &str| {
        let mut named = headers
            .iter()
            .filter(|(of, _)| of.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| *value)
    };
    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let length = header("content-length").unwrap_or("0").parse()?;
    ensure!(length <= MAX_REQUEST, "a body of {length} bytes");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: pairs
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect(),
        token: bearer.map(str::to_owned),
        content_type: header("content-type").map(str::to_owned),
        body,
    };
    Ok((request, target))
}

/// Returns a value of a query without its percent signs.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let digits = |rest: &mut std::str::Bytes<'_>| {
            let text = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&text).ok()?, 16).ok()
        };
        bytes.push(match byte {
            b'%' => digits(&mut rest).unwrap_or(byte),
            _ => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Request {
    /// Whether the field selector selects this object.
    fn selects(&self, object: &Value) -> bool {
        let Some(selector) = self.query.get("fieldSelector") else {
            return true;
        };
        let node = selector.strip_prefix("spec.nodeName=");
        node.is_some_and(|node| object["spec"]["nodeName"] == node)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.query.get(name)?.parse().ok()
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), code: u16, body: &str) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message})
}

async fn fail(stream: &mut (impl AsyncWrite + Unpin), code: u16, message: &str) -> Result<()> {
    send(stream, code, &status(code, message).to_string()).await
}

/// Sends bytes that are no JSON and have no end of a line, until the client goes.
async fn garbage(stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    begin_chunks(stream).await?;
    loop {
        chunk(stream, &[0xc3; 4096]).await?;
    }
}

async fn begin_chunks(stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    Ok(())
}

async fn chunk(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let head = format!("{:x}\r\n", bytes.len());
    stream
        .write_all(&[head.as_bytes(), bytes, b"\r\n"].concat())
        .await?;
    stream.flush().await?;
    Ok(())
}

async fn send_list(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    path: &'static str,
    request: &Request,
) -> Result<()> {
    let from = request.number("continue").unwrap_or_default() as usize;
    let list = {
        let state = shared.state.lock();
        let limit = request.number("limit").unwrap_or(u64::MAX);
        let limit = state.page.min(usize::try_from(limit).unwrap_or(usize::MAX));
        let of_path = state.objects.iter().filter(|((of, _), _)| *of == path);
        let all: Vec<_> = of_path.map(|(_, object)| object).collect();
        let all: Vec<_> = all
            .into_iter()
            .filter(|object| request.selects(object))
            .collect();
        let items: Vec<_> = all.iter().skip(from).take(limit).collect();
        let mut metadata = json!({"resourceVersion": state.version.to_string()});
        if from + items.len() < all.len() {
            metadata["continue"] = (from + items.len()).to_string().into();
        }
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
    };
    send(stream, 200, &list.to_string()).await
}

async fn send_events(
    stream: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    path: &'static str,
    request: &Request,
) -> Result<()> {
    let mut sent = request.number("resourceVersion").unwrap_or_default();
    let lasts = request.number("timeoutSeconds").unwrap_or(1);
    let deadline = Instant::now() + Duration::from_secs(lasts);
    if sent < shared.state.lock().oldest {
        return fail(stream, 410, "too old resource version").await;
    }
    let cuts = shared.state.lock().cuts;
    let mut changes = shared.changes.subscribe();
    begin_chunks(stream).await?;
    loop {
        changes.borrow_and_update();
        let (mode, lines, version) = {
            let state = shared.state.lock();
            if state.cuts != cuts {
                return Ok(());
            }
            let new = state.events.iter();
            let new = new.filter(|(version, of, event)| {
                let is_bookmark = event["type"] == "BOOKMARK";
                *version > sent && *of == path && (is_bookmark || request.selects(&event["object"]))
            });
            let lines: Vec<_> = new.map(|(_, _, event)| event.to_string() + "\n").collect();
            (state.mode, lines, state.version)
        };
        for line in lines {
            chunk(stream, line.as_bytes()).await?;
        }
        sent = version;
        match mode {
            Mode::Cut => return Ok(()),
            Mode::CutWatch => return chunk(stream, b"{\"type\":\"ADD").await,
            Mode::WatchError(code) => {
                let event = json!({"type": "ERROR", "object": status(code, "as the test says")});
                chunk(stream, (event.to_string() + "\n").as_bytes()).await?;
                break;
            }
            _ => {}
        }
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(changed) => changed?,
            Err(_) => break,
        }
    }
    stream.write_all(b"0\r\n\r\n").await?;
    Ok(())
}
