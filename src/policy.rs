//! The policy: which snapshotters are managed, which labels an image gets in a snapshotter, and whether
//! a container whose image is not ready is allowed. Does no I/O.

use crate::config::{
    self, AbsolutePath, Config, ExtraLabels, Live, MissingContent, OnUnready, Unlabelled,
};
use crate::ctr::Ctr;
use crate::unpack::{
    ContentFallback, FallbackSource, LabelPolicy, Labelling, Profile, Registries, Repair,
};

/// The annotation of a pod with a comma-separated list of image names, which are made ready before its
/// first container.
pub const IMAGES: &str = "nri-unpack/images";

/// The annotation with which a pod is skipped: its value is `skip`.
pub const MODE: &str = "nri-unpack/mode";

/// The limit of images in one annotation. A pod has a handful of containers; a longer list is an
/// attempt to keep the node busy.
const MAX_IMAGES: usize = 64;

/// The limit of one of its names, in bytes. A registry's host (253), a repository (255), a tag (128) and a digest
/// (135 with sha512) fit.
const MAX_NAME: usize = 1024;

/// The verdict on a container whose image is not ready when the hook has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// It is created.
    Allow,
    /// Its creation fails, and the kubelet tries again.
    Reject,
}

/// Whether the plugin manages this snapshotter. It does not manage the default snapshotter, for which containerd
/// pulls and labels itself, unless the configuration has a table for it. If the default snapshotter is not known, the
/// plugin manages only snapshotters with a table, since each may be the default one.
pub fn is_kept(config: &Config, snapshotter: &str, default_snapshotter: Option<&str>) -> bool {
    let has_table = || config.snapshotters.named().any(|name| name == snapshotter);
    default_snapshotter.is_some_and(|default| snapshotter != default) || has_table()
}

/// Whether the annotation [`MODE`] of a pod counts in its namespace. Its author need not be trusted: if the configuration
/// names no namespaces, the annotation does not count where a container whose image is not ready is rejected.
pub fn may_skip(hooks: &config::Hooks, namespace: &str, rejects_unready: bool) -> bool {
    match &hooks.skip_namespaces {
        Some(listed) => listed.iter().any(|listed| listed.covers(namespace)),
        None => !rejects_unready,
    }
}

/// The configuration, as the engine's label policy.
pub struct Labels(pub Live);

impl LabelPolicy for Labels {
    fn labelling(&self, snapshotter: &str, names: &[String]) -> Option<Labelling> {
        let config = self.0.now();
        let policy = config.snapshotter(snapshotter);
        policy.admits(names).then(|| Labelling {
            cri: policy.labels_of(names) == config::Labels::Cri,
            required: policy.unlabelled != Unlabelled::Ignore,
        })
    }

    fn extra_labels(&self, snapshotter: &str) -> ExtraLabels {
        self.0.now().snapshotter(snapshotter).extra_labels.clone()
    }

    fn profile(&self, snapshotter: &str) -> Option<Profile> {
        match self.0.now().snapshotter(snapshotter).profile {
            config::Profile::Auto => None,
            config::Profile::Nydus => Some(Profile::NYDUS),
            config::Profile::Complete => Some(Profile::COMPLETE),
        }
    }

    fn repair(&self, snapshotter: &str) -> Option<Repair> {
        match self.0.now().snapshotter(snapshotter).unlabelled {
            Unlabelled::Relabel => Some(Repair::Relabel),
            Unlabelled::Replace => Some(Repair::Replace),
            Unlabelled::Profile | Unlabelled::Ignore => None,
        }
    }

    fn ctr(&self) -> Ctr {
        Ctr::of(&self.0.now())
    }
}

/// Returns the configured fallback for a layer that has to be unpacked and whose blob is gone.
pub fn content_fallback(config: &Config) -> ContentFallback {
    let means = config.unpack.missing_content.iter();
    let means = means.map(|means| match means {
        MissingContent::Rebuild => FallbackSource::Rebuild,
        MissingContent::Pull => FallbackSource::Pull,
    });
    let path = |path: &AbsolutePath| path.as_ref().to_owned();
    let registries = Registries {
        hosts: path(&config.pull.hosts),
        credentials: config.pull.credentials.as_ref().map(path),
    };
    ContentFallback::new(means.collect(), registries)
}

/// A reason not to allow a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It would start from something else than its image: host-unpacked layers on guest-pulled layers, or no snapshot.
    Broken,
    /// It mounts an image as a volume that lacks layers.
    Volume,
    /// Its image is not ready, or containerd did not answer in time.
    Unready,
    /// It is based on a copy for a user namespace, whose image cannot be found out.
    Copy,
    /// Its image is there for another platform than the node's alone.
    Platform,
    /// Nothing is known of it: containerd answered with an error, or cannot be reached, or the plugin is
    /// being stopped.
    Unseen,
}

/// The rules for the verdicts on the containers of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strictness {
    /// `hooks.on_unready`.
    pub on_unready: OnUnready,
    /// Whether the profile of the pod's snapshotter rejects containers whose image is not ready.
    pub fails_closed: bool,
    /// The pod is left to containerd.
    pub left_to_containerd: bool,
}

impl Strictness {
    /// Decides whether a creation is allowed or rejected, for all callers. The table in `docs/how-it-works.md` is this
    /// function.
    pub fn judge(self, doubt: Doubt) -> Unready {
        let rejects = match (doubt, self.on_unready) {
            (Doubt::Broken, _) => true,
            _ if self.left_to_containerd => false,
            // Another try would find the same: it would be rejected for ever.
            (Doubt::Copy | Doubt::Platform, _) => false,
            (_, OnUnready::Allow) => false,
            (_, OnUnready::Reject) => true,
            (Doubt::Unready | Doubt::Volume, OnUnready::Profile) => self.fails_closed,
            // By default an unreachable containerd does not stop the pods of a node.
            (Doubt::Unseen, OnUnready::Profile) => false,
        };
        if rejects {
            Unready::Reject
        } else {
            Unready::Allow
        }
    }
}

/// Returns the images that a pod's annotation names, and the number of ignored names: those that are no
/// reference, and those after the first [`MAX_IMAGES`].
pub fn annotated_images(annotation: &str) -> (Vec<&str>, usize) {
    let names = annotation.split(',').map(str::trim);
    let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    let may_be_reference =
        |name: &&str| name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_graphic());
    let taken = names.iter().copied().filter(may_be_reference);
    let taken: Vec<_> = taken.take(MAX_IMAGES).collect();
    let ignored = names.len() - taken.len();
    (taken, ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_toml(text, "test").unwrap()
    }

    #[test]
    fn the_default_snapshotter_is_left_alone_unless_it_is_named() {
        let plain = config("");
        assert!(is_kept(&plain, "erofs", Some("overlayfs")));
        assert!(!is_kept(&plain, "overlayfs", Some("overlayfs")));
        assert!(!is_kept(&plain, "erofs", None));
        let named = config("[snapshotters.overlayfs]\n");
        assert!(is_kept(&named, "overlayfs", Some("overlayfs")));
        assert!(is_kept(&named, "overlayfs", None));
    }

    #[test]
    fn a_pod_may_skip_by_its_namespace_or_where_nothing_is_rejected() {
        for (hooks, namespace, lenient, strict) in [
            ("", "tenant", true, false),
            ("skip_namespaces = []", "tenant", false, false),
            ("skip_namespaces = [\"*\"]", "tenant", true, true),
            (
                "skip_namespaces = [\"kube-system\"]",
                "tenant",
                false,
                false,
            ),
            (
                "skip_namespaces = [\"a\", \"kube-system\"]",
                "kube-system",
                true,
                true,
            ),
            ("skip_namespaces = [\"kube\"]", "kube-system", false, false),
            ("skip_namespaces = [\"kube-system\"]", "", false, false),
        ] {
            let hooks = config(&format!("[hooks]\n{hooks}\n")).hooks;
            let found = [false, true].map(|rejects| may_skip(&hooks, namespace, rejects));
            assert_eq!(found, [lenient, strict], "{hooks:?} {namespace}");
        }
    }

    #[test]
    fn the_profile_is_configured_or_found_out() {
        let labels = Labels(Live::new(config(
            "[snapshotters.proxy]\nprofile = \"nydus\"\n[snapshotters.nydus]\nprofile = \"complete\"\n",
        )));
        for (snapshotter, profile) in [
            ("nydus-cc", None),
            ("proxy", Some(Profile::NYDUS)),
            ("nydus", Some(Profile::COMPLETE)),
            ("soci", None),
        ] {
            assert_eq!(labels.profile(snapshotter), profile, "{snapshotter}");
        }
    }

    #[test]
    fn labels_follow_the_snapshotter_and_the_image() {
        let labels = Labels(Live::new(config(
            "[snapshotters.soci]\nexclude = [\"registry.k8s.io/pause:*\"]\n\
             [snapshotters.native]\nlabels = \"none\"\n\
             [snapshotters.lazy]\nimage_labels = { \"*/pause:*\" = \"none\", \"*/pause:lazy\" = \"cri\" }\n\
             [snapshotters.few]\nlabels = \"none\"\nimage_labels = { \"r.example/*\" = \"cri\" }\n\
             [snapshotters.zfs]\nunlabelled = \"ignore\"\n\
             extra_labels = { a = \"b\" }\n",
        )));
        let wanted = |cri, required| Some(Labelling { cri, required });
        for (snapshotter, names, expected) in [
            ("erofs", &["a:1"][..], wanted(true, true)),
            ("soci", &["a:1"], wanted(true, true)),
            ("soci", &["sha256:00", "registry.k8s.io/pause:3.10"], None),
            ("native", &["a:1"], wanted(false, true)),
            ("zfs", &["a:1"], wanted(true, false)),
            ("lazy", &["r.example/pause:3"], wanted(false, true)),
            ("lazy", &["r.example/pause:lazy"], wanted(false, true)),
            (
                "lazy",
                &["r.example/app:1", "r.example/pause:3"],
                wanted(false, true),
            ),
            ("lazy", &["r.example/app:1"], wanted(true, true)),
            ("few", &["r.example/app:1"], wanted(true, true)),
            ("few", &["other/app:1"], wanted(false, true)),
        ] {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let labelling = labels.labelling(snapshotter, &names);
            assert_eq!(labelling, expected, "{names:?} in {snapshotter}");
        }
        assert_eq!(labels.extra_labels("zfs").iter().count(), 1);
        assert_eq!(labels.extra_labels("soci").iter().count(), 0);
    }

    #[test]
    fn the_example_for_soci_labels_all_but_the_pause_image() {
        let labels = Labels(Live::new(config(include_str!(
            "../examples/config/soci.toml"
        ))));
        for (snapshotter, names, labelled) in [
            ("soci", &["r.example/app:1"][..], true),
            ("soci", &["r.example/pauses/app:1"], true),
            ("soci", &["registry.k8s.io/pause:3.10", "sha256:00"], false),
            ("soci", &["r.example/eks/pause@sha256:00"], false),
            ("soci", &["localhost/kubernetes/pause"], false),
            ("erofs", &["registry.k8s.io/pause:3.10"], true),
        ] {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let labelling = labels.labelling(snapshotter, &names).unwrap();
            assert_eq!(labelling.cri, labelled, "{names:?} in {snapshotter}");
        }
    }

    /// The table of `docs/how-it-works.md`, read from there: a change of one is a change of both.
    #[test]
    fn the_verdicts_are_those_of_the_documents_table() {
        let rules = [
            (OnUnready::Allow, true, false),
            (OnUnready::Profile, false, false),
            (OnUnready::Profile, true, false),
            (OnUnready::Reject, false, false),
            (OnUnready::Reject, true, true),
        ];
        let docs = include_str!("../docs/how-it-works.md");
        for (row, doubt) in [
            ("| broken |", Doubt::Broken),
            ("| unready |", Doubt::Unready),
            ("| volume |", Doubt::Volume),
            ("| copy |", Doubt::Copy),
            ("| platform |", Doubt::Platform),
            ("| unseen |", Doubt::Unseen),
        ] {
            let line = docs.lines().find_map(|line| line.strip_prefix(row));
            let cells = line.unwrap().split('|').map(str::trim).skip(1);
            for (cell, (on_unready, fails_closed, left_to_containerd)) in cells.zip(rules) {
                let strictness = Strictness {
                    on_unready,
                    fails_closed,
                    left_to_containerd,
                };
                let judged = match strictness.judge(doubt) {
                    Unready::Allow => "allowed",
                    Unready::Reject => "rejected",
                };
                assert_eq!(judged, cell, "{doubt:?}, {strictness:?}");
            }
        }
    }

    #[test]
    fn an_annotation_names_images() {
        assert_eq!(annotated_images(" a:1, b:2 ,,"), (vec!["a:1", "b:2"], 0));
        assert_eq!(annotated_images(""), (vec![], 0));
        let many = ["a:1"; 70].join(",");
        let (names, ignored) = annotated_images(&many);
        assert_eq!((names.len(), ignored), (64, 6));
        let long = "a".repeat(MAX_NAME + 1);
        for forged in ["a verdict=ready", "a\nERROR b", "\u{1b}[2J", "ä", &long] {
            let annotation = format!("a:1,{forged}, b:2");
            assert_eq!(annotated_images(&annotation), (vec!["a:1", "b:2"], 1));
        }
    }
}
