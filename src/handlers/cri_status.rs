//! Parses the configuration that the running containerd reports: the JSON under `config` in CRI's verbose
//! `Status`. The caller makes the call.
//!
//! This source has precedence over files, because it is never out of date. But only containerd 1.7 reports
//! the default snapshotter and the sandbox image; 2.x has them in a plugin that the status does not include.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::origin::{Found, Origin};
use super::source::Reported;

/// Parses the JSON. Unknown fields, of which there are many, are ignored.
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
    fn the_status_of_1_7_has_everything() {
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
        assert!(reported.has_all_handlers());
    }

    #[test]
    fn the_status_of_2_x_lacks_default_snapshotter_and_sandbox_image() {
        let json = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"snapshotter": ""}}}}"#;
        let reported = parse(json).expect("valid");
        assert_eq!(
            (&reported.default_snapshotter, &reported.sandbox_image),
            (&None, &None)
        );
        assert!(!reported.has_all_handlers());
        let without_runtimes = parse(r#"{"containerd": {"runtimes": null}}"#).expect("valid");
        assert_eq!(without_runtimes, Reported::default());
    }

    #[test]
    fn text_that_is_not_a_status_is_an_error() {
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
