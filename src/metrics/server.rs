//! A small HTTP server: `/metrics`, `/readyz`, `/livez`. Connections are few and limited in
//! time; if the address is in use, it is tried again.
//!
//! A client that opens more connections than are allowed closes the oldest ones, so that silent connections keep no
//! scraper and no probe of the kubelet away.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::fs::{Mode, fchmod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixSocket, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::Listen;
use crate::retry;

use super::text::Format;

/// The limit of connections: more than a node has scrapers.
const MAX_CONNECTIONS: usize = 16;

/// The limit of the duration of a connection.
const LONGEST: Duration = Duration::from_secs(30);

/// Whether the plugin does its work, for `/readyz`.
#[async_trait]
pub trait Readiness: Send + Sync {
    /// Returns the reason if it does not.
    async fn check(&self) -> Result<(), String>;
}

/// Serves until it is dropped.
pub async fn serve(listen: Listen, readiness: Arc<dyn Readiness>) {
    let mut is_logged = false;
    for pause in retry::pauses() {
        match serve_once(&listen, &readiness).await {
            Ok(()) => return,
            Err(e) if is_logged => log::debug!(listen:%, error:% = e; "metrics cannot be served"),
            Err(e) => {
                log::warn!(listen:%, error:% = e; "metrics cannot be served; trying again until it works");
                is_logged = true;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// # Errors
/// If the address cannot be listened on, or no longer.
async fn serve_once(listen: &Listen, readiness: &Arc<dyn Readiness>) -> io::Result<()> {
    let mut connections = Connections::default();
    match listen {
        Listen::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            log::info!(listen:%; "metrics are served");
            loop {
                let (stream, _) = listener.accept().await?;
                connections.open(stream, readiness.clone());
            }
        }
        Listen::Unix(path) => {
            remove_stale(path.as_ref()).await?;
            let listener = listen_on(path.as_ref())?;
            log::info!(listen:%; "metrics are served");
            loop {
                let (stream, _) = listener.accept().await?;
                connections.open(stream, readiness.clone());
            }
        }
    }
}

/// The waiting connections of the socket.
const BACKLOG: u32 = 16;

/// Listens on a socket that only root can connect to, whatever the umask is.
fn listen_on(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // The file gets the mode of the socket, so that there is no moment with another one.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// Removes a socket without a listener, but no other file of that name.
async fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        _ => return Ok(()),
    }
    match UnixStream::connect(path).await {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

/// The open connections. They end with this value.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first; some may have ended.
    order: VecDeque<AbortHandle>,
}

impl Connections {
    /// Serves a connection in the background. Closes the oldest one if there are too many.
    fn open<S>(&mut self, stream: S, readiness: Arc<dyn Readiness>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|connection| !connection.is_finished());
        while self.order.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
        }
        let opened = self.tasks.spawn(async move {
            let service = service_fn(|request| answer(request, readiness.clone()));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // An error of the connection is the client's.
            let _ = tokio::time::timeout(LONGEST, connection).await;
        });
        self.order.push_back(opened);
    }
}

async fn answer(
    request: Request<Incoming>,
    readiness: Arc<dyn Readiness>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let accept = request.headers().get(ACCEPT);
            let accept = accept.and_then(|value| value.to_str().ok());
            let format = Format::accepted(accept.unwrap_or_default());
            (StatusCode::OK, format.content_type(), format.text())
        }
        (&Method::GET, "/livez") => (StatusCode::OK, PLAIN, "alive\n".to_owned()),
        (&Method::GET, "/readyz") => match readiness.check().await {
            Ok(()) => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, why + "\n"),
        },
        (&Method::GET, _) => {
            let text = "there are /metrics, /readyz and /livez\n".to_owned();
            (StatusCode::NOT_FOUND, PLAIN, text)
        }
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            "GET only\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
