//! A runtime for tests: the other side of the socket, with real ttrpc. It acts only on calls of the test, so
//! that a test decides on the order of calls, the dialect and missing answers.
//!
//! The file has no dependencies in this directory, since other crates include it by path.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use nri::SessionEnd;
use nri::api::{self, PluginClient};
use nri::mux;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server, TtrpcContext};
use ttrpc::{Code, get_status};

/// The capacity of the queue of registrations. A test makes one.
const REGISTRATIONS: usize = 4;

/// The limit for an answer of the plugin, longer than any machine needs, so that a test without an answer
/// fails and does not hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection from a plugin.
pub(crate) struct Runtime {
    /// Calls the plugin.
    pub(crate) plugin: PluginClient,
    /// The client of `plugin`, for calls that it has no method for.
    pub(crate) client: Client,
    registrations: mpsc::Receiver<api::RegisterPluginRequest>,
    mux: JoinHandle<SessionEnd>,
    /// Cancelled by a test to stop reading from the socket, which stays open.
    pub(crate) stop_reading: CancellationToken,
    server: Server,
    close: DropGuard,
}

/// How the runtime answers a registration.
#[derive(Clone, Copy)]
pub(crate) enum Registration {
    Accept,
    Reject(&'static str),
    /// Records the registration and never answers.
    Ignore,
}

struct Registry {
    answer: Registration,
    seen: mpsc::Sender<api::RegisterPluginRequest>,
}

#[async_trait]
impl api::RuntimeService for Registry {
    async fn register_plugin(
        &self,
        _: &TtrpcContext,
        request: api::RegisterPluginRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.seen.try_send(request).expect("the queue is not full");
        match self.answer {
            Registration::Accept => Ok(api::Empty::default()),
            Registration::Reject(reason) => {
                Err(ttrpc::Error::RpcStatus(get_status(Code::UNKNOWN, reason)))
            }
            Registration::Ignore => std::future::pending().await,
        }
    }
}

impl Runtime {
    /// Serves a plugin's connection.
    pub(crate) async fn accept<T>(stream: T, answer: Registration) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (seen, registrations) = mpsc::channel(REGISTRATIONS);
        let (mux, plugin, runtime) = mux::divide(stream);
        let (stop_reading, close) = (CancellationToken::new(), CancellationToken::new());
        let mux = tokio::spawn(mux.run(stop_reading.clone(), close.clone()));
        let registry = Arc::new(Registry { answer, seen });
        let incoming = stream::iter([Ok(runtime)]).chain(stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(api::create_runtime(registry));
        server.start().await.unwrap();
        let client = Client::new(Socket::new(plugin));
        Self {
            plugin: PluginClient::new(client.clone()),
            client,
            registrations,
            mux,
            stop_reading,
            server,
            close: close.drop_guard(),
        }
    }

    /// Waits for the next registration.
    pub(crate) async fn registration(&mut self) -> api::RegisterPluginRequest {
        self.registrations.recv().await.expect("a registration")
    }

    pub(crate) async fn configure(
        &self,
        request: api::ConfigureRequest,
    ) -> ttrpc::Result<api::ConfigureResponse> {
        self.plugin.configure(no_deadline(), &request).await
    }

    pub(crate) async fn synchronize(
        &self,
        pods: &[&str],
        containers: &[&str],
        more: bool,
    ) -> ttrpc::Result<api::SynchronizeResponse> {
        let request = api::SynchronizeRequest {
            pods: pods.iter().map(|id| pod(id)).collect(),
            containers: containers.iter().map(|id| container(id)).collect(),
            more,
            ..Default::default()
        };
        self.plugin.synchronize(no_deadline(), &request).await
    }

    /// Does registration, configuration and synchronization with an empty state, as a runtime that knows all
    /// events.
    pub(crate) async fn start(&mut self) {
        self.registration().await;
        self.configure(api::ConfigureRequest {
            NRI_version: "v0.12.2".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
        self.synchronize(&[], &[], false).await.unwrap();
    }

    pub(crate) async fn create_container(&self, id: &str) -> ttrpc::Result<()> {
        create_container(&self.plugin, id).await
    }

    /// Waits until the plugin closes the connection.
    pub(crate) async fn closed(&mut self) -> SessionEnd {
        timeout(PATIENCE, &mut self.mux)
            .await
            .expect("an end")
            .unwrap()
    }

    /// Closes the connection.
    pub(crate) async fn close(mut self) {
        drop(self.close);
        drop((self.plugin, self.client));
        self.server.shutdown().await.unwrap();
        if !self.mux.is_finished() {
            self.mux.await.unwrap();
        }
    }
}

/// Creates a container of pod `p`.
pub(crate) async fn create_container(plugin: &PluginClient, id: &str) -> ttrpc::Result<()> {
    let request = api::CreateContainerRequest {
        pod: Some(pod("p")).into(),
        container: Some(container(id)).into(),
        ..Default::default()
    };
    let answer = plugin.create_container(no_deadline(), &request);
    timeout(PATIENCE, answer)
        .await
        .expect("an answer")
        .map(drop)
}

pub(crate) fn no_deadline() -> ttrpc::context::Context {
    ttrpc::context::Context::default()
}

pub(crate) fn pod(id: &str) -> api::PodSandbox {
    api::PodSandbox {
        id: id.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn container(id: &str) -> api::Container {
    api::Container {
        id: id.to_owned(),
        ..Default::default()
    }
}
