//! The few fields of Kubernetes' objects that are needed. All others are skipped while an answer is read, so that a pod
//! costs some hundred bytes.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// One page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
pub(super) struct Page<T> {
    pub(super) metadata: PageMetadata,
    #[serde(deserialize_with = "or_default", default = "Vec::new")]
    pub(super) items: Vec<T>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    /// The version from which a watch goes on after the list.
    pub(super) resource_version: String,
    /// The token of the next page; empty for the last one.
    #[serde(rename = "continue", deserialize_with = "or_default", default)]
    pub(super) next: String,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    /// An object, or a [`Status`].
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// The version of any object.
#[derive(Debug, Deserialize)]
pub(super) struct Versioned {
    pub(super) metadata: Version,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Version {
    pub(super) resource_version: String,
}

/// An error of the API server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
}

/// A pod.
#[derive(Debug, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: PodMetadata,
    pub(super) spec: PodSpec,
    #[serde(deserialize_with = "or_default", default)]
    status: PodStatus,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodMetadata {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) uid: String,
    /// A text whose order is that of the times.
    #[serde(deserialize_with = "or_default", default)]
    pub(super) creation_timestamp: String,
    deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "or_default", default)]
    annotations: Annotations,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    /// [`crate::policy::MODE`].
    #[serde(rename = "nri-unpack/mode")]
    mode: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) runtime_class_name: Option<String>,
    #[serde(deserialize_with = "or_default", default)]
    containers: Vec<Container>,
    #[serde(deserialize_with = "or_default", default)]
    init_containers: Vec<Container>,
    #[serde(deserialize_with = "or_default", default)]
    ephemeral_containers: Vec<Container>,
    #[serde(deserialize_with = "or_default", default)]
    volumes: Vec<Volume>,
}

#[derive(Debug, Deserialize)]
struct Container {
    #[serde(default)]
    name: String,
    #[serde(deserialize_with = "or_default", default)]
    image: String,
}

#[derive(Debug, Deserialize)]
struct Volume {
    image: Option<ImageVolume>,
}

#[derive(Debug, Deserialize)]
struct ImageVolume {
    #[serde(deserialize_with = "or_default", default)]
    reference: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(deserialize_with = "or_default")]
    phase: String,
    #[serde(deserialize_with = "or_default")]
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    #[serde(default)]
    name: String,
    #[serde(rename = "containerID", deserialize_with = "or_default", default)]
    container_id: String,
}

impl Pod {
    /// Returns the images that the pod waits for: those of all containers as long as it is pending, which ends when all
    /// are created, and those of ephemeral containers that were added to it later. `may_skip` says whether the pod's
    /// annotation counts.
    pub(super) fn into_images(self, may_skip: bool) -> Vec<String> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let is_skipped = may_skip && metadata.annotations.mode.as_deref() == Some("skip");
        if metadata.deletion_timestamp.is_some() || is_skipped {
            return Vec::new();
        }
        let is_created = |container: &Container| {
            let mut statuses = status.ephemeral_container_statuses.iter();
            statuses.any(|status| status.name == container.name && !status.container_id.is_empty())
        };
        let ephemeral = spec.ephemeral_containers.into_iter();
        let ephemeral = ephemeral.filter(|container| !is_created(container));
        let volumes = spec.volumes.into_iter();
        let volumes = volumes.filter_map(|volume| Some(volume.image?.reference));
        let images: Vec<_> = match status.phase.as_str() {
            "" | "Pending" => {
                let all = spec.init_containers.into_iter().chain(spec.containers);
                let all = all.chain(ephemeral).map(|container| container.image);
                all.chain(volumes).collect()
            }
            "Running" => ephemeral.map(|container| container.image).collect(),
            _ => Vec::new(),
        };
        let named = images.into_iter().filter(|image| !image.is_empty());
        named.collect()
    }
}

/// A RuntimeClass.
#[derive(Debug, Deserialize)]
pub(super) struct RuntimeClass {
    pub(super) metadata: Named,
    /// The runtime handler, which need not have the name of the class.
    #[serde(default)]
    pub(super) handler: String,
}

/// A node.
#[derive(Debug, Deserialize)]
pub(super) struct Node {
    #[serde(deserialize_with = "or_default", default)]
    pub(super) spec: NodeSpec,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct NodeSpec {
    /// All fields of each: a patch that tests a taint has to name them.
    #[serde(deserialize_with = "or_default", default)]
    pub(super) taints: Vec<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
}

/// Reads `null` as the default: Go writes it for an empty list.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
