//! Registration, configuration, synchronization: their order, their content, and every way in which they can
//! fail.

use std::sync::Arc;
use std::time::Duration;

use nri::api::ConfigureRequest;
use nri::{Events, Session, SessionEnd, SessionError};
use tokio::io::duplex;
use tokio::task::JoinHandle;

use crate::recorder::{Fault, Recorder};
use crate::runtime::{Registration, Runtime};

type Starting = JoinHandle<Result<Session, SessionError>>;

/// Starts a plugin's session with a runtime.
async fn starting(plugin: &Arc<Recorder>, answer: Registration) -> (Starting, Runtime) {
    let (ours, theirs) = duplex(64 << 10);
    let runtime = Runtime::accept(theirs, answer).await;
    let identity = "07-recorder".parse().unwrap();
    let session = Session::start(ours, identity, plugin.clone());
    (tokio::spawn(session), runtime)
}

fn recorder() -> Arc<Recorder> {
    Arc::new(Recorder::new(Events::all()))
}

#[tokio::test]
async fn a_session_starts_in_nris_order_and_after_the_synchronization() {
    let plugin = recorder();
    let (starting, mut runtime) = starting(&plugin, Registration::Accept).await;

    let registration = runtime.registration().await;
    assert_eq!(registration.plugin_name, "recorder");
    assert_eq!(registration.plugin_idx, "07");
    assert_eq!(plugin.calls(), [""; 0]);

    runtime
        .configure(ConfigureRequest::default())
        .await
        .unwrap();
    assert_eq!(plugin.calls(), ["configure"]);
    assert!(!starting.is_finished());

    runtime.synchronize(&["p1"], &["c1"], false).await.unwrap();
    assert_eq!(plugin.calls(), ["configure", "synchronize p1 c1"]);
    starting.await.unwrap().unwrap().close().await;
}

#[tokio::test]
async fn configure_gets_the_runtimes_name_versions_and_timeouts() {
    let plugin = recorder();
    let (starting, mut runtime) = starting(&plugin, Registration::Accept).await;
    runtime.registration().await;
    let request = ConfigureRequest {
        config: "a = 1\n".into(),
        runtime_name: "containerd".into(),
        runtime_version: "v2.1.9".into(),
        registration_timeout: 7_000,
        request_timeout: 1_500,
        ..Default::default()
    };
    runtime.configure(request).await.unwrap();
    runtime.synchronize(&[], &[], false).await.unwrap();
    let _session = starting.await.unwrap().unwrap();

    let info = plugin.runtime.lock().unwrap().clone().unwrap();
    assert_eq!(info.config, "a = 1\n");
    assert_eq!(
        (info.name.as_str(), info.version.as_str()),
        ("containerd", "v2.1.9")
    );
    assert_eq!(info.nri_version, None);
    assert_eq!(info.registration_timeout, Duration::from_secs(7));
    assert_eq!(info.request_timeout, Duration::from_millis(1_500));
}

#[tokio::test]
async fn the_plugin_subscribes_only_to_events_that_the_runtime_knows() {
    for (wants, version, mask) in [
        (Events::all(), "", 0x07ff),
        (Events::all(), "v0.12.2", 0x1fff),
        (
            Events::RUN_POD_SANDBOX | Events::CREATE_CONTAINER,
            "",
            0b1001,
        ),
        (Events::UPDATE_POD_SANDBOX, "", 0b0100),
    ] {
        let plugin = Arc::new(Recorder::new(wants));
        let (_starting, mut runtime) = starting(&plugin, Registration::Accept).await;
        runtime.registration().await;
        let request = ConfigureRequest {
            NRI_version: version.into(),
            ..Default::default()
        };
        let answer = runtime.configure(request).await.unwrap();
        assert_eq!(answer.events, mask, "{wants} of {version:?}");
    }
}

#[tokio::test]
async fn a_state_in_parts_reaches_the_plugin_as_a_whole_and_once() {
    let plugin = recorder();
    let (starting, mut runtime) = starting(&plugin, Registration::Accept).await;
    runtime.registration().await;
    runtime
        .configure(ConfigureRequest::default())
        .await
        .unwrap();

    for (pods, containers) in [(["p1", "p2"], ["c1", "c2"]), (["p3", "p4"], ["c3", "c4"])] {
        let answer = runtime.synchronize(&pods, &containers, true).await.unwrap();
        assert!(
            answer.more,
            "the runtime closes a plugin that does not repeat `more`"
        );
        assert_eq!(plugin.calls(), ["configure"]);
        assert!(!starting.is_finished());
    }
    let answer = runtime.synchronize(&[], &["c5"], false).await.unwrap();
    assert!(!answer.more);
    assert_eq!(
        plugin.calls(),
        ["configure", "synchronize p1 p2 p3 p4 c1 c2 c3 c4 c5"]
    );
    starting.await.unwrap().unwrap().close().await;
}

#[tokio::test]
async fn a_state_of_too_many_parts_is_rejected() {
    let plugin = recorder();
    let (starting, mut runtime) = starting(&plugin, Registration::Accept).await;
    runtime.registration().await;
    runtime
        .configure(ConfigureRequest::default())
        .await
        .unwrap();
    for _ in 0..64 {
        runtime.synchronize(&["p"], &[], true).await.unwrap();
    }
    let refusal = runtime.synchronize(&["p"], &[], true).await.unwrap_err();
    assert!(
        refusal.to_string().contains("more than 64 parts"),
        "{refusal}"
    );
    assert!(matches!(
        starting.await.unwrap(),
        Err(SessionError::Plugin { .. })
    ));
}

#[tokio::test]
async fn a_failure_of_the_plugin_in_the_handshake_is_reported_to_both_sides() {
    for (method, fault, text) in [
        ("configure", Fault::Error, "no configure today"),
        (
            "configure",
            Fault::Panic,
            "panicked in configure: no configure at all",
        ),
        ("synchronize", Fault::Error, "no synchronize today"),
        (
            "synchronize",
            Fault::Panic,
            "panicked in synchronize: no synchronize at all",
        ),
    ] {
        let plugin = Arc::new(Recorder::failing(method, fault));
        let (starting, mut runtime) = starting(&plugin, Registration::Accept).await;
        runtime.registration().await;
        let mut answer = runtime
            .configure(ConfigureRequest::default())
            .await
            .map(drop);
        if method == "synchronize" {
            answer.unwrap();
            answer = runtime.synchronize(&[], &[], false).await.map(drop);
        }
        let to_the_runtime = answer.unwrap_err().to_string();
        assert!(to_the_runtime.contains(text), "{to_the_runtime}");

        let error = starting.await.unwrap().unwrap_err();
        let SessionError::Plugin { method: at, reason } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*at, method);
        assert!(reason.contains(text), "{reason}");
        assert!(matches!(runtime.closed().await, SessionEnd::ClosedByPeer));
    }
}

#[tokio::test]
async fn the_error_for_a_rejected_registration_has_the_runtimes_message() {
    let (starting, mut runtime) = starting(&recorder(), Registration::Reject("no room")).await;
    let error = starting.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the runtime rejected the registration of plugin 07-recorder: no room"
    );
    assert!(matches!(runtime.closed().await, SessionEnd::ClosedByPeer));
}

/// Makes the runtime do the first `steps` steps of the handshake after the registration.
async fn do_steps(runtime: &mut Runtime, steps: usize) {
    runtime.registration().await;
    if steps > 0 {
        runtime
            .configure(ConfigureRequest::default())
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_continue_the_handshake_is_left() {
    for (answer, steps, missing) in [
        (Registration::Ignore, 0, "answer to the registration"),
        (Registration::Accept, 0, "Configure"),
        (Registration::Accept, 1, "Synchronize"),
    ] {
        let (starting, mut runtime) = starting(&recorder(), answer).await;
        do_steps(&mut runtime, steps).await;
        let error = starting.await.unwrap().unwrap_err();
        let SessionError::Silent { awaited, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(awaited, missing);
        assert!(matches!(runtime.closed().await, SessionEnd::ClosedByPeer));
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_may_take_minutes_to_synchronize() {
    let (starting, mut runtime) = starting(&recorder(), Registration::Accept).await;
    do_steps(&mut runtime, 1).await;
    tokio::time::sleep(Duration::from_secs(5 * 60)).await;
    runtime.synchronize(&[], &[], false).await.unwrap();
    starting.await.unwrap().unwrap().close().await;
}

#[tokio::test]
async fn the_error_says_that_the_runtime_closed_the_connection_in_the_handshake() {
    for (answer, steps) in [
        (Registration::Ignore, 0),
        (Registration::Accept, 0),
        (Registration::Accept, 1),
    ] {
        let (starting, mut runtime) = starting(&recorder(), answer).await;
        do_steps(&mut runtime, steps).await;
        runtime.close().await;
        let error = starting.await.unwrap().unwrap_err();
        assert!(
            matches!(error, SessionError::Ended(SessionEnd::ClosedByPeer)),
            "{error:?}"
        );
    }
}
