//! A server on containerd's socket that is none: it answers every call of gRPC with nonsense, or not in gRPC at all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use h2::SendStream;
use h2::server::SendResponse;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tonic::codegen::Bytes;
use tonic::codegen::http::Response;

/// How such a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonsense {
    /// In another protocol.
    Http1,
    /// With a message that cannot be decoded.
    Garbage,
    /// With a message that claims to have 4 GiB.
    Huge,
    /// With an empty message: everything that it has to contain is missing.
    Empty,
    /// With such messages without end.
    EndlessEmpty,
    /// With messages of one empty element of a list, without end: of events, snapshots, blobs or leases.
    EndlessLists,
    /// With a list of eight million empty elements, in a message of nearly 16 MiB.
    ManyElements,
    /// With a list of one element, which has two million entries of a map in its field of this number, in a message of
    /// nearly 16 MiB: 2 is the labels of an image, 6 those of a snapshot and the annotations of a pod.
    ManyEntries(u8),
}

/// Nearly the size of the largest message that clients of containerd take.
const LARGEST: usize = (16 << 20) - 64;

/// The size of an entry of a map, with a key of three bytes and no value.
const ENTRY: usize = 7;

/// Returns an element whose field of this number, a map, has two million entries.
fn element_of_entries(field: u8) -> Vec<u8> {
    let key = |n: usize| [0, 7, 14].map(|shift| (n >> shift) as u8 & 0x7f);
    let entry = |n| [&[field << 3 | 2, 5, 0x0a, 3][..], &key(n)].concat();
    (0..LARGEST / ENTRY).flat_map(entry).collect()
}

/// Returns a message behind its compression and its length.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("less than 4 GiB");
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// Returns the first element of a list.
fn listed(element: &[u8]) -> Vec<u8> {
    let (mut length, mut message) = (element.len(), vec![0x0a]);
    while length > 0x7f {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend(element);
    message
}

/// What is sent in answer to a call: some messages, once if it is one, and without end if they are more.
#[derive(Clone, Debug)]
struct Answer {
    piece: Bytes,
    copies: usize,
}

impl Answer {
    fn of(nonsense: Nonsense) -> Self {
        // A message begins with its compression and its length.
        let (message, copies) = match nonsense {
            Nonsense::Http1 => (vec![], 0),
            Nonsense::ManyElements => (framed(&[0x0a, 0].repeat(LARGEST / 2)), 1),
            Nonsense::ManyEntries(field) => (framed(&listed(&element_of_entries(field))), 1),
            Nonsense::Garbage => (b"\0\0\0\0\x04\xff\xff\xff\xff".to_vec(), 1),
            Nonsense::Huge => (b"\0\xff\xff\xff\xff".to_vec(), 1),
            Nonsense::Empty => (framed(b""), 1),
            Nonsense::EndlessEmpty => (framed(b""), 4096),
            Nonsense::EndlessLists => (framed(&[0x0a, 0]), 4096),
        };
        let piece = Bytes::from(message.repeat(copies));
        Self { piece, copies }
    }
}

/// The server. Dropping it closes all connections.
#[derive(Debug)]
pub struct NonsenseServer {
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl NonsenseServer {
    /// Listens on this socket.
    ///
    /// # Errors
    /// If it cannot.
    pub fn start(socket: &Path, nonsense: Nonsense) -> Result<Self> {
        let listener = UnixListener::bind(socket);
        let listener = listener.with_context(|| format!("listening on {}", socket.display()))?;
        let sent = Arc::<AtomicU64>::default();
        let task = tokio::spawn(serve(
            listener,
            nonsense,
            Answer::of(nonsense),
            sent.clone(),
        ));
        Ok(Self { sent, task })
    }

    /// Returns the number of messages that were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for NonsenseServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: UnixListener, nonsense: Nonsense, answer: Answer, sent: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // A client may close its connection at any time.
        let (answer, sent) = (answer.clone(), sent.clone());
        connections.spawn(async move { drop(connection(stream, nonsense, answer, sent).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    mut stream: UnixStream,
    nonsense: Nonsense,
    each: Answer,
    sent: Arc<AtomicU64>,
) -> Result<()> {
    if nonsense == Nonsense::Http1 {
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await?;
        sent.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let mut client = h2::server::handshake(stream).await?;
    let mut answers = JoinSet::new();
    while let Some(request) = client.accept().await {
        let (_, respond) = request?;
        let (each, sent) = (each.clone(), sent.clone());
        answers.spawn(async move { drop(answer(respond, each, &sent).await) });
        while answers.try_join_next().is_some() {}
    }
    Ok(())
}

async fn answer(
    mut respond: SendResponse<Bytes>,
    Answer { piece, copies }: Answer,
    sent: &AtomicU64,
) -> Result<()> {
    let head = Response::builder().header("content-type", "application/grpc");
    let mut body = respond.send_response(head.body(())?, false)?;
    loop {
        send(&mut body, piece.clone()).await?;
        sent.fetch_add(copies as u64, Ordering::Relaxed);
        if copies == 1 {
            let mut trailers = tonic::codegen::http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse()?);
            return Ok(body.send_trailers(trailers)?);
        }
    }
}

/// Sends a piece when the client has room for it.
async fn send(body: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<()> {
    while !piece.is_empty() {
        body.reserve_capacity(piece.len());
        let capacity = std::future::poll_fn(|context| body.poll_capacity(context)).await;
        let capacity = capacity.context("the client has closed the stream")??;
        let part = piece.split_to(capacity.min(piece.len()));
        body.send_data(part, false)?;
    }
    Ok(())
}
