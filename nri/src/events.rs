//! Which events a plugin wants, and how that is said to a runtime that may be older than this
//! crate.

use std::fmt;

use crate::api::Event;
use crate::types::RuntimeInfo;

bitflags::bitflags! {
    /// A set of events, as a plugin answers it to `Configure`.
    ///
    /// A runtime rejects a plugin that names an event unknown to it. So the two that are younger
    /// than the others, the pod updates, are subscribed to only where the runtime states its NRI
    /// version, which it does from 0.12 on; elsewhere they just do not come.
    ///
    /// ```
    /// use nri::Events;
    /// let wanted = Events::RUN_POD_SANDBOX | Events::CREATE_CONTAINER;
    /// assert!(wanted.contains(Events::CREATE_CONTAINER));
    /// ```
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Events: i32 {
        /// A pod sandbox was created and started, before any of its containers.
        const RUN_POD_SANDBOX = 1 << 0;
        /// A pod sandbox stops.
        const STOP_POD_SANDBOX = 1 << 1;
        /// A pod sandbox is removed.
        const REMOVE_POD_SANDBOX = 1 << 2;
        /// A container is being created.
        const CREATE_CONTAINER = 1 << 3;
        /// A container was created.
        const POST_CREATE_CONTAINER = 1 << 4;
        /// A container is about to start.
        const START_CONTAINER = 1 << 5;
        /// A container started.
        const POST_START_CONTAINER = 1 << 6;
        /// A container's resources are about to change.
        const UPDATE_CONTAINER = 1 << 7;
        /// A container's resources changed.
        const POST_UPDATE_CONTAINER = 1 << 8;
        /// A container stops.
        const STOP_CONTAINER = 1 << 9;
        /// A container is removed.
        const REMOVE_CONTAINER = 1 << 10;
        /// A pod's resources are about to change. From NRI 0.12.
        const UPDATE_POD_SANDBOX = 1 << 11;
        /// A pod's resources changed. From NRI 0.12.
        const POST_UPDATE_POD_SANDBOX = 1 << 12;
    }
}

/// The events of every runtime since NRI 0.2. Newer ones make an older runtime reject the plugin.
const EVENTS_OF_ALL_RUNTIMES: Events = Events::from_bits_truncate((1 << 11) - 1);

/// What is subscribed to instead of nothing, since an empty mask means every event: the rarest
/// event, and one that nobody waits for. [`crate::service`] keeps it from the plugin.
const INSTEAD_OF_NOTHING: Events = Events::REMOVE_POD_SANDBOX;

impl Events {
    /// The set with just this event; empty for one that no plugin of this crate can receive.
    pub(crate) fn of(event: Event) -> Self {
        match event as u32 {
            0 => Self::empty(),
            number => Self::from_bits_truncate(1 << (number - 1)),
        }
    }

    /// The events of this set that `runtime` knows.
    ///
    /// No runtime says which it knows. The pod updates came with NRI 0.10, and 0.12 is the first to
    /// send its version. So with 0.10 and 0.11 a plugin misses the pod updates, rather than being
    /// rejected by 0.9.
    pub(crate) fn known_to(self, runtime: &RuntimeInfo) -> Self {
        match runtime.nri_version {
            Some(_) => self,
            None => self & EVENTS_OF_ALL_RUNTIMES,
        }
    }

    /// The mask for `ConfigureResponse`.
    pub(crate) fn to_wire(self) -> i32 {
        if self.is_empty() {
            INSTEAD_OF_NOTHING.bits()
        } else {
            self.bits()
        }
    }
}

impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_per_event_number() {
        for (event, set) in [
            (Event::RUN_POD_SANDBOX, Events::RUN_POD_SANDBOX),
            (Event::STOP_POD_SANDBOX, Events::STOP_POD_SANDBOX),
            (Event::REMOVE_POD_SANDBOX, Events::REMOVE_POD_SANDBOX),
            (Event::CREATE_CONTAINER, Events::CREATE_CONTAINER),
            (Event::POST_CREATE_CONTAINER, Events::POST_CREATE_CONTAINER),
            (Event::START_CONTAINER, Events::START_CONTAINER),
            (Event::POST_START_CONTAINER, Events::POST_START_CONTAINER),
            (Event::UPDATE_CONTAINER, Events::UPDATE_CONTAINER),
            (Event::POST_UPDATE_CONTAINER, Events::POST_UPDATE_CONTAINER),
            (Event::STOP_CONTAINER, Events::STOP_CONTAINER),
            (Event::REMOVE_CONTAINER, Events::REMOVE_CONTAINER),
            (Event::UPDATE_POD_SANDBOX, Events::UPDATE_POD_SANDBOX),
            (
                Event::POST_UPDATE_POD_SANDBOX,
                Events::POST_UPDATE_POD_SANDBOX,
            ),
            (Event::VALIDATE_CONTAINER_ADJUSTMENT, Events::empty()),
            (Event::UNKNOWN, Events::empty()),
        ] {
            assert_eq!(Events::of(event), set, "{event:?}");
        }
    }

    #[test]
    fn the_mask_on_the_wire() {
        let pod_updates = Events::UPDATE_POD_SANDBOX | Events::POST_UPDATE_POD_SANDBOX;
        for (wanted, stated, wire) in [
            (Events::all(), Some("v0.12.0"), 0x1fff),
            (Events::all(), Some("(devel)"), 0x1fff),
            (Events::all(), None, 0x07ff),
            (Events::CREATE_CONTAINER, None, 0x0008),
            (pod_updates, Some("v0.12.0"), 0x1800),
            // 0 would subscribe to everything.
            (pod_updates, None, 0x0004),
            (Events::empty(), Some("v0.12.0"), 0x0004),
        ] {
            let runtime = RuntimeInfo {
                nri_version: stated.map(str::to_owned),
                ..RuntimeInfo::default()
            };
            assert_eq!(
                wanted.known_to(&runtime).to_wire(),
                wire,
                "{wanted}, {stated:?}"
            );
        }
    }
}
