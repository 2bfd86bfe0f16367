//! NRI's `Plugin` service: maps each RPC to an event.
//!
//! This file must implement every RPC. For a missing one the generated trait answers `NotFound`, which
//! fails the operation. After `Unimplemented` the runtime falls back or continues.

use async_trait::async_trait;
use protobuf::MessageField;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, get_status};

use crate::api::{self, Event};
use crate::service::{Answer, Service};

#[async_trait]
impl api::PluginService for Service {
    async fn configure(
        &self,
        _: &TtrpcContext,
        request: api::ConfigureRequest,
    ) -> Answer<api::ConfigureResponse> {
        self.configure(request).await
    }

    async fn synchronize(
        &self,
        _: &TtrpcContext,
        request: api::SynchronizeRequest,
    ) -> Answer<api::SynchronizeResponse> {
        self.synchronize(request).await
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::Empty) -> Answer<api::Empty> {
        self.shutdown().await
    }

    /// Relays an event in the dialect up to NRI 0.11, for all events that have an RPC of their own from
    /// 0.12 on. An event that this crate does not know succeeds without a call of the plugin.
    async fn state_change(
        &self,
        _: &TtrpcContext,
        change: api::StateChangeEvent,
    ) -> Answer<api::Empty> {
        let event = change.event.enum_value().unwrap_or(Event::UNKNOWN);
        self.relay(event, change.pod, change.container).await
    }

    async fn run_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::RunPodSandboxRequest,
    ) -> Answer<api::RunPodSandboxResponse> {
        self.relay(Event::RUN_POD_SANDBOX, request.pod, MessageField::none())
            .await
    }

    async fn update_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::UpdatePodSandboxRequest,
    ) -> Answer<api::UpdatePodSandboxResponse> {
        self.relay(Event::UPDATE_POD_SANDBOX, request.pod, MessageField::none())
            .await
    }

    async fn post_update_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PostUpdatePodSandboxRequest,
    ) -> Answer<api::PostUpdatePodSandboxResponse> {
        self.relay(
            Event::POST_UPDATE_POD_SANDBOX,
            request.pod,
            MessageField::none(),
        )
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopPodSandboxRequest,
    ) -> Answer<api::StopPodSandboxResponse> {
        self.relay(Event::STOP_POD_SANDBOX, request.pod, MessageField::none())
            .await
    }

    async fn remove_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::RemovePodSandboxRequest,
    ) -> Answer<api::RemovePodSandboxResponse> {
        self.relay(Event::REMOVE_POD_SANDBOX, request.pod, MessageField::none())
            .await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> Answer<api::CreateContainerResponse> {
        self.relay(Event::CREATE_CONTAINER, request.pod, request.container)
            .await
    }

    async fn post_create_container(
        &self,
        _: &TtrpcContext,
        request: api::PostCreateContainerRequest,
    ) -> Answer<api::PostCreateContainerResponse> {
        self.relay(Event::POST_CREATE_CONTAINER, request.pod, request.container)
            .await
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: api::StartContainerRequest,
    ) -> Answer<api::StartContainerResponse> {
        self.relay(Event::START_CONTAINER, request.pod, request.container)
            .await
    }

    async fn post_start_container(
        &self,
        _: &TtrpcContext,
        request: api::PostStartContainerRequest,
    ) -> Answer<api::PostStartContainerResponse> {
        self.relay(Event::POST_START_CONTAINER, request.pod, request.container)
            .await
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: api::UpdateContainerRequest,
    ) -> Answer<api::UpdateContainerResponse> {
        self.relay(Event::UPDATE_CONTAINER, request.pod, request.container)
            .await
    }

    async fn post_update_container(
        &self,
        _: &TtrpcContext,
        request: api::PostUpdateContainerRequest,
    ) -> Answer<api::PostUpdateContainerResponse> {
        self.relay(Event::POST_UPDATE_CONTAINER, request.pod, request.container)
            .await
    }

    async fn stop_container(
        &self,
        _: &TtrpcContext,
        request: api::StopContainerRequest,
    ) -> Answer<api::StopContainerResponse> {
        self.relay(Event::STOP_CONTAINER, request.pod, request.container)
            .await
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: api::RemoveContainerRequest,
    ) -> Answer<api::RemoveContainerResponse> {
        self.relay(Event::REMOVE_CONTAINER, request.pod, request.container)
            .await
    }

    /// Answers `Unimplemented`. This crate never subscribes to validation, since it cannot read adjustments.
    async fn validate_container_adjustment(
        &self,
        _: &TtrpcContext,
        _: api::ValidateContainerAdjustmentRequest,
    ) -> Answer<api::ValidateContainerAdjustmentResponse> {
        Err(ttrpc::Error::RpcStatus(get_status(
            Code::UNIMPLEMENTED,
            "this plugin does not validate adjustments",
        )))
    }
}
