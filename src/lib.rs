//! Keeps every image that a pod may start from unpacked, with its per-layer labels, in the
//! snapshotter that the pod's runtime handler uses.
//!
//! The parts, in the order in which an event meets them: [`hooks`] turns NRI's events into requests,
//! [`ahead`] what is in containerd's store and what arrives there, [`policy`] says what is wanted where, [`unpack`] brings an image's chain to `ready`, [`image`]
//! reads what an image consists of, and [`containerd`] is the one door to the outside. [`node`] holds
//! them together, [`daemon`] and [`cli`] run them.

pub mod ahead;
pub mod cli;
pub mod daemon;
pub mod doctor;
pub mod hooks;
pub mod install;
pub mod node;
pub mod policy;
pub mod unpack;

pub mod handlers;
pub mod image;

pub mod containerd;

pub mod config;
pub mod ctr;
mod free_space;
#[cfg(test)]
mod imports;
pub mod logs;
pub mod metrics;
mod peer;
mod printable;
mod retry;
