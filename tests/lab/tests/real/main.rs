//! The lab on real containerd: what all other tests rely on, and the facts on which the plugin is based.

mod blockfile;
mod images;
mod metadata;
mod nydus;
mod plugins;
mod pods;
mod soci;
mod teardown;
