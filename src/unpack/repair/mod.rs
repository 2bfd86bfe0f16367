//! Changes to existing chains: replace a chain, remove the records of lost images, retag layers, move a container, fill a
//! volume.

pub(crate) mod in_use;
pub(crate) mod lost;
pub(crate) mod replace;
pub(crate) mod replacements;
pub(crate) mod retag;
pub(crate) mod swap;
pub(crate) mod users;
pub(crate) mod volume;
