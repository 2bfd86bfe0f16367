//! Real containerd on one machine, for the tests and the demo.
//!
//! It knows nothing of the plugin but its command line. What is missing on the machine is an error that names the
//! remedy: a test that cannot have its containerd fails, it never skips.

mod apt;
pub mod images;
pub mod packages;

pub use images::{Flaw, Image, Layer};
