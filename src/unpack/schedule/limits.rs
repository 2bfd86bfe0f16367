//! What bounds the unpacks of layers in this process, and what is known of their speed.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::layer_locks::Claims;
use super::permits::Gate;
use super::throughput::Pace;
use crate::unpack::snapshotter::capabilities::Abilities;

/// How the layers of all flights are unpacked.
pub(crate) struct Layers {
    /// That many are applied at the same time,
    pub(crate) at_once: usize,
    /// and the others wait here.
    pub(crate) gate: Gate,
    pub(crate) abilities: Arc<Abilities>,
    /// A layer that several chains have is unpacked once.
    pub(crate) claims: Claims,
    /// How fast that goes.
    pub(crate) pace: Pace,
    /// Whether what decrypts a layer is handed what CRI hands to it.
    pub(crate) hands_keys_over: AtomicBool,
}
