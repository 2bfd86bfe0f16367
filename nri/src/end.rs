//! Why a session is over: the one thing that ttrpc does not tell.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::frame::Oversized;

/// How long a virtual connection may leave its data unread before the session ends: as long as
/// the runtime waits for a plugin to register, the longer of its two default timeouts.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// Why a session is over.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The runtime closed the connection: it went down, or it closed this plugin because an
    /// answer came too late.
    #[error("the runtime closed the connection")]
    ClosedByPeer,
    /// This side closed the connection.
    #[error("the plugin closed the connection")]
    ClosedHere,
    /// The connection ended where more had to come.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// See [`Oversized`].
    #[error(transparent)]
    Oversized(#[from] Oversized),
    /// One of the two ttrpc connections did not take its data in time.
    #[error("virtual connection {connection} read nothing for {STALL_LIMIT:?}")]
    Stalled {
        /// The connection's id.
        connection: u32,
    },
    /// One of the two ttrpc connections is gone while the runtime still sends to it.
    #[error("virtual connection {connection} is closed, but the runtime still sends to it")]
    Abandoned {
        /// The connection's id.
        connection: u32,
    },
    /// Reading or writing failed.
    #[error("the connection failed: {0}")]
    Io(Arc<io::Error>),
    /// A bug in this crate.
    #[error("the task that owns the connection panicked")]
    Panicked,
}

impl From<io::Error> for SessionEnd {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The peer is gone; whether a read or a write notices first is chance.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::ClosedByPeer,
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(Arc::new(error)),
        }
    }
}
