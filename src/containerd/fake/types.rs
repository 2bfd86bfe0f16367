//! Types that the parts of the fake share.

use super::super::ErrorKind;

/// A snapshotter and the key of a snapshot in it.
pub(super) type At = (String, String);

/// The result of a call's effect on the store.
pub(super) type Effect<T = ()> = Result<T, ErrorKind>;

pub(super) fn at(snapshotter: &str, key: &str) -> At {
    (snapshotter.to_owned(), key.to_owned())
}
