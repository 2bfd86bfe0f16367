//! Real containerd on one machine, for the tests and the demo.
//!
//! In the order in which a test meets them: [`packages`] brings Debian's containerd 1.7 and 2.1, runc and their
//! helpers side by side into `target/lab`; [`images`] builds the images, sound or broken on purpose; [`Registry`]
//! serves them; [`Lab`] is a daemon of the test's own, away from the system's, taken down with all that it started;
//! a [`ProxySnapshotter`] runs beside it where one is asked for; [`Cri`] and [`Store`] speak to it; a [`Tap`] listens to
//! who speaks to it; [`Plugin`] is the plugin under test.
//!
//! It knows nothing of the plugin but its command line. What is missing on the machine is an error that names the
//! remedy: a test that cannot have its containerd fails, it never skips.

mod apt;
mod blockfile;
mod config;
mod containerd;
mod cri;
mod dir;
pub mod images;
mod log;
mod metadata;
mod mounts;
pub mod nydus;
mod options;
pub mod packages;
mod plugin;
mod pods;
mod process;
mod proxy;
mod registry;
mod scratch;
mod shared;
mod signals;
mod soci;
mod sources;
mod stargz;
mod storage;
mod store;
mod systemd;
mod tap;
mod traces;

pub use config::PAUSE;
pub use containerd::Lab;
pub use cri::Cri;
pub use images::{Flaw, Image, Layer};
pub use log::Log;
pub use metadata::Metadata;
pub use mounts::Mount;
pub use options::{Handler, Launched, Options, Remote, Version};
pub use packages::Packages;
pub use plugin::Plugin;
pub use pods::{Exec, Pod};
pub use proxy::ProxySnapshotter;
pub use registry::{PASSWORD, Registry, USER};
pub use scratch::sweep;
pub use shared::Shared;
pub use signals::interrupted;
pub use store::{Kind, Labels, NAMESPACE, Snapshot, Store, namespaced};
pub use systemd::Systemd;
pub use tap::{Call, Held, Tap};
