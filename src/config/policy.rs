//! `[snapshotters.*]`: what is wanted of each snapshotter, and how the tables inherit from one
//! another.
//!
//! A snapshotter's own table overrides `[snapshotters.default]`, which overrides the built-in
//! defaults, key by key. Whether an image fits a policy is a pure question; acting on it is not
//! done here.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{labels::ExtraLabels, names::Name, patterns::ImagePattern};

/// The table that all snapshotters without their own inherit from.
const DEFAULT_TABLE: &str = "default";

/// What is wanted of one snapshotter, every key settled.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotterPolicy {
    /// What kind of snapshotter it is.
    pub profile: Profile,
    /// Which labels a layer's snapshot gets.
    pub labels: Labels,
    /// The same for images of certain names.
    pub image_labels: ImageLabels,
    /// Which images are unpacked before a pod asks for them.
    pub eager: Eager,
    /// The images that the plugin cares for in this snapshotter.
    pub include: Vec<ImagePattern>,
    /// The images that it leaves alone, whatever `include` says.
    pub exclude: Vec<ImagePattern>,
    /// What is done with a chain that was unpacked without labels.
    pub unlabelled: Unlabelled,
    /// Labels that every layer's snapshot gets on top.
    pub extra_labels: ExtraLabels,
}

impl SnapshotterPolicy {
    /// Whether the plugin cares for the image of these names in this snapshotter: one of them is
    /// included, and none is excluded. An image has one chain, whatever it is called, so what is
    /// excluded by its tag cannot come back by its digest.
    pub fn admits<S: AsRef<str>>(&self, names: &[S]) -> bool {
        let any = |patterns: &[ImagePattern]| {
            let mut names = names.iter().map(AsRef::as_ref);
            names.any(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        any(&self.include) && !any(&self.exclude)
    }

    /// Which labels the image of these names gets.
    pub fn labels_of<S: AsRef<str>>(&self, names: &[S]) -> Labels {
        self.image_labels.of(names).unwrap_or(self.labels)
    }

    /// Whether it treats images of all names alike.
    pub fn is_nameless(&self) -> bool {
        let admits_all = self.exclude.is_empty() && self.include.contains(&ImagePattern::any());
        admits_all && self.image_labels == ImageLabels::default()
    }
}

impl Default for SnapshotterPolicy {
    fn default() -> Self {
        Self {
            profile: Profile::Auto,
            labels: Labels::Cri,
            image_labels: ImageLabels::default(),
            eager: Eager::Auto,
            include: vec![ImagePattern::any()],
            exclude: Vec::new(),
            unlabelled: Unlabelled::Profile,
            extra_labels: ExtraLabels::default(),
        }
    }
}

/// What kind of snapshotter it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// What its name says.
    Auto,
    /// nydus, under another name.
    Nydus,
    /// One that has the whole content of what it unpacks, whatever its name.
    Complete,
}

/// Which labels a layer's snapshot gets.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// Those that containerd's own pull gives with snapshot annotations on.
    Cri,
    /// None but the layer's chain id.
    None,
}

/// Which labels images get, by patterns for their names.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(transparent)]
pub struct ImageLabels(BTreeMap<ImagePattern, Labels>);

impl ImageLabels {
    /// What is said of the image of these names: `None` labels where one of its names has to go without,
    /// since all names of an image share one chain; nothing where no pattern matches.
    fn of<S: AsRef<str>>(&self, names: &[S]) -> Option<Labels> {
        let matches = |pattern: &ImagePattern| {
            let mut names = names.iter().map(AsRef::as_ref);
            names.any(|name| pattern.matches(name))
        };
        let said = self.0.iter().filter(|(pattern, _)| matches(pattern));
        said.map(|(_, labels)| *labels).max()
    }
}

/// Which images are unpacked before a pod asks for them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Eager {
    /// All where the snapshotter is a proxy plugin, and so fetches no content for it; else the
    /// pinned ones.
    Auto,
    /// All that the policy admits.
    All,
    /// Those that containerd pins: the pause image is one.
    Pinned,
    /// None.
    None,
}

/// What is done with a chain that was unpacked without labels.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Unlabelled {
    /// What the snapshotter's profile says.
    Profile,
    /// Put the labels onto the snapshots that are there.
    Relabel,
    /// Take the chain away as soon as nothing uses it, and unpack it again.
    Replace,
    /// Leave it.
    Ignore,
}

/// The policies of all snapshotters, inheritance resolved.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(from = "BTreeMap<Name, Table>")]
pub struct Snapshotters {
    default: SnapshotterPolicy,
    named: BTreeMap<Name, SnapshotterPolicy>,
}

impl Snapshotters {
    /// The policy of this snapshotter: its own, or that of all others.
    pub fn policy(&self, snapshotter: &str) -> &SnapshotterPolicy {
        self.named.get(snapshotter).unwrap_or(&self.default)
    }

    /// The snapshotters that have a table of their own.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(AsRef::as_ref)
    }
}

impl From<BTreeMap<Name, Table>> for Snapshotters {
    fn from(mut tables: BTreeMap<Name, Table>) -> Self {
        let built_in = SnapshotterPolicy::default();
        let default = tables
            .remove(DEFAULT_TABLE)
            .unwrap_or_default()
            .over(&built_in);
        let named = tables
            .into_iter()
            .map(|(name, table)| (name, table.over(&default)))
            .collect();
        Self { default, named }
    }
}

/// A table as it stands in the file: what is not set is inherited.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct Table {
    profile: Option<Profile>,
    labels: Option<Labels>,
    image_labels: Option<ImageLabels>,
    eager: Option<Eager>,
    include: Option<Vec<ImagePattern>>,
    exclude: Option<Vec<ImagePattern>>,
    unlabelled: Option<Unlabelled>,
    extra_labels: Option<ExtraLabels>,
}

impl Table {
    fn over(self, base: &SnapshotterPolicy) -> SnapshotterPolicy {
        SnapshotterPolicy {
            profile: self.profile.unwrap_or(base.profile),
            labels: self.labels.unwrap_or(base.labels),
            image_labels: self
                .image_labels
                .unwrap_or_else(|| base.image_labels.clone()),
            eager: self.eager.unwrap_or(base.eager),
            include: self.include.unwrap_or_else(|| base.include.clone()),
            exclude: self.exclude.unwrap_or_else(|| base.exclude.clone()),
            unlabelled: self.unlabelled.unwrap_or(base.unlabelled),
            extra_labels: self
                .extra_labels
                .unwrap_or_else(|| base.extra_labels.clone()),
        }
    }
}
