//! Keeps every image that a pod may start from unpacked, with its per-layer labels, in the
//! snapshotter that the pod's runtime handler uses.
//!
//! The parts, in the order in which an event meets them: `hooks` turns NRI's events into requests,
//! `policy` says what is wanted where, [`image`] reads what an image consists of, [`unpack`] brings
//! its chain to `ready`, and [`containerd`] is the one door to the outside.

pub mod config;
pub mod containerd;
pub mod image;
pub mod unpack;
pub mod handlers;
pub mod logs;
