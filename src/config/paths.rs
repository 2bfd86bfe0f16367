//! Checked paths and addresses: files, sockets, and the address that serves metrics. Nothing here opens
//! them.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

use super::InvalidValue;

/// The maximum length of a unix socket's path: `sun_path` has 108 bytes, and the last one ends it.
const SOCKET_PATH_MAX: usize = 107;

/// The absolute path of a file. A relative path would depend on the daemon's working directory, which
/// the configuration does not know.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct AbsolutePath(PathBuf);

/// The path of a unix socket. Its length fits into a socket's address.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct SocketPath(PathBuf);

/// The address that serves metrics: `ip:port` or `unix:/path`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub enum Listen {
    /// A TCP address. Host names are not accepted, since the address must not depend on a resolver.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(SocketPath),
}

macro_rules! path_like {
    ($name:ident, $parse:path) => {
        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                $parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }

        impl AsRef<Path> for $name {
            fn as_ref(&self) -> &Path {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.display().fmt(f)
            }
        }
    };
}

path_like!(AbsolutePath, absolute);
path_like!(SocketPath, socket);

fn absolute(text: &str) -> Result<PathBuf, InvalidValue> {
    if text.starts_with('/') {
        return Ok(text.into());
    }
    // The value is not quoted: it may be a secret instead of the path of one.
    Err(InvalidValue::new(
        "the path is not absolute: start it with `/`",
    ))
}

fn socket(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = absolute(text)?;
    if text.len() <= SOCKET_PATH_MAX {
        return Ok(path);
    }
    Err(InvalidValue::new(format!(
        "{text:?} is too long for a socket: use at most {SOCKET_PATH_MAX} bytes"
    )))
}

impl TryFrom<String> for Listen {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.parse().map(Self::Unix);
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            InvalidValue::new(format!(
                "{text:?} is not an address: write \"127.0.0.1:9464\" or \"unix:/path\""
            ))
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}
