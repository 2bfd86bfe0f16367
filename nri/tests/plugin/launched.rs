//! A plugin in its own process, with a socket that it inherits from the runtime and with one that it connects
//! to.

use std::env;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;

use nri::{Events, SessionEnd};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;

use crate::recorder::{Recorder, started_over};
use crate::runtime::{Registration, Runtime};

/// Returns the command of the example, which `cargo test` builds next to the directory of this test.
fn event_log() -> Command {
    let test = env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let example: PathBuf = profile.join("examples/event_log");
    assert!(
        example.exists(),
        "{} is missing: run `cargo build -p nri --example event_log`, or all of `cargo test -p nri`",
        example.display()
    );
    let mut command = Command::new(example);
    command
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn status_and_output(output: Output) -> (bool, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Starts a session with the plugin, sends an event, and closes the connection.
async fn run_through(mut runtime: Runtime) -> (String, String) {
    let registration = runtime.registration().await;
    runtime.configure(Default::default()).await.unwrap();
    runtime
        .synchronize(&["p"], &["c", "d"], false)
        .await
        .unwrap();
    runtime.create_container("c").await.unwrap();
    runtime.close().await;
    (registration.plugin_idx, registration.plugin_name)
}

const LOG: &str = "synchronize: 1 pods, 2 containers\n\
                   create_container:  of /\n\
                   the runtime closed the connection\n";

#[tokio::test]
async fn a_launched_plugin_serves_the_inherited_socket() {
    let (ours, theirs) = BlockingStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
    let child = event_log()
        .env("NRI_PLUGIN_SOCKET", theirs.as_raw_fd().to_string())
        .env("NRI_PLUGIN_NAME", "launched")
        .env("NRI_PLUGIN_IDX", "42")
        .spawn()
        .unwrap();
    drop(theirs);

    ours.set_nonblocking(true).unwrap();
    let ours = UnixStream::from_std(ours).unwrap();
    let runtime = Runtime::accept(ours, Registration::Accept).await;
    let registered = run_through(runtime).await;
    assert_eq!(registered, ("42".to_owned(), "launched".to_owned()));

    let (success, out, err) = status_and_output(child.wait_with_output().await.unwrap());
    assert!(success, "{err}");
    assert_eq!(out, format!("registering as 42-launched\n{LOG}"));
}

#[tokio::test]
async fn an_external_plugin_connects_to_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nri.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let child = event_log().arg(&path).spawn().unwrap();

    let (stream, _) = listener.accept().await.unwrap();
    let runtime = Runtime::accept(stream, Registration::Accept).await;
    let registered = run_through(runtime).await;
    assert_eq!(registered, ("10".to_owned(), "event-log".to_owned()));

    let (success, out, err) = status_and_output(child.wait_with_output().await.unwrap());
    assert!(success, "{err}");
    assert_eq!(out, format!("registering as 10-event-log\n{LOG}"));
}

#[tokio::test]
async fn a_plugin_launched_with_a_wrong_variable_names_it() {
    for (socket, name, index, expected) in [
        ("three", "a", "10", "NRI_PLUGIN_SOCKET"),
        ("0", "a", "10", "NRI_PLUGIN_SOCKET=0 cannot be used"),
        ("3", "a/b", "10", "NRI_PLUGIN_NAME"),
        ("3", "a", "1", "NRI_PLUGIN_IDX"),
    ] {
        let output = event_log()
            .env("NRI_PLUGIN_SOCKET", socket)
            .env("NRI_PLUGIN_NAME", name)
            .env("NRI_PLUGIN_IDX", index)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let (success, _, err) = status_and_output(output);
        assert!(!success && err.contains(expected), "{err}");
    }
}

#[tokio::test]
async fn the_runtime_sees_the_close_of_an_inherited_socket_whose_original_stays_open() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // As `launched` does: a duplicate of a socket whose original stays open.
    let number = theirs.into_std().unwrap();
    let duplicate = UnixStream::from_std(number.try_clone().unwrap()).unwrap();
    let plugin = Arc::new(Recorder::new(Events::all()));
    let (session, mut runtime) = started_over(duplicate, ours, &plugin).await;
    session.close().await;
    assert!(matches!(runtime.closed().await, SessionEnd::ClosedByPeer));
    drop(number);
}
