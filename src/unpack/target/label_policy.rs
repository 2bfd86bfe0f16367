//! The interface through which the engine reads what the configuration says about labels.

use crate::config::ExtraLabels;
use crate::ctr::Ctr;
use crate::unpack::chain::profile::{Profile, Repair};

/// Which labels the layers of an image get in a snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labelling {
    /// Whether the layers get the `cri.*` labels; else only the extra labels.
    pub cri: bool,
    /// Whether the labels are required: committed layers without them are repaired. Else only layers that are unpacked
    /// from now on get them, and committed layers without them are ready.
    pub required: bool,
}

/// Decides about labels, on behalf of the configuration.
pub trait LabelPolicy: Send + Sync {
    /// Returns which labels the image with these names gets in a snapshotter; `None` if the image is excluded.
    fn labelling(&self, snapshotter: &str, names: &[String]) -> Option<Labelling>;
    /// Returns the extra labels of each layer.
    fn extra_labels(&self, snapshotter: &str) -> ExtraLabels;
    /// Returns the configured kind of snapshotter; `None` if it is to be found out.
    fn profile(&self, snapshotter: &str) -> Option<Profile>;
    /// Returns how missing labels are repaired; `None` for the default of the snapshotter's profile.
    fn repair(&self, snapshotter: &str) -> Option<Repair>;
    /// Returns the `ctr` command for the remedies in errors.
    fn ctr(&self) -> Ctr;
}
