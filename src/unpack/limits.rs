//! What bounds the unpacks of layers in this process, and what is known of their speed.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::abilities::Abilities;
use super::claims::Claims;
use super::gate::Gate;
use super::pace::Pace;

/// How the layers of all flights are unpacked.
pub(super) struct Layers {
    /// That many are applied at the same time,
    pub(super) at_once: usize,
    /// and the others wait here.
    pub(super) gate: Gate,
    pub(super) abilities: Arc<Abilities>,
    /// A layer that several chains have is unpacked once.
    pub(super) claims: Claims,
    /// How fast that goes.
    pub(super) pace: Pace,
    /// Whether what decrypts a layer is handed what CRI hands to it.
    pub(super) hands_keys_over: AtomicBool,
}
