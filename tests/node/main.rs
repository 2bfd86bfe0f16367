//! The plugin on real containerd: one binary, a containerd of its own for each test.

mod after_pull;
mod ahead;
mod ahead_cost;
mod ahead_in_the_way;
mod ahead_kills;
mod ahead_race;
mod ahead_volume;
mod bad_input;
mod check;
mod concurrency;
mod guest_pull;
mod images;
mod json;
mod labels;
mod main_job;
mod policy;
mod pull;
mod rebuild;
mod recovery;
mod reload;
mod shared_layers;
mod snapshotters;
mod states;
mod support;
mod swap;
mod unlabelled;
