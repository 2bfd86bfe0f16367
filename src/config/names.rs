//! Checked names: namespaces, runtime handlers, snapshotters, and keys of labels.
//!
//! Each type is parsed from text, in the file or as a command line argument. A value of such a type is
//! always well-formed.

use std::{borrow::Borrow, fmt, str::FromStr};

use serde::Deserialize;

use super::InvalidValue;

/// The labels that the plugin computes for each layer (the second is a prefix of keys). A constant value
/// would be wrong for all layers but one.
const OWN_LABELS: [&str; 2] = ["containerd.io/snapshot.ref", "containerd.io/snapshot/cri."];

/// The maximum length of an identifier in containerd, such as a namespace.
const IDENTIFIER_MAX: usize = 76;

/// The maximum length of a node's name in Kubernetes, and of the prefix of a key.
const SUBDOMAIN_MAX: usize = 253;

/// The maximum length of a key in Kubernetes, without its prefix.
const KEY_MAX: usize = 63;

/// Whether the text is a DNS subdomain, by Kubernetes' rule.
fn is_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_dns_label)
}

/// The maximum length of a namespace in Kubernetes.
const POD_NAMESPACE_MAX: usize = 63;

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $valid:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<Self, InvalidValue> {
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) {
                    return Ok(Self(text));
                }
                Err(InvalidValue::new(format!(concat!("{:?} is not ", $expected), text)))
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                text.to_owned().try_into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// A containerd namespace, by containerd's rule for identifiers.
    Namespace,
    |text| {
        let alphanumeric = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut words = text.split(['.', '_', '-']);
        text.len() <= IDENTIFIER_MAX && words.all(|word| !word.is_empty() && alphanumeric(word))
    },
    "a containerd namespace: use letters and digits, with a single `.`, `_` or `-` between them, \
     76 at most"
);

checked_name!(
    /// The name of a node, by Kubernetes' rule: a DNS subdomain. No other text gets into a field selector.
    NodeName,
    is_subdomain,
    "the name of a node: use lower case letters and digits, with `.` and `-` between them, 253 at most"
);

checked_name!(
    /// A namespace of pods, by Kubernetes' rule: a DNS label. `*` stands for all.
    PodNamespace,
    |text| text == "*" || (text.len() <= POD_NAMESPACE_MAX && is_dns_label(text)),
    "a namespace of pods: use lower case letters and digits, with `-` between them, 63 at most, or \"*\" for all"
);

checked_name!(
    /// The key of a taint, by Kubernetes' rule; empty for none.
    TaintKey,
    |text| {
        let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(p, n)| (Some(p), n));
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let mut ends = name.bytes().take(1).chain(name.bytes().last());
        let is_name = !name.is_empty()
            && name.len() <= KEY_MAX
            && name.bytes().all(is_inner)
            && ends.all(|byte| byte.is_ascii_alphanumeric());
        text.is_empty() || (is_name && prefix.is_none_or(is_subdomain))
    },
    "the key of a taint: write it without value and effect, such as `nri-unpack/starting`"
);

checked_name!(
    /// The name of a runtime handler or a snapshotter. containerd itself accepts nearly any name. A `/`
    /// would make a snapshotter's name ambiguous in the gc labels that keep its snapshots.
    Name,
    |text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'),
    "a name: use letters, digits and punctuation other than `/`"
);

checked_name!(
    /// The key of an extra label.
    LabelKey,
    |text| !text.is_empty() && !OWN_LABELS.iter().any(|own| text.starts_with(own)),
    "a key for an extra label: write one that is not empty, and that the plugin does not set itself"
);

fn is_dns_label(label: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut ends = label.bytes().take(1).chain(label.bytes().last());
    let all = label.bytes().all(|byte| is_inner(byte) || byte == b'-');
    !label.is_empty() && all && ends.all(is_inner)
}

impl PodNamespace {
    /// Whether it is this namespace, or stands for all.
    pub fn covers(&self, namespace: &str) -> bool {
        self.as_str() == "*" || self.as_str() == namespace
    }
}
