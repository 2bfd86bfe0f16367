//! The running flights: one for each snapshotter and chain, shared by all callers. A flight is stopped when its images
//! are removed.

use std::collections::{HashMap, HashSet};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::progress::{Reporter, Ticket};
use crate::unpack::target::Target;

/// The running flights of one snapshotter, by chain id.
#[derive(Default)]
pub(crate) struct Flights(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    flights: HashMap<String, ActiveFlight>,
    /// The number of callers of all flights so far: numbers the next caller.
    callers: u64,
}

/// A running flight.
struct ActiveFlight {
    ticket: Ticket,
    priority: Priority,
    /// The digest of its image's config blob.
    config: String,
    /// The number of times that the caches were forgotten before its target was looked up.
    forgotten: u64,
    /// The target digests of its callers' image records.
    records: HashSet<String>,
    /// The last caller found the image during its pull: it has no record yet.
    arrives: bool,
    /// The first caller found it during its pull: the labels may name the image otherwise than its record.
    began_in_pull: bool,
    /// The pull has ended without all blobs, and the image has no record yet: later callers get a flight of their own.
    is_over: bool,
    first_caller: u64,
    last_caller: u64,
    stop: CancellationToken,
}

/// What a caller of a chain has to do.
pub(crate) enum Joined {
    /// Wait for this flight.
    Ours(Ticket),
    /// Wait for the flight of another image, one that began during this image's pull or whose pull is over, or one with
    /// other rules, and join again.
    Another(Ticket),
    /// Run the flight.
    First(Ticket, Reporter, FlightToken),
}

/// The entry of a flight.
pub(crate) struct FlightToken {
    pub(crate) chain: String,
    /// Stops this flight, when the engine stops or its images are removed.
    pub(crate) stop: CancellationToken,
    caller: u64,
}

/// The images that a flight is for.
pub(crate) enum Wanted {
    /// None: the flight was stopped.
    Nothing,
    /// An image that is still being pulled, and the images with these target digests.
    Arriving(HashSet<String>),
    /// The images with these target digests.
    Records(HashSet<String>),
}

/// The last caller of each flight at one moment.
pub(crate) struct Moment(HashMap<String, u64>);

impl Flights {
    /// Joins the flight of this target's chain, or adds one. `stop` also stops a new flight. `shares_pull`: callers also
    /// join a flight that began during the image's pull.
    pub(crate) fn join(
        &self,
        target: &Target,
        forgotten: u64,
        priority: &Priority,
        shares_pull: bool,
        stop: &CancellationToken,
    ) -> Joined {
        let chain = target.manifest.chain_id();
        let chain = chain.unwrap_or(&target.manifest.digest);
        let mut inner = self.lock();
        inner.callers += 1;
        let caller = inner.callers;
        if let Some(flight) = inner.flights.get_mut(chain) {
            flight.priority.raise_to(priority);
            let ticket = flight.ticket.clone();
            let is_another =
                flight.config != target.manifest.config || flight.forgotten != forgotten;
            if is_another || flight.is_over {
                return Joined::Another(ticket);
            }
            flight.last_caller = caller;
            flight.arrives = target.arrives;
            flight.records.insert(target.record.clone());
            return if flight.began_in_pull && !target.arrives && !shares_pull {
                Joined::Another(ticket)
            } else {
                Joined::Ours(ticket)
            };
        }
        let (reporter, ticket) = Reporter::new(&target.image);
        let stop = stop.child_token();
        let flight = ActiveFlight {
            ticket: ticket.clone(),
            priority: priority.clone(),
            config: target.manifest.config.clone(),
            forgotten,
            records: HashSet::from([target.record.clone()]),
            arrives: target.arrives,
            began_in_pull: target.arrives,
            is_over: false,
            first_caller: caller,
            last_caller: caller,
            stop: stop.clone(),
        };
        inner.flights.insert(chain.to_owned(), flight);
        let token = FlightToken {
            chain: chain.to_owned(),
            stop,
            caller,
        };
        Joined::First(ticket, reporter, token)
    }

    /// Removes the flight's entry, if it is still there.
    pub(crate) fn leave(&self, token: &FlightToken) {
        let mut inner = self.lock();
        if inner.flights.get(&token.chain).is_some_and(|f| f.is(token)) {
            inner.flights.remove(&token.chain);
        }
    }

    /// Handles the end of a pull that has left out blobs. Returns whether the flight goes on without them: for an image that
    /// has a record by now.
    pub(crate) fn pull_ended(&self, token: &FlightToken) -> bool {
        let mut inner = self.lock();
        let flight = inner.flights.get_mut(&token.chain);
        flight.filter(|f| f.is(token)).is_some_and(|flight| {
            flight.is_over = flight.arrives;
            !flight.is_over
        })
    }

    /// The images that a flight is for.
    pub(crate) fn wanted(&self, token: &FlightToken) -> Wanted {
        let inner = self.lock();
        match inner.flights.get(&token.chain).filter(|f| f.is(token)) {
            None => Wanted::Nothing,
            Some(flight) if flight.arrives => Wanted::Arriving(flight.records.clone()),
            Some(flight) => Wanted::Records(flight.records.clone()),
        }
    }

    /// Returns the callers before the images of the store are listed.
    pub(crate) fn now(&self) -> Moment {
        let inner = self.lock();
        let callers = inner.flights.iter();
        Moment(callers.map(|(k, f)| (k.clone(), f.last_caller)).collect())
    }

    /// Stops the flights whose images had no record in a list that was read after that moment. A flight with a later
    /// caller goes on: its image may have been pulled again. The next caller of the chain gets a new flight.
    pub(crate) fn end_without(&self, records: &HashSet<&str>, moment: &Moment) {
        self.lock().flights.retain(|key, flight| {
            let is_gone = !flight.arrives
                && moment.0.get(key) == Some(&flight.last_caller)
                && !flight.records.iter().any(|r| records.contains(r.as_str()));
            if is_gone {
                flight.stop.cancel();
            }
            !is_gone
        });
    }

    /// Acquires and releases the lock, for the watchdog.
    pub(crate) fn probe_locks(&self) {
        drop(self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

impl ActiveFlight {
    /// Whether the token is this flight's.
    fn is(&self, token: &FlightToken) -> bool {
        self.first_caller == token.caller
    }
}
