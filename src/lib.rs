//! Keeps the images of a runtime handler unpacked and labelled in its snapshotter.

pub mod config;
pub mod handlers;
pub mod logs;
