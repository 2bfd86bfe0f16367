//! Keeps every image that a pod may start from unpacked, with its labels on each layer, in the snapshotter of the
//! pod's runtime handler.
//!
//! The parts, in the order in which an event passes them: [`hooks`] turns NRI's events into requests, and [`ahead`]
//! does so for the images in containerd's store, and [`kubernetes`] for the pods that are bound to this node. [`policy`] decides from the configuration which images and labels a
//! snapshotter gets. [`unpack`] makes the chain of an image ready. [`image`] reads the manifest and the config of an
//! image. [`containerd`] is the only part that calls containerd. [`node`] combines these parts; [`daemon`] and [`cli`]
//! run them.

pub mod ahead;
pub mod cli;
pub mod daemon;
pub mod doctor;
pub mod hooks;
pub mod install;
pub mod kubernetes;
pub mod node;
pub mod policy;
pub mod unpack;

pub mod handlers;
pub mod image;

pub mod containerd;

pub mod config;
pub mod ctr;
mod free_space;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)] // Not part of the public API, and may change at any time: for the fuzzers.
pub mod fuzz;
#[cfg(test)]
mod imports;
pub mod logs;
pub mod metrics;
mod panics;
#[cfg(test)]
mod peak;
mod peer;
mod printable;
mod question;
mod retry;
mod unquoted;
