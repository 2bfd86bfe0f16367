//! What the running containerd reports of itself: the JSON under `config` in the answer to CRI's
//! verbose `Status`. The call itself is made elsewhere.
//!
//! The better source, because it cannot be out of date. But only containerd 1.7 has the default
//! snapshotter and the sandbox image in it; 2.x moved both to a plugin that it does not report.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::origin::{Found, Origin};
use super::source::Reported;

/// Reads the JSON; unknown fields, of which there are many, are skipped.
pub(super) fn parse(json: &str) -> Result<Reported, serde_json::Error> {
    const ORIGIN: Origin = Origin::CriStatus;
    let Status {
        containerd,
        sandbox_image,
    } = serde_json::from_str(json)?;
    let runtimes = containerd.runtimes.map(|runtimes| {
        let found =
            |(name, runtime): (_, Runtime)| (name, Found::some(runtime.snapshotter, &ORIGIN));
        runtimes.into_iter().map(found).collect()
    });
    Ok(Reported {
        default_snapshotter: Found::some(containerd.snapshotter, &ORIGIN),
        default_runtime: Found::some(containerd.default_runtime_name, &ORIGIN),
        sandbox_image: Found::some(sandbox_image, &ORIGIN),
        runtimes,
        pulls: BTreeMap::new(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    containerd: Containerd,
    sandbox_image: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Containerd {
    snapshotter: Option<String>,
    default_runtime_name: Option<String>,
    runtimes: Option<BTreeMap<String, Runtime>>,
}

#[derive(Deserialize)]
struct Runtime {
    snapshotter: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: &str) -> Option<Found> {
        Some(Found::new(value, Origin::CriStatus))
    }

    #[test]
    fn of_1_7_says_everything() {
        let json = r#"{
            "containerd": {
                "snapshotter": "overlayfs", "defaultRuntimeName": "runc",
                "defaultRuntime": {"runtimeType": "", "options": null, "snapshotter": ""},
                "runtimes": {
                    "kata": {"runtimeType": "io.containerd.kata.v2", "snapshotter": "nydus"},
                    "runc": {"runtimeType": "io.containerd.runc.v2", "options": {"SystemdCgroup": true}, "snapshotter": ""}
                }
            },
            "cni": {"binDir": "/opt/cni/bin"}, "sandboxImage": "registry.example/pause:3.8"
        }"#;
        let reported = parse(json).expect("valid");
        assert_eq!(reported.default_snapshotter, status("overlayfs"));
        assert_eq!(reported.default_runtime, status("runc"));
        assert_eq!(reported.sandbox_image, status("registry.example/pause:3.8"));
        let runtimes = [
            ("kata".to_owned(), status("nydus")),
            ("runc".to_owned(), None),
        ];
        assert_eq!(reported.runtimes, Some(runtimes.into()));
        assert!(reported.tells_handlers());
    }

    #[test]
    fn of_2_x_leaves_two_things_open() {
        let json = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"snapshotter": ""}}}}"#;
        let reported = parse(json).expect("valid");
        assert_eq!(
            (&reported.default_snapshotter, &reported.sandbox_image),
            (&None, &None)
        );
        assert!(!reported.tells_handlers());
        let without_runtimes = parse(r#"{"containerd": {"runtimes": null}}"#).expect("valid");
        assert_eq!(without_runtimes, Reported::default());
    }

    #[test]
    fn what_is_not_a_status_is_an_error() {
        for json in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"containerd": {"runtimes": ["runc"]}}"#,
        ] {
            assert!(parse(json).is_err(), "for {json:?}");
        }
    }
}
