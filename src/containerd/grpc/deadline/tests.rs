//! A containerd that is slower than each deadline: it does not answer, or its answer does not end. Each call ends at its
//! deadline with an error that says so. The clock is that of the test: hours pass at once.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use h2::server::SendResponse;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::time::Instant;
use tonic::transport::Endpoint;

use super::super::{COLLECTION_DEADLINE, Grpc, METADATA_DEADLINE, WORK_DEADLINE};
use super::*;
use crate::containerd::{
    BlobChunk, Containerd, Descriptor, Error, ErrorKind, Labels, Login, Logins, Payloads, Resource,
    Source,
};

/// The trait.
const TRAIT: &str = include_str!("../../mod.rs");

/// The call that lasts as long as the connection.
const ENDLESS: &str = "events";

/// How containerd does not end its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slow {
    /// It takes the call, and sends nothing.
    Silent,
    /// It begins its answer, and sends no message.
    Begun,
    /// It sends an empty message each second.
    Endless,
}

/// Returns a client of such a containerd.
fn client(slow: Slow) -> Grpc {
    client_of(move |respond| answer(respond, slow))
}

/// Returns a client of a containerd that answers so.
fn client_of<F: Future<Output = Result<(), h2::Error>> + Send + 'static>(
    answer: impl Fn(SendResponse<Bytes>) -> F + Copy + Send + Sync + 'static,
) -> Grpc {
    let connect = move |_| async move {
        let (client, server) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(server, answer));
        Ok::<_, std::io::Error>(TokioIo::new(client))
    };
    let channel = Endpoint::from_static("http://containerd")
        .connect_with_connector_lazy(tower::service_fn(connect));
    Grpc {
        channel: PunctualChannel(channel),
        socket: PathBuf::new(),
        namespace: "k8s.io".parse().unwrap(),
    }
}

async fn serve<F: Future<Output = Result<(), h2::Error>> + Send + 'static>(
    stream: DuplexStream,
    answer: impl Fn(SendResponse<Bytes>) -> F + Copy + Send + Sync + 'static,
) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(async move {
            let mut messages = request.into_body();
            let read = async {
                while let Some(Ok(data)) = messages.data().await {
                    let _ = messages.flow_control().release_capacity(data.len());
                }
                std::future::pending().await
            };
            tokio::select! {
                ended = answer(respond) => ended,
                ended = read => ended,
            }
        });
    }
}

async fn answer(mut respond: SendResponse<Bytes>, slow: Slow) -> Result<(), h2::Error> {
    if slow == Slow::Silent {
        return std::future::pending().await;
    }
    let head = http::Response::builder().header("content-type", "application/grpc");
    let mut body = respond.send_response(head.body(()).unwrap(), false)?;
    loop {
        if slow == Slow::Begun {
            std::future::pending::<()>().await;
        }
        body.send_data(Bytes::from_static(&[0; 5]), false)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

type Called<'a> = BoxFuture<'a, Result<(), Error>>;

/// A method of the trait, its deadline, and its call.
type Row = (&'static str, Duration, fn(&Grpc) -> Called<'_>);

/// Makes a row.
macro_rules! row {
    ($method:literal, $deadline:expr, |$grpc:ident| $call:expr) => {
        ($method, $deadline, |$grpc| {
            Box::pin(async move { $call.await.map(drop) })
        })
    };
}

/// All methods with a deadline.
fn rows() -> Vec<Row> {
    const QUICK: Duration = METADATA_DEADLINE;
    const WORK: Duration = WORK_DEADLINE;
    vec![
        row!("image", QUICK, |c| c.image("i")),
        row!("images", QUICK, |c| c.images()),
        row!("images_of", QUICK, |c| c.images_of("sha256:a")),
        row!("blob", QUICK, |c| c.blob("sha256:a")),
        row!("blobs", QUICK, |c| c.blobs(&mut |_| ())),
        row!("manifests", QUICK, |c| c.manifests(&mut |_| ())),
        row!("read", QUICK, |c| c.read("sha256:a", 1 << 20)),
        row!("write_blob", WORK, |c| {
            let end = BlobChunk::End {
                digest: "sha256:a".to_owned(),
                size: 1,
            };
            let chunks = stream::iter([BlobChunk::Data(vec![0]), end]).boxed();
            c.write_blob("l", "r", chunks)
        }),
        row!("abort_write", QUICK, |c| c.abort_write("r")),
        row!("fetch", WORK, |c| async { c.fetch("l", &source()).await }),
        row!("label_blob", QUICK, |c| c
            .label_blob("sha256:a", Labels::new())),
        row!("stat", QUICK, |c| c.stat("s", "k")),
        row!("has_record", QUICK, |c| c.has_record("s", "k")),
        row!("snapshots", QUICK, |c| c.snapshots("s", &mut |_| ())),
        row!("prepare", WORK, |c| c.prepare(
            "l",
            "s",
            "k",
            None,
            Labels::new()
        )),
        row!("view", WORK, |c| c.view("l", "s", "k", "p")),
        row!("mounts", QUICK, |c| c.mounts("s", "k")),
        row!("inodes", QUICK, |c| c.inodes("s", "k")),
        row!("commit", WORK, |c| c.commit(
            "l",
            "s",
            "n",
            "k",
            None,
            Labels::new()
        )),
        row!("remove", QUICK, |c| c.remove("s", "k")),
        row!("label_snapshot", QUICK, |c| c.label_snapshot(
            "s",
            "k",
            Labels::new()
        )),
        row!("apply", WORK, |c| async {
            let layer = Descriptor::default();
            c.apply(&layer, vec![], Payloads::default()).await
        }),
        row!("create_lease", QUICK, |c| c
            .create_lease("l", Labels::new())),
        row!("delete_lease", QUICK, |c| c.delete_lease("l", false)),
        row!("delete_lease", COLLECTION_DEADLINE, |c| c
            .delete_lease("l", true)),
        row!("leases", QUICK, |c| c.leases()),
        row!("lease_resources", QUICK, |c| c.lease_resources("l")),
        row!("hold", QUICK, |c| c.hold("l", Resource::blob("sha256:a"))),
        row!("release", QUICK, |c| c
            .release("l", Resource::blob("sha256:a"))),
        row!("snapshotters", QUICK, |c| c.snapshotters()),
        row!("plugins", QUICK, |c| c.plugins()),
        row!("version", QUICK, |c| c.version()),
        row!("cri_config", QUICK, |c| c.cri_config()),
        row!("cri_state_bytes", QUICK, |c| c.cri_state_bytes()),
        row!("pod_annotation", QUICK, |c| c.pod_annotation("a")),
        row!("image_file_system", QUICK, |c| c.image_file_system()),
        row!("cri_pods", QUICK, |c| c.cri_pods()),
        row!("cri_containers", QUICK, |c| c.cri_containers()),
    ]
}

/// A source for which containerd asks for credentials on a stream of its own.
fn source() -> Source {
    let login = Login {
        username: "u".to_owned(),
        secret: "p".to_owned(),
    };
    Source {
        reference: "r.example/a:1".to_owned(),
        hosts: PathBuf::new(),
        logins: Logins::from([("r.example".to_owned(), login)]),
    }
}

/// tonic panics if the details of a status are no base64. They are in the head of an answer, or behind its messages.
#[tokio::test]
async fn details_of_a_status_are_not_read() {
    let in_head = |mut respond: SendResponse<Bytes>| async move {
        let head = http::Response::builder().header("content-type", "application/grpc");
        let head = head.header("grpc-status", "5").header(DETAILS, "!");
        respond.send_response(head.body(()).unwrap(), true)?;
        Ok(())
    };
    let behind = |mut respond: SendResponse<Bytes>| async move {
        let head = http::Response::builder().header("content-type", "application/grpc");
        let mut body = respond.send_response(head.body(()).unwrap(), false)?;
        let status = [("grpc-status", "5"), (DETAILS, "!")];
        let status = status.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        body.send_trailers(status.into_iter().collect())
    };
    for grpc in [client_of(in_head), client_of(behind)] {
        let error = grpc.version().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{error:?}");
    }
}

#[test]
fn each_method_has_a_row() {
    let (_, body) = TRAIT.split_once("pub trait Containerd").unwrap();
    let methods = body.split("async fn ").skip(1);
    let methods: BTreeSet<_> = methods.filter_map(|it| it.split('(').next()).collect();
    let rows: BTreeSet<_> = rows().iter().map(|row| row.0).chain([ENDLESS]).collect();
    assert_eq!(methods, rows);
}

#[tokio::test(start_paused = true)]
async fn each_call_ends_at_its_deadline_and_says_so() {
    for slow in [Slow::Silent, Slow::Begun, Slow::Endless] {
        let grpc = client(slow);
        for (method, deadline, call) in rows() {
            let began = Instant::now();
            let ended = tokio::time::timeout(2 * deadline, call(&grpc)).await;
            let ended = ended.unwrap_or_else(|_| panic!("{slow:?}: {method} does not end"));
            let took = began.elapsed();
            let error = ended.expect_err(method);
            // A call with a single answer takes the first message for it, and waits for the end of the stream.
            println!("{slow:?} {method} after {took:?}: {error}");
            assert_eq!(
                error.kind,
                ErrorKind::TimedOut,
                "{slow:?} {method}: {error:?}"
            );
            assert!(error.is_unreachable());
            assert_eq!(
                took.as_secs(),
                deadline.as_secs(),
                "{slow:?} {method}: {error}"
            );
        }
    }
}
