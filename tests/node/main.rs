//! The plugin on real containerd: one binary, a containerd of its own for each test.

mod bad_input;
mod guest_pull;
mod json;
mod labels;
mod main_job;
mod recovery;
mod shared_layers;
mod snapshotters;
mod support;
mod unlabelled;
