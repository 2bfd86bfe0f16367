//! The end of a session: by the runtime, by the plugin, and by bytes that are not frames.

use std::io::Write;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::Arc;
use std::time::Duration;

use nri::{Events, Session, SessionEnd};
use tokio::io::duplex;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::Code;

use crate::recorder::{Recorder, eventually, started, started_over};
use crate::runtime::{Registration, Runtime, create_container};

fn recorder() -> Arc<Recorder> {
    Arc::new(Recorder::new(Events::all()))
}

#[tokio::test]
async fn ended_reports_that_the_runtime_closed_the_connection_and_may_be_called_again() {
    let (mut session, runtime) = started(&recorder()).await;
    runtime.close().await;
    for _ in 0..2 {
        assert!(matches!(session.ended().await, SessionEnd::ClosedByPeer));
    }
    session.close().await;
}

#[tokio::test]
async fn waiting_for_the_end_can_be_cancelled_and_repeated() {
    let (mut session, runtime) = started(&recorder()).await;
    let waited = timeout(Duration::from_millis(20), session.ended()).await;
    assert!(waited.is_err(), "the session still runs");
    runtime.create_container("c").await.unwrap();
    runtime.close().await;
    assert!(matches!(session.ended().await, SessionEnd::ClosedByPeer));
}

/// Starts a session over a real socket, and returns a second descriptor of the runtime's end for raw writes.
async fn started_with_raw_access(plugin: &Arc<Recorder>) -> (Session, Runtime, BlockingStream) {
    let (ours, theirs) = BlockingStream::pair().unwrap();
    let raw = theirs.try_clone().unwrap();
    let tokio = |stream: BlockingStream| {
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    };
    let (session, runtime) = started_over(tokio(ours), tokio(theirs), plugin).await;
    (session, runtime, raw)
}

#[tokio::test]
async fn only_frames_for_unknown_connections_are_dropped() {
    let plugin = recorder();
    let (_session, runtime, mut raw) = started_with_raw_access(&plugin).await;
    for connection in [0_u32, 3, u32::MAX] {
        let mut frame = connection.to_be_bytes().to_vec();
        frame.extend(100_000_u32.to_be_bytes());
        frame.extend([0xaa; 100_000]);
        // The socket's buffer is smaller, so the write needs a thread of its own.
        raw.set_nonblocking(false).unwrap();
        raw = tokio::task::spawn_blocking(move || raw.write_all(&frame).map(|()| raw))
            .await
            .unwrap()
            .unwrap();
        raw.set_nonblocking(true).unwrap();
        runtime.create_container("c").await.unwrap();
    }
    assert_eq!(plugin.calls().len(), 3);
}

#[tokio::test]
async fn bytes_that_are_not_frames_end_the_session_with_a_reason() {
    type Expected = fn(&SessionEnd) -> bool;
    let truncated: Expected = |end| matches!(end, SessionEnd::Truncated);
    let oversized: Expected = |end| matches!(end, SessionEnd::Oversized(o) if o.length > 4 << 20);
    let cases: [(&str, &[u8], Expected); 4] = [
        ("a header cut short", &[0, 0, 0, 1, 0], truncated),
        (
            "a payload cut short",
            &[0, 0, 0, 1, 0, 0, 0, 9, 1, 2],
            truncated,
        ),
        (
            "one byte too many",
            &[0, 0, 0, 1, 0, 0x40, 0, 11],
            oversized,
        ),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n", oversized),
    ];
    for (what, bytes, expected) in cases {
        let (mut session, runtime, mut raw) = started_with_raw_access(&recorder()).await;
        raw.write_all(bytes).unwrap();
        raw.shutdown(std::net::Shutdown::Write).unwrap();
        let end = session.ended().await;
        assert!(expected(&end), "{what}: {end:?}");
        drop(runtime);
    }
}

#[tokio::test]
async fn an_oversized_frame_for_an_unknown_connection_ends_the_session() {
    let (mut session, _runtime, mut raw) = started_with_raw_access(&recorder()).await;
    raw.write_all(&[0, 0, 0, 9, 255, 255, 255, 255]).unwrap();
    assert!(matches!(session.ended().await, SessionEnd::Oversized(o) if o.connection == 9));
}

/// ttrpc skips such a message, and with it all that follows.
#[tokio::test]
async fn a_message_that_ttrpc_does_not_allow_ends_the_session() {
    for connection in [1, 2] {
        let (mut session, _runtime, mut raw) = started_with_raw_access(&recorder()).await;
        let frame = [0, 0, 0, connection, 0, 0, 0, 10];
        raw.write_all(&[&frame[..], &[255; 10]].concat()).unwrap();
        let end = timeout(Duration::from_secs(10), session.ended()).await;
        let end = end.expect("the end of the session");
        let expected = u32::from(connection);
        assert!(
            matches!(end, SessionEnd::NotTtrpc { connection, .. } if connection == expected),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn close_waits_for_a_call_and_sends_its_answer() {
    let plugin = recorder();
    let (session, mut runtime) = started(&plugin).await;
    let closing = async {
        plugin.noted("create_container p wait").await;
        let close = session.close();
        tokio::pin!(close);
        let early = timeout(Duration::from_millis(50), &mut close).await;
        assert!(early.is_err(), "a call is in progress");
        plugin.permits.add_permits(1);
        close.await;
    };
    let (answer, ()) = tokio::join!(runtime.create_container("wait"), closing);
    answer.unwrap();
    assert!(matches!(runtime.closed().await, SessionEnd::ClosedByPeer));
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_a_call_no_longer_than_the_runtime_would() {
    let plugin = recorder();
    let (session, mut runtime) = started(&plugin).await;
    let closing = async {
        plugin.noted("create_container p forever").await;
        let before = tokio::time::Instant::now();
        session.close().await;
        before.elapsed()
    };
    let (answer, took) = tokio::join!(runtime.create_container("forever"), closing);
    let ttrpc::Error::RpcStatus(status) = answer.unwrap_err() else {
        panic!("no answer");
    };
    assert_eq!(status.code(), Code::UNAVAILABLE);
    assert!(took >= nri::DEFAULT_REQUEST_TIMEOUT, "{took:?}");
    assert!(took < nri::DEFAULT_REQUEST_TIMEOUT * 2, "{took:?}");
    assert!(matches!(runtime.closed().await, SessionEnd::ClosedByPeer));
}

#[tokio::test(start_paused = true)]
async fn close_does_not_wait_for_a_runtime_that_does_not_read() {
    const CALLS: usize = 20;
    let plugin = recorder();
    // The buffer holds one or two answers.
    let (ours, theirs) = duplex(64);
    let (session, runtime) = started_over(ours, theirs, &plugin).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        let caller = runtime.plugin.clone();
        calls.spawn(async move { create_container(&caller, "wait").await });
    }
    eventually(|| plugin.calls().len() == CALLS).await;
    runtime.stop_reading.cancel();
    plugin.permits.add_permits(CALLS);

    let close = timeout(nri::DEFAULT_REQUEST_TIMEOUT * 2, session.close());
    close
        .await
        .expect("the end of the session, with or without answers");
    eventually(|| Arc::strong_count(&plugin) == 1).await;
}

#[tokio::test]
async fn close_ends_all_tasks_of_a_session() {
    let plugin = recorder();
    let (session, _runtime) = started(&plugin).await;
    session.close().await;
    // The service holds the plugin, and every task of the session holds the service.
    assert_eq!(Arc::strong_count(&plugin), 1);
}

#[tokio::test]
async fn a_failed_start_ends_all_tasks_of_a_session() {
    let plugin = recorder();
    let (ours, theirs) = duplex(4096);
    let _runtime = Runtime::accept(theirs, Registration::Reject("no")).await;
    let identity = "10-a".parse().unwrap();
    Session::start(ours, identity, plugin.clone())
        .await
        .unwrap_err();
    assert_eq!(Arc::strong_count(&plugin), 1);
}

#[tokio::test]
async fn dropping_a_session_ends_it_and_its_calls() {
    let plugin = recorder();
    let (session, mut runtime) = started(&plugin).await;
    let dropping = async {
        plugin.noted("create_container p forever").await;
        drop(session);
    };
    let (answer, ()) = tokio::join!(runtime.create_container("forever"), dropping);
    answer.unwrap_err();
    assert!(matches!(runtime.closed().await, SessionEnd::ClosedByPeer));
    plugin.noted("left").await;
    eventually(|| Arc::strong_count(&plugin) == 1).await;
}

#[tokio::test]
async fn calls_end_when_the_runtime_closes_the_connection() {
    let plugin = recorder();
    let (mut session, runtime) = started(&plugin).await;
    let caller = runtime.plugin.clone();
    let call = tokio::spawn(async move { create_container(&caller, "forever").await });
    plugin.noted("create_container p forever").await;
    call.abort();
    call.await.unwrap_err();
    runtime.close().await;
    session.ended().await;
    let close = timeout(Duration::from_secs(1), session.close()).await;
    assert!(
        close.is_ok(),
        "close must not wait after the connection has ended"
    );
    assert_eq!(Arc::strong_count(&plugin), 1);
}
