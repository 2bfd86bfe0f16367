//! What a chain looks like in a snapshotter, the one word for it, and the steps that make it ready. Pure.

pub(crate) mod action;
pub(crate) mod error;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod state;
