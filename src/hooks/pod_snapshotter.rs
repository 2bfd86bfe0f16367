//! The snapshotter of a pod, and whether its images are left to containerd.

use nri::{HandlerError, Pod};

use crate::config::Config;
use crate::handlers::Handlers;
use crate::policy::{self, Doubt, Strictness, Unready};
use crate::unpack::Profile;

/// The snapshotter of a pod.
pub(super) struct PodSnapshotter {
    pub(super) snapshotter: String,
    /// Whether its images are left to containerd: the pod is skipped, or the plugin does not manage the snapshotter.
    pub(super) left_to_containerd: bool,
    /// Why the pod's `skip` does not count; `None` if it counts, or the pod does not say it.
    pub(super) skip_ignored: Option<&'static str>,
}

impl PodSnapshotter {
    /// Returns the snapshotter of a pod. `profile` returns the kind of a snapshotter.
    pub(super) fn of(
        config: &Config,
        handlers: &Handlers,
        profile: impl FnOnce(&str) -> Profile,
        pod: &Pod,
    ) -> Result<Self, HandlerError> {
        let snapshotter = &handlers.snapshotter(&pod.runtime_handler)?.snapshotter;
        let default = handlers.default_name();
        let is_kept = policy::is_kept(config, snapshotter, default);
        let managed = Strictness {
            on_unready: config.hooks.on_unready,
            fails_closed: profile(snapshotter).fails_closed,
            left_to_containerd: false,
        };
        let rejects_unready = managed.judge(Doubt::Unready) == Unready::Reject;
        let may_skip = policy::may_skip(&config.hooks, &pod.namespace, is_kept && rejects_unready);
        let says_skip = says_skip(pod);
        Ok(Self {
            left_to_containerd: (says_skip && may_skip) || !is_kept,
            skip_ignored: (says_skip && !may_skip && is_kept).then_some(match config.hooks.skip_namespaces {
                Some(_) => "hooks.skip_namespaces does not name it",
                None => "a container whose image is not ready is rejected in its snapshotter (hooks.skip_namespaces allows it)",
            }),
            snapshotter: snapshotter.clone(),
        })
    }
}

/// Whether the pod is skipped while its snapshotter is not known: by its namespace alone.
pub(super) fn is_skipped(config: &Config, pod: &Pod) -> bool {
    says_skip(pod) && policy::may_skip(&config.hooks, &pod.namespace, false)
}

/// Whether the pod's annotation says `skip`.
fn says_skip(pod: &Pod) -> bool {
    let mode = pod.annotations.get(policy::MODE);
    mode.is_some_and(|mode| mode == "skip")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::Snapshotter;
    use crate::handlers::Running;

    const CRI: &str = r#"{"containerd": {"snapshotter": "nydus", "defaultRuntimeName": "runc",
        "runtimes": {"runc": {}, "local": {"snapshotter": "erofs"}}}}"#;

    #[test]
    fn the_default_handler_and_pods_that_say_skip_are_left_alone() {
        for (config, handler, mode, snapshotter, left_to_containerd) in [
            ("", "", "", "nydus", true),
            ("", "runc", "", "nydus", true),
            ("[snapshotters.nydus]\n", "runc", "", "nydus", false),
            ("[snapshotters.nydus]\n", "runc", "skip", "nydus", false),
            (
                "[hooks]\nskip_namespaces = [\"tenant\"]\n[snapshotters.nydus]\n",
                "runc",
                "skip",
                "nydus",
                true,
            ),
            (
                "[hooks]\non_unready = \"allow\"\n[snapshotters.nydus]\n",
                "runc",
                "skip",
                "nydus",
                true,
            ),
            ("", "local", "", "erofs", false),
            ("", "local", "skip", "erofs", true),
            (
                "[hooks]\non_unready = \"reject\"\n",
                "local",
                "skip",
                "erofs",
                false,
            ),
            (
                "[hooks]\nskip_namespaces = []\n",
                "local",
                "skip",
                "erofs",
                false,
            ),
            (
                "[hooks]\nskip_namespaces = []\n",
                "runc",
                "skip",
                "nydus",
                true,
            ),
        ] {
            let config = Config::from_toml(config, "test").unwrap();
            let overlayfs = [Snapshotter {
                name: "overlayfs".to_owned(),
                exports: [("root".to_owned(), "/overlayfs".to_owned())].into(),
                ..Snapshotter::default()
            }];
            let running = Running {
                cri_status_config: Some(CRI),
                image_file_system: Some("/overlayfs"),
                snapshotters: &overlayfs,
            };
            let handlers = Handlers::resolve(&config, running, None);
            let pod = Pod {
                runtime_handler: handler.to_owned(),
                namespace: "tenant".to_owned(),
                annotations: [(policy::MODE.to_owned(), mode.to_owned())].into(),
                ..Pod::default()
            };
            let profile = |name: &str| Profile::of(name).unwrap_or(Profile::COMPLETE);
            let pod_snapshotter = PodSnapshotter::of(&config, &handlers, profile, &pod).unwrap();
            let found = (
                pod_snapshotter.snapshotter.as_str(),
                pod_snapshotter.left_to_containerd,
            );
            assert_eq!(
                found,
                (snapshotter, left_to_containerd),
                "{handler} {mode} {:?}",
                config.hooks
            );
        }
    }
}
