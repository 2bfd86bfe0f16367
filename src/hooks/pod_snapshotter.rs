//! The snapshotter of a pod, and whether its images are left to containerd.

use nri::{HandlerError, Pod};

use crate::config::Config;
use crate::handlers::Handlers;
use crate::policy;

/// The snapshotter of a pod.
pub(super) struct PodSnapshotter {
    pub(super) snapshotter: String,
    /// Whether its images are left to containerd: the pod is skipped, or the plugin does not manage the snapshotter.
    pub(super) left_to_containerd: bool,
}

impl PodSnapshotter {
    pub(super) fn of(
        config: &Config,
        handlers: &Handlers,
        pod: &Pod,
    ) -> Result<Self, HandlerError> {
        let snapshotter = &handlers.snapshotter(&pod.runtime_handler)?.snapshotter;
        let default = handlers.default_name();
        Ok(Self {
            left_to_containerd: is_skipped(pod) || !policy::is_kept(config, snapshotter, default),
            snapshotter: snapshotter.clone(),
        })
    }
}

/// Whether the pod's annotation says `skip`.
pub(super) fn is_skipped(pod: &Pod) -> bool {
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
            ("[snapshotters.nydus]\n", "runc", "skip", "nydus", true),
            ("", "local", "", "erofs", false),
            ("", "local", "skip", "erofs", true),
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
                annotations: [(policy::MODE.to_owned(), mode.to_owned())].into(),
                ..Pod::default()
            };
            let pod_snapshotter = PodSnapshotter::of(&config, &handlers, &pod).unwrap();
            let found = (
                pod_snapshotter.snapshotter.as_str(),
                pod_snapshotter.left_to_containerd,
            );
            assert_eq!(found, (snapshotter, left_to_containerd), "{handler} {mode}");
        }
    }
}
