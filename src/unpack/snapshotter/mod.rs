//! What concerns a snapshotter as a whole: leases and temporary snapshots, capabilities, mounts, listings, and
//! guest pull.

pub(crate) mod capabilities;
pub(crate) mod facts;
pub(crate) mod findings;
pub(crate) mod guest_pull;
pub(crate) mod lease;
pub(crate) mod lease_owner;
pub(crate) mod listing;
pub(crate) mod mounts;
pub(crate) mod sentinels;
pub(crate) mod sweep;
pub(crate) mod temporary;
