//! The plugin side of NRI.

#[doc(hidden)]
pub mod api;
pub mod connect;
pub mod frame;
mod identity;
#[doc(hidden)]
pub mod mux;

pub use identity::{Identity, IdentityError, PluginIndex, PluginName};
