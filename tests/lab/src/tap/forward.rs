//! Forwards HTTP/2 streams: each client's connection has one to the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tonic::codegen::Bytes;
use tonic::codegen::http::Request;

use super::{Call, Fault, Observer, Passage, lock};

/// The beginnings of the calls whose message is read before they are forwarded; each has a single message.
const READ: [&str; 4] = [
    "/containerd.services.snapshots.v1.Snapshots/",
    "/containerd.services.content.v1.Content/List",
    "/containerd.services.images.v1.Images/List",
    "/containerd.services.introspection.v1.Introspection/Plugins",
];

/// The longest time that a call which its client has given up is waited for.
const LONGEST: Duration = Duration::from_secs(5);

/// gRPC's code of an error that is not known.
const UNKNOWN: &str = "2";

/// Accepts connections; they end with this task.
pub(super) async fn serve(listener: UnixListener, server: PathBuf, observer: Arc<Observer>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (server, observer) = (server.clone(), observer.clone());
        // Both sides see an error as a broken connection.
        connections.spawn(async move { drop(connection(stream, &server, observer).await) });
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one client's connection, with a connection of its own to the server.
async fn connection(client: UnixStream, socket: &Path, observer: Arc<Observer>) -> Result<()> {
    let server = UnixStream::connect(socket).await?;
    let (sender, server) = h2::client::handshake(server).await?;
    let mut client = h2::server::handshake(client).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { Ok(server.await?) });
    loop {
        tokio::select! {
            request = client.accept() => {
                let Some(request) = request else { return Ok(()) };
                let (request, respond) = request?;
                let (sender, socket) = (sender.clone(), socket.to_owned());
                tasks.spawn(forward(request, respond, sender, socket, observer.clone()));
            }
            // The server has ended, so the connection ends. A broken stream ends only itself.
            Some(_) = tasks.join_next() => {
                if sender.clone().ready().await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn forward(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    server: SendRequest<Bytes>,
    socket: PathBuf,
    observer: Arc<Observer>,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let mut message = Vec::new();
    if READ.iter().any(|begin| path.starts_with(begin)) {
        while let Some(data) = body.data().await {
            message.extend_from_slice(&release_capacity(&mut body, data?)?);
        }
    }
    let call = Call {
        path,
        message: String::from_utf8_lossy(&message).into_owned(),
    };
    let mut is_answered = true;
    match observer.pass(call).await {
        Passage::Forwarded => {}
        Passage::Dropped => {
            respond.send_reset(Reason::CANCEL);
            return Ok(());
        }
        Passage::Failed(Fault::Error) => {
            let answer = tonic::codegen::http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", UNKNOWN)
                .header("grpc-message", "a fault of the test")
                .body(())?;
            respond.send_response(answer, true)?;
            return Ok(());
        }
        Passage::Failed(Fault::AnswerLost) => is_answered = false,
        Passage::Failed(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Passage::Failed(Fault::GivenUp(time)) => {
            while let Some(data) = body.data().await {
                message.extend_from_slice(&release_capacity(&mut body, data?)?);
            }
            // The code by which tonic reports its own deadline.
            respond.send_reset(Reason::CANCEL);
            let late = serve_late(Request::from_parts(head, ()), message, socket, time);
            lock(&observer.late).spawn(async move { drop(late.await) });
            return Ok(());
        }
    }
    let mut server = server.ready().await?;
    let (response, mut up) = server.send_request(Request::from_parts(head, ()), false)?;
    let upwards = async {
        match up.send_data(message.into(), false) {
            Ok(()) => copy(body, up).await,
            Err(_) => Ok(()),
        }
    };
    let downwards = async {
        let (head, mut body) = response.await?.into_parts();
        if !is_answered {
            while let Some(data) = body.data().await {
                release_capacity(&mut body, data?)?;
            }
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        let ends = body.is_end_stream();
        let head = tonic::codegen::http::Response::from_parts(head, ());
        let down = respond.send_response(head, ends)?;
        if !ends {
            copy(body, down).await?;
        }
        Ok(())
    };
    tokio::try_join!(upwards, downwards)?;
    Ok(())
}

/// Sends a call on a connection of its own after this time, and reads the whole answer.
async fn serve_late(
    request: Request<()>,
    message: Vec<u8>,
    socket: PathBuf,
    time: Duration,
) -> Result<()> {
    tokio::time::sleep(time).await;
    let (server, connection) = h2::client::handshake(UnixStream::connect(socket).await?).await?;
    let served = async {
        let mut server = server.ready().await?;
        let (response, mut up) = server.send_request(request, false)?;
        up.send_data(message.into(), true)?;
        let mut body = response.await?.into_body();
        while let Some(data) = body.data().await {
            release_capacity(&mut body, data?)?;
        }
        Ok(())
    };
    tokio::select! {
        served = served => served,
        ended = connection => Ok(ended?),
        // A subscription to events has no end.
        () = tokio::time::sleep(LONGEST) => Ok(()),
    }
}

/// Copies all data and the trailers. A receiver may stop early, as containerd does when it responds before the
/// end of the request; the other direction continues.
async fn copy(mut from: RecvStream, mut to: SendStream<Bytes>) -> Result<()> {
    while let Some(data) = from.data().await {
        let data = release_capacity(&mut from, data?)?;
        if to.send_data(data, false).is_err() {
            return Ok(());
        }
    }
    let _ = match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    };
    Ok(())
}

/// Returns the capacity of this data to the sender.
fn release_capacity(from: &mut RecvStream, data: Bytes) -> Result<Bytes> {
    from.flow_control().release_capacity(data.len())?;
    Ok(data)
}
