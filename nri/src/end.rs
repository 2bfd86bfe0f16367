//! The reasons why a session ends, which ttrpc does not report.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::frame::Oversized;

/// The time after which a virtual connection that does not read its data ends the session. It is the
/// longer of the runtime's two default timeouts, the one for a plugin's registration.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// The reason why a session ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The runtime closed the connection: it stopped, or an answer of this plugin came too late.
    #[error("the runtime closed the connection")]
    ClosedByPeer,
    /// This side closed the connection.
    #[error("the plugin closed the connection")]
    ClosedHere,
    /// The connection ended within a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// A frame was too long; see [`Oversized`].
    #[error(transparent)]
    Oversized(#[from] Oversized),
    /// A message was longer than ttrpc allows, or an answer longer than NRI's: the peer does not speak ttrpc, or its data
    /// is damaged.
    #[error(
        "a message of {length} bytes on virtual connection {connection} is over the limit (a request 4 MiB, an answer \
         64 KiB): is the peer an NRI runtime?"
    )]
    NotTtrpc {
        /// The connection's id.
        connection: u32,
        /// The length in the message's header, in bytes.
        length: usize,
    },
    /// A request has too much metadata to be decoded in little memory, or is shorter than its fields.
    #[error(
        "a request on virtual connection {connection} has more than 16 KiB besides its payload, or is cut short: is the \
         peer an NRI runtime?"
    )]
    NotARequest {
        /// The connection's id.
        connection: u32,
    },
    /// One of the two ttrpc connections did not read its data in time.
    #[error("virtual connection {connection} did not read its data for {STALL_LIMIT:?}")]
    Stalled {
        /// The connection's id.
        connection: u32,
    },
    /// One of the two ttrpc connections is closed, but the runtime still sends to it.
    #[error("virtual connection {connection} is closed, but the runtime still sends to it")]
    Abandoned {
        /// The connection's id.
        connection: u32,
    },
    /// A read or a write failed.
    #[error("the connection failed: {0}")]
    Io(Arc<io::Error>),
    /// A bug in this crate.
    #[error("the task that owns the connection panicked")]
    Panicked,
}

impl From<io::Error> for SessionEnd {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The peer closed the connection. Either a read or a write may report it first.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::ClosedByPeer,
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(Arc::new(error)),
        }
    }
}
