//! Real containerd on one machine, for the tests and the demo.
//!
//! In the order of their use in a test: [`packages`] installs Debian's containerd 1.7 and 2.1, runc and their
//! helpers side by side into `target/lab`; [`images`] builds the images, valid or intentionally broken;
//! [`Registry`] serves them; [`Lab`] is a daemon for one test, separate from the system's, which is removed
//! with all that it started; a [`ProxySnapshotter`] can run beside it; [`Cri`] and [`Store`] are its clients; a
//! [`Tap`] records the calls of its clients; [`Plugin`] is the plugin under test. A [`NonsenseServer`] is no containerd.
//!
//! The only part of the plugin that it knows is the command line. If the machine lacks a dependency, the error
//! names the remedy: a test without its containerd fails and is never skipped.

mod api_server;
mod apt;
mod blockfile;
mod chains;
mod chart;
mod config;
mod containerd;
mod cri;
mod dir;
mod disk;
mod go;
pub mod images;
mod log;
mod loss;
mod metadata;
mod mounts;
mod nonsense;
mod nri_tap;
pub mod nydus;
mod options;
pub mod packages;
mod plugin;
mod pods;
mod process;
mod proxy;
mod registry;
mod remains;
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
mod tree;

pub use api_server::{ApiServer, Ignored, Mode};
pub use chart::render_chart;
pub use config::PAUSE;
pub use containerd::Lab;
pub use cri::Cri;
pub use disk::Disk;
pub use images::{Flaw, Image, Layer};
pub use log::Log;
pub use metadata::Metadata;
pub use mounts::Mount;
pub use nonsense::{Nonsense, NonsenseServer};
pub use nri_tap::{FrameFault, NriTap};
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
pub use tap::{Call, Fault, Held, Stalled, Tap};
pub use tree::Tree;
