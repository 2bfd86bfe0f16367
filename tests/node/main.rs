//! The plugin on real containerd: one binary, a containerd of its own for each test.

mod bad_input;
mod json;
mod labels;
mod main_job;
mod recovery;
mod support;
mod unlabelled;
