//! The ttrpc bindings that `build.rs` generates from `proto/nri.proto`: messages, clients, services.
//!
//! In this crate only `service`, `session`, `rpc`, `events` and the conversions in `types` use generated
//! types.

/// The messages.
#[allow(warnings, clippy::all, reason = "generated")]
pub mod nri {
    include!(concat!(env!("OUT_DIR"), "/nri.rs"));
}

/// The clients and services.
#[allow(warnings, clippy::all, reason = "generated")]
pub mod nri_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/nri_ttrpc.rs"));
}

pub use nri::*;
pub use nri_ttrpc::{
    Plugin as PluginService, PluginClient, Runtime as RuntimeService, RuntimeClient, create_plugin,
    create_runtime,
};
