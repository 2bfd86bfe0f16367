//! A runtime that is none, or is broken: requests that are small on the wire and large in memory, requests that are no
//! messages, and half a message.

use std::io::Write;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::Arc;
use std::time::Duration;

use nri::api::{self, ConfigureRequest};
use nri::{Events, Session, SessionEnd, SessionError};
use protobuf::Message as _;
use tokio::io::duplex;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::{Code, Request, Response};

use crate::recorder::{Recorder, started, started_over};
use crate::runtime::{Registration, Runtime};

/// Nearly ttrpc's limit of a message.
const LARGEST: usize = (4 << 20) - 1024;

/// A synchronization of one pod without any field, in two bytes.
const POD: [u8; 2] = [0x0a, 0];

fn recorder() -> Arc<Recorder> {
    Arc::new(Recorder::new(Events::all()))
}

/// Calls a method of the plugin with these bytes as its request, and returns the status of the answer.
async fn call(runtime: &Runtime, method: &str, payload: Vec<u8>) -> (Code, String) {
    let request = Request {
        service: "nri.pkg.api.v1alpha1.Plugin".to_owned(),
        method: method.to_owned(),
        payload,
        ..Default::default()
    };
    let status = match runtime.client.request(request).await {
        Ok(Response { status, .. }) => status.unwrap_or_default(),
        Err(ttrpc::Error::RpcStatus(status)) => status,
        Err(other) => panic!("{other}"),
    };
    (status.code(), status.message().to_owned())
}

/// Brings a session to its synchronization.
async fn synchronizing(
    plugin: &Arc<Recorder>,
) -> (
    tokio::task::JoinHandle<Result<Session, SessionError>>,
    Runtime,
) {
    let (ours, theirs) = duplex(64 << 10);
    let mut runtime = Runtime::accept(theirs, Registration::Accept).await;
    let identity = "07-recorder".parse().unwrap();
    let starting = tokio::spawn(Session::start(ours, identity, plugin.clone()));
    runtime.registration().await;
    let configured = runtime.configure(ConfigureRequest::default()).await;
    configured.unwrap();
    (starting, runtime)
}

#[tokio::test]
async fn a_state_of_two_million_empty_pods_is_refused_before_it_is_decoded() {
    let plugin = recorder();
    let (starting, runtime) = synchronizing(&plugin).await;
    let answer = call(&runtime, "Synchronize", POD.repeat(LARGEST / 2)).await;
    assert_eq!(answer.0, Code::RESOURCE_EXHAUSTED, "{answer:?}");
    assert!(
        answer.1.contains("MiB in memory (limit 32 MiB)"),
        "{answer:?}"
    );
    let error = starting.await.unwrap().unwrap_err();
    assert!(matches!(error, SessionError::Plugin { .. }), "{error:?}");
    assert_eq!(plugin.calls(), ["configure"]);
}

/// A part of one pod with annotations of 3 MiB, and whether more parts follow.
fn large_part(more: bool) -> Vec<u8> {
    let pods = api::SynchronizeRequest {
        pods: vec![api::PodSandbox {
            annotations: [("a".to_owned(), "x".repeat(3 << 20))].into(),
            ..Default::default()
        }],
        more,
        ..Default::default()
    };
    pods.write_to_bytes().unwrap()
}

/// A node that has so much to tell is served none the less.
#[tokio::test]
async fn a_state_that_takes_too_much_memory_is_dropped_and_the_session_goes_on() {
    let plugin = recorder();
    let (starting, runtime) = synchronizing(&plugin).await;
    for part in 0..30 {
        let answer = call(&runtime, "Synchronize", large_part(part < 29)).await;
        assert_eq!(answer.0, Code::OK, "part {part}: {answer:?}");
    }
    let session = starting.await.unwrap().unwrap();
    assert_eq!(plugin.calls(), ["configure", "synchronize"]);
    runtime.create_container("c").await.unwrap();
    session.close().await;
}

#[tokio::test]
async fn a_request_that_is_too_large_or_no_message_does_not_end_the_session() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    let mounts = [0x4a, 0].repeat(LARGEST / 2 - 8);
    let length = mounts.len();
    let varint = [
        length | 0x80,
        length >> 7 | 0x80,
        length >> 14 | 0x80,
        length >> 21,
    ];
    let varint = varint.map(|byte| byte as u8);
    let heavy = [&[0x12][..], &varint, &mounts].concat();
    // A pod of 10 MB, of which there are four bytes.
    let short = vec![0x08, 1, 0x12, 0x80, 0xad, 0xe2, 0x04, 0x0a, 0x02, b'p'];
    for (method, payload, expected) in [
        ("CreateContainer", heavy.clone(), Code::RESOURCE_EXHAUSTED),
        ("StateChange", short.clone(), Code::INVALID_ARGUMENT),
        ("CreateContainer", short, Code::INVALID_ARGUMENT),
        ("Configure", vec![0xff; 100], Code::INVALID_ARGUMENT),
        ("NoSuchMethod", heavy, Code::UNIMPLEMENTED),
    ] {
        let answer = call(&runtime, method, payload).await;
        assert_eq!(answer.0, expected, "{method}: {answer:?}");
        runtime.create_container("c").await.unwrap();
    }
    assert_eq!(plugin.calls().len(), 5, "{:?}", plugin.calls());
}

/// The runtime has its own limit for a request, and closes the connection. Until then nothing else goes on.
#[tokio::test]
async fn half_a_message_and_silence_do_not_hold_up_the_end() {
    let plugin = recorder();
    let (ours, theirs) = BlockingStream::pair().unwrap();
    let mut raw = theirs.try_clone().unwrap();
    let tokio = |stream: BlockingStream| {
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    };
    let (session, runtime) = started_over(tokio(ours), tokio(theirs), &plugin).await;
    // A frame of the plugin's connection with ttrpc's header of a request of 100 bytes, and four of these.
    let message = [0, 0, 0, 100, 0, 0, 0, 1, 1, 0, 1, 2, 3, 4];
    let frame = [&[0, 0, 0, 1, 0, 0, 0, 14][..], &message].concat();
    raw.write_all(&frame).unwrap();
    let closed = timeout(Duration::from_secs(10), session.close()).await;
    closed.expect("the end of the session");
    drop(runtime);
    assert_eq!(Arc::strong_count(&plugin), 1);
}

/// ttrpc decodes the metadata of a request before it calls a method, and before the payload is weighed.
#[tokio::test]
async fn a_request_of_much_metadata_ends_the_session_before_it_is_decoded() {
    let plugin = recorder();
    let (mut session, runtime) = started(&plugin).await;
    let request = |entries| Request {
        service: "nri.pkg.api.v1alpha1.Plugin".to_owned(),
        method: "Configure".to_owned(),
        metadata: vec![ttrpc::proto::KeyValue::default(); entries],
        ..Default::default()
    };
    // As many as a tracer may add, and more.
    let answer = runtime.client.request(request(1000)).await;
    assert!(answer.is_ok(), "{answer:?}");
    let sent = tokio::spawn(async move { runtime.client.request(request(100_000)).await });
    let end = timeout(Duration::from_secs(10), session.ended()).await;
    let end = end.expect("the end of the session");
    assert!(
        matches!(end, SessionEnd::NotARequest { connection: 1 }),
        "{end:?}"
    );
    session.close().await;
    assert!(sent.await.unwrap().is_err());
}
