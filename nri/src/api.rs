//! The ttrpc bindings that `build.rs` makes out of `proto/nri.proto`: messages, clients, services.
//!
//! Generated names and habits stay behind this file: of the crate, only `service`, `session`,
//! `events` and the conversions in `types` look in here.

/// The messages.
#[allow(warnings, clippy::all, reason = "generated")]
pub mod nri {
    include!(concat!(env!("OUT_DIR"), "/nri.rs"));
}

/// Clients and services, over those messages.
#[allow(warnings, clippy::all, reason = "generated")]
pub mod nri_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/nri_ttrpc.rs"));
}

pub use nri::*;
pub use nri_ttrpc::{
    Plugin as PluginService, PluginClient, Runtime as RuntimeService, RuntimeClient, create_plugin,
    create_runtime,
};
