//! The trait over containerd's gRPC socket: namespace and lease headers, message sizes, deadlines.
//!
//! The channel connects when it is first used, and again whenever containerd has been away: one
//! value serves for the daemon's whole life.

mod calls;
mod commit;
mod content;
mod cri;
mod diff;
mod events;
mod fetch;
mod images;
mod introspection;
mod leases;
mod snapshots;
mod write;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::TryStreamExt;
use prost_types::FieldMask;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::{Error, Labels, Result};

/// A call that touches metadata only. containerd's own clients give such calls a few seconds; a
/// node under load needs some more.
const METADATA_DEADLINE: Duration = Duration::from_secs(10);

/// A call in which a snapshotter or a differ works on a layer's content: some copy the parent when
/// they prepare, or build an image when they commit. Layers of tens of gigabytes exist and slow
/// disks do, too; longer than this is a stuck mount, not work.
const WORK_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// How long the socket may take to accept. It is local: slower than this is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The largest answer taken, in bytes: containerd's own default for its clients. A node with
/// thousands of images comes near tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// containerd behind its socket, in one namespace.
#[derive(Clone)]
pub struct Grpc {
    channel: Channel,
    socket: PathBuf,
    namespace: MetadataValue<Ascii>,
}

/// A socket path or namespace that cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// gRPC takes paths as text.
    #[error(
        "containerd's socket {0:?}: the path is not UTF-8; set containerd.socket to one that is"
    )]
    Path(std::path::PathBuf),
    /// The transport refused the address.
    #[error("containerd's socket {path}: {reason}")]
    Endpoint {
        /// The path as configured.
        path: String,
        /// The transport's words.
        reason: String,
    },
    /// The namespace goes into a header.
    #[error("containerd's namespace {0:?}: only letters, digits, '-', '_' and '.' are allowed")]
    Namespace(String),
}

impl Grpc {
    /// Prepares the channel; connects when first used.
    ///
    /// Has to be called within a tokio runtime.
    pub fn new(socket: &Path, namespace: &str) -> std::result::Result<Self, SetupError> {
        let path = socket
            .to_str()
            .ok_or_else(|| SetupError::Path(socket.to_owned()))?;
        let endpoint =
            Endpoint::from_shared(format!("unix:{path}")).map_err(|e| SetupError::Endpoint {
                path: path.to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            channel: endpoint.connect_timeout(CONNECT_DEADLINE).connect_lazy(),
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
        self.in_namespace(request)
    }

    /// Work whose result a lease is to hold.
    fn ask_leased<T>(&self, lease: &str, message: T) -> Result<Request<T>> {
        self.under(lease, self.ask_within(WORK_DEADLINE, message))
    }

    /// Adds the header that puts what the call makes under a lease, if there is one.
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

/// What turns gRPC's status into our error, for `map_err`.
fn failed<'a>(call: &'static str, subject: &'a str) -> impl Fn(Status) -> Error + use<'a> {
    move |status| Error::from_status(call, subject, status)
}

/// An answer without the message that the protocol promises.
fn empty<'a>(call: &'static str, subject: &'a str) -> impl Fn() -> Error + use<'a> {
    move || Error::malformed(call, subject, "containerd's answer is empty")
}

/// Reads a stream of answers to its end, within the deadline of a metadata call: the request's own
/// deadline covers its first message only.
async fn drain<T, U>(
    call: &'static str,
    subject: &str,
    stream: tonic::Streaming<T>,
    mut take: impl FnMut(&mut Vec<U>, T) -> Result<()>,
) -> Result<Vec<U>> {
    let all = stream
        .map_err(failed(call, subject))
        .try_fold(Vec::new(), |mut all, part| {
            let taken = take(&mut all, part);
            async move { taken.map(|()| all) }
        });
    tokio::time::timeout(METADATA_DEADLINE, all)
        .await
        .unwrap_or_else(|_| Err(failed(call, subject)(Status::deadline_exceeded("too slow"))))
}

/// Field paths that change just these labels; without them an update replaces all labels.
fn label_paths(labels: &Labels) -> FieldMask {
    FieldMask {
        paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
    }
}
