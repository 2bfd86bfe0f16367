//! The events that a plugin wants, and their encoding for a runtime that may be older than this crate.

use std::fmt;

use crate::api::Event;
use crate::types::RuntimeInfo;

bitflags::bitflags! {
    /// A set of events, which a plugin returns from `configure`.
    ///
    /// A runtime rejects a plugin that subscribes to an event which the runtime does not know. So the
    /// crate subscribes to the two newest events, the pod updates, only if the runtime sends its NRI
    /// version, which it does from 0.12 on. From an older runtime the plugin gets no pod updates.
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

/// The events of every runtime since NRI 0.2. An older runtime rejects a plugin that names newer events.
const EVENTS_OF_ALL_RUNTIMES: Events = Events::from_bits_truncate((1 << 11) - 1);

/// The subscription that stands for an empty set, since an empty mask means every event: the rarest event,
/// on which no operation waits. [`crate::service`] does not pass it to the plugin.
const INSTEAD_OF_NOTHING: Events = Events::REMOVE_POD_SANDBOX;

impl Events {
    /// Returns the set with only this event; empty for an event that this crate does not support.
    pub(crate) fn of(event: Event) -> Self {
        match event as u32 {
            0 => Self::empty(),
            number => Self::from_bits_truncate(1 << (number - 1)),
        }
    }

    /// Returns the events of this set that `runtime` is sure to know.
    ///
    /// No runtime reports which events it knows. NRI 0.10 added the pod updates, and 0.12 is the first
    /// version that a runtime sends. So with 0.10 and 0.11 a plugin gets no pod updates; otherwise 0.9
    /// would reject it.
    pub(crate) fn known_to(self, runtime: &RuntimeInfo) -> Self {
        match runtime.nri_version {
            Some(_) => self,
            None => self & EVENTS_OF_ALL_RUNTIMES,
        }
    }

    /// Returns the mask for `ConfigureResponse`.
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
    fn each_event_number_has_one_bit() {
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
    fn the_mask_has_only_events_that_the_runtime_knows() {
        let pod_updates = Events::UPDATE_POD_SANDBOX | Events::POST_UPDATE_POD_SANDBOX;
        for (wanted, stated, wire) in [
            (Events::all(), Some("v0.12.0"), 0x1fff),
            (Events::all(), Some("(devel)"), 0x1fff),
            (Events::all(), None, 0x07ff),
            (Events::CREATE_CONTAINER, None, 0x0008),
            (pod_updates, Some("v0.12.0"), 0x1800),
            // 0 would subscribe to every event.
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
