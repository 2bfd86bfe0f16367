//! The flights that go on: one for each snapshotter and chain, shared by all callers, and ended when the
//! images that they are for were removed.

use std::collections::{HashMap, HashSet};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::progress::{Reporter, Ticket};
use crate::unpack::target::Target;

/// A snapshotter and a chain id.
pub(crate) type FlightKey = (String, String);

/// All of them.
#[derive(Default)]
pub(crate) struct Flights(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    flights: HashMap<FlightKey, ActiveFlight>,
    /// Counts the callers of all flights.
    callers: u64,
}

/// A flight that goes on.
struct ActiveFlight {
    ticket: Ticket,
    priority: Priority,
    /// The config blob of its image.
    config: String,
    /// What the records of its callers' images point at.
    records: HashSet<String>,
    /// The last caller found the image by a layer of a pull: it has no record yet.
    arrives: bool,
    /// Its first caller did: the labels may name the image otherwise than its record does.
    began_in_pull: bool,
    first_caller: u64,
    last_caller: u64,
    stop: CancellationToken,
}

/// What a caller of a chain is to do.
pub(crate) enum Joined {
    /// To wait for this flight.
    Ours(Ticket),
    /// To wait for the flight of another image, or for one that began in this image's pull, and to ask again.
    Another(Ticket),
    /// To fly.
    First(Ticket, Reporter, FlightToken),
}

/// A flight's entry.
pub(crate) struct FlightToken {
    pub(crate) key: FlightKey,
    /// Ends this flight: when the engine stops, or its images are gone.
    pub(crate) stop: CancellationToken,
    caller: u64,
}

/// What a flight is for.
pub(crate) enum Wanted {
    /// It was ended.
    Nothing,
    /// An image that is still being pulled, and others, by what their records point at.
    Arriving(HashSet<String>),
    /// Images, by what their records point at.
    Records(HashSet<String>),
}

/// The last callers that the flights had at some moment.
pub(crate) struct Moment(HashMap<FlightKey, u64>);

impl Flights {
    /// The flight of this target's chain. A new one ends when `stop` does.
    pub(crate) fn join(
        &self,
        target: &Target,
        priority: &Priority,
        stop: &CancellationToken,
    ) -> Joined {
        let chain = target.manifest.chain_id();
        let chain = chain.unwrap_or(&target.manifest.digest);
        let key = (target.snapshotter.clone(), chain.to_owned());
        let mut inner = self.lock();
        inner.callers += 1;
        let caller = inner.callers;
        if let Some(flight) = inner.flights.get_mut(&key) {
            flight.priority.raise_to(priority);
            let ticket = flight.ticket.clone();
            if flight.config != target.manifest.config {
                return Joined::Another(ticket);
            }
            flight.last_caller = caller;
            flight.arrives = target.arrives;
            flight.records.insert(target.record.clone());
            return if flight.began_in_pull && !target.arrives {
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
            records: HashSet::from([target.record.clone()]),
            arrives: target.arrives,
            began_in_pull: target.arrives,
            first_caller: caller,
            last_caller: caller,
            stop: stop.clone(),
        };
        inner.flights.insert(key.clone(), flight);
        let token = FlightToken { key, stop, caller };
        Joined::First(ticket, reporter, token)
    }

    /// Takes the flight out, if it was not ended before.
    pub(crate) fn leave(&self, token: &FlightToken) {
        let mut inner = self.lock();
        if inner.flights.get(&token.key).is_some_and(|f| f.is(token)) {
            inner.flights.remove(&token.key);
        }
    }

    /// What a flight is for.
    pub(crate) fn wanted(&self, token: &FlightToken) -> Wanted {
        let inner = self.lock();
        match inner.flights.get(&token.key).filter(|f| f.is(token)) {
            None => Wanted::Nothing,
            Some(flight) if flight.arrives => Wanted::Arriving(flight.records.clone()),
            Some(flight) => Wanted::Records(flight.records.clone()),
        }
    }

    /// Before the images of the store are listed.
    pub(crate) fn now(&self) -> Moment {
        let inner = self.lock();
        let callers = inner.flights.iter();
        Moment(callers.map(|(k, f)| (k.clone(), f.last_caller)).collect())
    }

    /// Ends the flights whose images had no record in a list that was read after that moment. A flight that
    /// has had another caller since goes on: its image may have been pulled again. Who asks for the chain from
    /// now on gets a new flight.
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

    /// Takes the lock, and lets it go.
    pub(crate) fn probe_locks(&self) {
        drop(self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

impl ActiveFlight {
    fn is(&self, token: &FlightToken) -> bool {
        self.first_caller == token.caller
    }
}
