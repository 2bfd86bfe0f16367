//! How many unpacks run at the same time, in which order, and how far each one is.

pub(crate) mod layer_locks;
pub(crate) mod limits;
pub(crate) mod permits;
pub(crate) mod priority;
pub(crate) mod process_lock;
pub(crate) mod progress;
pub(crate) mod throughput;
