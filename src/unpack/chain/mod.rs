//! The status of a chain in a snapshotter, the state that follows from it, and the plan that makes it ready. No
//! I/O.

pub(crate) mod action;
pub(crate) mod error;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod state;
