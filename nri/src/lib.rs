#![doc = include_str!("../README.md")]
//!
//! # How it is put together
//! In the order in which an event meets them: [`connect`] finds the socket, [`frame`] and `mux`
//! make two connections of it, [`Session`] keeps NRI's order on them, `rpc` and `service` turn each
//! call into a method of [`Plugin`], with the plain types of `types`.

#[doc(hidden)]
// Not public API, without any promise: for fake runtimes in tests, here and elsewhere.
pub mod api;
pub mod connect;
mod end;
mod events;
pub mod frame;
mod identity;
#[doc(hidden)] // As `api`.
pub mod mux;
mod plugin;
mod rpc;
mod service;
mod session;
mod types;

pub use end::SessionEnd;
pub use events::Events;
pub use identity::{Identity, IdentityError, PluginIndex, PluginName};
pub use plugin::{HandlerError, HandlerResult, Plugin};
pub use session::{Session, SessionError};
pub use types::{
    Container, ContainerState, DEFAULT_REGISTRATION_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Image, Mount,
    Pod, RuntimeInfo,
};
