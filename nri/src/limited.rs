//! Refuses a request that would take too much memory when it is decoded, before ttrpc decodes it.
//!
//! A message of 4 MiB, ttrpc's limit, can stand for two million pods.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service as Methods, TtrpcContext};
use ttrpc::proto::ResponseInit;
use ttrpc::{Code, Request, Response, get_status};

use crate::service::Service;
use crate::weight::{self, Shape, TooLarge, weigh};

/// The limit of one request in bytes when it is decoded: eight times the largest message. Messages of real pods and
/// containers take up to five times their bytes.
pub(crate) const MAX_WEIGHT: usize = 32 << 20;

/// Wraps every method of the plugin's service with the check.
pub(crate) fn limited(
    services: HashMap<String, Methods>,
    service: &Arc<Service>,
) -> HashMap<String, Methods> {
    let wrap = |(name, inner): (String, Handler)| {
        let method = match name.as_str() {
            "Synchronize" => Method::Synchronize,
            "StateChange" => Method::Other(&weight::STATE_CHANGE),
            "Configure" | "Shutdown" => Method::Other(&weight::FLAT),
            _ => Method::Other(&weight::REQUEST),
        };
        let limited = Limited {
            inner,
            method,
            service: service.clone(),
        };
        (name, Box::new(limited) as Handler)
    };
    let services = services.into_iter().map(|(name, service)| {
        let methods = Methods {
            methods: service.methods.into_iter().map(wrap).collect(),
            streams: service.streams,
        };
        (name, methods)
    });
    services.collect()
}

type Handler = Box<dyn MethodHandler + Send + Sync>;

struct Limited {
    inner: Handler,
    method: Method,
    service: Arc<Service>,
}

enum Method {
    /// A part of the state that is refused ends the session.
    Synchronize,
    Other(&'static Shape),
}

impl Limited {
    fn check(&self, request: &[u8]) -> Result<(), ttrpc::Error> {
        let shape = match self.method {
            Method::Synchronize => &weight::REQUEST,
            Method::Other(shape) => shape,
        };
        let weight = weigh(shape, request);
        let weight = weight.map_err(|e| status(Code::INVALID_ARGUMENT, e))?;
        let limit = MAX_WEIGHT;
        let within = match weight > limit {
            true => Err(status(Code::RESOURCE_EXHAUSTED, TooLarge { weight, limit })),
            false => Ok(()),
        };
        match self.method {
            Method::Synchronize => within.map_err(|error| self.service.refuse_state(error)),
            Method::Other(_) => within,
        }
    }
}

#[async_trait]
impl MethodHandler for Limited {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        match self.check(&request.payload) {
            Ok(()) => self.inner.handler(context, request).await,
            Err(ttrpc::Error::RpcStatus(status)) => Ok(Response::init_status(status)),
            Err(other) => Err(other),
        }
    }
}

fn status(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text.to_string()))
}
