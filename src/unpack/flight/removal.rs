//! An image that is removed while a flight makes it ready. The flight's lease keeps what it has made, so the garbage
//! collection that follows the removal does not remove it: the flight has to collect again.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::containerd::Containerd;

use super::registry::{FlightToken, Flights, Wanted};
use crate::unpack::chain::error::Error;

/// The number of removed images that events have reported so far.
#[derive(Debug, Default)]
pub(crate) struct Removals(AtomicU64);

impl Removals {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Checks whether the images of a flight still have records.
pub(crate) struct Record<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    /// The name of one of them.
    pub(crate) image: &'a str,
    pub(crate) flights: &'a Flights,
    pub(crate) token: &'a FlightToken,
    pub(crate) removals: &'a Removals,
}

/// The state of the image after a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It is there, or containerd does not answer.
    Kept,
    /// It has no record yet, and may never get one: a collection removes what its pull does not hold.
    Arriving,
    /// It was removed: a collection removes its layers.
    Removed,
}

impl Record<'_> {
    /// Returns the number of removals so far.
    pub(crate) fn removals(&self) -> u64 {
        self.removals.now()
    }

    /// Handles the end of the image's pull, as in [`Flights::pull_ended`].
    pub(crate) fn pull_ended(&self) -> bool {
        self.flights.pull_ended(self.token)
    }

    /// Whether the image was removed. One that is still being pulled was not.
    pub(crate) async fn is_gone(&self) -> bool {
        match self.flights.wanted(self.token) {
            Wanted::Nothing => true,
            Wanted::Arriving(_) => false,
            Wanted::Records(records) => self.have_none(&records).await,
        }
    }

    /// Returns the image's state after a flight that began after `removals` removals and has released its lease.
    pub(crate) async fn after<T>(&self, outcome: &Result<T, Error>, removals: u64) -> After {
        match self.flights.wanted(self.token) {
            Wanted::Nothing => After::Removed,
            // The engine stops.
            _ if self.token.stop.is_cancelled() => After::Kept,
            Wanted::Records(records) if self.have_none(&records).await => After::Removed,
            Wanted::Arriving(records)
                if (outcome.is_err() || self.removals.now() != removals)
                    && self.have_none(&records).await =>
            {
                After::Arriving
            }
            _ => After::Kept,
        }
    }

    /// Whether no image has such a record. `false` where containerd does not answer.
    async fn have_none(&self, records: &HashSet<String>) -> bool {
        match self.containerd.image(self.image).await {
            Ok(image) if records.contains(&image.target.digest) => return false,
            Err(e) if !e.is_not_found() => return false,
            _ => {}
        }
        // It may have another name.
        let Ok(images) = self.containerd.images().await else {
            return false;
        };
        !images
            .iter()
            .any(|image| records.contains(&image.target.digest))
    }
}
