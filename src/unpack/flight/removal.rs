//! An image that is removed while a flight makes it ready: what the flight has made stands under its lease, so
//! containerd's own collection, which follows the removal, leaves it there.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::containerd::Containerd;

use super::registry::{FlightToken, Flights, Wanted};
use crate::unpack::chain::error::Error;

/// Counts the images whose removal this process has heard of.
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

/// The records of the images that a flight is for.
pub(crate) struct Record<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    /// The name of one of them.
    pub(crate) image: &'a str,
    pub(crate) flights: &'a Flights,
    pub(crate) token: &'a FlightToken,
    pub(crate) removals: &'a Removals,
}

/// What became of the image while a flight worked on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It is there, or containerd does not say.
    Kept,
    /// It has no record yet, and may never get one: what its own pull does not hold is to be collected.
    Arriving,
    /// It has no record any more: what was made of it is to be collected.
    Removed,
}

impl Record<'_> {
    /// Removals so far.
    pub(crate) fn removals(&self) -> u64 {
        self.removals.now()
    }

    /// Whether the image was removed. One that is still being pulled was not.
    pub(crate) async fn is_gone(&self) -> bool {
        match self.flights.wanted(self.token) {
            Wanted::Nothing => true,
            Wanted::Arriving(_) => false,
            Wanted::Records(records) => self.have_none(&records).await,
        }
    }

    /// What became of it in a flight that began after so many removals and has released its lease.
    pub(crate) async fn after<T>(&self, outcome: &Result<T, Error>, removals: u64) -> After {
        match self.flights.wanted(self.token) {
            Wanted::Nothing => After::Removed,
            // Everything stops.
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
