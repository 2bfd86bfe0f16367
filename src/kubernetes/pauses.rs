//! The pauses between tries at the API server.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::retry;

use super::api::Error;

/// The longest pause before the next try.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The first and the longest pause after the API server has refused: an administrator has to act.
const REFUSED: [Duration; 2] = [Duration::from_secs(3 * 60), Duration::from_secs(15 * 60)];

/// Returns a random duration between once and twice this one: the nodes of a cluster do not come back together.
pub(super) fn spread(shortest: Duration) -> Duration {
    let random = RandomState::new().hash_one(());
    shortest + Duration::from_secs(random % shortest.as_secs().max(1))
}

/// The pauses between tries.
pub(super) struct Pauses {
    usual: Box<dyn Iterator<Item = Duration> + Send>,
    refused: Box<dyn Iterator<Item = Duration> + Send>,
    /// Whether a version was too old since a watch was stable.
    was_expired: bool,
}

impl Pauses {
    pub(super) fn new() -> Self {
        let [first, longest] = REFUSED;
        Self {
            usual: Box::new(retry::pauses_up_to(LONGEST_PAUSE)),
            refused: Box::new(retry::pauses_between(first, longest)),
            was_expired: false,
        }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.usual.next().unwrap_or(LONGEST_PAUSE)
    }

    pub(super) fn after(&mut self, error: &Error) -> Duration {
        match error {
            Error::Refused { .. } => self.refused.next().unwrap_or(REFUSED[1]),
            Error::Expired(_) => self.before_list(),
            _ => self.next(),
        }
    }

    /// After a version that was too old, which a list replaces: that is not a failure, unless it happens again.
    fn before_list(&mut self) -> Duration {
        let first = retry::pauses().next().unwrap_or_default();
        match std::mem::replace(&mut self.was_expired, true) {
            true => self.next(),
            false => first,
        }
    }
}
