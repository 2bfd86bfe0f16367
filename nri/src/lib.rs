//! The plugin side of NRI.

#[doc(hidden)]
pub mod api;
pub mod frame;
#[doc(hidden)]
pub mod mux;
