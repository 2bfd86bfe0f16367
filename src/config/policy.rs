//! `[snapshotters.*]`: the policy of each snapshotter, and how the tables inherit.
//!
//! A snapshotter's own table overrides `[snapshotters.default]`, which overrides the built-in
//! defaults, key by key. This module decides which images a policy covers. It does no I/O.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{labels::ExtraLabels, names::Name, patterns::ImagePattern};

/// The name of the table that all snapshotters inherit from.
const DEFAULT_TABLE: &str = "default";

/// The policy of one snapshotter, with a value for every key.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotterPolicy {
    /// The kind of the snapshotter.
    pub profile: Profile,
    /// The labels that a layer's snapshot gets.
    pub labels: Labels,
    /// The same by patterns for the names of images; they take precedence.
    pub image_labels: ImageLabels,
    /// The images that are unpacked ahead, which means before a pod needs them.
    pub eager: Eager,
    /// The images that the plugin makes ready in this snapshotter.
    pub include: Vec<ImagePattern>,
    /// The images that it leaves to containerd. They take precedence over `include`.
    pub exclude: Vec<ImagePattern>,
    /// The repair of a chain that was unpacked without labels.
    pub unlabelled: Unlabelled,
    /// Labels that every layer's snapshot gets in addition.
    pub extra_labels: ExtraLabels,
}

impl SnapshotterPolicy {
    /// Whether the plugin makes the image of these names ready in this snapshotter: at least one name is
    /// included, and none is excluded. All names of an image share one chain, so an image that is excluded
    /// by its tag is not included again by its digest.
    pub fn admits<S: AsRef<str>>(&self, names: &[S]) -> bool {
        let any = |patterns: &[ImagePattern]| {
            let mut names = names.iter().map(AsRef::as_ref);
            names.any(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        any(&self.include) && !any(&self.exclude)
    }

    /// Returns which labels the image of these names gets.
    pub fn labels_of<S: AsRef<str>>(&self, names: &[S]) -> Labels {
        self.image_labels.of(names).unwrap_or(self.labels)
    }

    /// Whether the policy is the same for all names of images.
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

/// The kind of a snapshotter.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Found out; until then determined from its name.
    Auto,
    /// nydus in proxy mode, which may have another name.
    Nydus,
    /// A snapshotter that holds the complete content of every layer, under any name.
    Complete,
}

/// The labels that a layer's snapshot gets.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// Those that containerd's own pull sets when snapshot annotations are on.
    Cri,
    /// Only the layer's chain id.
    None,
}

/// The labels that images get, by patterns for their names.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(transparent)]
pub struct ImageLabels(BTreeMap<ImagePattern, Labels>);

impl ImageLabels {
    /// Returns the labels for the image of these names; nothing where no pattern matches. All names of an
    /// image share one chain, so [`Labels::None`] for one of them holds for all.
    fn of<S: AsRef<str>>(&self, names: &[S]) -> Option<Labels> {
        let matches = |pattern: &ImagePattern| {
            let mut names = names.iter().map(AsRef::as_ref);
            names.any(|name| pattern.matches(name))
        };
        let matching = self.0.iter().filter(|(pattern, _)| matches(pattern));
        matching.map(|(_, labels)| *labels).max()
    }
}

/// The images that are unpacked ahead, which means before a pod needs them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Eager {
    /// The pinned ones, those for which a proxy plugin needs no content, and those that a container is likely to need.
    Auto,
    /// All images that the policy includes.
    All,
    /// The images that containerd pins, such as the pause image.
    Pinned,
    /// None.
    None,
}

/// The repair of a chain that was unpacked without labels.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Unlabelled {
    /// The repair that the snapshotter's profile chooses.
    Profile,
    /// Put the labels on the existing snapshots.
    Relabel,
    /// Remove the chain as soon as nothing uses it, and unpack it again.
    Replace,
    /// Leave the chain as it is.
    Ignore,
}

/// The policies of all snapshotters, with inheritance resolved.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(from = "BTreeMap<Name, Table>")]
pub struct Snapshotters {
    default: SnapshotterPolicy,
    named: BTreeMap<Name, SnapshotterPolicy>,
}

impl Snapshotters {
    /// Returns the policy of this snapshotter: its own table, or `[snapshotters.default]`.
    pub fn policy(&self, snapshotter: &str) -> &SnapshotterPolicy {
        self.named.get(snapshotter).unwrap_or(&self.default)
    }

    /// Iterates over the snapshotters that have a table of their own.
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

/// A table as the file has it. Keys that are not set are inherited.
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
