//! Tests of the plugin side with a test runtime: real ttrpc over an in-memory or a real socket pair, and raw
//! bytes for cases in which both sides could share a mistake.

mod ends;
mod events;
mod handshake;
mod hostile;
mod launched;
mod mux;
mod recorder;
mod runtime;
