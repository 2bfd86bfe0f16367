//! The plugin side of NRI.
