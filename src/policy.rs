//! What is wanted where: which pods are ours, which labels an image gets in a snapshotter, and what
//! becomes of a container whose image is not ready. Pure: policy does no I/O.

use crate::config::{
    self, AbsolutePath, Config, ExtraLabels, Live, MissingContent, OnUnready, Unlabelled,
};
use crate::unpack::{LabelPolicy, Labelling, Means, Missing, Profile, Registries, Repair};

/// A pod with this annotation, a comma-separated list of image names, has them ready before its
/// first container.
pub const IMAGES: &str = "nri-unpack/images";

/// A pod with this annotation and the value `skip` is left alone.
pub const MODE: &str = "nri-unpack/mode";

/// Images that one annotation may name. A pod has a handful of containers; a longer list is an
/// attempt to keep the node busy.
const MAX_IMAGES: usize = 64;

/// What becomes of a container whose image is not ready when the hook has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// It is created all the same.
    Allow,
    /// Its creation fails, and the kubelet tries again.
    Reject,
}

/// Whether the images in this snapshotter are ours to keep. The default snapshotter's are not:
/// containerd pulls for it, and what it does not label there needs no labels. A table of its own in
/// the configuration makes it ours all the same.
pub fn is_kept(config: &Config, snapshotter: &str, default_snapshotter: &str) -> bool {
    let has_table = || config.snapshotters.named().any(|name| name == snapshotter);
    snapshotter != default_snapshotter || has_table()
}

/// The configuration, as the engine asks it.
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

    fn profile(&self, snapshotter: &str) -> Profile {
        profile(&self.0.now(), snapshotter)
    }

    fn repair(&self, snapshotter: &str) -> Option<Repair> {
        match self.0.now().snapshotter(snapshotter).unlabelled {
            Unlabelled::Relabel => Some(Repair::Relabel),
            Unlabelled::Replace => Some(Repair::Replace),
            Unlabelled::Profile | Unlabelled::Ignore => None,
        }
    }
}

fn profile(config: &Config, snapshotter: &str) -> Profile {
    match config.snapshotter(snapshotter).profile {
        config::Profile::Auto => Profile::of(snapshotter),
        config::Profile::Nydus => Profile::NYDUS,
        config::Profile::Complete => Profile::COMPLETE,
    }
}

/// What is done about a layer that has to be unpacked and whose blob is gone.
pub fn missing(config: &Config) -> Missing {
    let means = config.unpack.missing_content.iter();
    let means = means.map(|means| match means {
        MissingContent::Rebuild => Means::Rebuild,
        MissingContent::Pull => Means::Pull,
    });
    let path = |path: &AbsolutePath| path.as_ref().to_owned();
    let registries = Registries {
        hosts: path(&config.pull.hosts),
        credentials: config.pull.credentials.as_ref().map(path),
    };
    Missing::new(means.collect(), registries)
}

/// What becomes of a container whose image is not ready in this snapshotter.
pub fn on_unready(config: &Config, snapshotter: &str) -> Unready {
    match config.hooks.on_unready {
        OnUnready::Allow => Unready::Allow,
        OnUnready::Reject => Unready::Reject,
        OnUnready::Profile if profile(config, snapshotter).fails_closed => Unready::Reject,
        OnUnready::Profile => Unready::Allow,
    }
}

/// The images that a pod's annotation names, and how many more it names than are taken.
pub fn annotated_images(annotation: &str) -> (Vec<&str>, usize) {
    let mut names: Vec<_> = annotation.split(',').map(str::trim).collect();
    names.retain(|name| !name.is_empty());
    let left_out = names.len().saturating_sub(MAX_IMAGES);
    names.truncate(MAX_IMAGES);
    (names, left_out)
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
        assert!(is_kept(&plain, "erofs", "overlayfs"));
        assert!(!is_kept(&plain, "overlayfs", "overlayfs"));
        let named = config("[snapshotters.overlayfs]\n");
        assert!(is_kept(&named, "overlayfs", "overlayfs"));
    }

    #[test]
    fn nydus_fails_closed_under_any_name() {
        let config = config(
            "[snapshotters.proxy]\nprofile = \"nydus\"\n[snapshotters.nydus]\nprofile = \"complete\"\n",
        );
        for (snapshotter, unready) in [
            ("nydus-cc", Unready::Reject),
            ("proxy", Unready::Reject),
            ("nydus", Unready::Allow),
            ("soci", Unready::Allow),
        ] {
            assert_eq!(on_unready(&config, snapshotter), unready, "{snapshotter}");
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

    #[test]
    fn fail_closed_is_decided_here() {
        for (text, nydus, erofs) in [
            ("", Unready::Reject, Unready::Allow),
            (
                "[hooks]\non_unready = \"allow\"\n",
                Unready::Allow,
                Unready::Allow,
            ),
            (
                "[hooks]\non_unready = \"reject\"\n",
                Unready::Reject,
                Unready::Reject,
            ),
        ] {
            let config = config(text);
            assert_eq!(on_unready(&config, "nydus"), nydus);
            assert_eq!(on_unready(&config, "erofs"), erofs);
        }
    }

    #[test]
    fn an_annotation_names_images() {
        assert_eq!(annotated_images(" a:1, b:2 ,,"), (vec!["a:1", "b:2"], 0));
        assert_eq!(annotated_images(""), (vec![], 0));
        let many = ["a:1"; 70].join(",");
        let (names, left_out) = annotated_images(&many);
        assert_eq!((names.len(), left_out), (64, 6));
    }
}
