//! Opens the socket to the runtime: connects to a path, or takes the socket that a plugin inherits from the
//! runtime that launched it.
//!
//! Knows nothing of the protocol.

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::net::UnixStream;

use crate::identity::{Identity, IdentityError};

/// The path at which runtimes listen for plugins by default.
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";

/// The variable with the file descriptor of the socket, for a plugin that the runtime launched.
const SOCKET_VARIABLE: &str = "NRI_PLUGIN_SOCKET";

/// The variable with the plugin's name: the part of its executable's name after the index.
const NAME_VARIABLE: &str = "NRI_PLUGIN_NAME";

/// The variable with the plugin's index, with which its executable's name begins.
const INDEX_VARIABLE: &str = "NRI_PLUGIN_IDX";

/// The reason why the socket to the runtime could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The connection failed.
    #[error("cannot connect to {}: {reason}: {}", path.display(), remedy(reason))]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        reason: io::Error,
    },
    /// The runtime that launched this plugin did not set a variable.
    #[error(
        "{SOCKET_VARIABLE} is set, but {variable} is not: a runtime that launches a plugin sets both"
    )]
    Missing {
        /// The variable.
        variable: &'static str,
    },
    /// A variable's value is not a file descriptor.
    #[error("{variable}={value:?} is not a file descriptor")]
    Number {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: OsString,
    },
    /// A variable's value is not a valid name or index.
    #[error("{variable}: {reason}")]
    Identity {
        /// The variable.
        variable: &'static str,
        /// The reason.
        reason: IdentityError,
    },
    /// The file descriptor is not a connected unix socket, or cannot be duplicated.
    #[error(
        "{SOCKET_VARIABLE}={fd} cannot be used as a connected unix socket: {reason} \
         (it has to be inherited from the runtime; Linux 5.6 or newer is needed)"
    )]
    Inherited {
        /// The file descriptor.
        fd: RawFd,
        /// The system's error.
        reason: io::Error,
    },
}

/// Returns what to do about a failed connection.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "is the runtime running, and NRI enabled in its configuration \
             (containerd before 2.0: `disable = false`)?"
        }
        io::ErrorKind::ConnectionRefused => "no process listens there: is the runtime running?",
        io::ErrorKind::PermissionDenied => {
            "the socket belongs to the runtime's user: run the plugin as that user, usually root"
        }
        _ => "is this the runtime's NRI socket?",
    }
}

/// Connects to a runtime's socket, usually [`DEFAULT_SOCKET`].
///
/// # Errors
/// When the connection fails; the error names the path.
pub async fn socket(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path)
        .await
        .map_err(|reason| ConnectError::Socket {
            path: path.to_owned(),
            reason,
        })
}

/// Returns the identity and the socket of a plugin that the runtime launched; `None` if no runtime
/// launched this process.
///
/// The socket is a duplicate, because no object of this process owns the inherited descriptor. The
/// original stays open: a [`Session`](crate::Session) that ends shuts the socket down for both, and a
/// plugin that starts processes has to make sure that they do not inherit the descriptor. Call this once.
///
/// # Errors
/// When a variable is missing or invalid; the error names it.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn launched() -> Result<Option<(Identity, UnixStream)>, ConnectError> {
    match launch_environment(|variable| std::env::var_os(variable))? {
        None => Ok(None),
        Some((identity, fd)) => {
            let stream = inherited(fd).map_err(|reason| ConnectError::Inherited { fd, reason })?;
            Ok(Some((identity, stream)))
        }
    }
}

/// Reads identity and file descriptor from the environment.
fn launch_environment(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(Identity, RawFd)>, ConnectError> {
    // An empty variable counts as not set, as in NRI's own plugins.
    let Some(value) = variable(SOCKET_VARIABLE).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let fd = value
        .to_str()
        .and_then(|number| number.parse::<RawFd>().ok())
        .filter(|&fd| fd >= 0)
        .ok_or(ConnectError::Number {
            variable: SOCKET_VARIABLE,
            value,
        })?;
    let text = |name: &'static str| match variable(name) {
        Some(value) => Ok(value.to_string_lossy().into_owned()),
        None => Err(ConnectError::Missing { variable: name }),
    };
    let identity = Identity {
        name: text(NAME_VARIABLE)?
            .try_into()
            .map_err(named(NAME_VARIABLE))?,
        index: text(INDEX_VARIABLE)?
            .try_into()
            .map_err(named(INDEX_VARIABLE))?,
    };
    Ok(Some((identity, fd)))
}

fn named(variable: &'static str) -> impl Fn(IdentityError) -> ConnectError {
    move |reason| ConnectError::Identity { variable, reason }
}

/// Duplicates the socket behind a file descriptor. This process owns the duplicate, so this needs no
/// assumption on the owner of the original.
fn inherited(fd: RawFd) -> io::Result<UnixStream> {
    let this_process = pidfd_open(getpid(), PidfdFlags::empty())?;
    // The kernel sets close-on-exec on the duplicate.
    let socket = BlockingStream::from(pidfd_getfd(this_process, fd, PidfdGetfdFlags::empty())?);
    // Fails unless it is a connected unix socket, which the conversion does not check.
    socket.peer_addr()?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::fd::IntoRawFd;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Returns the error for an environment of these three variables.
    fn refusal(socket: &str, name: Option<&str>, index: Option<&str>) -> String {
        let variable = |variable: &str| match variable {
            SOCKET_VARIABLE => Some(socket.into()),
            NAME_VARIABLE => name.map(OsString::from),
            INDEX_VARIABLE => index.map(OsString::from),
            other => panic!("asked for {other}"),
        };
        launch_environment(variable).unwrap_err().to_string()
    }

    #[test]
    fn the_error_for_a_wrong_environment_names_the_variable() {
        let (name, index) = (Some("a"), Some("10"));
        for (error, expected) in [
            (
                refusal("x3", name, index),
                "NRI_PLUGIN_SOCKET=\"x3\" is not a file descriptor",
            ),
            (
                refusal("-1", name, index),
                "NRI_PLUGIN_SOCKET=\"-1\" is not a file descriptor",
            ),
            (
                refusal("3", None, index),
                "NRI_PLUGIN_SOCKET is set, but NRI_PLUGIN_NAME is not",
            ),
            (
                refusal("3", name, None),
                "NRI_PLUGIN_SOCKET is set, but NRI_PLUGIN_IDX is not",
            ),
            (
                refusal("3", Some(""), index),
                "NRI_PLUGIN_NAME: a plugin name must not be empty",
            ),
            (
                refusal("3", Some("a b"), index),
                "NRI_PLUGIN_NAME: plugin name \"a b\" contains ' '",
            ),
            (
                refusal("3", name, Some("1")),
                "NRI_PLUGIN_IDX: plugin index \"1\" must be two digits",
            ),
        ] {
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn without_the_socket_variable_the_process_was_not_launched() {
        assert!(launch_environment(|_| None).unwrap().is_none());
        assert!(launch_environment(|_| Some("".into())).unwrap().is_none());
    }

    #[test]
    fn identity_and_descriptor_are_read_from_the_environment() {
        let variable = |variable: &str| match variable {
            SOCKET_VARIABLE => Some("3".into()),
            NAME_VARIABLE => Some("event-log".into()),
            _ => Some("07".into()),
        };
        let (identity, fd) = launch_environment(variable).unwrap().unwrap();
        assert_eq!((identity.to_string().as_str(), fd), ("07-event-log", 3));
    }

    #[tokio::test]
    async fn a_duplicated_socket_works_and_its_shutdown_reaches_the_peer() {
        let (mut peer, inherit) = UnixStream::pair().unwrap();
        let number = inherit.into_std().unwrap().into_raw_fd();
        let mut ours = inherited(number).unwrap();

        ours.write_all(b"ping").await.unwrap();
        let mut read = [0; 4];
        peer.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ping");

        ours.shutdown().await.unwrap();
        assert_eq!(peer.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn descriptors_that_are_not_connected_unix_sockets_are_rejected() {
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().into_raw_fd();
        for fd in [file, tcp, RawFd::MAX] {
            inherited(fd).unwrap_err();
        }
    }

    #[tokio::test]
    async fn the_error_for_a_failed_connection_has_path_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let (absent, stale) = (
            dir.path().join("absent.sock"),
            dir.path().join("stale.sock"),
        );
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        for (path, remedy) in [(absent, "NRI enabled"), (stale, "no process listens")] {
            let error = socket(&path).await.unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains(remedy), "{error}");
        }
    }
}
