//! What bounds the unpacks of layers in this process, and what is known of their speed.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::layer_locks::LayerLocks;
use super::permits::PrioritySemaphore;
use super::throughput::Throughput;
use crate::unpack::snapshotter::capabilities::CapabilityCache;

/// How the layers of all flights are unpacked.
pub(crate) struct Layers {
    /// That many are applied at the same time,
    pub(crate) at_once: usize,
    /// and the others wait here.
    pub(crate) permits: PrioritySemaphore,
    pub(crate) capabilities: Arc<CapabilityCache>,
    /// A layer that several chains have is unpacked once.
    pub(crate) layer_locks: LayerLocks,
    /// How fast that goes.
    pub(crate) throughput: Throughput,
    /// Whether what decrypts a layer is handed what CRI hands to it.
    pub(crate) hands_keys_over: AtomicBool,
}

impl Layers {
    pub(crate) fn new(at_once: usize, capabilities: Arc<CapabilityCache>) -> Self {
        Self {
            at_once,
            permits: PrioritySemaphore::new(at_once),
            capabilities,
            layer_locks: LayerLocks::default(),
            throughput: Throughput::default(),
            // containerd's own default.
            hands_keys_over: AtomicBool::new(true),
        }
    }
}
