#![doc = include_str!("../README.md")]
//!
//! # Structure
//! In the order in which an event passes them: [`connect`] opens the socket, [`frame`] and `mux`
//! split it into two connections (`boundaries` says where their messages end), [`Session`] follows NRI's protocol on them, and `rpc` and `service`
//! map each call to a method of [`Plugin`], with the types of `types`. `weight` and `limited` refuse a request
//! that would take too much memory when it is decoded.

#[doc(hidden)]
// Not part of the public API, and may change at any time: for fake runtimes in the tests of this and other crates.
pub mod api;
mod boundaries;
pub mod connect;
mod end;
mod envelope;
mod events;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)] // As `api`.
pub mod fuzz;
mod identity;
mod limited;
#[doc(hidden)] // As `api`.
pub mod mux;
mod plugin;
mod rpc;
mod service;
mod session;
mod types;
#[doc(hidden)] // As `api`: for a fuzzer.
pub mod weight;

pub use end::SessionEnd;
pub use events::Events;
pub use identity::{Identity, IdentityError, PluginIndex, PluginName};
pub use plugin::{HandlerError, HandlerResult, Plugin};
pub use session::{Session, SessionError};
pub use types::{
    Container, ContainerState, DEFAULT_REGISTRATION_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Image, Mount,
    Pod, RuntimeInfo,
};
