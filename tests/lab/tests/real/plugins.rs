//! Plugins as processes: launched by containerd, or started by a test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Lab, Launched, Options, Plugin, Version};

/// containerd launches the plugins in its plugin directory. If one ends without registering, 2.1 continues, and
/// 1.7 ends.
#[tokio::test]
async fn a_plugin_in_the_plugin_directory_is_launched() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(
        dir.path(),
        "echo $NRI_PLUGIN_IDX $NRI_PLUGIN_NAME >>$(dirname $(readlink $0))/said",
    );
    for version in Version::ALL {
        let launched = vec![Launched {
            program: program.clone(),
            name: "10-quick".into(),
            config: String::new(),
        }];
        let lab = Lab::start_with(
            version,
            Options {
                launched,
                ..Options::new(version)
            },
        )
        .await;
        match version {
            Version::V1_7 => {
                let error = lab.expect_err("1.7 does not start without it").to_string();
                assert!(
                    error.contains("failed to register plugin, connection closed"),
                    "{error}"
                );
            }
            Version::V2_1 => {
                let missed = lab
                    .unwrap()
                    .log()
                    .lines_with("failed to start pre-installed NRI plugin");
                assert_eq!(missed.len(), 1, "{missed:?}");
            }
        }
    }
    assert_eq!(
        fs::read_to_string(dir.path().join("said")).unwrap(),
        "10 quick\n".repeat(2)
    );
}

/// A plugin that a test starts gets its configuration, can be killed and restarted, and ends on SIGTERM.
#[tokio::test]
async fn a_test_can_start_kill_and_stop_a_plugin() {
    let lab = Lab::start(Version::V2_1).await.unwrap();
    let program = script(
        &lab.path(""),
        "trap 'echo ended; exit 3' TERM; echo started $1 $2; cat $3; while :; do sleep 0.02; done",
    );
    let mut plugin = Plugin::start(&lab, program, "key = 1\n").unwrap();
    plugin.log().wait_for("key = 1", SOON).await.unwrap();
    let first = plugin.pid().unwrap();
    plugin.restart().expect_err("it still runs");

    plugin.kill();
    assert_eq!(plugin.pid(), None);
    assert!(plugin.stop().await.is_err(), "it does not run");
    let later = plugin.log().from_now();
    plugin.restart().unwrap();
    later.wait_for("started run --config", SOON).await.unwrap();
    later.wait_for("key = 1", SOON).await.unwrap();
    assert_ne!(plugin.pid(), Some(first));

    assert_eq!(plugin.stop().await.unwrap().code(), Some(3));
    assert_eq!(plugin.log().lines_with("ended").len(), 1);
    let missing = plugin
        .log()
        .wait_for("never said", Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(
        missing.to_string().contains("ended"),
        "the end of the log is shown: {missing}"
    );
}

/// The timeout for a shell script's output, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Writes a shell script that replaces a plugin.
fn script(dir: &Path, body: &str) -> PathBuf {
    let program = dir.join("plugin");
    fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}
