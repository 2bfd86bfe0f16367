//! Events in both dialects: the calls of the plugin, and the answers to the runtime.

use std::sync::Arc;
use std::time::Duration;

use nri::api::{self, Event};
use nri::{ContainerState, Events};
use protobuf::EnumOrUnknown;
use ttrpc::Code;
use ttrpc::r#async::Client;

use crate::recorder::{Recorder, eventually, started};
use crate::runtime::{Runtime, container, create_container, no_deadline, pod};

fn recorder() -> Arc<Recorder> {
    Arc::new(Recorder::new(Events::all()))
}

async fn state_change(runtime: &Runtime, event: EnumOrUnknown<Event>) -> ttrpc::Result<api::Empty> {
    let change = api::StateChangeEvent {
        event,
        pod: Some(pod("p")).into(),
        container: Some(container("c")).into(),
        ..Default::default()
    };
    runtime.plugin.state_change(no_deadline(), &change).await
}

/// Calls the dedicated RPC that an event has from NRI 0.12 on.
macro_rules! call {
    ($runtime:ident . $rpc:ident ( $request:ident { $($field:ident: $value:expr),* } )) => {
        $runtime
            .plugin
            .$rpc(
                no_deadline(),
                &api::$request { $($field: Some($value).into(),)* ..Default::default() },
            )
            .await
            .unwrap()
    };
}

#[tokio::test]
async fn both_dialects_call_the_same_method() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;

    call!(runtime.run_pod_sandbox(RunPodSandboxRequest { pod: pod("p") }));
    call!(runtime.update_pod_sandbox(UpdatePodSandboxRequest { pod: pod("p") }));
    call!(runtime.post_update_pod_sandbox(PostUpdatePodSandboxRequest { pod: pod("p") }));
    call!(runtime.stop_pod_sandbox(StopPodSandboxRequest { pod: pod("p") }));
    call!(runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod: pod("p") }));
    call!(runtime.create_container(CreateContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    call!(runtime.post_create_container(PostCreateContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    call!(runtime.start_container(StartContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    call!(runtime.post_start_container(PostStartContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    call!(runtime.update_container(UpdateContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    call!(runtime.post_update_container(PostUpdateContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    call!(runtime.stop_container(StopContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    call!(runtime.remove_container(RemoveContainerRequest {
        pod: pod("p"),
        container: container("c")
    }));
    let dedicated = plugin.calls();
    assert_eq!(dedicated.len(), 13);

    plugin.clear();
    for event in [
        Event::RUN_POD_SANDBOX,
        Event::UPDATE_POD_SANDBOX,
        Event::POST_UPDATE_POD_SANDBOX,
        Event::STOP_POD_SANDBOX,
        Event::REMOVE_POD_SANDBOX,
        Event::CREATE_CONTAINER,
        Event::POST_CREATE_CONTAINER,
        Event::START_CONTAINER,
        Event::POST_START_CONTAINER,
        Event::UPDATE_CONTAINER,
        Event::POST_UPDATE_CONTAINER,
        Event::STOP_CONTAINER,
        Event::REMOVE_CONTAINER,
    ] {
        state_change(&runtime, event.into()).await.unwrap();
        // Compared by name, so that the test fails if both dialects swap two events.
        let what = if plugin.calls().last().unwrap().ends_with(" c") {
            "p c"
        } else {
            "p"
        };
        let method = format!("{event:?}").to_lowercase();
        assert_eq!(plugin.calls().last().unwrap(), &format!("{method} {what}"));
    }
    assert_eq!(plugin.calls(), dedicated);
}

#[tokio::test]
async fn an_unknown_event_succeeds() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    for number in [0, 14, 15, 33, i32::MAX, -1] {
        state_change(&runtime, EnumOrUnknown::from_i32(number))
            .await
            .unwrap();
    }
    assert_eq!(plugin.calls(), [""; 0]);
}

#[tokio::test]
async fn only_events_that_the_plugin_subscribed_to_reach_it() {
    let plugin = Arc::new(Recorder::new(Events::CREATE_CONTAINER));
    let (_session, runtime) = started(&plugin).await;
    call!(runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod: pod("p") }));
    state_change(&runtime, Event::RUN_POD_SANDBOX.into())
        .await
        .unwrap();
    runtime.create_container("c").await.unwrap();
    assert_eq!(plugin.calls(), ["create_container p c"]);
}

#[tokio::test]
async fn unsupported_rpcs_are_unimplemented_so_that_the_runtime_falls_back() {
    let (_session, runtime) = started(&recorder()).await;
    let request = api::ValidateContainerAdjustmentRequest::default();
    let error = runtime
        .plugin
        .validate_container_adjustment(no_deadline(), &request)
        .await
        .unwrap_err();
    assert_eq!(code(&error), Code::UNIMPLEMENTED);

    let client: &Client = &runtime.client;
    let request = ttrpc::Request {
        service: "nri.pkg.api.v1alpha1.Plugin".into(),
        method: "AnRpcFromTheFuture".into(),
        ..Default::default()
    };
    let error = client.request(request).await.unwrap_err();
    assert_eq!(code(&error), Code::UNIMPLEMENTED);
}

fn code(error: &ttrpc::Error) -> Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other}"),
    }
}

fn message(error: &ttrpc::Error) -> &str {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_handlers_error_reaches_the_runtime_unchanged() {
    let (_session, runtime) = started(&recorder()).await;
    let error = runtime.create_container("fail").await.unwrap_err();
    assert_eq!(code(&error), Code::UNKNOWN);
    assert_eq!(message(&error), "the image is not ready");
    runtime.create_container("next").await.unwrap();
}

#[tokio::test]
async fn a_handlers_panic_is_an_error_and_the_session_continues() {
    let (_session, runtime) = started(&recorder()).await;
    let error = runtime.create_container("panic").await.unwrap_err();
    assert_eq!(code(&error), Code::INTERNAL);
    assert_eq!(
        message(&error),
        "the plugin panicked in create_container: a bug"
    );
    runtime.create_container("next").await.unwrap();
}

#[tokio::test]
async fn a_handler_is_dropped_at_the_runtimes_deadline_and_the_session_continues() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    let request = api::CreateContainerRequest {
        container: Some(container("forever")).into(),
        ..Default::default()
    };
    let deadline = ttrpc::context::with_duration(Duration::from_millis(100));
    let answer = runtime.plugin.create_container(deadline, &request).await;
    answer.unwrap_err();
    plugin.noted("left").await;
    runtime.create_container("next").await.unwrap();
}

#[tokio::test]
async fn three_hundred_requests_are_handled_at_once() {
    const REQUESTS: usize = 300;
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..REQUESTS {
        let caller = runtime.plugin.clone();
        requests.spawn(async move { create_container(&caller, "wait").await });
    }
    // No request is answered before all requests have reached the plugin.
    eventually(|| plugin.calls().len() == REQUESTS).await;
    plugin.permits.add_permits(REQUESTS);
    for answer in requests.join_all().await {
        answer.unwrap();
    }
}

#[tokio::test]
async fn a_message_of_four_megabytes_arrives() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    let mut big = container("c");
    big.annotations.insert("big".into(), "x".repeat(4_000_000));
    call!(runtime.create_container(CreateContainerRequest {
        pod: pod("p"),
        container: big
    }));
    let (_, container) = plugin.container.lock().unwrap().take().unwrap();
    assert_eq!(container.annotations["big"].len(), 4_000_000);
}

#[tokio::test]
async fn all_fields_of_a_pod_and_a_container_are_converted() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    let text = |text: &str| text.to_owned();
    let map = |key: &str, value: &str| [(text(key), text(value))].into();
    call!(
        runtime.create_container(CreateContainerRequest {
            pod: api::PodSandbox {
                id: text("id"),
                name: text("name"),
                uid: text("uid"),
                namespace: text("namespace"),
                labels: map("a", "label"),
                annotations: map("an", "annotation"),
                runtime_handler: text("kata"),
                ..Default::default()
            },
            container: api::Container {
                id: text("cid"),
                pod_sandbox_id: text("id"),
                name: text("cname"),
                state: api::ContainerState::CONTAINER_RUNNING.into(),
                labels: map("c", "label"),
                annotations: map("c", "annotation"),
                mounts: vec![api::Mount {
                    destination: text("/to"),
                    type_: text("bind"),
                    source: text("/from"),
                    options: vec![text("ro")],
                    ..Default::default()
                }],
                image: Some(api::Image {
                    name: text("busybox"),
                    digest: text("sha256:1"),
                    config_digest: text("sha256:2"),
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            }
        })
    );
    let sorted = |key: &str, value: &str| [(text(key), text(value))].into();
    let expected = nri::Pod {
        id: text("id"),
        name: text("name"),
        uid: text("uid"),
        namespace: text("namespace"),
        labels: sorted("a", "label"),
        annotations: sorted("an", "annotation"),
        runtime_handler: text("kata"),
    };
    let (pod, container) = plugin.container.lock().unwrap().take().unwrap();
    assert_eq!(pod, expected);
    let expected = nri::Container {
        id: text("cid"),
        pod_sandbox_id: text("id"),
        name: text("cname"),
        state: ContainerState::Running,
        labels: sorted("c", "label"),
        annotations: sorted("c", "annotation"),
        mounts: vec![nri::Mount {
            destination: text("/to"),
            kind: text("bind"),
            source: text("/from"),
            options: vec![text("ro")],
        }],
        image: Some(nri::Image {
            name: text("busybox"),
            digest: text("sha256:1"),
            config_digest: text("sha256:2"),
        }),
    };
    assert_eq!(container, expected);
}

#[tokio::test]
async fn a_container_that_outlives_its_pod_has_the_pods_id() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    let orphan = api::Container {
        pod_sandbox_id: "gone".to_owned(),
        ..container("c")
    };
    call!(runtime.remove_container(RemoveContainerRequest { container: orphan }));
    assert_eq!(plugin.calls(), ["remove_container gone c"]);
}

#[tokio::test]
async fn shutdown_reaches_the_plugin() {
    let plugin = recorder();
    let (_session, runtime) = started(&plugin).await;
    runtime
        .plugin
        .shutdown(no_deadline(), &api::Empty::default())
        .await
        .unwrap();
    assert_eq!(plugin.calls(), ["shutdown"]);
}
