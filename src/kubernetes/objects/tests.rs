//! The own types read what Kubernetes' own types write.

use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod as FullPod;
use k8s_openapi::api::node::v1::RuntimeClass as FullClass;
use serde::Serialize;
use serde_json::{Value, json};

use super::*;

/// Returns a value as Kubernetes' own type writes it, which has all of its fields.
fn through<T: Serialize + DeserializeOwned>(value: &Value) -> String {
    let typed: T = serde_json::from_value(value.clone()).unwrap();
    let written = serde_json::to_value(&typed).unwrap();
    assert_eq!(&written, value, "a field is not Kubernetes' own");
    written.to_string()
}

fn container(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image, "env": [{"name": "A", "value": "b"}]})
}

/// Returns a pod with an image of each kind.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p", "namespace": "ns", "uid": "u-1", "resourceVersion": "7",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "annotations": {"a": "b"},
            "managedFields": [{"manager": "kubectl", "operation": "Update"}],
        },
        "spec": {
            "nodeName": "n",
            "runtimeClassName": "kata",
            "containers": [container("c", "r.example/c:1")],
            "initContainers": [container("i", "r.example/i:1")],
            "ephemeralContainers": [container("e", "r.example/e:1")],
            "volumes": [
                {"name": "v", "image": {"reference": "r.example/v:1", "pullPolicy": "Always"}},
                {"name": "w", "emptyDir": {}},
            ],
        },
        "status": {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
        },
    })
}

fn read(value: &Value) -> Pod {
    serde_json::from_str(&through::<FullPod>(value)).unwrap()
}

fn images(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut value = pod();
    change(&mut value);
    read(&value).into_images(true)
}

#[test]
fn a_pod_has_the_images_of_all_its_containers_and_volumes() {
    let read = read(&pod());
    assert_eq!(read.metadata.uid, "u-1");
    assert_eq!(read.metadata.creation_timestamp, "2026-01-02T03:04:05Z");
    assert_eq!(read.spec.node_name.as_deref(), Some("n"));
    assert_eq!(read.spec.runtime_class_name.as_deref(), Some("kata"));
    let all = [
        "r.example/i:1",
        "r.example/c:1",
        "r.example/e:1",
        "r.example/v:1",
    ];
    assert_eq!(read.into_images(true), all);
}

#[test]
fn a_pod_waits_for_images_only_until_its_containers_are_created() {
    let phase = |phase: &str| images(|pod| pod["status"]["phase"] = json!(phase));
    assert_eq!(phase("Pending").len(), 4);
    assert_eq!(phase("Succeeded"), [""; 0]);
    assert_eq!(phase("Failed"), [""; 0]);
    assert_eq!(phase("Running"), ["r.example/e:1"]);
    let without_status = images(|pod| drop(pod.as_object_mut().unwrap().remove("status")));
    assert_eq!(without_status.len(), 4);
    let created = |id: Option<&str>| {
        images(|pod| {
            let mut status =
                json!({"name": "e", "image": "", "imageID": "", "ready": false, "restartCount": 0});
            if let Some(id) = id {
                status["containerID"] = json!(id);
            }
            pod["status"] = json!({"phase": "Running", "ephemeralContainerStatuses": [status]});
        })
    };
    assert_eq!(created(None), ["r.example/e:1"]);
    assert_eq!(created(Some("containerd://1")), [""; 0]);
}

#[test]
fn a_pod_that_is_deleted_or_says_skip_waits_for_nothing() {
    let deleted =
        images(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:06Z"));
    assert_eq!(deleted, [""; 0]);
    let mode =
        |mode: &str| images(|pod| pod["metadata"]["annotations"]["nri-unpack/mode"] = json!(mode));
    assert_eq!(mode("skip"), [""; 0]);
    assert_eq!(mode("other").len(), 4);
    let mut value = pod();
    value["metadata"]["annotations"]["nri-unpack/mode"] = json!("skip");
    let images = read(&value).into_images(false);
    assert_eq!(images.len(), 4, "the annotation does not count");
}

#[test]
fn lists_are_read_with_their_pages() {
    let list = |metadata: Value| {
        let list =
            json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": [pod()]});
        let text = through::<List<FullPod>>(&list);
        serde_json::from_str::<Page<Pod>>(&text).unwrap()
    };
    let page = list(json!({"resourceVersion": "9", "continue": "abc", "remainingItemCount": 3}));
    assert_eq!(
        (
            page.metadata.resource_version.as_str(),
            page.metadata.next.as_str()
        ),
        ("9", "abc")
    );
    assert_eq!(page.items.len(), 1);
    assert_eq!(list(json!({"resourceVersion": "9"})).metadata.next, "");
    let empty: Page<Pod> =
        serde_json::from_str(r#"{"metadata":{"resourceVersion":"9"},"items":null}"#).unwrap();
    assert!(empty.items.is_empty());
}

#[test]
fn a_class_has_its_handler() {
    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": "kata", "resourceVersion": "3"},
        "handler": "kata-qemu",
        "overhead": {"podFixed": {"memory": "160Mi"}},
        "scheduling": {"nodeSelector": {"a": "b"}},
    });
    let read: RuntimeClass = serde_json::from_str(&through::<FullClass>(&class)).unwrap();
    assert_eq!(
        (read.metadata.name.as_str(), read.handler.as_str()),
        ("kata", "kata-qemu")
    );
}
