//! The channel to containerd, on which every answer ends within the deadline of its call, and no message is decoded that
//! would take too much memory. The deadline that tonic itself keeps ends with the first bytes of the answer: after them a
//! server may be silent, or send messages without end, which even a call with one answer would read to their end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::codegen::{Body, BoxFuture, Bytes, Service, http};
use tonic::transport::{Channel, Error};

use super::weight::Scale;

/// The details of a status, which nothing here reads. tonic panics if they are no base64.
const DETAILS: &str = "grpc-status-details-bin";

/// The deadline of a call, in the extensions of its request. A request without one has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Duration);

/// The channel.
#[derive(Clone, Debug)]
pub(super) struct PunctualChannel(pub(super) Channel);

impl Service<http::Request<tonic::body::Body>> for PunctualChannel {
    type Response = http::Response<PunctualBody>;
    type Error = Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let deadline = request.extensions().get::<Deadline>().copied();
        let scale = Scale::of(request.uri().path());
        let answer = self.0.call(request);
        Box::pin(async move {
            let until = deadline.map(|Deadline(time)| Box::pin(tokio::time::sleep(time)));
            let body = |body| PunctualBody { body, until, scale };
            let mut answer = answer.await?.map(body);
            answer.headers_mut().remove(DETAILS);
            Ok(answer)
        })
    }
}

/// The body of an answer, which ends with an error at the deadline, and where a message is too heavy.
#[derive(Debug)]
pub(super) struct PunctualBody {
    body: tonic::body::Body,
    until: Option<Pin<Box<Sleep>>>,
    scale: Scale,
}

impl Body for PunctualBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(until) = &mut self.until
            && until.as_mut().poll(context).is_ready()
        {
            let late = Status::deadline_exceeded("the answer did not end in time");
            return Poll::Ready(Some(Err(late)));
        }
        let mut frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            trailers.remove(DETAILS);
        }
        let data = match &frame {
            Some(Ok(frame)) => frame.data_ref(),
            _ => None,
        };
        if let Some(data) = data
            && let Err(e) = self.scale.follow(data)
        {
            return Poll::Ready(Some(Err(Status::resource_exhausted(e.to_string()))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
