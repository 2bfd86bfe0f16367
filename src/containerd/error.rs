//! The error of a failed call to containerd: the call, its subject and the kind of failure. The only
//! file that translates gRPC's status codes.

use thiserror::Error;
use tonic::{Code, Status};

/// The outcome of a call to containerd.
pub type Result<T> = std::result::Result<T, Error>;

/// The kinds of failure that callers distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The subject does not exist.
    NotFound,
    /// The subject exists already.
    AlreadyExists,
    /// containerd cannot do this in the present state: remove a snapshot that has children, for example.
    FailedPrecondition,
    /// The socket cannot be reached.
    Unreachable,
    /// The call's deadline has passed.
    TimedOut,
    /// Any other failure; see the message.
    Other,
}

/// A failed call to containerd.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{call} {subject}: {message}")]
pub struct Error {
    /// The kind of failure.
    pub kind: Kind,
    /// The call: `stat snapshot`, `apply layer`, …
    pub call: &'static str,
    /// The subject of the call: a key, a digest, an image name.
    pub subject: String,
    /// containerd's message.
    pub message: String,
}

impl Error {
    /// Translates the gRPC status that `call` on `subject` ended with.
    pub(super) fn from_status(call: &'static str, subject: &str, status: Status) -> Self {
        Self {
            kind: kind(&status),
            call,
            subject: subject.to_owned(),
            message: message(&status),
        }
    }

    /// Returns the error for an answer that breaks the protocol, or a value that it cannot express.
    pub(crate) fn malformed(call: &'static str, subject: &str, message: &str) -> Self {
        Self {
            kind: Kind::Other,
            call,
            subject: subject.to_owned(),
            message: message.to_owned(),
        }
    }

    /// Returns the error for a call that this program does not wait for any longer.
    pub(crate) fn timed_out(call: &'static str, subject: &str) -> Self {
        Self {
            kind: Kind::TimedOut,
            call,
            subject: subject.to_owned(),
            message: "no answer in time".to_owned(),
        }
    }

    /// Whether the subject does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// Whether the subject exists already.
    pub fn already_exists(&self) -> bool {
        self.kind == Kind::AlreadyExists
    }

    /// Whether containerd cannot be reached or did not answer in time, so that a later try may succeed.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::TimedOut)
    }
}

fn kind(status: &Status) -> Kind {
    match status.code() {
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::Unavailable => Kind::Unreachable,
        // tonic reports its client-side deadline as `Cancelled`.
        Code::DeadlineExceeded | Code::Cancelled => Kind::TimedOut,
        // CRI answers this until its start has finished.
        Code::Unknown if status.message().contains("server is not initialized yet") => {
            Kind::Unreachable
        }
        // A connection that breaks during a call is reported as `Unknown` with the transport's error
        // as its source. containerd's own `Unknown` has no source.
        Code::Unknown if std::error::Error::source(status).is_some() => Kind::Unreachable,
        _ => Kind::Other,
    }
}

/// Returns the status' message and that of its innermost cause, since «transport error» alone does not say
/// what failed.
fn message(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    let words = status.message();
    match cause.map(ToString::to_string) {
        Some(cause) if !words.contains(&cause) => format!("{words} ({cause})"),
        _ => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_kinds() {
        for (code, expected) in [
            (Code::NotFound, Kind::NotFound),
            (Code::AlreadyExists, Kind::AlreadyExists),
            (Code::FailedPrecondition, Kind::FailedPrecondition),
            (Code::Unavailable, Kind::Unreachable),
            (Code::DeadlineExceeded, Kind::TimedOut),
            (Code::Cancelled, Kind::TimedOut),
            (Code::Unknown, Kind::Other),
            (Code::Internal, Kind::Other),
        ] {
            let error = Error::from_status("stat snapshot", "k", Status::new(code, "words"));
            assert_eq!(error.kind, expected, "{code:?}");
            assert_eq!(error.to_string(), "stat snapshot k: words");
        }
        let early = Status::new(Code::Unknown, "server is not initialized yet");
        assert!(Error::from_status("read CRI's configuration", "", early).is_unreachable());
    }
}
