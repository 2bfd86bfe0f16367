//! One layer becomes a committed snapshot: from its blob, or from what takes the blob's place.

pub(crate) mod content;
pub(crate) mod decryption;
pub(crate) mod fallback;
pub(crate) mod kept_blobs;
pub(crate) mod parallel;
pub(crate) mod pull;
pub(crate) mod rebuild;
pub(crate) mod unpack;
