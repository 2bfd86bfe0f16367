//! Makes a committed snapshot of one layer, from its blob or from content that replaces the blob.

pub(crate) mod content;
pub(crate) mod decryption;
pub(crate) mod fallback;
pub(crate) mod kept_blobs;
pub(crate) mod other_client;
pub(crate) mod parallel;
mod prepare;
pub(crate) mod pull;
pub(crate) mod rebuild;
pub(crate) mod unpack;
