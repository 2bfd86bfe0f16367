//! The plugin on real containerd: one binary, a containerd of its own for each test.

mod after_pull;
mod ahead;
mod bad_input;
mod check;
mod concurrency;
mod doctor;
mod ensure;
mod guest_pull;
mod images;
mod json;
mod labels;
mod main_job;
mod policy;
mod pull;
mod rebuild;
mod recovery;
mod shared_layers;
mod snapshotters;
mod states;
mod support;
mod swap;
mod unlabelled;
