//! A failed call to containerd: what was asked, of what, and which kind of failure it is.
//! The one place that translates gRPC's status codes.

use thiserror::Error;
use tonic::{Code, Status};

/// The outcome of a call to containerd.
pub type Result<T> = std::result::Result<T, Error>;

/// The kinds of failure on which a caller branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The thing is not there.
    NotFound,
    /// The thing is there already.
    AlreadyExists,
    /// containerd does not do this now: a snapshot with children is not removed, for one.
    FailedPrecondition,
    /// Nobody answers at the socket.
    Unreachable,
    /// The call's deadline has passed.
    TimedOut,
    /// Anything else; the message has it.
    Other,
}

/// A failed call to containerd.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{call} {subject}: {message}")]
pub struct Error {
    /// Where a caller can branch.
    pub kind: Kind,
    /// What was asked: `stat snapshot`, `apply layer`, …
    pub call: &'static str,
    /// Of what: a key, a digest, an image name.
    pub subject: String,
    /// containerd's own words.
    pub message: String,
}

impl Error {
    /// Translates what gRPC says of `call` on `subject`.
    pub(super) fn from_status(call: &'static str, subject: &str, status: Status) -> Self {
        Self {
            kind: kind(&status),
            call,
            subject: subject.to_owned(),
            message: message(&status),
        }
    }

    /// An answer that containerd should not have given.
    pub(crate) fn malformed(call: &'static str, subject: &str, message: &str) -> Self {
        Self {
            kind: Kind::Other,
            call,
            subject: subject.to_owned(),
            message: message.to_owned(),
        }
    }

    /// The thing asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// The thing to be made is there already.
    pub fn already_exists(&self) -> bool {
        self.kind == Kind::AlreadyExists
    }

    /// Nobody answers, or not in time: worth another try later.
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
        // tonic's own client-side deadline comes as `Cancelled`.
        Code::DeadlineExceeded | Code::Cancelled => Kind::TimedOut,
        // CRI, between its first answers and the end of its start.
        Code::Unknown if status.message().contains("server is not initialized yet") => {
            Kind::Unreachable
        }
        // A connection that breaks under a call comes as `Unknown` with the transport's error
        // behind it; containerd's own `Unknown` has none.
        Code::Unknown if std::error::Error::source(status).is_some() => Kind::Unreachable,
        _ => Kind::Other,
    }
}

/// The status' words and those of the innermost cause: «transport error» alone helps nobody.
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
