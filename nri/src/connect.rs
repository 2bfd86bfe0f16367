//! The socket to the runtime: one to connect to, or the one that the runtime left open for a
//! plugin that it launched.
//!
//! What is said over it is not known here.

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::net::UnixStream;

use crate::identity::{Identity, IdentityError};

/// Where runtimes listen for plugins, unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";

/// Names the file descriptor of the socket, for a plugin that the runtime launched.
const SOCKET_VARIABLE: &str = "NRI_PLUGIN_SOCKET";

/// Its name, as the executable in the runtime's plugin directory has it after the index.
const NAME_VARIABLE: &str = "NRI_PLUGIN_NAME";

/// Its index, as the executable's name begins with it.
const INDEX_VARIABLE: &str = "NRI_PLUGIN_IDX";

/// Why there is no socket to the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing to connect to.
    #[error("cannot connect to {}: {reason}: {}", path.display(), remedy(reason))]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The runtime that launched this plugin left a variable out.
    #[error(
        "{SOCKET_VARIABLE} is set, but {variable} is not: a runtime that launches a plugin sets both"
    )]
    Missing {
        /// The variable.
        variable: &'static str,
    },
    /// A variable's value makes no sense.
    #[error("{variable}={value:?} is not a file descriptor")]
    Number {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: OsString,
    },
    /// A variable's value is no name or index.
    #[error("{variable}: {reason}")]
    Identity {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        reason: IdentityError,
    },
    /// The file descriptor is not what it should be.
    #[error(
        "{SOCKET_VARIABLE}={fd} cannot be used as a connected unix socket: {reason} \
         (it has to be inherited from the runtime; Linux 5.6 or newer is needed)"
    )]
    Inherited {
        /// The file descriptor.
        fd: RawFd,
        /// What the system said.
        reason: io::Error,
    },
}

/// What to do about a socket that cannot be connected to.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "is the runtime running, and NRI enabled in its configuration \
             (containerd before 2.0: `disable = false`)?"
        }
        io::ErrorKind::ConnectionRefused => "nobody listens there: is the runtime running?",
        io::ErrorKind::PermissionDenied => "the socket is the runtime's user's, usually root's",
        _ => "is this the runtime's NRI socket?",
    }
}

/// Connects to a runtime's socket, usually [`DEFAULT_SOCKET`].
///
/// # Errors
/// When there is nobody to connect to; the error names the path.
pub async fn socket(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path)
        .await
        .map_err(|reason| ConnectError::Socket {
            path: path.to_owned(),
            reason,
        })
}

/// The socket that the runtime left open for a plugin that it launched, and who it launched it as;
/// `None` where no runtime launched this process.
///
/// The socket is duplicated, because its number belongs to nobody in this process. So it stays
/// open under that number: a [`Session`](crate::Session) that ends shuts it down for both, and who
/// launches processes of its own has to see to it that they do not inherit it. To be called once.
///
/// # Errors
/// When the environment is not what a runtime sets; the error names the variable.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn launched() -> Result<Option<(Identity, UnixStream)>, ConnectError> {
    match invitation(|variable| std::env::var_os(variable))? {
        None => Ok(None),
        Some((identity, fd)) => {
            let stream = inherited(fd).map_err(|reason| ConnectError::Inherited { fd, reason })?;
            Ok(Some((identity, stream)))
        }
    }
}

/// What the environment says, without touching anything.
fn invitation(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(Identity, RawFd)>, ConnectError> {
    // Set but empty is not set, as for NRI's own plugins.
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

/// The socket behind a bare number. A duplicate made by the kernel is a descriptor that this
/// process really owns, so no promise about the number is needed, only that it is open.
fn inherited(fd: RawFd) -> io::Result<UnixStream> {
    let this_process = pidfd_open(getpid(), PidfdFlags::empty())?;
    // The kernel sets close-on-exec on the duplicate.
    let socket = BlockingStream::from(pidfd_getfd(this_process, fd, PidfdGetfdFlags::empty())?);
    // Fails for everything but a connected unix socket, which the conversion does not.
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

    /// The error for an environment of these three variables.
    fn refusal(socket: &str, name: Option<&str>, index: Option<&str>) -> String {
        let variable = |variable: &str| match variable {
            SOCKET_VARIABLE => Some(socket.into()),
            NAME_VARIABLE => name.map(OsString::from),
            INDEX_VARIABLE => index.map(OsString::from),
            other => panic!("asked for {other}"),
        };
        invitation(variable).unwrap_err().to_string()
    }

    #[test]
    fn an_environment_that_no_runtime_sets_is_refused_by_variable() {
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
    fn who_was_not_launched_has_no_invitation() {
        assert!(invitation(|_| None).unwrap().is_none());
        assert!(invitation(|_| Some("".into())).unwrap().is_none());
    }

    #[test]
    fn an_invitation() {
        let variable = |variable: &str| match variable {
            SOCKET_VARIABLE => Some("3".into()),
            NAME_VARIABLE => Some("event-log".into()),
            _ => Some("07".into()),
        };
        let (identity, fd) = invitation(variable).unwrap().unwrap();
        assert_eq!((identity.to_string().as_str(), fd), ("07-event-log", 3));
    }

    #[tokio::test]
    async fn an_inherited_socket_is_a_duplicate_that_works_and_whose_shutdown_reaches_the_peer() {
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
    async fn anything_but_a_connected_unix_socket_is_refused() {
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().into_raw_fd();
        for fd in [file, tcp, RawFd::MAX] {
            inherited(fd).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let (absent, stale) = (
            dir.path().join("absent.sock"),
            dir.path().join("stale.sock"),
        );
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        for (path, remedy) in [(absent, "NRI enabled"), (stale, "nobody listens")] {
            let error = socket(&path).await.unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains(remedy), "{error}");
        }
    }
}
