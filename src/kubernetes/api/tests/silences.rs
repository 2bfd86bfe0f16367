//! An API server that does not answer, or stops in the middle of an answer: each request ends at its limit.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http_body_util::StreamBody;
use hyper::Response;
use hyper::body::{Bytes, Frame};

use super::super::super::objects::{Node, Pod};
use super::*;

/// How long the server lets the watch last.
const LASTS: Duration = Duration::from_secs(300);

/// What the server sends before it is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    Nothing,
    Head,
    /// A head with an error.
    ErrorHead,
    /// A head and a half of an object.
    Half,
}

/// Returns a body of these bytes that never ends.
fn endless(
    bytes: &'static [u8],
) -> StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, Infallible>>> {
    let mut first = Some(Frame::data(Bytes::from_static(bytes)));
    StreamBody::new(futures::stream::poll_fn(
        move |_: &mut Context<'_>| match first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Poll::Pending,
        },
    ))
}

fn silent(sends: Sends) -> Client {
    let service = tower::service_fn(move |_: Request<Body>| async move {
        if sends == Sends::Nothing {
            std::future::pending::<()>().await;
        }
        let code = if sends == Sends::ErrorHead { 500 } else { 200 };
        let bytes: &[u8] = if sends == Sends::Half {
            b"{\"metadata\":"
        } else {
            b""
        };
        Response::builder().status(code).body(endless(bytes))
    });
    Client::new(service, "default")
}

/// Returns how a request ended, and after which time.
async fn ended<T>(request: impl Future<Output = Result<T, Error>>) -> (Option<Error>, Duration) {
    let began = Instant::now();
    let ended = request.await;
    (ended.err(), began.elapsed())
}

/// Sends all requests that have one answer.
async fn all(client: &Client) -> Vec<(Option<Error>, Duration)> {
    let resource = Resource {
        client: client.clone(),
        path: "/api/v1/pods",
        fields: None,
    };
    vec![
        ended(resource.list::<Pod>(drop)).await,
        ended(resource.any::<Pod>()).await,
        ended(object::<Node>(client, "/api/v1/nodes/n")).await,
        ended(patch(client, "/api/v1/nodes/n", &[])).await,
    ]
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_answered_ends_at_its_limit() {
    for sends in [Sends::Nothing, Sends::Head, Sends::Half] {
        for (error, took) in all(&silent(sends)).await {
            assert_eq!(error, Some(Error::Slow(ANSWER)), "{sends:?}");
            assert_eq!(took.as_secs(), ANSWER.as_secs(), "{sends:?}");
        }
    }
    for (error, took) in all(&silent(Sends::ErrorHead)).await {
        let code = matches!(error, Some(Error::Failed { code: 500, .. }));
        assert!(
            code && took.as_secs() == ANSWER.as_secs(),
            "{error:?} {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_silent_ends_after_the_time_that_the_server_was_asked_for() {
    for sends in [Sends::Nothing, Sends::ErrorHead, Sends::Head, Sends::Half] {
        let resource = Resource {
            client: silent(sends),
            path: "/api/v1/pods",
            fields: None,
        };
        let began = Instant::now();
        let took = |began: Instant| began.elapsed().as_secs();
        match resource.watch("7", LASTS).await {
            Err(e) => {
                assert!(matches!(sends, Sends::Nothing | Sends::ErrorHead), "{e}");
                assert_eq!(took(began), ANSWER.as_secs(), "{sends:?}");
            }
            Ok(mut lines) => {
                let next = lines.next::<Pod>().await;
                assert!(matches!(next, Ok(None)), "{sends:?}: {next:?}");
                assert_eq!(took(began), (LASTS + GRACE).as_secs(), "{sends:?}");
            }
        }
    }
}
