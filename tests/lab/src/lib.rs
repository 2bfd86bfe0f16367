//! Real containerd on one machine, for the tests and the demo.
//!
//! In the order in which a test meets them: [`packages`] brings Debian's containerd 1.7 and 2.1, runc and their
//! helpers side by side into `target/lab`; [`images`] builds the images, sound or broken on purpose; [`registry`]
//! serves them; [`containerd`] starts a daemon of its own, away from the system's, and takes it down with all that
//! it started; [`cri`] and [`store`] speak to it; [`plugin`] runs the plugin under test against it.
//!
//! It knows nothing of the plugin but its command line. What is missing on the machine is an error that names the
//! remedy: a test that cannot have its containerd fails, it never skips.

mod apt;
mod config;
pub mod containerd;
pub mod cri;
pub mod images;
pub mod packages;
pub mod plugin;
mod process;
pub mod registry;
mod scratch;
pub mod store;

pub use containerd::{Handler, Lab, Launched, Options, Version};
pub use cri::{Cri, Pod};
pub use images::{Flaw, Image, Layer};
pub use plugin::Plugin;
pub use process::Log;
pub use registry::Registry;
pub use store::{Kind, Snapshot, Store};
