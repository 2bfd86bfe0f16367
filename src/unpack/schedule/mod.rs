//! Limits and order of unpacks, the locks that let each layer be unpacked once, and the progress of each unpack.

pub(crate) mod last_look;
pub(crate) mod layer_locks;
pub(crate) mod limits;
pub(crate) mod permits;
pub(crate) mod place;
pub(crate) mod priority;
pub(crate) mod process_lock;
pub(crate) mod progress;
pub(crate) mod silent_registries;
pub(crate) mod throughput;
