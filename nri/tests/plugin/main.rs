//! The plugin side against a runtime side of our own: real ttrpc over an in-memory or a real
//! socket pair, and raw bytes where the two sides could agree on a mistake.

mod ends;
mod events;
mod handshake;
mod launched;
mod mux;
mod recorder;
mod runtime;
