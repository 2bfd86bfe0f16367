//! The schema: one struct per table of the file, each with its defaults next to its keys.
//!
//! What a value may be is said by its type; nothing is checked here.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use nri::{PluginIndex, PluginName};
use serde::{Deserialize, Deserializer, de::Error};

use super::{
    InvalidValue,
    names::{Name, Namespace},
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
    /// `[handlers]`: runtime handler → snapshotter, where what containerd reports is to be
    /// overruled.
    pub handlers: BTreeMap<Name, Name>,
    /// `[snapshotters.*]`
    pub snapshotters: Snapshotters,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[log]`
    pub log: Log,
}

/// `[nri]`: how the plugin presents itself. Not used where containerd launches the plugin and hands
/// it all three.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Nri {
    /// NRI's socket.
    pub socket: SocketPath,
    /// The name to register under.
    #[serde(deserialize_with = "parsed")]
    pub name: PluginName,
    /// The place among the plugins: lower ones are called first.
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

/// `[containerd]`: where containerd is found.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Containerd {
    /// The socket of its gRPC services, CRI among them.
    pub socket: SocketPath,
    /// The namespace that the kubelet's images live in.
    pub namespace: Namespace,
    /// Its configuration file: containerd 2 reports its pause image and its switches for labels and
    /// discarded layers nowhere else.
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

/// `[hooks]`: how far a hook goes on behalf of a pod. A hook holds the whole node, so it never
/// waits long.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Hooks {
    /// How long a hook waits for an image to be ready; the work goes on when the hook has left. It
    /// leaves at once where the work cannot be done by then.
    /// The runtime's request timeout, less a margin, bounds it as well. The default is a quarter
    /// of NRI's own: time for a small image, and little for the pods that queue behind it.
    pub wait: HookWait,
    /// What becomes of a container whose image is not ready by then.
    pub on_unready: OnUnready,
    /// Whether the snapshot of a container that is being created may be moved onto a ready chain
    /// where its own chain cannot be repaired under it.
    pub swap: bool,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            wait: built_in("500ms".to_owned()),
            on_unready: OnUnready::Profile,
            swap: true,
        }
    }
}

/// The verdict on a container whose image is not ready when the hook has to answer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum OnUnready {
    /// As the snapshotter's profile says: reject where starting would be wrong, not merely slow.
    Profile,
    /// Let it start.
    Allow,
    /// Fail its creation; the kubelet tries again.
    Reject,
}

/// `[unpack]`: how much the plugin does at a time.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Unpack {
    /// How many images are unpacked at once.
    pub parallel_images: Workers,
    /// How many layers are applied at once, of all these images together.
    pub parallel_layers: Workers,
    /// The share of the snapshotter's file system that has to be free for eager work. What a pod
    /// asks for is unpacked regardless.
    pub min_free: Percent,
    /// How often all images are looked at although nothing tells of a change; never if unset.
    pub reconcile_every: Option<Interval>,
    /// What is done, in this order, about a layer whose blob is gone.
    pub missing_content: Vec<MissingContent>,
}

impl Default for Unpack {
    fn default() -> Self {
        Self {
            parallel_images: built_in(2),
            parallel_layers: built_in(3),
            min_free: built_in("15%".to_owned()),
            reconcile_every: None,
            missing_content: vec![MissingContent::Rebuild],
        }
    }
}

/// A way to a layer that has to be unpacked and whose blob is no longer in the content store.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum MissingContent {
    /// Take it from overlayfs on this node.
    Rebuild,
    /// Have containerd fetch it from the image's registry.
    Pull,
}

/// `[pull]`: how registries are reached, where what is missing is pulled.
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

/// `[metrics]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Metrics {
    /// Where metrics are served; nowhere if unset.
    pub listen: Option<Listen>,
}

/// `[log]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Log {
    /// The file that log lines are appended to; if unset they go to the journal, or else to
    /// standard error.
    pub file: Option<AbsolutePath>,
    /// The least severe level that is logged. `-v` raises it, `RUST_LOG` overrules it.
    pub level: Level,
    /// What a line looks like. The journal has fields of its own, and gets text.
    pub format: LogFormat,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people: the message and its pairs.
    #[default]
    Text,
    /// For machines: an object a line.
    Json,
}

/// A log level, by the names that `RUST_LOG` uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed and needs someone.
    Error,
    /// Something is wrong that the plugin lives with.
    Warn,
    /// What the plugin changed, and why.
    #[default]
    Info,
    /// What the plugin looked at and decided.
    Debug,
    /// Every step.
    Trace,
}

/// A default, through the same check as a value from a file; a test holds that all of them pass.
fn built_in<V, T: TryFrom<V, Error = InvalidValue>>(value: V) -> T {
    value.try_into().expect("built-in defaults are valid")
}

/// A value by the rule of the type that it is for, which knows nothing of files.
fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}
