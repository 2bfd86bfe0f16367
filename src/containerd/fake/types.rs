//! The words that the parts of the fake share.

use super::super::ErrorKind;

/// A snapshotter and a key.
pub(super) type At = (String, String);

/// An effect, or why there is none.
pub(super) type Effect<T = ()> = Result<T, ErrorKind>;

pub(super) fn at(snapshotter: &str, key: &str) -> At {
    (snapshotter.to_owned(), key.to_owned())
}
