//! The schema: one struct per table of the file, each with its defaults next to its keys.
//!
//! The types of the values check them. This module checks nothing.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use nri::{PluginIndex, PluginName};
use serde::{Deserialize, Deserializer, de::Error};

use super::{
    InvalidValue,
    names::{Name, Namespace, NodeName, PodNamespace, TaintKey},
    paths::{AbsolutePath, Listen, SocketPath},
    policy::Snapshotters,
    units::{HookWait, Interval, Percent, Workers},
};

/// The whole configuration. Every key has a default, so an empty file is a valid one.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Config {
    /// `[nri]`
    pub nri: Nri,
    /// `[containerd]`
    pub containerd: Containerd,
    /// `[hooks]`
    pub hooks: Hooks,
    /// `[unpack]`
    pub unpack: Unpack,
    /// `[pull]`
    pub pull: Pull,
    /// `[handlers]`: runtime handler → snapshotter. An entry overrides what containerd reports.
    pub handlers: BTreeMap<Name, Name>,
    /// `[kubernetes]`
    pub kubernetes: Kubernetes,
    /// `[snapshotters.*]`
    pub snapshotters: Snapshotters,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[log]`
    pub log: Log,
}

/// `[nri]`: how the plugin registers. Not used where containerd launches the plugin, since containerd then
/// supplies all three.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Nri {
    /// NRI's socket.
    pub socket: SocketPath,
    /// The name to register under.
    #[serde(deserialize_with = "parsed")]
    pub name: PluginName,
    /// The index among the plugins: lower ones are called first.
    #[serde(deserialize_with = "parsed")]
    pub index: PluginIndex,
}

impl Nri {
    /// The socket that NRI listens on unless containerd's configuration names another.
    pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            socket: built_in(Self::DEFAULT_SOCKET.to_owned()),
            name: "nri-unpack".parse().expect("built-in defaults are valid"),
            index: "10".parse().expect("built-in defaults are valid"),
        }
    }
}

/// `[containerd]`: where the plugin finds containerd.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Containerd {
    /// The socket of its gRPC services, CRI among them.
    pub socket: SocketPath,
    /// The namespace of the kubelet's images.
    pub namespace: Namespace,
    /// Its configuration file. containerd 2 reports its pause image, and its switches for labels and
    /// discarded layers, in no other place.
    pub config: AbsolutePath,
}

impl Containerd {
    /// The file that containerd reads unless it is started with another.
    pub const DEFAULT_CONFIG: &str = "/etc/containerd/config.toml";
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            socket: built_in("/run/containerd/containerd.sock".to_owned()),
            namespace: built_in("k8s.io".to_owned()),
            config: built_in(Self::DEFAULT_CONFIG.to_owned()),
        }
    }
}

/// `[hooks]`: how long a hook waits, and what it does when an image is not ready. While a hook runs, no other
/// pod or container of the node is created, so a hook must not wait long.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Hooks {
    /// How long a hook waits for an image to be ready. The unpack continues after the hook has returned. The
    /// hook returns at once where the unpack cannot finish within this time.
    /// The runtime's request timeout, less a margin, bounds the wait as well. The default is a quarter
    /// of NRI's own timeout: enough for a small image, and short for the pods that queue behind it.
    pub wait: HookWait,
    /// The verdict on a container whose image is not ready after this time.
    pub on_unready: OnUnready,
    /// Whether a container that is being created may be moved onto a ready chain. This is done where its own
    /// chain cannot be repaired while the container's snapshot stands on it.
    pub swap: bool,
    /// The namespaces in which a pod's annotation `nri-unpack/mode: skip` counts. If unset, it counts in all of them, but
    /// not where a container whose image is not ready is rejected.
    pub skip_namespaces: Option<Vec<PodNamespace>>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            wait: built_in("500ms".to_owned()),
            on_unready: OnUnready::Profile,
            swap: true,
            skip_namespaces: None,
        }
    }
}

/// The verdict on a container whose image is not ready when the hook has to answer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum OnUnready {
    /// As the snapshotter's profile says: reject where the container would run on wrong content; allow
    /// where it would only be slow.
    Profile,
    /// Allow the creation.
    Allow,
    /// Reject the creation. The kubelet tries again.
    Reject,
}

/// Whether layers are applied while their image is being pulled.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum DuringPull {
    /// On a node with several processors, where that does not delay the pull.
    Auto,
    /// Always.
    On,
    /// Never: the work begins when the pull ends.
    Off,
}

/// `[unpack]`: how much the plugin unpacks at once, and when.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Unpack {
    /// How many images are unpacked at once.
    pub parallel_images: Workers,
    /// How many layers are applied at once, over all these images together.
    pub parallel_layers: Workers,
    /// The share of the snapshotter's file system that must be free for unpacking ahead. An image that a pod
    /// needs is unpacked regardless.
    pub min_free: Percent,
    /// Whether layers are applied while their image is being pulled.
    pub during_pull: DuringPull,
    /// The interval of a periodic reconcile, which needs no event. No such reconcile runs if unset.
    pub reconcile_every: Option<Interval>,
    /// The sources, in this order, of a layer whose blob is gone.
    pub missing_content: Vec<MissingContent>,
}

impl Default for Unpack {
    fn default() -> Self {
        Self {
            parallel_images: built_in(2),
            parallel_layers: built_in(3),
            min_free: built_in("20%".to_owned()),
            during_pull: DuringPull::Auto,
            reconcile_every: None,
            missing_content: vec![MissingContent::Rebuild],
        }
    }
}

/// A source of a layer that has to be unpacked and whose blob is not in the content store.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum MissingContent {
    /// Rebuild it from overlayfs on this node.
    Rebuild,
    /// Have containerd fetch it from the image's registry.
    Pull,
}

/// `[pull]`: how containerd reaches registries when [`MissingContent::Pull`] fetches a blob.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Pull {
    /// The directory of containerd's `hosts.toml` files; it need not exist.
    pub hosts: AbsolutePath,
    /// A file with credentials, in the form of docker's `config.json`.
    pub credentials: Option<AbsolutePath>,
}

impl Default for Pull {
    fn default() -> Self {
        Self {
            hosts: built_in("/etc/containerd/certs.d".to_owned()),
            credentials: None,
        }
    }
}

/// `[kubernetes]`: the API server, which tells which pods are bound to this node before they have a sandbox, and has the
/// node's taints.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Kubernetes {
    /// Whether the pods of this node are watched.
    pub watch: Watch,
    /// The file with the address of the API server and the credentials. If unset, those of the pod's service account
    /// are used.
    pub kubeconfig: Option<AbsolutePath>,
    /// This node's name in Kubernetes. If unset, the value of the variable `NODE_NAME`, or else the name of the host.
    pub node: Option<NodeName>,
    /// The key of the taint that a new node has until the plugin is ready.
    startup_taint: Option<TaintKey>,
}

impl Kubernetes {
    /// Returns the key of the taint that the plugin removes from this node when it is ready.
    pub fn startup_taint(&self) -> Option<&str> {
        let key = self.startup_taint.as_ref().map(TaintKey::as_str);
        key.filter(|key| !key.is_empty())
    }
}

/// Whether the pods of this node are watched.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Watch {
    /// In a pod with a service account's token, and where `kubeconfig` is set.
    #[default]
    Auto,
    /// Yes. It is an error if there are no credentials.
    On,
    /// No.
    Off,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Metrics {
    /// The address that serves metrics. No metrics are served if unset.
    pub listen: Option<Listen>,
}

/// `[log]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Log {
    /// The file that log lines are appended to. If unset, they go to the journal; where there is none, to
    /// standard error.
    pub file: Option<AbsolutePath>,
    /// The least severe level that is logged. `-v` raises it, `RUST_LOG` overrides it.
    pub level: Level,
    /// The format of a line. The journal always gets text and its own fields.
    pub format: LogFormat,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text: the message and its key-value pairs.
    #[default]
    Text,
    /// JSON: one object per line.
    Json,
}

/// A log level, with the names that `RUST_LOG` uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed, and an operator has to act.
    Error,
    /// Something is wrong, and the plugin continues.
    Warn,
    /// Each change that the plugin makes, with its reason.
    #[default]
    Info,
    /// Each inspection and decision of the plugin.
    Debug,
    /// Every step.
    Trace,
}

/// Returns a default value. It passes the same check as a value from a file; a test parses all defaults.
fn built_in<V, T: TryFrom<V, Error = InvalidValue>>(value: V) -> T {
    value.try_into().expect("built-in defaults are valid")
}

/// Parses a value by the `FromStr` of its type, which is not a serde type.
fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}
