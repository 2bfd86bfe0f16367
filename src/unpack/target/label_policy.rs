//! What the configuration decides about an image's labels in a snapshotter, as the engine asks for it.

use crate::config::ExtraLabels;
use crate::ctr::Ctr;
use crate::unpack::chain::profile::{Profile, Repair};

/// What the labels of an image's layers are to be in a snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labelling {
    /// The `cri.*` labels; else only those that are added to them.
    pub cri: bool,
    /// Put on what lacks them; else given to what is unpacked from now on, and what is there without
    /// them is ready.
    pub required: bool,
}

/// What is wanted of labels, for others to decide.
pub trait LabelPolicy: Send + Sync {
    /// What the labels of the image with these names are to be in a snapshotter; `None` where the
    /// image is left to containerd.
    fn labelling(&self, snapshotter: &str, names: &[String]) -> Option<Labelling>;
    /// The labels that every layer gets on top.
    fn extra_labels(&self, snapshotter: &str) -> ExtraLabels;
    /// What kind of snapshotter it is; `None` where that is to be found out.
    fn profile(&self, snapshotter: &str) -> Option<Profile>;
    /// How absent labels are repaired; `None` for what the snapshotter's profile says.
    fn repair(&self, snapshotter: &str) -> Option<Repair>;
    /// What the remedies in errors say.
    fn ctr(&self) -> Ctr;
}
