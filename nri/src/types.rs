//! The types that a plugin uses: the runtime, pods and containers.
//!
//! Only this file converts the protocol's messages to them, so that a plugin never uses generated types.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use protobuf::{EnumOrUnknown, MessageField};

use crate::api;

/// NRI's default for the time that a runtime waits for a plugin's registration.
pub const DEFAULT_REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);

/// NRI's default for the time that a runtime waits for an answer.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The runtime's name, versions and timeouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// The plugin's own configuration, if the runtime launched the plugin and found one; else empty. NRI
    /// does not parse it.
    pub config: String,
    /// The runtime's name, such as `containerd`.
    pub name: String,
    /// The runtime's version, such as `v2.1.9`.
    pub version: String,
    /// The NRI version, if the runtime sends one (from NRI 0.12). It need not be a number.
    pub nri_version: Option<String>,
    /// The time that the runtime allows for a plugin's registration.
    pub registration_timeout: Duration,
    /// The time that the runtime allows for one request. If a plugin needs longer, the runtime closes its
    /// connection and continues without it.
    pub request_timeout: Duration,
}

impl Default for RuntimeInfo {
    fn default() -> Self {
        api::ConfigureRequest::default().into()
    }
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// The pod's name.
    pub name: String,
    /// Kubernetes' uid of the pod.
    pub uid: String,
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The runtime handler; empty for the runtime's default one.
    pub runtime_handler: String,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// The container's id.
    pub id: String,
    /// The id of its pod's sandbox.
    pub pod_sandbox_id: String,
    /// The container's name in its pod.
    pub name: String,
    /// The container's state.
    pub state: ContainerState,
    /// The container's labels.
    pub labels: BTreeMap<String, String>,
    /// The container's annotations, also those that the runtime adds.
    pub annotations: BTreeMap<String, String>,
    /// The container's mounts.
    pub mounts: Vec<Mount>,
    /// The container's image, if the runtime sends it (from NRI 0.12.2).
    pub image: Option<Image>,
}

impl Pod {
    /// Returns what it takes in memory, in bytes, about.
    pub(crate) fn bytes(&self) -> usize {
        let words = [&self.id, &self.name, &self.uid, &self.namespace];
        let words: usize = words.map(String::len).iter().sum();
        size_of::<Self>() + words + of_map(&self.labels) + of_map(&self.annotations)
    }
}

impl Container {
    /// Returns what it takes in memory, in bytes, about.
    pub(crate) fn bytes(&self) -> usize {
        let words = [&self.id, &self.pod_sandbox_id, &self.name];
        let words: usize = words.map(String::len).iter().sum();
        let of_mount = |mount: &Mount| {
            let options: usize = mount.options.iter().map(String::len).sum();
            size_of::<Mount>() + mount.destination.len() + mount.source.len() + options
        };
        let mounts: usize = self.mounts.iter().map(of_mount).sum();
        size_of::<Self>() + words + mounts + of_map(&self.labels) + of_map(&self.annotations)
    }
}

fn of_map(map: &BTreeMap<String, String>) -> usize {
    let of_entry =
        |(key, value): (&String, &String)| 2 * size_of::<String>() + key.len() + value.len();
    map.iter().map(of_entry).sum()
}

/// The state of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ContainerState {
    #[default]
    Unknown,
    Created,
    Paused,
    Running,
    Stopped,
}

/// A mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The path in the container.
    pub destination: String,
    /// The file system's type, such as `bind`.
    pub kind: String,
    /// The source of the mount.
    pub source: String,
    /// Mount options.
    pub options: Vec<String>,
}

/// The image of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// The reference.
    pub name: String,
    /// The digest of the index or manifest that the reference names.
    pub digest: String,
    /// The digest of the image's config. Unlike `digest`, it is always of this node's platform.
    pub config_digest: String,
}

impl From<api::ConfigureRequest> for RuntimeInfo {
    fn from(request: api::ConfigureRequest) -> Self {
        Self {
            config: request.config,
            name: request.runtime_name,
            version: request.runtime_version,
            nri_version: Some(request.NRI_version).filter(|version| !version.is_empty()),
            registration_timeout: stated(request.registration_timeout)
                .unwrap_or(DEFAULT_REGISTRATION_TIMEOUT),
            request_timeout: stated(request.request_timeout).unwrap_or(DEFAULT_REQUEST_TIMEOUT),
        }
    }
}

/// Converts milliseconds of a message. 0, which an old runtime sends, gives the default.
fn stated(milliseconds: i64) -> Option<Duration> {
    let milliseconds = u64::try_from(milliseconds).ok().filter(|&ms| ms > 0)?;
    Some(Duration::from_millis(milliseconds))
}

impl From<api::PodSandbox> for Pod {
    fn from(pod: api::PodSandbox) -> Self {
        Self {
            id: pod.id,
            name: pod.name,
            uid: pod.uid,
            namespace: pod.namespace,
            labels: sorted(pod.labels),
            annotations: sorted(pod.annotations),
            runtime_handler: pod.runtime_handler,
        }
    }
}

impl From<api::Container> for Container {
    fn from(container: api::Container) -> Self {
        Self {
            id: container.id,
            pod_sandbox_id: container.pod_sandbox_id,
            name: container.name,
            state: container.state.into(),
            labels: sorted(container.labels),
            annotations: sorted(container.annotations),
            mounts: container.mounts.into_iter().map(Mount::from).collect(),
            image: optional(container.image),
        }
    }
}

impl From<EnumOrUnknown<api::ContainerState>> for ContainerState {
    fn from(state: EnumOrUnknown<api::ContainerState>) -> Self {
        match state.enum_value() {
            Ok(api::ContainerState::CONTAINER_CREATED) => Self::Created,
            Ok(api::ContainerState::CONTAINER_PAUSED) => Self::Paused,
            Ok(api::ContainerState::CONTAINER_RUNNING) => Self::Running,
            Ok(api::ContainerState::CONTAINER_STOPPED) => Self::Stopped,
            Ok(api::ContainerState::CONTAINER_UNKNOWN) | Err(_) => Self::Unknown,
        }
    }
}

impl From<api::Mount> for Mount {
    fn from(mount: api::Mount) -> Self {
        Self {
            destination: mount.destination,
            kind: mount.type_,
            source: mount.source,
            options: mount.options,
        }
    }
}

impl From<api::Image> for Image {
    fn from(image: api::Image) -> Self {
        Self {
            name: image.name,
            digest: image.digest,
            config_digest: image.config_digest,
        }
    }
}

/// Converts a message that may be absent.
pub(crate) fn optional<M, T: From<M>>(field: MessageField<M>) -> Option<T> {
    field.into_option().map(T::from)
}

fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_in_milliseconds_and_their_defaults() {
        let (s5, s2) = (DEFAULT_REGISTRATION_TIMEOUT, DEFAULT_REQUEST_TIMEOUT);
        for (registration, request, expected) in [
            (0, 0, (s5, s2)),
            (-1, i64::MIN, (s5, s2)),
            (
                7000,
                250,
                (Duration::from_secs(7), Duration::from_millis(250)),
            ),
        ] {
            let info = RuntimeInfo::from(api::ConfigureRequest {
                registration_timeout: registration,
                request_timeout: request,
                ..Default::default()
            });
            assert_eq!((info.registration_timeout, info.request_timeout), expected);
        }
    }

    #[test]
    fn a_container_state_from_the_future_is_unknown() {
        for (number, state) in [
            (0, ContainerState::Unknown),
            (1, ContainerState::Created),
            (2, ContainerState::Paused),
            (3, ContainerState::Running),
            (4, ContainerState::Stopped),
            (5, ContainerState::Unknown),
        ] {
            assert_eq!(ContainerState::from(EnumOrUnknown::from_i32(number)), state);
        }
    }
}
