//! The trait over containerd's gRPC socket: namespace and lease headers, message sizes, deadlines.
//!
//! The channel connects at its first use, and reconnects after a restart of containerd, so one value
//! serves for as long as the process runs.

mod calls;
mod commit;
mod content;
mod cri;
mod deadline;
mod diff;
mod events;
mod fetch;
mod images;
mod introspection;
mod leases;
mod snapshots;
mod weight;
mod write;

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost_types::FieldMask;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::{Error, Labels, Result};
use deadline::{Deadline, PunctualChannel};

/// The deadline of a call that touches metadata only. containerd's own clients allow such calls a few
/// seconds; a node under load needs more.
const METADATA_DEADLINE: Duration = Duration::from_secs(10);

/// The deadline of a call in which a snapshotter or a differ works on a layer's content. Some
/// snapshotters copy the parent at `Prepare`, or build an image at `Commit`. Layers of tens of
/// gigabytes and slow disks exist; a call that takes longer than this hangs on a stuck mount.
const WORK_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// The deadline of a garbage collection that a call waits for. It removes snapshots, which takes seconds for each where
/// a snapshotter deletes the files of large layers. Only background work waits for it, and what is begun is not undone by
/// the end of the wait: a collection goes on in containerd.
const COLLECTION_DEADLINE: Duration = Duration::from_secs(10 * 60);

/// The deadline to connect. The socket is local, so a slower connection counts as a failed one.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The largest answer that is accepted, in bytes: the default of containerd's own clients. Answers on
/// a node with thousands of images come near tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// The largest number of elements of a list that is accepted: ten times the snapshots, or the blobs, of a node with a
/// thousand images of 20 layers.
const MAX_LISTED: usize = 250_000;

/// A client of containerd's socket, in one namespace.
#[derive(Clone)]
pub struct Grpc {
    channel: PunctualChannel,
    socket: PathBuf,
    namespace: MetadataValue<Ascii>,
}

/// An error for a socket path or namespace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The path is not UTF-8, which gRPC requires.
    #[error(
        "containerd's socket {0:?}: the path is not UTF-8; set containerd.socket to a path that is"
    )]
    Path(std::path::PathBuf),
    /// The transport rejected the address.
    #[error("containerd's socket {path}: {reason}")]
    Endpoint {
        /// The configured path.
        path: String,
        /// The transport's message.
        reason: String,
    },
    /// The namespace cannot be the value of a header.
    #[error("containerd's namespace {0:?}: only letters, digits, '-', '_' and '.' are allowed")]
    Namespace(String),
}

impl Grpc {
    /// Makes a client, which connects at its first call.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(socket: &Path, namespace: &str) -> std::result::Result<Self, SetupError> {
        let path = socket
            .to_str()
            .ok_or_else(|| SetupError::Path(socket.to_owned()))?;
        // Two slashes, so that a path that begins with two stays absolute.
        let endpoint =
            Endpoint::from_shared(format!("unix://{path}")).map_err(|e| SetupError::Endpoint {
                path: path.to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            channel: PunctualChannel(endpoint.connect_timeout(CONNECT_DEADLINE).connect_lazy()),
            socket: socket.to_owned(),
            namespace: namespace
                .parse()
                .map_err(|_| SetupError::Namespace(namespace.to_owned()))?,
        })
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        self.ask_within(METADATA_DEADLINE, message)
    }

    fn ask_within<T>(&self, deadline: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        request.extensions_mut().insert(Deadline(deadline));
        self.in_namespace(request)
    }

    /// Returns the request of work whose result the lease holds.
    fn ask_leased<T>(&self, lease: &str, message: T) -> Result<Request<T>> {
        self.under(lease, self.ask_within(WORK_DEADLINE, message))
    }

    /// Adds the header by which the lease holds what the call makes. An empty lease adds none.
    fn under<T>(&self, lease: &str, mut request: Request<T>) -> Result<Request<T>> {
        if lease.is_empty() {
            return Ok(request);
        }
        let lease = lease
            .parse()
            .map_err(|_| Error::malformed("use lease", lease, "not a header value"))?;
        request.metadata_mut().insert("containerd-lease", lease);
        Ok(request)
    }

    fn in_namespace<T>(&self, mut request: Request<T>) -> Request<T> {
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }
}

/// Returns the function that turns a gRPC status into an error, for `map_err`.
fn failed<'a>(call: &'static str, subject: &'a str) -> impl Fn(Status) -> Error + use<'a> {
    move |status| Error::from_status(call, subject, status)
}

/// Returns the error for an answer that lacks the message which the protocol promises.
fn empty<'a>(call: &'static str, subject: &'a str) -> impl Fn() -> Error + use<'a> {
    move || Error::malformed(call, subject, "containerd's answer is empty")
}

/// Reads a stream of answers to its end, which comes within the request's deadline ([`PunctualChannel`]).
async fn drain<T>(
    call: &'static str,
    subject: &str,
    mut stream: tonic::Streaming<T>,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    while let Some(part) = stream.message().await.map_err(failed(call, subject))? {
        take(part)?;
    }
    Ok(())
}

/// Counts the elements of a list. An error if they are too many.
fn count(call: &'static str, subject: &str, listed: &mut usize, more: usize) -> Result<()> {
    *listed += more;
    match *listed > MAX_LISTED {
        true => {
            let message = format!("more than {MAX_LISTED} elements");
            Err(Error::malformed(call, subject, &message))
        }
        false => Ok(()),
    }
}

/// Returns the field paths of these labels, so that an update changes only them. Without field paths it
/// replaces all labels.
fn label_paths(labels: &Labels) -> FieldMask {
    FieldMask {
        paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
    }
}
