//! The lab on the real thing: what all other tests take for granted, and the claims that the plugin is built on.

mod blockfile;
mod images;
mod metadata;
mod nydus;
mod plugins;
mod pods;
mod soci;
mod teardown;
