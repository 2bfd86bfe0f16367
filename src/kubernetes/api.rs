//! Requests to the API server: lists and watches, one object, and its change. Each answer and each wait has a bound.

use std::fmt::Display;
use std::pin::Pin;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use kube::Client;
use kube::client::Body;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use crate::unquoted::without_values;

use super::objects::{Event, Page, Status, Versioned};

/// How long the API server may take to begin an answer, and to end the page of a list.
const ANSWER: Duration = Duration::from_secs(30);

/// The pods of one page: with the usual size of a pod, a page takes one or two megabytes while it is read.
const PAGE: u32 = 100;

/// The same after a page that was too large.
const SMALL_PAGE: u32 = 5;

/// The limit of pages: no node has so many pods, also in small pages.
const MOST_PAGES: usize = 1000;

/// The limit of a path with its query, in bytes. Beyond 64 KiB, with the server's own path, kube
/// panics.
const LONGEST_QUERY: usize = 32 << 10;

/// The limit of a page. etcd stores at most 1.5 MiB for an object.
const MAX_PAGE: usize = 16 << 20;

/// The limit of one object, as of a line of a watch.
const MAX_OBJECT: usize = 4 << 20;

/// What stays allocated for the next lines after a long one.
const KEPT: usize = 64 << 10;

/// The limit of what is read of an error's answer.
const MAX_ERROR: usize = 64 << 10;

/// How long a watch lasts, beyond which the client ends it: the server should have done so.
const GRACE: Duration = Duration::from_secs(30);

/// Why the API server did not do what was asked for.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Error {
    /// The configuration or the credentials cannot be used; the text has the remedy.
    #[error("{0}")]
    Setup(String),
    /// 401 or 403.
    #[error("the API server answers {code}: {message}")]
    Refused { code: u16, message: String },
    /// 410: the version of a watch or the token of a page is too old.
    #[error("the version is too old for the API server: {0}")]
    Expired(String),
    /// Any other status.
    #[error("the API server answers {code}: {message}")]
    Failed { code: u16, message: String },
    /// It could not be reached, or the connection broke.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("the API server does not answer within {0:?}")]
    Slow(Duration),
    /// The answer makes no sense.
    #[error("the API server's answer cannot be read: {0}")]
    Malformed(String),
    /// The answer is longer than the limit.
    #[error("the API server's answer is longer than {0} bytes")]
    TooLarge(usize),
}

impl Error {
    fn of_status(code: u16, message: String) -> Self {
        match code {
            401 | 403 => Self::Refused { code, message },
            410 => Self::Expired(message),
            _ => Self::Failed { code, message },
        }
    }

    /// Returns the word for the metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Setup(_) => "credentials",
            Self::Refused { .. } => "refused",
            Self::Expired(_) => "expired",
            Self::Failed { .. } => "failed",
            Self::Unreachable(_) => "unreachable",
            Self::Slow(_) => "slow",
            Self::Malformed(_) | Self::TooLarge(_) => "malformed",
        }
    }
}

fn malformed(error: impl Display) -> Error {
    Error::Malformed(without_values(&error))
}

/// A kind of object at the API server.
pub(super) struct Resource<'a> {
    pub(super) client: Client,
    pub(super) path: &'static str,
    pub(super) fields: Option<&'a str>,
}

impl Resource<'_> {
    /// Calls `each` for each object of the list, page by page. Returns the version of the list.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        mut each: impl FnMut(Vec<T>),
    ) -> Result<String, Error> {
        let (mut limit, mut token) = (PAGE, String::new());
        for _ in 0..MOST_PAGES {
            let page: Page<T> = match self.page(limit, &token).await {
                Err(Error::TooLarge(_)) if limit == PAGE => {
                    limit = SMALL_PAGE;
                    continue;
                }
                page => page?,
            };
            each(page.items);
            let next = page.metadata.next;
            if next.is_empty() {
                return Ok(page.metadata.resource_version);
            }
            if next == token {
                return Err(malformed("a page names itself as the next one"));
            }
            token = next;
        }
        Err(malformed("the list does not end"))
    }

    /// Returns the first object of the list, if there is one.
    pub(super) async fn any<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let page: Page<T> = self.page(1, "").await?;
        Ok(page.items.into_iter().next())
    }

    async fn page<T: DeserializeOwned>(&self, limit: u32, token: &str) -> Result<Page<T>, Error> {
        let mut query = self.query();
        add(&mut query, "limit", &limit.to_string());
        if !token.is_empty() {
            add(&mut query, "continue", token);
        }
        read(&self.client, get(&query)?, MAX_PAGE).await
    }

    /// Begins a watch from this version, which the server ends after some time.
    pub(super) async fn watch(&self, version: &str, lasts: Duration) -> Result<Lines, Error> {
        let mut query = self.query();
        add(&mut query, "watch", "true");
        add(&mut query, "allowWatchBookmarks", "true");
        add(&mut query, "resourceVersion", version);
        add(&mut query, "timeoutSeconds", &lasts.as_secs().to_string());
        let now = Instant::now();
        Ok(Lines {
            body: Box::pin(send(&self.client, get(&query)?, now + ANSWER).await?),
            buffer: Vec::new(),
            searched: 0,
            deadline: now + lasts + GRACE,
        })
    }

    /// Returns the path and the beginning of the query. kube's own requests limit a watch to 295 s.
    fn query(&self) -> String {
        let mut query = self.path.to_owned();
        if let Some(fields) = self.fields {
            add(&mut query, "fieldSelector", fields);
        }
        query
    }
}

/// Returns the object at this path.
pub(super) async fn object<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, Error> {
    read(client, get(path)?, MAX_OBJECT).await
}

/// Changes the object at this path by the operations of a JSON patch, all of them or none.
pub(super) async fn patch(client: &Client, path: &str, operations: &[Value]) -> Result<(), Error> {
    let body = serde_json::to_vec(operations).map_err(malformed)?;
    let request = Request::patch(path)
        .header(CONTENT_TYPE, "application/json-patch+json")
        .body(Body::from(body))
        .map_err(malformed)?;
    // An answer without the new object is not the API server's: nothing may have changed.
    let _: Versioned = read(client, request, MAX_OBJECT).await?;
    Ok(())
}

fn get(query: &str) -> Result<Request<Body>, Error> {
    if query.len() > LONGEST_QUERY {
        return Err(malformed(
            "a name or a version for the next request is too long",
        ));
    }
    Request::get(query).body(Body::empty()).map_err(malformed)
}

/// Returns the whole answer, of at most `limit` bytes.
async fn read<T: DeserializeOwned>(
    client: &Client,
    request: Request<Body>,
    limit: usize,
) -> Result<T, Error> {
    let deadline = Instant::now() + ANSWER;
    let body = send(client, request, deadline).await?;
    let read = timeout_at(deadline, whole(body, limit)).await;
    let bytes = read.unwrap_or(Err(Error::Slow(ANSWER)))?;
    serde_json::from_slice(&bytes).map_err(malformed)
}

/// Sends a request, and returns the body of a good answer.
async fn send(client: &Client, request: Request<Body>, deadline: Instant) -> Result<Body, Error> {
    let sent = timeout_at(deadline, client.send(request)).await;
    let answer = sent
        .map_err(|_| Error::Slow(ANSWER))?
        .map_err(unreachable)?;
    let (code, body) = (answer.status(), answer.into_body());
    if code.is_success() {
        return Ok(body);
    }
    let read = timeout(ANSWER, whole(body, MAX_ERROR)).await;
    let bytes = read.ok().and_then(Result::ok).unwrap_or_default();
    let status: Status = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = match status.message.is_empty() {
        true => code.canonical_reason().unwrap_or_default().to_owned(),
        false => status.message,
    };
    Err(Error::of_status(code.as_u16(), message))
}

/// Adds a parameter to a query.
fn add(query: &mut String, name: &str, value: &str) {
    query.push(if query.contains('?') { '&' } else { '?' });
    query.push_str(name);
    query.push('=');
    for byte in value.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' => query.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => query.push(byte.into()),
            _ => query.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// Returns an error with all of its causes: the outermost says only that a request failed.
fn unreachable(error: impl std::error::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    Error::Unreachable(text)
}

/// Returns an error for bytes that begin otherwise than an object: their end need not be waited for.
fn is_object(bytes: &[u8]) -> Result<(), Error> {
    match bytes.trim_ascii_start().first() {
        None | Some(b'{') => Ok(()),
        Some(_) => Err(malformed("it is not a JSON object")),
    }
}

/// Reads a body of at most `limit` bytes.
async fn whole(mut body: Body, limit: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(unreachable)?.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Err(Error::TooLarge(limit));
        }
        bytes.extend_from_slice(&data);
        is_object(&bytes)?;
    }
    Ok(bytes)
}

/// The lines of a watch.
pub(super) struct Lines {
    body: Pin<Box<Body>>,
    buffer: Vec<u8>,
    /// The bytes at the beginning of the buffer that have no end of a line.
    searched: usize,
    deadline: Instant,
}

/// What a watch reports.
#[derive(Debug, PartialEq)]
pub(super) enum Change<T> {
    /// An object is there, or has changed.
    Applied(T),
    /// An object is gone.
    Deleted(T),
    /// Nothing of interest has changed up to the version.
    Bookmark,
}

impl Lines {
    /// Waits for the next change. Returns it with its version; `None` if the server has ended the watch.
    pub(super) async fn next<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(Change<T>, String)>, Error> {
        loop {
            if let Some(end) = self.buffer[self.searched..]
                .iter()
                .position(|b| *b == b'\n')
            {
                let end = self.searched + end;
                let change = change(&self.buffer[..end]);
                self.buffer.drain(..=end);
                self.searched = 0;
                if self.buffer.is_empty() {
                    self.buffer.shrink_to(KEPT);
                }
                match change? {
                    Some(change) => return Ok(Some(change)),
                    None => continue,
                }
            }
            self.searched = self.buffer.len();
            if self.searched > MAX_OBJECT {
                return Err(Error::TooLarge(MAX_OBJECT));
            }
            let frame = match timeout_at(self.deadline, self.body.frame()).await {
                Err(_) => return Ok(None),
                Ok(frame) => frame,
            };
            match frame {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(malformed("the last line has no end")),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(unreachable)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                        is_object(&self.buffer)?;
                    }
                }
            }
        }
    }
}

/// Reads a line; `None` for an empty one, and for a kind of event that is not known.
fn change<T: DeserializeOwned>(line: &[u8]) -> Result<Option<(Change<T>, String)>, Error> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let event: Event<'_> = serde_json::from_slice(line).map_err(malformed)?;
    let object = event.object.get();
    let read = || serde_json::from_str::<T>(object).map_err(malformed);
    let change = match event.kind {
        "ADDED" | "MODIFIED" => Change::Applied(read()?),
        "DELETED" => Change::Deleted(read()?),
        "BOOKMARK" => Change::Bookmark,
        "ERROR" => {
            let Status { code, message } = serde_json::from_str(object).map_err(malformed)?;
            return Err(Error::of_status(code, message));
        }
        _ => return Ok(None),
    };
    let versioned: Versioned = serde_json::from_str(object).map_err(malformed)?;
    Ok(Some((change, versioned.metadata.resource_version)))
}

#[cfg(test)]
mod tests;
